"""In sequence: chain and named_chain."""

from __future__ import annotations

import optax
import pytest
import torch

from functrain import tree
from functrain.base import GradientTransformation, identity, set_to_zero
from functrain.combinators.chain import chain, named_chain
from functrain.transforms.adaptive import scale_by_adam
from functrain.transforms.clip import clip_by_global_norm
from functrain.transforms.scale import scale
from tests.oracle import assert_agrees, assert_bitwise, gradients, parameters, run


def parts() -> list[GradientTransformation]:
    return [clip_by_global_norm(1.0), scale_by_adam(), scale(-0.1)]


def optax_chain() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale(-0.1))


def test_chain_agrees_with_optax() -> None:
    assert_agrees(chain(*parts()), optax_chain)


def test_named_chain_agrees_with_optax() -> None:
    named = named_chain(*zip(("clip", "adam", "rate"), parts(), strict=True))
    assert_agrees(named, optax_chain)
    assert list(named.init(parameters())) == ["clip", "adam", "rate"]


def test_the_order_of_a_chain_is_its_meaning() -> None:
    a = run(chain(clip_by_global_norm(1.0), scale(10.0)), gradients(1)).updates[0]
    b = run(chain(scale(10.0), clip_by_global_norm(1.0)), gradients(1)).updates[0]
    torch.testing.assert_close(tree.norm(a), torch.tensor(10.0, dtype=torch.float64))
    torch.testing.assert_close(tree.norm(b), torch.tensor(1.0, dtype=torch.float64))


def test_identity_is_neutral_on_either_side() -> None:
    plain = run(scale_by_adam(), gradients(3))
    for tx in (chain(scale_by_adam(), identity()), chain(identity(), scale_by_adam()), chain(scale_by_adam())):
        assert_bitwise(run(tx, gradients(3)).updates, plain.updates)


def test_a_chain_is_associative() -> None:
    a, b, c = parts()
    flat = run(chain(a, b, c), gradients(3)).updates
    assert_bitwise(run(chain(chain(a, b), c), gradients(3)).updates, flat)
    assert_bitwise(run(chain(a, chain(b, c)), gradients(3)).updates, flat)


def test_a_chain_of_nothing_is_the_identity() -> None:
    g = gradients(1)[0]
    u, state = chain().update(g, chain().init(g))
    assert state == ()
    assert all(x is y for x, y in zip(tree.leaves(u), tree.leaves(g), strict=True))
    assert named_chain().update(g, {}) == (g, {})


def test_a_chain_needs_what_some_part_needs_and_hands_each_part_its_own() -> None:
    def by_value(u: object, s: object, p: object = None, *, value: float) -> tuple[object, object]:
        return tree.map(lambda x: x * value, u), s

    def by_grad(u: object, s: object, p: object = None, *, grad: object) -> tuple[object, object]:
        return tree.map(lambda x, g: x + g, u, grad), s

    value = GradientTransformation(lambda p: (), by_value, needs=("value",))
    grad = GradientTransformation(lambda p: (), by_grad, needs=("grad",))
    one = torch.ones(())
    for tx in (chain(value, grad, identity()), named_chain(("v", value), ("g", grad))):
        assert tx.needs == {"value", "grad"}
        u, _ = tx.update(one, tx.init(one), one, value=3.0, grad=one)
        assert u == 4.0
        with pytest.raises(ValueError, match=r"^(named_)?chain: it needs grad= and did not get it; hint: "):
            tx.update(one, tx.init(one), one, value=3.0)


def test_a_chain_is_local_if_all_its_parts_are() -> None:
    assert chain(scale(2.0), scale_by_adam()).local
    assert not chain(scale(2.0), clip_by_global_norm(1.0)).local
    assert not named_chain(("a", scale(2.0)), ("b", clip_by_global_norm(1.0))).local


def test_a_missing_gradient_leaves_parameter_and_moments_as_they_are() -> None:
    tx, params, g = chain(scale_by_adam(), scale(-0.1)), {"a": torch.ones(2), "b": torch.ones(3)}, torch.ones(2)
    state = tx.init(params)
    u, new = tx.update({"a": g, "b": None}, state, params)
    assert u["b"] == ()
    assert new[0].mu["b"] is state[0].mu["b"]
    assert_bitwise(u["a"], tx.update({"a": g}, tx.init({"a": g}), {"a": g})[0]["a"])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: chain(identity(), 3.0),
            TypeError,
            "chain: argument 2 is a float, not a GradientTransformation; "
            "hint: GradientTransformation(init, update) makes one",
        ),
        (
            lambda: chain(identity),
            TypeError,
            "chain: argument 1 is a function, not a GradientTransformation; hint: call the factory, as in adamw(0.001)",
        ),
        (
            lambda: named_chain(("a", 3.0)),
            TypeError,
            "named_chain: 'a' is a float, not a GradientTransformation; "
            "hint: GradientTransformation(init, update) makes one",
        ),
        (
            lambda: named_chain(identity()),
            TypeError,
            "named_chain: argument 1 is not a pair; hint: ('adam', scale_by_adam())",
        ),
        (
            lambda: named_chain(("a", identity()), ("a", set_to_zero())),
            ValueError,
            "named_chain: two parts are called 'a'; hint: each needs a name of its own",
        ),
        (
            lambda: chain(identity()).update(torch.ones(1), ()),
            ValueError,
            "chain: it has 1 parts, and the state 0; hint: init makes the state",
        ),
    ],
)
def test_what_is_wrong_is_said(build, error, message) -> None:
    with pytest.raises(error) as caught:
        build()
    assert str(caught.value) == message
