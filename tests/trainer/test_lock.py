"""Who may write in a run's directory: one Trainer, in one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from functrain.trainer import Trainer
from tests.trainer.test_directory import make, names, step_of

HOLDER = """
import shutil, sys
from pathlib import Path
from tests.trainer.test_directory import make

def hold(event, trainer):
    if event == "update" and trainer.updates == 1:
        shutil.copytree(sys.argv[1], sys.argv[1] + ".copy")  # reads the lock, as all files
        print(flush=True)
        sys.stdin.read()

make(Path(sys.argv[1]), 2, save_interval=1, callbacks=[hold]).train()
"""


@contextmanager
def holder(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is in the middle of a run there."""
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.stdin.close()
        assert process.wait(60) == 0


def refusal(directory: Path, pid: int) -> str:
    return f"^{re.escape(f'Trainer: process {pid} is writing to {directory}; hint: choose another save_dir')}$"


def test_ckpt_7_a_second_live_process_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with holder(directory) as other:
        before = {path: path.read_bytes() for path in directory.iterdir()}
        for attempt in (make(directory).train, make(directory).save_checkpoint):
            with pytest.raises(RuntimeError, match=refusal(directory, other.pid)):
                attempt()
        assert {path: path.read_bytes() for path in directory.iterdir()} == before
    assert step_of(directory / "last.pt") == 2
    make(directory, 3, resume="auto").train()
    assert step_of(directory / "last.pt") == 3


def test_ckpt_7_two_trainers_at_once_in_one_process_are_refused(tmp_path: Path) -> None:
    refused = []

    def second(event: str, trainer: Trainer) -> None:
        for attempt in (make(tmp_path).train, make(tmp_path).save_checkpoint):
            with pytest.raises(RuntimeError, match=refusal(tmp_path, os.getpid())):
                attempt()
            refused.append(event)

    make(tmp_path, 3, save_interval=1, callbacks=[second]).train()
    assert set(refused) == {"update", "epoch", "save", "end"}
    assert step_of(tmp_path / "last.pt") == 3
    make(tmp_path, 4, resume="auto").train()
    assert step_of(tmp_path / "last.pt") == 4


def test_ckpt_7_a_trainer_that_ended_by_an_error_lets_the_directory_go(tmp_path: Path) -> None:
    def fail(event: str, trainer: Trainer) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        make(tmp_path, callbacks=[fail]).train()
    make(tmp_path, 3).train()
    assert step_of(tmp_path / "last.pt") == 3


def test_ckpt_7_forked_workers_that_live_on_do_not_hold_the_directory(tmp_path: Path) -> None:
    data = TensorDataset(torch.ones(4, 1))
    loader = DataLoader(data, num_workers=1, persistent_workers=True, multiprocessing_context="fork")

    def first_of_batch(m: nn.Module, batch: list[Tensor]) -> Tensor:
        return m(batch[0]).mean()

    iterators = []  # held here, its workers live on
    hold = [lambda event, trainer: iterators.append(loader._iterator)]
    make(tmp_path, 4, loader=loader, objective=first_of_batch, callbacks=hold).train()
    (worker,) = iterators[0]._workers
    assert worker.is_alive()
    make(tmp_path, 2).train()
    assert step_of(tmp_path / "last.pt") == 2
    assert worker.is_alive()
    iterators[0]._shutdown_workers()


def test_ckpt_7_what_killed_writers_left_half_written_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = [".step-00000001.pt.77.tmp", ".last.pt.78.tmp", ".config.json.1.tmp", f".best_model.pt.{os.getpid()}.tmp"]
    for name in [*left, ".notes.tmp", "mine.12.tmp"]:
        (tmp_path / name).write_bytes(b"half")
    make(tmp_path).train()
    assert names(tmp_path, "*.tmp") == [".notes.tmp", "mine.12.tmp"]
