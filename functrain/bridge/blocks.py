"""Parameters in blocks, for a rule that runs eagerly on a CPU.

What a rule computes on its way for all parameters at once goes to memory and back, line by line of its formula. For a
block of a megabyte it stays in the cache, and memory that was freed is used again. A local rule may be run block
by block; an elementwise one, even on pieces of a large parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

BLOCK_BYTES = 1 << 20


class Row(NamedTuple):
    """What belongs to a parameter, or to a piece of one."""

    name: str
    tensors: tuple[Tensor, ...]  # itself, its gradient, its part of the state


def blocks(rows: Sequence[Row], elementwise: bool) -> Iterator[Sequence[Row]]:
    """The rows in blocks; all as one where they are not plain tensors on a CPU."""
    if not all(_plain(x) for row in rows for x in row.tensors):
        yield rows
        return
    block: list[Row] = []
    total = 0
    for row in rows:
        first = row.tensors[0]
        if block and total + first.nbytes > BLOCK_BYTES:
            yield block
            block, total = [], 0
        if elementwise and first.nbytes > BLOCK_BYTES and all(x.is_contiguous() for x in row.tensors):
            columns = [x.view(-1).split(BLOCK_BYTES // first.element_size()) for x in row.tensors]
            yield from ([Row(row.name, piece)] for piece in zip(*columns, strict=True))
        else:
            block.append(row)
            total += first.nbytes
    if block:
        yield block


def _plain(x: Tensor) -> bool:
    return type(x) in (Tensor, Parameter) and x.device.type == "cpu"


def add_(params: Sequence[Tensor], updates: Sequence[Tensor]) -> None:
    """p + u into p."""
    if all(type(x) is Tensor for x in (*params, *updates)):
        torch._foreach_add_(list(params), list(updates))
    else:
        for p, u in zip(params, updates, strict=True):
            p.add_(u)


def copy_(old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
    """The new values into the old tensors."""
    pairs = [(a, b) for a, b in zip(old, new, strict=True) if a is not b]
    if pairs and all(type(x) is Tensor for pair in pairs for x in pair):
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])
    else:
        for a, b in pairs:
            a.copy_(b)
