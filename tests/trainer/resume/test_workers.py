"""Loaders with processes of their own, whose random numbers begin anew in each epoch, go on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from functrain.trainer import Trainer
from tests.trainer.resume.data import Data
from tests.trainer.resume.subjects import Run, assert_same_end, end_of, resumed, saving, served, whole

TWO = {"num_workers": 2}
FED: dict[str, Run] = {
    "shuffled": Run("shuffle", True, TWO),
    "by batches of any size, in threes": Run("batch_sampler", True, TWO, {"grad_accum_steps": 3}),
    "without the last batch, one ahead": Run("drop_last", True, {"num_workers": 1, "prefetch_factor": 1}),
    "windows that are carried": Run("sampler", True, TWO, {"grad_accum_steps": 4, "short_window": "carry"}),
}


@pytest.mark.parametrize("how", FED)
def test_res_1_what_workers_draw_goes_on_exactly(tmp_path: Path, how: str) -> None:
    expected = whole(FED[how])
    end, files = saving(FED[how], tmp_path)
    assert_same_end(expected, end)
    for name, before in list(files.items())[::2]:
        assert_same_end(expected, resumed(FED[how], tmp_path / name), before)


PERSISTENT = Run("shuffle", True, TWO | {"persistent_workers": True})


def test_res_1_persistent_workers_go_on_exactly_from_within_the_first_epoch(tmp_path: Path) -> None:
    expected = whole(PERSISTENT)
    end, files = saving(PERSISTENT, tmp_path)
    assert_same_end(expected, end)
    within = [name for name in files if name.endswith("-1.pt")][:-1]
    assert len(within) == 5
    for name in within:
        assert_same_end(expected, resumed(PERSISTENT, tmp_path / name), files[name])


@pytest.mark.parametrize("run", [FED["shuffled"], PERSISTENT], ids=["new workers", "persistent workers"])
def test_res_1_train_again_in_the_same_process_goes_on_exactly(run: Run) -> None:
    def stop(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates in (2, 3):
            trainer.stop()

    trainer = run.build(3, callbacks=[stop])
    for updates in (2, 3, 12):
        trainer.train()
        assert trainer.updates == updates
        torch.rand(5)
    assert_same_end(whole(run), end_of(trainer))


@pytest.mark.long
def test_res_1_workers_that_are_spawned_go_on_exactly(tmp_path: Path) -> None:
    more: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "spawn"}
    run = Run("shuffle", True, more, {"max_epochs": 1})
    expected = whole(run)
    _, files = saving(run, tmp_path)
    assert_same_end(expected, resumed(run, tmp_path / "03-1.pt"), files["03-1.pt"])


@pytest.mark.parametrize("workers", [0, 2])
def test_res_4_asynchronous_saves_validations_with_workers_and_logs_leave_no_trace(
    tmp_path: Path, workers: int
) -> None:
    run = Run("shuffle", True, {"num_workers": workers}, {"grad_accum_steps": 2})
    quiet = run.build(3)
    quiet.evaluation.loader, quiet.cadence = None, quiet.cadence._replace(validates=False, log_interval=10**6)
    quiet.train()
    for background in (False, True):
        busy = run.build(
            3, save_dir=tmp_path / str(background), save_interval=1, eval_interval=1, save_async=background
        )
        busy.evaluation.loader = DataLoader(Data(), 5, shuffle=True, num_workers=workers)
        busy.loggers = []
        busy.train()
        a, b = end_of(quiet), end_of(busy)
        assert sum("val_loss" in record for record in b["history"]) == 6
        same = {"history": [], "best": 0.0}
        assert_same_end(a | same, b | same)
        assert served(quiet) == served(busy)
