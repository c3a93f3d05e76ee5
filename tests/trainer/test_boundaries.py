"""Wherever something raises, the run stands at a boundary: with its update, its place and its checkpoints together."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import functrain as ft
from functrain.run.streams import streams


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).sum()


class Breaks(list[Tensor]):
    """Raises once, where its last batch was."""

    broken = False

    def __iter__(self) -> Iterator[Tensor]:
        yield from super().__iter__()
        if not self.broken:
            self.broken = True
            raise RuntimeError("a worker died")


def test_an_error_at_the_look_for_an_epochs_end_leaves_update_and_place_together() -> None:
    trainer = ft.Trainer(Weight(), ft.sgd(1.0), Breaks([torch.ones(1)] * 4), max_epochs=1, log_interval=1)
    with pytest.raises(RuntimeError, match="a worker died"):
        trainer.train()
    assert (trainer.updates, trainer.feed.place.consumed) == (4, 4)
    trainer.train()
    assert (trainer.updates, trainer.state.params["w"].item()) == (4, -4.0)
    assert [record["step"] for record in trainer.history] == [1, 2, 3, 4]


def test_a_failed_save_in_the_background_does_not_cost_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails once, in the save after the last update; the run hears of it, saves again, and then says it."""
    fsync = os.fsync

    def fails_once(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    trainer = ft.Trainer(
        Weight(), ft.sgd(1.0), [torch.ones(1)] * 4, max_epochs=1, save_dir=tmp_path, save_interval=4, save_async=True,
        callbacks=[lambda event, t: monkeypatch.setattr(os, "fsync", fails_once) if event == "epoch" else None],
    )  # fmt: skip
    with pytest.raises(ft.CheckpointError, match=r"Input/output error$"):
        trainer.train()
    assert int(ft.checkpoint.load(tmp_path / "last.pt", trainer.state).step) == 4


def test_what_a_callback_does_to_the_module_at_the_end_stays() -> None:
    def put_average(event: str, trainer: ft.Trainer) -> None:
        if event == "end":
            trainer.model.write_back(trainer.averaged.params, trainer.state.buffers)

    trainer = ft.Trainer(
        Weight(), ft.sgd(1.0), [torch.ones(1)] * 3, max_epochs=1, ema_decay=0.5, callbacks=[put_average]
    )
    trainer.train()
    assert trainer.model.module.w.item() == trainer.averaged.params["w"].item() == -2.125
    assert trainer.state.params["w"].item() == -3.0


@pytest.mark.parametrize("what", ["load_checkpoint", "train"])
def test_a_run_that_trains_cannot_be_led_elsewhere(tmp_path: Path, what: str) -> None:
    says = {
        "load_checkpoint": "Trainer.load_checkpoint: the run is training; hint: load before train(), or after it",
        "train": "Trainer.train: the run is training; hint: a callback ends it with stop()",
    }

    def callback(event: str, trainer: ft.Trainer) -> None:
        with pytest.raises(RuntimeError) as caught:
            trainer.train() if what == "train" else trainer.load_checkpoint(tmp_path / "last.pt")
        assert str(caught.value) == says[what]
        seen.append(event)

    seen: list[str] = []
    trainer = ft.Trainer(Weight(), ft.sgd(1.0), [torch.ones(1)] * 2, max_epochs=1)
    trainer.callbacks.append(lambda event, t: callback(event, t) if event == "update" else None)
    trainer.train()
    assert (seen, trainer.updates) == (["update", "update"], 2)


def test_a_resumed_run_tells_the_seed_that_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = dict(max_epochs=1, save_dir=tmp_path)
    ft.Trainer(Weight(), ft.sgd(1.0), [torch.ones(1)], seed=1, **settings).train()
    again = ft.Trainer(Weight(), ft.sgd(1.0), [torch.ones(1)], seed=2, resume="auto", **settings)
    capsys.readouterr()
    again.train()
    assert again.seed == int(again.state.seed) == 1
    assert "  seed 1  " in capsys.readouterr().err


def test_the_reason_why_a_run_ends_early_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = ft.Trainer(Weight(), ft.sgd(1.0), [torch.ones(1)] * 3, max_epochs=1)
    trainer.callbacks.append(lambda event, t: t.stop("seen enough") if event == "update" and t.updates == 2 else None)
    trainer.train()
    assert "ended after update 2: seen enough\n" in capsys.readouterr().err


def test_streams_of_older_numpy_and_behind_partial_are_found_and_one_without_a_state_is_passed_over() -> None:
    def collate(batch: list[Any], dice: random.Random) -> Tensor:
        return torch.stack([x for (x,) in batch]) + dice.random()

    data = TensorDataset(torch.arange(4.0))
    data.bits, data.system = np.random.RandomState(3), random.SystemRandom()
    loader = DataLoader(data, 2, collate_fn=partial(collate, dice=random.Random(1)))
    found = streams(loader)
    assert sorted(found.keys() - {"numpy", "python", "torch"}) == [
        "loader.collate_fn.keywords['dice']", "loader.dataset.bits",
    ]  # fmt: skip
    before, first = found["loader.dataset.bits"].get(), data.bits.rand()
    found["loader.dataset.bits"].put(before)
    assert data.bits.rand() == first


def test_a_log_that_is_a_view_does_not_hold_all_that_it_is_a_view_of() -> None:
    def objective(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
        big = torch.zeros(1000) + x
        return {"loss": module(x), "first": big[0]}

    trainer = ft.Trainer(Weight(), ft.sgd(1.0), [torch.ones(1)] * 2, objective=objective, max_epochs=1)
    trainer.train()
    assert trainer.journal.last["first"].untyped_storage().nbytes() == 4
