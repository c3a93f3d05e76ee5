"""A tree into a file, whole and verified, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

import torch
from torch import Tensor

from functrain import tree
from functrain.checkpoint.claims import check_file
from functrain.checkpoint.contents import FORMAT, SCALARS, CheckpointError, identity, words
from functrain.checkpoint.durable import Damaged, Sealing, replacing
from functrain.donation import check_leaves
from functrain.tree import Tree

_BITS = 8 * 255 - 1  # of an int, without its sign: what the pickles that torch reads as data can say


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
        RuntimeError: a state that was donated to a compiled call is in it.
    """
    check_leaves("checkpoint.save", tree)
    target = Path(path)
    contents = {"format": FORMAT, "leaves": _flat(target, tree), "meta": json.dumps(dict(meta or {}))}
    try:
        with replacing(target, check_file) as file:
            sealing = Sealing(file)
            torch.save(contents, cast("BinaryIO", sealing))  # torch asks for write and flush alone
            sealing.seal()
    except (OSError, Damaged) as error:
        raise CheckpointError(f"checkpoint.save: {target}: {words(error)}") from error


def _flat(path: Path, t: Tree) -> dict[str, object]:
    written: dict[object, object] = {}
    flat = {}
    for key, name, leaf in zip(tree.keys(t), tree.paths(t), tree.leaves(t), strict=True):
        one = identity(leaf)
        if one not in written:
            written[one] = _portable(path, name, leaf)
        flat[key] = written[one]
    return flat


def _portable(path: Path, name: str, leaf: object) -> object:
    """The leaf as it is written."""
    where = f"checkpoint.save: {path}: leaf {name!r}"
    if isinstance(leaf, Tensor):
        return own_elements(where, leaf)
    if type(leaf) not in SCALARS:
        raise CheckpointError(
            f"{where} is a {type(leaf).__name__}; hint: a checkpoint holds tensors, bool, int, float and str"
        )
    if isinstance(leaf, int) and leaf.bit_length() > _BITS:
        raise CheckpointError(f"{where} is an int of more than {_BITS} bits; hint: save it as a str")
    return leaf


def own_elements(where: str, leaf: Tensor) -> Tensor:
    """The tensor with a storage of its own, as large as itself.

    Raises:
        CheckpointError: it is not dense, or has no values; `where` begins the message.
    """
    plain = leaf.detach()
    if type(plain) is not Tensor or plain.layout is not torch.strided or plain.is_quantized or plain.is_meta:
        raise CheckpointError(
            f"{where} is not a dense tensor with values ({type(plain).__name__}, {plain.layout}, "
            f"on {plain.device.type}); hint: convert it first"
        )
    plain = plain.resolve_conj().resolve_neg().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()
