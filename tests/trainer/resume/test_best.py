"""The best of a run survives a resume, and a run that is over stays as it is."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functrain import checkpoint
from functrain.optimizers.momentum import sgd
from functrain.trainer import Trainer
from tests.trainer.resume.subjects import Run

BATCH = [torch.ones(1)]


class Weight(nn.Module):
    """One number, which a validation's loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        return self.w.sum()


def scripted(directory: Path, losses: Sequence[float], **kwargs: Any) -> Trainer:
    """A run of an update an epoch, whose nth validation measures the nth of these losses."""
    given = iter(losses)

    def loss(m: nn.Module, batch: list[Tensor]) -> Tensor:
        return m() if m.training else m() * 0 + next(given)

    settings = {"max_epochs": len(losses), "keep": 99, "log_interval": 1} | kwargs
    return Trainer(Weight(), sgd(1.0), [BATCH], [BATCH], objective=loss, save_dir=directory, **settings)


def best(directory: Path) -> tuple[int, float]:
    """The update and the loss of best_model.pt."""
    contents = checkpoint.read(directory / "best_model.pt")
    step, loss = contents.leaves["step"], contents.meta["best"]
    assert isinstance(step, Tensor)
    assert isinstance(loss, float)
    return int(step), loss


def test_res_8_the_best_value_survives(tmp_path: Path) -> None:
    scripted(tmp_path, [3.0, 1.0, 2.0]).train()
    assert best(tmp_path) == (2, 1.0)
    run = scripted(tmp_path, [1.5, 1.0], resume="auto", max_epochs=5)
    assert run.progress.best == 1.0
    run.train()  # worse, and equal
    assert best(tmp_path) == (2, 1.0)
    run = scripted(tmp_path, [0.5], resume="auto", max_epochs=6)
    run.train()
    assert best(tmp_path) == (6, 0.5)


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        ([2.5, 2.0, 1.5], (3, 1.0)),  # better than what the older checkpoint knew, and worse than what there is
        ([2.5, 1.0, 1.5], (3, 1.0)),  # equal
        ([2.5, 0.5, 1.5], (3, 0.5)),
        ([math.nan, math.nan, math.nan], (3, 1.0)),
    ],
)
def test_res_8_a_run_that_goes_on_from_an_older_checkpoint_never_replaces_the_best_by_worse(
    tmp_path: Path, later: list[float], expected: tuple[int, float]
) -> None:
    scripted(tmp_path, [4.0, 3.0, 1.0, 2.0]).train()
    before = (tmp_path / "best_model.pt").read_bytes()
    run = scripted(tmp_path, later, resume=tmp_path / "step-00000001.pt", max_epochs=4)
    assert run.progress.best == 4.0
    run.train()
    assert best(tmp_path) == expected
    assert ((tmp_path / "best_model.pt").read_bytes() == before) == (expected[1] == 1.0)


def test_res_8_resumed_twice_the_best_is_still_the_first_runs(tmp_path: Path) -> None:
    scripted(tmp_path, [4.0, 1.0, 2.0]).train()
    first = tmp_path / "first.pt"
    shutil.copyfile(tmp_path / "step-00000001.pt", first)
    for number in range(2):
        shutil.copyfile(first, tmp_path / "step-00000001.pt")
        scripted(tmp_path, [3.0 - number, 2.5], resume=tmp_path / "step-00000001.pt", max_epochs=3).train()
        assert best(tmp_path) == (2, 1.0)


def test_res_8_a_run_that_was_not_resumed_sets_the_old_best_aside(tmp_path: Path) -> None:
    scripted(tmp_path, [1.0, 2.0]).train()
    old = (tmp_path / "best_model.pt").read_bytes()
    scripted(tmp_path, [7.0, 6.0, 8.0]).train()
    assert best(tmp_path) == (2, 6.0)
    assert (tmp_path / "best_model.pt.stale").read_bytes() == old


def test_res_8_a_run_from_elsewhere_sets_the_old_best_aside(tmp_path: Path) -> None:
    scripted(tmp_path / "a", [5.0, 4.0]).train()
    scripted(tmp_path / "b", [1.0, 2.0]).train()
    old = (tmp_path / "b" / "best_model.pt").read_bytes()
    scripted(tmp_path / "b", [3.0], resume=tmp_path / "a" / "last.pt", max_epochs=3).train()
    assert best(tmp_path / "b") == (3, 3.0)
    assert (tmp_path / "b" / "best_model.pt.stale").read_bytes() == old


# --- a run that is over


def files(directory: Path) -> dict[str, tuple[bytes, int]]:
    """What lies there, but for the lock and what each run writes of how it was called."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in found if p.name not in ("lock", "config.json")}


LIMITS: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 2},
    "updates": {"max_epochs": None, "max_steps": 8},
    "both": {"max_epochs": 2, "max_steps": 6},
    "in threes": {"grad_accum_steps": 3, "max_epochs": 2},
    "persistent workers": {"max_epochs": 2},
}


@pytest.mark.parametrize("way", ["resume", "load_checkpoint"])
@pytest.mark.parametrize("limit", LIMITS)
def test_res_9_a_finished_run_with_the_same_limit_does_nothing_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, way: str
) -> None:
    more = {"num_workers": 1, "persistent_workers": True} if limit == "persistent workers" else {}
    run = Run("shuffle", True, more, LIMITS[limit] | {"save_dir": tmp_path})
    first = run.build(3)
    first.train()
    before, config = files(tmp_path), (tmp_path / "config.json").read_bytes()
    events: list[str] = []
    again = run.build(77, callbacks=[lambda event, trainer: events.append(event)], resume=None)
    again.load_checkpoint(tmp_path / "last.pt") if way == "load_checkpoint" else None
    again = run.build(77, callbacks=again.callbacks, resume="auto") if way == "resume" else again
    capsys.readouterr()
    again.train()
    assert files(tmp_path) == before
    assert (tmp_path / "config.json").read_bytes() == config
    assert repr(again.history) == repr(first.history)  # repr: NaN is NaN
    assert again.feed.samples == 0
    assert events == ["end"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"nothing to do: the run ends at update {first.updates}, and that is where it stands"


def test_res_9_so_does_one_that_was_stopped_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = [1.0, 2.0, 3.0, 0.5]
    first = scripted(tmp_path, losses, early_stopping=2)
    first.train()
    assert first.updates == 3
    before = files(tmp_path)
    capsys.readouterr()
    again = scripted(tmp_path, losses, early_stopping=2, resume="auto")
    again.train()
    assert (again.updates, files(tmp_path)) == (3, before)
    assert repr(again.history) == repr(first.history)
    assert capsys.readouterr().err.splitlines()[-1].startswith("nothing to do: ")


def test_res_9_with_a_higher_limit_it_goes_on_as_if_that_had_been_the_limit(tmp_path: Path) -> None:
    Run(settings={"max_epochs": 1, "save_dir": tmp_path / "a"}).build(3).train()
    further = Run(settings={"save_dir": tmp_path / "a", "resume": "auto"}).build(77)
    further.train()
    whole = Run(settings={"save_dir": tmp_path / "b"}).build(3)
    whole.train()
    assert further.updates == whole.updates == 12
    a, b = (checkpoint.read(tmp_path / run / "last.pt") for run in "ab")
    assert all(torch.equal(x, b.leaves[key]) for key, x in a.leaves.items() if isinstance(x, Tensor))
