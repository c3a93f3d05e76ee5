"""What a file holds, and how an error says it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

FORMAT = 1
SCALARS = (bool, int, float, str)


class CheckpointError(Exception):
    """A checkpoint that cannot be written, is damaged, or does not fit."""


class Contents(NamedTuple):
    """What a file holds."""

    path: Path
    leaves: dict[str, object]  # by key: a tensor on the CPU, or a scalar
    meta: dict[str, object]  # what JSON can say


def identity(leaf: object) -> object:
    """Equal for two leaves that are one tensor."""
    if isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.numel() and leaf.device.type != "meta":
        return leaf.device, leaf.data_ptr(), leaf.dtype, leaf.shape, leaf.stride(), leaf.is_conj(), leaf.is_neg()
    return object()


def describe(leaf: object) -> str:
    """A leaf in words: `float32 of shape (2,)`, `of type int`."""
    if isinstance(leaf, Tensor):
        return f"{dtype_name(leaf.dtype)} of shape {tuple(leaf.shape)}"
    return f"of type {type(leaf).__name__}"


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`."""
    return str(dtype).removeprefix("torch.")


def same_bits(a: object, b: object) -> bool:
    """True for equal scalars, and for tensors of one dtype and shape with the same bytes."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a == b
    x, y = (leaf.contiguous().reshape(-1).view(torch.uint8) for leaf in (a, b))
    return torch.equal(x, y)


def words(error: Exception) -> str:
    """What an error says, in one line: the system's words where it has some."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).partition("\n")[0]
