"""Where a run stands in its data, and whether another run, with the same loader built anew, can stand there too.

What makes a resumed run exact is asked of the loader, and what is said of it is checked: a place remembers the
checksum of the last batch before it, and a replay that ends with another batch is found out.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Iterable, Sized
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from functrain.data import tensors
from functrain.run.streams import Stateful, States, to_json

_ENOUGH = 1 << 20  # bytes of a tensor that its checksum looks at


class Place(NamedTuple):
    """Where a run stands in its data."""

    epoch: int = 0  # epochs finished
    consumed: int = 0  # batches of the current one that went into updates
    exhausted: bool = False  # it has no more
    crossed: bool = False  # the last window began in the epoch before
    begun: States | None = None  # the streams when the epoch began; None where nothing would be replayed
    now: States | None = None  # the streams at this place; None: those of the epoch's begin, after a replay
    loader: object = None  # the state of a loader that keeps one, encoded
    last: int | None = None  # the checksum of the batch before this place
    batch_size: int | None = None  # of the loader, where it has one
    length: int | None = None  # batches an epoch, where it is known
    workers: int | None = None  # of the loader, where it has a number of them

    @property
    def ended(self) -> bool:
        """An epoch has ended here, and nothing that belongs to it is done yet."""
        return self.exhausted or self.crossed

    @property
    def replays(self) -> bool:
        """True if resuming here passes over batches again, or asks the loader to."""
        return self.consumed > 0 and not self.exhausted

    def to_json(self) -> dict[str, object]:
        """The place as JSON can say it."""
        begun, now = (None if states is None else to_json(states) for states in (self.begun, self.now))
        return {**self._asdict(), "begun": begun if self.replays else None, "now": now}


def known_length(loader: Iterable[object]) -> int | None:
    """len(loader), or None: a DataLoader over an IterableDataset has a `__len__` that raises."""
    try:
        return len(cast("Sized", loader))  # asked, not assumed
    except (TypeError, NotImplementedError):
        return None


def batch_size(loader: object) -> int | None:
    """The batch size that a loader tells, or None."""
    size = getattr(loader, "batch_size", None)
    return size if isinstance(size, int) else None


def worker_count(loader: object) -> int | None:
    """How many processes a loader has, or None."""
    count = getattr(loader, "num_workers", None)
    return count if isinstance(count, int) else None


def differences(place: Place, loader: Iterable[object], odd: Iterable[str]) -> list[str]:
    """What will differ, in words, in a run that goes on from this place with this loader.

    Args:
        place: where it was saved.
        loader: what it goes on with.
        odd: the names of random streams that were there at one time only.
    """
    found: list[str] = []
    if place.now is None and place.begun is None:  # nothing was drawn or read yet
        return found
    size, length, workers = batch_size(loader), known_length(loader), worker_count(loader)
    stateful, data = isinstance(loader, Stateful), getattr(loader, "dataset", None)
    began, kept = place.epoch or place.consumed, stateful and place.replays and place.loader is not None
    if names := ", ".join(sorted(odd)):
        found.append(
            f"the random streams {names} were there at one time only, when the run was saved or now, "
            "and what is drawn from them differs"
        )
    if place.batch_size != size:
        found.append(f"the batch size was {place.batch_size} and is {size}, so this epoch repeats or misses samples")
    elif place.length is not None and length is not None and place.length != length:
        found.append(f"an epoch had {place.length} batches and has {length}")
    if None not in (place.workers, workers) and place.workers != workers:
        found.append(f"the loader had {place.workers} workers and has {workers}, and what its dataset draws differs")
    elif workers and getattr(loader, "persistent_workers", False) and (place.epoch or place.exhausted):
        found.append("persistent workers start anew, and what they draw at random differs")
    elif workers and kept and not isinstance(data, Stateful):
        found.append("the loader's state has no random numbers of its workers, and what they draw differs")
    streamed = isinstance(data, IterableDataset) or (length is None and not isinstance(loader, DataLoader))
    if stateful and not isinstance(loader, DataLoader):
        if began and not kept:
            found.append("a loader's own state is kept within an epoch alone, and what it remembers else differs")
    elif streamed and began and not (kept and isinstance(data, Stateful)):
        found.append("the loader is an iterable without state, and differs unless it yields the same from its start")
    return found


def checksum(batch: object) -> int:
    """A number that another batch has not. Of a large tensor the first MiB counts."""
    total = 0
    for given in filter(_readable, tensors(batch)):
        x = given.detach().cpu().contiguous()
        size = min(x.nbytes, _ENOUGH)
        total = zlib.crc32(f"{x.dtype} {tuple(x.shape)}".encode(), total)
        total = zlib.crc32(ctypes.string_at(x.data_ptr(), size) if size else b"", total)
    return total


def versions(batch: object) -> list[int]:
    """How often each tensor of a batch was written to."""
    return [-1 if x.is_inference() else x._version for x in tensors(batch)]


def _readable(x: Tensor) -> bool:
    return type(x) is Tensor and x.layout is torch.strided and not x.is_meta
