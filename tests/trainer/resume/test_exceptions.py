"""A run that an exception ended, in the middle of a window, goes on as if there had been none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functrain.trainer import Trainer
from tests.trainer.resume.data import Data
from tests.trainer.resume.subjects import Run, assert_same_end, end_of, resumed, served, whole


class Oops(Exception):
    """What a user's code raises."""


class Fuse:
    """Raises at the nth call, once."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def burn(self) -> None:
        self.calls -= 1
        if self.calls == 0:
            raise Oops


def in_loader(trainer: Trainer, batches: int) -> None:
    data = trainer.feed.loader.dataset
    fuse, get = Fuse(4 * (batches - 1) + 2), type(data).__getitem__

    class Fused(type(data)):
        def __getitem__(self, i: int) -> Any:
            sample = get(self, i)  # and what it draws is drawn
            fuse.burn()
            return sample

    data.__class__ = Fused


def in_loss(trainer: Trainer, batches: int) -> None:
    fuse = Fuse(batches)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            fuse.burn()

    trainer.model.module.register_forward_pre_hook(hook)


def in_callback(trainer: Trainer, batches: int) -> None:
    fuse = Fuse(-(-batches // trainer.cadence.grad_accum_steps))
    trainer.callbacks.append(lambda event, trainer: fuse.burn() if event == "update" else None)


PLACES = {"loader": in_loader, "loss": in_loss, "callback": in_callback}
RUN: dict[str, Any] = {"settings": {"grad_accum_steps": 3, "max_epochs": 2}}


def interrupted(run: Run, where: str, batches: int, **kwargs: Any) -> tuple[Trainer, int]:
    """The trainer, and how many batches its updates had."""
    trainer = run.build(3, **kwargs)
    PLACES[where](trainer, batches)
    with pytest.raises(Oops):
        trainer.train()
    return trainer, 3 * trainer.updates


@pytest.mark.parametrize("batches", [2, 5, 6, 8])  # the first window, the second, its last batch, the second epoch's
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("loader", ["shuffle", "own streams", "stateful"])
def test_res_1_saved_after_an_exception_and_resumed_is_the_run_that_had_none(
    tmp_path: Path, loader: str, where: str, batches: int
) -> None:
    run = Run(loader, **RUN)
    trainer, before = interrupted(run, where, batches, save_dir=tmp_path)
    assert_same_end(whole(run), resumed(run, trainer.save_checkpoint()), before)


@pytest.mark.parametrize("batches", [2, 5, 8])
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("loader", ["shuffle", "own streams", "stateful"])
def test_res_1_train_again_after_an_exception_is_the_run_that_had_none(loader: str, where: str, batches: int) -> None:
    run = Run(loader, **RUN)
    trainer, before = interrupted(run, where, batches)
    del served(trainer)[before:]
    torch.rand(5)  # whatever happens between
    trainer.train()
    assert_same_end(whole(run), end_of(trainer))


@pytest.mark.parametrize("batches", [2, 8])
@pytest.mark.parametrize("loader", ["shuffle", "stateful with a stateful dataset"])
def test_res_1_with_workers_an_exception_in_the_loss_leaves_no_trace(tmp_path: Path, loader: str, batches: int) -> None:
    run = Run(loader, True, {"num_workers": 2}, RUN["settings"])
    trainer, before = interrupted(run, "loss", batches, save_dir=tmp_path)
    expected = whole(run)
    assert_same_end(expected, resumed(run, trainer.save_checkpoint()), before)
    del served(trainer)[before:]
    trainer.train()
    assert_same_end(expected, end_of(trainer))


def test_an_exception_of_the_loader_comes_out_as_it_was() -> None:
    trainer = Run().build(3)
    in_loader(trainer, 2)
    assert type(trainer.feed.loader.dataset).__mro__[1] is Data
    with pytest.raises(Oops) as caught:
        trainer.train()
    assert type(caught.value) is Oops
