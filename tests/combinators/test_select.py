"""Where: masked, mask_by, partition, freeze, selective_transform."""

from __future__ import annotations

from typing import Any

import jax
import optax
import pytest
import torch

from functrain import tree
from functrain.base import GradientTransformation, apply_updates, identity, set_to_zero
from functrain.combinators.chain import chain
from functrain.combinators.select import freeze, mask_by, masked, partition, selective_transform
from functrain.optimizers.adaptive import adam, adamw
from functrain.optimizers.momentum import sgd
from functrain.transforms.adaptive import scale_by_adam
from functrain.transforms.clip import clip_by_global_norm
from functrain.transforms.momentum import trace
from tests.oracle import assert_agrees, assert_bitwise, gradients, parameters, run

PREFIX = {"layers": [True, False], "head": {"w": True, "scale": False}}
LABELS = {"layers": ["body", "head"], "head": "head"}


def by_rank(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim >= 2, params)


# --- Optax says the same


def test_masked_by_a_prefix_agrees_with_optax() -> None:
    assert_agrees(masked(adam(0.1), PREFIX), lambda: optax.masked(optax.adam(0.1), PREFIX))


def test_masked_by_a_function_agrees_with_optax() -> None:
    tx = masked(adamw(0.1, weight_decay=0.1), mask_by(lambda path, p: p.ndim >= 2))
    assert_agrees(tx, lambda: optax.masked(optax.adamw(0.1, weight_decay=0.1), by_rank))


def test_a_norm_inside_a_mask_is_a_norm_of_its_own_leaves() -> None:
    tx = masked(clip_by_global_norm(0.1), PREFIX)
    assert_agrees(tx, lambda: optax.masked(optax.clip_by_global_norm(0.1), PREFIX))


def test_masks_inside_masks_agree_with_optax() -> None:
    inner = {"layers": [{"w": True, "b": False}, True], "head": {"w": False, "scale": True}}
    tx = masked(masked(adam(0.1), mask_by(lambda path, p: p.ndim >= 2)), PREFIX)
    theirs = {"layers": [{"w": True, "b": False}, False], "head": False}
    assert_agrees(tx, lambda: optax.masked(optax.adam(0.1), theirs))
    assert_agrees(masked(masked(adam(0.1), inner), PREFIX), lambda: optax.masked(optax.adam(0.1), theirs))


def test_partition_by_labels_agrees_with_optax() -> None:
    tx = partition({"body": adam(0.1), "head": sgd(0.2, momentum=0.9), "unused": adam(1.0)}, LABELS)
    theirs = {"body": optax.adam(0.1), "head": optax.sgd(0.2, momentum=0.9), "unused": optax.adam(1.0)}
    assert_agrees(tx, lambda: optax.partition(theirs, LABELS))


def test_partition_by_a_function_agrees_with_optax() -> None:
    tx = partition({2: adam(0.1), 1: sgd(0.2), 0: set_to_zero()}, mask_by(lambda path, p: p.ndim))
    theirs = {2: optax.adam(0.1), 1: optax.sgd(0.2), 0: optax.set_to_zero()}
    assert_agrees(tx, lambda: optax.partition(theirs, lambda p: jax.tree.map(lambda x: x.ndim, p)))


def test_freeze_agrees_with_optax() -> None:
    assert_agrees(chain(adam(0.1), freeze(PREFIX)), lambda: optax.chain(optax.adam(0.1), optax.freeze(PREFIX)))


def test_selective_transform_agrees_with_optax() -> None:
    tx = selective_transform(adam(0.1), freeze_mask=PREFIX)
    assert_agrees(tx, lambda: optax.selective_transform(optax.adam(0.1), freeze_mask=PREFIX))
    by_function = selective_transform(adam(0.1), freeze_mask=lambda params: PREFIX)
    assert_bitwise(run(by_function, gradients()), run(tx, gradients()))


# --- bit for bit


def test_masked_by_true_is_the_transformation_itself() -> None:
    assert_bitwise(run(masked(adam(0.1), True), gradients(3)).updates, run(adam(0.1), gradients(3)).updates)


def test_masked_by_false_is_the_identity_and_keeps_no_moments() -> None:
    g, tx = gradients(1)[0], masked(trace(0.9), False)
    state = tx.init(parameters())
    assert tree.leaves(state) == []
    u, new = tx.update(g, state, parameters())
    assert all(a is b for a, b in zip(tree.leaves(u), tree.leaves(g), strict=True))
    assert new == state


def test_updates_that_are_masked_out_are_the_same_tensors() -> None:
    g, tx = gradients(1)[0], masked(adam(0.1), PREFIX)
    u, _ = tx.update(g, tx.init(parameters()), parameters())
    same = tree.map(lambda a, b: a is b, u, g)
    assert same == {"layers": [{"w": False, "b": False}, {"w": True, "b": True}], "head": {"w": False, "scale": True}}


def test_the_state_has_holes_where_it_is_masked_out() -> None:
    (adam_state, _) = masked(adam(0.1), PREFIX).init(parameters()).inner_state
    assert tree.paths(adam_state.mu) == ["layers.0.w", "layers.0.b", "head.w"]
    assert adam_state.mu["layers"][1] == {"w": (), "b": ()}
    assert adam_state.nu["head"]["scale"] == ()


def test_partition_with_one_label_is_the_transformation_itself() -> None:
    tx = partition({"all": adam(0.1)}, "all")
    assert_bitwise(run(tx, gradients(3)).updates, run(adam(0.1), gradients(3)).updates)


def test_partition_into_true_and_identity_is_masked() -> None:
    tx = partition({True: adam(0.1), False: identity()}, PREFIX)
    assert_bitwise(run(tx, gradients(3)).updates, run(masked(adam(0.1), PREFIX), gradients(3)).updates)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_freeze_leaves_parameters_bitwise(dtype: torch.dtype) -> None:
    params = tree.cast(parameters(), dtype)
    for tx in (chain(adamw(0.1), freeze(PREFIX)), selective_transform(adamw(0.1), freeze_mask=PREFIX)):
        state, new = tx.init(params), params
        for g in gradients(3):
            u, state = tx.update(tree.cast(g, dtype), state, new)
            new = apply_updates(new, u)
        frozen = tree.expand(PREFIX, params)
        equal = tree.map(torch.equal, new, params)
        assert tree.leaves(equal) == tree.leaves(frozen)


def test_selective_transform_keeps_no_state_for_what_is_frozen() -> None:
    tx = selective_transform(trace(0.9), freeze_mask=PREFIX)
    assert tree.paths(tx.init(parameters()).inner_states["train"].inner_state.trace) == [
        "layers.1.w", "layers.1.b", "head.scale",
    ]  # fmt: skip


# --- what a mask is given


def test_mask_by_shows_each_leaf_with_its_readable_path() -> None:
    seen: list[tuple[str, int]] = []
    mask = mask_by(lambda path, leaf: not seen.append((path, leaf.ndim)))
    assert mask(parameters()) == tree.expand(True, parameters())
    assert seen == [
        ("layers.0.w", 2),
        ("layers.0.b", 1),
        ("layers.1.w", 2),
        ("layers.1.b", 1),
        ("head.w", 1),
        ("head.scale", 0),
    ]


def test_a_function_is_asked_about_the_parameters_and_not_about_the_updates() -> None:
    tx = masked(set_to_zero(), mask_by(lambda path, leaf: bool(leaf > 0)))
    params, g = [torch.tensor(1.0), torch.tensor(-1.0)], [torch.tensor(-2.0), torch.tensor(2.0)]
    assert tx.update(g, tx.init(params), params)[0] == [0.0, 2.0]


def test_a_function_needs_the_parameters_and_a_tree_does_not() -> None:
    g = {"a": torch.ones(2), "b": torch.ones(2)}
    for tx, name in (
        (masked(set_to_zero(), lambda p: {"a": True, "b": False}), "masked"),
        (partition({True: set_to_zero(), False: identity()}, lambda p: {"a": True, "b": False}), "partition"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: it needs the parameters and got none; hint: "):
            tx.update(g, tx.init(g))
    tx = masked(set_to_zero(), {"a": True, "b": False})
    u, _ = tx.update(g, tx.init(g))
    assert u["a"].sum() == 0
    assert u["b"] is g["b"]


def test_a_mask_of_one_tensor_is_one_bool() -> None:
    g = torch.ones(2)
    for mask in (True, lambda p: p.ndim == 1):
        tx = masked(set_to_zero(), mask)
        assert tx.update(g, tx.init(g), g)[0].sum() == 0


def test_extras_shaped_like_the_parameters_are_masked_where_that_is_asked() -> None:
    def add(u: object, s: object, p: object = None, *, grad: object, value: float) -> tuple[object, object]:
        return tree.map(lambda x, y: x + value * y, u, grad), s

    inner = GradientTransformation(lambda p: (), add, needs=("grad", "value"))
    g, grad = {"a": torch.ones(2), "b": torch.ones(3)}, {"a": torch.ones(2), "b": torch.ones(3)}
    mask = {"a": True, "b": False}
    for tx in (
        masked(inner, mask, mask_compatible_extra_args=True),
        partition({True: inner, False: identity()}, mask, mask_compatible_extra_args=True),
    ):
        u, _ = tx.update(g, tx.init(g), g, grad=grad, value=2.0)
        assert u["a"].tolist() == [3.0, 3.0]
        assert u["b"] is g["b"]
    tx = masked(inner, mask)
    with pytest.raises(ValueError, match="leaf 'b' of one tree is missing in the other"):
        tx.update(g, tx.init(g), g, grad=grad, value=2.0)


# --- missing gradients


@pytest.mark.parametrize("hole", [None, ()])
@pytest.mark.parametrize(
    "make",
    [
        lambda mask: masked(scale_by_adam(), mask),
        lambda mask: masked(scale_by_adam(), lambda p: mask),
        lambda mask: partition({True: scale_by_adam(), False: identity()}, mask),
    ],
)
def test_a_missing_gradient_inside_a_mask_leaves_its_moments_as_they_are(make: Any, hole: object) -> None:
    params = {"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(4), "d": torch.ones(5)}
    g = {"a": torch.full((2,), 0.5), "b": hole, "c": torch.ones(4), "d": hole}
    tx = make({"a": True, "b": True, "c": False, "d": False})
    state = tx.init(params)
    u, new = tx.update(g, state, params)
    assert (u["b"], u["d"]) == ((), ())
    assert u["c"] is g["c"]

    def inner(state: Any) -> Any:
        return state.inner_states[True].inner_state if hasattr(state, "inner_states") else state.inner_state

    assert inner(new).mu["b"] is inner(state).mu["b"]
    alone, only = scale_by_adam().update({"a": g["a"]}, scale_by_adam().init({"a": params["a"]}))
    assert_bitwise(u["a"], alone["a"])
    assert_bitwise(inner(new).nu["a"], only.nu["a"])


# --- errors


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda p: masked(adam(0.1), {"layers": True}).init(p),
            ValueError,
            "masked: the prefix does not fit the tree at (the root); "
            "hint: give a tree of bools like the parameters, or a prefix of one",
        ),
        (
            lambda p: masked(adam(0.1), {"layers": [True, {"w": True}], "head": True}).init(p),
            ValueError,
            "masked: the prefix does not fit the tree at 'layers.1'; "
            "hint: give a tree of bools like the parameters, or a prefix of one",
        ),
        (
            lambda p: masked(adam(0.1), lambda p: {"layers": True, "head": [True]}).init(p),
            ValueError,
            "masked: the prefix does not fit the tree at 'head'; "
            "hint: give a tree of bools like the parameters, or a prefix of one",
        ),
        (
            lambda p: masked(adam(0.1), mask_by(lambda path, p: p.ndim)).init(p),
            TypeError,
            "masked: the mask at 'layers.0.w' is 2, not a bool; hint: a mask is structure, not numbers",
        ),
        (
            lambda p: masked(adam(0.1), "layers").init(p["head"]["w"]),
            TypeError,
            "masked: the mask (at the root) is 'layers', not a bool; hint: a mask is structure, not numbers",
        ),
        (
            lambda p: selective_transform(adam(0.1), freeze_mask={"layers": "yes", "head": False}),
            TypeError,
            "selective_transform: the mask at 'layers' is 'yes', not a bool; hint: a mask is structure, not numbers",
        ),
        (
            lambda p: masked(0.1, True),
            TypeError,
            "masked: inner is a float, not a GradientTransformation; "
            "hint: GradientTransformation(init, update) makes one",
        ),
        (
            lambda p: partition({"a": adam(0.1), "b": adam}, "a"),
            TypeError,
            "partition: 'b' is a function, not a GradientTransformation; hint: call the factory, as in adamw(0.001)",
        ),
        (
            lambda p: partition({"a": adam(0.1), "b": sgd(0.1)}, {"layers": ["a", "c"], "head": "b"}).init(p),
            ValueError,
            "partition: no transformation for 'c', the label at 'layers.1.w'; hint: there is 'a', 'b'",
        ),
        (
            lambda p: partition({"a": adam(0.1)}, {"layers": "a"}).init(p),
            ValueError,
            "partition: the prefix does not fit the tree at (the root); "
            "hint: give a tree of labels like the parameters, or a prefix of one",
        ),
    ],
)
def test_what_is_wrong_is_said(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        build(parameters())
    assert str(caught.value) == message
