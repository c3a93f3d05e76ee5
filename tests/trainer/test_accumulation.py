"""K batches move the weights as one batch of all of them does in a loop that one writes with torch alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from functrain.optimizers.adaptive import adamw
from functrain.optimizers.momentum import sgd
from functrain.trainer import Trainer
from tests.networks import D, mlp, points
from tests.trainer.test_windows import weight_trainer

Batch = tuple[Tensor, ...]
RATES: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "adamw": {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1},
}
THEIRS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: torch.optim.SGD(p, **RATES["sgd"]),
    "adamw": lambda p: torch.optim.AdamW(p, **RATES["adamw"]),
}
OURS: dict[str, Callable[[nn.Module], Any]] = {
    "sgd": lambda module: sgd(0.1, momentum=0.9),
    "adamw": lambda module: adamw(0.01, b1=0.9, b2=0.99, weight_decay=0.1),
    "torch.optim.SGD": lambda module: THEIRS["sgd"](module.parameters()),
    "torch.optim.AdamW": lambda module: THEIRS["adamw"](module.parameters()),
}
SAME = {"sgd": "sgd", "adamw": "adamw", "torch.optim.SGD": "sgd", "torch.optim.AdamW": "adamw"}


def network() -> nn.Module:
    torch.manual_seed(0)
    return mlp(3, 5, 2, dtype=D)


def cut(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    return list(zip(*(x.split(list(sizes)) for x in batch), strict=True))


def torch_loop(
    optimizer: str, batches: Sequence[Batch], loss: Callable[..., Tensor], epochs: int, limit: float | None = None
) -> tuple[nn.Module, list[float]]:
    """What a loop of torch's own makes of the batches, an update for each; and their losses."""
    module = network()
    stepper, losses = THEIRS[optimizer](module.parameters()), []
    for batch in [*batches] * epochs:
        stepper.zero_grad()
        value = loss(module, batch)
        value.backward()
        if limit is not None:  # clip_grad_norm_ itself adds 1e-6 to the norm
            norm = torch.stack([p.grad.norm() for p in module.parameters()]).norm()
            for p in module.parameters():
                p.grad *= min(1.0, limit / norm)
        stepper.step()
        losses.append(value.item())
    return module, losses


def ours(optimizer: str, batches: Sequence[Batch], k: int, objective: Any, **settings: Any) -> Trainer:
    module = network()
    settings = {"max_epochs": 3, "log_interval": 1} | settings
    trainer = Trainer(module, OURS[optimizer](module), batches, objective=objective, grad_accum_steps=k, **settings)
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[Any]:
    return [record["loss"] for record in trainer.history]


def assert_same(trainer: Trainer, module: nn.Module, rtol: float = 1e-12) -> None:
    for name, p in module.named_parameters():
        torch.testing.assert_close(trainer.state.params[name], p.detach(), rtol=rtol, atol=0)


def mse(m: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(m(batch[0]), batch[1])


def errors(m: nn.Module, batch: Batch) -> Tensor:
    x, y, mask = batch
    return (m(x) - y).square().sum(-1) * mask


def masked(m: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    return errors(m, batch).sum(), batch[2].sum()


def masked_mean(m: nn.Module, batch: Batch) -> Tensor:
    return errors(m, batch).sum() / batch[2].sum()


# --- one batch


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("optimizer", OURS)
def test_acc_1_k_batches_of_one_size_are_one_batch_of_them_all(optimizer: str, k: int) -> None:
    whole = cut(points(5 * k * 4, dtype=D), [k * 4] * 5)
    pieces = [piece for batch in whole for piece in cut(batch, [4] * k)]
    module, values = torch_loop(SAME[optimizer], whole, mse, epochs=3)
    trainer = ours(optimizer, pieces, k, mse)
    assert_same(trainer, module)
    assert losses(trainer) == pytest.approx(values, rel=1e-12)


def weighted(*weights: int) -> tuple[list[Batch], Batch]:
    """Batches of 7 rows of which so many count; and the rows that do."""
    x, y = points(7 * len(weights), dtype=D)
    mask = torch.cat([torch.arange(7) < n for n in weights])
    return cut((x, y, mask.to(D)), [7] * len(weights)), (x[mask], y[mask], mask[mask].to(D))


@pytest.mark.parametrize("weights", [(7, 1, 3, 0), (0, 7, 1, 3), (7, 0, 3, 1)])
@pytest.mark.parametrize("optimizer", OURS)
def test_acc_2_weights_7_1_3_0_are_one_batch_of_11(optimizer: str, weights: tuple[int, ...]) -> None:
    pieces, eleven = weighted(*weights)
    assert len(eleven[0]) == 11
    module, values = torch_loop(SAME[optimizer], [eleven], masked_mean, epochs=5)
    trainer = ours(optimizer, pieces, 4, masked, max_epochs=5)
    assert_same(trainer, module)
    assert losses(trainer) == pytest.approx(values, rel=1e-12)


def test_acc_2_the_mean_of_means_is_another_update() -> None:
    """The negative control: on these very data a loss that hides its weight is off by more than 1e-3."""

    def hidden(m: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return errors(m, batch).sum() / batch[2].sum().clamp(min=1), torch.ones(())

    pieces, eleven = weighted(7, 1, 3, 0)
    module, _ = torch_loop("sgd", [eleven], masked_mean, epochs=1)
    for control in (hidden, lambda m, batch: hidden(m, batch)[0]):
        wrong = ours("sgd", pieces, 4, control, max_epochs=1)
        with pytest.raises(AssertionError, match="not close"):
            assert_same(wrong, module, rtol=1e-3)


ROWS = 12
SPLITS = st.lists(st.integers(1, ROWS), min_size=1, max_size=ROWS).map(lambda sizes: [*fitting(sizes)])


def fitting(sizes: Sequence[int]) -> Iterator[int]:
    """These sizes as far as they go, and one more for the rows that are left."""
    left = ROWS
    for size in sizes:
        if size < left:
            yield size
            left -= size
    yield left


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@given(sizes=SPLITS)
def test_acc_3_the_update_does_not_depend_on_how_samples_are_split(optimizer: str, sizes: list[int]) -> None:
    batch = points(ROWS, dtype=D)
    module, values = torch_loop(optimizer, [batch], mse, epochs=3)
    trainer = ours(optimizer, cut(batch, sizes), len(sizes), mse)
    assert_same(trainer, module)
    assert losses(trainer) == pytest.approx(values, rel=1e-12)


MASKS = st.lists(st.sampled_from([0, 0, 0b1111, 0b0001, 0b0110]), min_size=ROWS, max_size=ROWS).filter(any)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@given(sizes=SPLITS, masks=MASKS)
def test_acc_3_nor_does_it_with_masked_tokens(optimizer: str, sizes: list[int], masks: list[int]) -> None:
    """Rows of four tokens, and many in which none counts, so that whole batches may weigh nothing."""
    x, y = (z.view(ROWS, 4, -1) for z in points(4 * ROWS, dtype=D))
    mask = torch.tensor([[row >> i & 1 for i in range(4)] for row in masks], dtype=D)
    module, values = torch_loop(optimizer, [(x, y, mask)], masked_mean, epochs=3)
    trainer = ours(optimizer, cut((x, y, mask), sizes), len(sizes), masked)
    assert_same(trainer, module)
    assert losses(trainer) == pytest.approx(values, rel=1e-12)


# --- the loss


def test_acc_4_the_logged_loss_is_the_same_for_every_k_with_k_times_b_fixed() -> None:
    batch = points(24, dtype=D)
    _, values = torch_loop("sgd", cut(batch, [12, 12]), mse, epochs=3)
    for k, b in ((1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)):
        trainer = ours("sgd", cut(batch, [b] * (24 // b)), k, mse)
        assert losses(trainer) == pytest.approx(values, rel=1e-12), k


@pytest.mark.parametrize("k", [1, 2, 4])
def test_acc_4_the_logged_loss_is_sum_over_weight(k: int) -> None:
    """2 + 6 in all, over 4 + 12: one half; in one batch of 4, or repeated k times."""

    def told(m: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
        return m(batch).sum() * 0 + batch[0], batch[1]

    pieces = [torch.tensor([2.0, 4.0], dtype=D), torch.tensor([6.0, 12.0], dtype=D)] * 2
    trainer = weight_trainer(pieces, grad_accum_steps=k, objective=told, log_interval=1)
    trainer.train()
    assert losses(trainer) == [0.5] * (4 // k)
