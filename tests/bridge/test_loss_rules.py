"""Rules that want to know the loss get it from the closure, here and elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import functrain as ft
from functrain import GradientTransformation, TorchOptimizer, tree
from tests.bridge.named import Named, assert_equal, drawn, give, history, leaves, values

SCALE = drawn(7)


def loss_of(params: Any) -> Tensor:
    """A bowl, a leaf with a steepness of its own."""
    return torch.stack([(SCALE[n].abs() * p * p).sum() for n, p in params.items()]).sum()


def gradient_of(params: Any) -> Named:
    return {n: 2 * SCALE[n].abs() * p for n, p in params.items()}


@ft.rule
def polyak(rate: float = 1.0) -> GradientTransformation:
    """Polyak's step to a loss of zero."""

    def update(updates: Any, state: Any, params: Any = None, *, value: Tensor, grad: Any) -> Any:
        size = value / tree.norm(grad).square()
        return tree.map(lambda g: -rate * size * g, updates), state

    return GradientTransformation(lambda params: (), update, needs={"value", "grad"})


class Tried(NamedTuple):
    """How far the last step went."""

    rate: Tensor


@ft.rule
def backtrack(first: float = 1.0) -> GradientTransformation:
    """Half the step as long as the loss is above Armijo's line."""

    def init(params: Any) -> Tried:
        return Tried(torch.tensor(first, dtype=torch.float64))

    def update(g: Any, state: Tried, params: Any, *, value: Tensor, value_fn: Callable[[Any], Tensor]) -> Any:
        rate, slope = first, tree.norm(g).square()
        while value_fn(tree.map(lambda p, x, r=rate: p - r * x, params, g)) > value - 0.5 * rate * slope:
            rate /= 2
        return tree.map(lambda x: -rate * x, g), Tried(torch.tensor(rate, dtype=torch.float64))

    return GradientTransformation(init, update, needs={"value", "value_fn"})


def closure_of(optimizer: TorchOptimizer, params: Named) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        return loss

    return closure


def pure_descent(tx: GradientTransformation, params: Any, number: int) -> Any:
    at: Any = values(params)
    state = tx.init(at)
    for _ in range(number):
        g = gradient_of(at)
        given = {"value": loss_of(at), "grad": g, "value_fn": loss_of}
        updates, state = tx.update(g, state, at, **given)
        at = ft.apply_updates(at, updates)
    return at


NEEDY = {
    "value, grad": lambda: polyak(0.5),
    "value_fn": backtrack,
    "differentiates value_fn": lambda: ft.torch_lbfgs(0.5, max_iter=2),
    "inside a chain": lambda: ft.chain(ft.trace(0.5), polyak(0.5)),
    "local inside": lambda: ft.chain(backtrack(), ft.scale(0.75)),
}


@pytest.mark.parametrize("make", NEEDY.values(), ids=NEEDY)
def test_value_grad_and_value_fn_come_from_the_closure(make: Callable[[], GradientTransformation]) -> None:
    params = leaves()
    expected = pure_descent(make(), params, 5)
    optimizer = TorchOptimizer(params.items(), make())
    losses = [optimizer.step(closure_of(optimizer, params)) for _ in range(5)]
    for name, p in params.items():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-14)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("make", [lambda: polyak(0.5), backtrack], ids=["value", "value_fn"])
def test_a_closure_may_return_a_number(make: Callable[[], GradientTransformation]) -> None:
    """It is worth what it was: a float is not rounded to float32."""
    params = leaves()
    expected = pure_descent(make(), params, 2)
    optimizer = TorchOptimizer(params.items(), make())
    inner = closure_of(optimizer, params)
    for _ in range(2):
        assert isinstance(optimizer.step(lambda: inner().item()), float)
    for name, p in params.items():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("make", "needs"), [(polyak, "grad, value"), (backtrack, "value, value_fn")])
def test_without_a_closure_it_says_what_is_missing(make: Callable[[], GradientTransformation], needs: str) -> None:
    params = leaves()
    optimizer = TorchOptimizer(params.items(), make())
    give(params, history(1)[0])
    with pytest.raises(ValueError, match=r"^TorchOptimizer: chain ") as caught:
        optimizer.step()
    assert str(caught.value) == (
        f"TorchOptimizer: chain needs {needs}, which come from a closure; "
        "hint: step(closure), where closure() computes the loss, calls backward and returns the loss"
    )
    assert_equal(values(params), values(leaves()))


class Elsewhere(Exception):
    """Raised by a closure where parameters are not where they were."""


@ft.rule
def asks(again: bool) -> GradientTransformation:
    """A rule that evaluates elsewhere, where the closure may raise, and does nothing."""

    def update(g: Any, state: Any, params: Any, *, value_fn: Callable[[Any], Tensor]) -> Any:
        try:
            asked.append(value_fn(tree.map(lambda p: p + 1, params)))
        except Elsewhere:
            if again:
                raise
        return tree.map(torch.zeros_like, g), state

    return GradientTransformation(lambda params: (), update, needs={"value_fn"})


asked: list[Tensor] = []


@pytest.mark.parametrize("fails", ["no", "caught", "raised"])
def test_value_fn_leaves_parameters_and_gradients_as_they_were(fails: str) -> None:
    params, before, seen = leaves(), values(leaves()), []
    optimizer = TorchOptimizer(params.items(), asks(fails == "raised"))
    given = {n: g for n, g in history(1)[0].items() if g is not None}
    params["scale"].grad = None

    def closure() -> Tensor:
        seen.append(values(params))
        assert torch.is_grad_enabled()
        if len(seen) == 1:
            for n, p in params.items():
                p.grad = None if n == "scale" else given[n]
        else:
            assert all(p.grad is None for p in params.values())
            loss_of(params).backward()
            if fails != "no":
                raise Elsewhere
        return loss_of(params)

    asked.clear()
    if fails == "raised":
        with pytest.raises(Elsewhere):
            optimizer.step(closure)
    else:
        optimizer.step(closure)
    assert_equal(seen[1], {n: p + 1 for n, p in before.items()})
    assert_equal(values(params), before)
    assert all(p.grad is (None if n == "scale" else given[n]) for n, p in params.items())
    assert_equal(given, {n: g for n, g in history(1)[0].items() if g is not None})
    if fails == "no":
        assert not asked[0].requires_grad
        torch.testing.assert_close(asked[0], loss_of({n: p + 1 for n, p in before.items()}))
