"""Records: what a run tells to loggers, and the rows of `metrics.jsonl`.

A **record** is a flat dict. Those of training have `step`, `epoch`, `loss` and the step's other metrics, with `skipped`
counting every update skipped so far; those of validation have `step`, `epoch` and `val_loss`. A number that is not
finite is written as it is: NaN, Infinity.
"""

from __future__ import annotations

import io
import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from functrain.checkpoint import CheckpointError
from functrain.checkpoint.durable import replacing

Record = dict[str, object]
STALE = "stale"  # the mark of a row that a resumed run went back behind


class Logger(Protocol):
    """Whatever takes records.

    Two more methods are called where a logger has them: `go_on_from(history)` when a run begins or goes on, with the
    records that it has so far, so that a logger can forget what another run wrote after them; and `close()` when the
    run ends, by an error too. A record may come after it, if the run then goes on.
    """

    def log(self, record: Record) -> object:
        """Take one."""
        ...


class JsonLines:
    """A file with a record a line.

    A disk that is full does not end a run: rows that cannot be written wait, with a warning, for the next that can.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = ""  # rows that could not be written

    def log(self, record: Record) -> None:
        """Append one."""
        text = self._waiting + json.dumps(record) + "\n"
        try:
            with open(self.path, "ab", buffering=0) as file:
                _append(file, text.encode())
        except OSError as error:
            if not self._waiting:
                warnings.warn(f"{self.path}: {error.strerror}; its rows follow when they can", stacklevel=2)
            self._waiting = text
        else:
            self._waiting = ""

    def go_on_from(self, history: Sequence[Record]) -> None:
        """Make the rows without a mark those of `history`: mark what another run wrote after them, add what lacks.

        Raises:
            CheckpointError: the file cannot be written; it is as it was.
        """
        self._waiting = ""
        wanted = [json.dumps(record) for record in history]
        found = rows(self.path)
        fresh = [i for i, row in enumerate(found) if not row.get(STALE)]
        same = [json.dumps(found[i]) for i in fresh[: len(wanted)]] == wanted  # as text, in which NaN equals NaN
        for i in fresh[len(wanted) if same else 0 :]:
            found[i][STALE] = True
        lines = [json.dumps(row) for row in found] + ([] if same else wanted)
        text = "".join(line + "\n" for line in lines)
        if text != (self.path.read_text("utf-8") if self.path.exists() else ""):
            try:
                with replacing(self.path) as file:
                    file.write(text.encode())
            except OSError as error:
                raise CheckpointError(f"{self.path}: {error.strerror}") from error


def _append(file: io.FileIO, data: bytes) -> None:
    """Write all of it or nothing."""
    size, rest = file.seek(0, os.SEEK_END), memoryview(data)
    try:
        while rest:  # a part may be taken, and then the system says why not the next
            rest = rest[file.write(rest) or 0 :]
    except OSError:
        file.truncate(size)
        raise


def rows(path: Path) -> list[Record]:
    """All rows of a file of records, marked ones too; a last line that was cut off is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text("utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a writer was killed within the line
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def history(path: Path) -> list[Record]:
    """The rows of a file of records that no resumed run went back behind."""
    return [row for row in rows(path) if not row.get(STALE)]


def number(x: object) -> float:
    """x as a float; NaN if it is none."""
    return float(x) if isinstance(x, int | float) else math.nan
