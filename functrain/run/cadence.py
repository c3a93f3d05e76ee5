"""When a run looks, validates, saves and ends: functions of where it stands, and of nothing else.

Whatever is due at a boundary is due there again for a run that resumes at it, unless it was done: that is how a run
that was stopped between an update and its validation makes up for it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from functrain.ranges import positive, positive_int
from functrain.run.feed import Place


class Cadence(NamedTuple):
    """Limits and intervals; intervals count updates, and None is once an epoch."""

    max_epochs: int | None
    max_steps: int | None
    log_interval: int
    eval_interval: int | None
    save_interval: int | None
    grad_accum_steps: int
    validates: bool  # there is something to validate on

    def checked(self, max_time: float | None, keep: int) -> Cadence:
        """This cadence; ValueError if the run would never end, or a count is not one."""
        counts = {"keep": keep}
        counts |= {name: n for name, n in self._asdict().items() if n is not None and name != "validates"}
        positive_int("Trainer", **counts)
        positive("Trainer", max_time=max_time)
        if self.max_epochs is None and self.max_steps is None:
            raise ValueError("Trainer: max_epochs and max_steps are both None; hint: one of them must end the run")
        return self

    def over(self, updates: int, place: Place) -> bool:
        """A limit is reached."""
        steps, epochs = self.max_steps, self.max_epochs
        return (steps is not None and updates >= steps) or (epochs is not None and place.epoch >= epochs)

    def log_due(self, updates: int, place: Place) -> bool:
        """At an interval, and at an epoch's end."""
        return updates % self.log_interval == 0 or place.exhausted

    def validation_due(self, updates: int, place: Place, validated: int) -> bool:
        """Since no validation was at this update."""
        due = place.exhausted if self.eval_interval is None else updates % self.eval_interval == 0
        return self.validates and due and validated != updates

    def save_due(self, updates: int, place: Place) -> bool:
        """Never before the first update."""
        due = place.consumed == 0 if self.save_interval is None else updates % self.save_interval == 0
        return due and updates > 0

    def updates_in_epoch(self, updates: int, place: Place, length: int | None) -> tuple[int, int | None]:
        """How many updates of this epoch there were, and how many there will be; None if nobody knows.

        Args:
            updates: of the run so far.
            place: where it stands.
            length: batches an epoch, if known.
        """
        done = math.ceil(place.consumed / self.grad_accum_steps)
        total = None if length is None else math.ceil(length / self.grad_accum_steps)
        if self.max_steps is not None:
            left = done + self.max_steps - updates
            total = left if total is None else min(total, left)
        return done, total
