"""The numbers in the state of the pure form are data: read, changed, mapped over, differentiated, compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import functrain as ft
from functrain import GradientTransformation
from tests.bridge.faces import STEPPED, Row, distance, every_row
from tests.bridge.named import assert_equal, drawn, groups, history, leaves, pure_steps, steps, values


def test_its_state_has_the_numbers_of_each_group() -> None:
    params = leaves()
    own = {"lr": 0.2, "betas": (0.5, 0.6)}
    state = ft.optim.AdamW(groups(params, **own), lr=0.1).as_transform().init(values(params))
    first, second = state.groups
    assert [float(group["learning_rate"]) for group in (first, second)] == [0.1, 0.2]
    assert [float(b) for b in second["betas"]] == [0.5, 0.6]
    assert first["learning_rate"].dtype == torch.float64


@pytest.mark.parametrize(("key", "value"), [("learning_rate", 0.3), ("eps", 0.3), ("weight_decay", 0.3)])
def test_a_number_that_is_changed_in_its_state_is_obeyed(key: str, value: float) -> None:
    params, grads = leaves(), history(4)
    optimizer = ft.optim.AdamW(params.items())
    tx: GradientTransformation = optimizer.as_transform()
    start: Any = values(params)
    state = tx.init(start)
    state.groups[0][key] = torch.tensor(value, dtype=torch.float64)
    after, _ = pure_steps(tx, params, grads, state)
    optimizer.param_groups[0]["lr" if key == "learning_rate" else key] = value
    assert_equal(after, steps(optimizer, params, grads))


def rates_of(state: Any, rates: Tensor) -> Any:
    """The state with these rates."""
    return state._replace(groups=[{**state.groups[0], "learning_rate": rates}])


@every_row([row for row in STEPPED if row.name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "Adamax")])
def test_under_vmap_over_rates_it_is_as_many_optimizers(row: Row) -> None:
    rates = [0.001, 0.01, 0.1]
    grads = history(4)
    tx = row.ours(leaves().items(), **row.options).as_transform()
    at: Any = {n: p.detach().expand(len(rates), *p.shape) for n, p in leaves().items()}
    first: Any = values(leaves())
    state = torch.func.vmap(lambda r: rates_of(tx.init(first), r))(torch.tensor(rates, dtype=torch.float64))
    for g in grads:
        updates, state = torch.func.vmap(tx.update, in_dims=(None, 0, 0))(g, state, at)
        at = ft.apply_updates(at, updates)
    for i, rate in enumerate(rates):
        params = leaves()
        expected = steps(row.ours(params.items(), **{**row.options, "lr": rate}), params, grads)
        for name, x in expected.items():
            assert distance(at[name][i], x) <= 1e-12, (name, rate)


@every_row([row for row in STEPPED if row.name in ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adadelta")])
def test_the_derivative_in_the_rate_through_two_updates_is_a_difference_of_losses(row: Row) -> None:
    """The second gradient depends on where the first update went."""
    tx = row.ours(leaves().items(), **row.options).as_transform()
    target, first = drawn(5), values(leaves())

    def gradient(p: Any) -> Any:
        return {n: (x - target[n]) ** 3 for n, x in p.items()}

    def loss(rate: Tensor) -> Tensor:
        at: Any = first
        state = rates_of(tx.init(at), rate)
        for _ in range(2):
            updates, state = tx.update(gradient(at), state, at)
            at = ft.apply_updates(at, updates)
        return torch.stack([((x - target[n]) ** 4).sum() for n, x in at.items()]).sum()

    rate, h = torch.tensor(0.01, dtype=torch.float64), 1e-5
    slope = torch.func.grad(loss)(rate)
    difference = (loss(rate + h) - loss(rate - h)) / (2 * h)
    assert abs(difference) > 1e-3
    assert slope == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.inductor
def test_compiled_it_does_what_step_does() -> None:
    params = {name: leaves()[name] for name in ("layer.weight", "scale")}
    grads = [{name: g[name] for name in params} for g in history(4)]
    optimizer = ft.optim.Adam([{"params": [pair], "lr": 0.1 * i} for i, pair in enumerate(params.items(), 1)])
    tx = optimizer.as_transform()
    step = ft.jit(ft.update_and_apply(tx))
    at: Any = values(params)
    state: Any = tx.init(at)
    for g in grads:
        at, state = step(g, state, at)
        steps(optimizer, params, [g])
    for name, p in params.items():
        assert distance(at[name], p) <= 1e-12, name
    optimizer.take_back(state)
    assert all(float(x["step"]) == 4 for x in optimizer.state.values())
