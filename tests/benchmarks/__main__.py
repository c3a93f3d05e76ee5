"""Measured ratios beside their goals.

    python -m tests.benchmarks               # all; about 10 minutes on two quiet cores
    python -m tests.benchmarks rule_eager    # one
    python -m tests.benchmarks --small       # sizes that only show that everything runs
    python -m tests.benchmarks --write       # all, and into RESULTS.md

This process stays small and imports no torch: every benchmark is a child, so that none has another's memory,
compiled code or threads.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.timing import Row, child

BENCHMARKS = {
    "rule_eager": "AdamW as pure functions, eager, against torch.optim",
    "rule_compiled": "AdamW compiled with ft.jit, against torch.optim's fused kernel",
    "step_time": "a whole compiled training step of a GPT, against eager and compiled torch",
    "step_memory": "its peak memory, against compiled torch",
    "ensemble": "many small models in one vmapped step, against a loop",
    "face_adamw": "AdamW of functrain.optim, eager and compiled, against torch.optim's",
    "face_classes": "each class of functrain.optim, against the one of torch.optim",
    "trainer": "the Trainer, against the bare loop that calls the same step",
}
RESULTS = Path(__file__).with_name("RESULTS.md")

METHOD = """\
- Each ratio comes from one run in which the contenders take turns, a few calls each, beginning with another at every
  round; it is the median over the rounds of (ours / theirs in the same round). Warm-up and compilation are not in it.
  The milliseconds beside it are medians of their own, so their quotient can differ a little.
- Each benchmark is a process of its own, with as many threads as torch chooses. Nothing is pinned; the garbage
  collector is off while the clock runs. Compile seconds are of a first call with an empty cache.
- `optim` is `functrain.optim`. Its optimizers and torch's have parameters of their own, equal at the beginning, and the
  same gradients at every step; first steps, which make states and compile, are warm-up. A benchmark fails unless all
  parameters are finite in the end, and ours within 0.1% of torch's in norm. LBFGS must take as many iterations and
  evaluations as torch's.
- The first step of a compiled optimizer is timed in a child process with a cache of its own, which is empty: loading
  the compiler is in it, importing torch and making the parameters is not. The ratio is to ten seconds.
- Peak memory is `ru_maxrss` of a child process that trains with one contender alone: interpreter, libraries and the
  compiler's own memory included, with the compiler's cache filled beforehand for every contender alike.
- Ours computes what its defaults say: the step returns the gradient's norm and checks that everything is finite, which
  the loops it is compared with do not.
"""


def main() -> None:
    """Run the benchmarks that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--small", action="store_true", help="sizes that only show that everything runs")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} too")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}")
    if args.write and (args.small or args.names):
        parser.error("--write keeps a run of all benchmarks at full size")

    began = time.perf_counter()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="functrain-bench-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # empty: compile seconds are then true
        for name in args.names or BENCHMARKS:
            print(f"# {name}: {BENCHMARKS[name]}", flush=True)
            found = child(name, *(["--small"] if args.small else []))
            assert isinstance(found, list)
            rows += (new := [Row(*row) for row in found])
            for row in new:
                print(line(row), flush=True)
    minutes = (time.perf_counter() - began) / 60
    print(f"\n{table(rows)}\n\n{minutes:.1f} minutes")
    if args.small:
        print("These sizes show that everything runs; the ratios mean nothing.")
    if args.write:
        RESULTS.write_text(results(rows, minutes), encoding="utf-8")
        print(f"written: {RESULTS}")


def line(row: Row) -> str:
    """A row as it comes in."""
    return f"{row.ratio:6.2f}  {goal(row, 'goal '):<9}  {verdict(row):<7}  {row.what}: {row.detail}"


def table(rows: list[Row]) -> str:
    """All rows as a Markdown table, aligned for the terminal."""
    cells = [("ratio", "goal", "", "of", "measured")]
    cells += [(f"{row.ratio:.2f}", goal(row), verdict(row), row.what, row.detail) for row in rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(cells[0]))]
    cells.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in cells
    )


def goal(row: Row, before: str = "") -> str:
    """The goal, if one was set."""
    return "no goal" if row.goal is None else f"{before}{row.goal:.2f}"


def verdict(row: Row) -> str:
    """Whether the goal is met."""
    if row.goal is None:
        return ""
    return "met" if row.met else "not met"


def results(rows: list[Row], minutes: float) -> str:
    """The page that keeps a run."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("functrain", "torch", "optree"))
    return f"""# Benchmark results

Written by `python -m tests.benchmarks --write`. Smaller is better, and a goal is met from below. Where no goal was set,
the ratio is for information.

{table(rows)}

- Machine: {processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}.
- Versions: Python {platform.python_version()}, {packages}.
- Date: {datetime.date.today().isoformat()}. The run took {minutes:.1f} minutes.

## Method

{METHOD}"""


def processor() -> str:
    """The processor's name."""
    try:
        for entry in Path("/proc/cpuinfo").read_text().splitlines():
            if entry.startswith("model name"):
                return entry.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
