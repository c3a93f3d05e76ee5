"""Squares and roots, as rules that divide by a root mean square need them.

They are elementwise: parts of a formula about one leaf, for `tree.pointwise`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from functrain import tree
from functrain.schedules import Scalar
from functrain.tree import Tree


def abs_sq(x: Tensor) -> Tensor:
    """|x|²: real, for complex x too."""
    return x.abs().square() if x.dtype.is_complex else x * x


def root(x: Tensor, eps: Scalar = 0.0) -> Tensor:
    """√(x + ε) for x >= 0, with a derivative that is finite at x = 0.

    √x has an infinite derivative at zero, and zero times infinity makes every derivative through an update NaN as soon
    as one entry never had a gradient. So the root is taken of the least normal number instead of anything less, with
    derivative zero there: a result under 2e-19 in float32, 2e-154 in float64, which is gone as soon as an ε is added.
    It also makes 0 / root(0) zero.
    """
    shifted = x if isinstance(eps, float) and eps == 0 else x + eps
    return shifted.clamp_min(torch.finfo(x.dtype).tiny).sqrt()


def squares_like(params: Tree, value: Scalar = 0.0) -> Tree:
    """Where means of squares begin: real numbers of this value, in at least float32."""
    zeros = tree.map(lambda p: torch.zeros_like(p, dtype=p.dtype.to_real()), tree.upcast(params))
    return tree.pointwise(lambda z: z + value, zeros)
