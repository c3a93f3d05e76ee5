"""Trees of tensors to and from disk.

A checkpoint is one file and nothing but data: a zip in PyTorch's format that holds a flat map from the key of a leaf
(`tree.keys`) to a tensor or a plain scalar, and a JSON text of whatever else the writer wants to remember. It is read
with `weights_only=True`, so nothing in it can run code, and no name in it selects any.

The file is sealed, and appears whole or not at all (`functrain/durable.py`): any changed byte is an error when it is
read, and whoever is killed while writing leaves the old file as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from functrain import tree
from functrain.durable import Damaged, Sealing, check_seal, replacing
from functrain.tree import Tree

__all__ = ["CheckpointError", "Contents", "candidates", "latest", "load", "read", "rebuild", "save", "verify"]

T = TypeVar("T")

FORMAT = 1
SCALARS = (bool, int, float, str)
STEP_FILE = re.compile(r"step-(\d+)\.pt")


class CheckpointError(Exception):
    """A checkpoint that cannot be written, is damaged, or does not fit."""


class Contents(NamedTuple):
    """What a file holds."""

    path: Path
    leaves: dict[str, object]  # by key: a tensor on the CPU, or a scalar
    meta: dict[str, object]  # what JSON can say


# --- writing


def save(path: str | os.PathLike[str], tree: Tree, *, meta: Mapping[str, object] | None = None) -> None:
    """Write a tree to a file, whole and verified, or not at all.

    A view is written as its own elements; leaves that are one tensor are written once.

    Args:
        path: the file; an older one is replaced in one instant.
        tree: leaves are dense tensors of any dtype and device, or a bool, int, float or str.
        meta: a small dict of what JSON can say, NaN and infinity included.

    Raises:
        CheckpointError: a leaf that cannot be written, or an error of the system, in its words. Whatever was on disk
            before is there still, and nothing else.
        TypeError: JSON cannot say what is in `meta`.
    """
    target = Path(path)
    contents = {"format": FORMAT, "leaves": _flat(target, tree), "meta": json.dumps(dict(meta or {}))}
    try:
        with replacing(target, check_seal) as file:
            sealing = Sealing(file)
            torch.save(contents, cast("BinaryIO", sealing))  # torch asks for write and flush alone
            sealing.seal()
    except (OSError, Damaged) as error:
        raise CheckpointError(f"checkpoint.save: {target}: {_words(error)}") from error


def _flat(path: Path, t: Tree) -> dict[str, object]:
    written: dict[object, object] = {}
    flat = {}
    for key, name, leaf in zip(tree.keys(t), tree.paths(t), tree.leaves(t), strict=True):
        identity = _identity(leaf)
        if identity not in written:
            written[identity] = _portable(path, name, leaf)
        flat[key] = written[identity]
    return flat


def _identity(leaf: object) -> object:
    """Equal for two leaves that are one tensor."""
    if isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.numel() and leaf.device.type != "meta":
        return leaf.device, leaf.data_ptr(), leaf.dtype, leaf.shape, leaf.stride(), leaf.is_conj(), leaf.is_neg()
    return object()


def _portable(path: Path, name: str, leaf: object) -> object:
    """The leaf with a storage of its own, as large as itself."""
    if type(leaf) in SCALARS:
        return leaf
    if not isinstance(leaf, Tensor):
        raise CheckpointError(
            f"checkpoint.save: {path}: leaf {name!r} is a {type(leaf).__name__}; "
            "hint: a checkpoint holds tensors, bool, int, float and str"
        )
    plain = leaf.detach()
    if type(plain) is not Tensor or plain.layout is not torch.strided or plain.is_quantized or plain.is_meta:
        raise CheckpointError(
            f"checkpoint.save: {path}: leaf {name!r} is not a dense tensor with values ({type(plain).__name__}, "
            f"{plain.layout}, on {plain.device.type}); hint: convert it first"
        )
    plain = plain.resolve_conj().resolve_neg().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


# --- reading


def verify(path: str | os.PathLike[str]) -> Literal[True]:
    """True if the file is whole and as it was written.

    Raises:
        CheckpointError: it is not there, is damaged, or is no checkpoint.
    """
    with _opened("checkpoint.verify", Path(path)):
        return True


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


def read(path: str | os.PathLike[str]) -> Contents:
    """All that is in a file, for a caller that looks at `meta` first; `rebuild` makes a tree of it.

    Raises:
        CheckpointError: as in `load`.
    """
    target = Path(path)
    with _opened("checkpoint.load", target) as file:
        _check_sizes(file)
        file.seek(0)
        found = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise Damaged(f"it is not in format {FORMAT}")
        leaves, meta = found.get("leaves"), json.loads(found.get("meta", ""))
        if not isinstance(leaves, dict) or not isinstance(meta, dict) or not all(map(_is_data, leaves.items())):
            raise Damaged("it holds something else than tensors and scalars by name")
    return Contents(target, leaves, meta)


def rebuild(contents: Contents, like: T) -> T:
    """The leaves of a file in the structure of `like`. See `load`."""
    where, remaining = f"checkpoint.load: {contents.path}", dict(contents.leaves)
    made: dict[object, tuple[str, object, object]] = {}
    leaves = []
    for key, name, wanted in zip(tree.keys(like), tree.paths(like), tree.leaves(like), strict=True):
        if key not in remaining:
            raise CheckpointError(f"{where}: leaf {name!r}, {_describe(wanted)}, is not in the file; {_HINT}")
        found = remaining.pop(key)
        if _describe(found) != _describe(wanted):
            raise CheckpointError(
                f"{where}: leaf {name!r} is {_describe(found)} in the file, and should be {_describe(wanted)}; {_HINT}"
            )
        identity = _identity(wanted)
        if identity not in made:
            made[identity] = name, found, _placed(found, wanted)
        first, twin, leaf = made[identity]
        if twin is not found and not _same_bits(twin, found):
            raise CheckpointError(
                f"{where}: leaves {first!r} and {name!r} are one tensor, and differ in the file; {_HINT}"
            )
        leaves.append(leaf)
    for key, found in remaining.items():
        raise CheckpointError(f"{where}: leaf {key!r} of the file, {_describe(found)}, has no place; {_HINT}")
    return tree.unflatten(like, leaves)


_HINT = "hint: this is the checkpoint of another model or optimizer"


@contextlib.contextmanager
def _opened(where: str, path: Path) -> Iterator[BinaryIO]:
    """The file, its seal checked; whatever goes wrong in the block is a CheckpointError."""
    try:
        with open(path, "rb") as file:
            check_seal(file)
            yield file
    except OSError as error:
        raise CheckpointError(f"{where}: {path}: {_words(error)}") from error
    except Exception as error:  # of the kinds that unpickling raises there is no list
        raise CheckpointError(f"{where}: {path} is damaged, or no checkpoint: {_words(error)}") from error


def _check_sizes(file: BinaryIO) -> None:
    """Raise Damaged if reading the zip would take more memory than the file is large."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > size:
        raise Damaged("its entries are larger than it is")


def _is_data(item: tuple[object, object]) -> bool:
    key, leaf = item
    plain = type(leaf) is Tensor and leaf.layout is torch.strided and leaf.device.type == "cpu"
    return isinstance(key, str) and (plain or type(leaf) in SCALARS)


def _describe(leaf: object) -> str:
    if isinstance(leaf, Tensor):
        return f"{str(leaf.dtype).removeprefix('torch.')} of shape {tuple(leaf.shape)}"
    return f"of type {type(leaf).__name__}"


def _placed(found: object, wanted: object) -> object:
    """A new tensor with these values, where and as the wanted one lies."""
    if not isinstance(found, Tensor) or not isinstance(wanted, Tensor):
        return found
    if wanted.is_meta:
        return found.clone()
    with torch.no_grad():
        return torch.empty_like(wanted.detach()).copy_(found)


def _same_bits(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a == b
    x, y = (leaf.contiguous().reshape(-1).view(torch.uint8) for leaf in (a, b))
    return torch.equal(x, y)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).partition("\n")[0]


# --- a directory of checkpoints


def latest(directory: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint of a run directory that verifies; None where there is none."""
    for path in candidates(directory):
        with contextlib.suppress(CheckpointError):
            verify(path)
            return path
    return None


def candidates(directory: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run directory, newest first: by update as a number, then the two that have none."""
    where = Path(directory)
    steps = sorted(
        (int(match[1]), path) for path in where.glob("step-*.pt") if (match := STEP_FILE.fullmatch(path.name))
    )
    others = [where / name for name in ("last.pt", "best_model.pt")]
    return [path for _, path in reversed(steps)] + [path for path in others if path.exists()]
