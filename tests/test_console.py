"""What a person sees elsewhere than on a terminal: lines, and the numbers in them. `test_bar.py` has the terminal."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
import torch

import functrain
from functrain import console
from functrain.console import Console

RECORD = {
    "step": 15_000, "epoch": 4, "loss": 1.83421, "learning_rate": 2.7e-4, "grad_norm": 0.834, "skipped": 2,
    "updates_per_second": 3.21, "samples_per_second": 12_840.0, "data_wait": 0.04,
}  # fmt: skip


def test_elsewhere_a_record_is_a_line() -> None:
    out = io.StringIO()
    console = Console(out)
    console.epoch(4, 10, 1249, 2500)
    console.advance()
    console.log(RECORD | {"memory": 3_100_000_000})
    console.epoch(5, None, 0, None)
    console.log({"loss": float("nan"), "learning_rate/a": 0.1, "learning_rate/b": 0.02})
    console.saved(4, 15_000, Path("runs/a/step-00015000.pt"), best=True)
    console.stopped(15_000, saved=True)
    console.close()
    assert out.getvalue().splitlines() == [
        "epoch  4/10  updates 1,250/2,500  50%  3.21 up/s  12.8k samples/s  eta 06:29  loss 1.8342  lr 2.7e-04  "
        "|g| 0.83  skip 2  data 4%  mem 3.1G",
        "epoch 5  updates 0  loss nan  lr 1.0e-01, 2.0e-02  skip 0",
        "save   epoch 4  update 15,000  step-00015000.pt, last, best",
        "stopped at update 15,000: resume='auto' goes on from here",
    ]


def test_a_validation_is_a_line_with_all_that_was_measured_and_where_it_was_saved() -> None:
    out = io.StringIO()
    console = Console(out)
    first = {"step": 15_000, "epoch": 4, "val_loss": 1.7921, "val_accuracy": 0.9123, "val_mse": 2e-5, "seconds": 12.4}
    console.validation(first, 1.7921, True, ["best", "last"])
    console.validation({"step": 16_000, "epoch": 4, "val_loss": float("nan"), "seconds": 0.1}, 1.7921, False)
    console.validation({"step": 1, "epoch": 1, "val_loss": float("nan"), "seconds": 0.1}, None, False)
    assert out.getvalue().splitlines() == [
        "val    epoch 4  update 15,000  loss 1.7921  best 1.7921 *  accuracy 0.9123  mse 2.0e-05  12.4 s  "
        "saved best, last",
        "val    epoch 4  update 16,000  loss nan  best 1.7921  0.1 s",
        "val    epoch 1  update 1  loss nan  best -  0.1 s",
    ]


def begun(*args: object) -> list[str]:
    out = io.StringIO()
    Console(out).begin("functrain", *args)
    return out.getvalue().splitlines()


def test_a_run_begins_with_where_it_is_and_where_it_stands(tmp_path: Path) -> None:
    run, file = Path("runs/lm"), Path("runs/lm/step-00012000.pt")
    assert begun(None, None, 1, 0, ()) == ["functrain"]
    assert begun(run, None, 1, 0, ()) == ["functrain", "run runs/lm   new"]
    assert begun(run, None, 3, 412, ()) == ["functrain", "run runs/lm   goes on (epoch 3, batch 412)"]
    assert begun(run, file, 3, 412, ()) == [
        "functrain", "run runs/lm   resumed step-00012000.pt (epoch 3, batch 412), exact",
    ]  # fmt: skip
    assert begun(run, tmp_path / "a.pt", 3, 1412, ["x", "y"]) == [
        "functrain", f"run runs/lm   resumed {tmp_path / 'a.pt'} (epoch 3, batch 1,412), not exact: x; y",
    ]  # fmt: skip
    assert begun(None, file, 1, 5, ()) == [
        "functrain", "resumed runs/lm/step-00012000.pt (epoch 1, batch 5), exact",
    ]  # fmt: skip


def test_the_header_says_with_what_the_run_is_made() -> None:
    versions = f"functrain {functrain.__version__}  torch {torch.__version__}"
    assert console.header("cuda:0", "bf16", 42, 124_400_000) == (
        f"{versions}  device cuda:0  bf16  seed 42  parameters 124.4M"
    )
    assert console.header("cpu", None, 0, 9) == f"{versions}  device cpu  fp32  seed 0  parameters 9"


def test_all_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.epoch(1, 1, 0, 1)
    console.log(RECORD)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("epoch 1/1  updates 0/1  0%  3.21 up/s")


def test_a_reader_that_has_gone_ends_no_run() -> None:
    read, write = os.pipe()
    os.close(read)
    out = os.fdopen(write, "w")
    console = Console(out)
    console.say("to nobody")
    console.log(RECORD)
    console.close()
    with pytest.raises(BrokenPipeError):
        out.close()  # it still has the lines
    console.say("to a closed stream")


def test_a_program_without_standard_error_trains_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    console = Console()
    console.epoch(1, 1, 0, 1)
    console.log(RECORD)
    console.close()


def test_what_a_stream_cannot_write_is_escaped() -> None:
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    Console(out).say("µ")
    assert out.buffer.getvalue() == b"\\xb5\n"


@pytest.mark.parametrize(
    ("number", "text"), [(7.0, "7"), (12_840.0, "12.8k"), (124_400_000, "124.4M"), (3e9, "3.0G"), (None, "-")]
)
def test_numbers_are_short(number: float | None, text: str) -> None:
    assert console.short(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.83421, "1.8342"), (0.0, "0.0000"), (0.001, "0.0010"), (0.00099, "9.9e-04"), (-2e-7, "-2.0e-07"),
        (999_999.0, "999999.0000"), (1e6, "1.0e+06"), (float("inf"), "inf"), (float("nan"), "nan"), (None, "-"),
    ],
)  # fmt: skip
def test_no_number_hides_behind_its_digits(number: float | None, text: str) -> None:
    assert console.legible(number, 4) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (389.6, "06:30"), (3990, "1:06:30")])
def test_durations_are_clocks(seconds: float, text: str) -> None:
    assert console.clock(seconds) == text
