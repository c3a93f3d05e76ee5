"""Batches: whatever a loader yields, with tensors somewhere inside.

They come as tensors, as containers and subclasses of containers, as dataclasses, as objects that know how to move; what
is none of these, a string or a number, is passed on as it is.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence, Sequence
from typing import cast

import torch
from torch import Tensor

from functrain import tree
from functrain.paths import children, rebuild


def length(batch: object) -> int:
    """The leading size of the batch's first tensor; 1 if it has none."""
    for leaf in tree.leaves(batch):
        for x in [leaf] if isinstance(leaf, Tensor) else tensors(leaf):
            if x.dim():
                return x.shape[0]
    return 1


def tensors(batch: object) -> Iterator[Tensor]:
    """The tensors in a batch, in order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping | list | tuple) or (
        isinstance(batch, Sequence) and not isinstance(batch, str | bytes)
    ):
        for child in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors(child)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from tensors(getattr(batch, field.name))


def to_device(batch: object, device: torch.device) -> object:
    """The batch with its tensors, and whatever else has `.to`, on the device; containers keep their types.

    What was given is as it was, also where `.to` works in place.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=batch.is_pinned()) if batch.device != device else batch
    if callable(getattr(batch, "to", None)):
        return copy.copy(cast("Tensor", batch)).to(device)  # no tensor, but it moves like one
    below = children(batch)
    if below is not None:
        return rebuild(batch, [to_device(child, device) for _, child in below])
    if isinstance(batch, MutableMapping | MutableSequence):  # subclasses, and what acts like them
        entries = copy.copy(batch)
        for key, value in list(batch.items() if isinstance(batch, MutableMapping) else enumerate(batch)):
            entries[key] = to_device(value, device)
        return entries
    if isinstance(batch, tuple):  # torch.return_types and other subclasses
        return type(batch)([to_device(child, device) for child in batch])
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(fields, field.name, to_device(getattr(batch, field.name), device))
        return fields
    return batch
