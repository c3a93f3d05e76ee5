"""Rules that divide by the size of recent gradients, entry by entry.

Arguments that mean the same everywhere:
    b1, b2, decay: β in [0, 1), memory of an average.
    eps: ε >= 0, in the unit of g, so that nothing is divided by zero.
    eps_root: ε' >= 0, in the unit of g², added under the root; it bounds derivatives through the update.
    mu_dtype: the dtype in which the mean is kept; None is the parameter's, but at least float32.

Averages are kept in at least float32, updates have the dtype of the gradient. A complex entry counts by its absolute
value, so mean squares are real.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from functrain import counter, ranges, tree
from functrain.base import GradientTransformation, rule, stateless
from functrain.counter import first_count, increment
from functrain.schedules import Scalar
from functrain.transforms.squares import abs_sq, root, squares_like
from functrain.tree import Tree


class ScaleByAdamState(NamedTuple):
    """Running moments of the gradient."""

    count: Tensor  # (), int32: updates so far
    mu: Tree  # like params: mean of g
    nu: Tree  # like params, real: mean of |g|²


@rule
def scale_by_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Divide the mean gradient by its root mean square.

        μ ← β₁ μ + (1 - β₁) g                 μ̂ = μ / (1 - β₁ᵗ)
        ν ← β₂ ν + (1 - β₂) |g|²              ν̂ = ν / (1 - β₂ᵗ)
        u = μ̂ / (√(ν̂ + ε') + ε)

    The update has no unit and entries of order one, whatever the scale of g. Derivatives through it are finite, also
    where no gradient has ever been.

    Args:
        nesterov: look one step ahead, μ̂ = β₁ μ / (1 - β₁ᵗ⁺¹) + (1 - β₁) g / (1 - β₁ᵗ).

    Reference:
        Kingma & Ba, Adam, 2015, algorithm 1. https://arxiv.org/abs/1412.6980
        Dozat, Incorporating Nesterov momentum into Adam, 2016, algorithm 2, without its factor β₂ in ν̂.
    """
    ranges.unit_interval("scale_by_adam", b1=b1, b2=b2)
    ranges.non_negative("scale_by_adam", eps=eps, eps_root=eps_root)

    def init(params: Tree) -> ScaleByAdamState:
        return ScaleByAdamState(
            first_count(params), tree.zeros_like(tree.upcast(params), mu_dtype), squares_like(params)
        )

    def update(updates: Tree, state: ScaleByAdamState, params: Tree | None = None) -> tuple[Tree, ScaleByAdamState]:
        t = increment(state.count)
        g = tree.upcast(updates)
        mu = tree.pointwise(lambda m, g: b1 * m + (1 - b1) * g, tree.upcast(state.mu), g)
        nu = tree.pointwise(lambda v, g: b2 * v + (1 - b2) * abs_sq(g), state.nu, g)

        c1, c2 = counter.bias_correction(b1, t), counter.bias_correction(b2, t)
        c1_next = counter.bias_correction(b1, increment(t)) if nesterov else c1

        def mean(m: Tensor, g: Tensor) -> Tensor:
            return b1 * (m / c1_next) + (1 - b1) * (g / c1) if nesterov else m / c1

        u = tree.pointwise(lambda m, v, g: mean(m, g) / (root(v / c2, eps_root) + eps), mu, nu, g)
        return tree.cast_like(u, updates), ScaleByAdamState(
            t, tree.cast_like(mu, state.mu), tree.cast_like(nu, state.nu)
        )

    return GradientTransformation(init, update, local=True)


class ScaleByRmsState(NamedTuple):
    """The running mean square of the gradient."""

    count: Tensor  # (), int32: updates so far
    nu: Tree  # like params, real: mean of |g|²


@rule
def scale_by_rms(
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    """Divide the gradient by its root mean square.

        ν ← β ν + (1 - β) |g|²
        u = g / √(ν + ε), or g / (√ν + ε)

    With `eps_in_sqrt=False, bias_correction=True` this is `scale_by_adam(b1=0)` without a place for the mean.

    Args:
        eps: ε; in the unit of g² where it is under the root.
        initial_scale: ν before the first update.
        eps_in_sqrt: ε under the root, or beside it.
        bias_correction: divide ν by 1 - βᵗ.

    Reference:
        Hinton, Neural Networks for Machine Learning, lecture 6, 2012.
    """
    ranges.unit_interval("scale_by_rms", decay=decay)
    ranges.non_negative("scale_by_rms", eps=eps, initial_scale=initial_scale)
    inside, outside = (eps, 0.0) if eps_in_sqrt else (0.0, eps)

    def init(params: Tree) -> ScaleByRmsState:
        return ScaleByRmsState(first_count(params), squares_like(params, initial_scale))

    def update(updates: Tree, state: ScaleByRmsState, params: Tree | None = None) -> tuple[Tree, ScaleByRmsState]:
        t = increment(state.count)
        g = tree.upcast(updates)
        nu = tree.pointwise(lambda v, g: decay * v + (1 - decay) * abs_sq(g), state.nu, g)

        c = counter.bias_correction(decay, t) if bias_correction else 1.0
        u = tree.pointwise(lambda g, v: g / (root(v / c, inside) + outside), g, nu)
        return tree.cast_like(u, updates), ScaleByRmsState(t, tree.cast_like(nu, state.nu))

    return GradientTransformation(init, update, local=True)


class ScaleByStddevState(NamedTuple):
    """Running moments of the gradient."""

    count: Tensor  # (), int32: updates so far
    mu: Tree  # like params: mean of g
    nu: Tree  # like params, real: mean of |g|²


@rule
def scale_by_stddev(
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    """Divide the gradient by its standard deviation.

        μ ← β μ + (1 - β) g
        ν ← β ν + (1 - β) |g|²
        u = g / √(ν - |μ|² + ε), or g / (√(ν - |μ|²) + ε)

    A variance that rounding makes negative is zero.

    Args:
        eps: ε; in the unit of g² where it is under the root.
        initial_scale: ν before the first update.
        eps_in_sqrt: ε under the root, or beside it.
        bias_correction: divide μ and ν by 1 - βᵗ.

    Reference:
        Graves, Generating sequences with recurrent neural networks, 2013, equations 38-45, without its momentum.
        https://arxiv.org/abs/1308.0850
    """
    ranges.unit_interval("scale_by_stddev", decay=decay)
    ranges.non_negative("scale_by_stddev", eps=eps, initial_scale=initial_scale)
    inside, outside = (eps, 0.0) if eps_in_sqrt else (0.0, eps)

    def init(params: Tree) -> ScaleByStddevState:
        return ScaleByStddevState(
            first_count(params), tree.zeros_like(tree.upcast(params)), squares_like(params, initial_scale)
        )

    def update(updates: Tree, state: ScaleByStddevState, params: Tree | None = None) -> tuple[Tree, ScaleByStddevState]:
        t = increment(state.count)
        g = tree.upcast(updates)
        mu = tree.pointwise(lambda m, g: decay * m + (1 - decay) * g, state.mu, g)
        nu = tree.pointwise(lambda v, g: decay * v + (1 - decay) * abs_sq(g), state.nu, g)

        c = counter.bias_correction(decay, t) if bias_correction else 1.0
        variance = tree.pointwise(lambda m, v: (v / c - abs_sq(m / c)).clamp_min(0.0), mu, nu)
        u = tree.pointwise(lambda g, s: g / (root(s, inside) + outside), g, variance)
        return tree.cast_like(u, updates), ScaleByStddevState(
            t, tree.cast_like(mu, state.mu), tree.cast_like(nu, state.nu)
        )

    return GradientTransformation(init, update, local=True)


@rule
def scale_by_sign() -> GradientTransformation:
    """Replace each entry by its sign; a complex one z by z / |z|."""
    return stateless(lambda updates, params: tree.pointwise(torch.sgn, updates), local=True)


class ScaleByLionState(NamedTuple):
    """The running mean of the gradient."""

    mu: Tree  # like params: mean of g


@rule
def scale_by_lion(
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mu_dtype: torch.dtype | None = None,
    *,
    mode: Literal["hard", "smooth", "refined"] = "hard",
    smooth_beta: Scalar = 1.0,
) -> GradientTransformation:
    """The sign of a mean gradient that leans on the newest.

        u = sign(β₁ μ + (1 - β₁) g)
        μ ← β₂ μ + (1 - β₂) g

    Every entry of the update is -1, 0 or 1.

    Args:
        mode: another sign of x: "smooth" is tanh(k x), "refined" is x held between -1 and 1.
        smooth_beta: k of "smooth".

    Reference:
        Chen et al., Symbolic discovery of optimization algorithms, 2023, program 1. https://arxiv.org/abs/2302.06675
    """
    ranges.unit_interval("scale_by_lion", b1=b1, b2=b2)
    signs: dict[str, Callable[[Tensor], Tensor]] = {
        "hard": torch.sgn,
        "smooth": lambda x: torch.tanh(smooth_beta * x),
        "refined": lambda x: torch.where(x.abs() < 1, x, torch.sgn(x)),
    }
    if mode not in signs:
        raise ValueError(f"scale_by_lion: mode must be 'hard', 'smooth' or 'refined', got {mode!r}")
    sign = signs[mode]

    def init(params: Tree) -> ScaleByLionState:
        return ScaleByLionState(tree.zeros_like(tree.upcast(params), mu_dtype))

    def update(updates: Tree, state: ScaleByLionState, params: Tree | None = None) -> tuple[Tree, ScaleByLionState]:
        g = tree.upcast(updates)
        m = tree.upcast(state.mu)
        u = tree.pointwise(lambda m, g: sign(b1 * m + (1 - b1) * g), m, g)
        mu = tree.pointwise(lambda m, g: b2 * m + (1 - b2) * g, m, g)
        return tree.cast_like(u, updates), ScaleByLionState(tree.cast_like(mu, state.mu))

    return GradientTransformation(init, update, local=True)
