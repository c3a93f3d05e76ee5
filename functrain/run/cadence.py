"""When a run looks, validates, saves and ends: functions of where it stands, and of nothing else.

Whatever is due at a boundary is due there again for a run that resumes at it, unless it was done: that is how a run
that was stopped between an update and its validation makes up for it.
"""

from __future__ import annotations

import math
import sys
from typing import Literal, NamedTuple

from functrain.ranges import positive, positive_int
from functrain.run.place import Place

ShortWindow = Literal["weighted", "drop", "carry"]
SHORT_WINDOWS = ("weighted", "drop", "carry")


class Cadence(NamedTuple):
    """Limits and intervals; intervals count updates, and None is once an epoch."""

    max_epochs: int | None
    max_steps: int | None
    log_interval: int
    eval_interval: int | None
    save_interval: int | None
    grad_accum_steps: int
    short_window: ShortWindow  # what becomes of an epoch's last batches, if they are fewer than a window
    validates: bool  # there is something to validate on

    def checked(self, length: int | None, max_time: float | None, **counts: int) -> Cadence:
        """This cadence; ValueError if the run would never end or never begin, or a count is not one.

        Args:
            length: batches an epoch, if known.
            max_time: seconds, or None.
            counts: what else must be an integer >= 1.
        """
        own = self._asdict().items()
        counts |= {name: n for name, n in own if n is not None and name not in ("validates", "short_window")}
        positive_int("Trainer", **counts)
        positive("Trainer", max_time=max_time)
        if self.short_window not in SHORT_WINDOWS:
            raise ValueError(f"Trainer: short_window must be 'weighted', 'drop' or 'carry', got {self.short_window!r}")
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("Trainer: max_epochs and max_steps are both None; hint: one of them must end the run")
        if length is not None:
            self.check_window(length)
        return self

    def check_window(self, length: int) -> None:
        """ValueError if an epoch of this length has no update."""
        if self.short_window == "drop" and 0 < length < self.grad_accum_steps:
            raise ValueError(
                f"Trainer: an epoch has {length} batches, fewer than grad_accum_steps={self.grad_accum_steps}, and "
                "short_window='drop' leaves none; hint: 'carry', or fewer accumulation steps"
            )

    @property
    def carried_until(self) -> int:
        """A window that an epoch's end would cut goes on while fewer epochs than this were begun."""
        if self.short_window != "carry":
            return 0
        return sys.maxsize if self.max_epochs is None else self.max_epochs

    def over(self, updates: int, place: Place) -> bool:
        """A limit is reached."""
        steps, epochs = self.max_steps, self.max_epochs
        return (steps is not None and updates >= steps) or (epochs is not None and place.epoch >= epochs)

    def without_batches(self, updates: int, place: Place) -> bool:
        """What is left of the run, if anything, needs no batch."""
        return self.over(updates, place._replace(epoch=place.epoch + place.exhausted))

    def log_due(self, updates: int, place: Place) -> bool:
        """At an interval, at an epoch's end, and at the last update."""
        return updates % self.log_interval == 0 or place.ended or self.over(updates, place)

    def validation_due(self, updates: int, place: Place, validated: int) -> bool:
        """Since no validation was at this update."""
        due = place.ended if self.eval_interval is None else updates % self.eval_interval == 0
        return self.validates and due and validated != updates

    def save_due(self, updates: int, ended: bool) -> bool:
        """Never before the first update.

        Args:
            updates: of the run so far.
            ended: an epoch has just ended.
        """
        due = ended if self.save_interval is None else updates % self.save_interval == 0
        return due and updates > 0

    def total_updates(self, length: int | None) -> int | None:
        """How many updates the whole run makes; None if nobody knows.

        Args:
            length: batches an epoch, if known.
        """
        limits = [] if self.max_steps is None else [self.max_steps]
        if self.max_epochs is not None and length is not None:
            limits.append(self._updates(length * self.max_epochs, length))
        return min(limits, default=None)

    def updates_in_epoch(self, updates: int, place: Place, length: int | None) -> tuple[int, int | None]:
        """How many updates of this epoch there were, and how many there will be; None if nobody knows.

        An update is of the epoch in which its window begins.

        Args:
            updates: of the run so far.
            place: where it stands.
            length: batches an epoch, if known.
        """
        known = length or 0
        before = self._updates(place.epoch * known, known)
        done = self._updates(place.epoch * known + place.consumed, known) - before
        total = None if length is None else self._updates((place.epoch + 1) * length, length) - before
        if self.max_steps is not None:
            left = done + self.max_steps - updates
            total = left if total is None else min(total, left)
        return done, total

    def _updates(self, batches: int, length: int) -> int:
        """Updates whose windows begin in so many batches of a run."""
        k = self.grad_accum_steps
        if self.short_window == "carry":  # of unknown length: the first batches ended a window of the epoch before
            return math.ceil(batches / k) if length else batches // k
        epochs, rest = divmod(batches, length) if length else (0, batches)
        if self.short_window == "drop":
            return epochs * (length // k) + rest // k
        return epochs * math.ceil(length / k) + math.ceil(rest / k)
