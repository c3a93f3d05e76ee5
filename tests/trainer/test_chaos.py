"""A run that is killed at any moment, again and again, is bit for bit the run that was not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from functrain import checkpoint
from functrain.checkpoint.listing import STEP_FILE
from tests.trainer.chaos import SAMPLES, Life

CLOCKS = {"seconds", "updates_per_second", "samples_per_second", "data_wait"}
MEAN = 12  # updates that a life has time for
Start = Callable[[Life], int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a life, and get how it ended."""
    command = [sys.executable, "-W", "error", "-m", "tests.trainer.chaos"]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # a process with threads must not fork
    with subprocess.Popen(command, env=alone, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        questions, answers = server.stdin, server.stdout

        def ask(life: Life) -> int:
            print(json.dumps(life._asdict()), file=questions, flush=True)
            return int(answers.readline())

        yield ask
        questions.close()
        assert server.wait(60) == 0


def steps(directory: Path) -> list[int]:
    return sorted(int(match[1]) for path in directory.glob("*") if (match := STEP_FILE.fullmatch(path.name)))


class Newest(NamedTuple):
    """How far the checkpoints of a run are."""

    numbered: int = 0
    last: int = 0  # behind the other if a kill came between the two names


def check_after_a_kill(directory: Path, before: Newest) -> Newest:
    """Every name that a checkpoint may have is one, and none went back."""
    for name in [f"step-{step:08d}.pt" for step in steps(directory)] + ["last.pt", "best_model.pt"]:
        assert not (directory / name).exists() or checkpoint.verify(directory / name), name
    last = directory / "last.pt"
    now = Newest(max(steps(directory), default=0), checkpoint.read(last).leaves["step"] if last.exists() else 0)
    assert now.numbered >= now.last >= before.last
    assert now.numbered >= before.numbered
    return now


def in_a_save(directory: Path) -> bool:
    """A checkpoint is half-written, or has not all of its names."""
    newest = directory / f"step-{max(steps(directory), default=0):08d}.pt"
    last = directory / "last.pt"
    return any(directory.glob(".*.pt.*.tmp")) or (newest.exists() and not (last.exists() and last.samefile(newest)))


def served(directory: Path) -> dict[int, list[int]]:
    """The samples of each update; whoever made it a second time made it of the same."""
    found: dict[int, list[int]] = {}
    for line in (directory / "served").read_text().splitlines():
        update, ids = json.loads(line)
        assert found.setdefault(update, ids) == ids, update
    return found


def told(records: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: x for name, x in record.items() if name not in CLOCKS} for record in records]


def rows(directory: Path) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return told([row for row in found if not row.get("stale")])


def assert_same_run(a: Path, b: Path) -> None:
    one, other = checkpoint.read(a / "last.pt"), checkpoint.read(b / "last.pt")
    assert one.leaves.keys() == other.leaves.keys()
    for part in ("params", "buffers", "running_mean", "opt_state", "nu", "ema"):  # all that there is to lose
        assert any(part in key for key in one.leaves), part
    for key, x in one.leaves.items():
        assert torch.equal(x, other.leaves[key]), key
    assert told(one.meta.pop("history")) == told(other.meta.pop("history")) == rows(a) == rows(b)
    assert one.meta == other.meta  # the place with its random streams, the best
    assert served(a) == served(b)


def chaos(start: Start, where: Path, background: bool, kills: int) -> tuple[int, int]:
    """Kill a run so often, then let it end, and compare. The kills that hit a save, and the updates of the run."""
    broken, whole = where / "broken", where / "whole"
    assert start(Life(str(where / "warm"), 1, background, last=1)) == 0  # by now torch is imported
    began = time.monotonic()
    assert start(Life(str(where / "measured"), 1, background, last=MEAN)) == 0
    mean, moments = time.monotonic() - began, random.Random(kills + background)
    newest, hits = Newest(), 0
    for number in range(1, kills + 1):
        life = Life(str(broken), 100 + number, background, seconds=moments.uniform(0, 2 * mean))
        assert start(life) == -9, Path(f"{broken}.stderr").read_text()
        newest = check_after_a_kill(broken, newest)
        hits += in_a_save(broken)

    end = newest.numbered + 7
    assert start(Life(str(broken), 7, background, last=end)) == 0, Path(f"{broken}.stderr").read_text()
    assert start(Life(str(whole), 8, background, last=end)) == 0, Path(f"{whole}.stderr").read_text()
    assert_same_run(broken, whole)
    assert not list(broken.glob(".*.tmp"))
    ids = served(broken)
    assert list(ids) == list(range(1, end + 1))
    for epoch in range(end // 3):
        assert sorted(ids[3 * epoch + 1] + ids[3 * epoch + 2] + ids[3 * epoch + 3]) == list(range(SAMPLES))
    return hits, end


@pytest.mark.parametrize("background", [False, True])
def test_ckpt_1_a_run_killed_three_times_at_random_is_the_run_that_was_not(
    start: Start, tmp_path: Path, background: bool
) -> None:
    chaos(start, tmp_path, background, kills=3)


@pytest.mark.long
@pytest.mark.parametrize("background", [False, True])
def test_ckpt_1_a_run_killed_sixty_times_at_random_is_the_run_that_was_not(
    start: Start, tmp_path: Path, background: bool, record_property: Callable[[str, object], None]
) -> None:
    hits, updates = chaos(start, tmp_path, background, kills=60)
    record_property("kills in a save", hits)
    record_property("updates", updates)
    print(f"{hits} of 60 kills hit a save, and the run has {updates} updates")
    assert hits  # else nothing was shown
