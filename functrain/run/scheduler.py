"""What a scheduler of torch.optim.lr_scheduler is to a run."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch.optim import Optimizer


@runtime_checkable
class Scheduler(Protocol):
    """A scheduler of torch.optim.lr_scheduler."""

    optimizer: Optimizer

    def step(self, metrics: float = ...) -> None:
        """Set the rates of the next update."""
        ...

    def state_dict(self) -> dict[str, object]:
        """What `load_state_dict` takes."""
        ...

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on from there."""
        ...


def name_of(scheduler: object) -> str:
    """Its class, with those of the schedulers in it."""
    inner = ", ".join(name_of(x) for x in getattr(scheduler, "_schedulers", ()))
    return f"{type(scheduler).__name__}({inner})" if inner else type(scheduler).__name__


def checked(scheduler: object, optimizer: Optimizer) -> Scheduler | None:
    """The scheduler, if it is one of this optimizer's.

    Raises:
        TypeError, ValueError: it is none; it sets another optimizer's rates.
    """
    if scheduler is None:
        return None
    if not isinstance(scheduler, Scheduler):
        raise TypeError(
            f"Trainer: scheduler is a {type(scheduler).__name__}, and not one of torch.optim.lr_scheduler; "
            "hint: OneCycleLR(optimizer, max_lr=..., total_steps=...)"
        )
    if scheduler.optimizer is not optimizer:
        raise ValueError(
            f"Trainer: {type(scheduler).__name__} sets the rates of another optimizer than the one given; "
            "hint: build it over the optimizer that the Trainer has"
        )
    return scheduler
