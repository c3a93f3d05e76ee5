"""Trees of tensors: any nesting of dict, list, tuple and NamedTuple, or one tensor alone.

`map` applies a function to corresponding leaves. `pointwise` applies an elementwise formula, and may run it once on a
group of small leaves: the loop over leaves is its meaning, the group only its speed, and the two agree bit for bit.

A **hole** is the empty tuple `()`: the place of a leaf that is not there (a gradient that is missing, a parameter that
is masked out). It has no leaves, so every function here passes over it. Dicts keep their insertion order, and match
whatever the order of their keys.

A leaf has a **path**, which people read (`"blocks.0.weight"`), and a **key**, which files use: the same with what is
ambiguous escaped, so that different trees have different keys.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import optree
import torch
from optree import PyTree, PyTreeSpec
from torch import Tensor

from functrain import elementwise, traced
from functrain.paths import Path, children, get, keys, paths, readable, rebuild, set, walk
from functrain.traced import Mismatch

__all__ = [
    "Mismatch", "Tree", "cast", "cast_like", "expand", "flatten", "get", "keys", "leaves", "map", "map_with_path",
    "norm", "paths", "pointwise", "set", "size", "stack", "unflatten", "unstack", "upcast", "zeros_like",
]  # fmt: skip

Tree: TypeAlias = object
T = TypeVar("T")

HALF = (torch.float16, torch.bfloat16)
_NAMESPACE = "functrain"
_INSERTION_ORDER = optree.dict_insertion_ordered(True, namespace=_NAMESPACE)
_INSERTION_ORDER.__enter__()  # never left: the namespace is ours alone


# --- structure


def flatten(tree: Tree) -> tuple[list[Tensor], PyTreeSpec]:
    """The leaves in order, and the structure they came from."""
    # Any object is a tree of whatever it holds; what a leaf is, the caller knows.
    return optree.tree_flatten(typing.cast("PyTree[Tensor]", tree), namespace=_NAMESPACE)


def unflatten(like: T, leaves: Sequence[object]) -> T:
    """A tree with the structure of `like` and these leaves."""
    return typing.cast("T", optree.tree_unflatten(flatten(like)[1], leaves))  # the same structure by construction


def leaves(tree: Tree) -> list[Tensor]:
    """The leaves, in order."""
    return traced.leaves(tree) if torch.compiler.is_compiling() else flatten(tree)[0]


def aligned(tree: Tree, *rest: Tree) -> tuple[PyTreeSpec, list[list[Tensor]]]:
    """The structure of `tree`, and the leaves of all trees in its order.

    Raises:
        Mismatch: a tree has another structure; the message names the first leaf that differs.
    """
    first, spec = flatten(tree)
    columns = [first]
    for other in rest:
        column, other_spec = flatten(other)
        if other_spec != spec:
            column = _by_name(tree, other)
        columns.append(column)
    return spec, columns


def _by_name(tree: Tree, other: Tree) -> list[Tensor]:
    """The leaves of `other` in the order of `tree`, which differ in the order of keys at most."""
    here, there = dict(walk(tree)), dict(walk(other))
    for path in here:
        if path not in there:
            raise Mismatch(f"leaf {_name(path)} of one tree is missing in the other")
    for path in there:
        if path not in here:
            raise Mismatch(f"leaf {_name(path)} of one tree is missing in the other")
    return [typing.cast("Tensor", there[path]) for path in here]  # leaves are what they are


def _name(path: Path) -> str:
    return repr(readable(path)) if path else "(the root)"


# --- functions of leaves


def map(f: Callable[..., object], tree: T, *rest: Tree) -> T:
    """`f` of corresponding leaves, leaf by leaf.

    >>> import torch
    >>> map(lambda a, b: a - b, {"w": torch.tensor(3.0)}, {"w": torch.tensor(1.0)})
    {'w': tensor(2.)}
    """
    if torch.compiler.is_compiling():
        return typing.cast("T", traced.map(f, tree, *rest))  # T by structure
    spec, columns = aligned(tree, *rest)
    rows = zip(*columns, strict=True)
    return typing.cast("T", optree.tree_unflatten(spec, [f(*row) for row in rows]))  # T by structure


def map_with_path(f: Callable[..., object], tree: T, *rest: Tree) -> T:
    """`f(path, *leaves)` of corresponding leaves; `path` is the readable one."""
    spec, columns = aligned(tree, *rest)
    rows = zip(paths(tree), *columns, strict=True)
    return typing.cast("T", optree.tree_unflatten(spec, [f(*row) for row in rows]))  # T by structure


def pointwise(f: Callable[..., object], tree: T, *rest: Tree) -> T:
    """An elementwise formula of corresponding leaves of equal shape.

    `f` is written about one leaf and uses arithmetic, comparisons and elementwise functions alone. It may be called
    once for many small leaves; with anything else in it, it is called leaf by leaf, as `map` does. A 0-dim tensor from
    outside the formula (a rate, a correction) is a scalar in it: it never changes the dtype of a leaf, 0-dim ones
    included.

    Raises:
        Mismatch: structures or shapes differ; the message names the leaf.
    """
    if torch.compiler.is_compiling():
        return map(lambda *row: elementwise.alone(f, row), tree, *rest)
    spec, columns = aligned(tree, *rest)
    sizes = _sizes(columns[0]) if len(columns) > 1 else None
    if sizes and any(_sizes(column) != sizes for column in columns[1:]):
        _blame(tree, columns)
    try:
        out = elementwise.run(f, columns)
    except RuntimeError:
        _blame(tree, columns)
        raise
    if sizes and _sizes(out) != sizes:
        _blame(tree, columns)  # (1, 3) and (3, 1) broadcast to more
    return typing.cast("T", optree.tree_unflatten(spec, out))  # T by structure


def _sizes(column: Sequence[object]) -> list[tuple[int, int]]:
    """What is quick to ask of shapes: elements and dimensions."""
    return [(x.numel(), x.dim()) for x in column if isinstance(x, Tensor)]


def _blame(tree: Tree, columns: Sequence[Sequence[object]]) -> None:
    """Raise Mismatch if corresponding tensors differ in shape: PyTorch would broadcast some of them."""
    for path, *row in zip(paths(tree), *columns, strict=True):
        shapes = [tuple(x.shape) for x in row if isinstance(x, Tensor)]
        for shape in shapes[1:]:
            if shape != shapes[0]:
                name = repr(path) if path else "(the root)"
                raise Mismatch(f"leaf {name} has shape {shapes[0]} in one tree, {shape} in the other")


# --- the rest of the vocabulary


def zeros_like(tree: T, dtype: torch.dtype | None = None) -> T:
    """Zeros of the same shapes, in `dtype` if one is given."""
    return map(lambda x: torch.zeros_like(x, dtype=dtype), tree)


def cast(tree: T, dtype: torch.dtype) -> T:
    """The floating leaves in this dtype, the others as they are."""
    return map(lambda x: x.to(dtype) if x.is_floating_point() else x, tree)


def cast_like(tree: T, like: Tree) -> T:
    """Each leaf in the dtype of the corresponding leaf of `like`."""
    if not torch.compiler.is_compiling():
        (ours, spec), (theirs, like_spec) = flatten(tree), flatten(like)
        if spec == like_spec and [x.dtype for x in ours] == [x.dtype for x in theirs]:
            return tree
    return map(lambda x, y: x if x.dtype == y.dtype else x.to(y.dtype), tree, like)


def upcast(tree: T) -> T:
    """Half-precision leaves in float32, the others as they are."""
    if not any([x.dtype in HALF for x in leaves(tree)]):
        return tree
    return map(lambda x: x.float() if x.dtype in HALF else x, tree)


def norm(tree: Tree) -> Tensor:
    """The Euclidean norm of all leaves together, computed in at least float32; zero for a tree without leaves.

    Its gradient at an all-zero tree is zero.
    """
    columns = leaves(upcast(tree))
    if not columns:
        return torch.zeros(())
    device = columns[0].device
    norms = [torch.linalg.vector_norm(x).to(device) for x in columns]
    total: Tensor = torch.linalg.vector_norm(torch.cat([x.reshape(1) for x in norms]))  # cat takes the widest dtype
    return total


def size(tree: Tree) -> int:
    """The number of elements in all leaves together."""
    return sum(x.numel() for x in leaves(tree))


def stack(trees: Sequence[T]) -> T:
    """One tree whose leaves have a new first axis, an entry a tree: what `torch.func.vmap` maps over."""
    return map(lambda *xs: torch.stack(xs), trees[0], *trees[1:])


def unstack(tree: T) -> list[T]:
    """The trees that `stack` made one of."""
    n = {len(x) for x in leaves(tree)}
    if len(n) != 1:
        raise Mismatch(f"tree.unstack: the leaves have first axes of {sorted(n)} entries, not of one length")
    return [map(lambda x, i=i: x[i], tree) for i in range(n.pop())]


def expand(prefix: Tree, tree: T) -> T:
    """A tree like `tree` in which every leaf is the value of `prefix` above it.

    `prefix` has the same containers as `tree`, and ends where it likes: one value stands for all that is below.

    >>> import torch
    >>> expand({"a": True, "b": False}, {"a": [torch.ones(1), torch.ones(1)], "b": torch.ones(1)})
    {'a': [True, True], 'b': False}
    """
    return typing.cast("T", _expand(prefix, tree, ()))  # rebuilt with the same containers


def _expand(prefix: Tree, tree: Tree, path: Path) -> Tree:
    above, below = children(prefix), children(tree)
    if above is None:
        return map(lambda _: prefix, tree)
    if below is None or {e for e, _ in above} != {e for e, _ in below}:
        raise Mismatch(f"the prefix does not fit the tree at {_name(path)}")
    values = dict(above)
    return rebuild(tree, [_expand(values[e], child, (*path, e)) for e, child in below])
