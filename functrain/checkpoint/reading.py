"""A file's contents, once its seal and its claims are checked."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from torch import Tensor

from functrain.checkpoint.claims import check_file
from functrain.checkpoint.contents import SCALARS, CheckpointError, Contents, words
from functrain.checkpoint.durable import Damaged


def verify(path: str | os.PathLike[str]) -> Literal[True]:
    """True if the file is whole and as it was written.

    Raises:
        CheckpointError: it is not there, is damaged, or is no checkpoint.
    """
    with _opened("checkpoint.verify", Path(path)):
        return True


def read(path: str | os.PathLike[str]) -> Contents:
    """All that is in a file, for a caller that looks at `meta` first; `rebuild` makes a tree of it.

    Raises:
        CheckpointError: as in `load`.
    """
    target = Path(path)
    with _opened("checkpoint.load", target) as file:
        file.seek(0)
        found = torch.load(file, map_location="cpu", weights_only=True)
        leaves, meta = found["leaves"], json.loads(found["meta"])
        if not all(map(_is_data, leaves.values())):
            raise Damaged("it holds something else than tensors and scalars by name")
    return Contents(target, leaves, meta)


@contextlib.contextmanager
def _opened(where: str, path: Path) -> Iterator[BinaryIO]:
    """The file, checked; whatever goes wrong in the block is a CheckpointError."""
    try:
        with open(path, "rb") as file:
            check_file(file)
            yield file
    except OSError as error:
        raise CheckpointError(f"{where}: {path}: {words(error)}") from error
    except Exception as error:  # of the kinds that unpickling raises there is no list
        raise CheckpointError(f"{where}: {path} is damaged, or no checkpoint: {words(error)}") from error


def _is_data(leaf: object) -> bool:
    plain = type(leaf) is Tensor and leaf.layout is torch.strided and leaf.device.type == "cpu"
    return plain or type(leaf) in SCALARS
