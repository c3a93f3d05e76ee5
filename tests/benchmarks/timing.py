"""How contenders are measured: interleaved in one process, or alone in a child where memory is the question."""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Contender = Callable[[], object]


class Row(NamedTuple):
    """One line of the table."""

    what: str  # numerator / denominator
    ratio: float
    goal: float | None  # met if ratio <= goal; None where no goal was set
    detail: str  # the numbers that the ratio is made of

    @property
    def met(self) -> bool:
        """Is the goal reached?"""
        return self.goal is not None and self.ratio <= self.goal


class Times(NamedTuple):
    """Seconds a call: of each contender, one number a round."""

    rounds: Mapping[str, list[float]]

    def ratio(self, ours: str, theirs: str) -> float:
        """The median over the rounds of ours / theirs: neighbours in time, so a slow minute hits both."""
        return statistics.median(a / b for a, b in zip(self.rounds[ours], self.rounds[theirs], strict=True))

    def median(self, name: str) -> float:
        """Seconds a call, median over the rounds."""
        return statistics.median(self.rounds[name])

    def detail(self, *names: str) -> str:
        """`name 12.3 ms` for each."""
        return ", ".join(f"{name} {self.median(name) * 1e3:.3g} ms" for name in names)


def interleave(contenders: Mapping[str, Contender], rounds: int, calls: int = 1, warmup: int = 3) -> Times:
    """Time the contenders round-robin: each round has `calls` calls of every one, beginning with another each time.

    Args:
        contenders: functions without arguments, by name; each keeps its own state.
        rounds: how often the circle goes round; each gives one number a contender.
        calls: calls a number is the mean of.
        warmup: calls of each before the first round, not counted.
    """
    names = list(contenders)
    for name in names:
        for _ in range(warmup):
            contenders[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()  # a collection would hit one contender at random
    try:
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                call = contenders[name]
                began = time.perf_counter()
                for _ in range(calls):
                    call()
                seconds[name].append((time.perf_counter() - began) / calls)
    finally:
        gc.enable()
    return Times(seconds)


def first_call(contender: Contender) -> float:
    """Seconds that one call takes: where it is a compiled function's first, its compilation."""
    began = time.perf_counter()
    contender()
    return time.perf_counter() - began


def peak_megabytes() -> float:
    """The greatest resident memory of this process so far: interpreter, libraries, compiler and all."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def child(module: str, *arguments: str, **environment: str) -> object:
    """Run a module of this package in a fresh process, and return the JSON on the last line of its output.

    Its environment is this process's, and what is given by name.

    On Linux a process begins with the peak of the one that started it: whoever wants to know a child's peak must be
    small, and import no torch.
    """
    command = [sys.executable, "-m", f"{__package__}.{module}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment, check=False)
    if done.returncode:
        raise SystemExit(f"benchmark {' '.join([module, *arguments])} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main(run: Callable[[bool], list[Row]]) -> None:
    """What a benchmark's module does as a program: run, print its rows as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true", help="sizes that only show that it runs")
    print(json.dumps(run(parser.parse_args().small)))
