"""Optimizers that measure gradients in other ways than Adam: what they are made of, and torch.optim where it agrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from functrain import tree
from functrain.base import GradientTransformation
from functrain.combinators.chain import chain
from functrain.optimizers.beliefs import (
    adabelief,
    adadelta,
    adagrad,
    adamax,
    adamaxw,
    adan,
    amsgrad,
    radam,
    yogi,
)
from functrain.transforms.beliefs import scale_by_amsgrad, scale_by_belief, scale_by_radam, scale_by_yogi
from functrain.transforms.decay import add_decayed_weights
from functrain.transforms.histories import scale_by_adadelta, scale_by_adamax, scale_by_adan, scale_by_rss
from functrain.transforms.scale import scale_by_learning_rate
from tests.oracle import assert_bitwise, gradients, parameters, run

LR = scale_by_learning_rate(0.1)
HALF = {"layers": True, "head": False}
DECAY = add_decayed_weights(0.5, HALF)

SPELLED: dict[str, tuple[GradientTransformation, GradientTransformation]] = {
    "adabelief": (
        adabelief(0.1, 0.8, 0.9, 1e-3, 1e-2, nesterov=True),
        chain(scale_by_belief(0.8, 0.9, 1e-3, 1e-2, nesterov=True), LR),
    ),
    "yogi": (yogi(0.1, 0.8, 0.9, 1e-2), chain(scale_by_yogi(0.8, 0.9, 1e-2), LR)),
    "amsgrad": (
        amsgrad(0.1, 0.8, 0.9, 1e-3, 1e-2, torch.float32, False, True),
        chain(scale_by_amsgrad(0.8, 0.9, 1e-3, 1e-2, torch.float32, False, True), LR),
    ),
    "radam": (
        radam(0.1, 0.8, 0.9, 1e-3, 1e-2, 4.5, nesterov=True),
        chain(scale_by_radam(0.8, 0.9, 1e-3, 1e-2, 4.5, nesterov=True), LR),
    ),
    "adamax": (adamax(0.1, 0.8, 0.9, 1e-3), chain(scale_by_adamax(0.8, 0.9, 1e-3), LR)),
    "adamaxw": (
        adamaxw(0.1, 0.8, 0.9, 1e-3, 0.5, HALF),
        chain(scale_by_adamax(0.8, 0.9, 1e-3), DECAY, LR),
    ),
    "adamaxw without decay": (adamaxw(0.1, weight_decay=0.0), adamax(0.1)),
    "adan": (
        adan(0.1, 0.8, 0.7, 0.9, 1e-3, 1e-2, 0.5, HALF),
        chain(scale_by_adan(0.8, 0.7, 0.9, 1e-3, 1e-2), DECAY, LR),
    ),
    "adadelta": (adadelta(0.1, 0.8, 1e-3, 0.5, HALF), chain(DECAY, scale_by_adadelta(0.8, 1e-3), LR)),
    "adagrad": (adagrad(0.1, 0.5, 1e-3), chain(scale_by_rss(0.5, 1e-3), LR)),
}


@pytest.mark.parametrize(("alias", "spelled"), SPELLED.values(), ids=SPELLED)
def test_an_alias_is_the_chain_that_it_names_bit_for_bit(
    alias: GradientTransformation, spelled: GradientTransformation
) -> None:
    a, b = run(alias, gradients(5)), run(spelled, gradients(5))
    assert_bitwise(a.updates, b.updates)
    assert_bitwise(a.params, b.params)


TORCH: dict[str, tuple[GradientTransformation, Callable[..., Any]]] = {
    "Adamax": (adamax(0.1), lambda p: torch.optim.Adamax(p, 0.1)),
    "Adadelta": (adadelta(0.1), lambda p: torch.optim.Adadelta(p, 0.1)),
    "Adadelta, decay": (adadelta(0.1, weight_decay=0.1), lambda p: torch.optim.Adadelta(p, 0.1, weight_decay=0.1)),
    "Adagrad without eps": (adagrad(0.1, 1.0, 0.0), lambda p: torch.optim.Adagrad(p, 0.1, 0, 0, 1.0, 0)),
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


def test_without_a_rate_adadelta_does_not_turn_the_sign_as_in_optax() -> None:
    g, params = gradients(1)[0], parameters()
    tx = adadelta()
    u, _ = tx.update(g, tx.init(params))
    assert all(torch.equal(x.sign(), y.sign()) for x, y in zip(tree.leaves(u), tree.leaves(g), strict=True))
