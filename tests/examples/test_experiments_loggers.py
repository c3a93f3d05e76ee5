"""Curves in TensorBoard and W&B: what is drawn is what the runs wrote to metrics.jsonl, and both loggers have it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.example import EXAMPLES, load
from tests.test_loggers import Points
from tests.test_loggers_wandb import wandb_points

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the program ran, in a process of its own."""
    folder = tmp_path_factory.mktemp("loggers")
    subprocess.run([sys.executable, EXAMPLES / "experiments/loggers.py", "--short"], cwd=folder, check=True)
    return folder / "runs/loggers"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load("experiments/loggers")


def logged(directory: Path) -> Points:
    """All numbers of metrics.jsonl by name."""
    found: Points = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, x in record.items():
            if name != "step" and isinstance(x, int | float):
                found.setdefault(name, []).append((record["step"], x))
    return found


@pytest.mark.parametrize("rate", ["0.0003", "0.003", "0.03"])
def test_both_loggers_have_the_run_number_by_number(program: ModuleType, out: Path, rate: str) -> None:
    directory = out / f"lr={rate}"
    written = logged(directory)
    assert len(written["val_accuracy"]) == 2
    assert {value for _, value in written["learning_rate"]} == {float(rate)}
    curves = program.read(directory)
    for name, line in written.items():
        assert curves[name] == [(step, float(np.float32(x))) for step, x in line]
        assert dict(wandb_points(directory)[name]) == dict(line)


def test_a_line_of_the_picture_is_the_curve(program: ModuleType, out: Path) -> None:
    figure = program.draw({"a": program.read(out / "lr=0.03")})
    for axes, name in zip(figure.axes, ["loss", "val_loss", "val_accuracy"], strict=True):
        (line,) = axes.get_lines()
        wanted = [(step, float(np.float32(x))) for step, x in logged(out / "lr=0.03")[name]]
        assert [tuple(point) for point in line.get_xydata().tolist()] == wanted
    assert (out / "loggers.png").stat().st_size < 200_000
