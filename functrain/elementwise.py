"""How a formula about one leaf runs over columns of leaves.

Leaf by leaf is the meaning. Two ways are faster and give the same bits:

- **Small leaves together.** Consecutive ones go through the formula as a `Batch`: fewer calls.
- **Large leaves in pieces**, on a CPU. What a formula computes on its way then stays in the cache instead of going to
  memory and back. Only for operations that are exact, whose result cannot depend on where a piece ends.

Both are for plain dense floating tensors in plain eager code. Whatever is not elementwise goes leaf by leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import Parameter

from functrain.batch import Batch, names_of

Formula = Callable[..., object]
Columns = Sequence[Sequence[Tensor]]

# A group has at most so many bytes: on a CPU it should stay in the cache, on an accelerator each call costs a launch.
GROUP_BYTES = {"cpu": 1 << 20}
GROUP_BYTES_ELSEWHERE = 1 << 26
PIECE_BYTES = 1 << 19

# IEEE arithmetic rounds these in one way; PyTorch computes others by approximations that differ at the end of a vector.
EXACT = frozenset(
    "abs add clamp clamp_max clamp_min div double eq float ge gt isfinite isinf isnan le logical_and logical_not "
    "logical_or lt maximum minimum mul ne neg sign sqrt square sub to true_divide where __and__ __or__ __invert__ "
    "__rsub__".split()
)


def run(f: Formula, columns: Columns) -> list[object]:
    """f of the rows of these columns, which correspond leaf by leaf."""
    if not _plain(columns):
        return [alone(f, row) for row in zip(*columns, strict=True)]
    out: list[object] = []
    cut: bool | None = None  # whether f may be computed in pieces: asked once, when it matters
    for group in _groups(columns):
        rows = [column[group] for column in columns]
        lone = [column[0] for column in rows]
        together = as_batch(f, rows) if len(rows[0]) > 1 else None
        if together is not None:
            out.extend(together)
        elif len(rows[0]) == 1 and _large(lone) and (cut := _exact(f, lone) if cut is None else cut):
            out.append(_in_pieces(f, lone))
        else:
            out.extend(alone(f, row) for row in zip(*rows, strict=True))
    return out


def alone(f: Formula, row: Sequence[object]) -> object:
    """f of one leaf. A 0-dim leaf goes in as one of one dimension, so that no outer scalar can promote it."""
    if not isinstance(row[0], Tensor) or row[0].dim():
        return f(*row)
    out = f(*(x.reshape(1) if isinstance(x, Tensor) and not x.dim() else x for x in row))
    return out.reshape(()) if isinstance(out, Tensor) and out.shape == (1,) else out


def as_batch(f: Formula, columns: Columns) -> list[Tensor] | None:
    """f of a group of leaves at once; None where it is not plainly elementwise."""
    lifted = [[x if x.dim() else x.reshape(1) for x in column] for column in columns]
    try:
        out = f(*(Batch(column) for column in lifted))
    except Exception:  # on any doubt the loop decides, and raises what is to be raised
        return None
    if type(out) is not Batch:
        return None
    return [y if x.dim() else y.reshape(()) for x, y in zip(columns[0], out.leaves, strict=True)]


def _plain(columns: Columns) -> bool:
    """True if every leaf is a plain dense floating tensor and nobody differentiates or maps over it."""
    if torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0:
        return False
    if torch._C._is_any_autocast_enabled():  # it casts for plain operators, not for foreach ones
        return False
    for column in columns:
        if not {type(x) for x in column} <= {Tensor, Parameter}:
            return False
        if not all(dtype.is_floating_point or dtype.is_complex for dtype in {x.dtype for x in column}):
            return False
        if {x.layout for x in column} != {torch.strided}:
            return False
        if torch.is_grad_enabled() and any([x.requires_grad for x in column]):
            return False
    return True


# --- small leaves


def _groups(columns: Columns) -> Iterator[slice]:
    """Consecutive leaves of one dtype and device whose bytes fit into a group."""
    first, n = columns[0], len(columns[0])
    uniform = all(len({(x.dtype, x.device) for x in column}) == 1 for column in columns)
    kinds = None if uniform else [[(x.dtype, x.device) for x in row] for row in zip(*columns, strict=True)]
    limit = GROUP_BYTES.get(first[0].device.type, GROUP_BYTES_ELSEWHERE)
    start, total = 0, 0
    for i, x in enumerate(first):
        total += x.nbytes
        if i > start and (total > limit or (kinds and kinds[i] != kinds[i - 1])):
            yield slice(start, i)
            start, total = i, x.nbytes
    yield slice(start, n)


# --- large leaves


def _large(row: Sequence[Tensor]) -> bool:
    """True if the leaf is worth cutting, and can be: real, contiguous, on a CPU."""
    first = row[0]
    return first.nbytes > 2 * PIECE_BYTES and all(
        x.device.type == "cpu" and x.is_contiguous() and x.shape == first.shape and not x.is_complex() for x in row
    )


def _exact(f: Formula, row: Sequence[Tensor]) -> bool:
    """True if f uses exact operations alone: it is tried on one element."""
    return names_of(f, [x.view(-1)[:1] for x in row]) <= EXACT


def _in_pieces(f: Formula, row: Sequence[Tensor]) -> object:
    """f of a leaf, piece by piece into one result."""
    step = PIECE_BYTES // row[0].element_size()
    pieces = zip(*(torch.split(x.view(-1), step) for x in row), strict=True)
    first = f(*next(pieces))
    if not isinstance(first, Tensor):
        return f(*row)
    whole = torch.empty(row[0].shape, dtype=first.dtype)
    places = iter(torch.split(whole.view(-1), step))
    next(places).copy_(first)
    for place, piece in zip(places, pieces, strict=True):
        place.copy_(cast("Tensor", f(*piece)))  # as it was of the first piece
    return whole
