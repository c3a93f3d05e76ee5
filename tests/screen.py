"""A terminal to look at: a real pty of a given width, and what would stand on its screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import termios
import threading
from collections.abc import Iterator
from typing import TextIO

TOKEN = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\s\S]")


class Screen:
    """What is to be seen after all that a terminal was sent. Only what is used here is known to it."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0
        self.wrapped = 0  # lines that were too long

    def feed(self, text: str) -> None:
        for token in TOKEN.findall(text):
            if token == "\r":
                self.column = 0
            elif token == "\n":
                self._down()
            elif token == "\x1b[A":
                self.row = max(0, self.row - 1)
            elif token >= " ":
                self._put(token)
            else:
                raise AssertionError(f"the screen does not know {token!r}")

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])

    def _put(self, character: str) -> None:
        if self.column == self.columns:
            self.column, self.wrapped = 0, self.wrapped + 1
            self._down()
        row = self.rows[self.row]
        row.extend(" " * (self.column + 1 - len(row)))
        row[self.column] = character
        self.column += 1

    def lines(self) -> list[str]:
        """The lines, without the empty ones at the end."""
        found = ["".join(row).rstrip() for row in self.rows]
        while found and not found[-1]:
            found.pop()
        return found


class Pty:
    """The two ends of a terminal: programs write to `stream`, and `screen()` is what a person then sees."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream: TextIO = os.fdopen(self.slave, "w", encoding="utf-8", closefd=False)
        self._sent, self._more = bytearray(), threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: no program has it open any more
            while data := os.read(self.master, 65536):
                with self._more:
                    self._sent += data
                    self._more.notify_all()

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until a program has written this."""
        with self._more:
            assert self._more.wait_for(lambda: text.encode() in self._sent, seconds), self._sent.decode()

    def hang_up(self) -> Screen:
        """Wait for the end of what was sent: the screen."""
        self.stream.close()
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1
        self._reader.join(60)
        assert not self._reader.is_alive(), "a program keeps the terminal open"
        screen = Screen(self.columns)
        screen.feed(self._sent.decode())
        return screen


@contextlib.contextmanager
def terminal(columns: int) -> Iterator[Pty]:
    pty = Pty(columns)
    try:
        yield pty
    finally:
        pty.hang_up()
        os.close(pty.master)
