"""What is done once a window: its gradient is clipped, and summed in float32. Validation is done beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from functrain.optimizers.adaptive import adamw
from functrain.optimizers.momentum import sgd
from functrain.precision import Precision
from functrain.trainer import Trainer
from tests.networks import D, NormNet, points
from tests.trainer.test_accumulation import Batch, assert_same, cut, mse, ours, torch_loop
from tests.trainer.test_windows import POLICIES, Moves, assert_equal, numbers, weight, weight_trainer

# --- validation


def noisy_loader(rows: int) -> DataLoader[Batch]:
    return DataLoader(TensorDataset(*points(rows)), 2, shuffle=True)


def noisy_run(policy: str, loader: Any = None, **settings: Any) -> Trainer:
    """Dropout and BatchNorm over a loader that shuffles: four epochs of seven batches in windows of three."""
    torch.manual_seed(4)
    settings = {"max_epochs": 4, "grad_accum_steps": 3, "short_window": policy} | settings
    trainer = Trainer(NormNet(0.3), adamw(0.02), loader or noisy_loader(14), loss_fn=F.mse_loss, **settings)
    torch.manual_seed(7)
    return trainer


@pytest.mark.parametrize("interval", [None, 1, 2])
@pytest.mark.parametrize("policy", POLICIES)
def test_acc_5_validation_between_windows_changes_nothing(policy: str, interval: int | None) -> None:
    """Carried, it comes while batches of two epochs are in one window."""
    without = noisy_run(policy)
    without.train()
    validated = noisy_run(policy, val_loader=noisy_loader(6), eval_interval=interval)
    validated.train()
    count = sum("val_loss" in record for record in validated.history)
    assert count == (4 if interval is None else validated.updates // interval)
    assert_equal(validated.state, without.state)


class Measures:
    """A loader that has the trainer evaluate before every batch: within windows, too."""

    def __init__(self) -> None:
        self.inner, self.found = noisy_loader(14), list[dict[str, float]]()
        self.trainer: Trainer | None = None

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[object]:
        for batch in self.inner:
            if self.trainer is not None:
                self.found.append(self.trainer.evaluate())
            yield batch


@pytest.mark.parametrize("policy", POLICIES)
def test_acc_5_evaluation_within_a_window_changes_nothing(policy: str) -> None:
    without = noisy_run(policy, Measures())
    without.train()
    loader = Measures()
    measured = noisy_run(policy, loader, val_loader=noisy_loader(6), eval_interval=10**6)
    loader.trainer = measured
    measured.train()
    assert len(loader.found) == 28
    assert_equal(measured.state, without.state)
    first, second, third, fourth = (found["loss"] for found in loader.found[:4])
    assert first == second == third != fourth  # of the last update's weights


# --- clipping


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_acc_6_the_gradient_of_the_window_is_clipped_as_torch_clips_that_of_one_batch(k: int, optimizer: str) -> None:
    batch = points(24, dtype=D)
    limit = 0.3
    module, _ = torch_loop(optimizer, cut(batch, [12, 12]), mse, epochs=3, limit=limit)
    trainer = ours(optimizer, cut(batch, [12 // k] * 2 * k), k, mse, max_grad_norm=limit)
    assert_same(trainer, module)
    assert all(record["grad_norm"] > limit for record in trainer.history)


def test_acc_6_batches_over_the_limit_are_untouched_where_their_window_is_under_it() -> None:
    moves = Moves()
    weight_trainer(numbers(5, -3, 9, -7), grad_accum_steps=4, max_grad_norm=2.0, callbacks=[moves]).train()
    assert moves.moves == [1.0]  # each clipped to 2, they would cancel


def test_acc_6_a_window_over_the_limit_is_clipped_to_it_once_and_logs_its_own_norm() -> None:
    for k in (1, 2, 4):
        trainer = weight_trainer(
            numbers(*[3, 5] * 2), grad_accum_steps=k, max_grad_norm=0.5, log_interval=1, max_epochs=None, max_steps=1
        )
        trainer.train()
        assert weight(trainer) == -0.5
        assert trainer.history[-1]["grad_norm"] == (3.0 if k == 1 else 4.0)


# --- half precision


def eighth(m: nn.Module, x: Tensor) -> Tensor:
    """It leaves room for fp16's first scale."""
    return m(x).float().mean() / 8


HALVES: dict[str, tuple[Precision, float, float]] = {
    # the policy, a number, and another that is too small to be added to it
    "bf16": (Precision(compute=torch.bfloat16), 256.0, 1.0),
    "fp16": (Precision(compute=torch.float16, scaled=True), 1.0, 2.0**-11),
}


@pytest.mark.parametrize("half", HALVES)
def test_acc_7_gradients_in_half_precision_are_summed_in_float32(half: str) -> None:
    precision, large, small = HALVES[half]
    one = torch.tensor(large, dtype=precision.compute)
    assert one + torch.tensor(small, dtype=precision.compute) == one  # what a sum in half precision would do
    batches = [torch.tensor([x]) for x in (large, small, small, small)]
    trainer = weight_trainer(batches, sgd(8 / small), objective=eighth, precision=precision, grad_accum_steps=4)
    trainer.train()
    assert int(trainer.state.guard.skipped) == 0
    assert weight(trainer) == pytest.approx(-(large / small + 3) / 4, rel=1e-7)  # in half, 3 would be 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_acc_7_under_autocast_too(precision: str) -> None:
    """A linear layer computes in half; the sum of its gradients needs more digits than a half has."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    sizes = [1.0, 2.0**-12, 2.0**-12, 2.0**-12]
    trainer = Trainer(
        layer, sgd(1.0), [torch.tensor([[x]]) for x in sizes], objective=eighth,
        precision=precision, grad_accum_steps=4, max_epochs=1,
    )  # fmt: skip
    trainer.train()
    assert int(trainer.state.guard.skipped) == 0
    assert trainer.state.params["weight"].item() == pytest.approx(-sum(sizes) / 4 / 8, rel=1e-7)
