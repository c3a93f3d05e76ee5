"""What a loader may be, and what it may not: without a length, without batches, or spent after one epoch."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from functrain import tree
from tests.trainer.test_windows import POLICIES, Known, Moves, Unsized, numbers, weight, weight_trainer

# --- without a length


class Refuses(Unsized):
    """A loader whose length is an error, of a kind."""

    def __init__(self, kind: type[Exception], *values: float) -> None:
        super().__init__(numbers(*values))
        self.kind = kind

    def __len__(self) -> int:
        raise self.kind("it has no length")


class Stream(IterableDataset[Tensor]):
    """Numbers, one by one."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.tensor(self.values, dtype=torch.float64))


class NotImplementedStream(Stream):
    """It says that it has no length."""

    def __len__(self) -> int:
        raise NotImplementedError


class Wrapped:
    """A generator function as a loader."""

    def __init__(self, function: Callable[[], Iterator[object]]) -> None:
        self.function = function

    def __iter__(self) -> Iterator[object]:
        return self.function()


def generator(*values: float) -> Iterator[object]:
    yield from numbers(*values)


UNSIZED: dict[str, Callable[..., Iterable[object]]] = {
    "TypeError": lambda *values: Refuses(TypeError, *values),
    "NotImplementedError": lambda *values: Refuses(NotImplementedError, *values),
    "no __len__": lambda *values: Unsized(numbers(*values)),
    "a DataLoader over a stream": lambda *values: DataLoader(Stream(*values), 1),
    "over one that raises NotImplementedError": lambda *values: DataLoader(NotImplementedStream(*values), 1),
    "a generator function": lambda *values: Wrapped(lambda: generator(*values)),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", UNSIZED)
def test_iter_1_a_loader_without_a_length_is_trained_and_validated_on(kind: str, policy: str, tmp_path: Path) -> None:
    known, moves = Moves(), Moves()
    for callback, make in ((known, lambda *values: numbers(*values)), (moves, UNSIZED[kind])):
        trainer = weight_trainer(
            make(1, 2, 3, 4, 5, 6), val_loader=make(3, 5), eval_interval=2, short_window=policy, grad_accum_steps=4,
            max_epochs=3, save_dir=tmp_path / str(make), callbacks=[callback],
        )  # fmt: skip
        trainer.train()
        assert trainer.evaluate()["loss"] == 4 * weight(trainer)
        assert trainer.epoch == 4
    assert moves.moves == known.moves
    assert len(moves.moves) == {"weighted": 6, "drop": 3, "carry": 5}[policy]


@pytest.mark.filterwarnings("ignore:resume is not exact. the loader is an iterable without state")
@pytest.mark.parametrize("kind", UNSIZED)
def test_iter_1_a_run_over_it_is_resumed(kind: str, tmp_path: Path) -> None:
    moves = Moves()
    settings: dict[str, Any] = dict(grad_accum_steps=2, max_epochs=3, save_dir=tmp_path, callbacks=[moves])
    for ends in (1, 2, 4, 6):  # within an epoch, and at the ends of two
        trainer = weight_trainer(UNSIZED[kind](1, 2, 3), resume="auto", max_steps=ends, **settings)
        trainer.train()
        assert trainer.updates == ends
    assert moves.moves == [1.5, 3.0] * 3


def test_iter_1_the_screen_shows_updates_without_a_total() -> None:
    with redirect_stderr(io.StringIO()) as screen:
        weight_trainer(Refuses(TypeError, 1, 1, 1), max_epochs=2, log_interval=1).train()
    lines = [line.split("  ")[:2] for line in screen.getvalue().splitlines() if line.startswith("epoch")]
    assert lines == [[f"epoch {e}/2", f"updates {n}"] for e in (1, 2) for n in (1, 2, 3)]
    assert "eta" not in screen.getvalue()


# --- that yields nothing

EMPTY: dict[str, Callable[[], Any]] = {
    "a list": list,
    "no length": lambda: Unsized([]),
    "a length that is wrong": lambda: Known([]),
    "a generator": lambda: iter(()),
    "a DataLoader over a stream": lambda: DataLoader(Stream(), 1),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", EMPTY)
def test_iter_2_a_loader_that_yields_nothing_raises(kind: str, policy: str) -> None:
    trainer = weight_trainer(EMPTY[kind](), short_window=policy)
    with pytest.raises(ValueError, match=r"^Trainer: the train loader yields no batch$"):
        trainer.train()
    assert (trainer.updates, weight(trainer)) == (0, 0.0)


@pytest.mark.parametrize(("policy", "updates"), [("weighted", 2), ("drop", 1), ("carry", 1)])
def test_iter_2_so_does_one_that_yields_nothing_in_a_later_epoch(policy: str, updates: int, tmp_path: Path) -> None:
    """Carried, the window that was begun is not applied: what would fill it did not come."""
    trainer = weight_trainer(
        Unsized(numbers(1, 1, 1), [], numbers(1)),
        short_window=policy,
        grad_accum_steps=2,
        max_epochs=3,
        save_dir=tmp_path,
    )
    message = (
        "Trainer: the train loader has no batch in epoch 2; "
        "hint: give something that can be iterated again, such as a DataLoader or a list"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trainer.train()
    assert (trainer.updates, weight(trainer)) == (updates, -updates)
    assert trainer.save_checkpoint().name == f"step-{updates:08d}.pt"


# --- that is spent

SPENT = (
    "Trainer: the train loader is an iterator, and was spent after one epoch; "
    "hint: give something that can be iterated again, such as a DataLoader or a list"
)


@pytest.mark.parametrize("kind", ["a generator", "an iterator", "map"])
@pytest.mark.parametrize("policy", POLICIES)
def test_iter_5_a_one_shot_generator_fails_in_epoch_2(policy: str, kind: str, tmp_path: Path) -> None:
    loaders: dict[str, Iterable[object]] = {
        "a generator": generator(1, 2, 3, 4), "an iterator": iter(numbers(1, 2, 3, 4)),
        "map": map(torch.Tensor.double, numbers(1, 2, 3, 4)),
    }  # fmt: skip
    settings: dict[str, Any] = dict(short_window=policy, grad_accum_steps=2, max_epochs=2, save_dir=tmp_path)
    trainer = weight_trainer(loaders[kind], **settings)
    with pytest.raises(ValueError, match=f"^{re.escape(SPENT)}$"):
        trainer.train()
    assert (trainer.updates, weight(trainer), trainer.model.module.w.item()) == (2, -5.0, -5.0)

    saved = weight_trainer(numbers(1, 2), resume=tmp_path / "last.pt", **{**settings, "save_dir": None})
    assert (saved.updates, saved.epoch, weight(saved)) == (2, 2, -5.0)  # the first epoch, as it ended
    trainer.save_checkpoint()
    assert all(map(torch.equal, tree.leaves(saved.state), tree.leaves(trainer.state)))


def test_iter_5_one_epoch_of_it_is_no_error() -> None:
    trainer = weight_trainer(generator(1, 2, 3))
    trainer.train()
    assert weight(trainer) == -6.0


@pytest.mark.parametrize("policy", POLICIES)
def test_iter_5_unsaved_the_first_epochs_work_can_still_be_saved(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = weight_trainer(generator(1, 2, 3), grad_accum_steps=2, short_window=policy, max_epochs=2)
    with pytest.raises(ValueError, match=f"^{re.escape(SPENT)}$"):
        trainer.train()
    path = trainer.save_checkpoint()
    again = weight_trainer(numbers(1, 2), resume=path, grad_accum_steps=2, short_window=policy, max_epochs=2)
    assert weight(again) == weight(trainer) == {"weighted": -4.5, "drop": -1.5, "carry": -1.5}[policy]
    assert again.updates == {"weighted": 2, "drop": 1, "carry": 1}[policy]


@pytest.mark.filterwarnings("ignore:resume is not exact. the loader is an iterable without state")
def test_iter_5_with_another_generator_the_run_goes_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(max_epochs=2, save_dir=tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(SPENT)}$"):
        weight_trainer(generator(1, 2), **settings).train()
    trainer = weight_trainer(generator(10, 20), resume="auto", **settings)
    trainer.train()
    assert (weight(trainer), trainer.updates) == (-33.0, 4)
