"""A checkpoint as a person reads it.

Names and texts come from a file that anybody may have written: what is not printable is escaped, and what is long cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from torch import Tensor

from functrain.checkpoint.contents import FORMAT, CheckpointError, Contents, dtype_name
from functrain.checkpoint.exporting import split_key
from functrain.checkpoint.listing import candidates
from functrain.checkpoint.reading import verify

_LONGEST = 72  # characters of a name or a value
_TOP = "top"  # the group of leaves that are in no container


def file_lines(contents: Contents) -> Iterator[str]:
    """A whole file: what it is, how far its run was, and its leaves in groups."""
    yield str(contents.path)
    yield f"  whole, {_when_and_size(contents.path)}, format {FORMAT}"
    yield from (f"  {line}" for line in _run_lines(contents))
    yield ""
    yield from _table(contents.leaves)


def directory_lines(directory: Path) -> Iterator[tuple[bool, str]]:
    """The checkpoints of a run's directory, newest first: whether each is whole, and a line about it."""
    paths = candidates(directory)
    width = max((len(path.name) for path in paths), default=0)
    shown: list[tuple[Path, bool]] = []
    for path in paths:
        name = f"  {path.name:{width}}"
        twin = next(((other, whole) for other, whole in shown if _same_file(path, other)), None)
        if twin is not None:
            yield twin[1], f"{name}  the same file as {twin[0].name}"
            continue
        try:
            verify(path)
        except CheckpointError as error:
            shown.append((path, False))
            yield False, f"{name}  {reason(error, path)}"
        else:
            shown.append((path, True))
            yield True, f"{name}  whole, {_when_and_size(path)}"


def reason(error: CheckpointError, path: Path) -> str:
    """Why `verify` says that a file is not whole: its error without the place and the path."""
    text = str(error).removeprefix(f"checkpoint.verify: {path}")
    return printable(text.removeprefix(":").strip().removeprefix("is "))


def printable(text: object) -> str:
    """The text in characters that move no cursor, and not too many."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: 2 * _LONGEST])
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _when_and_size(path: Path) -> str:
    info = path.stat()
    when = datetime.fromtimestamp(info.st_mtime).astimezone().isoformat(" ", "seconds")
    return f"{info.st_size:,} bytes, written {when}"


def _run_lines(contents: Contents) -> Iterator[str]:
    """What the meta of a Trainer's file says; only its names, of another."""
    meta, place = contents.meta, contents.meta.get("place")
    step = contents.leaves.get("step")
    if not isinstance(place, dict) or not isinstance(step, Tensor) or step.numel() != 1:
        yield f"meta: {', '.join(map(printable, meta)) or 'empty'}"
        return
    epoch, consumed = place.get("epoch"), place.get("consumed")
    where = ""
    if isinstance(epoch, int) and isinstance(consumed, int):
        where = f", after {_counted(epoch, 'epoch')} and {_counted(consumed, 'batch', 'batches')} of the next"
    best = meta.get("best")
    validated = isinstance(best, float) and math.isfinite(best)
    yield f"update {step.item():,}{where}, {f'best loss {best:.4f}' if validated else 'not validated'}"
    yield f"optimizer {printable(meta.get('optimizer'))}"


def _table(leaves: Mapping[str, object]) -> Iterator[str]:
    rows, groups = [], dict[str, list[int]]()
    seen: dict[int, str] = {}
    for i, (key, leaf) in enumerate(leaves.items()):
        *above, name = split_key(key)
        groups.setdefault(".".join(above) or _TOP, []).append(i)
        rows.append((printable(name or "-"), *_columns(leaf, seen.get(id(leaf)))))
        if isinstance(leaf, Tensor):
            seen.setdefault(id(leaf), printable(".".join((*above, name))))
    widths = [max(map(len, column)) for column in zip(*((*row[:3], f"{row[3]:,}") for row in rows), strict=True)]
    for group, members in groups.items():
        yield f"  {printable(group)}: {_total([rows[i] for i in members])}"
        for i in members:
            name, dtype, shape, size, value = rows[i]
            cells = f"    {name:{widths[0]}}  {dtype:{widths[1]}}  {shape:{widths[2]}}  {size:>{widths[3]},}  {value}"
            yield cells.rstrip()
    yield f"  total: {_total(rows)}"


def _columns(leaf: object, twin: str | None) -> tuple[str, str, int, str]:
    """Its dtype, shape, bytes, and its value if that is short; a tensor's bytes count where it comes first."""
    if not isinstance(leaf, Tensor):
        return type(leaf).__name__, "", 0, printable(repr(leaf))
    shape = " × ".join(map(str, leaf.shape)) or "()"
    if twin is not None:
        return dtype_name(leaf.dtype), shape, 0, f"the same tensor as {twin}"
    value = str(leaf.item()) if leaf.dim() == 0 and leaf.dtype.itemsize > 1 else ""
    return dtype_name(leaf.dtype), shape, leaf.nbytes, value


def _total(rows: list[tuple[str, str, str, int, str]]) -> str:
    size = sum(row[3] for row in rows)
    return f"{_counted(len(rows), 'leaf', 'leaves')}, {size:,} bytes"


def _counted(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
