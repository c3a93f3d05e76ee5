"""The batches of a loader, epoch after epoch, and the place in them that a run resumes from.

The place is where the last update ended. Its batches cannot be kept, so they are replayed: the random streams go back
to where they were when the epoch began, the loader is iterated again past what was consumed, and the streams go to
where they were at the place. `iter(loader)` itself draws, so the last comes after it; and a sampler may draw once more
when it is exhausted, so an epoch without further batches is remembered as such, not as the start of the next.

A loader that keeps its own place (torchdata's StatefulDataLoader) is asked for it, and nothing is replayed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch

from functrain.data import length, to_device
from functrain.run.encoding import decode, encode
from functrain.run.place import Place, batch_size, checksum, differences, known_length, versions, worker_count
from functrain.run.streams import Stateful, States, capture, restore, streams

_END = object()


class Feed:
    """Batches on a device, and the place in them.

    Args:
        loader: an iterable of batches; it is iterated once an epoch.
        device: where the batches go.
    """

    def __init__(self, loader: Iterable[object], device: torch.device) -> None:
        self.loader, self.device = loader, device
        self.place = Place()
        self.length = known_length(loader)  # batches an epoch; None where the loader does not know
        self.samples, self.waited = 0, 0.0  # so far; and seconds spent waiting for the loader
        self._batches: Iterator[object] | None = None
        self._ahead: list[object] = []  # what a look for the end of the epoch found instead
        self._epoch, self._fetched, self._ended = 0, 0, False  # how far the reading is; the place follows at `mark`
        self._begun: States | None = None
        self._settled = True  # nothing was drawn since the place: the streams as they are belong to it
        self._held = False  # the place is still to be taken up
        self._newest: tuple[object, list[int]] | None = None  # the last batch, and its tensors' versions
        self._last: tuple[object, list[int]] | None = None  # the last batch before the place
        self._sources = streams(loader)

    @property
    def last_epoch(self) -> int:
        """The epoch of the last update, from 1."""
        return max(1, self.place.epoch + (self.place.consumed > 0))

    def open(self, replay: bool = True, more: Sequence[str] = ()) -> list[str]:
        """Take up the place.

        Args:
            replay: False if no batch will be asked for.
            more: what else will differ, if batches will be asked for.

        Returns:
            What will differ from the run that was saved, in words; it is warned of, too.

        Raises:
            ValueError: the loader has fewer batches than were consumed; the random streams are as before.
        """
        self._sources, self.length, place = streams(self.loader), known_length(self.loader), self.place
        self._epoch, self._fetched, self._ended = place.epoch, place.consumed, place.exhausted
        self._begun, self._settled = place.begun, True
        saved = place.now or place.begun
        different: list[str] = []
        if replay:
            different += more
            names = set() if saved is None else saved.keys() ^ self._sources.keys()
            mine = f"cuda:{self.device.index or 0}" if self.device.type == "cuda" else ""
            odd = [name for name in names if not name.startswith("cuda:") or name == mine]
            different += differences(place, self.loader, odd)
        if replay and place.replays and place.begun is not None:
            before = capture(self._sources)
            try:
                different += self._replay(place, place.begun)
            except BaseException:
                restore(before, self._sources)
                raise
        if place.now is not None:
            restore(place.now, self._sources)
        self._held = False
        if different:
            warnings.warn(f"resume is not exact: {'; '.join(different)}", stacklevel=3)
        return different

    def _replay(self, place: Place, begun: States) -> list[str]:
        """Go to a place within an epoch."""
        restore(begun, self._sources)
        if isinstance(self.loader, Stateful) and place.loader is not None:
            self.loader.load_state_dict(cast("dict[str, object]", decode(place.loader)))
            self._begin()
            self._begun = begun
            return []
        self._begin()
        batch = None
        for i in range(place.consumed):
            batch = self._fetch()
            if batch is _END:
                self._batches = None
                raise ValueError(
                    f"resume: the train loader ended after {i} batches, and the run had consumed {place.consumed} "
                    "of this epoch; hint: resume with the same data and batch size"
                )
        same = place.last is None or place.last == checksum(batch) or place.batch_size != batch_size(self.loader)
        return [] if same else ["the batch before this place is not the one that the saved run had"]

    def window(self, k: int, epochs: int = 0) -> Iterator[object]:
        """The next k batches, fewer at the end of an epoch; none where it has ended.

        Args:
            k: batches in a whole window.
            epochs: while fewer than these were begun, a window that the epoch's end would cut goes on into the next.

        Raises:
            ValueError: an epoch has no batch at all.
        """
        self._settled = self._ended
        if self._batches is None and not self._ended:
            self._begin()
            self.place = self.place._replace(begun=self._begun)
        taken = 0
        while taken < k and not self._ended:
            before = time.perf_counter()
            batch = self._fetch()
            self.waited += time.perf_counter() - before
            if batch is _END:
                if not self._fetched:
                    raise ValueError(self._nothing())
                self._ended = not (taken and self._epoch + 1 < epochs)
                if not self._ended:
                    self._epoch, self._fetched = self._epoch + 1, 0
                    self._begin()
                continue
            self._fetched, taken = self._fetched + 1, taken + 1
            self._newest = batch, versions(batch)
            self.samples += length(batch)
            yield to_device(batch, self.device)

    def mark(self) -> None:
        """What came out so far went into updates: the place is here."""
        crossed = self.place.crossed or self._epoch > self.place.epoch
        self._last, self._settled = self._newest, True
        self.place = Place(self._epoch, self._fetched, self._ended, crossed, self._begun)

    def look(self) -> None:
        """Where that can be known, see now that the epoch is over, and not at the next window."""
        if self._ended or self._fetched != self.length:
            return
        self._settled = False
        batch = self._fetch()
        self._settled = self._ended = batch is _END
        if self._ended:
            self.place = self.place._replace(exhausted=True)
        else:
            self._ahead.append(batch)

    def finish_epoch(self) -> None:
        """All is done that belongs to an epoch's end."""
        if self.place.exhausted:
            self._batches, self._epoch, self._fetched, self._ended = None, self._epoch + 1, 0, False
            self.place, self._settled = Place(self._epoch), True
        else:
            self.place = self.place._replace(crossed=False)

    def here(self) -> Place:
        """The place to save.

        The streams are there as they are, if nothing was drawn for the next window; else as they were when the epoch
        began, for a replay to bring them here.
        """
        if self._held:
            return self.place
        place = self.place._replace(
            batch_size=batch_size(self.loader), length=self.length, workers=worker_count(self.loader)
        )
        if self._last is not None:
            batch, written = self._last
            place = place._replace(last=checksum(batch) if versions(batch) == written else None)
        if not self._settled:
            return place._replace(now=place.begun if place.consumed == 0 else place.now, loader=None)
        keeps = isinstance(self.loader, Stateful) and place.replays and self._batches is not None
        state = encode(cast("Stateful", self.loader).state_dict(), "the loader's state") if keeps else place.loader
        return place._replace(now=capture(self._sources), loader=state)

    def go(self, place: Place) -> None:
        """Another place, to be taken up by `open`."""
        self.place, self._held, self._last = place, True, None

    def close(self) -> None:
        """Let the iterator and its workers go; `open` takes the place up again."""
        try:
            self.go(self.here())
        finally:
            self._batches, self._ahead = None, []
            if getattr(self.loader, "persistent_workers", False):  # that went on would not draw what new ones do
                vars(self.loader)["_iterator"] = None

    def _begin(self) -> None:
        for owner in (self.loader, getattr(self.loader, "sampler", None), getattr(self.loader, "batch_sampler", None)):
            if callable(set_epoch := getattr(owner, "set_epoch", None)):  # DistributedSampler and its like
                set_epoch(self._epoch)
        self._begun = capture(self._sources)
        self._batches, self.length = iter(self.loader), known_length(self.loader)

    def _fetch(self) -> object:
        return self._ahead.pop() if self._ahead else next(cast("Iterator[object]", self._batches), _END)  # begun

    def _nothing(self) -> str:
        if not self._epoch:
            return "Trainer: the train loader yields no batch"
        one_shot = isinstance(self.loader, Iterator)
        what = (
            "is an iterator, and was spent after one epoch" if one_shot else f"has no batch in epoch {self._epoch + 1}"
        )
        hint = "hint: give something that can be iterated again, such as a DataLoader or a list"
        return f"Trainer: the train loader {what}; {hint}"
