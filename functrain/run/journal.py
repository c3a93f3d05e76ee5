"""What the updates since the last look computed.

An update's metrics are tensors, and reading one waits for the accelerator. They are kept here as they are, and read
together when somebody looks: at a log, a validation, a save.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from functrain.precision import Guard
from functrain.run.feed import Feed


class NonFiniteError(FloatingPointError):
    """A loss or a gradient was not finite, and nobody expected it."""


class Journal:
    """The metrics of updates that nobody has looked at yet, and how fast they came.

    Args:
        strict: an update that was not finite is an error.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.last: Mapping[str, Tensor] = {}
        self.pending = False  # the last update is in no record yet
        self._unread: list[tuple[int, int, Mapping[str, Tensor]]] = []
        self._began, self._updates, self._samples, self._waited = time.perf_counter(), 0, 0, 0.0

    def restart(self, feed: Feed) -> None:
        """Measure speed from here."""
        self._began, self._updates, self._samples, self._waited = time.perf_counter(), 0, feed.samples, feed.waited

    def add(self, step: int, epoch: int, metrics: Mapping[str, Tensor]) -> None:
        """An update that has been computed, or is being."""
        self.last, self.pending = metrics, True
        self._updates += 1
        self._unread.append((step, epoch, metrics))

    def check(self) -> None:
        """Look at all updates since the last look.

        Raises:
            NonFiniteError: one was not finite, in a strict journal; the first of them is named.
        """
        unread, self._unread = self._unread, []
        if not self.strict or not unread:
            return
        numbers = torch.stack([torch.stack([m["loss"].float(), m["grad_norm"].float()]) for _, _, m in unread])
        for (step, epoch, _), (loss, norm) in zip(unread, numbers.tolist(), strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NonFiniteError(
                    f"Trainer: update {step} in epoch {epoch} was not finite: loss {loss}, gradient norm {norm}; the "
                    "parameters are as before it; hint: a smaller rate, max_grad_norm=, or nonfinite='skip' to go on"
                )

    def read(self, feed: Feed, guard: Guard, max_grad_norm: float | None) -> dict[str, object]:
        """The last update's metrics as numbers, all skipped updates, and how fast updates came since the restart.

        Waiting for data is given as a share of all time, and the norm's limit where there is one.
        """
        self.check()
        self.pending = False
        seconds = max(time.perf_counter() - self._began, 1e-9)
        return {
            **{name: x.item() for name, x in self.last.items()},
            "skipped": int(guard.skipped),
            **({} if max_grad_norm is None else {"max_grad_norm": max_grad_norm}),
            "updates_per_second": self._updates / seconds,
            "samples_per_second": (feed.samples - self._samples) / seconds,
            "data_wait": (feed.waited - self._waited) / seconds,
        }
