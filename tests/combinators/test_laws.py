"""What holds for every combinator: the expression, and one optimizer in which all of them take part."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import functrain
from functrain import schedules, tree
from functrain.base import GradientTransformation
from functrain.combinators.chain import chain, named_chain
from functrain.combinators.gate import (
    MultiSteps,
    apply_if_finite,
    conditionally_mask,
    conditionally_transform,
)
from functrain.combinators.select import freeze, mask_by, masked, partition, selective_transform
from functrain.combinators.wrap import inject_hyperparams
from functrain.optimizers.adaptive import adam, adamw
from functrain.optimizers.momentum import sgd
from functrain.transforms.adaptive import scale_by_adam
from functrain.transforms.clip import clip_by_global_norm
from tests.oracle import assert_bitwise, gradients, parameters

MASK = {"layers": [True, False], "head": True}


def even(step: Tensor) -> Tensor:
    return step % 2 == 0


def is_matrix(path: str, p: Tensor) -> bool:
    return p.ndim >= 2


def rank(path: str, p: Tensor) -> int:
    return p.ndim


def kitchen_sink() -> GradientTransformation:
    """Every combinator, with state at every depth."""
    adams = inject_hyperparams(adamw)(schedules.linear_schedule(0.1, 0.0, 10), mask=mask_by(is_matrix))
    by_rank = partition({2: adams, 1: MultiSteps(adam(0.1), 2), 0: sgd(0.1, momentum=0.9)}, mask_by(rank))
    gated = conditionally_mask(conditionally_transform(by_rank, even), even)
    trained = selective_transform(apply_if_finite(gated, 3), freeze_mask={"layers": [False, True], "head": False})
    named = named_chain(("first", masked(scale_by_adam(), MASK)), ("then", trained))
    return chain(clip_by_global_norm(1.0), named, freeze({"layers": False, "head": {"w": True, "scale": False}}))


@pytest.mark.parametrize(
    "expression",
    [
        "chain()",
        "chain(clip_by_global_norm(1.0), scale_by_adam(b1=0.8))",
        "named_chain(('clip', clip_by_global_norm(1.0)), ('adam', adam(0.1)))",
        "masked(adam(0.1), {'layers': [True, False], 'head': True})",
        "masked(adam(0.1), mask_by(is_matrix), mask_compatible_extra_args=True)",
        "partition({2: adam(0.1), 1: sgd(0.1), 0: set_to_zero()}, mask_by(rank))",
        "partition({'a': adam(0.1), 'b': identity()}, {'layers': ['a', 'b'], 'head': 'b'})",
        "freeze({'layers': True, 'head': False})",
        "selective_transform(adam(0.1), freeze_mask=mask_by(is_matrix))",
        "apply_if_finite(adam(0.1), max_consecutive_errors=2)",
        "MultiSteps(adam(0.1), 4)",
        "MultiSteps(adam(0.1), every_k_schedule=4, should_skip_update_fn=skip_not_finite)",
        "conditionally_mask(adam(0.1), even)",
        "conditionally_transform(adam(0.1), even, forward_extra_args=True)",
    ],
)
def test_a_combinator_prints_as_its_expression_and_pickles(expression: str) -> None:
    tx = eval(expression, vars(functrain) | globals())
    assert repr(tx) == expression
    again = pickle.loads(pickle.dumps(tx))
    assert repr(again) == expression
    assert again == tx
    params, g = parameters(), gradients(1)[0]
    assert_bitwise(again.update(g, again.init(params), params), tx.update(g, tx.init(params), params))


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: masked(adam(0.1), mask_by(lambda path, p: True)), "mask_by"),
        (lambda: masked(adam(0.1), lambda p: True), "masked"),
        (lambda: partition({1: adam(0.1)}, lambda p: 1), "partition"),
        (lambda: chain(masked(adam(0.1), lambda p: True)), "masked"),
        (lambda: MultiSteps(adam(0.1), lambda t: 2), "MultiSteps"),
        (lambda: conditionally_mask(adam(0.1), lambda step: step > 2), "conditionally_mask"),
    ],
)
def test_a_lambda_inside_cannot_be_pickled_and_the_error_says_where(build: Any, name: str) -> None:
    with pytest.raises(pickle.PicklingError) as caught:
        pickle.dumps(build())
    assert str(caught.value) == (
        f"{name}: cannot pickle the function <lambda>.<locals>.<lambda>; "
        "hint: give one that is defined at the top of a module"
    )


def test_every_leaf_of_the_state_is_a_tensor_and_an_update_keeps_structure_shapes_and_dtypes() -> None:
    tx, params = kitchen_sink(), parameters()
    state = tx.init(params)
    assert all(isinstance(x, Tensor) for x in tree.leaves(state))
    _, new = tx.update(gradients(1)[0], state, params)
    assert tree.flatten(new)[1] == tree.flatten(state)[1]
    for a, b in zip(tree.leaves(new), tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    counts = [tree.get(state, "step"), tree.get(state, "notfinite_count"), tree.get(state, "mini_step")]
    assert {c.dtype for c in counts if isinstance(c, Tensor)} == {torch.int32}


def test_an_update_writes_to_none_of_its_arguments() -> None:
    tx, params, g = kitchen_sink(), parameters(), gradients(1)[0]
    state = tx.init(params)
    given = tree.leaves((g, state, params))
    before = [x._version for x in given]
    copies = [x.clone() for x in given]
    tx.update(g, state, params)
    assert [x._version for x in given] == before
    assert_bitwise(given, copies)


@pytest.mark.parametrize(
    "tx",
    [
        partition(
            {
                2: inject_hyperparams(sgd)(schedules.linear_schedule(0.1, 0.0, 10), momentum=0.9),
                1: MultiSteps(sgd(0.1), 2),
            },
            mask_by(rank),
        ),
        apply_if_finite(conditionally_mask(conditionally_transform(sgd(0.1, momentum=0.9), even), even), 3),
        named_chain(
            ("w", masked(sgd(0.1, momentum=0.9), {"w": True, "b": False})), ("b", freeze({"w": False, "b": True}))
        ),
    ],
    ids=["partition, inject_hyperparams, MultiSteps", "gates", "named_chain, masked, freeze"],
)
def test_compiled_without_a_break_it_computes_the_same(tx: GradientTransformation) -> None:
    params = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    torch._dynamo.reset()
    compiled = torch.compile(tx.update, backend="aot_eager", fullgraph=True)
    s = t = tx.init(params)
    for step in range(4):
        g = {"w": torch.full((2, 3), 0.1 * step), "b": torch.full((3,), float("nan") if step == 2 else 0.3)}
        u, s = tx.update(g, s, params)
        v, t = compiled(g, t, params)
        assert_bitwise(v, u)
        assert_bitwise(t, s)


def test_under_vmap_it_computes_what_a_loop_does() -> None:
    tx = kitchen_sink()
    params = [parameters(seed) for seed in range(3)]
    states = [tx.init(p) for p in params]
    many = tree.stack(states)
    for step in range(4):
        g = [parameters(200 + 10 * step + i) for i in range(3)]
        us, many = torch.func.vmap(tx.update)(tree.stack(g), many, tree.stack(params))
        for i, (u, s) in enumerate(zip(tree.unstack(us), tree.unstack(many), strict=True)):
            alone, states[i] = tx.update(g[i], states[i], params[i])
            for a, b in zip(tree.leaves((u, s)), tree.leaves((alone, states[i])), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_a_missing_gradient_goes_through_every_combinator() -> None:
    tx, params, g = kitchen_sink(), parameters(), gradients(1)[0]
    g["layers"][0]["b"] = None
    state = tx.init(params)
    u, new = tx.update(g, state, params)
    assert u["layers"][0]["b"] == ()
    assert tree.flatten(new)[1] == tree.flatten(state)[1]
    first = [s[1]["first"].inner_state.mu["layers"][0]["b"] for s in (state, new)]
    assert first[0] is first[1]
