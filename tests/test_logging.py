"""Records in `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from functrain import logging
from functrain.checkpoint import CheckpointError
from functrain.logging import JsonLines


def test_rows_without_a_mark_become_the_history(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = JsonLines(path)
    rows.go_on_from([])
    assert not path.exists()

    nan = float("nan")
    for step in (1, 2, 3):
        rows.log({"step": step, "loss": nan})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')

    def marks() -> list[tuple[int, bool]]:
        return [(row["step"], "stale" in row) for row in map(json.loads, path.read_text().splitlines())]

    rows.go_on_from([{"step": 1, "loss": nan}, {"step": 2, "loss": nan}])
    assert marks() == [(1, False), (2, False), (3, True)]
    before = path.stat().st_ino
    rows.go_on_from([{"step": 1, "loss": nan}, {"step": 2, "loss": nan}])
    assert path.stat().st_ino == before, "nothing to change, and the file was written"

    rows.log({"step": 3, "loss": 0.0})
    rows.go_on_from([{"step": 1, "loss": 5.0}])  # another run
    assert marks() == [(1, True), (2, True), (3, True), (3, True), (1, False)]
    assert logging.history(path) == [{"step": 1, "loss": 5.0}]


def test_a_row_is_its_record_and_nan_is_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record = {"step": 1, "epoch": 1, "loss": math.nan, "grad_norm": math.inf, "learning_rate": 0.1, "note": "é"}
    JsonLines(path).log(record)
    assert path.read_text() == (
        '{"step": 1, "epoch": 1, "loss": NaN, "grad_norm": Infinity, "learning_rate": 0.1, "note": "\\u00e9"}\n'
    )
    (row,) = logging.rows(path)
    assert repr(row) == repr(record)


def test_what_is_no_record_is_left_out(tmp_path: Path) -> None:
    assert logging.rows(tmp_path / "none") == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n[1]\n{"step": 2, "stale": true}\n{"step": 3}\n{"st')
    assert [row["step"] for row in logging.rows(path)] == [1, 2, 3]
    assert [row["step"] for row in logging.history(path)] == [1, 3]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_rows_that_a_full_disk_does_not_take_come_whole_with_the_next_that_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log, records = JsonLines(path), [{"step": i, "loss": i / 3} for i in range(5)]
    for record in records[:2]:
        log.log(record)
    whole = path.read_bytes()
    with no_file_above(len(whole) + 5):  # a part of a row
        with pytest.warns(UserWarning, match="metrics.jsonl: .*; its rows follow when they can$"):
            log.log(records[2])
        log.log(records[3])  # warned of already
        assert path.read_bytes() == whole
    log.log(records[4])
    assert logging.rows(path) == records


def test_a_history_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    log.log({"step": 1})
    whole = path.read_bytes()
    with no_file_above(10), pytest.raises(CheckpointError, match=r"metrics.jsonl: File too large$"):
        log.go_on_from([{"step": i} for i in range(5)])
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert path.read_bytes() == whole
