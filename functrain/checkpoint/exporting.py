r"""Weights alone, in a file that other programs read.

A safetensors file is a map from names to tensors. `export_weights` writes a module's state dict as one, or any other
tensors by name; `weights_of` finds the weights in a Trainer's checkpoint, whose keys are those of a TrainState:
`params.0\.weight` is the parameter "0.weight".
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import torch
from torch import Tensor, nn

from functrain.checkpoint.contents import CheckpointError, Contents, dtype_name, words
from functrain.checkpoint.durable import Damaged, replacing
from functrain.checkpoint.writing import own_elements

_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz,
    torch.float8_e5m2, torch.float8_e5m2fnuz, torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
}  # fmt: skip
_BLOCK = 1 << 20  # bytes that are compared at once
_PARTS = ("params", "frozen", "buffers")  # of a TrainState


class Library(Protocol):
    """`safetensors.torch`."""

    save: Callable[[dict[str, Tensor], dict[str, str]], bytes]


def export_weights(path: str | os.PathLike[str], model_or_tensors: nn.Module | Mapping[str, Tensor]) -> None:
    """Write weights to a safetensors file, whole and verified, or not at all.

    `safetensors.torch.load_model(module, path)` reads it, and where no two weights are one tensor also
    `module.load_state_dict(load_file(path))`. Tied weights are written once, under their first name. For the time of
    the call the weights are in memory once more.

    Args:
        path: the file; an older one is replaced in one instant.
        model_or_tensors: a module, of which the state dict is written, or tensors by name.

    Raises:
        CheckpointError: a tensor that the format cannot say, or an error of the system, in its words. Whatever was on
            disk before is there still, and nothing else.
        ModuleNotFoundError: safetensors is not installed.
        TypeError: neither a module nor tensors by name.
    """
    target, library = Path(path), _library()
    where = f"checkpoint.export_weights: {target}"
    given = model_or_tensors.state_dict() if isinstance(model_or_tensors, nn.Module) else model_or_tensors
    if not isinstance(given, Mapping):
        raise TypeError(
            f"checkpoint.export_weights: expected a module or tensors by name, got {type(given).__name__}; "
            "hint: the module of a functionalized model is model.module"
        )
    data = library.save(dict(_flat(where, given)), {"format": "pt"})

    def check(file: BinaryIO) -> None:
        file.seek(0)
        for at in range(0, len(data) + 1, _BLOCK):
            if file.read(_BLOCK) != data[at : at + _BLOCK]:
                raise Damaged("its bytes are not those that were written")

    try:
        with replacing(target, check) as file:
            file.write(data)
    except (OSError, Damaged) as error:
        raise CheckpointError(f"{where}: {words(error)}") from error


def _library() -> Library:
    try:
        return cast("Library", importlib.import_module("safetensors.torch"))  # this module has these functions
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "checkpoint.export_weights: safetensors is not installed; hint: pip install 'functrain[safetensors]'"
        ) from error


def _flat(where: str, given: Mapping[str, object]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor once, dense and with a storage of its own."""
    seen = set()
    for name, x in given.items():
        if not isinstance(name, str) or not isinstance(x, Tensor):
            raise CheckpointError(
                f"{where}: {name!r} is a {type(x).__name__}; hint: weights are tensors, by names that are strings"
            )
        if x.dtype not in _DTYPES:
            raise CheckpointError(
                f"{where}: tensor {name!r} is {dtype_name(x.dtype)}, which safetensors cannot say; hint: convert it"
            )
        own = own_elements(f"{where}: tensor {name!r}", x)
        memory = (x.device, x.data_ptr(), x.nbytes) if x.nbytes else name
        if memory not in seen:
            seen.add(memory)
            yield name, own


# --- from a checkpoint


def weights_of(contents: Contents, averaged: bool = False) -> dict[str, Tensor]:
    """The parameters and buffers in a Trainer's checkpoint, under their own names.

    A checkpoint does not say which buffers are persistent: all are here. A tensor that had several names has the first.

    Args:
        contents: of a file that a Trainer wrote, or another whose tree is a TrainState.
        averaged: the running mean of the parameters (`ft.params_ema`) in the place of those that trained.

    Raises:
        CheckpointError: it is another file, or has no such mean, or several.
    """
    where = f"checkpoint.export: {contents.path}"
    components = {key: tuple(split_key(key)) for key in contents.leaves}
    tensors: dict[str, Tensor] = {}
    places = {part: _means(where, components) if averaged and part == "params" else (part,) for part in _PARTS}
    for place in places.values():
        for key, parts in components.items():
            if parts[: len(place)] != place or not isinstance(x := contents.leaves[key], Tensor):
                continue
            name = ".".join(parts[len(place) :])
            if not name:
                raise CheckpointError(f"{where}: {key!r} is one tensor, and not tensors by name")
            if name in tensors:
                raise CheckpointError(f"{where}: two tensors are called {name!r}")
            tensors[name] = x
    if not tensors:
        raise CheckpointError(f"{where}: it has no parameters; hint: this is not the checkpoint of a Trainer's run")
    return tensors


def _means(where: str, components: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Where the running mean of the parameters is in the optimizer's state."""
    wanted = {parts[1:] for parts in components.values() if parts[0] == "params"}
    found: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for parts in components.values():
        for i, part in enumerate(parts):
            if part == "ema" and parts[0] == "opt_state":
                found.setdefault(parts[: i + 1], set()).add(parts[i + 1 :])
    # The mean of gradients, `ft.ema`, has a count beside it.
    everything = set(components.values())
    places = [p for p, names in found.items() if names == wanted and (*p[:-1], "count") not in everything]
    if len(places) != 1:
        what = f"{len(places)} running means" if places else "no running mean"
        hint = "hint: ft.chain(optimizer, ft.params_ema(0.999)) keeps one"
        raise CheckpointError(f"{where}: the optimizer's state has {what} of the parameters; {hint}")
    return places[0]


_PIECE = re.compile(r"(?:[^\\.]|\\.)*", re.DOTALL)


def split_key(key: str) -> list[str]:
    r"""The names on the way to a leaf, from its key: the inverse of `tree.keys` for names that are strings.

    What is no string stays as the key has it, behind a backslash.

    >>> split_key(r"params.0\.weight"), split_key(r"params.\0\.weight"), split_key(r"a.\e.\i7")
    (['params', '0.weight'], ['params', '0.weight'], ['a', '', '\\i7'])
    """
    parts, at = [], 0
    while at <= len(key):
        piece = cast("re.Match[str]", _PIECE.match(key, at))  # it matches the empty string too
        parts.append(_unescape(piece[0]))
        at = piece.end() + 1
    return parts


def _unescape(piece: str) -> str:
    if piece == r"\e":
        return ""
    if piece.startswith((r"\i", r"\r")):
        return piece
    return re.sub(r"\\(.)", r"\1", piece, flags=re.DOTALL)
