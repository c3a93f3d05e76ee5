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

from functrain.counter import wide
from functrain.precision import Guard
from functrain.run.feed import Feed
from functrain.run.nonfinite import NonFiniteError, Tolerance

FULL = 1000  # updates that nobody looked at are looked at


class Journal:
    """The metrics of updates that nobody has looked at yet, and how fast they came.

    Args:
        tolerance: how many updates in a row may not be finite.
        in_row: how many already were not.
    """

    def __init__(self, tolerance: Tolerance, in_row: int = 0) -> None:
        self.tolerance, self.in_row = tolerance, in_row
        self.last: Mapping[str, Tensor] = {}
        self.pending = False  # the last update is in no record yet
        self._unread: list[tuple[int, int, Mapping[str, Tensor]]] = []
        self._began, self._updates, self._samples, self._waited = time.perf_counter(), 0, 0, 0.0

    def restart(self, feed: Feed) -> None:
        """Measure speed from here."""
        self._began, self._updates, self._samples, self._waited = time.perf_counter(), 0, feed.samples, feed.waited

    def add(self, step: int, epoch: int, metrics: Mapping[str, Tensor]) -> None:
        """An update that has been computed, or is being."""
        # What the loss logs may be a view, which would hold all that it is a view of.
        metrics = {name: x.clone() if x.untyped_storage().nbytes() > x.nbytes else x for name, x in metrics.items()}
        self.last, self.pending = metrics, True
        self._updates += 1
        self._unread.append((step, epoch, metrics))

    @property
    def full(self) -> bool:
        """It is time for a look."""
        return len(self._unread) >= FULL

    def check(self) -> None:
        """Look at all updates since the last look.

        One that is skipped since its window weighs nothing neither adds to a row nor ends it, as in `Guard`.

        Raises:
            NonFiniteError: more in a row than the tolerance allows were not finite; the first too many is named, and
                those after it are counted.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        kind = wide(unread[0][2]["loss"].device)
        names = "loss", "grad_norm", "skipped"
        numbers = torch.stack([torch.stack([metrics[name].to(kind) for name in names]) for _, _, metrics in unread])
        complaint = ""
        for (step, epoch, _), (loss, norm, skipped) in zip(unread, numbers.tolist(), strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.in_row += 1
                if self.in_row > self.tolerance.in_row and not complaint:
                    complaint = self.tolerance.complaint(step, epoch, loss, norm, self.in_row)
            elif not skipped:
                self.in_row = 0
        if complaint:
            raise NonFiniteError(complaint)

    def read(self, feed: Feed, guard: Guard, max_grad_norm: float | None) -> dict[str, object]:
        """The last update's metrics as numbers, all skipped updates, and how fast updates came since the restart.

        Waiting for data is given as a share of all time, the norm's limit where there is one, and on a CUDA device the
        most memory that tensors took so far, in bytes.
        """
        self.pending = False
        seconds = max(time.perf_counter() - self._began, 1e-9)
        on_cuda = feed.device.type == "cuda"
        return {
            **{name: x.item() for name, x in self.last.items()},
            "skipped": int(guard.skipped),
            **({} if max_grad_norm is None else {"max_grad_norm": max_grad_norm}),
            "updates_per_second": self._updates / seconds,
            "samples_per_second": (feed.samples - self._samples) / seconds,
            "data_wait": (feed.waited - self._waited) / seconds,
            **({"memory": torch.cuda.max_memory_allocated(feed.device)} if on_cuda else {}),
        }
