"""An ensemble is `torch.func.vmap` of the step over stacked states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import functrain as ft
from functrain import tree
from tests.networks import D, NormNet, mlp, points
from tests.test_step import same

MEMBERS = 3


def close(a: object, b: object) -> None:
    assert tree.paths(a) == tree.paths(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def members(make: Any, tx: ft.GradientTransformation) -> tuple[Any, list[ft.TrainState]]:
    """A functionalized module, and states that start from different weights."""
    states = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        states.append(ft.TrainState.create(ft.functionalize(make()), tx, seed=seed))
    return ft.functionalize(make()), states


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: mlp(3, 4, 2, dtype=D), {}),
        (lambda: mlp(3, 4, 2, dtype=D), {"accumulate": 3, "max_grad_norm": 0.1}),
        (lambda: NormNet(dtype=D), {"accumulate": 2}),
    ],
    ids=["mlp", "accumulated and clipped", "batchnorm"],
)
def test_vmap_of_the_step_is_a_loop_over_its_members(make: Any, options: Any) -> None:
    tx = ft.adamw(lambda t: 1e-2 / (1 + t))
    model, states = members(make, tx)
    step = ft.train_step(model.loss(F.mse_loss), tx, **options)
    many = torch.func.vmap(step, in_dims=(0, None), randomness="different")
    together = ft.tree.stack(states)
    for seed in range(3):
        batch = points(12, seed, D)
        together, metrics = many(together, batch)
        looped = [step(state, batch) for state in states]
        states = [state for state, _ in looped]
        for i, (state, its) in enumerate(looped):
            close(ft.tree.unstack(together)[i], state)
            close({name: x[i] for name, x in metrics.items()}, its)


def test_members_may_have_batches_of_their_own() -> None:
    tx = ft.sgd(0.1)
    model, states = members(lambda: mlp(3, 4, 2, dtype=D), tx)
    step = ft.train_step(model.loss(F.mse_loss), tx)
    batches = [points(6, seed, D) for seed in range(MEMBERS)]
    together, _ = torch.func.vmap(step)(ft.tree.stack(states), ft.tree.stack(batches))
    for one, state, batch in zip(ft.tree.unstack(together), states, batches, strict=True):
        close(one, step(state, batch)[0])


def test_members_may_have_learning_rates_of_their_own() -> None:
    rates = [0.001, 0.01, 0.1]
    tx = ft.inject_hyperparams(ft.adamw)(learning_rate=0.5)
    model, states = members(lambda: mlp(3, 4, 2, dtype=D), tx)
    states = [ft.tree.set(state, learning_rate=rate) for state, rate in zip(states, rates, strict=True)]
    step = ft.train_step(model.loss(F.mse_loss), tx)
    batch = points(6, dtype=D)
    together, metrics = torch.func.vmap(step, in_dims=(0, None))(ft.tree.stack(states), batch)
    assert metrics["learning_rate"].tolist() == pytest.approx(rates)
    for one, state, rate in zip(ft.tree.unstack(together), states, rates, strict=True):
        alone = ft.train_step(model.loss(F.mse_loss), ft.adamw(rate))
        expected, _ = alone(ft.TrainState.create(state.params, alone.tx), batch)
        torch.testing.assert_close(one.params, expected.params, rtol=1e-7, atol=1e-9)


def test_dropout_is_the_callers_to_seed() -> None:
    """Under vmap the step seeds nothing: `randomness=` says how masks differ, the caller's generator which they are."""
    tx = ft.sgd(0.1)
    model = ft.functionalize(NormNet(0.5))
    step = ft.train_step(model.loss(F.mse_loss), tx)
    together = ft.tree.stack([ft.TrainState.create(model, tx)] * MEMBERS)
    batch = points()

    def after(randomness: str, *key: int) -> list[Any]:
        with ft.seeded(*key):
            new, _ = torch.func.vmap(step, in_dims=(0, None), randomness=randomness)(together, batch)
        return [state.params for state in ft.tree.unstack(new)]

    different = after("different", 1, 0)
    assert not same(different[0], different[1])
    assert all(map(same, different, after("different", 1, 0)))
    assert not same(different[0], after("different", 1, 1)[0])
    alike = after("same", 1, 0)
    assert same(alike[0], alike[1])
    with pytest.raises(RuntimeError, match="randomness"):
        after("error", 1, 0)


def test_a_compiled_step_under_vmap_is_the_step_and_donates_nothing() -> None:
    tx = ft.sgd(0.1)
    model, states = members(lambda: mlp(3, 4, 2, dtype=D), tx)
    step, batch = ft.train_step(model.loss(F.mse_loss), tx), points(6, dtype=D)
    together = ft.tree.stack(states)
    before = tree.map(torch.clone, together)
    new, _ = torch.func.vmap(ft.jit(step), in_dims=(0, None))(together, batch)
    close(new, torch.func.vmap(step, in_dims=(0, None))(together, batch)[0])
    assert same(together, before)


def test_an_ensemble_compiles_as_a_plain_function() -> None:
    tx = ft.sgd(0.1)
    model, states = members(lambda: mlp(3, 2, dtype=D), tx)
    many = torch.func.vmap(ft.train_step(model.loss(F.mse_loss), tx), in_dims=(0, None))
    together, batch = ft.tree.stack(states), points(6, dtype=D)
    close(ft.jit(many, backend="aot_eager")(together, batch), many(together, batch))


def test_unstack_undoes_stack() -> None:
    states = members(lambda: nn.Linear(3, 2), ft.adamw(0.1))[1]
    for one, state in zip(ft.tree.unstack(ft.tree.stack(states)), states, strict=True):
        assert isinstance(one, ft.TrainState)
        assert same(one, state)
