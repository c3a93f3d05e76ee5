"""Who writes a run's checkpoints: the thread that trains, or one beside it.

In the background a save is a copy of the state, and the rest happens while training goes on. One is written at a time:
the next waits for it, and hears what went wrong with it. In either case the order on disk is the same, so a process
that is killed loses at most the save that was being written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from functrain import tree
from functrain.run.directory import RunDirectory
from functrain.state import TrainState


class Order(NamedTuple):
    """What a checkpoint is called."""

    step: int
    epoch: int  # from 1
    best: bool = False  # as best_model.pt too
    least: float = -math.inf  # its validation loss: a best_model.pt that is as good stays


class Saved(NamedTuple):
    """A checkpoint that is on disk."""

    path: Path
    order: Order

    @property
    def names(self) -> list[str]:
        """Its further names, for people."""
        return [*(["best"] if self.order.best else []), "last"]


class Saver:
    """Writes checkpoints to a directory.

    Args:
        run: the run's directory; None is ./checkpoints.
        background: in a thread.
    """

    def __init__(self, run: RunDirectory | None, background: bool) -> None:
        self.directory, self.background = run or RunDirectory("checkpoints"), background
        self.last: Path | None = None  # the checkpoint to go back to
        self._pool: ThreadPoolExecutor | None = None
        self._writing: Future[Saved] | None = None

    def save(self, state: TrainState, meta: Mapping[str, object], order: Order, wait: bool) -> Saved | None:
        """Write a state; what is on disk when this returns, or None if it is being written.

        Args:
            state: what is written; in the background, a copy of it on the CPU.
            meta: what is beside it; it must not change any more.
            order: what it is called.
            wait: write it here and now, even if others are written in the background.

        Raises:
            CheckpointError: it could not be written.
        """
        if not self.background or wait:
            return self._write(state, meta, order)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "functrain-save")
        self._writing = self._pool.submit(self._write, snapshot(state), meta, order)
        return None

    def _write(self, state: TrainState, meta: Mapping[str, object], order: Order) -> Saved:
        self.last = self.directory.save(order.step, state, meta, order.best, order.least)
        return Saved(self.last, order)

    def result(self, wait: bool) -> Saved | None:
        """The save in the background, told once; None if there was none, or it is still being written.

        Args:
            wait: until it is written.

        Raises:
            CheckpointError: it failed.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return None
        writing, self._writing = self._writing, None
        return writing.result()

    def close(self) -> None:
        """Let the thread go, when it has written what it is writing."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def snapshot(state: TrainState) -> TrainState:
    """A copy of the state on the CPU. What is one tensor in the state is one in the copy."""
    copies: dict[int, Tensor] = {}

    def copy(x: Tensor) -> Tensor:
        if id(x) not in copies:
            with torch.no_grad():
                copies[id(x)] = x.detach().to("cpu", copy=True)
        return copies[id(x)]

    return tree.map(copy, state)
