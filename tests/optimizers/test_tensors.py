"""Numbers of optimizers that are 0-dim tensors: injected, mapped, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from functrain import tree
from functrain.base import GradientTransformation, apply_updates, update_and_apply
from functrain.combinators.wrap import inject_hyperparams
from functrain.optimizers.averaged import schedule_free_adamw, schedule_free_sgd
from functrain.optimizers.beliefs import adabelief, adadelta, adagrad, adamax, adamaxw, adan, amsgrad, radam, yogi
from functrain.optimizers.layerwise import adafactor, lamb, lars, novograd
from tests.oracle import gradients, parameters, run

FACTORIES: dict[str, Callable[..., GradientTransformation]] = {
    f.__name__: f
    for f in (
        adabelief, adadelta, adafactor, adagrad, adamax, adamaxw, adan, amsgrad, lamb, lars, novograd, radam,
        schedule_free_adamw, schedule_free_sgd, yogi,
    )
}  # fmt: skip
every_optimizer = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES)


@every_optimizer
def test_injected_an_optimizer_computes_the_same(factory: Callable[..., GradientTransformation]) -> None:
    ours, injected = run(factory(0.1), gradients(8)), run(inject_hyperparams(factory)(0.1), gradients(8))
    for a, b in zip(tree.leaves(injected.params), tree.leaves(ours.params), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@every_optimizer
def test_injected_an_optimizer_keeps_float32_parameters_in_float32(factory: Callable[..., Any]) -> None:
    tx, params = inject_hyperparams(factory)(0.1), tree.cast(parameters(), torch.float32)
    state = tx.init(params)
    for g in gradients(2):
        updates, new = tx.update(tree.cast(g, torch.float32), state, params)
        assert {x.dtype for x in tree.leaves(updates)} == {torch.float32}
        assert [x.dtype for x in tree.leaves(new)] == [x.dtype for x in tree.leaves(state)]
        params, state = apply_updates(params, updates), new


@every_optimizer
def test_rates_are_mapped_over_as_in_a_loop(factory: Callable[..., GradientTransformation]) -> None:
    params, (first, second) = parameters(), gradients(2)

    def after_two(rate: torch.Tensor) -> tree.Tree:
        tx, p = factory(rate), params
        step, state = update_and_apply(tx), tx.init(p)
        for g in (first, second):
            p, state = step(g, state, p)
        return p

    rates = torch.tensor([0.1, 0.01], dtype=torch.float64)
    mapped = torch.func.vmap(after_two)(rates)
    for i, rate in enumerate(rates):
        for a, b in zip(tree.leaves(mapped), tree.leaves(after_two(rate)), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-14)
