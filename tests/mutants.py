"""Faults planted by hand, and the tests that notice them: `python -m tests.mutants`, eight minutes on two cores.

Each fault is one change of the source; every rule and every guarantee has one at least. It is planted in a copy of the
working tree, never in the tree itself, and the tests named beside it run there: one of them must fail. On the copy as
it is all of them pass, which is tried first. A line a fault is printed. The exit status is 1 if a fault survives, is
not to be found in the source any more, or breaks more than it should: a file that does not import proves nothing.
"""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults import (
    Mutant,
    around_rules,
    averages,
    beliefs,
    callbacks,
    checkpoints,
    driver,
    early,
    evaluation,
    face_rules,
    layerwise,
    mistakes,
    precision,
    resume,
    rules,
    saving,
    show,
    step,
    torch_face,
    torch_matrix,
    torch_rules,
    tutorial,
    windows,
)

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 2  # each on a core
PATIENCE = 300  # seconds that the tests of one fault may take
PASSED, FAILED, BROKEN = 0, 1, 3  # exit statuses of pytest: all passed, one did not, something else went wrong

FAMILIES = (
    rules,
    torch_rules,
    torch_matrix,
    layerwise,
    beliefs,
    around_rules,
    step,
    torch_face,
    face_rules,
    driver,
    averages,
    checkpoints,
    early,
    evaluation,
    callbacks,
    show,
    precision,
    windows,
    saving,
    resume,
    tutorial,
    mistakes,
)
MUTANTS = tuple(mutant for family in FAMILIES for mutant in family.FAULTS)


# --- running them


def copy_tree(place: Path) -> None:
    """Copy what git keeps or would keep of the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # what is deleted and not yet committed is listed too
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / name)


def start(place: Path, killers: Sequence[str], log: Path) -> int:
    """Run these tests in a copy, to the first failure: the id of a forked process whose exit status is pytest's.

    It has what takes seconds to import, and nothing of functrain.
    """
    if child := os.fork():
        return child
    status = BROKEN
    try:
        signal.alarm(PATIENCE)  # ends the process
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(place)
        os.environ["PYTHONPATH"] = sys.path[0] = str(place)  # in place of the tree that this program was started in
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        import functrain

        if Path(functrain.__file__).parent != place / "functrain":
            raise ImportError(f"the copy imports {functrain.__file__}, not its own")
        options = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain"]  # rewriting asserts would take seconds
        status = pytest.main([*options, *(f"tests/{killer}" for killer in killers)])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


class Job(NamedTuple):
    """Tests that run."""

    mutant: Mutant | None  # None: the source as it is
    place: Path  # the copy
    source: str  # of the file, before the fault
    began: float


def plant(mutant: Mutant, place: Path) -> str:
    """Put the fault in. The source as it was, or "" where the fault has no place."""
    path = place / "functrain" / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        return ""
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    return source


def verdict(mutant: Mutant | None, status: int) -> str:
    """What an exit status says of a fault, or of the source without one."""
    if os.WIFSIGNALED(status):
        return "HANGS" if os.WTERMSIG(status) == signal.SIGALRM else "CRASHED"
    code = os.waitstatus_to_exitcode(status)
    if mutant is None:
        return "passed" if code == PASSED else "FAILED"
    return {PASSED: "SURVIVED", FAILED: "killed"}.get(code, "BROKEN")


def run_all(places: Sequence[Path], mutants: Iterable[tuple[Mutant | None, Sequence[str]]]) -> Iterator[bool]:
    """Run the tests beside each mutant, one in each place at a time: whether each ended well, in no order."""
    free, running, waiting = list(places), dict[int, Job](), list(mutants)[::-1]
    while waiting or running:
        while waiting and free:
            mutant, killers = waiting.pop()
            place, began = free.pop(), time.monotonic()
            source = plant(mutant, place) if mutant else ""
            if mutant and not source:
                print(f"NOT FOUND exactly once  {mutant.file}: {mutant.fault}", flush=True)
                free.append(place)
                yield False
                continue
            running[start(place, killers, place / "mutant.log")] = Job(mutant, place, source, began)
        if running:
            child, status = os.wait()
            mutant, place, source, began = running.pop(child)
            word = verdict(mutant, status)
            told = f"{mutant.file}: {mutant.fault}" if mutant else "the tests without any fault"
            print(f"{word:8} {time.monotonic() - began:6.1f} s  {told}", flush=True)
            if word not in ("passed", "killed"):
                print((place / "mutant.log").read_text(encoding="utf-8", errors="replace")[-4000:], flush=True)
            if mutant:
                (place / "functrain" / mutant.file).write_text(source, encoding="utf-8")
            free.append(place)
            yield word in ("passed", "killed")


def main() -> int:
    """Run all; 0 if every fault was noticed."""
    began = time.monotonic()
    sys.dont_write_bytecode = True
    os.environ |= {
        "HYPOTHESIS_PROFILE": "mutants",
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
        # A mutant may have the size and the second of the file before it, which is all that bytecode is told by.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for slow in ("torch", "torch._dynamo", "jax", "optax", "mpmath", "hypothesis.strategies"):
        importlib.import_module(slow)
    gc.freeze()
    # jax has no thread yet: it starts them when it first computes.
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)

    with tempfile.TemporaryDirectory(prefix="functrain-mutants-") as directory:
        places = [Path(directory).resolve() / str(i) for i in range(AT_ONCE)]
        for place in places:
            place.mkdir()
            copy_tree(place)
        killers = sorted({killer for mutant in MUTANTS for killer in mutant.killers})
        if not all(list(run_all(places, [(None, killers[i::AT_ONCE]) for i in range(AT_ONCE)]))):
            return 1
        killed = sum(run_all(places, [(mutant, mutant.killers) for mutant in MUTANTS]))
    print(f"{killed} of {len(MUTANTS)} faults were noticed, in {time.monotonic() - began:.0f} s")
    return 0 if killed == len(MUTANTS) else 1


if __name__ == "__main__":
    sys.exit(main())
