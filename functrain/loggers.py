"""Records for TensorBoard and for Weights & Biases.

    Trainer(..., loggers=[TensorBoard("runs/a/tb"), WandB(project="a", mode="offline")])
    Trainer(..., save_dir="runs/a", loggers=["tensorboard", "wandb"])

Each number of a record becomes a point under its own name at the record's `step`, NaN as NaN.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

from functrain.logging import Logger, Record, number

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """A directory that `tensorboard --logdir` shows.

    Nothing is written before the first record; each is on its way to disk when `log` returns, as a float32. Points that
    another run wrote after those of a run that goes on are hidden; a directory without points gets the earlier ones.

    Args:
        directory: where to; a run's own is `save_dir/tb`.

    Raises:
        ModuleNotFoundError: tensorboard is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        needed("TensorBoard", "tensorboard")
        self._open = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer: SummaryWriter | None = None
        self._purge: int | None = None  # the first step to hide when the next file is opened

    def go_on_from(self, history: Sequence[Record]) -> None:
        """Hide what is there of later steps; write the records if nothing is there."""
        self.close()
        if any(self.directory.glob("events.out.tfevents.*")):
            self._purge = max((step_of(record) for record in history), default=-1) + 1
        else:
            for record in history:
                self.log(record)

    def log(self, record: Record) -> None:
        """Write the numbers of one."""
        if self._writer is None:
            self._writer = cast("SummaryWriter", self._open(os.fspath(self.directory), purge_step=self._purge))
            self._purge = None
        for name, value in numbers(record):
            self._writer.add_scalar(name, value, step_of(record))
        self._writer.flush()

    def close(self) -> None:
        """Close the file; a later record opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandB:
    """A run of Weights & Biases, kept on disk with mode="offline".

    Offline too, wandb reports on itself to its makers, unless the environment has WANDB_ERROR_REPORTING=false.

    It begins with the first record and is finished with the training, as failed if that ends with an error. A run that
    is there already, since the program called `wandb.init`, is used as it is and left open.

    Records are logged at their `step`, and Weights & Biases takes no step below its last. A training that goes on in a
    new process is a new run there, unless it is told which it was: `WandB(id="abc", resume="allow")` appends, and drops
    what a resumed run does again; `WandB(resume_from="abc?_step=1200")` rewinds the run to that step first.

    Args:
        init: keyword arguments of `wandb.init`, as project=, name=, mode=, dir=, config=.

    Raises:
        ModuleNotFoundError: wandb is not installed.
    """

    def __init__(self, **init: object) -> None:
        self.init = init
        self._wandb = needed("WandB", "wandb")
        self._run: Run | None = None
        self._own = False

    def log(self, record: Record) -> None:
        """Send the numbers of one."""
        if self._run is None:
            there = cast("Run | None", self._wandb.run)
            self._own = there is None
            self._run = there or cast("Callable[..., Run]", self._wandb.init)(**self.init)
        self._run.log(dict(numbers(record)), step=step_of(record))

    def close(self) -> None:
        """Finish the run that it began; a later record begins another."""
        if self._run is not None and self._own:
            self._run.finish(exit_code=int(sys.exc_info()[0] is not None))
        self._run = None


class Run(Protocol):
    """What is used of a run of wandb."""

    def log(self, data: dict[str, float], step: int) -> None:
        """Take numbers."""
        ...

    def finish(self, exit_code: int) -> None:
        """End."""
        ...


def as_logger(given: object, directory: Path | None) -> Logger:
    """A logger by its name, or one as it is.

    Args:
        given: "tensorboard", "wandb", or a thing with a method `log`.
        directory: of the run; `tb/` in it is for TensorBoard, and W&B keeps its files there. None where it has none.

    Raises:
        ValueError: "tensorboard" without a directory.
        TypeError: it is none of these.
        ModuleNotFoundError: it is not installed.
    """
    if given == "tensorboard":
        if directory is None:
            raise ValueError(
                "loggers: 'tensorboard' writes to tb/ in save_dir, which is None; hint: give TensorBoard(path) instead"
            )
        return TensorBoard(directory / "tb")
    if given == "wandb":
        return WandB(dir=directory)
    if isinstance(given, type) or not callable(getattr(given, "log", None)):
        raise TypeError(
            f"loggers: got {given!r}; hint: a logger has a method log(record), or is 'tensorboard' or 'wandb'"
        )
    return cast("Logger", given)


def needed(where: str, package: str) -> ModuleType:
    """An extra.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is, and something else is not
            raise
        raise ModuleNotFoundError(
            f"{where}: {package} is not installed; hint: pip install 'functrain[{package}]'", name=package
        ) from error


def numbers(record: Record) -> Iterator[tuple[str, float]]:
    """What can be drawn of a record over its step."""
    return ((name, x) for name, x in record.items() if name != "step" and isinstance(x, int | float))


def step_of(record: Record) -> int:
    """The update after which it was made."""
    return int(number(record["step"]))
