"""A run that is stopped within a window is the run that was not: the window ends, or is replayed from its start."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from functrain.optimizers.adaptive import adamw
from functrain.trainer import Trainer
from tests.networks import NormNet, points
from tests.trainer.test_windows import LINE, POLICIES, assert_equal

Served = list[tuple[int, ...]]  # the samples of each batch


class Noisy(Dataset[tuple[Tensor, Tensor, int]]):
    """Samples that know their number, three a batch and two in the last, with noise from the global stream."""

    def __init__(self, batches: int) -> None:
        self.x, self.y = points(3 * batches - 1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        return self.x[i] + 0.1 * torch.rand(3), self.y[i], i


class Stream(IterableDataset[tuple[Tensor, Tensor, int]]):
    """The same in a stream without a length, in an order that is drawn."""

    def __init__(self, batches: int) -> None:
        self.data = Noisy(batches)

    def __iter__(self) -> Any:
        return (self.data[i] for i in torch.randperm(len(self.data)).tolist())


class Broken(Exception):
    """What somebody's code raises."""


class Objective:
    """A loss that takes note of the samples it trains on, and at one batch is stopped.

    Args:
        at: the number of the batch, from 1; None is never.
        how: "signal", a real one, after which the window ends; or "exception", after which it does not.
    """

    def __init__(self, at: int | None = None, how: str = "signal") -> None:
        self.at, self.how, self.served = at, how, Served()

    def __call__(self, m: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        if m.training:
            self.served.append(tuple(batch[2].tolist()))
            if len(self.served) == self.at:
                if self.how == "exception":
                    raise Broken
                os.kill(os.getpid(), signal.SIGTERM)
        return F.mse_loss(m(batch[0]), batch[1])


def trainer_of(
    length: int, k: int, policy: str, objective: Objective, stream: bool = False, **settings: Any
) -> Trainer:
    torch.manual_seed(3)
    loader = DataLoader(Stream(length), 3) if stream else DataLoader(Noisy(length), 3, shuffle=True)
    settings = {"max_epochs": 3, "grad_accum_steps": k, "short_window": policy, "log_interval": 1} | settings
    net = NormNet(0.3)
    return Trainer(net, adamw(0.02), loader, DataLoader(Noisy(2), 3), objective=objective, **settings)


CLOCKS = {"seconds", "updates_per_second", "samples_per_second", "data_wait"}


def told(trainer: Trainer) -> list[dict[str, Any]]:
    return [{name: x for name, x in record.items() if name not in CLOCKS} for record in trainer.history]


def whole_run(length: int, k: int, policy: str, **settings: Any) -> tuple[Trainer, Served]:
    objective = Objective()
    trainer = trainer_of(length, k, policy, objective, **settings)
    torch.manual_seed(11)
    trainer.train()
    return trainer, objective.served


def stopped_and_resumed(
    folder: Path, length: int, k: int, policy: str, stops: list[int], how: str, **settings: Any
) -> tuple[Trainer, Served]:
    """The run in parts, each with other random numbers at hand; a part ends at so many batches of its own."""
    served = Served()
    for part, at in enumerate([*stops, None]):
        objective = Objective(at, how)
        trainer = trainer_of(length, k, policy, objective, save_dir=folder, resume="auto", **settings)
        torch.manual_seed(11 if part == 0 else 1000 + part)
        done = len(served)
        try:
            trainer.train()
        except SystemExit:
            served += objective.served
        except Broken:
            place = trainer.feed.place
            trainer.save_checkpoint()
            # The place is the last update's: what was seen of the window after it will be seen again.
            again = objective.served[: place.epoch * length + place.consumed - done]
            served += again
        else:
            served += objective.served
            break
    return trainer, served


@pytest.mark.parametrize("how", ["signal", "exception"])
@pytest.mark.parametrize("length", [5, 7, 10])
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_win_2_stopped_within_a_window_of_each_epoch_and_resumed_is_not_stopped(
    policy: str, k: int, length: int, how: str, tmp_path: Path
) -> None:
    whole, served = whole_run(length, k, policy)
    parts, again = stopped_and_resumed(tmp_path, length, k, policy, [2, length, length - 1], how)
    assert again == served
    assert_equal(parts.state, whole.state)
    assert told(parts) == told(whole)
    assert parts.epoch == whole.epoch == 4


@pytest.mark.filterwarnings("ignore:resume is not exact. the loader is an iterable without state")
@pytest.mark.parametrize("how", ["signal", "exception"])
@given(
    length=st.integers(1, 6), k=st.integers(1, 7), policy=st.sampled_from(POLICIES), stream=st.booleans(),
    stops=st.lists(st.integers(1, 9), max_size=3), most=st.none() | st.integers(1, 6), data=st.data(),
)  # fmt: skip
def test_win_2_stopped_anywhere_and_resumed_is_not_stopped(
    how: str, length: int, k: int, policy: str, stream: bool, stops: list[int], most: int | None, data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """Windows that cross two epochs, loaders of unknown length, and runs that max_steps alone ends, among them."""
    if policy == "drop":
        k = min(k, length)
    limits: dict[str, Any] = {"max_steps": most, "stream": stream}
    if most is not None and data.draw(st.booleans()):
        limits["max_epochs"] = None
    whole, served = whole_run(length, k, policy, **limits)
    folder = tmp_path_factory.mktemp("run")
    parts, again = stopped_and_resumed(folder, length, k, policy, stops, how, **limits)
    assert again == served
    assert_equal(parts.state, whole.state)
    assert told(parts) == told(whole)


@pytest.mark.filterwarnings("ignore:resume is not exact. the loader is an iterable without state")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("interval", [None, 1])
@pytest.mark.parametrize("policy", POLICIES)
def test_win_2_every_checkpoint_goes_on_to_the_same_end(
    policy: str, interval: int | None, stream: bool, tmp_path: Path
) -> None:
    """Those that a kill would leave, too: saved between two windows, and where an epoch has ended."""
    settings: dict[str, Any] = dict(stream=stream, save_interval=interval, eval_interval=interval)
    whole, served = whole_run(5, 3, policy, save_dir=tmp_path, keep=99, **settings)
    saved = sorted(tmp_path.glob("step-*.pt"))
    assert len(saved) == (3 if interval is None else whole.updates)
    for path in saved:
        objective = Objective()
        again = trainer_of(5, 3, policy, objective, resume=path, **settings)
        torch.manual_seed(5)
        again.train()
        assert objective.served == served[len(served) - len(objective.served) :]
        assert_equal(again.state, whole.state)
        assert told(again) == told(whole)


@pytest.mark.parametrize("how", ["signal", "exception"])
@pytest.mark.parametrize("policy", POLICIES)
def test_win_3_a_resumed_run_shows_the_numbers_of_updates_that_one_without_a_stop_does(
    policy: str, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_run(7, 3, policy)
    whole = LINE.findall(capsys.readouterr().err)
    parts, _ = stopped_and_resumed(tmp_path, 7, 3, policy, [4, 4, 8], how)
    assert LINE.findall(capsys.readouterr().err) == whole
    assert len(whole) == parts.updates == {"weighted": 9, "drop": 6, "carry": 7}[policy]


def test_win_2_an_exception_within_a_window_is_saved_as_of_the_last_update(tmp_path: Path) -> None:
    objective = Objective(6, "exception")
    trainer = trainer_of(10, 4, "carry", objective, save_dir=tmp_path)
    with pytest.raises(Broken):
        trainer.train()
    trainer.save_checkpoint()
    again = trainer_of(10, 4, "carry", Objective(), save_dir=tmp_path, resume="auto")
    assert (again.updates, again.feed.place.epoch, again.feed.place.consumed) == (1, 0, 4)


def test_win_2_train_called_again_after_an_exception_replays_the_window() -> None:
    whole, served = whole_run(5, 3, "carry")
    objective = Objective(8, "exception")
    trainer = trainer_of(5, 3, "carry", objective)
    torch.manual_seed(11)
    with pytest.raises(Broken):
        trainer.train()
    torch.manual_seed(5)
    trainer.train()
    assert objective.served == served[:8] + served[6:]
    assert_equal(trainer.state, whole.state)
