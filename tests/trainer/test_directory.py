"""The directory of a run: what is kept, what is called best, what is resumed from, and who may write there."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from functrain import checkpoint
from functrain.checkpoint import CheckpointError
from functrain.optimizers.momentum import sgd
from functrain.run.directory import RunDirectory
from functrain.trainer import Trainer


def mean(m: nn.Module, x: Tensor) -> Tensor:
    return m(x).mean()


def make(save_dir: Path | None, steps: int = 6, **kwargs: object) -> Trainer:
    """A run whose weight falls by one an update."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    settings = {"objective": mean, "max_epochs": None, "max_steps": steps, "save_dir": save_dir} | kwargs
    return Trainer(net, sgd(1.0), settings.pop("loader", [torch.ones(1, 1)] * 3), **settings)


def step_of(path: Path) -> int:
    return int(checkpoint.read(path).leaves["step"])


def names(directory: Path, pattern: str = "step-*") -> list[str]:
    return sorted(path.name for path in directory.glob(pattern))


# --- auto


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


BREAKS: dict[str, Callable[[Path], object]] = {
    "a changed bit": flipped,
    "cut off": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "something else": lambda path: path.write_bytes(b"PK not a checkpoint" * 99),
}


def test_ckpt_5_auto_takes_the_newest_that_verifies_and_names_each_that_it_skips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, save_interval=1, keep=9).train()
    bad = [tmp_path / f"step-{step:08d}.pt" for step in (6, 5, 4, 3)]
    for path, breaks in zip(bad, BREAKS.values(), strict=True):
        breaks(path)  # last.pt is another name of the first
    capsys.readouterr()
    again = make(tmp_path, resume="auto")
    assert again.updates == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" is ")[0] for line in said[:4]] == [f"skipped: checkpoint.verify: {path}" for path in bad]
    assert not any("skipped" in line for line in said[4:])
    again.train()
    assert again.model.module.weight.item() == -6.0


def test_ckpt_5_auto_goes_back_to_the_best_where_nothing_newer_verifies(tmp_path: Path) -> None:
    make(tmp_path, save_interval=1, keep=1).train()
    shutil.copy(tmp_path / "last.pt", tmp_path / "best_model.pt")
    flipped(tmp_path / "last.pt")  # and the numbered one
    assert make(tmp_path, resume="auto").updates == 6
    flipped(tmp_path / "best_model.pt")
    assert make(tmp_path, resume="auto").updates == 0


# --- rotation


class Watch:
    """Looks at a directory before and after each call that changes names on disk, as a kill there would find it."""

    CALLS = ("replace", "rename", "link", "unlink", "remove", "fsync", "truncate", "open")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, look: Callable[[], None]) -> None:
        self.look, self.instants, self._looking = look, 0, False
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self.watched(getattr(os, name)))

    def watched(self, call: Callable[..., object]) -> Callable[..., object]:
        def then(*args: object, **kwargs: object) -> object:
            self.instant()
            try:
                return call(*args, **kwargs)
            finally:
                self.instant()

        return then

    def instant(self) -> None:
        if not self._looking:
            self._looking = True
            self.look()
            self.instants += 1
            self._looking = False


def intact(path: Path) -> bool:
    try:
        return checkpoint.verify(path)
    except CheckpointError:
        return False


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_ckpt_6_at_every_instant_of_every_save_what_must_be_there_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    make(tmp_path, 3, save_interval=3).train()
    start = tmp_path / "step-00000003.pt"
    trainer = make(tmp_path, 6, save_interval=1, keep=1, resume=start, val_loader=[torch.ones(1, 1)], eval_interval=3)
    newest = 3

    def look() -> None:
        nonlocal newest
        found = [step_of(path) for path in tmp_path.glob("step-*.pt") if intact(path)]
        assert max(found) >= newest
        newest = max(found)
        assert step_of(start) == 3
        assert newest - step_of(tmp_path / "last.pt") in (0, 1)
        if (tmp_path / "best_model.pt").exists():
            best.append(step_of(tmp_path / "best_model.pt"))

    best: list[int] = []
    if not links:

        def refuse(source: object, target: object) -> None:
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    watch = Watch(monkeypatch, look)
    trainer.train()
    assert watch.instants > 40
    assert sorted(set(best)) == [3, 6] == [step for i, step in enumerate(best) if step not in best[:i]]
    assert names(tmp_path) == ["step-00000003.pt", "step-00000006.pt"]


def test_ckpt_6_the_newest_are_those_of_the_greatest_numbers(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, keep=2)
    for step in (9, 10, 99_999_998, 99_999_999, 100_000_000):
        run.save(step, {"x": torch.tensor(step)}, {}, best=step == 9)
        assert checkpoint.latest(tmp_path) == tmp_path / f"step-{step:08d}.pt"
    assert names(tmp_path) == ["step-100000000.pt", "step-99999999.pt"]
    assert checkpoint.read(tmp_path / "last.pt").leaves["x"] == 100_000_000
    assert checkpoint.read(tmp_path / "best_model.pt").leaves["x"] == 9


def test_ckpt_6_the_one_resumed_from_is_never_deleted(tmp_path: Path) -> None:
    make(tmp_path, 9, save_interval=3).train()
    make(tmp_path, 18, save_interval=3, keep=1, resume=tmp_path / "step-00000006.pt").train()
    assert names(tmp_path) == ["step-00000006.pt", "step-00000018.pt"]


def test_a_new_run_sets_aside_all_that_another_run_saved_and_deletes_nothing_of_it(tmp_path: Path) -> None:
    make(tmp_path, 9, save_interval=3).train()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("step-*.pt")}
    make(tmp_path, 6, save_interval=4, keep=1).train()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000006.pt"
    assert names(tmp_path) == [
        "step-00000003.pt.stale", "step-00000006.pt", "step-00000006.pt.stale", "step-00000009.pt.stale",
    ]  # fmt: skip
    assert {p.name.removesuffix(".stale"): p.read_bytes() for p in tmp_path.glob("*.stale")} == before


# --- the best


def validated(tmp_path: Path, losses: list[float], **kwargs: object) -> list[int]:
    """The update of best_model.pt after each validation, one an update."""
    left, best = iter(losses), []

    def objective(m: nn.Module, x: Tensor) -> Tensor:
        return m(x).mean() if m.training else torch.tensor(next(left))

    def note(event: str, trainer: Trainer) -> None:
        if (event == "update" and trainer.updates > 1) or event == "end":
            best.append(step_of(path) if (path := tmp_path / "best_model.pt").exists() else 0)

    settings = {"objective": objective, "val_loader": [torch.ones(1, 1)], "eval_interval": 1, "callbacks": [note]}
    make(tmp_path, len(losses), **settings | kwargs).train()
    return best


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_ckpt_8_nan_is_never_best_and_of_equal_ones_it_is_the_first(tmp_path: Path, ema_decay: float | None) -> None:
    losses = [math.nan, 3.0, 2.0, 2.0, math.nan, -math.inf, math.nan, -math.inf, 1.0]
    assert validated(tmp_path, losses, ema_decay=ema_decay) == [0, 2, 3, 3, 3, 6, 6, 6, 6]


def test_ckpt_8_where_all_is_nan_nothing_is_best(tmp_path: Path) -> None:
    assert validated(tmp_path, [math.nan, math.inf, math.nan]) == [0, 0, 0]


def test_ckpt_8_the_best_is_the_average_that_was_validated(tmp_path: Path) -> None:
    """The weights are 0, -1, ..., and their average after n updates is farther from -3 than before from n = 5 on."""

    def distance(m: nn.Module, x: Tensor) -> Tensor:
        return m(x).mean() if m.training else (m(x).mean() + 3).abs()

    settings = {"objective": distance, "val_loader": [torch.ones(1, 1)], "eval_interval": 1, "ema_decay": 0.5}
    trainer = make(tmp_path, 9, **settings)
    trainer.train()
    average, expected = 0.0, {}
    for n in range(1, 10):
        average += 0.5 * (-n - average)
        expected[n] = abs(average + 3)
    best = min(expected, key=expected.__getitem__)
    assert best not in (3, 9)  # without the average it would be 3
    assert step_of(tmp_path / "best_model.pt") == best
    again = make(None, 9, resume=tmp_path / "best_model.pt", **settings)
    assert again.evaluate()["loss"] == pytest.approx(expected[best], rel=1e-6)
