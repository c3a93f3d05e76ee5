"""When to stop before the limits: a function of the records, so that a run that resumes needs no state for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from functrain.logging import Record, number
from functrain.ranges import non_negative, positive_int


class EarlyStopping(NamedTuple):
    """Stop when a number of the records has not become better for a while.

    Better is what is below the best before it by more than `min_delta` (above it, where mode is "max"), and only that
    becomes the best. NaN is never better.
    """

    patience: int  # how many records in a row without a better one end the run; >= 1
    min_delta: float = 0.0  # >= 0, in the unit of the number
    monitor: str = "val_loss"  # the number's name in the records; those without it do not count
    mode: Literal["min", "max"] = "min"  # which way is better

    def checked(self) -> EarlyStopping:
        """These values; ValueError if one is out of its range."""
        positive_int("EarlyStopping", patience=self.patience)
        non_negative("EarlyStopping", min_delta=self.min_delta)
        if self.mode not in ("min", "max"):
            raise ValueError(f"EarlyStopping: mode must be 'min' or 'max', got {self.mode!r}")
        return self

    def reason(self, history: Sequence[Record]) -> str | None:
        """Why the run should stop after these records, in words; None if it should go on.

        Raises:
            ValueError: there were validations, and no record has the number.
        """
        sign = 1 if self.mode == "min" else -1
        best, where, waited = math.inf, "", 0  # the best so far, where it was, and how many records came since
        for record in history:
            if self.monitor in record:
                x = sign * number(record[self.monitor])
                if x + self.min_delta < best:
                    best, where, waited = x, f"{sign * x:.5g} of update {record['step']:,}", 0
                else:
                    waited += 1
        self._check_names(history)
        if waited < self.patience:
            return None
        times = f"{waited} {'validation' if self._of_validation else 'record'}{'s' if waited > 1 else ''}"
        if not where:
            return f"{self.monitor} was not a finite number in {times}"
        way = "fallen below" if self.mode == "min" else "risen above"
        margin = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.monitor} has not {way} {where}{margin} in {times}"

    @property
    def _of_validation(self) -> bool:
        return self.monitor.startswith("val_")

    def _check_names(self, history: Sequence[Record]) -> None:
        """Raise ValueError if nothing is there to look at, and nothing will be."""
        names = dict.fromkeys(name for record in history for name in record)
        first = "val_loss" if self._of_validation else "loss"  # before the first of its kind nobody can know
        if "val_loss" in names and first in names and self.monitor not in names:
            raise ValueError(
                f"EarlyStopping: no record has {self.monitor!r}; hint: monitor is one of {', '.join(names)}"
            )


def early(given: EarlyStopping | int | None) -> EarlyStopping | None:
    """What the Trainer's argument means: a whole number is the patience.

    Raises:
        TypeError, ValueError: it is something else, or out of its range.
    """
    if given is None or isinstance(given, EarlyStopping):
        return given and given.checked()
    if isinstance(given, int):
        return EarlyStopping(given).checked()
    raise TypeError(
        f"Trainer: early_stopping is a {type(given).__name__}; hint: a number of validations, or ft.EarlyStopping(...)"
    )
