"""A loader that keeps its own place, torchdata's StatefulDataLoader, is asked for it, and nothing is replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.resume.subjects import Run, assert_same_end, elsewhere, resumed, saving, whole

TWO = {"num_workers": 2}
IN_THREES = {"grad_accum_steps": 3, "max_epochs": 3}
STATEFUL = "stateful with a stateful dataset"
RUNS: dict[str, Run] = {
    "shuffled and augmented": Run("stateful"),
    "in threes": Run("stateful", settings=IN_THREES),
    "carried": Run("stateful", settings={"grad_accum_steps": 4, "short_window": "carry"}),
    "a stateful dataset": Run(STATEFUL),
    "a stateful dataset in workers": Run(STATEFUL, True, TWO),
    "a stateful dataset in workers, in threes": Run(STATEFUL, True, TWO, IN_THREES),
    "a stateful dataset in workers, carried": Run(
        STATEFUL, True, TWO, {"grad_accum_steps": 4, "short_window": "carry"}
    ),
    "a state now and then": Run(STATEFUL, True, TWO | {"snapshot_every_n_steps": 2}),
    "without augmentation, no last batch": Run("stateful", False, {"drop_last": True}),
}


LONG = {"a stateful dataset in workers, in threes", "a stateful dataset in workers, carried", "a state now and then"}


@pytest.mark.parametrize("what", [pytest.param(x, marks=[pytest.mark.long] if x in LONG else []) for x in RUNS])
def test_res_1_a_stateful_loader_goes_on_exactly_from_everywhere(tmp_path: Path, what: str) -> None:
    run = RUNS[what]
    expected = whole(run)
    end, files = saving(run, tmp_path)
    assert_same_end(expected, end)
    assert len(files) >= (4 if "carried" in what else 8)
    for name, before in files.items():
        assert_same_end(expected, resumed(run, tmp_path / name), before)


def test_res_1_a_stateful_loader_goes_on_exactly_in_a_new_process(tmp_path: Path) -> None:
    run = Run(STATEFUL, True, TWO)
    expected = whole(run)
    end, files = saving(run, tmp_path)
    assert_same_end(expected, end)
    chosen = ["03-1.pt", "06-1.pt", "06-2.pt"]  # within an epoch, at its last batch, at its end
    ends = elsewhere(tmp_path, [("resumed", run, tmp_path / name) for name in chosen])
    for name, end in zip(chosen, ends, strict=True):
        assert_same_end(expected, end, files[name])


@pytest.mark.parametrize(("name", "samples"), [("03-1.pt", 22 - 12 + 22), ("06-1.pt", 22), ("06-2.pt", 22)])
@pytest.mark.parametrize(("loader", "replayed"), [("stateful", False), ("shuffle", True)])
def test_res_1_of_a_stateful_loader_nothing_is_replayed(
    tmp_path: Path, loader: str, replayed: bool, name: str, samples: int
) -> None:
    run = Run(loader)
    saving(run, tmp_path)
    trainer = run.build(77, resume=tmp_path / name)
    trainer.train()
    data: Any = trainer.feed.loader
    assert data.dataset.calls == samples + (12 if replayed and name == "03-1.pt" else 0)


@pytest.mark.parametrize("loader", ["own stateful", "stateful iterable"])
def test_res_1_what_keeps_its_place_itself_goes_on_exactly_within_an_epoch(tmp_path: Path, loader: str) -> None:
    expected, files = saving(Run(loader), tmp_path)
    for name in ("02-1.pt", "03-1.pt", "08-2.pt"):
        assert_same_end(expected, resumed(Run(loader), tmp_path / name), files[name])
