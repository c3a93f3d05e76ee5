"""Rules that bound the size of updates, and leave small ones as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, rule, stateless
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
    return stateless(
        lambda updates, params: tree.pointwise(lambda g: g.clamp(-max_delta, max_delta), updates), local=True
    )


@rule
def clip_by_block_rms(threshold: Scalar) -> GradientTransformation:
    """Shrink every leaf whose root mean square is above the threshold to have just that.

        u = g / max(1, rms(g) / d)        rms(g) = ‖g‖ / √n

    Args:
        threshold: d > 0, in the unit of g.
    """
    ranges.positive("clip_by_block_rms", threshold=threshold)

    def shrink(g: Tensor) -> Tensor:
        rms = tree.norm(g) / max(g.numel(), 1) ** 0.5  # the norm has a derivative at zero
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
        norm = tree.norm(updates)
        return times(max_norm / torch.clamp(norm, min=max_norm), updates)

    return stateless(shrink)
