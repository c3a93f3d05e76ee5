"""Checkpoints that are written while training goes on: what is in them, when they are there, and who hears of it."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from functrain import checkpoint
from functrain.bridge.optim import AdamW
from functrain.checkpoint import CheckpointError
from functrain.optimizers.adaptive import adamw
from functrain.trainer import Trainer

CLOCKS = {"seconds", "updates_per_second", "samples_per_second", "data_wait"}


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 1))


def make(save_dir: Path, optimizer: Callable[[nn.Module], object] = lambda m: adamw(1e-2), **kwargs: object) -> Trainer:
    module = net()
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 2, shuffle=True)
    settings = {"max_epochs": None, "max_steps": 11, "save_interval": 4, "save_async": True, "keep": 99} | kwargs
    return Trainer(module, optimizer(module), loader, loss_fn=F.mse_loss, save_dir=save_dir, **settings)


class SlowDisk:
    """A disk whose first fsync in the background waits for somebody to say go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self._go, self._fsync = threading.Event(), threading.Event(), os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, file: int) -> None:
        if threading.current_thread() is not threading.main_thread() and not self.reached.is_set():
            self.reached.set()
            if not self._go.wait(30):
                raise OSError(errno.EIO, "nobody went on")
        self._fsync(file)

    def go(self) -> None:
        """A save is there and waits, and now may go on."""
        assert self.reached.wait(30)
        self._go.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


def at(update: int, act: Callable[[Trainer], object]) -> Callable[[str, Trainer], None]:
    def callback(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates == update:
            act(trainer)

    return callback


def step_of(path: Path) -> int:
    return int(checkpoint.read(path).leaves["step"])


def contents(path: Path) -> tuple[dict[str, object], dict[str, object]]:
    """What is in a checkpoint, without what a clock measured."""
    found = checkpoint.read(path)
    history = found.meta.pop("history")
    told = [{name: x for name, x in record.items() if name not in CLOCKS} for record in history]
    return found.leaves, {**found.meta, "history": told}


def assert_same(a: Path, b: Path) -> None:
    (leaves, meta), (others, other) = contents(a), contents(b)
    assert meta == other
    assert leaves.keys() == others.keys()
    for key, x in leaves.items():
        assert torch.equal(x, others[key]), key


# --- training goes on

OPTIMIZERS = {
    "rule": lambda m: adamw(1e-2),
    "torch.optim": lambda m: torch.optim.AdamW(m.parameters(), 1e-2),
    "torch face": lambda m: AdamW(m.parameters(), 1e-2),
}


def saved_meanwhile(disk: SlowDisk, where: Path, **kwargs: object) -> None:
    """Two updates follow the one that is saved before its file can be on disk; compare with a run that waits."""
    there = []

    def go(trainer: Trainer) -> None:
        there.append((where / "a" / "step-00000004.pt").exists())
        disk.go()

    make(where / "a", log_interval=2, callbacks=[at(6, go)], **kwargs).train()
    make(where / "b", log_interval=2, save_async=False, **kwargs).train()
    assert there == [False]
    names = [f"step-{step:08d}.pt" for step in (4, 8, 11)]
    assert sorted(path.name for path in (where / "a").glob("step-*")) == names
    for name in [*names, "last.pt"]:
        assert_same(where / "a" / name, where / "b" / name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_background_checkpoint_is_of_its_update_though_training_goes_on(
    disk: SlowDisk, tmp_path: Path, optimizer: str
) -> None:
    saved_meanwhile(disk, tmp_path, optimizer=OPTIMIZERS[optimizer], ema_decay=0.9)


@pytest.mark.long
@pytest.mark.inductor
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_background_checkpoint_is_of_its_update_though_a_compiled_step_takes_the_states_memory(
    disk: SlowDisk, tmp_path: Path, optimizer: str
) -> None:
    saved_meanwhile(disk, tmp_path, optimizer=OPTIMIZERS[optimizer], compile=True)


def test_a_save_waits_for_the_one_before(disk: SlowDisk, tmp_path: Path) -> None:
    order: list[object] = []

    def explicit(trainer: Trainer) -> None:
        assert not list(tmp_path.glob("step-*"))
        disk.go()
        order.append(trainer.save_checkpoint())

    def note(event: str, trainer: Trainer) -> None:
        if event == "save":
            order.append(step_of(tmp_path / "last.pt"))

    make(tmp_path, callbacks=[at(5, explicit), note], max_steps=6).train()
    assert order == [4, 5, tmp_path / "step-00000005.pt", 6]


@pytest.mark.parametrize("background", [False, True])
def test_ckpt_3_when_a_save_is_told_its_file_verifies_under_all_its_names(tmp_path: Path, background: bool) -> None:
    told = []

    def note(event: str, trainer: Trainer) -> None:
        if event == "save":
            newest = max(tmp_path.glob("step-*"))
            assert newest.samefile(tmp_path / "last.pt")
            assert checkpoint.verify(newest)
            told.append(step_of(newest))
            assert sorted(map(step_of, tmp_path.glob("step-*"))) == told

    make(tmp_path, callbacks=[note], save_interval=2, save_async=background).train()
    assert told == [2, 4, 6, 8, 10, 11]
    assert not any(thread.name.startswith("functrain") for thread in threading.enumerate())


# --- what ends a run meanwhile


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt])
def test_an_error_while_a_save_is_in_flight_comes_out_and_the_save_is_completed(
    disk: SlowDisk, tmp_path: Path, kind: type[BaseException]
) -> None:
    mistake = kind("mine")

    def fail(trainer: Trainer) -> None:
        assert not list(tmp_path.glob("step-*"))
        disk.go()
        raise mistake

    with pytest.raises(kind) as caught:
        make(tmp_path, callbacks=[at(5, fail)]).train()
    assert caught.value is mistake
    assert step_of(tmp_path / "step-00000004.pt") == step_of(tmp_path / "last.pt") == 4


def test_sigterm_while_a_save_is_in_flight_completes_it_and_saves_the_newest(disk: SlowDisk, tmp_path: Path) -> None:
    def send(trainer: Trainer) -> None:
        assert not list(tmp_path.glob("step-*"))
        disk.go()
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        make(tmp_path, callbacks=[at(5, send)]).train()
    assert caught.value.code == 143
    assert step_of(tmp_path / "step-00000004.pt") == 4
    assert step_of(tmp_path / "step-00000005.pt") == step_of(tmp_path / "last.pt") == 5


# --- what goes wrong in the background


def in_the_way(tmp_path: Path, step: int = 4) -> Path:
    """A directory where the checkpoint of an update must go."""
    path = tmp_path / f"step-{step:08d}.pt"
    path.mkdir()
    return path


def complaint(path: Path) -> str:
    return f"^{re.escape(f'checkpoint.save: {path}: Is a directory')}$"


def test_what_goes_wrong_in_the_background_is_an_error_at_the_next_save_at_the_latest(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_steps=100)
    with pytest.raises(CheckpointError, match=complaint(in_the_way(tmp_path))):
        trainer.train()
    assert 4 <= trainer.updates <= 8
    assert not list(tmp_path.glob(".*.tmp"))


def test_what_goes_wrong_in_the_last_background_save_is_an_error_at_the_end(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_steps=4)
    with pytest.raises(CheckpointError, match=complaint(in_the_way(tmp_path))):
        trainer.train()
    assert trainer.updates == 4


def test_what_goes_wrong_in_the_background_is_an_error_of_an_explicit_save(disk: SlowDisk, tmp_path: Path) -> None:
    path, errors = in_the_way(tmp_path), []

    def explicit(trainer: Trainer) -> None:
        disk.go()
        with pytest.raises(CheckpointError, match=complaint(path)) as caught:
            trainer.save_checkpoint()
        errors.append(caught.value)
        assert trainer.save_checkpoint() == tmp_path / "step-00000005.pt"  # told once

    make(tmp_path, callbacks=[at(5, explicit)], max_steps=6).train()
    assert len(errors) == 1
    assert step_of(tmp_path / "last.pt") == 6


def test_what_goes_wrong_in_the_background_beside_a_users_error_is_said(
    disk: SlowDisk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = in_the_way(tmp_path)

    def fail(trainer: Trainer) -> None:
        disk.go()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        make(tmp_path, callbacks=[at(5, fail)]).train()
    assert f"checkpoint.save: {path}: Is a directory\n" in capsys.readouterr().err


def test_a_run_whose_last_background_save_failed_is_saved_under_all_names_when_it_goes_on(tmp_path: Path) -> None:
    path = in_the_way(tmp_path)
    trainer = make(tmp_path, max_steps=4, eval_interval=4, val_loader=[(torch.ones(2, 3), torch.ones(2, 1))])
    with pytest.raises(CheckpointError, match=complaint(path)):
        trainer.train()
    path.rmdir()
    trainer.train()
    assert trainer.updates == 4
    for name in ("step-00000004.pt", "last.pt", "best_model.pt"):
        assert step_of(tmp_path / name) == 4
