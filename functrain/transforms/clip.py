"""Rules that bound the size of updates, and leave small ones as they are."""

from __future__ import annotations

import math

from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, rule, stateless
from functrain.counter import wide
from functrain.schedules import Scalar
from functrain.transforms.scale import times
from functrain.tree import Tree


@rule
def clip(max_delta: Scalar) -> GradientTransformation:
    """Hold every entry between -d and d.

    Args:
        max_delta: d > 0. Complex entries have no order: they are an error.
    """
    ranges.positive("clip", max_delta=max_delta)

    def hold(updates: Tree, params: Tree | None) -> Tree:
        held = tree.pointwise(lambda g: g.clamp(-max_delta, max_delta), tree.upcast(updates))  # d may be beyond float16
        return tree.cast_like(held, updates)

    return stateless(hold, local=True)


@rule
def clip_by_block_rms(threshold: Scalar) -> GradientTransformation:
    """Shrink every leaf whose root mean square is above the threshold to have just that.

        u = g / max(1, rms(g) / d)        rms(g) = ‖g‖ / √n

    Args:
        threshold: d > 0, in the unit of g.
    """
    ranges.positive("clip_by_block_rms", threshold=threshold)

    def shrink(g: Tensor) -> Tensor:
        rms = _norm(g) / math.sqrt(max(g.numel(), 1))
        return (g / (rms / threshold).clamp(min=1)).to(g.dtype)

    return stateless(lambda updates, params: tree.map(shrink, updates), local=True)


@rule
def clip_by_global_norm(max_norm: Scalar) -> GradientTransformation:
    """Shrink updates whose norm, over all leaves together, is above c to have norm c.

        u = g c / max(c, ‖g‖)

    The direction stays. Smaller updates are untouched, bit for bit; a tree of zeros too, and its derivative is finite.

    Args:
        max_norm: c > 0, in the unit of g.

    Reference:
        Pascanu et al., On the difficulty of training recurrent neural networks, 2013, algorithm 1.
        https://arxiv.org/abs/1211.5063
    """
    ranges.positive("clip_by_global_norm", max_norm=max_norm)

    def shrink(updates: Tree, params: Tree | None) -> Tree:
        return times(max_norm / _norm(updates).clamp(min=max_norm), updates)

    return stateless(shrink)


def _norm(updates: Tree) -> Tensor:
    """The norm in the widest float, so that a factor made of it is rounded once; its derivative at zero is zero."""
    norm = tree.norm(updates)
    return norm.to(wide(norm.device))
