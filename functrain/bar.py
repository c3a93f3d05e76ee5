"""A bar that stays in the last line of a terminal, and what others write beside it.

Between two drawings the cursor stands at the start of the bar, so that whatever reaches the terminal by another way,
such as the ^C of a key, stands at the start of a line and not at the end of the bar. While the bar is up, lines that
others print go above it: standard output and standard error, where they are the terminal, take the bar away first.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Never, Protocol, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    Counter = tqdm[Never]  # it counts, and iterates over nothing
else:
    Counter = tqdm

STREAMS = ("stdout", "stderr")
BLANK = "\r\n \x1b[A"


class Writer(Protocol):
    """What can be written to."""

    def write(self, text: str, /) -> object:
        """Write."""
        ...


class Bar(Counter):
    """A line that is drawn again after an update, at most ten times a second.

    Args:
        stream: the terminal.
        line: what to draw in so many columns.
    """

    monitor_interval = 0  # no thread: the clock is read after every update
    _lock = threading.RLock()  # in place of a semaphore of the system, which a killed worker would hold for ever

    def __init__(self, stream: TextIO, line: Callable[[int], str]) -> None:
        self._line, self._stream = line, stream
        self._away = False  # it gave way, and is drawn with the next update
        super().__init__(file=stream, leave=False, miniters=1, dynamic_ncols=True)
        self._above = {name: Above(getattr(sys, name), self) for name in STREAMS if is_terminal(getattr(sys, name))}
        for name, above in self._above.items():
            setattr(sys, name, above)

    def __str__(self) -> str:
        room = columns(self._stream) - 1  # a full line would wrap
        return self._line(room)[:room]

    @staticmethod
    def status_printer(file: Writer) -> Callable[[str], None]:
        """How to draw a text over the last one."""
        flush, width = getattr(file, "flush", None), 0

        def show(text: str) -> None:
            nonlocal width
            file.write(f"\r{text:{width}}\r")
            if flush:
                flush()
            width = len(text)

        return show

    def advance(self) -> None:
        """An update more."""
        if not self.update() and self._away:
            self.refresh()
        self._away = False

    def give_way(self, write: Callable[[], object], back: bool) -> None:
        """Take the bar away while something is written; whether to bring it back at once, or with the next update."""
        with self._lock:
            self.clear(nolock=True)
            write()
            self._away = not back
            if back:
                self.refresh(nolock=True)

    def alone(self) -> bool:
        """No other bar of tqdm is there. Where one is, tqdm itself sees to the lines, and nothing may come between."""
        return len(vars(tqdm)["_instances"]) == 1 and not self.disable

    def close(self) -> None:
        """Take the bar away for good."""
        super().close()
        for name, above in getattr(self, "_above", {}).items():
            above.release()
            if getattr(sys, name) is above:
                setattr(sys, name, above.stream)


class Above:
    """A stream whose lines go above a bar. A line is written when it is whole; all else is the stream's."""

    def __init__(self, stream: TextIO, bar: Bar) -> None:
        self.stream, self._bar, self._begun = stream, bar, ""
        self._crowded = False  # another bar writes here

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write what ends in a newline, and keep the rest."""
        # A bar that closes is counted no more, and has yet to wipe itself away: it moves, and writes blanks.
        self._crowded = not self._bar.alone() or (self._crowded and not text.strip(BLANK))
        if self._crowded:
            return self.stream.write(text)
        lines, newline, self._begun = (self._begun + text).rpartition("\n")
        if newline:
            self._bar.give_way(lambda: (self.stream.write(lines + newline), self.stream.flush()), back=False)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write them all."""
        self.write("".join(lines))

    def release(self) -> None:
        """Write what was kept, as a line."""
        begun, self._begun = self._begun, ""
        if begun:
            self.stream.write(begun + "\n")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody may be looking. Programs without a console have None for a stream."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def columns(stream: TextIO) -> int:
    """The width of a terminal; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
