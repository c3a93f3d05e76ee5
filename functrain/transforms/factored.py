"""Rules that keep of a matrix of mean squares its rows and columns alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, rule
from functrain.counter import first_count, increment, wide
from functrain.holes import fill, punch
from functrain.schedules import Scalar
from functrain.transforms.squares import abs_sq, root, squares_like
from functrain.tree import Tree


class FactoredState(NamedTuple):
    """Running mean squares of the gradient, each leaf's either factored or whole."""

    count: Tensor  # (), int32: updates so far
    v_row: Tree  # of factored leaves, real: mean over the largest dimension, which it lacks; else ()
    v_col: Tree  # of factored leaves, real: mean over the second largest, which it lacks; else ()
    v: Tree  # of the other leaves, like them, real: mean of |g|² + ε; else ()


def decay_rate_pow(i: Tensor, exponent: Scalar = 0.8) -> Tensor:
    """1 - (i + 1)^-k: zero at the first update, where i = 0, and near one after many."""
    return 1 - (i.to(wide(i.device)) + 1) ** -exponent


@rule
def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: Scalar = 0.8,
    step_offset: int = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: Scalar = 1e-30,
    decay_rate_fn: Callable[[Tensor, Scalar], Tensor] = decay_rate_pow,
) -> GradientTransformation:
    """Divide the gradient by its root mean square, which is kept as a product of a row and a column.

        β = 1 - t^-k                                  t = 1, 2, ... updates
        R ← β R + (1 - β) mean of |g|² + ε along rows
        C ← β C + (1 - β) mean of |g|² + ε along columns
        u = g / √(R C / mean R)

    Of a matrix of n m entries it remembers n + m numbers. Where all |g|² are a product of a row and a column, that
    loses nothing. Leaves that are not factored have V ← β V + (1 - β) (|g|² + ε) and u = g / √V.

    β is computed in the device's widest float; Optax rounds it to float32, which shows in the eighth digit.

    Args:
        factored: if False, no leaf is factored.
        decay_rate: k >= 0.
        step_offset: updates to leave out of t, where counting goes on from a run before.
        min_dim_size_to_factor: >= 1; a leaf is factored, over its two largest dimensions, if both have so many entries.
        epsilon: ε >= 0, in the unit of g².
        decay_rate_fn: from (count - step_offset, decay_rate) to β; the first update has count 0.

    Reference:
        Shazeer & Stern, Adafactor, 2018, algorithms 4 and 5 without their clipping. https://arxiv.org/abs/1804.04235
    """
    ranges.non_negative("scale_by_factored_rms", decay_rate=decay_rate, epsilon=epsilon)
    ranges.positive_int("scale_by_factored_rms", min_dim_size_to_factor=min_dim_size_to_factor)

    def is_factored(x: Tensor) -> bool:
        return factored and x.dim() >= 2 and x.shape[largest(x.shape)[1]] >= min_dim_size_to_factor

    def split(t: Tree) -> tuple[Tree, Tree]:
        """Two trees with holes: the leaves that are factored, the others."""
        return tree.map(lambda x: x if is_factored(x) else (), t), tree.map(lambda x: () if is_factored(x) else x, t)

    def init(params: Tree) -> FactoredState:
        matrices, others = split(squares_like(params))
        rows = tree.map(lambda s: s.mean(largest(s.shape)[0]), matrices)
        columns = tree.map(lambda s: s.mean(largest(s.shape)[1]), matrices)
        return FactoredState(first_count(params), rows, columns, others)

    def update(updates: Tree, state: FactoredState, params: Tree | None = None) -> tuple[Tree, FactoredState]:
        beta = decay_rate_fn(state.count - step_offset, decay_rate)
        g = tree.upcast(updates)
        matrices, others = split(tree.pointwise(lambda g: abs_sq(g) + epsilon, g))
        rows = tree.map(lambda s: s.mean(largest(s.shape)[0]), matrices)
        columns = tree.map(lambda s: s.mean(largest(s.shape)[1]), matrices)

        def average(old: Tree, new: Tree) -> Tree:
            seen = punch(old, new)  # a leaf without a gradient has no part in this
            return tree.cast_like(tree.pointwise(lambda v, s: beta * v + (1 - beta) * s, seen, new), seen)

        v_row, v_col, v = average(state.v_row, rows), average(state.v_col, columns), average(state.v, others)
        size = fill(tree.map(product, matrices, v_row, v_col), tree.pointwise(root, v))
        u = tree.pointwise(lambda g, d: g / d, g, size)
        return tree.cast_like(u, updates), FactoredState(
            increment(state.count), fill(v_row, state.v_row), fill(v_col, state.v_col), fill(v, state.v)
        )

    return GradientTransformation(init, update, local=True)


def largest(shape: Sequence[int]) -> tuple[int, int]:
    """The largest dimension of a shape and the second largest; of equal ones the last is larger."""
    *_, second, first = sorted(range(len(shape)), key=lambda i: shape[i])
    return first, second


def product(s: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """√(R C / mean R), in the shape of s."""
    first, second = largest(s.shape)
    r, c = row.unsqueeze(first), column.unsqueeze(second)
    mean = r.mean(second, keepdim=True).clamp_min(torch.finfo(r.dtype).tiny)  # ε may be zero
    return root(r / mean) * root(c)
