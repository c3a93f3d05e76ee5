"""Rules that remember more of the past than two moments: its greatest gradient, its sum, its steps, its last gradient.

Arguments that mean the same everywhere:
    b1, b2, b3, rho: β or ρ in [0, 1), memory of an average.
    eps: ε >= 0, in the unit of g.
    eps_root: ε' >= 0, in the unit of g², added under the root.

What is remembered is kept in at least float32, updates have the dtype of the gradient. A complex entry counts by its
absolute value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from functrain import counter, ranges, tree
from functrain.base import GradientTransformation, rule
from functrain.counter import first_count, increment
from functrain.schedules import Scalar
from functrain.transforms.adaptive import ScaleByAdamState
from functrain.transforms.squares import abs_sq, root, squares_like
from functrain.tree import Tree


@rule
def scale_by_adamax(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8) -> GradientTransformation:
    """Divide the mean gradient by the greatest gradient, the older ones counting less.

        μ ← β₁ μ + (1 - β₁) g                 μ̂ = μ / (1 - β₁ᵗ)
        ν ← max(β₂ ν, |g| + ε)
        u = μ̂ / ν

    With β₁ = 0 no entry of the update is beyond ±1.

    Reference:
        Kingma & Ba, Adam, 2015, algorithm 2, which has no ε. https://arxiv.org/abs/1412.6980
    """
    ranges.unit_interval("scale_by_adamax", b1=b1, b2=b2)
    ranges.non_negative("scale_by_adamax", eps=eps)

    def init(params: Tree) -> ScaleByAdamState:
        return ScaleByAdamState(first_count(params), tree.zeros_like(tree.upcast(params)), squares_like(params))

    def update(updates: Tree, state: ScaleByAdamState, params: Tree | None = None) -> tuple[Tree, ScaleByAdamState]:
        t = increment(state.count)
        g = tree.upcast(updates)
        mu = tree.pointwise(lambda m, g: b1 * m + (1 - b1) * g, state.mu, g)
        nu = tree.pointwise(lambda v, g: torch.maximum(b2 * v, g.abs() + eps), state.nu, g)

        c = counter.bias_correction(b1, t)
        u = tree.pointwise(lambda m, v: (m / c) / v.clamp_min(torch.finfo(v.dtype).tiny), mu, nu)
        return tree.cast_like(u, updates), ScaleByAdamState(
            t, tree.cast_like(mu, state.mu), tree.cast_like(nu, state.nu)
        )

    return GradientTransformation(init, update, local=True)


class ScaleByRssState(NamedTuple):
    """The sum of all squares."""

    sum_of_squares: Tree  # like params, real: initial value, and every |g|² since


@rule
def scale_by_rss(initial_accumulator_value: Scalar = 0.1, eps: Scalar = 1e-7) -> GradientTransformation:
    """Divide the gradient by the root of the sum of all squares so far.

        s ← s + |g|²
        u = g / √(s + ε)

    Under a constant gradient, from s = 0, the update falls as 1 / √t.

    Args:
        initial_accumulator_value: s before the first update, in the unit of g².
        eps: ε >= 0, in the unit of g².

    Reference:
        Duchi et al., Adaptive subgradient methods, 2011, figure 1, with diagonal matrices.
    """
    ranges.non_negative("scale_by_rss", initial_accumulator_value=initial_accumulator_value, eps=eps)

    def init(params: Tree) -> ScaleByRssState:
        return ScaleByRssState(squares_like(params, initial_accumulator_value))

    def update(updates: Tree, state: ScaleByRssState, params: Tree | None = None) -> tuple[Tree, ScaleByRssState]:
        g = tree.upcast(updates)
        s = tree.pointwise(lambda s, g: s + abs_sq(g), state.sum_of_squares, g)
        u = tree.pointwise(lambda g, s: g / root(s, eps), g, s)
        return tree.cast_like(u, updates), ScaleByRssState(tree.cast_like(s, state.sum_of_squares))

    return GradientTransformation(init, update, local=True)


class ScaleByAdaDeltaState(NamedTuple):
    """Running mean squares of gradients and of updates."""

    e_g: Tree  # like params, real: mean of |g|²
    e_x: Tree  # like params, real: mean of |u|²


@rule
def scale_by_adadelta(rho: Scalar = 0.9, eps: Scalar = 1e-6) -> GradientTransformation:
    """Make steps of the size of recent steps, by gradients in the unit of recent gradients.

        G ← ρ G + (1 - ρ) |g|²
        u = √(X + ε) g / √(G + ε)
        X ← ρ X + (1 - ρ) |u|²

    The first update is nearly ±√(ε / (1 - ρ)) in every entry, whatever the scale of g.

    Args:
        eps: ε > 0, in the unit of g² and of u².

    Reference:
        Zeiler, Adadelta, 2012, algorithm 1. https://arxiv.org/abs/1212.5701
    """
    ranges.unit_interval("scale_by_adadelta", rho=rho)
    ranges.positive("scale_by_adadelta", eps=eps)

    def init(params: Tree) -> ScaleByAdaDeltaState:
        return ScaleByAdaDeltaState(squares_like(params), squares_like(params))

    def update(
        updates: Tree, state: ScaleByAdaDeltaState, params: Tree | None = None
    ) -> tuple[Tree, ScaleByAdaDeltaState]:
        g = tree.upcast(updates)
        e_g = tree.pointwise(lambda e, g: rho * e + (1 - rho) * abs_sq(g), state.e_g, g)
        u = tree.pointwise(lambda g, e_g, e_x: g * (root(e_x, eps) / root(e_g, eps)), g, e_g, state.e_x)
        e_x = tree.pointwise(lambda e, u: rho * e + (1 - rho) * abs_sq(u), state.e_x, u)
        return tree.cast_like(u, updates), ScaleByAdaDeltaState(
            tree.cast_like(e_g, state.e_g), tree.cast_like(e_x, state.e_x)
        )

    return GradientTransformation(init, update, local=True)


class ScaleByAdanState(NamedTuple):
    """Running moments of the gradient and of its changes."""

    m: Tree  # like params: mean of g
    v: Tree  # like params: mean of g - g'
    n: Tree  # like params, real: mean of |g + (1 - β₂) (g - g')|²
    g: Tree  # like params: g', the gradient of the last update
    t: Tensor  # (), int32: updates so far


@rule
def scale_by_adan(
    b1: Scalar = 0.98, b2: Scalar = 0.92, b3: Scalar = 0.99, eps: Scalar = 1e-8, eps_root: Scalar = 0.0
) -> GradientTransformation:
    """Divide the mean gradient, led by its mean change, by its root mean square.

        d = g - g', zero at t = 1             g' the gradient before
        m ← β₁ m + (1 - β₁) g                 m̂ = m / (1 - β₁ᵗ)
        v ← β₂ v + (1 - β₂) d                 v̂ = v / (1 - β₂ᵗ)
        n ← β₃ n + (1 - β₃) |g + (1 - β₂) d|²         n̂ = n / (1 - β₃ᵗ)
        u = (m̂ + (1 - β₂) v̂) / (√(n̂ + ε') + ε)

    Under a constant gradient nothing changes, and it is Adam.

    The changes weigh 1 - β₂ here, as in Optax. In the paper, whose β is 1 - β here, that factor is β₂: 0.92 instead of
    0.08 by default.

    Args:
        b1, b2, b3: β in [0, 1), memory of gradients, of their changes and of squares.

    Reference:
        Xie et al., Adan, 2022, algorithm 1. https://arxiv.org/abs/2208.06677
    """
    ranges.unit_interval("scale_by_adan", b1=b1, b2=b2, b3=b3)
    ranges.non_negative("scale_by_adan", eps=eps, eps_root=eps_root)

    def init(params: Tree) -> ScaleByAdanState:
        zeros = [tree.zeros_like(tree.upcast(params)) for _ in range(3)]
        return ScaleByAdanState(zeros[0], zeros[1], squares_like(params), zeros[2], first_count(params))

    def update(updates: Tree, state: ScaleByAdanState, params: Tree | None = None) -> tuple[Tree, ScaleByAdanState]:
        first, t = state.t == 0, increment(state.t)
        g = tree.upcast(updates)
        d = tree.pointwise(lambda g, old: torch.where(first, 0.0, g - old), g, state.g)
        m = tree.pointwise(lambda m, g: b1 * m + (1 - b1) * g, state.m, g)
        v = tree.pointwise(lambda v, d: b2 * v + (1 - b2) * d, state.v, d)
        n = tree.pointwise(lambda n, g, d: b3 * n + (1 - b3) * abs_sq(g + (1 - b2) * d), state.n, g, d)

        c1, c2, c3 = (counter.bias_correction(b, t) for b in (b1, b2, b3))
        u = tree.pointwise(lambda m, v, n: (m / c1 + (1 - b2) * (v / c2)) / (root(n / c3, eps_root) + eps), m, v, n)
        new = ScaleByAdanState(m, v, n, g, t)
        return tree.cast_like(u, updates), tree.cast_like(new, state)

    return GradientTransformation(init, update, local=True)
