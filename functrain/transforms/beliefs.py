"""Rules that divide the mean gradient by another measure of its size than Adam's.

Arguments that mean the same everywhere:
    b1, b2: β in [0, 1), memory of an average.
    eps: ε >= 0, in the unit of g.
    eps_root: ε' >= 0, in the unit of g², added under the root; it bounds derivatives through the update.
    mu_dtype: the dtype in which the mean is kept; None is the parameter's, but at least float32.
    nesterov: look one step ahead, μ̂ = β₁ μ / (1 - β₁ᵗ⁺¹) + (1 - β₁) g / (1 - β₁ᵗ).

Averages are kept in at least float32, updates have the dtype of the gradient. A complex entry counts by its absolute
value. Corrections are 1 - βᵗ as `counter.bias_correction` computes it, where Optax loses digits in float32.
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


class ScaleByBeliefState(NamedTuple):
    """The running mean of the gradient, and how far gradients are from it."""

    count: Tensor  # (), int32: updates so far
    mu: Tree  # like params: mean of g
    nu: Tree  # like params, real: mean of |g - μ|², and what ε' added


@rule
def scale_by_belief(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Divide the mean gradient by how far gradients are from their mean.

        μ ← β₁ μ + (1 - β₁) g                      μ̂ = μ / (1 - β₁ᵗ)
        ν ← β₂ ν + (1 - β₂) |g - μ|² + ε'          ν̂ = ν / (1 - β₂ᵗ)
        u = μ̂ / (√ν̂ + ε)

    Where gradients are as expected steps are long: under a constant gradient each update is longer than the one before,
    as long as ε and ε' count for nothing.

    Args:
        eps_root: ε' >= 0, in the unit of g²; it is added to ν at each update, and stays there.

    Reference:
        Zhuang et al., AdaBelief, 2020, algorithm 2. https://arxiv.org/abs/2010.07468
    """
    ranges.unit_interval("scale_by_belief", b1=b1, b2=b2)
    ranges.non_negative("scale_by_belief", eps=eps, eps_root=eps_root)

    def init(params: Tree) -> ScaleByBeliefState:
        return ScaleByBeliefState(first_count(params), tree.zeros_like(tree.upcast(params)), squares_like(params))

    def update(updates: Tree, state: ScaleByBeliefState, params: Tree | None = None) -> tuple[Tree, ScaleByBeliefState]:
        t = increment(state.count)
        g = tree.upcast(updates)
        mu = tree.pointwise(lambda m, g: b1 * m + (1 - b1) * g, state.mu, g)
        nu = tree.pointwise(lambda v, g, m: b2 * v + (1 - b2) * abs_sq(g - m) + eps_root, state.nu, g, mu)

        mean, c2 = corrected_mean(mu, g, b1, t, nesterov), counter.bias_correction(b2, t)
        u = tree.pointwise(lambda m, v: m / (root(v / c2) + eps), mean, nu)
        return tree.cast_like(u, updates), ScaleByBeliefState(
            t, tree.cast_like(mu, state.mu), tree.cast_like(nu, state.nu)
        )

    return GradientTransformation(init, update, local=True)


@rule
def scale_by_yogi(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    eps_root: Scalar = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
) -> GradientTransformation:
    """Divide the mean gradient by a root mean square that moves by steps of bounded size.

        μ ← β₁ μ + (1 - β₁) g                             μ̂ = μ / (1 - β₁ᵗ)
        ν ← ν - (1 - β₂) sign(ν - |g|²) |g|²              ν̂ = ν / (1 - β₂ᵗ)
        u = μ̂ / (√(ν̂ + ε') + ε)

    An update changes ν by (1 - β₂) |g|² at most, so small gradients after large ones make no step suddenly long.

    Args:
        initial_accumulator_value: ν before the first update, in the unit of g²; and μ, as in Optax.

    Reference:
        Zaheer et al., Adaptive methods for nonconvex optimization, 2018, algorithm 2, which has no corrections.
    """
    ranges.unit_interval("scale_by_yogi", b1=b1, b2=b2)
    ranges.non_negative(
        "scale_by_yogi", eps=eps, eps_root=eps_root, initial_accumulator_value=initial_accumulator_value
    )

    def init(params: Tree) -> ScaleByAdamState:
        mu = tree.pointwise(lambda z: z + initial_accumulator_value, tree.zeros_like(tree.upcast(params)))
        return ScaleByAdamState(first_count(params), mu, squares_like(params, initial_accumulator_value))

    def update(updates: Tree, state: ScaleByAdamState, params: Tree | None = None) -> tuple[Tree, ScaleByAdamState]:
        t = increment(state.count)
        g = tree.upcast(updates)
        mu = tree.pointwise(lambda m, g: b1 * m + (1 - b1) * g, state.mu, g)
        square = tree.pointwise(abs_sq, g)
        nu = tree.pointwise(lambda v, s: v - (1 - b2) * torch.sign(v - s) * s, state.nu, square)

        c1, c2 = counter.bias_correction(b1, t), counter.bias_correction(b2, t)
        u = tree.pointwise(lambda m, v: (m / c1) / (root(v / c2, eps_root) + eps), mu, nu)
        return tree.cast_like(u, updates), ScaleByAdamState(
            t, tree.cast_like(mu, state.mu), tree.cast_like(nu, state.nu)
        )

    return GradientTransformation(init, update, local=True)


class ScaleByAmsgradState(NamedTuple):
    """Running moments of the gradient, and the greatest mean square so far."""

    count: Tensor  # (), int32: updates so far
    mu: Tree  # like params: mean of g
    nu: Tree  # like params, real: mean of |g|²
    nu_max: Tree  # like params, real: the greatest ν̂ so far


@rule
def scale_by_amsgrad(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransformation:
    """Divide the mean gradient by the greatest root mean square that there has been.

        μ ← β₁ μ + (1 - β₁) g                 μ̂ = μ / (1 - β₁ᵗ)
        ν ← β₂ ν + (1 - β₂) |g|²              ν̂ = ν / (1 - β₂ᵗ)
        ν̌ ← max(ν̌, ν̂)
        u = μ̂ / (√(ν̌ + ε') + ε)

    What an entry is divided by never falls. PyTorch takes the maximum of ν, and corrects it afterwards.

    Args:
        bias_correction_mu: if False, μ̂ = μ.
        bias_correction_nu: if False, ν̂ = ν; without both it is the algorithm of the paper.

    Reference:
        Reddi et al., On the convergence of Adam and beyond, 2018, algorithm 2. https://arxiv.org/abs/1904.09237
    """
    ranges.unit_interval("scale_by_amsgrad", b1=b1, b2=b2)
    ranges.non_negative("scale_by_amsgrad", eps=eps, eps_root=eps_root)

    def init(params: Tree) -> ScaleByAmsgradState:
        mu = tree.zeros_like(tree.upcast(params), mu_dtype)
        return ScaleByAmsgradState(first_count(params), mu, squares_like(params), squares_like(params))

    def update(
        updates: Tree, state: ScaleByAmsgradState, params: Tree | None = None
    ) -> tuple[Tree, ScaleByAmsgradState]:
        t = increment(state.count)
        g = tree.upcast(updates)
        mu = tree.pointwise(lambda m, g: b1 * m + (1 - b1) * g, tree.upcast(state.mu), g)
        nu = tree.pointwise(lambda v, g: b2 * v + (1 - b2) * abs_sq(g), state.nu, g)

        c1 = counter.bias_correction(b1, t) if bias_correction_mu else 1.0
        c2 = counter.bias_correction(b2, t) if bias_correction_nu else 1.0
        nu_max = tree.pointwise(lambda top, v: torch.maximum(top, v / c2), state.nu_max, nu)
        u = tree.pointwise(lambda m, top: (m / c1) / (root(top, eps_root) + eps), mu, nu_max)
        return tree.cast_like(u, updates), ScaleByAmsgradState(
            t, tree.cast_like(mu, state.mu), tree.cast_like(nu, state.nu), tree.cast_like(nu_max, state.nu_max)
        )

    return GradientTransformation(init, update, local=True)


@rule
def scale_by_radam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam that waits for its mean square: until that is the mean of enough terms, nothing is divided by it.

        μ ← β₁ μ + (1 - β₁) g                 μ̂ = μ / (1 - β₁ᵗ)
        ν ← β₂ ν + (1 - β₂) |g|²              ν̂ = ν / (1 - β₂ᵗ)
        ρ∞ = 2 / (1 - β₂) - 1                 ρ = ρ∞ - 2 t β₂ᵗ / (1 - β₂ᵗ)
        r = √((ρ - 4) (ρ - 2) ρ∞ / ((ρ∞ - 4) (ρ∞ - 2) ρ))
        u = r μ̂ / (√(ν̂ + ε') + ε) where ρ >= threshold, else μ̂

    With β₂ = 0.999 the first five updates are the corrected mean itself, and r rises to 1.

    Args:
        threshold: of ρ, about the number of terms in ν; at least 4. The paper has ρ > 4, PyTorch ρ > 5.

    Reference:
        Liu et al., On the variance of the adaptive learning rate and beyond, 2020, algorithm 2.
        https://arxiv.org/abs/1908.03265
    """
    ranges.unit_interval("scale_by_radam", b1=b1, b2=b2)
    ranges.non_negative("scale_by_radam", eps=eps, eps_root=eps_root, threshold=threshold)
    last = 2 / (1 - b2) - 1

    def init(params: Tree) -> ScaleByAdamState:
        return ScaleByAdamState(first_count(params), tree.zeros_like(tree.upcast(params)), squares_like(params))

    def update(updates: Tree, state: ScaleByAdamState, params: Tree | None = None) -> tuple[Tree, ScaleByAdamState]:
        t = increment(state.count)
        g = tree.upcast(updates)
        mu = tree.pointwise(lambda m, g: b1 * m + (1 - b1) * g, state.mu, g)
        nu = tree.pointwise(lambda v, g: b2 * v + (1 - b2) * abs_sq(g), state.nu, g)

        mean, c2 = corrected_mean(mu, g, b1, t, nesterov), counter.bias_correction(b2, t)
        terms = last - 2 * t * (1 - c2) / c2
        enough = terms >= threshold
        ratio = (terms - 4) * (terms - 2) * last / ((last - 4) * (last - 2) * terms)
        r = torch.where(enough, ratio, 1.0).sqrt()  # what is not chosen may have no root

        u = tree.pointwise(lambda m, v: torch.where(enough, m * r / (root(v / c2, eps_root) + eps), m), mean, nu)
        return tree.cast_like(u, updates), ScaleByAdamState(
            t, tree.cast_like(mu, state.mu), tree.cast_like(nu, state.nu)
        )

    return GradientTransformation(init, update, local=True)


def corrected_mean(mu: Tree, g: Tree, b1: Scalar, t: Tensor, nesterov: bool) -> Tree:
    """μ̂ of t gradients, the last of which is g."""
    c = counter.bias_correction(b1, t)
    if not nesterov:
        return tree.pointwise(lambda m: m / c, mu)
    c_next = counter.bias_correction(b1, increment(t))
    return tree.pointwise(lambda m, g: b1 * (m / c_next) + (1 - b1) * (g / c), mu, g)
