"""What the Trainer and its checkpoints guarantee, and which tests prove it: `python -m tests.guarantees --write`.

A test proves an entry by its name: `test_acc_1_...` is about ACC-1. The command finds them, and the planted faults that
they notice, and writes docs/guarantees.md; without --write it prints what it would write.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guarantees.md"

FAMILIES = {
    "ACC": "Accumulation",
    "WIN": "The last window of an epoch",
    "AMP": "Mixed precision",
    "NAN": "Numbers that are not finite",
    "SCH": "Schedules",
    "RES": "Resume",
    "CKPT": "Checkpoint files",
    "SEC": "Files from strangers",
    "EVAL": "Evaluation",
    "DEV": "Batches on their way to the device",
    "ITER": "Loaders",
    "SIG": "Signals",
}

ENTRIES = {
    "ACC-1": "K micro-batches of equal size make the update that one batch of all of them makes.",
    "ACC-2": "So do micro-batches of any weights, zero included, when the loss returns (sum, weight).",
    "ACC-3": "The update does not depend on how a set of samples is cut into micro-batches.",
    "ACC-4": "The logged loss of a window is its sum over its weight, and is not divided by K.",
    "ACC-5": "A validation between the batches of a window changes nothing.",
    "ACC-6": "Clipping acts once, on the gradient of the whole window.",
    "ACC-7": "Gradients are added up in float32 at least.",
    "WIN-1": "What becomes of a short last window is a policy: weighted by what is in it, dropped, or carried on.",
    "WIN-2": "No gradient crosses an epoch's end unless it is carried; a stop inside a window replays the window.",
    "WIN-3": "Updates an epoch are ceil(batches / K); the bar and schedules count by that.",
    "AMP-1": "The norm before clipping does not depend on the loss scale.",
    "AMP-2": "The norm after clipping is at most the limit, and a gradient below it is untouched.",
    "AMP-3": "After an overflow under a loss scale nothing has changed but the scale, halved, and the counts of skips.",
    "AMP-4": "bf16 has no loss scale, and checkpoints go from any precision to any other.",
    "AMP-5": "The loss scale and its counters survive a checkpoint exactly.",
    "AMP-6": "A loss scale that finds no bottom is a named error.",
    "NAN-1": "A loss or gradient that is not finite changes no parameter, and is an error that says where and what.",
    "NAN-2": "Policies: raise, skip at most so many in a row, or go back to the last checkpoint.",
    "NAN-3": "NaN is logged as NaN.",
    "NAN-4": "To watch for such numbers costs no wait for the device at an update.",
    "SCH-1": "The rate at update u is schedule(u), whatever accumulation, batches, skips, resumes and validations do.",
    "SCH-2": "A skipped update does not advance a schedule.",
    "SCH-3": "The rate in a record is the one that was used.",
    "SCH-4": "A schedule over the whole run can be told its length; where nobody knows it, that is an error at once.",
    "SCH-5": "A plateau scheduler steps once a validation, before the checkpoint.",
    "RES-1": "k updates, and the rest in a new process, are bit for bit all of them in one.",
    "RES-2": "Several resumes in one epoch are as exact as one.",
    "RES-3": "What is loaded and saved again has equal content.",
    "RES-4": "Saving, validating and logging do not disturb training.",
    "RES-5": "A load that fails changes nothing.",
    "RES-6": "A part that is missing from a file is named.",
    "RES-7": "Where a resume cannot be exact, one warning says what will differ.",
    "RES-8": "The best value survives, and a resumed run never replaces the best by worse.",
    "RES-9": "A finished run that is resumed with the same limit does nothing, and says so.",
    "CKPT-1": "After SIGKILL at any moment the newest checkpoint is the old one or the new one, to the bit.",
    "CKPT-2": "An error of the system at any step of a save is one CheckpointError; nothing is lost or left.",
    "CKPT-3": "When a save has returned, the file verifies.",
    "CKPT-4": "A damaged file is an error, never other values.",
    "CKPT-5": 'resume="auto" takes the newest checkpoint that verifies, and names what it passed over.',
    "CKPT-6": "At every instant of a rotation there is a verified checkpoint; the best and the one resumed from stay.",
    "CKPT-7": "What dead writers left is removed, and a second living writer is refused.",
    "CKPT-8": "NaN is never the best, and of equal ones the first stays.",
    "CKPT-9": "A checkpoint loads on another kind of device than it was written on.",
    "CKPT-10": "Tied weights stay tied, and a view is written as its own elements.",
    "SEC-1": "Nothing in a file can run code, or choose code by a name.",
    "EVAL-1": "Evaluation leaves no trace in state, random streams and training flags, not even when it fails.",
    "EVAL-2": "Training with validation and without ends in the same bits.",
    "EVAL-3": "A validation loss is its sum over its weight, whatever the batch size.",
    "EVAL-4": "An empty validation loader is an error at construction.",
    "DEV-1": "Nested batches keep their structure and types, and their tensors move.",
    "DEV-2": "The loader's tensors are never written to.",
    "ITER-1": "No loader needs a length.",
    "ITER-2": "A loader that yields nothing is an error.",
    "ITER-3": "A batch that was only looked at is not counted as consumed.",
    "ITER-5": "A generator that is spent after one epoch is a clear error in the second.",
    "SIG-1": "SIGTERM, SIGUSR1 and Ctrl-C end the run at the next boundary, saved, with the status a shell expects.",
}


class Proof(NamedTuple):
    """A test, and how many planted faults it notices."""

    file: str  # under tests/
    name: str
    faults: int


def entry_of(test: str) -> str | None:
    """The entry that a test is named for: test_acc_1_... -> ACC-1."""
    match = re.match(r"test_([a-z]+)_(\d+)_", test)
    return f"{match[1].upper()}-{match[2]}" if match and match[1].upper() in FAMILIES else None


def tests() -> Iterator[tuple[str, str]]:
    """(file under tests/, function) of every test that is named for an entry."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and entry_of(node.name):
                yield path.relative_to(ROOT / "tests").as_posix(), node.name


def proofs() -> dict[str, list[Proof]]:
    """The tests of each entry, by file and name."""
    noticed: dict[str, int] = defaultdict(int)
    for mutant in importlib.import_module("tests.mutants").MUTANTS:
        for killer in {killer.partition("[")[0] for killer in mutant.killers}:
            noticed[killer] += 1
    found: dict[str, list[Proof]] = {entry: [] for entry in ENTRIES}
    for file, name in tests():
        found.setdefault(entry_of(name) or "", []).append(Proof(file, name, noticed[f"{file}::{name}"]))
    return {entry: sorted(listed) for entry, listed in found.items()}


def page() -> str:
    """docs/guarantees.md."""
    found = proofs()
    lines = [
        "# What the Trainer guarantees",
        "",
        "Each entry is proven by the tests that carry its name, and each has faults planted in the source that those "
        "tests notice (`make test-long` plants them). Tests in real processes, with real kill signals and full disks, "
        "are part of `make test-long`, and shorter ones of `make test`. *Exact* means every bit of every tensor.",
        "",
        "This page is made by `python -m tests.guarantees --write`.",
    ]
    for family, title in FAMILIES.items():
        lines += ["", f"## {title}", "", "| | guarantee | tests | faults |", "|---|---|---|---|"]
        for entry, sentence in ENTRIES.items():
            if entry.partition("-")[0] == family:
                where: dict[str, list[str]] = defaultdict(list)
                for proof in found[entry]:
                    where[proof.file].append(f"`{claim(proof.name)}`")
                told = "<br>".join(f"[{file}](../tests/{file}): {', '.join(names)}" for file, names in where.items())
                lines.append(f"| {entry} | {sentence} | {told} | {sum(p.faults for p in found[entry])} |")
    return "\n".join(lines) + "\n"


def claim(name: str) -> str:
    """The test's name without its entry: what it claims."""
    return re.sub(r"^test_[a-z]+_\d+_", "", name)


def main() -> int:
    """Print the page, or write it."""
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
        print(PAGE.relative_to(ROOT))
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
