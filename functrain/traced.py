"""Trees while a compiler watches.

`torch.compile` follows every call that is made for a leaf, and optree's take thirty; plain recursion takes one. So
compiled code walks its trees here: dicts, lists, tuples and NamedTuples, as everywhere, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor

from functrain.paths import rebuild


class Mismatch(ValueError):
    """Two trees that should correspond, leaf by leaf, do not."""


def map(f: Callable[..., object], tree: object, *rest: object) -> object:
    """`f` of corresponding leaves, leaf by leaf.

    Raises:
        Mismatch: a tree has another structure.
    """
    if isinstance(tree, Tensor):
        return f(tree, *rest)
    if isinstance(tree, dict):
        for other in rest:
            if not isinstance(other, dict) or other.keys() != tree.keys():
                raise Mismatch(_DIFFER)
        others = [cast("dict[object, object]", other) for other in rest]  # as was asked above
        return rebuild(tree, [map(f, x, *[other[k] for other in others]) for k, x in tree.items()])
    if isinstance(tree, tuple | list):
        for other in rest:
            if type(other) is not type(tree) or len(cast("Sequence[object]", other)) != len(tree):  # of one type
                raise Mismatch(_DIFFER)
        rows = [cast("Sequence[object]", other) for other in rest]  # as was asked above
        return rebuild(tree, [map(f, x, *[row[i] for row in rows]) for i, x in enumerate(tree)])
    return None if tree is None else f(tree, *rest)


def leaves(tree: object) -> list[Tensor]:
    """The leaves, in order."""
    found: list[Tensor] = []
    _collect(tree, found)
    return found


def _collect(tree: object, found: list[Tensor]) -> None:
    if isinstance(tree, dict):
        for x in tree.values():
            _collect(x, found)
    elif isinstance(tree, tuple | list):
        for x in tree:
            _collect(x, found)
    elif tree is not None:
        found.append(cast("Tensor", tree))  # what a leaf is, the caller knows


_DIFFER = "the structure of one tree is not that of the other"
