"""The batches of a loader, epoch after epoch, and the place in them that a run resumes from.

The place is where the last update ended. Its batches cannot be kept, so they are replayed: the random streams go back
to where they were when the epoch began, the loader is iterated again past what was consumed, and the streams go to
where they were at the place. `iter(loader)` itself draws, so the last comes after it; and a sampler may draw once more
when it is exhausted, so an epoch without further batches is remembered as such, not as the start of the next.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sized
from typing import NamedTuple, cast

import torch
from torch import Tensor

from functrain.loss import length
from functrain.paths import children, rebuild
from functrain.run.streams import States, capture, restore, streams, to_json, warn_of_changes

_END = object()


class Place(NamedTuple):
    """Where a run stands in its data."""

    epoch: int = 0  # epochs finished
    consumed: int = 0  # batches of the current one that went into updates
    exhausted: bool = False  # it has no more
    begun: States | None = None  # the streams when the epoch began; None where nothing would be replayed
    now: States | None = None  # the streams at this place; None before the first train()

    @property
    def replays(self) -> bool:
        """True if resuming here passes over batches again."""
        return self.consumed > 0 and not self.exhausted

    def to_json(self) -> dict[str, object]:
        """The place as JSON can say it."""
        begun, now = (None if states is None else to_json(states) for states in (self.begun, self.now))
        return {**self._asdict(), "begun": begun if self.replays else None, "now": now}


class Feed:
    """Batches on a device, and the place in them.

    Args:
        loader: an iterable of batches; it is iterated once an epoch.
        device: where the batches go.
    """

    def __init__(self, loader: Iterable[object], device: torch.device) -> None:
        self.loader, self.device = loader, device
        self.place = Place()
        self.samples, self.waited = 0, 0.0  # so far; and seconds spent waiting for the loader
        self._batches: Iterator[object] | None = None
        self._ahead: list[object] = []  # what a look for the end of the epoch found instead
        self._fetched, self._ended = 0, False
        self._settled = True  # nothing was drawn for the next window: the streams as they are belong to the place
        self._sources = streams(loader)

    @property
    def length(self) -> int | None:
        """Batches an epoch; None where the loader does not know."""
        return known_length(self.loader)

    def open(self, replay: bool = True) -> None:
        """Take up the place.

        Args:
            replay: False if no batch will be asked for.

        Raises:
            ValueError: the loader has fewer batches than were consumed.
        """
        self._sources = streams(self.loader)
        place = self.place
        self._fetched, self._ended, self._settled = place.consumed, place.exhausted, True
        if place.now is None:
            return
        warn_of_changes(place.now, self._sources)
        if replay and place.replays and place.begun is not None:
            restore(place.begun, self._sources)
            self._begin()
            for i in range(place.consumed):
                if self._fetch() is _END:
                    raise ValueError(
                        f"resume: the train loader ended after {i} batches, and the run had consumed {place.consumed} "
                        "of this epoch; hint: resume with the same data and batch size"
                    )
        restore(place.now, self._sources)

    def window(self, k: int) -> Iterator[object]:
        """The next k batches, fewer at the end of an epoch; none where it has ended.

        Raises:
            ValueError: an epoch has no batch at all.
        """
        self._settled = self._ended
        if self._batches is None and not self._ended:
            self._begin()
        for _ in range(0 if self._ended else k):
            before = time.perf_counter()
            batch = self._fetch()
            self.waited += time.perf_counter() - before
            if batch is _END:
                self._ended = True
                if not self._fetched:
                    raise ValueError(self._nothing())
                return
            self._fetched += 1
            self.samples += length(batch)
            yield to_device(batch, self.device)

    def mark(self) -> None:
        """What came out so far went into updates: the place is here."""
        self._settle(Place(self.place.epoch, self._fetched, self._ended, self.place.begun))
        if not self._ended and self._fetched == self.length:  # see now that the epoch is over, not at the next window
            batch = self._fetch()
            self._ended = batch is _END
            if batch is not _END:
                self._ahead.append(batch)
            self._settle(self.place._replace(exhausted=self._ended))

    def finish_epoch(self) -> None:
        """The epoch is over, and all that belongs to it is done."""
        self._batches, self._fetched, self._ended = None, 0, False
        self._settle(Place(self.place.epoch + 1))

    def here(self) -> Place:
        """The place to save: with the streams as they are, if nothing was drawn for the next window."""
        return self.place._replace(now=capture(self._sources)) if self._settled else self.place

    def go(self, place: Place) -> None:
        """Another place, to be taken up by `open`."""
        self.place, self._settled = place, False

    def close(self) -> None:
        """Let the iterator and its workers go; `open` takes the place up again."""
        self.go(self.here())
        self._batches, self._ahead = None, []

    def _settle(self, place: Place) -> None:
        self.place, self._settled = place._replace(now=capture(self._sources)), True

    def _begin(self) -> None:
        for owner in (self.loader, getattr(self.loader, "sampler", None), getattr(self.loader, "batch_sampler", None)):
            if callable(set_epoch := getattr(owner, "set_epoch", None)):  # DistributedSampler and its like
                set_epoch(self.place.epoch)
        self.place = self.place._replace(begun=capture(self._sources))
        self._batches = iter(self.loader)

    def _fetch(self) -> object:
        return self._ahead.pop() if self._ahead else next(cast("Iterator[object]", self._batches), _END)  # begun

    def _nothing(self) -> str:
        if isinstance(self.loader, Iterator) and self.place.epoch:
            return (
                "Trainer: the train loader is an iterator, and was spent after one epoch; "
                "hint: give something that can be iterated again, such as a DataLoader or a list"
            )
        return "Trainer: the train loader yields no batch"


def known_length(loader: Iterable[object]) -> int | None:
    """len(loader), or None: a DataLoader over an IterableDataset has a `__len__` that raises."""
    try:
        return len(cast("Sized", loader))  # asked, not assumed
    except (TypeError, NotImplementedError):
        return None


def to_device(batch: object, device: torch.device) -> object:
    """The batch with its tensors, and whatever else has `.to`, on the device; containers keep their types."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=batch.is_pinned()) if batch.device != device else batch
    if callable(to := getattr(batch, "to", None)):
        return to(device)
    below = children(batch)
    if below is not None:
        return rebuild(batch, [to_device(child, device) for _, child in below])
    if isinstance(batch, dict | list):  # subclasses
        entries = copy.copy(batch)
        for key, value in list(batch.items() if isinstance(batch, dict) else enumerate(batch)):
            entries[key] = to_device(value, device)
        return entries
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(fields, field.name, to_device(getattr(batch, field.name), device))
        return fields
    return batch
