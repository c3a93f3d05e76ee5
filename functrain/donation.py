"""Buffers that were given away.

A compiled step writes its results into the tensors of the state it was given. Whoever still holds that state would read
the next one's numbers, so one tensor of each consumed state is remembered here, by identity and weakly, and every entry
point asks.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from functrain import tree

_consumed: dict[int, weakref.ref[Tensor]] = {}


def consume(tensor: Tensor) -> None:
    """Remember that the state this tensor belongs to was given away."""
    key = id(tensor)
    _consumed[key] = weakref.ref(tensor, lambda _: _consumed.pop(key, None))


def check(where: str, tensor: object) -> None:
    """Raise RuntimeError if the state this tensor belongs to was given away."""
    if torch.compiler.is_compiling():  # the host has asked already
        return
    mark = _consumed.get(id(tensor))
    if mark is not None and mark() is tensor:
        raise RuntimeError(
            f"{where}: this state was donated to a compiled call, which wrote the next state into its memory; "
            "hint: go on with the state that call returned, or compile with ft.jit(step, donate=False)"
        )


def check_leaves(where: str, anything: object) -> None:
    """The same for a tree that has the state somewhere in it."""
    if _consumed:
        for x in tree.leaves(anything):
            check(where, x)


def check_tree(where: str, state: object) -> None:
    """The same for a state that is told by its first tensor."""
    if not torch.compiler.is_compiling() and _consumed:  # in this order: a graph must not guard on the set
        for x in tree.leaves(state)[:1]:
            check(where, x)
