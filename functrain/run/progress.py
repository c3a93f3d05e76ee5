"""How far a run has come, beside the tensors: what a checkpoint's meta says of it, and how it is read back."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TypeVar

from functrain.checkpoint import CheckpointError, Contents
from functrain.logging import Record
from functrain.run.place import Place
from functrain.run.streams import ALWAYS

T = TypeVar("T")


@dataclass
class Progress:
    """What the loop remembers of the past."""

    history: list[Record] = field(default_factory=list)
    best: float = math.inf  # the lowest validation loss
    validated: int = 0  # the update after which the last validation was

    def validation(self, step: int, loss: float) -> bool:
        """Take note of a validation. True if it is the best: NaN never is, and of equal ones the first."""
        better = loss < self.best
        self.validated = step
        self.best = loss if better else self.best
        return better

    def to_meta(self, place: Place, optimizer: str) -> dict[str, object]:
        """What goes into a checkpoint beside the state; `optimizer` is its outline."""
        return {
            "optimizer": optimizer,
            "place": place.to_json(),
            "best": self.best,
            "validated": self.validated,
            "history": list(self.history),  # it grows while this is written
        }


def read_progress(contents: Contents, optimizer: str) -> tuple[Progress, Place]:
    """What `to_meta` wrote.

    Raises:
        CheckpointError: a part is missing, or the run had another optimizer.
    """
    where, meta = f"checkpoint.load: {contents.path}", contents.meta

    def missing(name: str) -> CheckpointError:
        return CheckpointError(f"{where}: {name!r} is missing; hint: this is not the checkpoint of a Trainer's run")

    def part(name: str, kind: type[T], source: dict[str, object] = meta) -> T:
        if name not in source or not isinstance(x := source[name], kind):
            raise missing(name)
        return x

    def perhaps(name: str, kind: type[T], source: dict[str, object]) -> T | None:
        return None if name in source and source[name] is None else part(name, kind, source)

    saved = part("optimizer", str)
    if saved != optimizer:
        raise CheckpointError(f"{where}: its optimizer is {saved}, and this run's is {optimizer}")
    found = part("place", dict)
    progress = Progress(part("history", list), part("best", float), part("validated", int))
    place = Place(
        part("epoch", int, found),
        part("consumed", int, found),
        part("exhausted", bool, found),
        part("crossed", bool, found),
        perhaps("begun", dict, found),
        perhaps("now", dict, found),
        perhaps("loader", list, found),
        perhaps("last", int, found),
        perhaps("batch_size", int, found),
        perhaps("length", int, found),
        perhaps("workers", int, found),
    )
    states = {"now": place.now, "begun": place.begun if place.replays else None}
    if place.replays and place.begun is None:
        raise missing("begun")
    for name, stream in itertools.product(states, ALWAYS):
        if (there := states[name]) is not None and stream not in there:
            raise missing(f"{name}.{stream}")
    return progress, place
