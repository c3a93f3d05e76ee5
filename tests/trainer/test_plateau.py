"""A plateau's scheduler steps once a validation, before the checkpoint, and by the validation's loss."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from functrain.trainer import Trainer
from tests.trainer.test_schedules import records
from tests.trainer.test_windows import Weight, numbers


class Counted(ReduceLROnPlateau):
    """A plateau that takes note of its steps, in its state."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.told: list[float] = []
        super().__init__(optimizer, factor=0.5, patience=0)

    def step(self, metrics: Any, epoch: Any = None) -> None:
        self.told.append(float(metrics))
        super().step(metrics)


def flat(m: nn.Module, x: Tensor) -> Tensor:
    """Training moves the weight, validation is always 7."""
    return m(x).mean() if m.training else 0 * m(x).mean() + 7.0


def plateau(validation: Sequence[Tensor] | Any = (), **settings: Any) -> tuple[Trainer, Counted]:
    module = Weight()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    scheduler = Counted(optimizer)
    settings = {"objective": flat, "max_epochs": 2, "log_interval": 1} | settings
    held_out = validation or numbers(1, 1, 1)
    return Trainer(module, optimizer, numbers(1, 1, 1), held_out, scheduler, **settings), scheduler


@pytest.mark.parametrize(("interval", "rates"), [(None, [1.0] * 6), (1, [1, 1, 0.5, 0.25, 0.125, 0.0625])])
def test_sch_5_a_plateau_steps_once_a_validation(interval: int | None, rates: list[float]) -> None:
    """The first value is the best, each later one halves the rate; an epoch's validation serves an interval too."""
    trainer, scheduler = plateau(eval_interval=interval)
    trainer.train()
    assert scheduler.told == [7.0] * (2 if interval is None else 6)
    assert [record["learning_rate"] for record in records(trainer)] == rates
    trainer.evaluate()
    assert len(scheduler.told) == (2 if interval is None else 6)  # this one was asked for by hand


def test_sch_5_a_plateau_steps_before_the_checkpoint(tmp_path: Path) -> None:
    trainer, scheduler = plateau(eval_interval=2, save_interval=2, save_dir=tmp_path)
    saved: list[tuple[int, float, int]] = []

    def look(event: str, trainer: Trainer) -> None:
        if event == "save":
            again, other = plateau(resume=tmp_path / f"step-{trainer.updates:08d}.pt")
            saved.append((trainer.updates, again.optimizer.param_groups[0]["lr"], other.last_epoch))

    trainer.callbacks.append(look)
    trainer.train()
    assert saved == [(2, 1.0, 1), (4, 0.5, 2), (6, 0.25, 3)]
    assert scheduler.told == [7.0] * 3


@pytest.mark.parametrize("stop", range(1, 7))
def test_sch_5_resumed_it_does_not_step_again(stop: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(eval_interval=2, save_interval=1, save_dir=tmp_path)
    first, _ = plateau(**settings)
    first.callbacks.append(lambda event, trainer: trainer.updates == stop and trainer.stop())
    first.train()
    second, other = plateau(resume="auto", **settings)
    second.train()
    assert other.told == [7.0] * 3  # those of the first are in its state
    assert [record["learning_rate"] for record in records(second)] == [1, 1, 1, 1, 0.5, 0.5]
    assert second.state.params["w"].item() == -5.0


class Interrupts:
    """Three batches to validate on, and a signal before the second of them, the first time."""

    def __init__(self) -> None:
        self.times = 0

    def __iter__(self) -> Iterator[Tensor]:
        for i, batch in enumerate(numbers(1, 1, 1)):
            if i == 1 and self.times == 0:
                signal.raise_signal(signal.SIGTERM)
            yield batch
        self.times += 1


def test_sch_5_a_validation_that_is_broken_off_steps_when_it_is_made_up_for(tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(eval_interval=2, save_dir=tmp_path)
    first, one = plateau(Interrupts(), **settings)
    with pytest.raises(SystemExit):
        first.train()
    assert (first.updates, one.told) == (2, [])
    second, other = plateau(resume="auto", **settings)
    second.train()
    assert other.told == [7.0] * 3
    assert [record["learning_rate"] for record in records(second)] == [1, 1, 1, 1, 0.5, 0.5]
