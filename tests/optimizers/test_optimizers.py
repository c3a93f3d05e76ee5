"""Named chains: what they are made of, and torch.optim where it computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from functrain import schedules, tree
from functrain.base import GradientTransformation, apply_updates, identity
from functrain.combinators.chain import chain
from functrain.optimizers.adaptive import adam, adamw, lion, nadam, nadamw, rmsprop
from functrain.optimizers.momentum import sgd
from functrain.transforms.adaptive import scale_by_adam, scale_by_lion, scale_by_rms, scale_by_stddev
from functrain.transforms.decay import add_decayed_weights
from functrain.transforms.momentum import trace
from functrain.transforms.scale import scale_by_learning_rate
from tests.oracle import assert_bitwise, gradients, parameters, run

RATE = schedules.linear_schedule(0.1, 0.01, 20)
LR = scale_by_learning_rate(0.1)

SPELLED: dict[str, tuple[GradientTransformation, GradientTransformation]] = {
    "sgd": (sgd(0.1), LR),
    "momentum": (sgd(0.1, 0.9), chain(trace(0.9), LR)),
    "nesterov": (sgd(0.1, 0.9, nesterov=True), chain(trace(0.9, nesterov=True), LR)),
    "float32 momentum": (
        sgd(0.1, 0.9, accumulator_dtype=torch.float32),
        chain(trace(0.9, accumulator_dtype=torch.float32), LR),
    ),
    "adam": (
        adam(0.1, 0.8, 0.9, 1e-3, 1e-2, torch.float32),
        chain(scale_by_adam(0.8, 0.9, 1e-3, 1e-2, torch.float32), LR),
    ),
    "nadam": (
        nadam(0.1, 0.8, 0.9, 1e-3, 1e-2, torch.float32),
        chain(scale_by_adam(0.8, 0.9, 1e-3, 1e-2, torch.float32, nesterov=True), LR),
    ),
    "adamw": (
        adamw(0.1, 0.8, 0.9, 1e-3, 1e-2, torch.float32, 0.5, {"layers": True, "head": False}),
        chain(
            scale_by_adam(0.8, 0.9, 1e-3, 1e-2, torch.float32),
            add_decayed_weights(0.5, {"layers": True, "head": False}),
            LR,
        ),
    ),
    "nadamw": (
        nadamw(0.1, 0.8, 0.9, 1e-3, 1e-2, torch.float32, 0.5, {"layers": True, "head": False}),
        adamw(0.1, 0.8, 0.9, 1e-3, 1e-2, torch.float32, 0.5, {"layers": True, "head": False}, nesterov=True),
    ),
    "adamw without decay": (adamw(0.1, weight_decay=0.0), adam(0.1)),
    "adamw with a mask of nothing": (adamw(0.1, weight_decay=0.5, mask=False), adam(0.1)),
    "lion": (
        lion(0.1, 0.8, 0.9, torch.float32, 0.5, True),
        chain(scale_by_lion(0.8, 0.9, torch.float32), add_decayed_weights(0.5), LR),
    ),
    "rmsprop": (rmsprop(0.1, 0.8, 1e-3, 0.1, False), chain(scale_by_rms(0.8, 1e-3, 0.1, False), LR)),
    "rmsprop, centered": (
        rmsprop(0.1, 0.8, 1e-3, 0.1, False, True, 0.9, True, True),
        chain(scale_by_stddev(0.8, 1e-3, 0.1, False, True), LR, trace(0.9, True)),
    ),
}


@pytest.mark.parametrize(("alias", "spelled"), SPELLED.values(), ids=SPELLED)
def test_an_alias_is_the_chain_that_it_names_bit_for_bit(
    alias: GradientTransformation, spelled: GradientTransformation
) -> None:
    a, b = run(alias, gradients(5)), run(spelled, gradients(5))
    assert_bitwise(a.updates, b.updates)
    assert_bitwise(a.params, b.params)


def test_what_is_off_keeps_no_state() -> None:
    params = parameters()
    assert sgd(0.1).init(params)[0] == identity().init(params)
    assert adamw(0.1, weight_decay=0.0).init(params)[1] == ()


@pytest.mark.parametrize(
    ("tx", "text"),
    [
        (sgd(0.1, momentum=0.9), "sgd(0.1, momentum=0.9)"),
        (nadam(1e-3), "nadam(0.001)"),
        (
            adamw(schedules.cosine_decay_schedule(3e-4, 10_000), weight_decay=0.1, mask={"w": True}),
            "adamw(schedules.cosine_decay_schedule(0.0003, 10000), weight_decay=0.1, mask={'w': True})",
        ),
        (adam(1e-3, mu_dtype=torch.bfloat16), "adam(0.001, mu_dtype=torch.bfloat16)"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_an_optimizer_prints_as_it_was_written(tx: GradientTransformation, text: str) -> None:
    assert repr(tx) == text


# --- torch.optim


def l2(tx: GradientTransformation) -> GradientTransformation:
    return chain(add_decayed_weights(0.1), tx)


TORCH: dict[str, tuple[GradientTransformation, Callable[..., Any]]] = {
    "SGD": (sgd(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "SGD, momentum": (sgd(0.1, 0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "SGD, nesterov": (sgd(0.1, 0.9, True), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)),
    "SGD, coupled decay": (
        l2(sgd(0.1, 0.9)),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    ),
    "Adam": (adam(0.1), lambda p: torch.optim.Adam(p, 0.1)),
    "Adam, coupled decay": (l2(adam(0.1)), lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1)),
    "AdamW": (
        adamw(0.1, 0.8, 0.95, 1e-6, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.1, (0.8, 0.95), 1e-6, 0.1),
    ),
    "RMSprop": (
        rmsprop(0.1, 0.9, eps_in_sqrt=False),
        lambda p: torch.optim.RMSprop(p, 0.1, alpha=0.9),
    ),
}


@pytest.mark.parametrize(("tx", "make"), TORCH.values(), ids=TORCH)
def test_25_updates_agree_with_torch_optim(tx: GradientTransformation, make: Callable[..., Any]) -> None:
    ours = run(tx, gradients()).params
    theirs = tree.map(lambda p: p.clone().requires_grad_(), parameters())
    optimizer = make(tree.leaves(theirs))
    for g in gradients():
        for p, x in zip(tree.leaves(theirs), tree.leaves(g), strict=True):
            p.grad = x
        optimizer.step()
    for a, b in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-13)


# --- what the docstrings say


def test_adamw_without_gradients_contracts_by_the_product_of_its_factors() -> None:
    params = parameters()
    tx = adamw(RATE, weight_decay=0.5)
    state, new, factor = tx.init(params), params, 1.0
    for t in range(25):
        updates, state = tx.update(tree.zeros_like(params), state, new)
        new = apply_updates(new, updates)
        factor *= 1 - float(RATE(t)) * 0.5
    for a, b in zip(tree.leaves(new), tree.leaves(params), strict=True):
        torch.testing.assert_close(a, factor * b, rtol=1e-13, atol=0)


def test_every_entry_of_lion_moves_by_the_rate() -> None:
    updates = run(lion(0.1, weight_decay=0.0), gradients(5)).updates
    assert {abs(u) for x in tree.leaves(updates) for u in x.flatten().tolist()} == {0.1}


def test_a_negative_rate_is_an_error_that_names_the_part() -> None:
    for factory in (sgd, adam, adamw, nadam, nadamw, lion, rmsprop):
        with pytest.raises(ValueError, match="rate") as error:
            factory(-0.1)
        assert str(error.value) == "scale_by_learning_rate: learning_rate must be >= 0 and finite, got -0.1"
