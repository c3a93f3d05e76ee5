"""How far a run has come, beside the tensors: what a checkpoint's meta says of it, and how it is read back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

from functrain.checkpoint import CheckpointError, Contents
from functrain.logging import Record
from functrain.run.feed import Place
from functrain.run.streams import States

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
            "history": self.history,
        }


def read_progress(contents: Contents, optimizer: str) -> tuple[Progress, Place]:
    """What `to_meta` wrote.

    Raises:
        CheckpointError: a part is missing, or the run had another optimizer.
    """
    where, meta = f"checkpoint.load: {contents.path}", contents.meta

    def part(name: str, kind: type[T], source: dict[str, object] = meta) -> T:
        if not isinstance(found := source.get(name), kind):
            raise CheckpointError(f"{where}: {name!r} is missing; hint: this is not the checkpoint of a Trainer's run")
        return found

    def states(name: str) -> States | None:
        return None if place[name] is None else part(name, dict, place)

    saved = part("optimizer", str)
    if saved != optimizer:
        raise CheckpointError(f"{where}: its optimizer is {saved}, and this run's is {optimizer}")
    place = part("place", dict)
    return (
        Progress(part("history", list), part("best", float), part("validated", int)),
        Place(
            part("epoch", int, place),
            part("consumed", int, place),
            part("exhausted", bool, place),
            states("begun"),
            states("now"),
        ),
    )
