"""Rules that divide by the size of recent gradients as torch.optim does it, where Optax does it otherwise.

Arguments that mean the same everywhere:
    b1, b2: β in [0, 1), memory of an average.
    eps: ε >= 0, in the unit of g, beside the root.

Averages are kept in at least float32, updates have the dtype of the gradient. A complex entry counts by its absolute
value, so mean squares are real; torch.optim takes it for two real numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, rule
from functrain.counter import bias_correction, first_count, increment, wide
from functrain.schedules import Scalar
from functrain.transforms.squares import abs_sq, root, squares_like
from functrain.tree import Tree


class ScaleByTorchAmsgradState(NamedTuple):
    """Running moments of the gradient, and the greatest there has been."""

    count: Tensor  # (), int32: updates so far
    mu: Tree  # like params: mean of g
    nu: Tree  # like params, real: mean of |g|²
    nu_max: Tree  # like params, real: the greatest ν so far


@rule
def scale_by_torch_amsgrad(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8) -> GradientTransformation:
    """Divide the mean gradient by the greatest root mean square so far: `torch.optim.Adam(amsgrad=True)`.

        μ ← β₁ μ + (1 - β₁) g                 μ̂ = μ / (1 - β₁ᵗ)
        ν ← β₂ ν + (1 - β₂) |g|²
        ν̄ ← max(ν̄, ν)                         ν̂ = ν̄ / (1 - β₂ᵗ)
        u = μ̂ / (√ν̂ + ε)

    ν̄ never falls: a large gradient is remembered for ever. It is the maximum of what is not yet corrected, where
    Optax's AMSGrad has the maximum of what is.

    Reference:
        Reddi et al., On the convergence of Adam and beyond, 2018, algorithm 2, with Adam's bias corrections.
        https://arxiv.org/abs/1904.09237
    """
    ranges.unit_interval("scale_by_torch_amsgrad", b1=b1, b2=b2)
    ranges.non_negative("scale_by_torch_amsgrad", eps=eps)

    def init(params: Tree) -> ScaleByTorchAmsgradState:
        mu = tree.zeros_like(tree.upcast(params))
        return ScaleByTorchAmsgradState(first_count(params), mu, squares_like(params), squares_like(params))

    def update(
        updates: Tree, state: ScaleByTorchAmsgradState, params: Tree | None = None
    ) -> tuple[Tree, ScaleByTorchAmsgradState]:
        t = increment(state.count)
        g = tree.upcast(updates)
        mu = tree.pointwise(lambda m, g: b1 * m + (1 - b1) * g, state.mu, g)
        nu = tree.pointwise(lambda v, g: b2 * v + (1 - b2) * abs_sq(g), state.nu, g)
        nu_max = tree.pointwise(torch.maximum, state.nu_max, tree.cast_like(nu, state.nu_max))

        c1, c2 = bias_correction(b1, t), bias_correction(b2, t)
        u = tree.pointwise(lambda m, v: (m / c1) / (root(v / c2) + eps), mu, nu_max)
        return tree.cast_like(u, updates), ScaleByTorchAmsgradState(
            t, tree.cast_like(mu, state.mu), tree.cast_like(nu, state.nu), nu_max
        )

    return GradientTransformation(init, update, local=True)


class ScaleByTorchNadamState(NamedTuple):
    """Running moments of the gradient, and what is left of where the mean began."""

    count: Tensor  # (), int32: updates so far
    mu_product: Tensor  # (), default dtype: product of all momenta so far
    mu: Tree  # like params: mean of g
    nu: Tree  # like params, real: mean of |g|²


@rule
def scale_by_torch_nadam(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, momentum_decay: Scalar = 4e-3
) -> GradientTransformation:
    """Divide a mean gradient that looks ahead by its root mean square: `torch.optim.NAdam`.

        m(t) = β₁ (1 - ½ 0.96^(t ψ))          Π ← Π m(t)
        μ ← β₁ μ + (1 - β₁) g
        ν ← β₂ ν + (1 - β₂) |g|²              ν̂ = ν / (1 - β₂ᵗ)
        μ̂ = m(t+1) μ / (1 - Π m(t+1)) + (1 - m(t)) g / (1 - Π)
        u = μ̂ / (√ν̂ + ε)

    The momentum m(t) grows from about β₁ / 2 to β₁. Π is kept in PyTorch's default dtype and rounded there at each
    step, as torch.optim does; the factors of μ and g are computed from it in the widest float.

    Args:
        momentum_decay: ψ >= 0, how fast the momentum grows.

    Reference:
        Dozat, Incorporating Nesterov momentum into Adam, 2016, algorithm 2, with ν corrected as in Adam.
        The schedule of momenta is that of Sutskever et al., 2013, as Dozat's section 3 simplifies it.
    """
    ranges.unit_interval("scale_by_torch_nadam", b1=b1, b2=b2)
    ranges.non_negative("scale_by_torch_nadam", eps=eps, momentum_decay=momentum_decay)

    def init(params: Tree) -> ScaleByTorchNadamState:
        count = first_count(params)
        product = torch.ones((), dtype=torch.get_default_dtype(), device=count.device)
        return ScaleByTorchNadamState(count, product, tree.zeros_like(tree.upcast(params)), squares_like(params))

    def momentum(t: Tensor) -> Tensor:
        return b1 * (1 - 0.5 * 0.96 ** (t.to(wide(t.device)) * momentum_decay))

    def update(
        updates: Tree, state: ScaleByTorchNadamState, params: Tree | None = None
    ) -> tuple[Tree, ScaleByTorchNadamState]:
        t = increment(state.count)
        now, ahead = momentum(t), momentum(increment(t))
        product = state.mu_product * now.to(state.mu_product.dtype)
        g = tree.upcast(updates)
        mu = tree.pointwise(lambda m, g: b1 * m + (1 - b1) * g, state.mu, g)
        nu = tree.pointwise(lambda v, g: b2 * v + (1 - b2) * abs_sq(g), state.nu, g)

        a, b = ahead / (1 - product.to(ahead.dtype) * ahead), (1 - now) / (1 - product.to(now.dtype))
        c2 = bias_correction(b2, t)
        u = tree.pointwise(lambda m, v, g: (a * m + b * g) / (root(v / c2) + eps), mu, nu, g)
        return tree.cast_like(u, updates), ScaleByTorchNadamState(
            t, product, tree.cast_like(mu, state.mu), tree.cast_like(nu, state.nu)
        )

    return GradientTransformation(init, update, local=True)


class ScaleByTorchRadamState(NamedTuple):
    """Running moments of the gradient."""

    count: Tensor  # (), int32: updates so far
    mu: Tree  # like params: mean of g
    nu: Tree  # like params, real: mean of |g|²


@rule
def scale_by_torch_radam(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8) -> GradientTransformation:
    """Divide the mean gradient by its root mean square once that can be trusted: `torch.optim.RAdam`.

        μ ← β₁ μ + (1 - β₁) g                 μ̂ = μ / (1 - β₁ᵗ)
        ν ← β₂ ν + (1 - β₂) |g|²
        ρ∞ = 2 / (1 - β₂) - 1                 ρ = ρ∞ - 2 t β₂ᵗ / (1 - β₂ᵗ)
        r = √((ρ - 4) (ρ - 2) ρ∞ / ((ρ∞ - 4) (ρ∞ - 2) ρ))
        u = r μ̂ √(1 - β₂ᵗ) / (√ν + ε) where ρ > 5, else μ̂

    ρ is about the number of gradients in ν. The first steps, five at the usual β₂, are plain momentum. In Optax's
    RAdam ε is added to √ν̂, and ρ = 5 suffices.

    Reference:
        Liu et al., On the variance of the adaptive learning rate and beyond, 2020, algorithm 2, with ρ > 5 for
        ρ > 4. https://arxiv.org/abs/1908.03265
    """
    ranges.unit_interval("scale_by_torch_radam", b1=b1, b2=b2)
    ranges.non_negative("scale_by_torch_radam", eps=eps)

    def init(params: Tree) -> ScaleByTorchRadamState:
        return ScaleByTorchRadamState(first_count(params), tree.zeros_like(tree.upcast(params)), squares_like(params))

    def update(
        updates: Tree, state: ScaleByTorchRadamState, params: Tree | None = None
    ) -> tuple[Tree, ScaleByTorchRadamState]:
        t = increment(state.count)
        g = tree.upcast(updates)
        mu = tree.pointwise(lambda m, g: b1 * m + (1 - b1) * g, state.mu, g)
        nu = tree.pointwise(lambda v, g: b2 * v + (1 - b2) * abs_sq(g), state.nu, g)

        c1, c2 = bias_correction(b1, t), bias_correction(b2, t)
        trusted, r = rectifier(b2, t, c2)
        factor = torch.where(trusted, r * c2.sqrt(), 1.0) / c1
        u = tree.pointwise(lambda m, v: m * factor / torch.where(trusted, root(v) + eps, 1.0), mu, nu)
        return tree.cast_like(u, updates), ScaleByTorchRadamState(
            t, tree.cast_like(mu, state.mu), tree.cast_like(nu, state.nu)
        )

    return GradientTransformation(init, update, local=True)


def rectifier(b2: Scalar, t: Tensor, c2: Tensor) -> tuple[Tensor, Tensor]:
    """Whether ρ > 5 at count t, and r of RAdam; r = 1 where ρ <= 5. `c2` is 1 - β₂ᵗ."""
    rho_inf = 2 / (1 - torch.as_tensor(b2, dtype=c2.dtype, device=c2.device)) - 1
    rho = rho_inf - 2 * (1 - c2) / c2 * t
    trusted = rho > 5
    # Elsewhere r would be a root of what is negative, or divide by zero, and derivatives in β₂ would be NaN.
    rho, rho_inf = (torch.where(trusted, x, 6.0) for x in (rho, rho_inf))
    return trusted, ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)).sqrt()


class ScaleByTorchAdagradState(NamedTuple):
    """The sum of all squared gradients."""

    count: Tensor  # (), int32: updates so far
    sum: Tree  # like params, real: sum of |g|²


@rule
def scale_by_torch_adagrad(
    lr_decay: Scalar = 0.0, initial_accumulator_value: Scalar = 0.0, eps: Scalar = 1e-10
) -> GradientTransformation:
    """Divide the gradient by the root of the sum of all squares: `torch.optim.Adagrad`.

        s ← s + |g|²
        u = g / (√s + ε) / (1 + (t - 1) κ)

    Under a constant gradient the update falls as 1 / √t. Where there has been no gradient, it is zero. Optax's Adagrad
    has ε under the root and begins at s = 0.1.

    Args:
        lr_decay: κ >= 0, how fast the rate falls.
        initial_accumulator_value: s before the first update, in the unit of g².

    Reference:
        Duchi et al., Adaptive subgradient methods for online learning and stochastic optimization, 2011, figure 1,
        with diagonal matrices. https://jmlr.org/papers/v12/duchi11a.html
    """
    where = "scale_by_torch_adagrad"
    ranges.non_negative(where, lr_decay=lr_decay, initial_accumulator_value=initial_accumulator_value, eps=eps)

    def init(params: Tree) -> ScaleByTorchAdagradState:
        return ScaleByTorchAdagradState(first_count(params), squares_like(params, initial_accumulator_value))

    def update(
        updates: Tree, state: ScaleByTorchAdagradState, params: Tree | None = None
    ) -> tuple[Tree, ScaleByTorchAdagradState]:
        slower = 1 + state.count.to(wide(state.count.device)) * lr_decay
        g = tree.upcast(updates)
        total = tree.pointwise(lambda s, g: s + abs_sq(g), state.sum, g)
        u = tree.pointwise(lambda g, s: g / (root(s) + eps) / slower, g, total)
        return tree.cast_like(u, updates), ScaleByTorchAdagradState(
            increment(state.count), tree.cast_like(total, state.sum)
        )

    return GradientTransformation(init, update, local=True)
