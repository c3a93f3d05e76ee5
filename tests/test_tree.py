"""Trees: structure is kept, names find leaves, and what does not correspond is said by name."""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from typing import NamedTuple

import numpy as np
import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from functrain import tree
from functrain.testing import strategies


class Point(NamedTuple):
    x: tree.Tree
    y: tree.Tree


A, B, C = torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.tensor(4.0)
NESTED = {"z": [A, (B,)], "a": Point(C, {"k": A})}


def message(text: str) -> str:
    return f"^{re.escape(text)}$"


# --- map


@given(strategies.trees(dtypes=strategies.FLOATS))
def test_map_of_the_identity_is_the_tree_itself(t: tree.Tree) -> None:
    same = tree.map(lambda x: x, t)
    assert optree.tree_structure(same, namespace="functrain") == optree.tree_structure(t, namespace="functrain")
    assert all(a is b for a, b in zip(tree.leaves(same), tree.leaves(t), strict=True))


@given(strategies.trees())
def test_map_of_a_composition_is_the_composition_of_maps(t: tree.Tree) -> None:
    one = tree.map(lambda x: (x + 1) * 2, t)
    two = tree.map(lambda x: x * 2, tree.map(lambda x: x + 1, t))
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(one), tree.leaves(two), strict=True))


def test_map_calls_the_function_once_a_leaf_with_the_leaf_itself() -> None:
    seen: list[Tensor] = []
    tree.map(seen.append, NESTED)
    assert [id(x) for x in seen] == [id(x) for x in (A, B, C, A)]


@given(strategies.trees(), st.randoms(use_true_random=False))
def test_dicts_correspond_whatever_the_order_of_their_keys(t: tree.Tree, random: object) -> None:
    def shuffled(node: tree.Tree) -> tree.Tree:
        if type(node) is dict:
            items = list(node.items())
            random.shuffle(items)
            return {k: shuffled(v) for k, v in items}
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            return type(node)(*map(shuffled, node))
        return type(node)(map(shuffled, node)) if isinstance(node, list | tuple) else node

    for apply in (tree.map, tree.pointwise):
        difference = apply(lambda x, y: x - y, t, shuffled(t))
        assert all(not x.any() for x in tree.leaves(difference))
        assert tree.paths(difference) == tree.paths(t)


@pytest.mark.parametrize("kind", [dict, OrderedDict, lambda items: defaultdict(float, items)])
def test_dicts_keep_the_order_of_insertion_and_their_type(kind: type) -> None:
    first, second = kind([("b", A), ("a", B)]), kind([("a", B), ("b", A)])
    out = tree.map(lambda x, y: x + y, first, second)
    assert list(out) == ["b", "a"]
    assert type(out) is type(first)
    assert torch.equal(out["b"], 2 * A)
    assert torch.equal(out["a"], 2 * B)


def test_int_keys_empty_and_dotted_names_stay_apart() -> None:
    t = {1: A, "1": B, "": C, "a.b": A, "a": {"b": B}}
    assert tree.map(lambda x: x, t) == t
    assert tree.paths(t) == ["1", "1", "", "a.b", "a.b"]
    assert len(set(tree.keys(t))) == 5


def test_one_tensor_is_a_tree() -> None:
    assert tree.leaves(C) == [C]
    assert tree.paths(C) == [""]
    assert torch.equal(tree.pointwise(lambda x: x + 1, C), C + 1)


def test_a_tree_without_leaves_is_mapped_to_itself() -> None:
    for empty in ({}, [], (), {"a": (), "b": [None]}):
        assert tree.pointwise(lambda x: x + 1, empty) == tree.map(lambda x: x + 1, empty) == empty


def test_map_with_path_gives_the_readable_path() -> None:
    assert tree.map_with_path(lambda path, x: path, NESTED) == {
        "z": ["z.0", ("z.1.0",)],
        "a": Point("a.x", {"k": "a.y.k"}),
    }


def test_unflatten_gives_back_what_flatten_took() -> None:
    assert tree.unflatten(NESTED, tree.leaves(NESTED)) == NESTED
    assert tree.unflatten(NESTED, [1, 2, 3, 4]) == {"z": [1, (2,)], "a": Point(3, {"k": 4})}


# --- Mismatch, word for word


@pytest.mark.parametrize("apply", [tree.map, tree.pointwise])
@pytest.mark.parametrize(
    ("one", "other", "text"),
    [
        ({"a": A, "b": B}, {"a": A}, "leaf 'b' of one tree is missing in the other"),
        ({"a": A}, {"a": A, "b": {"c": B}}, "leaf 'b.c' of one tree is missing in the other"),
        ({"a": [A, B]}, {"a": [A]}, "leaf 'a.1' of one tree is missing in the other"),
        ({"a": A}, {"a": [A]}, "leaf 'a' of one tree is missing in the other"),
        (A, {"a": A}, "leaf (the root) of one tree is missing in the other"),
        (Point(A, B), {"x": A, "y": B}, "leaf 'x' of one tree is missing in the other"),
        ({1: A}, {"1": A}, "leaf '1' of one tree is missing in the other"),
        ({"a": A}, {"a": ()}, "leaf 'a' of one tree is missing in the other"),
    ],
)
def test_trees_of_other_structure_are_a_mismatch_that_names_the_leaf(
    apply: object, one: tree.Tree, other: tree.Tree, text: str
) -> None:
    with pytest.raises(tree.Mismatch, match=message(text)):
        apply(lambda x, y: x, one, other)


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [
        ({"w": A}, {"w": B}, "leaf 'w' has shape (2,) in one tree, (1,) in the other"),
        ([C, A.reshape(2, 1)], [C, A.reshape(1, 2)], "leaf '1' has shape (2, 1) in one tree, (1, 2) in the other"),
        ([A, torch.ones(4, 6)], [A, torch.ones(6, 4)], "leaf '1' has shape (4, 6) in one tree, (6, 4) in the other"),
        (C, B, "leaf (the root) has shape () in one tree, (1,) in the other"),
        ([A], [torch.ones(3, 2)], "leaf '0' has shape (2,) in one tree, (3, 2) in the other"),
    ],
)
def test_leaves_of_another_shape_are_a_mismatch_even_where_torch_would_broadcast(
    one: tree.Tree, other: tree.Tree, text: str
) -> None:
    with pytest.raises(tree.Mismatch, match=message(text)):
        tree.pointwise(lambda x, y: x + y, one, other)


def test_map_lets_shapes_differ() -> None:
    assert torch.equal(tree.map(lambda x, y: x + y, [A], [B])[0], A + B)


@pytest.mark.parametrize("hole", [(), None])
def test_holes_in_the_same_places_correspond(hole: object) -> None:
    one, other = {"a": A, "b": hole}, {"a": A, "b": ()}
    assert torch.equal(tree.pointwise(lambda x, y: x + y, one, other)["a"], 2 * A)


def test_lists_correspond_to_tuples() -> None:
    out = tree.pointwise(lambda x, y: x + y, [A, B], (A, B))
    assert type(out) is list


# --- casts, zeros, norms


@given(strategies.trees(dtypes=strategies.FLOATS))
def test_zeros_are_like_the_tree_and_share_nothing_with_it(t: tree.Tree) -> None:
    for x, z in zip(tree.leaves(t), tree.leaves(tree.zeros_like(t)), strict=True):
        assert (z.dtype, z.shape, bool(z.any())) == (x.dtype, x.shape, False)
    for z in tree.leaves(tree.zeros_like(t, torch.float64)):
        assert z.dtype == torch.float64


@given(strategies.trees(dtypes=strategies.FLOATS))
def test_upcast_widens_half_precision_alone_and_exactly(t: tree.Tree) -> None:
    for x, y in zip(tree.leaves(t), tree.leaves(tree.upcast(t)), strict=True):
        if x.dtype in (torch.float32, torch.float64):
            assert y is x
        else:
            assert y.dtype == torch.float32
            assert torch.equal(y.to(x.dtype), x)
    back = tree.cast_like(tree.upcast(t), t)
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(tree.leaves(back), tree.leaves(t), strict=True))


def test_cast_to_changes_floating_leaves_alone() -> None:
    t = [A, torch.arange(3), torch.tensor(True)]
    assert [x.dtype for x in tree.cast(t, torch.bfloat16)] == [torch.bfloat16, torch.int64, torch.bool]


@given(strategies.trees(dtypes=strategies.FLOATS))
def test_the_norm_is_that_of_all_numbers_in_one_vector(t: tree.Tree) -> None:
    numbers = np.concatenate([x.double().flatten().numpy() for x in tree.leaves(t)] + [np.zeros(1)])
    assert float(tree.norm(t)) == pytest.approx(float(np.linalg.norm(numbers)), rel=1e-6)


def test_the_norm_is_computed_in_at_least_float32() -> None:
    halves = [torch.full((100,), 300.0, dtype=torch.float16)] * 2  # 300² is infinite in float16
    assert float(tree.norm(halves)) == pytest.approx(300 * 200**0.5, rel=1e-6)
    assert tree.norm(halves).dtype == torch.float32
    assert tree.norm([*halves, A.double()]).dtype == torch.float64
    assert tree.norm({}).dtype == torch.float32


def test_the_norm_of_complex_numbers_is_that_of_their_parts() -> None:
    assert float(tree.norm([torch.tensor([3 + 4j]), torch.tensor([12.0])])) == 13


def test_the_gradient_of_the_norm_is_zero_at_zero() -> None:
    grads = torch.func.grad(tree.norm)({"a": torch.zeros(3), "b": torch.zeros(())})
    assert all(torch.equal(g, torch.zeros_like(g)) for g in tree.leaves(grads))


def test_size_counts_elements() -> None:
    assert tree.size(NESTED) == 2 + 1 + 1 + 2
    assert tree.size({"a": torch.zeros(0, 3)}) == tree.size(()) == 0


# --- stack, unstack, expand


@given(
    strategies.trees().filter(tree.leaves).flatmap(lambda t: st.lists(strategies.gradients(t), min_size=1, max_size=3))
)
def test_unstack_undoes_stack(trees: list[tree.Tree]) -> None:
    back = tree.unstack(tree.stack(trees))
    assert len(back) == len(trees)
    for a, b in zip(back, trees, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


def test_unstack_of_unequal_first_axes_is_a_mismatch() -> None:
    text = "tree.unstack: the leaves have first axes of [1, 2] entries, not of one length"
    with pytest.raises(tree.Mismatch, match=message(text)):
        tree.unstack({"a": A, "b": B})


def test_a_prefix_is_expanded_to_every_leaf_below() -> None:
    assert tree.expand(True, NESTED) == {"z": [True, (True,)], "a": Point(True, {"k": True})}
    assert tree.expand({"a": 1, "z": [2, 3]}, NESTED) == {"z": [2, (3,)], "a": Point(1, {"k": 1})}


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ({"z": 1}, "the prefix does not fit the tree at (the root)"),
        ({"z": [1], "a": 2}, "the prefix does not fit the tree at 'z'"),
        ({"z": 1, "a": Point({"deeper": 1}, 1)}, "the prefix does not fit the tree at 'a.x'"),
    ],
)
def test_a_prefix_that_does_not_fit_is_a_mismatch_that_names_the_place(prefix: tree.Tree, text: str) -> None:
    with pytest.raises(tree.Mismatch, match=message(text)):
        tree.expand(prefix, NESTED)
