"""Masks and labels: which leaves, said by a tree, a prefix of one, or a function of the parameters.

They are structure, not numbers: Python bools, or names. `holes_outside` turns a mask into the form that trees
understand, a tree like the parameters with holes for the leaves that are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from functrain import tree
from functrain.paths import Path, readable, walk
from functrain.tree import Mismatch, Tree


def holes_outside(where: str, mask: Tree | Callable[[Tree], Tree], params: Tree) -> Tree:
    """A tree like the parameters with holes where the mask is False.

    Raises:
        ValueError, TypeError: the mask does not fit, or holds something else than bools.
    """
    chosen = spread(where, "bools", mask, params)
    check_bools(where, chosen)
    return tree.map(lambda m: m or (), chosen)


def spread(where: str, what: str, prefix: Tree | Callable[[Tree], Tree], params: Tree) -> Tree:
    """A value of the prefix for each leaf of the parameters."""
    try:
        return tree.expand(prefix(params) if callable(prefix) else prefix, params)
    except Mismatch as mismatch:
        raise ValueError(
            f"{where}: {mismatch}; hint: give a tree of {what} like the parameters, or a prefix of one"
        ) from None


def check_bools(where: str, mask: Tree) -> None:
    """Raise TypeError if a leaf of the mask is not a bool."""
    for path, m in walk(mask):
        if not isinstance(m, bool):
            raise TypeError(
                f"{where}: the mask {at(path)} is {m!r}, not a bool; hint: a mask is structure, not numbers"
            )


def at(path: Path) -> str:
    """The place of a leaf, for messages."""
    return f"at {readable(path)!r}" if path else "(at the root)"
