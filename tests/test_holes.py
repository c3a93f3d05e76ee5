"""A missing gradient leaves its parameter and its part of the state as they were; all else goes on."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from functrain import holes, tree
from functrain.base import GradientTransformation, apply_updates
from functrain.combinators.chain import chain
from functrain.counter import first_count, increment
from functrain.optimizers.adaptive import adamw
from functrain.optimizers.momentum import sgd
from functrain.testing import strategies
from functrain.transforms.adaptive import scale_by_adam
from functrain.transforms.clip import clip_by_global_norm
from functrain.transforms.momentum import trace


def bits(t: tree.Tree) -> list[tuple[torch.dtype, torch.Size, bytes]]:
    leaves = tree.leaves(t)
    return [(x.dtype, x.shape, x.contiguous().flatten().view(torch.uint8).numpy().tobytes()) for x in leaves]


RULES = {
    "adamw": adamw(0.1, weight_decay=0.1),
    "momentum": sgd(0.1, momentum=0.9),
    "clipped": chain(clip_by_global_norm(1.0), trace(0.9)),
}


@st.composite
def holed(draw: st.DrawFn) -> tuple[dict[str, Tensor], list[tree.Tree]]:
    """A flat dict of parameters, and gradients of which some are missing."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    params = {name: draw(strategies.tensors()) for name in names}
    history = draw(strategies.histories(params, max_size=3, values=st.floats(-2, 2)))
    return params, [draw(strategies.with_holes(g)) for g in history]


@pytest.mark.parametrize("name", RULES)
@given(drawn=holed())
def test_a_leaf_without_gradient_is_bitwise_as_it_was_in_parameters_and_state(
    name: str, drawn: tuple[dict[str, Tensor], list[tree.Tree]]
) -> None:
    tx, (params, history) = RULES[name], drawn
    state = tx.init(params)
    for grads in history:
        updates, new = tx.update(grads, state, params)
        after = apply_updates(params, updates)
        for leaf in params:
            if holes.is_hole(grads[leaf]):
                assert after[leaf] is params[leaf]
                for old, now in zip(parts(state, params, leaf), parts(new, params, leaf), strict=True):
                    assert old is now
        params, state = after, new


def parts(state: tree.Tree, params: dict[str, Tensor], leaf: str) -> list[Tensor]:
    """What the state keeps for one leaf."""
    if type(state) is dict and state.keys() == params.keys():
        return [state[leaf]]
    return [x for _, child in tree_children(state) for x in parts(child, params, leaf)]


def tree_children(node: tree.Tree) -> list[tuple[object, tree.Tree]]:
    return list(enumerate(node)) if isinstance(node, tuple) else []


@pytest.mark.parametrize("name", RULES)
@given(drawn=holed())
def test_the_other_leaves_do_not_notice(name: str, drawn: tuple[dict[str, Tensor], list[tree.Tree]]) -> None:
    tx, (params, history) = RULES[name], drawn
    missing = {leaf for leaf in params if any(holes.is_hole(grads[leaf]) for grads in history)}
    there = {leaf: p for leaf, p in params.items() if leaf not in missing}
    if not there:
        return
    holed_grads = [{leaf: () if leaf in missing else g for leaf, g in grads.items()} for grads in history]
    one, other = tx.init(params), tx.init(there)
    for grads in holed_grads:
        u, one = tx.update(grads, one, params)
        v, other = tx.update({leaf: grads[leaf] for leaf in there}, other, there)
        assert bits({leaf: u[leaf] for leaf in there}) == bits(v)


@pytest.mark.parametrize("hole", [(), None])
@pytest.mark.parametrize("name", RULES)
def test_where_every_gradient_is_missing_every_parameter_stays(name: str, hole: object) -> None:
    tx = RULES[name]
    for params, grads in [
        (torch.ones(2), hole),
        ((torch.ones(2), torch.ones(3)), (hole, hole)),
        ([torch.ones(2)], [hole]),
        ({"a": {"b": torch.ones(2)}}, {"a": hole}),
    ]:
        state = tx.init(params)
        updates, new = tx.update(grads, state, params)
        assert bits(apply_updates(params, updates)) == bits(params)
        assert [x.shape for x in tree.leaves(new)] == [x.shape for x in tree.leaves(state)]


class Counted(NamedTuple):
    count: Tensor
    mu: tree.Tree


def pair_of_counter_and_mean() -> GradientTransformation:
    """A rule whose state is a plain tuple of two, as parameters may be."""

    def init(params: tree.Tree) -> tuple[Tensor, tree.Tree]:
        return first_count(params), tree.zeros_like(params)

    def update(
        g: tree.Tree, state: tuple[Tensor, tree.Tree], params: tree.Tree | None = None
    ) -> tuple[tree.Tree, tuple[Tensor, tree.Tree]]:
        mu = tree.pointwise(lambda m, g: m + g, state[1], g)
        return mu, (increment(state[0]), mu)

    return GradientTransformation(init, update, local=True)


def test_a_state_that_looks_like_the_parameters_is_not_taken_for_them() -> None:
    tx, params = pair_of_counter_and_mean(), (torch.ones(2), torch.ones(3))
    state = tx.init(params)
    (u, hole), (count, mu) = tx.update((torch.ones(2), None), state, params)
    assert torch.equal(u, torch.ones(2))
    assert hole == ()
    assert int(count) == 1
    assert torch.equal(mu[0], torch.ones(2))
    assert mu[1] is state[1][1]


def test_the_counter_goes_on_where_some_gradient_is_there() -> None:
    tx, params = scale_by_adam(), {"a": torch.ones(2), "b": torch.ones(2)}
    _, state = tx.update({"a": torch.ones(2), "b": None}, tx.init(params), params)
    assert int(state.count) == 1


def test_a_gradient_that_comes_late_finds_the_moments_of_the_beginning() -> None:
    tx, params = trace(0.5), {"a": torch.ones(1), "b": torch.ones(1)}
    state = tx.init(params)
    for b in ((), torch.ones(1), (), torch.ones(1)):
        updates, state = tx.update({"a": torch.ones(1), "b": b}, state, params)
    assert float(updates["a"]) == 1.875
    assert float(updates["b"]) == 1.5  # a zero gradient would have halved the trace in between


def test_a_subtree_may_be_missing_whole() -> None:
    params = {"a": {"x": torch.ones(1), "y": torch.ones(1)}, "b": torch.ones(1)}
    tx = adamw(0.1)
    updates, state = tx.update({"a": None, "b": torch.ones(1)}, tx.init(params), params)
    after = apply_updates(params, updates)
    assert after["a"]["x"] is params["a"]["x"]
    assert float(after["b"]) < 1
    assert tree.paths(state) == tree.paths(tx.init(params))


def test_holes_that_do_not_explain_a_mismatch_leave_it_an_error() -> None:
    params = {"a": torch.ones(1), "b": torch.ones(1)}
    tx = scale_by_adam()
    text = (
        "scale_by_adam: leaf 'c' of one tree is missing in the other; "
        "hint: updates, state and params must come from one tree of parameters"
    )
    with pytest.raises(ValueError, match=f"^{text}$"):
        tx.update({"a": torch.ones(1), "b": None, "c": torch.ones(1)}, tx.init(params), params)


# --- the functions themselves


@given(strategies.trees().flatmap(lambda t: st.tuples(st.just(t), strategies.with_holes(t))))
def test_fill_undoes_punch(drawn: tuple[tree.Tree, tree.Tree]) -> None:
    whole, holed = drawn
    punched = holes.punch(whole, holed)
    assert tree.paths(punched) == tree.paths(holes.normalise(holed))
    filled = holes.fill(punched, whole)
    assert tree.paths(filled) == tree.paths(whole)
    assert all(a is b for a, b in zip(tree.leaves(filled), tree.leaves(whole), strict=True))


def test_none_is_read_as_the_empty_tuple() -> None:
    assert holes.normalise({"a": [None, 1], "b": None}) == {"a": [(), 1], "b": ()}
    assert holes.normalise(None) == ()
    assert holes.has_holes({"a": [1, {"b": ()}]})
    assert not holes.has_holes({"a": [1, {"b": {}}], "c": []})


def test_what_fits_a_pattern_has_its_containers() -> None:
    pattern = {"a": 1, "b": ()}
    assert holes.fits({"b": [1, 2], "a": 0}, pattern)
    assert not holes.fits({"a": 0}, pattern)
    assert not holes.fits({"a": [0], "b": 1}, pattern)
    assert not holes.fits([0, 1], pattern)
    assert not holes.fits(Counted(torch.ones(()), ()), (1, ()))
