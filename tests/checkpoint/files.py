"""What the tests of checkpoints share: a tree, comparisons bit for bit, and sealed files of any content."""

from __future__ import annotations

import io
import os
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from functrain import checkpoint, tree
from functrain.checkpoint import CheckpointError
from functrain.checkpoint.durable import Sealing

HINT = "hint: this is the checkpoint of another model or optimizer"


class Pair(NamedTuple):
    mean: object
    rest: object


def example() -> dict[str, object]:
    torch.manual_seed(0)
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.bool, torch.complex64)
    return {
        "by dtype": [torch.randn(3, 2).mul(9).to(dtype) for dtype in dtypes],
        "a.b": Pair(torch.tensor(float("nan")), (torch.zeros(0, 3), torch.tensor(-0.0))),
        "a": {"b": torch.arange(5), "": 1, 7: 2.5, "7": "seven", "flag": True},
        "hole": (),
    }


def same(a: object, b: object) -> bool:
    """Bit for bit, types included."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and a == b
    if (a.dtype, a.shape, a.device) != (b.dtype, b.shape, b.device):
        return False
    return bytes(a.contiguous().view(-1).view(torch.uint8).tolist()) == bytes(
        b.contiguous().view(-1).view(torch.uint8).tolist()
    )


def same_tree(a: object, b: object) -> bool:
    return tree.keys(a) == tree.keys(b) and all(map(same, tree.leaves(a), tree.leaves(b)))


def fails(message: str, call: Callable[..., object], *args: object, **kwargs: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        call(*args, **kwargs)
    assert str(caught.value) == message


def refused(path: Path, reason: str = "") -> None:
    """A file is an error however it is looked at."""
    for look in (checkpoint.verify, checkpoint.read):
        with pytest.raises(CheckpointError, match="is damaged, or no checkpoint: " + reason):
            look(path)


def sample(folder: Path) -> tuple[Path, bytes]:
    """A small file, and its bytes."""
    path = folder / "a.pt"
    checkpoint.save(path, {"w": torch.arange(40.0), "b": torch.ones(3)}, meta={"step": 3})
    assert checkpoint.verify(path) is True
    return path, path.read_bytes()


def damage(draw: random.Random, whole: bytes) -> bytes:
    """The file, changed: bits, a shorter end, blocks in another order, zeros, insertions."""
    i, j = sorted(draw.sample(range(len(whole) + 1), 2))
    kind = draw.randrange(6)
    if kind == 0:
        changed = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2, 9))):
            changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind == 1:
        return whole[:i]
    if kind == 2:
        k = draw.randrange(i, j)
        return whole[:i] + whole[k:j] + whole[i:k] + whole[j:]
    if kind == 3:
        return whole[:i] + bytes(j - i) + whole[j:]
    if kind == 4:
        return whole[:i] + draw.randbytes(draw.choice((1, 7, 512))) + whole[i:]
    return whole[:i] + whole[j:]


# --- under a seal that is right: everybody can compute one


def sealed(content: bytes, path: Path) -> Path:
    """A file of these bytes, made to end as a zip without a comment ends."""
    with open(path, "w+b") as file:
        sealing = Sealing(file)
        sealing.write(content if content.endswith(b"\0\0") else content + b"\0\0")
        sealing.seal()
    return path


def pickled_by_torch(content: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def zipped(entries: Mapping[str, bytes] | list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these entries, by the standard library."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items() if isinstance(entries, Mapping) else entries:
            archive.writestr(name, data)
    return buffer.getvalue()


def entries_of(path: str | os.PathLike[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
