"""Rules that average gradients over time.

`accumulator_dtype` is the dtype in which the average is kept; None is the parameter's, but at least float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, rule
from functrain.counter import bias_correction, first_count, increment
from functrain.schedules import Scalar
from functrain.tree import Tree


class TraceState(NamedTuple):
    """The decaying sum of past updates."""

    trace: Tree  # like params: sum of β^age g


@rule
def trace(
    decay: Scalar, nesterov: bool = False, accumulator_dtype: torch.dtype | None = None
) -> GradientTransformation:
    """Momentum: the sum of all gradients so far, older ones weighing less.

        m ← g + β m
        u = m, or with Nesterov g + β m

    Under a constant gradient the update grows to g / (1 - β).

    Args:
        decay: β in [0, 1).
        nesterov: add the gradient once more, as if one step ahead.

    Reference:
        Sutskever et al., On the importance of initialization and momentum in deep learning, 2013.
    """
    ranges.unit_interval("trace", decay=decay)

    def init(params: Tree) -> TraceState:
        return TraceState(tree.zeros_like(tree.upcast(params), accumulator_dtype))

    def update(updates: Tree, state: TraceState, params: Tree | None = None) -> tuple[Tree, TraceState]:
        g = tree.upcast(updates)
        m = tree.pointwise(lambda g, m: g + decay * m, g, tree.upcast(state.trace))
        u = tree.pointwise(lambda g, m: g + decay * m, g, m) if nesterov else m
        return tree.cast_like(u, updates), TraceState(tree.cast_like(m, state.trace))

    return GradientTransformation(init, update, local=True)


class EmaState(NamedTuple):
    """The running mean of past updates."""

    count: Tensor  # (), int32: updates so far
    ema: Tree  # like params: mean of g, before its correction


@rule
def ema(decay: Scalar, debias: bool = True, accumulator_dtype: torch.dtype | None = None) -> GradientTransformation:
    """The mean of all gradients so far, older ones weighing less.

        m ← β m + (1 - β) g
        u = m / (1 - βᵗ), or m without `debias`

    With `debias` the weights sum to one: a constant gradient is its own mean from the first update on.

    Args:
        decay: β in [0, 1).
        debias: make up for the mean's beginning at zero.
    """
    ranges.unit_interval("ema", decay=decay)

    def init(params: Tree) -> EmaState:
        return EmaState(first_count(params), tree.zeros_like(tree.upcast(params), accumulator_dtype))

    def update(updates: Tree, state: EmaState, params: Tree | None = None) -> tuple[Tree, EmaState]:
        t = increment(state.count)
        m = tree.pointwise(lambda m, g: decay * m + (1 - decay) * g, tree.upcast(state.ema), tree.upcast(updates))
        c = bias_correction(decay, t)
        u = tree.pointwise(lambda m: m / c, m) if debias else m
        return tree.cast_like(u, updates), EmaState(t, tree.cast_like(m, state.ema))

    return GradientTransformation(init, update, local=True)
