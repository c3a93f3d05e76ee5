"""When: apply_if_finite, MultiSteps, conditionally_transform, conditionally_mask."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import optax
import pytest
import torch
from torch import Tensor

from functrain import schedules, tree
from functrain.base import GradientTransformation, apply_updates
from functrain.combinators.gate import (
    MultiSteps,
    apply_if_finite,
    conditionally_mask,
    conditionally_transform,
    has_updated,
    skip_large_updates,
    skip_not_finite,
)
from functrain.optimizers.adaptive import adam, adamw
from functrain.optimizers.momentum import sgd
from functrain.transforms.adaptive import scale_by_adam
from functrain.transforms.scale import scale
from tests.oracle import assert_agrees, assert_bitwise, assert_same, gradients, parameters, run, run_optax


def spoiled(steps: list[int], value: float = float("nan")) -> list[Any]:
    """Gradients in which one entry of the given steps is not finite."""
    grads = gradients()
    for step in steps:
        grads[step]["layers"][1]["w"][0, 1] = value
    return grads


# --- apply_if_finite


@pytest.mark.parametrize("bad", [[2, 5, 6, 10, 11, 24], [0, 1, 2, 3], [3, 4, 5, 7]])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_apply_if_finite_agrees_with_optax_up_to_its_counters(bad: list[int], value: float) -> None:
    grads = spoiled(bad, value)
    ours = run(apply_if_finite(adamw(0.1), 2), grads)
    theirs = run_optax(lambda: optax.apply_if_finite(optax.adamw(0.1), 2), grads)
    for a, b, s, t in zip(ours.updates, theirs.updates, ours.states, theirs.states, strict=True):
        assert_same(a, b)
        for field in ("notfinite_count", "last_finite", "total_notfinite"):
            assert getattr(s, field).item() == getattr(t, field).item()
        assert_same(s.inner_state[0].mu, t.inner_state[0].mu)
    assert_same(ours.params, theirs.params)


def test_an_ignored_update_leaves_no_trace_in_parameters_and_moments() -> None:
    tx = apply_if_finite(adamw(0.1), 3)
    skipped, clean = (
        run(tx, spoiled([4, 5])),
        run(adamw(0.1), [g for i, g in enumerate(gradients()) if i not in (4, 5)]),
    )
    assert_bitwise(skipped.params, clean.params)
    assert_bitwise(skipped.states[-1].inner_state, clean.states[-1])


def test_an_ignored_update_is_zero_and_not_nan() -> None:
    u = run(apply_if_finite(scale(1.0), 3), spoiled([0])[:1]).updates[0]
    assert_bitwise(u, tree.zeros_like(parameters()))


def test_with_no_errors_allowed_what_is_not_finite_goes_through() -> None:
    u = run(apply_if_finite(scale(1.0), 0), spoiled([0])[:1]).updates[0]
    assert u["layers"][1]["w"].isnan().sum() == 1


def test_each_example_of_a_vmap_decides_for_itself() -> None:
    tx = apply_if_finite(adam(0.1), 3)
    good, bad, params = gradients()[0], spoiled([0])[0], parameters()
    state = tx.init(params)
    us, states = torch.func.vmap(tx.update)(
        tree.stack([good, bad]), tree.stack([state, state]), tree.stack([params] * 2)
    )
    u, v = tree.unstack(us)
    torch.testing.assert_close(u, tx.update(good, state, params)[0])
    assert_bitwise(v, tree.zeros_like(params))
    assert states.total_notfinite.tolist() == [0, 1]


def test_an_update_without_leaves_is_finite() -> None:
    tx = apply_if_finite(scale(1.0), 0)
    assert tx.update({}, tx.init({}))[1].last_finite


# --- MultiSteps


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("k", [1, 3])
def test_multi_steps_agrees_with_optax(k: int, mean: bool) -> None:
    rates = (0.125, 0.0, 8)  # powers of two, since Optax computes schedules in float32

    def theirs() -> Any:
        opt = optax.adamw(optax.linear_schedule(*rates), weight_decay=0.1)
        return optax.MultiSteps(opt, k, mean, accumulator_dtype=jnp.float64)

    assert_agrees(MultiSteps(adamw(schedules.linear_schedule(*rates), weight_decay=0.1), k, mean), theirs)


def test_multi_steps_with_a_schedule_of_k_agrees_with_optax() -> None:
    ours = MultiSteps(adam(0.1), lambda step: torch.where(step < 3, 1, 4))
    assert_agrees(
        ours,
        lambda: optax.MultiSteps(
            optax.adam(0.1), lambda step: jnp.where(step < 3, 1, 4), accumulator_dtype=jnp.float64
        ),
    )
    states = run(ours, gradients(12)).states
    assert [int(s.mini_step) for s in states] == [0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert [int(s.gradient_step) for s in states] == [1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5]
    assert [bool(has_updated(s)) for s in states] == [i in (0, 1, 2, 6, 10) for i in range(12)]


def test_multi_steps_over_micro_batches_is_one_step_over_their_mean() -> None:
    grads = gradients(3)
    mean = tree.map(lambda *gs: torch.stack(gs).mean(0), *grads)
    torch.testing.assert_close(run(MultiSteps(adam(0.1), 3), grads).params, run(adam(0.1), [mean]).params)


def test_a_sum_of_gradients_is_not_their_mean() -> None:
    a, b = run(MultiSteps(sgd(0.1), 3, use_grad_mean=False), gradients(3)), run(MultiSteps(sgd(0.1), 3), gradients(3))
    torch.testing.assert_close(a.updates[2], tree.map(lambda u: 3 * u, b.updates[2]))


def test_multi_steps_of_one_is_the_transformation_itself() -> None:
    assert_bitwise(run(MultiSteps(adam(0.1), 1), gradients(5)).updates, run(adam(0.1), gradients(5)).updates)


def test_between_updates_parameters_and_inner_state_stay_bitwise() -> None:
    ours = run(MultiSteps(adamw(0.1, weight_decay=0.5), 4), gradients(3))
    assert_bitwise(ours.params, parameters())
    assert_bitwise(ours.states[-1].inner_opt_state, adamw(0.1).init(parameters()))


def test_a_schedule_inside_multi_steps_counts_windows() -> None:
    tx = MultiSteps(sgd(schedules.linear_schedule(1.0, 0.0, 10)), 2)
    assert tree.get(run(tx, gradients(6)).states[-1], "learning_rate") == pytest.approx(0.8)


def test_half_precision_gradients_are_gathered_in_float32() -> None:
    params = torch.zeros(1, dtype=torch.bfloat16)
    tx = MultiSteps(scale(1.0), 256, use_grad_mean=False)
    state = tx.init(params)
    assert state.acc_grads.dtype == torch.float32
    update = None
    for _ in range(256):  # in bfloat16 the sum would stop growing long before the end
        update, state = tx.update(torch.full((1,), 1.0078125, dtype=torch.bfloat16), state, params)
    assert update is not None
    assert update.dtype == torch.bfloat16
    assert update.item() == 258.0


def test_the_accumulator_keeps_the_dtype_that_was_asked_for() -> None:
    tx = MultiSteps(scale(1.0), 2, accumulator_dtype=torch.float32)
    ours = run(tx, gradients(3))
    assert {x.dtype for s in ours.states for x in tree.leaves(s.acc_grads)} == {torch.float32}
    assert {x.dtype for u in ours.updates for x in tree.leaves(u)} == {torch.float64}


def test_skipping_what_is_not_finite_agrees_with_optax() -> None:
    grads = spoiled([0, 4, 5, 13])
    ours = run(MultiSteps(adam(0.1), 3, should_skip_update_fn=skip_not_finite), grads)
    theirs = run_optax(
        lambda: optax.MultiSteps(
            optax.adam(0.1), 3, should_skip_update_fn=optax.skip_not_finite, accumulator_dtype=jnp.float64
        ),
        grads,
    )
    for a, b, s, t in zip(ours.updates, theirs.updates, ours.states, theirs.states, strict=True):
        assert_same(a, b)
        for field in ("mini_step", "gradient_step"):
            assert getattr(s, field).item() == getattr(t, field).item()
        assert {k: v.item() for k, v in s.skip_state.items()} == {k: v.item() for k, v in t.skip_state.items()}
    assert_same(ours.params, theirs.params)


def test_skipping_what_is_large_agrees_with_optax() -> None:
    sizes = sorted(float(tree.norm(g)) ** 2 for g in gradients())
    limit = (sizes[15] + sizes[16]) / 2
    ours = MultiSteps(adam(0.1), 3, should_skip_update_fn=functools.partial(skip_large_updates, max_squared_norm=limit))
    skip = functools.partial(optax.skip_large_updates, max_squared_norm=limit)
    assert_agrees(
        ours,
        lambda: optax.MultiSteps(optax.adam(0.1), 3, should_skip_update_fn=skip, accumulator_dtype=jnp.float64),
    )
    states = run(ours, gradients()).states
    assert sum(bool(s.skip_state["should_skip"]) for s in states) == 9
    torch.testing.assert_close(states[0].skip_state["norm_squared"], tree.norm(gradients()[0]) ** 2)


def test_a_missing_gradient_goes_around_multi_steps() -> None:
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    tx = MultiSteps(scale_by_adam(), 2)
    first = state = tx.init(params)
    for _ in range(2):
        u, state = tx.update({"a": torch.ones(2), "b": None}, state, params)
    assert u["b"] == ()
    assert state.inner_opt_state.mu["b"] is first.inner_opt_state.mu["b"]
    torch.testing.assert_close(u["a"], torch.ones(2))


# --- conditionally


def every_third(step: Any) -> Any:
    return step % 3 == 0


def test_conditionally_transform_agrees_with_optax() -> None:
    theirs = optax.conditionally_transform
    assert_agrees(conditionally_transform(adam(0.1), every_third), lambda: theirs(optax.adam(0.1), every_third))


def test_conditionally_mask_agrees_with_optax() -> None:
    theirs = optax.conditionally_mask
    assert_agrees(conditionally_mask(adam(0.1), every_third), lambda: theirs(optax.adam(0.1), every_third))


def test_a_condition_may_ask_for_the_loss() -> None:
    def falling(step: Tensor, value: Tensor) -> Tensor:
        return value < 1.0

    g = torch.ones(2)
    for factory, otherwise in ((conditionally_transform, 1.0), (conditionally_mask, 0.0)):
        tx = factory(scale(5.0), falling, forward_extra_args=True)
        assert tx.needs == {"value"}
        assert tx.update(g, tx.init(g), value=torch.tensor(0.5))[0].tolist() == [5.0, 5.0]
        assert tx.update(g, tx.init(g), value=torch.tensor(1.5))[0].tolist() == [otherwise] * 2
        assert factory(scale(5.0), every_third).needs == frozenset()


# --- what they say of themselves


def test_what_looks_at_all_leaves_is_not_local() -> None:
    assert not apply_if_finite(scale(1.0), 2).local
    assert MultiSteps(scale(1.0), 2).local
    assert not MultiSteps(scale(1.0), 2, should_skip_update_fn=skip_not_finite).local
    assert conditionally_mask(scale(1.0), every_third).local


def test_gates_need_what_is_needed_inside() -> None:
    def by_value(u: object, s: object, p: object = None, *, value: Tensor) -> tuple[object, object]:
        return tree.map(lambda x: x * value, u), s

    inner = GradientTransformation(lambda p: (), by_value, needs=("value",))
    g = torch.ones(2)
    for tx in (apply_if_finite(inner, 1), MultiSteps(inner, 1), conditionally_mask(inner, every_third)):
        assert tx.needs == {"value"}
        assert tx.update(g, tx.init(g), g, value=torch.tensor(3.0))[0].tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: apply_if_finite(adam, 2),
            TypeError,
            "apply_if_finite: inner is a function, not a GradientTransformation; "
            "hint: call the factory, as in adamw(0.001)",
        ),
        (
            lambda: apply_if_finite(adam(0.1), -1),
            ValueError,
            "apply_if_finite: max_consecutive_errors must be >= 0 and finite, got -1",
        ),
        (
            lambda: MultiSteps(adam(0.1), 0),
            ValueError,
            "MultiSteps: every_k_schedule must be an integer >= 1, got 0",
        ),
        (
            lambda: MultiSteps(None, 2),
            TypeError,
            "MultiSteps: opt is a NoneType, not a GradientTransformation; "
            "hint: GradientTransformation(init, update) makes one",
        ),
        (
            lambda: MultiSteps(adam(0.1), 2, should_skip_update_fn=lambda g, n, p: (g > 0, ())).init(torch.ones(2)),
            ValueError,
            "MultiSteps: should_skip_update_fn returned a tensor of dtype torch.bool and shape (2,); "
            "hint: a 0-dim bool",
        ),
        (
            lambda: conditionally_mask(1.0, every_third),
            TypeError,
            "conditionally_mask: inner is a float, not a GradientTransformation; "
            "hint: GradientTransformation(init, update) makes one",
        ),
        (
            lambda: conditionally_transform(1.0, every_third),
            TypeError,
            "conditionally_transform: inner is a float, not a GradientTransformation; "
            "hint: GradientTransformation(init, update) makes one",
        ),
    ],
)
def test_what_is_wrong_is_said(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        build()
    assert str(caught.value) == message


def test_multi_steps_leaves_the_parameters_alone_until_the_window_is_full() -> None:
    params = parameters()
    tx = MultiSteps(adam(0.1), 2)
    u, _ = tx.update(gradients(1)[0], tx.init(params), params)
    assert_bitwise(apply_updates(params, u), params)
