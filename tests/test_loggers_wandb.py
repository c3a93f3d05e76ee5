"""Records in a run of Weights & Biases that was kept on disk, read back from its file."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.test_loggers import Points, points

PROGRAM = """if True:
    import json, os, sys
    from pathlib import Path
    import wandb
    from functrain.loggers import WandB
    from tests.test_loggers import trainer

    out, told = Path(sys.argv[1]), {}
    own = WandB(project="test", mode="offline", dir=out / "own")
    for place in ("own", "theirs", "odd", "error"):
        (out / place).mkdir()
    run = trainer(None, loggers=[own])
    run.train()
    own.close()
    told["own"] = run.history
    told["own run is left"] = wandb.run is not None

    theirs = wandb.init(project="test", mode="offline", dir=out / "theirs")
    theirs.log({"mine": 1.0}, step=0)
    logger = WandB(project="not used")
    run = trainer(None, loggers=[logger])
    run.train()
    logger.close()
    told["theirs"] = run.history
    told["their run is left"] = wandb.run is theirs
    theirs.log({"mine": 2.0}, step=100)
    theirs.finish()

    logger = WandB(project="test", mode="offline", dir=out / "odd")
    logger.log({"step": 1, "loss": float("nan"), "note": "no number"})
    logger.log({"step": 2, "loss": float("inf")})
    logger.log({"step": 1, "loss": 1.0})
    logger.close()

    def fail(event, trainer):
        if event == "epoch":
            raise RuntimeError("a callback failed")

    try:
        trainer(None, loggers=[WandB(project="test", mode="offline", dir=out / "error")], callbacks=[fail]).train()
    except RuntimeError:
        told["run of an error is left"] = wandb.run is not None
    (out / "told.json").write_text(json.dumps(told))
"""


class Told(NamedTuple):
    """What a program with wandb did."""

    out: Path
    told: dict[str, Any]  # what it said of it
    visited: bool  # it connected to what it took for the server
    pid: int


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A program that trains with W&B offline, and a server that is there and that nobody should ask."""
    out = tmp_path_factory.mktemp("wandb")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "WANDB_BASE_URL"), url)
        quiet = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "NO_PROXY": "", "no_proxy": ""}
        environment = os.environ | proxies | quiet
        with subprocess.Popen([sys.executable, "-c", PROGRAM, str(out)], env=environment) as child:
            assert child.wait(300) == 0
        try:
            server.accept()[0].close()
            visited = True
        except BlockingIOError:
            visited = False
    return Told(out, json.loads((out / "told.json").read_text()), visited, child.pid)


def wandb_records(directory: Path) -> Iterator[Any]:
    """The messages in a .wandb file: LevelDB's log, blocks of 32768 bytes with parts of records in them.

    A part has its checksum, length and type before it: 1 is a whole record, 2 the first part of one, 4 the last.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = directory.glob("wandb/offline-run-*/*.wandb")
    data, at, message = path.read_bytes(), 7, b""  # after the file's own header
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            message = b""
            yield record


def wandb_points(directory: Path) -> Points:
    """The history in a .wandb file."""
    found: Points = {}
    for record in wandb_records(directory):
        for item in record.history.item:
            (name,) = item.nested_key or [item.key]
            if not name.startswith("_"):
                found.setdefault(name, []).append((record.history.step.num, json.loads(item.value_json)))
    return found


def exit_codes(directory: Path) -> list[int]:
    return [record.exit.exit_code for record in wandb_records(directory) if record.HasField("exit")]


def once_a_step(found: Points) -> Points:
    """Two records of one step are one row of W&B's, with one epoch."""
    return {name: list(dict(line).items()) for name, line in found.items()}


def test_wandb_has_the_history_number_by_number(program: Told) -> None:
    wanted = once_a_step(points(program.told["own"]))
    assert len(wanted["loss"]) == 6
    assert len(wanted["val_loss"]) == 3
    assert wandb_points(program.out / "own") == wanted


def test_wandb_finishes_the_run_that_it_began(program: Told) -> None:
    assert program.told["own run is left"] is False
    assert exit_codes(program.out / "own") == [0]


def test_wandb_leaves_a_run_open_that_was_there(program: Told) -> None:
    assert program.told["their run is left"] is True
    wanted = once_a_step(points(program.told["theirs"]))
    assert wandb_points(program.out / "theirs") == wanted | {"mine": [(0, 1.0), (100, 2.0)]}


def test_wandb_finishes_a_run_that_an_error_ended_as_failed(program: Told) -> None:
    assert program.told["run of an error is left"] is False
    assert exit_codes(program.out / "error") == [1]


def test_wandb_has_what_is_not_finite_as_it_is_and_no_step_below_its_last(program: Told) -> None:
    assert repr(wandb_points(program.out / "odd")) == repr({"loss": [(1, math.nan), (2, math.inf)]})


def test_wandb_offline_asks_nobody_and_leaves_no_process(program: Told) -> None:
    assert not program.visited
    end = time.monotonic() + 60  # its helper sees within seconds that the program has ended
    while (running := helpers_of(program.pid)) and time.monotonic() < end:
        time.sleep(0.05)  # between two looks
    assert not running


def helpers_of(pid: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], check=True, capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if "wandb-core" in line and re.search(rf"--pid {pid}\b", line)]
