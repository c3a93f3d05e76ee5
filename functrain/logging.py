"""What a run tells: rows in `metrics.jsonl` for programs, a bar or plain lines for people.

A **record** is a flat dict. Those of training have `step`, `epoch`, `loss` and the step's other metrics, with `skipped`
counting every update skipped so far; those of validation have `step`, `epoch` and `val_loss`. A number that is not
finite is written as it is: NaN, Infinity.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Never, Protocol, TextIO

import torch
from tqdm import tqdm

from functrain.durable import replacing

Record = dict[str, object]
STALE = "stale"  # the mark of a row that a resumed run went back behind


class Logger(Protocol):
    """Whatever takes records."""

    def log(self, record: Record) -> object:
        """Take one."""
        ...


class JsonLines:
    """A file with a record a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, record: Record) -> None:
        """Append one."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def go_on_from(self, history: Sequence[Record]) -> None:
        """Make the rows without a mark those of `history`: mark what another run wrote after them, add what lacks."""
        wanted = [json.dumps(record) for record in history]
        found = rows(self.path)
        fresh = [i for i, row in enumerate(found) if not row.get(STALE)]
        same = [json.dumps(found[i]) for i in fresh[: len(wanted)]] == wanted  # as text, in which NaN equals NaN
        for i in fresh[len(wanted) if same else 0 :]:
            found[i][STALE] = True
        lines = [json.dumps(row) for row in found] + ([] if same else wanted)
        text = "".join(line + "\n" for line in lines)
        if text != (self.path.read_text("utf-8") if self.path.exists() else ""):
            with replacing(self.path) as file:
                file.write(text.encode())


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


class Console:
    """The bar of a terminal, or a line an interval elsewhere.

    Args:
        stream: where to; standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self._bar: tqdm[Never] | None = None  # it counts, and iterates over nothing
        self._epoch, self._total, self._done = "", 0, 0

    def say(self, text: str) -> None:
        """A line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.clear()
        print(text, file=self.stream, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    def epoch(self, number: int, of: int | None, done: int, total: int | None) -> None:
        """An epoch begins, or goes on.

        Args:
            number: from 1.
            of: epochs in the run, if known.
            done: updates of this epoch so far.
            total: updates in it, if known.
        """
        self.close()
        self._epoch = f"epoch {number:>{len(str(of))}}/{of}" if of else f"epoch {number}"
        self._total, self._done = total or 0, done
        if self.terminal:
            self._bar = tqdm(total=total, initial=done, file=self.stream, leave=False, dynamic_ncols=True, ascii="─━")
            self._draw("")

    def advance(self) -> None:
        """An update more."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()

    def log(self, record: Record) -> None:
        """The record of an update."""
        numbers = [
            f"{short(record.get('samples_per_second'))} samples/s",
            f"loss {fixed(record.get('loss'), 4)}",
            *([f"lr {brief(record['learning_rate'])}"] if "learning_rate" in record else []),
            f"|g| {fixed(record.get('grad_norm'), 2)}",
            f"skip {record.get('skipped', 0)}",
            f"data {fixed(100 * number(record.get('data_wait')), 0)}%",
        ]
        if self._bar is not None:
            self._draw("  ".join(numbers))
            return
        rate = number(record.get("updates_per_second"))
        share = [f"{100 * self._done // self._total}%"] if self._total else []
        eta = [f"eta {clock((self._total - self._done) / rate)}"] if self._total and rate > 0 else []
        updates = f"updates {self._done:,}/{self._total:,}" if self._total else f"updates {self._done:,}"
        self.say("  ".join([self._epoch, updates, *share, f"{fixed(rate, 2)} up/s", *eta, *numbers]))

    def validation(self, record: Record, best: float | None, better: bool) -> None:
        """The record of a validation."""
        self.say(
            f"val  epoch {record['epoch']}  update {record['step']:,}  loss {fixed(record.get('val_loss'), 4)}  "
            f"best {fixed(best, 4)}{' *' if better else ''}  {fixed(record.get('seconds'), 1)} s"
        )

    def saved(self, epoch: int, step: int, path: Path, best: bool) -> None:
        """A checkpoint was written."""
        self.say(f"save  epoch {epoch}  update {step:,}  {path.name}, last{', best' if best else ''}")

    def resumed(self, path: Path, step: int, epoch: int, batch: int) -> None:
        """A run goes on."""
        self.say(f"resumed {path} at update {step:,} (epoch {epoch}, batch {batch})")

    def stopped(self, step: int, saved: bool) -> None:
        """A signal ended the run."""
        how = "resume='auto' goes on from here" if saved else "nothing was saved, since save_dir is None"
        self.say(f"stopped at update {step:,}: {how}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, text: str) -> None:
        if self._bar is not None:
            known = "/{total_fmt}  {percentage:3.0f}% {bar:14}  {rate_noinv_fmt}  eta {remaining}"
            middle = known if self._total else "  {rate_noinv_fmt}"
            end = f"  {text}".replace("{", "{{").replace("}", "}}")
            self._bar.unit = " up"
            self._bar.bar_format = self._epoch + "  updates {n_fmt}" + middle + end
            self._bar.refresh()


# --- numbers for people


def number(x: object) -> float:
    """x as a float; NaN if it is none."""
    return float(x) if isinstance(x, int | float) else math.nan


def fixed(x: object, digits: int) -> str:
    """1.8342; a dash for what is not there."""
    return "-" if x is None else f"{number(x):.{digits}f}"


def brief(x: object) -> str:
    """2.7e-04."""
    return f"{number(x):.1e}"


def short(x: object) -> str:
    """12.8k, 124.4M."""
    value = number(x)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f}{letter}"
    return "-" if math.isnan(value) else f"{value:.0f}"


def clock(seconds: float) -> str:
    """06:30, or 1:06:30."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def header(device: str, precision: object, seed: int, parameters: int) -> str:
    """The first line of a run."""
    version = getattr(sys.modules[__package__ or __name__], "__version__", "")
    return (
        f"functrain {version}  torch {torch.__version__}  device {device}  {precision or 'fp32'}  seed {seed}  "
        f"parameters {short(parameters)}"
    )
