"""What could not be saved in the background is still to be saved, and the best is what is on disk."""

from __future__ import annotations

import resource
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from functrain import checkpoint
from functrain.checkpoint import CheckpointError
from functrain.optimizers.momentum import sgd
from functrain.trainer import Trainer


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([5.0, 1.0, 2.0], 9),  # 1.0 was never on disk, so 2.0 is the best of what is
        ([5.0, 1.0, 6.0], 3),
        ([5.0, 1.0, 0.5], 9),
    ],
)
@pytest.mark.parametrize("mine", [False, True], ids=["the save's own error", "an error of the user's"])
def test_a_best_that_the_disk_did_not_take_is_not_the_best(
    tmp_path: Path, mine: bool, losses: list[float], best: int
) -> None:
    """Validations are after updates 3, 6 and 9; the disk is full when the second is saved as the best."""
    hard, coming = resource.getrlimit(resource.RLIMIT_FSIZE)[1], iter(losses)

    def objective(module: nn.Module, x: Tensor) -> Tensor:
        return module(x).sum() if module.training else torch.tensor(next(coming))

    def no_space(event: str, trainer: Trainer) -> None:
        if event == "eval" and trainer.updates == 6:
            wait([x for x in [trainer.saver._writing] if x])
            limit(4000)  # rows are taken, checkpoints are not
        if event == "update" and trainer.updates == 7:
            wait([x for x in [trainer.saver._writing] if x])
            if mine:
                raise KeyError("mine")

    batches = [torch.randn(4, 8) for _ in range(9)]
    trainer = Trainer(
        nn.Linear(8, 2), sgd(0.1), batches, batches[:1], objective=objective, max_epochs=1, eval_interval=3,
        save_dir=tmp_path, save_interval=99, save_async=True, callbacks=[no_space],
    )  # fmt: skip
    try:
        with pytest.raises(KeyError if mine else CheckpointError):
            trainer.train()
    finally:
        limit(hard)
    assert trainer.updates == 7
    trainer.callbacks.clear()
    trainer.train()
    assert int(checkpoint.load(tmp_path / "best_model.pt", trainer.state).step) == best
    assert int(checkpoint.load(tmp_path / "last.pt", trainer.state).step) == 9
    assert trainer.progress.best == checkpoint.read(tmp_path / "last.pt").meta["best"]


def test_what_failed_at_the_very_end_is_saved_by_a_further_train(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    batches = [torch.randn(4, 8) for _ in range(4)]

    def no_space(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates == 4:
            limit(4000)  # rows are taken, checkpoints are not

    trainer = Trainer(
        nn.Linear(8, 2), sgd(0.1), batches, objective=lambda m, x: m(x).sum(), max_epochs=1, save_dir=tmp_path,
        save_interval=4, save_async=True, callbacks=[no_space],
    )  # fmt: skip
    try:
        with pytest.raises(CheckpointError):
            trainer.train()
    finally:
        limit(hard)
    assert trainer.updates == 4
    assert not list(tmp_path.glob("*.pt"))
    trainer.train()
    assert checkpoint.verify(tmp_path / "last.pt")


def test_no_thread_is_left_when_training_has_ended(tmp_path: Path) -> None:
    seen = []
    trainer = Trainer(
        nn.Linear(8, 2), sgd(0.1), [torch.randn(4, 8)] * 4, objective=lambda m, x: m(x).sum(), max_epochs=1,
        save_dir=tmp_path, save_interval=1, save_async=True,
        callbacks=[lambda event, t: seen.extend(x.name for x in threading.enumerate())],
    )  # fmt: skip
    trainer.train()
    assert any(name.startswith("functrain-save") for name in seen)
    assert not any(x.name.startswith("functrain-save") for x in threading.enumerate())
