"""What a person sees, on a terminal and elsewhere."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from functrain import logging
from functrain.logging import Console, JsonLines

RECORD = {
    "step": 15_000, "epoch": 4, "loss": 1.83421, "learning_rate": 2.7e-4, "grad_norm": 0.834, "skipped": 2,
    "updates_per_second": 3.21, "samples_per_second": 12_840.0, "data_wait": 0.04,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_a_record_is_a_line() -> None:
    out = io.StringIO()
    console = Console(out)
    console.epoch(4, 10, 1249, 2500)
    console.advance()
    console.log(RECORD)
    console.epoch(5, None, 0, None)
    console.log({"loss": float("nan")})
    console.validation({"step": 15_000, "epoch": 4, "val_loss": 1.7921, "seconds": 12.4}, 1.7921, True)
    console.validation({"step": 16_000, "epoch": 4, "val_loss": float("nan"), "seconds": 0.1}, 1.7921, False)
    console.saved(4, 15_000, Path("runs/a/step-00015000.pt"), best=True)
    assert out.getvalue().splitlines() == [
        "epoch  4/10  updates 1,250/2,500  50%  3.21 up/s  eta 06:29  12.8k samples/s  loss 1.8342  lr 2.7e-04  "
        "|g| 0.83  skip 2  data 4%",
        "epoch 5  updates 0  nan up/s  - samples/s  loss nan  |g| -  skip 0  data nan%",
        "val  epoch 4  update 15,000  loss 1.7921  best 1.7921 *  12.4 s",
        "val  epoch 4  update 16,000  loss nan  best 1.7921  0.1 s",
        "save  epoch 4  update 15,000  step-00015000.pt, last, best",
    ]


def test_a_terminal_has_a_bar_that_goes_away() -> None:
    out = Terminal()
    console = Console(out)
    console.epoch(4, 10, 1249, 2500)
    console.advance()
    console.log(RECORD | {"note": "{braces}"})
    bar = out.getvalue().split("\r")[-1]
    assert re.fullmatch(
        r"epoch  4/10  updates 1250/2500   50% ━━━━━━━─{7}  .* up/s  eta .*  12.8k samples/s  loss 1.8342  lr 2.7e-04  "
        r"\|g\| 0.83  skip 2  data 4%\s*",
        bar,
    )
    console.say("a line")
    assert "a line\n" in out.getvalue()
    console.close()
    assert out.getvalue().endswith("\r")


def test_a_terminal_has_no_estimate_where_the_length_is_unknown() -> None:
    out = Terminal()
    console = Console(out)
    console.epoch(1, None, 0, None)
    console.advance()
    console.log(RECORD)
    console.close()
    assert "eta" not in out.getvalue()
    assert "epoch 1  updates 1" in out.getvalue()


@pytest.mark.parametrize(
    ("number", "text"), [(7.0, "7"), (12_840.0, "12.8k"), (124_400_000, "124.4M"), (3e9, "3.0G"), (None, "-")]
)
def test_numbers_are_short(number: float | None, text: str) -> None:
    assert logging.short(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (389.6, "06:30"), (3990, "1:06:30")])
def test_durations_are_clocks(seconds: float, text: str) -> None:
    assert logging.clock(seconds) == text


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
