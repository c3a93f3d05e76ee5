"""What a run tells, and to whom: records to loggers, lines to the console."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from functrain.console import Console
from functrain.logging import Logger, Record


class Teller:
    """Everybody who listens to a run.

    Args:
        console: what a person sees.
        loggers: what takes records.
    """

    def __init__(self, console: Console, loggers: Sequence[Logger]) -> None:
        self.console, self.loggers = console, list(loggers)
        self.header = ""  # the first line

    def begin(
        self,
        history: Sequence[Record],
        path: Path | None,
        resumed: Path | None,
        epoch: int,
        batch: int,
        different: Sequence[str],
    ) -> None:
        """A run begins, or goes on.

        Args:
            history: the records so far; loggers forget what came after them.
            path: the run's directory, if it has one.
            resumed: the checkpoint that it goes on from, if any.
            epoch, batch: where it stands: epochs from 1, batches consumed.
            different: what will not be as in the saved run.
        """
        self.console.begin(self.header, path, resumed, epoch, batch, different)
        for logger in self.loggers:
            if callable(go_on := getattr(logger, "go_on_from", None)):
                cast("Callable[[Sequence[Record]], object]", go_on)(history)

    def nothing_to_do(self, updates: int, why: str) -> None:
        """A run ends before it begins, for a reason, or since it has reached its limit."""
        self.console.say(f"nothing to do: {why or f'the run ends at update {updates:,}, and that is where it stands'}")

    def ended(self, updates: int, why: str) -> None:
        """A run ends before its limit, for a reason."""
        if why:
            self.console.say(f"ended after update {updates:,}: {why}")

    def gone_back(self, error: Exception, path: Path | None, applied: int) -> Record:
        """Numbers were not finite, and the run goes on from a checkpoint of so many applied updates: the record."""
        self.console.say(f"{str(error).partition(';')[0]}; gone back to {path}")
        return {"rolled_back": str(path), "applied": applied}

    def record(self, record: Record) -> None:
        """A record more."""
        for logger in self.loggers:
            logger.log(record)

    def close(self) -> None:
        """Take the bar away, and close what can be closed, each even if another fails."""
        self.console.close()
        errors: list[Exception] = []
        for logger in self.loggers:
            if callable(close := getattr(logger, "close", None)):
                try:
                    close()
                except Exception as error:  # whatever a logger of the user's raises
                    errors.append(error)
        if errors:
            raise errors[0]
