"""Holes: trees in which some leaves are missing.

A gradient may be missing for a parameter that took no part in the loss. Its place in the tree of gradients is a hole,
`()` (None is read as one). A rule then sees a smaller tree: parameters and state lose the same leaves, and what the
rule returns is put back among the old state. So a missing gradient leaves its moments as they were, bit for bit, which
a zero gradient does not.
"""

from __future__ import annotations

from typing import TypeVar, cast

from functrain.paths import children, rebuild

T = TypeVar("T")


def is_hole(node: object) -> bool:
    """True for `()` and None."""
    return node is None or (type(node) is tuple and not node)


def has_holes(tree: object) -> bool:
    """True where some leaf is missing."""
    if is_hole(tree):
        return True
    return any(has_holes(child) for _, child in children(tree) or ())


def normalise(tree: T) -> T:
    """The tree with every None written as `()`."""
    if tree is None:
        return cast("T", ())  # the hole stands for a leaf of T
    below = children(tree)
    return tree if not below else rebuild(tree, [normalise(child) for _, child in below])


def punch(tree: T, like: object) -> T:
    """The tree without the leaves that `like` lacks. Where the two differ otherwise, it is left as it is."""
    if is_hole(like):
        return cast("T", ())  # the hole stands for a leaf of T
    below, pattern = children(tree), children(like)
    if not below or not pattern:
        return tree
    by_name = dict(pattern)
    return rebuild(tree, [punch(child, by_name[e]) if e in by_name else child for e, child in below])


def punch_inside(state: T, like: object, whole: object) -> T:
    """The state with every part that is shaped like `whole` punched as `like` is."""
    if fits(state, whole):
        return punch(state, like)
    below = children(state)
    return state if not below else rebuild(state, [punch_inside(child, like, whole) for _, child in below])


def fits(tree: object, like: object) -> bool:
    """True if the tree has the structure of `like`, whatever stands in its holes."""
    if is_hole(like):
        return True
    below, pattern = children(tree), children(like)
    if below is None or pattern is None:
        return below is None and pattern is None
    if type(tree) is not type(like) or len(below) != len(pattern):
        return False
    by_name = dict(pattern)
    return all(e in by_name and fits(child, by_name[e]) for e, child in below)


def fill(new: T, old: T) -> T:
    """`new` with its holes filled from `old`."""
    if is_hole(new):
        return cast("T", ()) if old is None else old  # the hole stands for a leaf of T
    below = children(new)
    if not below:
        return new
    by_name = dict(children(old) or ())
    return rebuild(new, [fill(child, by_name[e]) if e in by_name else child for e, child in below])
