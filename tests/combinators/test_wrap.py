"""Around: inject_hyperparams."""

from __future__ import annotations

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from torch import Tensor

from functrain import schedules, tree
from functrain.base import GradientTransformation, apply_updates, rule, stateless
from functrain.combinators.chain import chain
from functrain.combinators.select import mask_by, masked
from functrain.combinators.wrap import inject_hyperparams
from functrain.optimizers.adaptive import adamw, lion, rmsprop
from functrain.optimizers.momentum import sgd
from functrain.transforms.scale import scale_by_schedule
from tests.oracle import (
    assert_agrees,
    assert_bitwise,
    assert_same,
    gradients,
    parameters,
    run,
    run_optax,
    to_jax,
)

RATES = (0.125, 0.0, 32)  # powers of two, since Optax computes schedules in float32
BETAS = (0.5, 0.75, 32)


def untyped(learning_rate, scheme=None, every=2):
    """A factory without annotations."""
    return stateless(lambda u, p: tree.map(lambda g: -learning_rate * g, u))


# --- Optax says the same


def test_constant_hyperparameters_agree_with_optax() -> None:
    theirs = optax.inject_hyperparams(optax.adamw)
    assert_agrees(
        inject_hyperparams(adamw)(0.1, b2=0.99, weight_decay=0.1), lambda: theirs(0.1, b2=0.99, weight_decay=0.1)
    )


def test_scheduled_hyperparameters_agree_with_optax_and_are_in_the_state() -> None:
    rate, beta = schedules.linear_schedule(*RATES), schedules.linear_schedule(*BETAS)
    ours = run(inject_hyperparams(adamw)(rate, b1=beta, weight_decay=0.1), gradients())

    def theirs() -> Any:
        rate, beta = (
            (lambda t: optax.linear_schedule(*RATES)(t).astype(jnp.float64)),
            lambda t: optax.linear_schedule(*BETAS)(t).astype(jnp.float64),
        )
        return optax.inject_hyperparams(optax.adamw)(rate, b1=beta, weight_decay=0.1)

    optaxs = run_optax(theirs, gradients())
    for a, b, s, t in zip(ours.updates, optaxs.updates, ours.states, optaxs.states, strict=True):
        assert_same(a, b)
        for name in ("learning_rate", "b1", "b2", "eps", "weight_decay"):
            assert s.hyperparams[name].item() == pytest.approx(t.hyperparams[name].item(), rel=1e-9)
        assert s.count.item() == t.count.item()


def test_a_changed_hyperparameter_is_obeyed_as_in_optax() -> None:
    g, params = gradients(6), parameters()
    tx = inject_hyperparams(adamw)(learning_rate=0.1)
    state, us = tx.init(params), []
    for i in range(6):
        if i == 3:
            state = tree.set(state, learning_rate=0.03125, b1=0.5)
        u, state = tx.update(g[i], state, params)
        us.append(u)

    with jax.enable_x64(True):
        theirs = optax.inject_hyperparams(optax.adamw)(learning_rate=0.1)
        their_params = to_jax(params)
        their_state = theirs.init(their_params)
        for i in range(6):
            if i == 3:
                their_state.hyperparams["learning_rate"] = jnp.asarray(0.03125)
                their_state.hyperparams["b1"] = jnp.asarray(0.5)
            their_u, their_state = theirs.update(to_jax(g[i]), their_state, their_params)
            assert_same(us[i], their_u)


# --- bit for bit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("factory", "arguments"),
    [
        (adamw, {"learning_rate": 0.1, "weight_decay": 0.1}),
        (adamw, {"learning_rate": schedules.linear_schedule(0.1, 0.0, 7), "nesterov": True}),
        (adamw, {"learning_rate": 0.1, "weight_decay": 0.1, "mask": mask_by(lambda path, p: p.ndim >= 2)}),
        (sgd, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
        (sgd, {"learning_rate": 0.1}),
        (lion, {"learning_rate": 0.1}),
        (rmsprop, {"learning_rate": 0.1, "centered": True, "momentum": 0.9}),
    ],
)
def test_an_injected_rule_is_the_rule_itself_bitwise(factory: Any, arguments: Any, dtype: torch.dtype) -> None:
    plain, injected = factory(**arguments), inject_hyperparams(factory)(**arguments)
    params = tree.cast(parameters(), dtype)
    s, t = plain.init(params), injected.init(params)
    for g in gradients(4):
        g = tree.cast(g, dtype)
        u, s = plain.update(g, s, params)
        v, t = injected.update(g, t, params)
        assert_bitwise(v, u)
        assert_bitwise(t.inner_state, s)


# --- what becomes a tensor


def test_numbers_become_tensors_and_all_else_stays() -> None:
    tx = inject_hyperparams(adamw)(0.1, mask=lambda p: True, nesterov=True, mu_dtype=torch.float32)
    hyperparams = tx.init(parameters()).hyperparams
    assert set(hyperparams) == {"learning_rate", "b1", "b2", "eps", "eps_root", "weight_decay"}
    assert all(h.shape == () and h.dtype == torch.float64 for h in hyperparams.values())
    assert hyperparams["eps"].item() == 1e-8
    assert "momentum" not in inject_hyperparams(sgd)(0.1).init(parameters()).hyperparams


def test_a_whole_number_for_a_float_becomes_a_float_that_can_be_set_to_any() -> None:
    tx = inject_hyperparams(sgd)(learning_rate=1)
    g = torch.ones(2)
    state = tree.set(tx.init(g), learning_rate=0.5)
    assert tx.update(g, state)[0].tolist() == [-0.5, -0.5]


def test_an_int_and_a_function_stay_where_the_annotation_has_no_float() -> None:
    seen: list[object] = []

    def powers(learning_rate: float, power: int, scheme: Any, mask: object = None) -> GradientTransformation:
        seen[:] = [power, mask]
        return stateless(lambda u, p: tree.map(lambda g: -learning_rate * g**power, u))

    tx = inject_hyperparams(powers)(0.1, 3, None, mask=len)
    assert set(tx.init(torch.ones(1)).hyperparams) == {"learning_rate"}
    assert seen == [3, len]


def test_without_annotations_values_decide_unless_static_args_names_them() -> None:
    g = torch.ones(2)
    tx = inject_hyperparams(untyped)(lambda t: 0.5 * t, every=2)
    assert set(tx.init(g).hyperparams) == {"learning_rate", "every"}
    tx = inject_hyperparams(untyped, static_args="every")(0.5, every=2)
    assert set(tx.init(g).hyperparams) == {"learning_rate"}
    tx = inject_hyperparams(untyped, static_args=["every", "scheme"])(0.5, scheme=abs)
    assert set(tx.init(g).hyperparams) == {"learning_rate"}


def test_a_schedule_stays_where_the_rule_wants_nothing_but_one() -> None:
    def scaled(fn: schedules.Schedule) -> GradientTransformation:
        return scale_by_schedule(fn)

    tx = inject_hyperparams(scaled)(schedules.linear_schedule(*RATES))
    assert tx.init(torch.ones(1)).hyperparams == {}
    assert_bitwise(run(tx, gradients(3)).updates, run(scaled(schedules.linear_schedule(*RATES)), gradients(3)).updates)


def test_keyword_arguments_of_a_factory_go_through() -> None:
    def options(learning_rate: float, **rest: float) -> GradientTransformation:
        return sgd(learning_rate, **rest)

    tx = inject_hyperparams(options)(0.1, momentum=0.9)
    assert_bitwise(run(tx, gradients(3)).updates, run(sgd(0.1, momentum=0.9), gradients(3)).updates)


def test_hyperparam_dtype_is_that_of_the_tensors() -> None:
    tx = inject_hyperparams(adamw, hyperparam_dtype=torch.float32)(schedules.linear_schedule(*RATES))
    state = tx.update(gradients(1)[0], tx.init(parameters()), parameters())[1]
    assert {h.dtype for h in state.hyperparams.values()} == {torch.float32}


# --- the state


def test_a_schedule_decides_whatever_was_set() -> None:
    tx = inject_hyperparams(sgd)(schedules.linear_schedule(*RATES))
    g = torch.ones(2)
    state = tree.set(tx.init(g), learning_rate=100.0)
    u, state = tx.update(g, state)
    assert u.tolist() == [-0.125, -0.125]
    assert tree.get(state, "learning_rate") == 0.125


def test_the_learning_rate_is_found_and_set_at_any_depth() -> None:
    tx = chain(masked(inject_hyperparams(sgd)(0.1), True))
    g = torch.ones(2)
    state = tree.set(tx.init(g), learning_rate=0.25)
    assert tree.get(state, "learning_rate") == 0.25
    assert tx.update(g, state)[0].tolist() == [-0.25, -0.25]


def test_no_two_leaves_of_the_state_share_memory_nor_one_with_the_arguments() -> None:
    rate = torch.tensor(0.1)
    tx = inject_hyperparams(adamw)(rate, b1=schedules.linear_schedule(*BETAS))
    state = tx.init(parameters())
    for s in (state, tx.update(gradients(1)[0], state, parameters())[1]):
        where = [x.data_ptr() for x in tree.leaves(s)]
        assert len(set(where)) == len(where)
        assert rate.data_ptr() not in where


def test_setting_a_hyperparameter_does_not_recompile() -> None:
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    tx, g = inject_hyperparams(sgd)(0.1, momentum=0.9), torch.ones(2)
    step = torch.compile(tx.update, backend=counting, fullgraph=True)
    state = tx.init(g)
    u, _ = step(g, state)
    v, _ = step(g, tree.set(state, learning_rate=0.2))
    assert len(graphs) == 1
    torch.testing.assert_close(v, 2 * u)


# --- vmap and derivatives


def test_many_learning_rates_train_at_once_under_vmap() -> None:
    tx = inject_hyperparams(adamw)(0.1)
    params, g = parameters(), gradients(2)
    rates = [0.5, 0.1, 0.01]
    states = tree.stack([tree.set(tx.init(params), learning_rate=rate, b1=1 - rate) for rate in rates])
    for x in g:
        many, states = torch.func.vmap(tx.update, in_dims=(None, 0, None))(x, states, params)
    for rate, one in zip(rates, tree.unstack(many), strict=True):
        alone = adamw(rate, b1=1 - rate)
        s = alone.init(params)
        for x in g:
            u, s = alone.update(x, s, params)
        torch.testing.assert_close(one, u, rtol=1e-12, atol=1e-15)


def test_a_learning_rate_that_is_a_tensor_has_a_derivative() -> None:
    g = torch.tensor([2.0, 3.0], dtype=torch.float64)

    def loss(rate: Tensor) -> Tensor:
        tx = inject_hyperparams(sgd)(rate)
        u, _ = tx.update(g, tx.init(g), g)
        out: Tensor = apply_updates(g, u).sum()
        return out

    rate = torch.tensor(0.1, dtype=torch.float64)
    assert torch.func.grad(loss)(rate).item() == -5.0
    rate.requires_grad_()
    loss(rate).backward()
    assert rate.grad == -5.0


# --- the expression


@rule
def local_rule(rate: float) -> GradientTransformation:
    return sgd(rate)


@pytest.mark.parametrize(
    "expression",
    [
        "inject_hyperparams(adamw)",
        "inject_hyperparams(adamw)(learning_rate=0.001)",
        "inject_hyperparams(adamw)(0.001, weight_decay=0.1)",
        "inject_hyperparams(adamw)(schedules.linear_schedule(0.125, 0.0, 32), b1=0.5)",
        "inject_hyperparams(adamw, static_args='b1')(0.1)",
        "inject_hyperparams(adamw, static_args=('b1', 'b2'), hyperparam_dtype=torch.float32)(0.1)",
        "chain(inject_hyperparams(local_rule)(0.1))",
    ],
)
def test_an_injected_rule_prints_as_its_expression_and_pickles(expression: str) -> None:
    tx = eval(expression)
    assert repr(tx) == expression
    again = pickle.loads(pickle.dumps(tx))
    assert repr(again) == expression
    assert again == tx
    assert hash(again) == hash(tx)


def test_injections_that_differ_are_not_equal() -> None:
    assert inject_hyperparams(adamw)(0.1) != inject_hyperparams(adamw)(0.2)
    assert inject_hyperparams(adamw) != inject_hyperparams(lion)
    assert inject_hyperparams(adamw, "b1") != inject_hyperparams(adamw)


# --- errors


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: inject_hyperparams(sgd, static_args=("momentum", "beta")),
            ValueError,
            "inject_hyperparams: sgd has no argument 'beta' to be static; "
            "hint: it has learning_rate, momentum, nesterov, accumulator_dtype",
        ),
        (
            lambda: inject_hyperparams(adamw)(0.1, b1=1.5),
            ValueError,
            "scale_by_adam: b1 must be in [0, 1), got 1.5",
        ),
        (
            lambda: inject_hyperparams(sgd)(),
            TypeError,
            "missing a required argument: 'learning_rate'",
        ),
        (
            lambda: inject_hyperparams(sgd)(lambda t: float("nan")),
            ValueError,
            "sgd: learning_rate: a schedule must return finite values, got nan at count 0",
        ),
        (
            lambda: pickle.dumps(inject_hyperparams(lambda learning_rate: sgd(learning_rate))(0.1)),
            pickle.PicklingError,
            "inject_hyperparams: cannot pickle the function <lambda>.<locals>.<lambda>; "
            "hint: give one that is defined at the top of a module",
        ),
        (
            lambda: pickle.dumps(inject_hyperparams(sgd)(lambda t: 0.1)),
            pickle.PicklingError,
            "sgd: cannot pickle the function <lambda>.<locals>.<lambda>; "
            "hint: give one that is defined at the top of a module",
        ),
    ],
)
def test_what_is_wrong_is_said(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        build()
    assert str(caught.value) == message
