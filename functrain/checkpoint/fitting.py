"""The leaves of a file in the structure of a tree."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
from torch import Tensor

from functrain import tree
from functrain.checkpoint.contents import CheckpointError, Contents, describe, identity, same_bits
from functrain.checkpoint.reading import read

T = TypeVar("T")

_HINT = "hint: this is the checkpoint of another model or optimizer"


def load(path: str | os.PathLike[str], like: T) -> T:
    """The tree in a file, in the structure of `like`, each leaf on the device of the leaf it replaces.

    Leaves that are one tensor in `like` are one in the result. A leaf of `like` on the meta device comes to the CPU.

    Args:
        path: a file that `save` wrote.
        like: a tree of the same structure, shapes and dtypes; it is not written to.

    Raises:
        CheckpointError: the file is not there, is damaged, or holds something else; the message names the first leaf
            that does not fit.
    """
    return rebuild(read(path), like)


def rebuild(contents: Contents, like: T) -> T:
    """The leaves of a file in the structure of `like`. See `load`."""
    where, remaining = f"checkpoint.load: {contents.path}", dict(contents.leaves)
    made: dict[object, tuple[str, object, object]] = {}
    leaves = []
    for key, name, wanted in zip(tree.keys(like), tree.paths(like), tree.leaves(like), strict=True):
        if key not in remaining:
            raise CheckpointError(f"{where}: leaf {name!r}, {describe(wanted)}, is not in the file; {_HINT}")
        found = remaining.pop(key)
        if describe(found) != describe(wanted):
            raise CheckpointError(
                f"{where}: leaf {name!r} is {describe(found)} in the file, and should be {describe(wanted)}; {_HINT}"
            )
        one = identity(wanted)
        if one not in made:
            made[one] = name, found, _placed(found, wanted)
        first, twin, leaf = made[one]
        if twin is not found and not same_bits(twin, found):
            raise CheckpointError(
                f"{where}: leaves {first!r} and {name!r} are one tensor, and differ in the file; {_HINT}"
            )
        leaves.append(leaf)
    for key, found in remaining.items():
        raise CheckpointError(f"{where}: leaf {key!r} of the file, {describe(found)}, has no place; {_HINT}")
    return tree.unflatten(like, leaves)


def _placed(found: object, wanted: object) -> object:
    """A new tensor with these values, where and as the wanted one lies."""
    if not isinstance(found, Tensor) or not isinstance(wanted, Tensor):
        return found
    if wanted.is_meta:
        return found.clone()
    with torch.no_grad():
        return torch.empty_like(wanted.detach()).copy_(found)
