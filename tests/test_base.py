"""What a transformation is: a pair with manners, that prints as the call that built it."""

from __future__ import annotations

import copy
import functools
import pickle
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from functrain import tree
from functrain.base import (
    GradientTransformation,
    apply_updates,
    identity,
    rule,
    set_to_zero,
    stateless,
    update_and_apply,
)
from functrain.combinators.chain import chain
from functrain.testing import strategies
from functrain.transforms.momentum import trace
from functrain.transforms.scale import scale

PARAMS = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}
GRADS = {"w": torch.tensor([0.5, -0.5]), "b": torch.tensor(1.0)}


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


def empty(params: tree.Tree) -> tuple[()]:
    return ()


def halved(updates: tree.Tree, state: tuple[()], params: tree.Tree | None = None) -> tuple[tree.Tree, tuple[()]]:
    return tree.map(lambda g: g / 2, updates), state


@rule
def halve(times: object = 1) -> GradientTransformation:
    return GradientTransformation(empty, halved, local=True)


@rule
def wants(*names: str) -> GradientTransformation:
    return GradientTransformation(empty, lambda u, s, params=None, **extra: (extra, s), needs=names)


@rule
def decay() -> GradientTransformation:
    return GradientTransformation(empty, lambda u, s, params: (params, s))


@rule
def slope(rate: object) -> object:
    return lambda count: (rate, count)


@rule
def twice_slope(rate: object) -> object:
    return slope(rate)


# --- the pair


def test_a_transformation_unpacks_as_init_and_update() -> None:
    init, update = halve()
    updates, state = update(GRADS, init(PARAMS))
    assert state == ()
    assert torch.equal(updates["w"], GRADS["w"] / 2)


def test_a_rule_of_ones_own_says_what_it_needs_and_whether_it_is_local() -> None:
    tx = GradientTransformation(empty, halved, needs=("value", "grad"), local=True)
    assert tx.needs == {"value", "grad"}
    assert tx.local
    assert not GradientTransformation(empty, halved).local
    assert GradientTransformation(empty, halved).needs == frozenset()


def test_a_rule_receives_the_extras_it_declares_and_no_others() -> None:
    given_extras, _ = wants("value").update(GRADS, (), None, value=1, grad=2)
    assert given_extras == {"value": 1}
    assert halve().update(GRADS, (), None, value=1)[1] == ()


# --- errors, word for word


def test_missing_parameters_are_an_error_that_names_the_rule() -> None:
    text = "decay: it needs the parameters and got none; hint: update(updates, state, params)"
    with pytest.raises(ValueError, match=exactly(text)):
        decay().update(GRADS, ())


def test_missing_extras_are_an_error_that_names_them() -> None:
    text = "wants: it needs value= and did not get it; hint: update(updates, state, params, value=...)"
    with pytest.raises(ValueError, match=exactly(text)):
        wants("value").update(GRADS, (), PARAMS, grad=GRADS)


def test_integer_parameters_are_an_error_that_names_the_leaf() -> None:
    text = (
        "halve: parameter 'layers.0' has dtype torch.int64, which has no gradient; "
        "hint: optimize floating or complex tensors, and keep the others apart"
    )
    with pytest.raises(TypeError, match=exactly(text)):
        halve().init({"layers": [torch.arange(3)]})


@pytest.mark.parametrize(("leaf", "kind"), [(1.5, "float"), ("w", "str"), (1, "int")])
def test_parameters_that_are_no_tensors_are_an_error_that_names_the_leaf(leaf: object, kind: str) -> None:
    text = f"halve: parameter 'w' is a {kind}, not a tensor; hint: torch.tensor makes one"
    with pytest.raises(TypeError, match=exactly(text)):
        halve().init({"w": leaf})


@pytest.mark.parametrize(
    ("grads", "text"),
    [
        ({"w": GRADS["w"]}, "leaf 'b' of one tree is missing in the other"),
        ({**GRADS, "c": GRADS["b"]}, "leaf 'c' of one tree is missing in the other"),
        ({**GRADS, "w": torch.ones(3, 2)}, "leaf 'w' has shape (2,) in one tree, (3, 2) in the other"),
        ({**GRADS, "b": torch.ones(5)}, "leaf 'b' has shape () in one tree, (5,) in the other"),
        ([GRADS["w"], GRADS["b"]], "leaf '0' of one tree is missing in the other"),
    ],
)
def test_gradients_that_do_not_correspond_are_an_error_that_names_rule_and_leaf(grads: object, text: str) -> None:
    hint = "hint: updates, state and params must come from one tree of parameters"
    with pytest.raises(ValueError, match=exactly(f"apply_updates: {text}; {hint}")):
        apply_updates(PARAMS, grads)
    tx = trace(0.9)
    forwards = text.replace("(2,) in one tree, (3, 2)", "(3, 2) in one tree, (2,)")
    forwards = forwards.replace("() in one tree, (5,)", "(5,) in one tree, ()")
    with pytest.raises(ValueError, match=exactly(f"trace: {forwards}; {hint}")):
        tx.update(grads, tx.init(PARAMS), PARAMS)


def test_inside_a_chain_the_part_is_named() -> None:
    tx = chain(halve(), trace(0.9))
    with pytest.raises(ValueError, match=r"^trace: leaf 'b' of one tree is missing"):
        tx.update({"w": GRADS["w"]}, tx.init(PARAMS), PARAMS)


# --- the call that built it


def test_a_rule_prints_as_its_call() -> None:
    assert repr(halve()) == "halve()"
    assert repr(halve(times=3)) == "halve(times=3)"
    assert repr(wants("value", "grad")) == "wants('value', 'grad')"
    assert repr(halve([halve(2), {"a": (True,)}])) == "halve([halve(2), {'a': (True,)}])"
    assert repr(halve(torch.tensor(0.5))) == "halve(torch.tensor(0.5, dtype=torch.float32))"
    assert repr(GradientTransformation(empty, halved)) == "GradientTransformation(empty, halved)"


def test_a_function_that_a_factory_makes_prints_as_the_outermost_call() -> None:
    assert repr(slope(0.1)) == "slope(0.1)"
    assert repr(twice_slope(0.1)) == "twice_slope(0.1)"
    assert twice_slope(0.1)(3) == (0.1, 3)


def test_a_rule_keeps_the_name_and_the_docstring_of_its_factory() -> None:
    assert (halve.__name__, identity.__doc__[:5]) == ("halve", "Leave")


def test_transformations_are_equal_where_their_calls_are() -> None:
    assert halve(1) == halve(1)
    assert halve(1) != halve(2)
    assert halve() != decay()
    assert halve(1) != "halve(1)"
    assert halve([1, {"a": 2}]) == halve([1, {"a": 2}])
    assert GradientTransformation(empty, halved) == GradientTransformation(empty, halved)
    assert GradientTransformation(empty, halved) != GradientTransformation(empty, lambda u, s: (u, s))
    assert slope(1) == slope(1)
    assert slope(1) != slope(2)


@pytest.mark.parametrize("factory", [halve, slope])
def test_equal_ones_have_equal_hashes(factory: object) -> None:
    for one, other in [(1, 1.0), (True, 1), ([1], [1.0])]:
        assert factory(one) == factory(other)
        assert hash(factory(one)) == hash(factory(other))
    assert len({factory(1), factory(1), factory(2)}) == 2


def test_copies_are_the_transformation_itself() -> None:
    tx = halve()
    assert copy.copy(tx) is tx
    assert copy.deepcopy({"a": tx})["a"] is tx
    schedule = slope(1)
    assert copy.copy(schedule) is copy.deepcopy(schedule) is schedule


@pytest.mark.parametrize(
    "made",
    [
        halve(2),
        halve(times=halve([1, 2])),
        GradientTransformation(empty, halved, needs=("value",), local=True),
        slope(0.1),
        twice_slope(rate=slope(1)),
        chain(halve(), identity()),
    ],
)
def test_it_pickles(made: object) -> None:
    again = pickle.loads(pickle.dumps(made))
    assert again == made
    assert repr(again) == repr(made)
    if isinstance(made, GradientTransformation):
        assert (again.needs, again.local) == (made.needs, made.local)


def local_function() -> None:
    """Nobody finds what is inside by name."""

    def inner(updates: object, state: object) -> None: ...

    return inner


LOST = "hint: give one that is defined at the top of a module"


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: halve(lambda x: x), "halve: cannot pickle the function test_{}.<locals>.<lambda>"),
        (lambda: slope(rate=local_function()), "slope: cannot pickle the function local_function.<locals>.inner"),
        (
            lambda: GradientTransformation(empty, local_function()),
            "GradientTransformation: cannot pickle the function local_function.<locals>.inner",
        ),
        (lambda: chain(halve(local_function())), "halve: cannot pickle the function local_function.<locals>.inner"),
    ],
)
def test_pickling_a_function_without_a_name_is_an_error_that_says_so(made: object, text: str) -> None:
    tx = made()
    text = text.replace("test_{}.<locals>.<lambda>", "<lambda>.<locals>.<lambda>")
    with pytest.raises(pickle.PicklingError) as error:
        pickle.dumps(tx)
    assert str(error.value) == f"{text}; {LOST}"


# --- the smallest transformations


@given(strategies.trees(dtypes=strategies.FLOATS))
def test_the_identity_returns_the_same_tensors(g: tree.Tree) -> None:
    tx = identity()
    updates, state = tx.update(g, tx.init(g))
    assert state == ()
    assert all(a is b for a, b in zip(tree.leaves(updates), tree.leaves(g), strict=True))


@given(strategies.trees(dtypes=strategies.FLOATS))
def test_set_to_zero_leaves_parameters_bitwise_as_they_are_even_under_nan(p: tree.Tree) -> None:
    updates, _ = set_to_zero().update(tree.map(lambda x: x * torch.nan, p), ())
    for a, b in zip(tree.leaves(apply_updates(p, updates)), tree.leaves(p), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_stateless_gives_updates_and_parameters_to_its_function() -> None:
    tx = stateless(lambda updates, params: (updates, params), local=True)
    assert tx.init(PARAMS) == ()
    assert tx.update(GRADS, (), PARAMS) == ((GRADS, PARAMS), ())
    assert tx.update(GRADS, ()) == ((GRADS, None), ())
    assert tx.local


# --- apply_updates


@given(strategies.trees(dtypes=strategies.FLOATS), st.sampled_from(strategies.FLOATS))
def test_applied_updates_are_the_sum_in_the_parameters_own_dtype(p: tree.Tree, dtype: torch.dtype) -> None:
    updates = tree.map(lambda x: (0.5 * x).to(dtype), p)
    for new, old, u in zip(*map(tree.leaves, (apply_updates(p, updates), p, updates)), strict=True):
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        assert torch.equal(new, old + u.to(old.dtype))


def test_a_parameter_whose_update_is_missing_is_the_tensor_that_it_was() -> None:
    for hole in ((), None):
        new = apply_updates(PARAMS, {"w": GRADS["w"], "b": hole})
        assert new["b"] is PARAMS["b"]
        assert torch.equal(new["w"], PARAMS["w"] + GRADS["w"])
    assert apply_updates(PARAMS, None) == PARAMS


def test_update_and_apply_is_the_update_then_the_sum() -> None:
    tx = chain(trace(0.5), scale(-0.1))
    step = update_and_apply(tx)
    params, state = step(GRADS, tx.init(PARAMS), PARAMS)
    assert torch.equal(params["w"], PARAMS["w"] + -0.1 * GRADS["w"])
    params, state = step(GRADS, state, params)
    torch.testing.assert_close(params["w"], PARAMS["w"] - 0.1 * (1 + 1.5) * GRADS["w"])
    assert repr(step) == "update_and_apply(chain(trace(0.5), scale(-0.1)))"


def test_update_and_apply_hands_extras_on() -> None:
    tx = GradientTransformation(
        empty, lambda u, s, params=None, *, value: (tree.map(lambda g: g * value, u), s), needs=("value",)
    )
    params, _ = update_and_apply(tx)(GRADS, (), PARAMS, value=torch.tensor(2.0))
    assert torch.equal(params["b"], PARAMS["b"] + 2 * GRADS["b"])


def test_functions_of_any_kind_make_a_transformation() -> None:
    def update(u: tree.Tree, s: tree.Tree, params: tree.Tree, *, factor: float) -> tuple[tree.Tree, tree.Tree]:
        return tree.map(lambda g: g * factor, u), s

    tx = GradientTransformation(empty, functools.partial(update, factor=3.0))
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(GRADS, ())
    assert isinstance(tx.update(GRADS, (), PARAMS)[0]["w"], Tensor)


def test_a_rule_of_a_namespace_without_a_name_prints_too() -> None:
    namespace: dict[str, object] = {"rule": rule, "scale": scale}
    exec("@rule\ndef mine(rate):\n    return scale(rate)\nprinted = repr(mine(0.5))", namespace)
    assert namespace["printed"] == "mine(0.5)"
