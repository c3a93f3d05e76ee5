"""What a scheduler of torch.optim.lr_scheduler is to a run."""

from __future__ import annotations

import inspect
from typing import Protocol, runtime_checkable

from torch.optim import Optimizer

from functrain.record import Recorded


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


def called(scheduler: object) -> str:
    """What messages call it: the class, of a function its name."""
    if isinstance(scheduler, type) or inspect.isfunction(scheduler):
        return scheduler.__name__
    return type(scheduler).__name__


def check_schedule(scheduler: object) -> None:
    """Refuse what would take the number of updates for something else.

    Raises:
        TypeError: it is a class; it is a schedule, whose argument is the count of updates so far.
    """
    if isinstance(scheduler, type):
        name = scheduler.__name__
        raise TypeError(
            f"Trainer: scheduler is the class {name}; hint: {name}(optimizer, ...), or a function that makes it from "
            "the updates in all: lambda optimizer, updates: ..."
        )
    if isinstance(scheduler, Recorded):
        raise TypeError(
            f"Trainer: scheduler is the schedule {scheduler}, which a rule takes; hint: ft.adamw(schedule) as optimizer"
        )


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
