"""How a run is asked to stop from outside: signals set a flag, and the loop looks at it where it can stop cleanly."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # by name: not every system has all


class Stop:
    """A request that may have come."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None  # the first that came

    def __bool__(self) -> bool:
        return self.signal is not None

    def exit(self) -> None:
        """Leave the process with 130 after Ctrl-C and 143 after another signal; go on if none came."""
        if self.signal is not None:
            sys.exit(128 + (signal.SIGINT if self.signal == signal.SIGINT else signal.SIGTERM))


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A block in which SIGINT, SIGTERM and SIGUSR1 set the flag that is yielded.

    The first Ctrl-C puts the handler that was there before back, so that the second does what it did without us: it
    aborts. The other two may come again and again, as a scheduler sends them to the whole process group and its
    launcher once more: what is being saved is saved. Only the main thread can set handlers; elsewhere the flag stays
    down.
    """
    stop = Stop()
    previous: dict[signal.Signals, object] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.signal = stop.signal or signal.Signals(number)
        if number == signal.SIGINT:
            _put_back(signal.SIGINT, previous[signal.SIGINT])

    try:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                if (number := getattr(signal.Signals, name, None)) is not None:
                    previous[number] = signal.getsignal(number)
                    signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in previous.items():
            _put_back(number, handler)


def _put_back(number: signal.Signals, handler: object) -> None:
    # None stands for a handler that was not set from Python, and cannot be put back from here.
    signal.signal(number, handler if callable(handler) or isinstance(handler, signal.Handlers) else signal.SIG_DFL)
