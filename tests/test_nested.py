"""Gradients through updates, and through gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import functrain as ft
from functrain import tree
from tests.networks import D


def nested(tx: ft.GradientTransformation, updates: int = 3) -> Callable[[Any, Any], Tensor]:
    """The loss on one batch after `updates` updates on another."""

    def inner(p: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (torch.tanh(x @ p["w"]) @ p["v"] - y).square().mean()

    def outer(p: dict[str, Tensor], batches: tuple[Any, Any]) -> Tensor:
        state = tx.init(p)
        for _ in range(updates):
            _, g = ft.value_and_grad(inner)(p, batches[0])
            u, state = tx.update(g, state, p)
            p = ft.apply_updates(p, u)
        return inner(p, batches[1])

    return outer


def differences(f: Callable[[Any], Tensor], p: dict[str, Tensor], h: float = 1e-6) -> dict[str, Tensor]:
    """Central finite differences."""
    out = {name: torch.zeros_like(x) for name, x in p.items()}
    for name, x in p.items():
        for i in range(x.numel()):
            e = torch.zeros_like(x)
            e.view(-1)[i] = h
            out[name].view(-1)[i] = (f({**p, name: x + e}) - f({**p, name: x - e})) / (2 * h)
    return out


def problem() -> tuple[dict[str, Tensor], tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=D)  # noqa: E731
    return {"w": draw(3, 2), "v": draw(2)}, ((draw(5, 3), draw(5)), (draw(5, 3), draw(5)))


@pytest.mark.parametrize("tx", [ft.adam(0.1), ft.adamw(0.1), ft.sgd(0.1, momentum=0.9)], ids=["adam", "adamw", "sgd"])
def test_a_gradient_through_three_updates_is_what_finite_differences_say(tx: ft.GradientTransformation) -> None:
    p, batches = problem()
    f = nested(tx)
    _, grads = ft.value_and_grad(f)(p, batches)
    expected = differences(lambda p: f(p, batches), p)
    for name in p:
        torch.testing.assert_close(grads[name], expected[name], rtol=1e-6, atol=1e-8)


def test_autograd_nested_in_autograd_would_be_silently_wrong() -> None:
    """The negative control of the choice of engines."""
    p, batches = problem()
    truth = ft.value_and_grad(nested(ft.adam(0.1)))(p, batches)[1]

    def outer(p: dict[str, Tensor]) -> Tensor:
        g = ft.value_and_grad(lambda p: (p["w"] ** 3).sum() + (p["v"] ** 3).sum(), engine="autograd")(p)[1]
        return sum((x - 0.1 * y).square().sum() for x, y in zip(p.values(), g.values(), strict=True))

    right = lambda p: sum((x - 0.3 * x**2).square().sum() for x in p.values())  # noqa: E731
    wrong, correct = ft.value_and_grad(outer)(p)[1], ft.value_and_grad(right)(p)[1]
    assert not torch.allclose(wrong["w"], correct["w"])
    assert torch.isfinite(truth["w"]).all()


def test_a_gradient_through_the_step_is_what_finite_differences_say() -> None:
    p, (first, second) = problem()

    def inner(p: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (torch.tanh(x @ p["w"]) @ p["v"] - y).square().mean()

    step = ft.train_step(inner, ft.adam(0.1), accumulate=2, max_grad_norm=0.5)
    blank = ft.TrainState.create(p, step.tx)

    def outer(p: dict[str, Tensor]) -> Tensor:
        state = blank._replace(params=p)
        for _ in range(3):
            state, _ = step(state, first)
        return inner(state.params, second)

    expected = differences(outer, p)
    for grads in (torch.func.grad(outer)(p), ft.value_and_grad(outer)(p)[1]):
        for name in p:
            torch.testing.assert_close(grads[name], expected[name], rtol=1e-6, atol=1e-8)


def test_plain_autograd_goes_through_the_step_too() -> None:
    p, (first, _) = problem()
    step = ft.train_step(lambda p, b: (b[0] @ p["w"]).square().mean() + p["v"].square().sum(), ft.sgd(0.1))
    blank = ft.TrainState.create(p, step.tx)
    outer = lambda p: tree.norm(step(blank._replace(params=p), first)[0].params)  # noqa: E731
    needy = tree.map(lambda x: x.clone().requires_grad_(), p)
    found = torch.autograd.grad(outer(needy), list(needy.values()))
    for g, expected in zip(found, torch.func.grad(outer)(p).values(), strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("tx", [ft.adam(0.1), ft.adamw(0.1), ft.rmsprop(0.1)], ids=["adam", "adamw", "rmsprop"])
def test_a_zero_second_moment_has_finite_second_derivatives(tx: ft.GradientTransformation) -> None:
    p = {"used": torch.tensor([1.0, 0.0], dtype=D), "idle": torch.zeros(2, dtype=D)}

    def outer(p: dict[str, Tensor]) -> Tensor:
        state = tx.init(p)
        for _ in range(2):
            _, g = ft.value_and_grad(lambda p: p["used"].square().sum() + 0 * p["idle"].sum())(p)
            u, state = tx.update(g, state, p)
            p = ft.apply_updates(p, u)
        return tree.norm(p)

    for grads in (ft.value_and_grad(outer)(p)[1], torch.func.grad(outer)(p)):
        assert all(torch.isfinite(g).all() for g in grads.values())
