"""Buffers that were given away.

A compiled step writes its results into the tensors of the state it was given. Whoever still holds that state would read
the next one's numbers, so one tensor of each consumed state is remembered here, by identity and weakly, and every entry
point asks.
"""

from __future__ import annotations

import weakref

from torch import Tensor

_consumed: dict[int, weakref.ref[Tensor]] = {}


def consume(tensor: Tensor) -> None:
    """Remember that the state this tensor belongs to was given away."""
    key = id(tensor)
    _consumed[key] = weakref.ref(tensor, lambda _: _consumed.pop(key, None))


def check(where: str, tensor: object) -> None:
    """Raise RuntimeError if the state this tensor belongs to was given away."""
    mark = _consumed.get(id(tensor))
    if mark is not None and mark() is tensor:
        raise RuntimeError(
            f"{where}: this state was donated to a compiled call, which wrote the next state into its memory; "
            "hint: go on with the state that call returned, or compile with ft.jit(step, donate=False)"
        )
