"""Rules of torch.optim whose step is not one Optax has: dampened momentum, steps of their own size, averaged descent.

Averages are kept in at least float32, updates have the dtype of the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, apply_updates, rule
from functrain.counter import first_count, increment, wide
from functrain.schedules import Scalar
from functrain.transforms.squares import squares_like
from functrain.tree import Tree


class TorchTraceState(NamedTuple):
    """The decaying sum of past updates."""

    count: Tensor  # (), int32: updates so far
    trace: Tree  # like params: sum of β^age (1 - δ) g, the first g whole


@rule
def torch_trace(decay: Scalar, dampening: Scalar = 0.0, nesterov: bool = False) -> GradientTransformation:
    """Momentum in which new gradients are dampened: that of `torch.optim.SGD`.

        m ← β m + (1 - δ) g, at first m = g
        u = m, or with Nesterov g + β m

    The first gradient is not dampened. Without δ this is `trace`.

    Args:
        decay: β >= 0; below 1 the sum is bounded.
        dampening: δ, of any sign; β makes the sum a mean.
        nesterov: add the gradient once more, as if one step ahead.
    """
    ranges.non_negative("torch_trace", decay=decay)

    def init(params: Tree) -> TorchTraceState:
        return TorchTraceState(first_count(params), tree.zeros_like(tree.upcast(params)))

    def update(updates: Tree, state: TorchTraceState, params: Tree | None = None) -> tuple[Tree, TorchTraceState]:
        weight = 1 - (state.count > 0).to(wide(state.count.device)) * dampening
        g = tree.upcast(updates)
        m = tree.pointwise(lambda m, g: decay * m + g * weight, state.trace, g)
        u = tree.pointwise(lambda g, m: g + decay * m, g, m) if nesterov else m
        return tree.cast_like(u, updates), TorchTraceState(increment(state.count), tree.cast_like(m, state.trace))

    return GradientTransformation(init, update, local=True)


class ScaleByTorchRpropState(NamedTuple):
    """The last gradient, and how far each entry steps."""

    count: Tensor  # (), int32: updates so far
    prev: Tree  # like params: the last g, zero where it turned
    step_size: Tree  # like params, real: Δ, in the unit of the parameters


@rule
def scale_by_torch_rprop(
    learning_rate: Scalar = 1e-2,
    etas: tuple[Scalar, Scalar] = (0.5, 1.2),
    step_sizes: tuple[Scalar, Scalar] = (1e-6, 50.0),
) -> GradientTransformation:
    """Step by the sign of the gradient, in an entry's own step size: `torch.optim.Rprop`.

        Δ ← Δ η⁺ where g has the sign it had, Δ η⁻ where it turned, between Δ_min and Δ_max
        g ← 0 where it turned
        u = -sign(g) Δ

    While the sign of an entry stays, its step grows by η⁺; where it turns, the step shrinks by η⁻ and is not taken. No
    update depends on the scale of the gradient. A complex entry has turned if it is more than a right angle away.

    The update is to be added to the parameters as it is. torch.optim compares signs by a product of gradients, which
    may underflow; signs themselves are compared here.

    Args:
        learning_rate: Δ >= 0 before the first update, in the unit of the parameters.
        etas: (η⁻, η⁺), 0 < η⁻ < 1 < η⁺.
        step_sizes: (Δ_min, Δ_max) >= 0, in the unit of the parameters.

    Raises:
        ValueError: a number outside its range.

    Reference:
        Riedmiller & Braun, A direct adaptive method for faster backpropagation learning: the RPROP algorithm, 1993,
        without the way back where a sign turned.
    """
    where = "scale_by_torch_rprop"
    (minus, plus), (least, greatest) = etas, step_sizes
    ranges.non_negative(where, learning_rate=learning_rate)
    if not 0 < _number(minus, 0.5) < 1 < _number(plus, 2.0):
        raise ValueError(f"{where}: etas must be (η⁻, η⁺) with 0 < η⁻ < 1 < η⁺, got {etas}")
    if not min(_number(least, 0.0), _number(greatest, 0.0)) >= 0:
        raise ValueError(f"{where}: step_sizes must be (Δ_min, Δ_max) >= 0, got {step_sizes}")

    def init(params: Tree) -> ScaleByTorchRpropState:
        prev = tree.zeros_like(tree.upcast(params))
        return ScaleByTorchRpropState(first_count(params), prev, squares_like(params, learning_rate))

    def resized(d: Tensor, same: Tensor) -> Tensor:
        grown = torch.where(same > 0, d * plus, torch.where(same < 0, d * minus, d))
        return grown.clamp_min(least).clamp_max(greatest)

    def update(
        updates: Tree, state: ScaleByTorchRpropState, params: Tree | None = None
    ) -> tuple[Tree, ScaleByTorchRpropState]:
        g = tree.upcast(updates)
        same = tree.pointwise(alignment, g, state.prev)
        step_size = tree.pointwise(resized, state.step_size, same)
        g = tree.pointwise(lambda g, same: torch.where(same < 0, 0.0, g), g, same)
        u = tree.pointwise(lambda g, d: -torch.sgn(g) * d, g, step_size)
        return tree.cast_like(u, updates), ScaleByTorchRpropState(
            increment(state.count), tree.cast_like(g, state.prev), tree.cast_like(step_size, state.step_size)
        )

    return GradientTransformation(init, update, local=True)


def _number(x: Scalar, otherwise: float) -> float:
    """x if it is a Python number: a tensor may hold anything, and is not read."""
    return otherwise if isinstance(x, Tensor) else x


def alignment(g: Tensor, prev: Tensor) -> Tensor:
    """The cosine between corresponding entries: of real ones 1, -1, or 0 where one is zero."""
    if g.dtype.is_complex:
        return (torch.sgn(g) * torch.sgn(prev).conj()).real
    return torch.sgn(g) * torch.sgn(prev)


class ScaleByTorchAsgdState(NamedTuple):
    """The rates of the next update, and the averaged parameters."""

    count: Tensor  # (), int32: updates so far
    eta: Tensor  # (), default dtype: η of the next update
    mu: Tensor  # (), default dtype: weight of the next parameters in the average
    ax: Tree  # like params: average of the parameters


@rule
def scale_by_torch_asgd(
    learning_rate: Scalar = 1e-2, lambd: Scalar = 1e-4, alpha: Scalar = 0.75, t0: Scalar = 1e6
) -> GradientTransformation:
    """Descend at a falling rate, and average the parameters on the way: `torch.optim.ASGD`.

        u = -η λ p - η g
        a ← a + m (p + u - a)
        η ← γ / (1 + λ γ t)^α                 m ← 1 / max(1, t - t₀)

    At first η = γ and m = 1. Up to step t₀ + 2 the average a is the parameters themselves, later the mean of the
    parameters since. It is for whoever reads the state: updates do not depend on it. η and m are used one step after
    they are computed, and kept in PyTorch's default dtype, as torch.optim does it.

    The update is to be added to the parameters as it is.

    Args:
        learning_rate: γ >= 0, η of the first update.
        lambd: λ >= 0, weight decay, and how fast η falls.
        alpha: α, power of its fall.
        t0: t₀, updates before the averaging begins.

    Reference:
        Polyak & Juditsky, Acceleration of stochastic approximation by averaging, 1992.
        Xu, Towards optimal one pass large scale learning with averaged stochastic gradient descent, 2011, has this η.
        https://arxiv.org/abs/1107.2490
    """
    ranges.non_negative("scale_by_torch_asgd", learning_rate=learning_rate, lambd=lambd)

    def init(params: Tree) -> ScaleByTorchAsgdState:
        count = first_count(params)
        eta = torch.as_tensor(learning_rate, dtype=torch.get_default_dtype(), device=count.device)
        return ScaleByTorchAsgdState(count, eta.clone(), torch.ones_like(eta), tree.zeros_like(tree.upcast(params)))

    def update(updates: Tree, state: ScaleByTorchAsgdState, params: Tree) -> tuple[Tree, ScaleByTorchAsgdState]:
        t = increment(state.count)
        float_t = t.to(wide(t.device))
        eta, mu = state.eta.to(float_t.dtype), state.mu.to(float_t.dtype)
        keep = 1 - lambd * eta
        # Not -η (g + λ p): in float32 the rounding of 1 - η λ is the greater part of torch.optim's decay.
        u = tree.pointwise(lambda g, p: (p * keep - p) - g * eta, tree.upcast(updates), tree.upcast(params))
        u = tree.cast_like(u, updates)
        after = tree.upcast(apply_updates(params, u))
        ax = tree.pointwise(lambda a, p: (1 - mu) * a + mu * p, state.ax, after)

        rate_t = t.to(learning_rate.dtype) if isinstance(learning_rate, Tensor) else float_t  # as PyTorch rounds it
        next_eta = learning_rate / (1 + lambd * learning_rate * rate_t) ** alpha
        next_mu = 1 / (float_t - t0).clamp_min(1.0)
        return u, ScaleByTorchAsgdState(
            t, next_eta.to(state.eta.dtype), next_mu.to(state.mu.dtype), tree.cast_like(ax, state.ax)
        )

    return GradientTransformation(init, update, local=True)
