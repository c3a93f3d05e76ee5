"""A disk that is full in the middle of a run: one error, and nothing lost that was there before."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from functrain import checkpoint
from functrain.checkpoint import CheckpointError
from functrain.optimizers.adaptive import adamw
from functrain.trainer import Trainer

SIZE = 1 << 20  # bytes of the disk


class Disk:
    """A small file system of its own, or, where that may not be mounted, a limit on the size of any file."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self.error = os.strerror(errno.ENOSPC if kind == "mounted" else errno.EFBIG)

    @property
    def filler(self) -> Path:
        return self.path / "filler"

    def fill(self, left: int) -> None:
        """Leave so many bytes."""
        if self.kind != "mounted":
            resource.setrlimit(resource.RLIMIT_FSIZE, (left, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return
        with open(self.filler, "wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        os.truncate(self.filler, self.filler.stat().st_size - left)

    def free(self) -> None:
        """Give all of it back."""
        if self.kind != "mounted":
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        else:
            self.filler.unlink(missing_ok=True)


@pytest.fixture(params=["mounted", "limited"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", path]
    mounted = request.param == "mounted" and subprocess.run(command, capture_output=True).returncode == 0
    found = Disk(path, "mounted" if mounted else "limited")
    try:
        yield found
    finally:
        found.free()
        if mounted:
            subprocess.run(["umount", "-l", path], check=True)


def make(save_dir: Path, **kwargs: object) -> Trainer:
    """A run of ten updates, whose checkpoints take 50 kB."""
    torch.manual_seed(3)
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    net = nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Dropout(0.2), nn.Linear(96, 1))
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 2, shuffle=True)
    settings = {"max_epochs": 1, "save_interval": 2, "keep": 2} | kwargs
    return Trainer(net, adamw(1e-2), loader, loss_fn=F.mse_loss, save_dir=save_dir, **settings)


def files(disk: Disk) -> dict[str, bytes]:
    found = [path for path in disk.path.rglob("*") if path.is_file() and path != disk.filler]
    return {str(path.relative_to(disk.path)): path.read_bytes() for path in found}


def at(update: int, act: Callable[[], object]) -> Callable[[str, Trainer], None]:
    def callback(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates == update:
            act()

    return callback


def assert_same(a: Path, b: Path) -> None:
    leaves, others = checkpoint.read(a).leaves, checkpoint.read(b).leaves
    assert leaves.keys() == others.keys()
    assert all(torch.equal(x, others[key]) for key, x in leaves.items())


@pytest.mark.parametrize("left", [0, 16384], ids=["from the first byte", "in the middle of the file"])
@pytest.mark.parametrize("background", [False, True])
def test_ckpt_2_a_full_disk_is_one_error_of_the_run_which_goes_on_when_there_is_space(
    disk: Disk, tmp_path: Path, background: bool, left: int
) -> None:
    whole, broken = tmp_path / "whole", disk.path / "run"
    make(whole).train()
    before: dict[str, bytes] = {}

    def fill() -> None:  # before the save after update 6; the one after update 4 is over
        before.update(files(disk))
        disk.fill(left)

    events: list[str] = []
    trainer = make(broken, save_async=background, callbacks=[at(6, fill), lambda event, t: events.append(event)])
    if background:
        trainer.callbacks.insert(0, at(5, trainer.save_checkpoint))
    with pytest.raises(CheckpointError) as caught:
        trainer.train()
    assert str(caught.value) == f"checkpoint.save: {broken / 'step-00000006.pt'}: {disk.error}"
    assert caught.value.__context__ is caught.value.__cause__
    assert files(disk) == before
    assert checkpoint.verify(broken / "last.pt")
    assert 6 <= trainer.updates <= 8
    assert "end" not in events

    disk.free()
    trainer.train()
    assert trainer.updates == 10
    assert_same(broken / "last.pt", whole / "last.pt")


def test_ckpt_2_a_disk_that_is_full_from_the_start_is_an_error_before_the_first_update(disk: Disk) -> None:
    run = disk.path / "run"
    run.mkdir()
    disk.fill(0)
    trainer = make(run)
    with pytest.raises(CheckpointError) as caught:
        trainer.train()
    assert str(caught.value) in [f"checkpoint.save: {run / name}: {disk.error}" for name in ("lock", "config.json")]
    assert trainer.updates == 0
    assert set(files(disk).values()) <= {b""}  # a lock that says nothing

    disk.free()
    trainer.train()
    assert checkpoint.verify(run / "last.pt")
    assert trainer.updates == 10


def test_a_full_disk_does_not_end_a_run_that_only_logs_and_no_row_is_lost(disk: Disk) -> None:
    run = disk.path / "run"
    rows = run / "metrics.jsonl"
    written = []

    def fill() -> None:
        disk.fill(0 if disk.kind == "mounted" else rows.stat().st_size + 100)  # a row is longer

    def free() -> None:
        written.append(len(rows.read_text().splitlines()))
        assert rows.read_text().endswith("}\n")  # no part of a row
        disk.free()

    trainer = make(run, max_epochs=4, log_interval=1, save_interval=99, callbacks=[at(3, fill), at(39, free)])
    warning = rf"metrics.jsonl: {disk.error}; its rows follow when they can$"
    with pytest.warns(UserWarning, match=warning) as caught:
        trainer.train()
    assert len(caught) == 1
    assert written[0] < 38
    assert [json.loads(line) for line in rows.read_text().splitlines()] == trainer.history
    assert len(trainer.history) == trainer.updates == 40
