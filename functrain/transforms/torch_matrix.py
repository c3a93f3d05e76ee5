"""Rules of torch.optim that look at a leaf as a matrix: Adafactor and Muon, as PyTorch computes them.

Both treat each leaf alone, and the entries of a leaf together. Averages are kept in at least float32, updates have the
dtype of the gradient. Complex leaves are refused, as PyTorch refuses them.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, rule
from functrain.counter import first_count, increment, wide
from functrain.holes import fill, punch
from functrain.schedules import Scalar
from functrain.tree import Tree


class ScaleByTorchAdafactorState(NamedTuple):
    """Mean squares of the gradient: of rows and columns where a leaf has them, else of entries."""

    count: Tensor  # (), int32: updates so far
    row_var: Tree  # like params, (..., m, 1): mean of g² over each row; holes for leaves of less than two dimensions
    col_var: Tree  # like params, (..., 1, n): mean of g² over each column; holes for the same leaves
    variance: Tree  # like params: mean of g²; holes for the other leaves


@rule
def scale_by_torch_adafactor(
    learning_rate: Scalar = 1e-2,
    beta2_decay: Scalar = -0.8,
    eps: tuple[Scalar | None, Scalar] = (None, 1e-3),
    d: Scalar = 1.0,
) -> GradientTransformation:
    """The step of torch.optim.Adafactor, without its weight decay.

        β = 1 - t^τ        ρ = min(η, 1/√t)        α = max(ε₂, rms(p)) ρ
        R ← β R + (1 - β) mean of g² over rows             V = R C / max(mean R, ε₁)
        C ← β C + (1 - β) mean of g² over columns
        V ← β V + (1 - β) g², for a leaf without rows
        û = g / √max(V, ε₁²)
        u = -α û / max(1, rms(û) / d)

    The update is the step itself, to be added: no learning rate comes after it. The first gradient is taken whole, as
    β is 0 at t = 1. The last two dimensions of a leaf are its rows and columns, those before them a stack of matrices.
    PyTorch takes α from the parameters before they decay: so does a `-η λ p` that is added behind this rule.

    Args:
        learning_rate: η >= 0, the largest relative step ρ.
        beta2_decay: τ <= 0, how fast the memory lengthens.
        eps: ε₁ >= 0, in the unit of g, and ε₂ >= 0, in the unit of p, the rms of a parameter that is still zero. None
            for ε₁ is the machine epsilon of each leaf's dtype; PyTorch takes the first one's for all of a group.
        d: d >= 1, the largest rms of û.

    Raises:
        ValueError: a complex leaf; the message names it.

    Reference:
        Shazeer & Stern, Adafactor: adaptive learning rates with sublinear memory cost, 2018, algorithms 4 and 5; ε₁ is
        not added to g² but bounds what is divided by. https://arxiv.org/abs/1804.04235
    """
    where = "scale_by_torch_adafactor"
    ranges.non_negative(where, learning_rate=learning_rate, eps1=eps[0], eps2=eps[1])
    if isinstance(beta2_decay, int | float) and not beta2_decay <= 0:
        raise ValueError(f"{where}: beta2_decay must be <= 0, got {beta2_decay}")
    if isinstance(d, int | float) and not d >= 1:
        raise ValueError(f"{where}: d must be >= 1, got {d}")

    def init(params: Tree) -> ScaleByTorchAdafactorState:
        _check_real(where, params)
        like = tree.upcast(params)
        matrices = _matrices(like)
        return ScaleByTorchAdafactorState(
            first_count(params),
            tree.map(lambda p: p.new_zeros((*p.shape[:-1], 1)), matrices),
            tree.map(lambda p: p.new_zeros((*p.shape[:-2], 1, p.shape[-1])), matrices),
            tree.zeros_like(_vectors(like)),
        )

    def update(
        updates: Tree, state: ScaleByTorchAdafactorState, params: Tree
    ) -> tuple[Tree, ScaleByTorchAdafactorState]:
        count = increment(state.count)
        t = count.to(wide(count.device))
        rest = t**beta2_decay  # 1 - β
        rho = (t**-0.5).clamp(max=learning_rate)

        g = tree.upcast(updates)
        matrices, vectors = _matrices(g), _vectors(g)
        row_var, col_var, variance = (punch(v, updates) for v in state[1:])
        row_var = tree.map(lambda r, g: r + rest * (_mean_square(g, -1) - r), row_var, matrices)
        col_var = tree.map(lambda c, g: c + rest * (_mean_square(g, -2) - c), col_var, matrices)
        variance = tree.pointwise(lambda v, g: v + rest * (g * g - v), variance, vectors)

        eps1 = tree.map(lambda x: torch.finfo(x.dtype).eps if eps[0] is None else eps[0], updates)

        def product(r: Tensor, c: Tensor, e: Scalar) -> Tensor:
            return r @ c / r.mean(-2, keepdim=True).clamp(min=e)

        def step(g: Tensor, v: Tensor, e: Scalar, p: Tensor) -> Tensor:
            u = g * v.clamp(min=e * e).rsqrt()
            alpha = _rms(p).clamp(min=eps[1]) * rho
            return u * (-alpha / (_rms(u) / d).clamp(min=1))

        factored = tree.map(product, row_var, col_var, punch(eps1, matrices))
        u = tree.map(step, g, fill(factored, variance), eps1, tree.upcast(params))
        return tree.cast_like(u, updates), ScaleByTorchAdafactorState(count, row_var, col_var, variance)

    return GradientTransformation(init, update, local=True)


def _matrices(t: Tree) -> Tree:
    return tree.map(lambda x: x if x.dim() > 1 else (), t)


def _vectors(t: Tree) -> Tree:
    return tree.map(lambda x: () if x.dim() > 1 else x, t)


def _mean_square(g: Tensor, dim: int) -> Tensor:
    return (g * g).sum(dim, keepdim=True) / max(g.shape[dim], 1)


def _rms(x: Tensor) -> Tensor:
    """√(mean of x²) in the widest float, so that a factor made of it is rounded once; its derivative at 0 is 0."""
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm.to(wide(x.device)) / math.sqrt(max(x.numel(), 1))


class ScaleByTorchMuonState(NamedTuple):
    """The running mean of the gradient."""

    momentum_buffer: Tree  # like params: mean of g


@rule
def scale_by_torch_muon(
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: Scalar = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
    learning_rate: Scalar = 1.0,
) -> GradientTransformation:
    """The direction of torch.optim.Muon: a mean gradient made nearly orthogonal.

        m ← μ m + (1 - μ) g
        X = m, or with Nesterov (1 - μ) g + μ m
        X ← X / max(‖X‖, ε)
        X ← a X + (b A + c A²) X,  A = X Xᵀ        so many times (Newton-Schulz)
        u = s X

    All singular values of X come to lie near one. The steps are computed in bfloat16, in the order in which PyTorch
    computes them, which leaves two digits; a batch of matrices, under vmap, is rounded oftener and has one and a half.
    What autograd gives as the derivative is that of the formula without this rounding.

    Args:
        momentum: μ >= 0, memory of the mean.
        ns_coefficients: (a, b, c), Python numbers.
        eps: ε >= 0, in the unit of g.
        ns_steps: how many steps of Newton-Schulz, in [0, 100).
        adjust_lr_fn: what s / η is for a matrix of m rows and n columns: √max(1, m/n) for "original" and None,
            0.2 √max(m, n) for "match_rms_adamw", with which a learning rate of AdamW fits.
        learning_rate: η >= 0. A rate in a tensor makes s in its dtype, as PyTorch does.

    Raises:
        ValueError: a leaf that is not a matrix, or complex; the message names it.

    Reference:
        Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.
        https://kellerjordan.github.io/posts/muon/
        Liu et al., Muon is scalable for LLM training, 2025, equation 4 (s). https://arxiv.org/abs/2502.16982
    """
    where = "scale_by_torch_muon"
    ranges.non_negative(where, momentum=momentum, eps=eps, learning_rate=learning_rate)
    if len(ns_coefficients) != 3:
        raise ValueError(f"{where}: ns_coefficients must be three numbers, got {ns_coefficients}")
    if not (isinstance(ns_steps, int) and 0 <= ns_steps < 100):
        raise ValueError(f"{where}: ns_steps must be an integer in [0, 100), got {ns_steps}")
    if adjust_lr_fn not in ("original", "match_rms_adamw", None):
        raise ValueError(f"{where}: adjust_lr_fn must be 'original', 'match_rms_adamw' or None, got {adjust_lr_fn!r}")

    def shape_factor(m: int, n: int) -> float:
        if adjust_lr_fn == "match_rms_adamw":
            return 0.2 * math.sqrt(max(m, n))
        return math.sqrt(max(1, m / max(n, 1)))

    def init(params: Tree) -> ScaleByTorchMuonState:
        _check_real(where, params)
        for path, p in zip(tree.paths(params), tree.leaves(params), strict=True):
            if p.dim() != 2:
                raise ValueError(
                    f"{where}: parameter {path!r} has shape {tuple(p.shape)}, and only matrices have an orthogonal "
                    "one; hint: masked gives it some of the leaves, partition gives the others to another rule"
                )
        return ScaleByTorchMuonState(tree.zeros_like(tree.upcast(params)))

    def update(
        updates: Tree, state: ScaleByTorchMuonState, params: Tree | None = None
    ) -> tuple[Tree, ScaleByTorchMuonState]:
        g = tree.upcast(updates)
        m = tree.map(lambda m, g: _lerp(m, g, 1 - momentum), state.momentum_buffer, g)
        x = tree.map(lambda g, m: _lerp(g, m, momentum), g, m) if nesterov else m
        x = tree.map(lambda x: newton_schulz(x, ns_coefficients, eps, ns_steps).to(x.dtype), x)
        u = tree.map(lambda x: x * (learning_rate * shape_factor(*x.shape)), x)
        return tree.cast_like(u, updates), ScaleByTorchMuonState(m)

    return GradientTransformation(init, update, local=True)


def newton_schulz(x: Tensor, coefficients: tuple[float, float, float], eps: Scalar, steps: int) -> Tensor:
    """A matrix with the singular vectors of x and singular values near one, in bfloat16.

        X ← a X + (b A + c A²) X,  A = X Xᵀ

    Each singular value σ goes to aσ + bσ³ + cσ⁵. The Gram matrix A is that of the shorter side.
    """
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    X = x.bfloat16().T if tall else x.bfloat16()
    X = X / X.norm().clamp(min=eps.to(X) if isinstance(eps, Tensor) else eps)
    for _ in range(steps):
        A = X @ X.T
        X = torch.addmm(X, torch.addmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X.T if tall else X


def _lerp(start: Tensor, end: Tensor, weight: Scalar) -> Tensor:
    """start + weight (end - start): rounded as PyTorch does, since in bfloat16 the last bit of it may show."""
    return torch.lerp(start, end, weight.to(start) if isinstance(weight, Tensor) else weight)


def _check_real(where: str, params: Tree) -> None:
    for path, p in zip(tree.paths(params), tree.leaves(params), strict=True):
        if p.is_complex():
            raise ValueError(
                f"{where}: parameter {path!r} is complex, which this rule does not support; "
                "hint: give its real and imaginary parts as leaves of their own"
            )
