"""Records in TensorBoard, read back by its own reader; loggers by name. `test_loggers_wandb.py` has the other one."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from functrain.loggers import TensorBoard, WandB, as_logger
from functrain.logging import Record
from functrain.optimizers.momentum import sgd
from functrain.trainer import Trainer

Points = dict[str, list[tuple[int, float]]]


def trainer(save_dir: Path | None, lr: float = 0.1, **kwargs: object) -> Trainer:
    """Six updates, a record after each, and three validations."""
    torch.manual_seed(0)
    batches = [(torch.ones(2, 1), torch.zeros(2, 1)), (torch.ones(4, 1), torch.ones(4, 1))]
    kwargs = {"log_interval": 1, "max_grad_norm": 1.0, "max_epochs": 3} | kwargs
    return Trainer(nn.Linear(1, 1), sgd(lr), batches, batches, loss_fn=F.mse_loss, save_dir=save_dir, **kwargs)


def points(history: Sequence[Record]) -> Points:
    """All numbers of records by their names, over the step."""
    found: Points = {}
    for record in history:
        for name, x in record.items():
            if name != "step":
                assert isinstance(x, int | float)
                found.setdefault(name, []).append((record["step"], x))
    return found


def read(directory: Path) -> Points:
    """What TensorBoard shows of a directory: all points, not a sample."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def as_float32(found: Points) -> Points:
    return {name: [(step, float(np.float32(x))) for step, x in line] for name, line in found.items()}


def another_second() -> None:
    """TensorBoard reads files in the order of their names, which have the second in which they were opened."""
    before = int(time.time())
    while int(time.time()) == before:
        time.sleep(0.01)  # between two looks; it is over within a second


# --- TensorBoard


def test_tensorboard_shows_the_history_number_by_number(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path / "tb")
    run = trainer(None, loggers=[logger])
    run.train()
    logger.close()
    wanted = as_float32(points(run.history))
    assert {"loss", "val_loss", "learning_rate", "grad_norm", "epoch"} <= set(wanted)
    assert len(wanted["loss"]) == 6
    assert read(tmp_path / "tb") == wanted


def test_tensorboard_shows_what_is_not_finite_as_it_is(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path)
    for step, loss in enumerate([math.nan, math.inf, -math.inf]):
        logger.log({"step": step, "epoch": 1, "loss": loss, "note": "no number"})
    logger.close()
    assert repr(read(tmp_path)) == repr(
        {"epoch": [(0, 1.0), (1, 1.0), (2, 1.0)], "loss": [(0, math.nan), (1, math.inf), (2, -math.inf)]}
    )


def test_tensorboard_hides_what_a_resumed_run_went_back_behind(tmp_path: Path) -> None:
    first = trainer(tmp_path, loggers=["tensorboard"], save_interval=1, keep=9)
    first.train()
    another_second()
    second = trainer(tmp_path, lr=0.03, loggers=["tensorboard"], resume=tmp_path / "step-00000003.pt")
    second.train()
    assert read(tmp_path / "tb") == as_float32(points(second.history))
    assert points(second.history)["loss"][:3] == points(first.history)["loss"][:3]
    assert [rate for _, rate in points(second.history)["learning_rate"]] == [0.1, 0.1, 0.1, 0.03, 0.03, 0.03]


def test_tensorboard_hides_all_of_another_run_from_one_that_begins(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        logger = TensorBoard(tmp_path)
        logger.go_on_from([])
        logger.log({"step": loss * 10, "epoch": 1, "loss": loss})
        logger.close()
        another_second()
    assert read(tmp_path)["loss"] == [(20, 2.0)]


def test_tensorboard_gets_what_came_before_it(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path)
    logger.go_on_from([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}])
    logger.log({"step": 3, "loss": 1.0})
    logger.close()
    assert read(tmp_path)["loss"] == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_tensorboard_writes_nothing_before_the_first_record(tmp_path: Path) -> None:
    logger = TensorBoard(tmp_path / "tb")
    logger.go_on_from([])
    logger.close()
    assert not (tmp_path / "tb").exists()


def test_a_killed_process_has_written_all_that_it_logged(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from functrain.loggers import TensorBoard
        logger = TensorBoard(sys.argv[1])
        for step in range(20):
            logger.log({"step": step, "loss": 1.0})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert read(tmp_path)["loss"] == [(step, 1.0) for step in range(20)]


# --- by name


def test_a_logger_has_a_name_or_is_one(tmp_path: Path) -> None:
    board = as_logger("tensorboard", tmp_path)
    assert isinstance(board, TensorBoard)
    assert board.directory == tmp_path / "tb"
    biases = as_logger("wandb", tmp_path)
    assert isinstance(biases, WandB)
    assert biases.init == {"dir": tmp_path}
    assert as_logger(board, None) is board


def test_what_is_no_logger_is_an_error_in_words() -> None:
    with pytest.raises(ValueError, match=r"^loggers: 'tensorboard' writes to ") as wrong:
        as_logger("tensorboard", None)
    assert str(wrong.value) == (
        "loggers: 'tensorboard' writes to tb/ in save_dir, which is None; hint: give TensorBoard(path) instead"
    )
    for given in ("mlflow", WandB, 3):
        with pytest.raises(TypeError) as unfit:
            as_logger(given, None)
        assert str(unfit.value) == (
            f"loggers: got {given!r}; hint: a logger has a method log(record), or is 'tensorboard' or 'wandb'"
        )


@pytest.mark.parametrize(("package", "logger"), [("tensorboard", TensorBoard), ("wandb", WandB)])
def test_without_the_package_the_error_names_the_extra(
    package: str, logger: type[TensorBoard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        as_logger(package, Path("runs/a"))
    assert str(caught.value) == (
        f"{logger.__name__}: {package} is not installed; hint: pip install 'functrain[{package}]'"
    )
