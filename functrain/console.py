"""What a person sees of a run: a bar on a terminal, a line an interval elsewhere, and a line a validation.

    functrain 0.1  torch 2.13  device cuda:0  bf16  seed 42  parameters 124.4M
    run runs/lm   resumed step-00012000.pt (epoch 3, batch 412), exact
    epoch  4/10  updates 1,250/2,500  50% ━━━━━━━───────  3.21 up/s  12.8k samples/s  eta 06:30  loss 1.8342  ...
    val    epoch 4  update 15,000  loss 1.7921  best 1.7921 *  12.4 s  saved best, last

All goes to standard error. In a narrow terminal a line loses what matters least; in a file it is whole. Whoever stops
reading ends no run.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from functrain.bar import Bar, columns, is_terminal
from functrain.logging import Record, number

LEAST, MOST = 6, 14  # characters of the bar itself


class Part(NamedTuple):
    """A piece of a line."""

    rank: int  # the greatest goes first where there is no room; 0 stays
    text: str


class Console:
    """The bar of a terminal, or a line an interval elsewhere.

    Args:
        stream: where to; standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.terminal = is_terminal(self.stream)
        self._bar: Bar | None = None
        self._epoch, self._total, self._done = "", 0, 0
        self._began, self._first = time.monotonic(), 0  # when this epoch began or went on, and with which update
        self._record: Record = {}  # the last of an update
        self._shown = True  # in a line that stays

    def begin(
        self, header: str, run: Path | None, resumed: Path | None, epoch: int, batch: int, differences: Sequence[str]
    ) -> None:
        """A run begins, or goes on.

        Args:
            header: the first line.
            run: its directory, if it has one.
            resumed: the checkpoint that it goes on from, if there is one.
            epoch, batch: where it stands: the epoch, from 1, and the batches of it that are done.
            differences: why it will not be what it would have been without a stop; none if it will be.
        """
        self.say(header)
        where = [f"run {run}"] if run else []
        place = f"(epoch {epoch:,}, batch {batch:,})"
        if resumed:
            name = resumed.name if run and resumed.parent.resolve() == run.resolve() else resumed
            exact = f"not exact: {'; '.join(differences)}" if differences else "exact"
            self.say("   ".join([*where, f"resumed {name} {place}, {exact}"]))
        elif run:
            self.say("   ".join([*where, "new" if (epoch, batch) == (1, 0) else f"goes on {place}"]))

    def say(self, text: str) -> None:
        """A line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.give_way(lambda: self._print(text), back=True)
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        try:
            print(text, file=self.stream, flush=True)
        except UnicodeEncodeError:
            encoding = getattr(self.stream, "encoding", None) or "ascii"
            self._print(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # nobody reads on, or the stream was closed: the run matters more
            self.terminal = False

    def epoch(self, number: int, of: int | None, done: int, total: int | None) -> None:
        """An epoch begins, or goes on.

        Args:
            number: from 1.
            of: epochs in the run, if known.
            done: updates of this epoch so far.
            total: updates in it, if known.
        """
        self._take_down()
        self._epoch = f"epoch {number:>{len(str(of))}}/{of}" if of else f"epoch {number}"
        self._total, self._done = total or 0, done
        self._began, self._first = time.monotonic(), done
        if self.terminal:
            self._bar = Bar(self.stream, self._line)

    def advance(self) -> None:
        """An update more."""
        self._done += 1
        if self._bar is not None:
            self._bar.advance()

    def log(self, record: Record) -> None:
        """The record of an update."""
        self._record, self._shown = record, self._bar is None
        if self._bar is not None:
            self._bar.refresh()
        else:
            self.say(self._line(None))

    def validation(self, record: Record, best: float | None, better: bool, saved: Sequence[str] = ()) -> None:
        """The record of a validation.

        Args:
            record: with `val_loss`, what else was measured as `val_<name>`, and `seconds`.
            best: the least validation loss so far, if there is one.
            better: it is this one.
            saved: the names under which it was saved.
        """
        self._shown = True
        if math.isfinite(seconds := number(record.get("seconds"))):
            self._began += seconds  # no update could be made in them
        others = [name for name in record if name.startswith("val_") and name != "val_loss"]
        parts = [
            Part(0, f"val    epoch {record['epoch']}"),
            Part(0, f"update {record['step']:,}"),
            Part(0, f"loss {legible(record.get('val_loss'), 4)}"),
            Part(0, f"best {legible(best, 4)}{' *' if better else ''}"),
            *(Part(0, f"{name.removeprefix('val_')} {legible(record[name], 4)}") for name in others),
            *([Part(1, f"{fixed(record['seconds'], 1)} s")] if "seconds" in record else []),
            *([Part(0, f"saved {', '.join(saved)}")] if saved else []),
        ]
        self._say_parts(parts)

    def saved(self, epoch: int, step: int, path: Path, best: bool) -> None:
        """A checkpoint was written, and not at a validation."""
        self.say(f"save   epoch {epoch}  update {step:,}  {path.name}, last{', best' if best else ''}")

    def stopped(self, step: int, saved: bool) -> None:
        """A signal ended the run."""
        how = "resume='auto' goes on from here" if saved else "nothing was saved, since save_dir is None"
        self.say(f"stopped at update {step:,}: {how}")

    def close(self) -> None:
        """Take the bar away. What it said last stays as a line, unless a validation came after it."""
        self._take_down()
        if not self._shown:
            self._shown = True
            self._say_parts(self._parts(0))

    def _say_parts(self, parts: Sequence[Part]) -> None:
        self.say(fit(parts, columns(self.stream) - 1) if self.terminal else joined(parts))

    def _take_down(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, room: int | None) -> str:
        """What is to be said of updates: with a bar in so many columns, or all of it without one."""
        if room is None:
            return joined(self._parts(0))
        spare = room - len(fit(self._parts(LEAST), room))
        return fit(self._parts(min(LEAST + spare, MOST)), room)

    def _parts(self, length: int) -> list[Part]:
        """The line, with a bar of so many characters."""
        record, total, done = self._record, self._total, self._done
        measured = (done - self._first) / max(time.monotonic() - self._began, 1e-9)
        rate = number(record.get("updates_per_second", measured if length and measured else None))
        memory, skipped = record.get("memory"), record.get("skipped", 0)
        rates = [brief(x) for name, x in record.items() if name.partition("/")[0] == "learning_rate"]
        of = f"{total:,}"
        parts = [
            Part(0, self._epoch),
            Part(0, f"updates {done:>{len(of)},}/{of}" if total else f"updates {done:,}"),
            *([Part(2, " ".join([f"{100 * done // total}%", *self._drawn(length)]))] if total else []),
            *([] if math.isnan(rate) else [Part(4, f"{legible(rate, 2)} up/s")]),
            *([Part(9, f"{short(record['samples_per_second'])} samples/s")] if "samples_per_second" in record else []),
            *([Part(3, f"eta {clock((total - done) / rate)}")] if done < total and rate > 0 else []),
        ]
        if record:
            parts += [
                Part(1, f"loss {legible(record.get('loss'), 4)}"),
                *([Part(6, f"lr {', '.join(rates[:3])}{', ...' if rates[3:] else ''}")] if rates else []),
                *([Part(7, f"|g| {legible(record['grad_norm'], 2)}")] if "grad_norm" in record else []),
                Part(5 if skipped else 10, f"skip {skipped:,}"),
                *([Part(11, f"data {fixed(100 * number(record['data_wait']), 0)}%")] if "data_wait" in record else []),
                *([Part(8, f"mem {short(memory)}")] if memory else []),
            ]
        return parts

    def _drawn(self, length: int) -> list[str]:
        """The bar itself, if it has a length."""
        full = length * min(self._done, self._total) // self._total
        try:
            "━─".encode(getattr(self.stream, "encoding", None) or "utf-8")
            done, rest = "━─"
        except UnicodeEncodeError:
            done, rest = "=-"
        return [done * full + rest * (length - full)] if length else []


# --- lines


def joined(parts: Sequence[Part]) -> str:
    """All of them."""
    return "  ".join(part.text for part in parts)


def fit(parts: Sequence[Part], room: int) -> str:
    """Those for which there is room; parts of rank 0 are there in any case."""
    kept = list(parts)
    while len(joined(kept)) > room and (worst := max(kept)).rank:
        kept.remove(worst)
    return joined(kept)


# --- numbers for people


def fixed(x: object, digits: int) -> str:
    """1.8342; a dash for what is not there."""
    return "-" if x is None else f"{number(x):.{digits}f}"


def legible(x: object, digits: int) -> str:
    """1.8342, or 2.7e-05 where digits after the point would hide the number."""
    size = abs(number(x))
    return brief(x) if 0 < size < 10 ** (1 - digits) or 1e6 <= size < math.inf else fixed(x, digits)


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
