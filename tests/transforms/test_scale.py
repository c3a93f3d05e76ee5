"""Scaling: signs, schedules, what the state shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from functrain import schedules, tree
from functrain.base import identity
from functrain.transforms.scale import (
    ScaleByLearningRateState,
    ScaleByScheduleState,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)

HALVES = schedules.exponential_decay(1.0, 1, 0.5)
P = {"w": torch.ones(2), "b": torch.ones(())}


def test_the_first_updates_by_hand() -> None:
    tx = scale_by_learning_rate(HALVES)
    state, seen = tx.init(P), []
    for _ in range(3):
        u, state = tx.update({"w": torch.tensor([1.0, -2.0]), "b": torch.tensor(4.0)}, state)
        seen.append((u["w"].tolist(), u["b"].item()))
    assert seen == [([-1.0, 2.0], -4.0), ([-0.5, 1.0], -2.0), ([-0.25, 0.5], -1.0)]


def test_the_state_shows_the_rate_that_was_used_last_and_before_that_the_first() -> None:
    tx = scale_by_learning_rate(HALVES)
    state = tx.init(P)
    shown = [float(tree.get(state, "learning_rate"))]
    for _ in range(3):
        _, state = tx.update(P, state)
        shown.append(float(tree.get(state, "learning_rate")))
    assert shown == [1.0, 1.0, 0.5, 0.25]
    assert isinstance(state, ScaleByLearningRateState)
    assert state.count == 3
    assert state.learning_rate.dtype == torch.float64


def test_the_state_of_a_schedule_shows_its_value() -> None:
    tx = scale_by_schedule(HALVES)
    state = tx.init(P)
    for _ in range(2):
        _, state = tx.update(P, state)
    assert isinstance(state, ScaleByScheduleState)
    assert (int(state.count), float(state.value)) == (2, 0.5)


def test_without_a_flip_of_sign_the_update_goes_up() -> None:
    tx = scale_by_learning_rate(0.5, flip_sign=False)
    u, _ = tx.update(P, tx.init(P))
    assert u["w"].tolist() == [0.5, 0.5]


def test_no_learning_rate_is_the_identity() -> None:
    tx = scale_by_learning_rate(None)
    assert tx.init(P) == identity().init(P)
    assert tx.update(P, ())[0] is P


def test_a_rate_that_is_a_tensor_has_a_derivative() -> None:
    def loss(rate: Tensor) -> Tensor:
        tx = scale_by_learning_rate(rate)
        u, _ = tx.update(P, tx.init(P))
        return u["w"].sum() + u["b"]

    assert torch.func.grad(loss)(torch.tensor(0.1)) == -3.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("step_size", [0.5, torch.tensor(0.5, dtype=torch.float64)], ids=["float", "tensor"])
def test_an_update_keeps_its_dtype(dtype: torch.dtype, step_size: float | Tensor) -> None:
    g = {"w": torch.ones(2, dtype=dtype), "b": torch.ones((), dtype=dtype)}
    for tx in (scale(step_size), scale_by_learning_rate(step_size)):
        u, _ = tx.update(g, tx.init(g))
        assert {x.dtype for x in tree.leaves(u)} == {dtype}


def test_members_of_an_ensemble_may_have_rates_of_their_own() -> None:
    def once(rate: Tensor, g: Tensor) -> Tensor:
        tx = scale_by_learning_rate(rate)
        return tx.update(g, tx.init(g))[0]

    u = torch.func.vmap(once, in_dims=(0, None))(torch.tensor([0.5, 0.25]), torch.ones(3))
    assert u.tolist() == [[-0.5] * 3, [-0.25] * 3]


# --- errors


def nan_at(count: int) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.where(t == count, float("nan"), 0.1)


@pytest.mark.parametrize(("bad", "shown"), [(-0.1, "-0.1"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_a_negative_rate_is_an_error(bad: float, shown: str) -> None:
    with pytest.raises(ValueError, match="rate") as error:
        scale_by_learning_rate(bad)
    assert str(error.value) == f"scale_by_learning_rate: learning_rate must be >= 0 and finite, got {shown}"


@pytest.mark.parametrize("factory", [scale_by_learning_rate, scale_by_schedule], ids=lambda f: f.__name__)
def test_a_schedule_that_returns_nan_is_an_error_at_once(factory: Callable[..., object]) -> None:
    name = factory.__name__
    with pytest.raises(ValueError, match="finite") as error:
        factory(nan_at(0)).init(P)
    assert str(error.value) == f"{name}: a schedule must return finite values, got nan at count 0"

    tx = factory(nan_at(2))
    state = tx.init(P)
    for _ in range(2):
        _, state = tx.update(P, state)
    with pytest.raises(ValueError, match="finite") as error:
        tx.update(P, state)
    assert str(error.value) == f"{name}: a schedule must return finite values, got nan at count 2"


def test_a_schedule_is_not_read_under_vmap_nor_in_a_graph() -> None:
    tx = scale_by_learning_rate(nan_at(1))
    states = tree.stack([tx.init(torch.ones(2))] * 2)
    _, states = torch.func.vmap(tx.update)(torch.ones(2, 2), states)
    u, _ = torch.func.vmap(tx.update)(torch.ones(2, 2), states)
    assert u.isnan().all()

    update = torch.compile(tx.update, backend="eager", fullgraph=True)
    _, state = update(torch.ones(2), tx.init(torch.ones(2)))
    assert update(torch.ones(2), state)[0].isnan().all()
