"""Schedule-free: what is averaged, where gradients are taken, and what is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from functrain import tree
from functrain.base import apply_updates, identity, update_and_apply
from functrain.combinators.average import ScheduleFreeState, schedule_free, schedule_free_eval_params
from functrain.combinators.chain import chain
from functrain.combinators.wrap import inject_hyperparams
from functrain.compile import jit
from functrain.optimizers.averaged import schedule_free_adamw
from functrain.optimizers.momentum import sgd
from functrain.testing import strategies
from functrain.transforms.clip import clip
from tests.oracle import assert_same, gradients, parameters, run, run_optax

RATES = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6)


def trained(tx: Any, params: Any, history: list[Any]) -> tuple[list[ScheduleFreeState], Any]:
    state, states = tx.init(params), []
    for g in history:
        u, state = tx.update(g, state, params)
        params = apply_updates(params, u)
        states.append(state)
    return states, params


# --- the average


def test_schedule_free_by_hand() -> None:
    """η = 1, β₁ = 1/2, from 4: z = 3, x = 3; then z = 1, x = (3 + 1) / 2, y = (2 + 1) / 2."""
    tx = schedule_free(sgd(1.0), 1.0, 0.5)
    params = torch.tensor([4.0])
    states, y = trained(tx, params, [torch.tensor([1.0]), torch.tensor([2.0])])
    assert [s.z.item() for s in states] == [3.0, 1.0]
    assert y.item() == 1.5
    assert schedule_free_eval_params(states[-1], y).item() == 2.0


@given(RATES, st.floats(0.1, 1.0), st.sampled_from((0.0, 1.0, 2.0)), strategies.trees([torch.float64]), st.data())
def test_the_evaluation_parameters_are_the_mean_of_all_z_weighed_by_the_greatest_rate_so_far(
    rates: list[float], b1: float, power: float, params: tree.Tree, data: st.DataObject
) -> None:
    rate = rate_of(rates)
    history = [data.draw(strategies.gradients(params, st.floats(-8, 8))) for _ in rates]
    states, y = trained(schedule_free(sgd(rate), rate, b1, power), params, history)

    weights = [max(rates[: t + 1]) ** power for t in range(len(rates))]
    for i, x in enumerate(tree.leaves(schedule_free_eval_params(states[-1], y))):
        zs = [tree.leaves(s.z)[i] for s in states]
        mean = sum(w * z for w, z in zip(weights, zs, strict=True)) / sum(weights)
        torch.testing.assert_close(x, mean, rtol=1e-9, atol=1e-9)


def rate_of(rates: list[float]) -> Callable[[Any], Any]:
    """The schedule whose value for the weights of update t is the t-th of these."""
    values = torch.tensor([rates[0], *rates], dtype=torch.float64)
    return lambda count: values[count.long().clamp(max=len(rates))]


def test_a_rate_of_zero_weighs_nothing() -> None:
    states, y = trained(schedule_free(sgd(0.0), 0.0), {"w": torch.ones(2)}, [{"w": torch.ones(2)}] * 2)
    assert float(states[-1].weight_sum) == 0.0
    torch.testing.assert_close(schedule_free_eval_params(states[-1], y), {"w": torch.ones(2)})


def test_evaluation_parameters_agree_with_optax() -> None:
    ours = run(schedule_free_adamw(0.05), gradients())
    theirs = run_optax(lambda: optax.contrib.schedule_free_adamw(0.05), gradients())
    x = schedule_free_eval_params(ours.states[-1], ours.params)
    with jax.enable_x64(True):
        expected = optax.contrib.schedule_free_eval_params(theirs.states[-1], theirs.params)
    assert_same(x, expected)


# --- the state


def test_the_state_shares_no_memory_with_the_parameters() -> None:
    params = parameters()
    state = schedule_free(sgd(0.1), 0.1).init(params)
    assert not {x.data_ptr() for x in tree.leaves(params)} & {x.data_ptr() for x in tree.leaves(state)}


def test_the_newest_point_is_kept_in_the_dtype_that_was_asked_for() -> None:
    for dtype, kept in ((None, torch.float32), (torch.float64, torch.float64)):
        tx, params = schedule_free(sgd(0.1), 0.1, state_dtype=dtype), {"w": torch.ones(2, dtype=torch.float16)}
        states, y = trained(tx, params, [params])
        assert (states[-1].z["w"].dtype, y["w"].dtype) == (kept, torch.float16)
        assert schedule_free_eval_params(states[-1], y)["w"].dtype == torch.float16


def test_in_half_precision_b1_is_not_rounded_to_it() -> None:
    state = schedule_free(sgd(0.1), 0.1).init({"w": torch.ones(2, dtype=torch.bfloat16)})
    assert state.b1.item() == 0.9


def test_injected_it_computes_the_same() -> None:
    make = inject_hyperparams(schedule_free_adamw)
    ours, injected = run(schedule_free_adamw(0.05), gradients(5)), run(make(0.05), gradients(5))
    for a, b in zip(tree.leaves(injected.params), tree.leaves(ours.params), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0)


# --- errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: schedule_free(sgd(0.1), 0.1, 0.0), ValueError, "schedule_free: b1 must be in (0, 1], got 0.0"),
        (lambda: schedule_free(sgd(0.1), 0.1, 1.5), ValueError, "schedule_free: b1 must be in (0, 1], got 1.5"),
        (
            lambda: schedule_free(sgd(0.1), -1.0),
            ValueError,
            "schedule_free: learning_rate must be >= 0 and finite, got -1.0",
        ),
        (
            lambda: schedule_free(sgd, 0.1),
            TypeError,
            "schedule_free: base_optimizer is a function, not a GradientTransformation; "
            "hint: call the factory, as in adamw(0.001)",
        ),
        (
            lambda: schedule_free_eval_params(chain(clip(1.0), identity()).init({}), {}),
            TypeError,
            "schedule_free_eval_params: the state is a tuple, not a ScheduleFreeState; "
            "hint: the state of a chain is a tuple with a state a part",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


def test_a_donated_step_writes_into_no_parameter() -> None:
    tx, params = schedule_free(sgd(0.1), 0.1), {"w": torch.ones(3)}
    step = jit(update_and_apply(tx), backend="aot_eager")
    state = tx.init(params)
    g = {"w": torch.ones(3)}
    for _ in range(2):
        params, state = step(g, state, params)
    expected = trained(tx, {"w": torch.ones(3)}, [g, g])[1]
    torch.testing.assert_close(params, expected)
