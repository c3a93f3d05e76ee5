"""A run that is saved anywhere and goes on elsewhere is bit for bit the run that was not saved."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from functrain import checkpoint
from functrain.trainer import Trainer
from tests.trainer.resume.subjects import (
    Run,
    assert_same_end,
    elsewhere,
    end_of,
    resumed,
    saving,
    seed,
    served,
    whole,
)

IN_THREES = {"grad_accum_steps": 3, "max_epochs": 3}
PLAIN = (
    "shuffle", "generator", "sampler", "sampler's generator", "batch_sampler", "drop_last", "own streams", "list",
)  # fmt: skip


@pytest.mark.parametrize("settings", [{}, IN_THREES])
@pytest.mark.parametrize("loader", PLAIN)
def test_res_1_saved_after_any_update_and_resumed_is_not_stopped(
    tmp_path: Path, loader: str, settings: dict[str, int]
) -> None:
    run = Run(loader, settings=settings)
    expected = whole(run)
    end, files = saving(run, tmp_path)
    assert_same_end(expected, end)
    assert len(files) >= 8
    for name, before in files.items():
        assert_same_end(expected, resumed(run, tmp_path / name), before)


OTHERS: dict[str, Run] = {
    "a loss scale": Run("shuffle", settings={"precision": "fp16"}),
    "windows that are carried": Run("sampler", settings={"grad_accum_steps": 4, "short_window": "carry"}),
    "windows that are dropped": Run("generator", settings={"grad_accum_steps": 4, "short_window": "drop"}),
    "a list of batches, carried": Run("list", settings={"grad_accum_steps": 4, "short_window": "carry"}),
    "a loader without a length, carried": Run(
        "batch_sampler", settings={"grad_accum_steps": 3, "short_window": "carry"}
    ),
    "validations within an epoch": Run("shuffle", settings={"eval_interval": 4}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_res_1_with_other_windows_and_states_too(tmp_path: Path, what: str) -> None:
    expected = whole(OTHERS[what])
    end, files = saving(OTHERS[what], tmp_path)
    assert_same_end(expected, end)
    for name, before in files.items():
        assert_same_end(expected, resumed(OTHERS[what], tmp_path / name), before)


def in_new_processes(tmp_path: Path, runs: list[Run], few: Callable[[list[str]], list[str]]) -> None:
    places = [tmp_path / str(i) for i in range(len(runs))]
    saved = elsewhere(tmp_path, [("saving", run, place) for run, place in zip(runs, places, strict=True)])
    expected = [whole(run) for run in runs]
    for a, (b, _) in zip(expected, saved, strict=True):
        assert_same_end(a, b)
    chosen = [(i, name) for i, (_, files) in enumerate(saved) for name in few(list(files))]
    assert len(chosen) >= 2 * len(runs)
    ends = elsewhere(tmp_path, [("resumed", runs[i], places[i] / name) for i, name in chosen])
    for (i, name), end in zip(chosen, ends, strict=True):
        assert_same_end(expected[i], end, saved[i][1][name])


def test_res_1_a_new_process_goes_on_exactly(tmp_path: Path) -> None:
    two = {"num_workers": 2}
    runs = [Run("shuffle"), Run("sampler", True, two, IN_THREES), Run("generator", False, two), Run("own streams")]
    in_new_processes(tmp_path, runs, lambda files: [files[0], *epochs_end(files)])


def epochs_end(files: list[str]) -> list[str]:
    """The file at the first epoch's last batch, and the one at its end: both have the number of that update."""
    return next([a, b] for a, b in itertools.pairwise(files) if a[:2] == b[:2])


@pytest.mark.long
@pytest.mark.parametrize("augmented", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_res_1_a_new_process_goes_on_exactly_from_everywhere(tmp_path: Path, workers: int, augmented: bool) -> None:
    orders, windows = ("shuffle", "generator", "sampler"), ({}, IN_THREES)
    runs = [Run(x, augmented, {"num_workers": workers}, k) for x, k in itertools.product(orders, windows)]
    in_new_processes(tmp_path, runs, lambda files: files)


def stop_at(*updates: int) -> Callable[[str, Trainer], None]:
    def callback(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates in updates:
            signal.raise_signal(signal.SIGTERM)

    return callback


@pytest.mark.parametrize("stops", [[2, 4], [1, 2, 3, 5, 6]])
@pytest.mark.parametrize("loader", ["shuffle", "own streams"])
def test_res_2_two_and_five_resumes_in_one_epoch_are_as_exact_as_one(
    tmp_path: Path, loader: str, stops: list[int]
) -> None:
    run, ids = Run(loader), []
    for number in range(len(stops)):
        trainer = run.build(number or 3, save_dir=tmp_path, resume="auto", callbacks=[stop_at(*stops)])
        with pytest.raises(SystemExit):
            trainer.train()
        assert trainer.updates == stops[number]
        ids += served(trainer)
    trainer = run.build(99, save_dir=tmp_path, resume="auto")
    trainer.train()
    end = end_of(trainer)
    assert_same_end(whole(run), end | {"served": ids + end["served"]})


@pytest.mark.parametrize("loader", ["shuffle", "own streams", "stateful with a stateful dataset"])
def test_res_3_save_load_save_is_equal_content(tmp_path: Path, loader: str) -> None:
    run = Run(loader)
    _, files = saving(run, tmp_path)
    for name in files:
        trainer = run.build(77, save_dir=tmp_path / "again", resume=tmp_path / name)
        seed(8)  # whatever happens between
        first, second = checkpoint.read(tmp_path / name), checkpoint.read(trainer.save_checkpoint())
        assert first.meta == second.meta
        assert list(first.leaves) == list(second.leaves)
        for key, x in first.leaves.items():
            assert isinstance(x, torch.Tensor)
            assert torch.equal(x, second.leaves[key]), key
