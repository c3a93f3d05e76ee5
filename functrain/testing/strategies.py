"""What to draw: trees of tensors, gradients like them, hyper-parameters up to the edges of their ranges.

Everything shrinks towards what is easy to read: fewer leaves, smaller shapes, plain layouts, zeros and ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from functrain import tree
from functrain.tree import Tree

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((2,), (), (3, 2), (1,), (0,), (2, 0), (2, 3, 1), (4, 1), (2, 3, 2, 1), (17,))
LAYOUTS = ("contiguous", "transposed", "stepped", "offset", "channels_last")
NAMES = ("w", "b", "", "a.b", "7", 7, "w.0")


class Pair(NamedTuple):
    """The NamedTuple in the trees that are drawn."""

    left: Tree
    right: Tree


# --- tensors


def numbers(dtype: torch.dtype = torch.float32, largest: float = 1e3) -> SearchStrategy[float]:
    """Finite numbers up to `largest` in absolute value, with zero, signed zero, one and the edges often among them."""
    tiny = torch.finfo(dtype).tiny
    edges = (0.0, 1.0, -1.0, -0.0, largest, -largest, tiny, -tiny)
    return st.sampled_from(edges) | st.floats(-largest, largest)


def shapes() -> SearchStrategy[tuple[int, ...]]:
    """Shapes of few elements: also 0-dim ones and ones without elements."""
    return st.sampled_from(SHAPES)


def layouts() -> SearchStrategy[str]:
    """How a tensor lies in memory: dense, or a view of something else."""
    return st.sampled_from(LAYOUTS)


def lay(dense: Tensor, layout: str) -> Tensor:
    """The same numbers, laid out in memory as `layout` says where the shape allows it."""
    if layout == "transposed" and dense.dim() >= 2:
        return dense.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "stepped" and dense.dim():
        wide = dense.new_zeros((*dense.shape[:-1], 2 * dense.shape[-1]))
        wide[..., ::2] = dense
        return wide[..., ::2]
    if layout == "offset":
        flat = torch.cat([dense.new_zeros(1), dense.reshape(-1)])
        return flat[1:].view(dense.shape)
    if layout == "channels_last" and dense.dim() == 4:
        return dense.contiguous(memory_format=torch.channels_last)
    return dense


@st.composite
def tensors(
    draw: DrawFn,
    dtype: torch.dtype = torch.float32,
    shape: Sequence[int] | None = None,
    values: SearchStrategy[float] | None = None,
    layout: str | None = None,
) -> Tensor:
    """A tensor. A few numbers are drawn, and fill it in turn.

    Args:
        dtype: its dtype, floating.
        shape: its shape; drawn if None.
        values: where its numbers come from; `numbers(dtype)` if None.
        layout: one of LAYOUTS; drawn if None.
    """
    size = tuple(draw(shapes()) if shape is None else shape)
    source = draw(st.lists(numbers(dtype) if values is None else values, min_size=1, max_size=5))
    n = math.prod(size)
    dense = torch.tensor((source * n)[:n], dtype=torch.float64).to(dtype).reshape(size)
    return lay(dense, draw(layouts()) if layout is None else layout)


# --- trees


def leaves(dtypes: Sequence[torch.dtype] = (torch.float32,)) -> SearchStrategy[Tensor]:
    """Tensors of these dtypes, of any shape and layout."""
    return st.sampled_from(dtypes).flatmap(lambda dtype: tensors(dtype))


def trees(
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    leaf: SearchStrategy[Tensor] | None = None,
    max_leaves: int = 6,
) -> SearchStrategy[Tree]:
    """Dicts, lists, tuples and NamedTuples of tensors, nested; also an empty one, and one tensor alone.

    Args:
        dtypes: of the leaves; several may meet in one tree.
        leaf: where the leaves come from; `leaves(dtypes)` if None.
        max_leaves: about how many at most.
    """
    return st.recursive(
        leaves(dtypes) if leaf is None else leaf,
        lambda below: (
            st.dictionaries(st.sampled_from(NAMES), below, max_size=3)
            | st.lists(below, max_size=3)
            | st.lists(below, max_size=3).map(tuple)
            | st.builds(Pair, below, below)
        ),
        max_leaves=max_leaves,
    )


@st.composite
def gradients(
    draw: DrawFn, params: Tree, values: SearchStrategy[float] | None = None, dtype: torch.dtype | None = None
) -> Tree:
    """A tree like `params`: same structure, shapes and dtypes, other numbers, and layouts of its own.

    Args:
        params: the tree to be like.
        values: where the numbers come from.
        dtype: of all gradients; that of each parameter if None.
    """
    return tree.map(lambda p: draw(tensors(dtype or p.dtype, p.shape, values)), params)


@st.composite
def histories(draw: DrawFn, params: Tree, max_size: int = 5, values: SearchStrategy[float] | None = None) -> list[Tree]:
    """Gradients for one to `max_size` updates."""
    return [draw(gradients(params, values)) for _ in range(draw(st.integers(1, max_size)))]


@st.composite
def with_holes(draw: DrawFn, grads: Tree) -> Tree:
    """The same tree with some leaves missing: `()` or None in their place."""
    return tree.map(lambda g: draw(st.sampled_from((g, (), None))), grads)


# --- hyper-parameters


def decays() -> SearchStrategy[float]:
    """β of an average, in [0, 0.9999]: no memory, the usual ones, a long memory."""
    return st.sampled_from((0.9, 0.0, 0.999, 0.9999, 0.5)) | st.floats(0, 0.9999)


def counts() -> SearchStrategy[int]:
    """Numbers of updates, from 1 to 10⁶."""
    return st.sampled_from((1, 2, 10, 1000, 10**6)) | st.integers(1, 10**6)


def learning_rates() -> SearchStrategy[float]:
    """Learning rates, from 10⁻⁸ to 1."""
    return st.sampled_from((1e-3, 1.0, 1e-8)) | st.floats(1e-8, 1.0)


def weight_decays() -> SearchStrategy[float]:
    """Weight decays, in [0, 1)."""
    return st.sampled_from((0.0, 1e-4, 0.1, 0.9)) | st.floats(0, 0.99)


def epsilons() -> SearchStrategy[float]:
    """ε, from 10⁻¹⁰ to 10⁻²."""
    return st.sampled_from((1e-8, 1e-10, 1e-2)) | st.floats(1e-10, 1e-2)
