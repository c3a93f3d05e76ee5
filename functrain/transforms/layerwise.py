"""Rules that look at a leaf as a whole: at its norm, or its root mean square.

    ‖x‖ = √(sum of |xᵢ|²)                     rms(x) = ‖x‖ / √n

Norms are taken in at least float32, and what is made of them in the device's widest float, so that a factor is rounded
once. A norm of zero divides nothing, and its derivative is zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, rule
from functrain.counter import first_count, increment, wide
from functrain.schedules import Scalar
from functrain.transforms.squares import abs_sq, root
from functrain.tree import Tree


@rule
def scale_by_trust_ratio(
    min_norm: Scalar = 0.0, trust_coefficient: Scalar = 1.0, eps: Scalar = 0.0
) -> GradientTransformation:
    """Give the update of every leaf the norm of the leaf itself, times a coefficient.

        u = c ‖p‖ g / (‖g‖ + ε)

    A leaf of zeros, or one whose update is zero, keeps its update: where a norm is zero, u = g.

    Args:
        min_norm: >= 0, what smaller norms, of p and of g, are counted as.
        trust_coefficient: c >= 0.
        eps: ε >= 0, in the unit of g.

    Reference:
        You et al., Large batch training of convolutional networks, 2017, equation 6. https://arxiv.org/abs/1708.03888
    """
    ranges.non_negative("scale_by_trust_ratio", min_norm=min_norm, trust_coefficient=trust_coefficient, eps=eps)

    def scaled(g: Tensor, p: Tensor) -> Tensor:
        size, step = norm(p).clamp(min=min_norm), norm(g).clamp(min=min_norm)
        none = (size == 0) | (step == 0)
        direction = g / torch.where(none, 1.0, step + eps)  # first, so that nothing between overflows
        return torch.where(none, g, direction * (trust_coefficient * size))

    def update(updates: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return tree.cast_like(tree.map(scaled, tree.upcast(updates), params), updates), state

    return GradientTransformation(lambda params: (), update, local=True)


@rule
def scale_by_param_block_rms(min_scale: Scalar = 1e-3) -> GradientTransformation:
    """Multiply the update of every leaf by the root mean square of the leaf.

        u = g max(rms(p), s)

    An update that has no unit becomes one in the unit of its parameter.

    Args:
        min_scale: s >= 0, so that a leaf of zeros can leave zero.

    Reference:
        Shazeer & Stern, Adafactor, 2018, section 8. https://arxiv.org/abs/1804.04235
    """
    ranges.non_negative("scale_by_param_block_rms", min_scale=min_scale)

    def scaled(g: Tensor, p: Tensor) -> Tensor:
        return g * rms(p).clamp(min=min_scale)

    def update(updates: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return tree.cast_like(tree.map(scaled, tree.upcast(updates), params), updates), state

    return GradientTransformation(lambda params: (), update, local=True)


class ScaleByNovogradState(NamedTuple):
    """Moments of the gradient: a mean an entry, a mean square a leaf."""

    count: Tensor  # (), int32: updates so far
    mu: Tree  # like params: the decaying sum of normalized gradients
    nu: Tree  # a () for each leaf, real: mean of ‖g‖²


@rule
def scale_by_novograd(
    b1: Scalar = 0.9,
    b2: Scalar = 0.25,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Divide the gradient of every leaf by its norm, as it was of late; then gather momentum.

        ν ← ‖g‖² at t = 1, then β₂ ν + (1 - β₂) ‖g‖²
        μ ← β₁ μ + g / (√(ν + ε') + ε) + λ p
        u = μ

    With ε = ε' = 0 a factor that all gradients of a leaf have in common changes nothing.

    Args:
        b1: β₁ in [0, 1), memory of the sum.
        b2: β₂ in [0, 1), memory of the mean square.
        eps: ε >= 0, in the unit of g.
        eps_root: ε' >= 0, in the unit of g², added under the root.
        weight_decay: λ >= 0. It goes through the momentum.
        mu_dtype: the dtype of μ; None is the parameter's, but at least float32.

    Reference:
        Ginsburg et al., Stochastic gradient methods with layer-wise adaptive moments, 2019, algorithm 1.
        https://arxiv.org/abs/1905.11286
    """
    ranges.unit_interval("scale_by_novograd", b1=b1, b2=b2)
    ranges.non_negative("scale_by_novograd", eps=eps, eps_root=eps_root, weight_decay=weight_decay)

    def init(params: Tree) -> ScaleByNovogradState:
        zeros = tree.zeros_like(tree.upcast(params))
        mu = tree.zeros_like(zeros, mu_dtype)
        return ScaleByNovogradState(first_count(params), mu, tree.map(square_of_norm, zeros))

    def update(updates: Tree, state: ScaleByNovogradState, params: Tree) -> tuple[Tree, ScaleByNovogradState]:
        first = state.count == 0
        g = tree.upcast(updates)
        square = tree.map(square_of_norm, g)
        nu = tree.pointwise(lambda n, s: torch.where(first, s, b2 * n + (1 - b2) * s), state.nu, square)

        unit = tree.map(lambda g, n: g / (root(n, eps_root) + eps), g, nu)
        p, m = tree.upcast(params), tree.upcast(state.mu)
        mu = tree.pointwise(lambda m, d, p: b1 * m + d + weight_decay * p, m, unit, p)
        return tree.cast_like(mu, updates), ScaleByNovogradState(
            increment(state.count), tree.cast_like(mu, state.mu), tree.cast_like(nu, state.nu)
        )

    return GradientTransformation(init, update, local=True)


# --- functions of one leaf


def norm(x: Tensor) -> Tensor:
    """‖x‖ in the widest float of its device."""
    size = tree.norm(x)
    return size.to(wide(size.device))


def rms(x: Tensor) -> Tensor:
    """√(mean of |xᵢ|²) in the widest float of its device; zero for a leaf without entries."""
    return norm(x) / math.sqrt(max(x.numel(), 1))


def square_of_norm(x: Tensor) -> Tensor:
    """‖x‖², with a derivative that is finite at zero."""
    return abs_sq(x).sum()
