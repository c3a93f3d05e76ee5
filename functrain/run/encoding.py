"""Python's values as JSON can write them, with the types that JSON does not know.

What a scheduler or a loader remembers of itself is of its own making: dicts with numbers as keys, tuples, tensors.
Numbers and strings stay as they are, and everything else is a list of its kind and its entries.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

_DTYPES = {str(x): x for x in vars(torch).values() if isinstance(x, torch.dtype)}  # no name in a file selects more


def encode(x: object, whose: str) -> object:
    """x as JSON has it.

    Args:
        x: numbers, strings, bytes, None, ranges, tensors on any device, and dicts, lists and tuples of such.
        whose: what it belongs to, for the message.

    Raises:
        TypeError: what has no place in a file.
    """
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if isinstance(x, Tensor):
        return ["tensor", [str(x.dtype), list(x.shape), _text(_bytes(x))]]
    if isinstance(x, bytes):
        return ["bytes", [_text(x)]]
    if isinstance(x, range):
        return ["range", [x.start, x.stop, x.step]]
    if type(x).__module__ == "numpy" and getattr(x, "ndim", None) == 0 and callable(item := getattr(x, "item", None)):
        return encode(item(), whose)
    if isinstance(x, dict):
        kind = "counter" if isinstance(x, Counter) else "dict"
        return [kind, [[encode(k, whose), encode(v, whose)] for k, v in x.items()]]
    if isinstance(x, tuple | list):
        return ["tuple" if isinstance(x, tuple) else "list", [encode(y, whose) for y in x]]
    raise TypeError(f"Trainer: a {type(x).__name__} among the values of {whose} cannot be saved")


def decode(x: object) -> object:
    """The inverse of `encode`.

    Raises:
        ValueError: it is not what `encode` writes.
    """
    if not isinstance(x, list):
        return x
    try:
        return _decoded(*x)
    except (TypeError, KeyError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError("values that were not encoded here") from error


def _decoded(kind: str, entries: Sequence[object]) -> object:
    if kind in ("dict", "counter"):
        pairs = {decode(k): decode(v) for k, v in cast("Sequence[Sequence[object]]", entries)}
        return Counter(cast("Mapping[object, int]", pairs)) if kind == "counter" else pairs
    if kind == "tensor":
        dtype, shape, text = cast("tuple[str, list[int], str]", entries)
        found = base64.b64decode(text)
        flat = (
            torch.frombuffer(bytearray(found), dtype=_DTYPES[dtype]) if found else torch.empty(0, dtype=_DTYPES[dtype])
        )
        return flat.reshape(shape)
    if kind == "bytes":
        return base64.b64decode(cast("str", entries[0]))
    if kind == "range":
        return range(*cast("tuple[int, int, int]", entries))
    made = [decode(y) for y in entries]
    return {"tuple": tuple, "list": list}[kind](made)


def _bytes(x: Tensor) -> bytes:
    flat = x.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def _text(x: bytes) -> str:
    return base64.b64encode(x).decode()
