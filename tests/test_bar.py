"""What a person sees on a terminal: a real pty, and what stands on its screen."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tqdm import tqdm

from functrain.console import Console
from tests.screen import Pty, terminal
from tests.test_console import RECORD

WHOLE = (
    "epoch  4/10  updates 1,250/2,500  50% ━━━━━━━───────  3.21 up/s  12.8k samples/s  eta 06:29  loss 1.8342  "
    "lr 2.7e-04  |g| 0.83  skip 2  data 4%"
)


@contextlib.contextmanager
def shown(columns: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Pty, Console]]:
    """A terminal that is standard output and standard error, and a console on it."""
    with terminal(columns) as pty, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pty.stream)
        patch.setattr(sys, "stderr", pty.stream)
        console = Console()
        try:
            yield pty, console
        finally:
            console.close()


def half_way(console: Console) -> None:
    console.epoch(4, 10, 1249, 2500)
    console.advance()
    console.log(RECORD)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (200, WHOLE),
        (len(WHOLE) + 1, WHOLE),
        (
            120,
            "epoch  4/10  updates 1,250/2,500  50% ━━━━━━━───────  3.21 up/s  eta 06:29  loss 1.8342  lr 2.7e-04  "
            "|g| 0.83  skip 2",
        ),
        (80, "epoch  4/10  updates 1,250/2,500  50% ━━━───  3.21 up/s  eta 06:29  loss 1.8342"),
        (60, "epoch  4/10  updates 1,250/2,500  50% ━━━━────  loss 1.8342"),
        (20, "epoch  4/10  update"),
    ],
)
def test_a_bar_says_what_matters_most_in_the_columns_there_are(
    columns: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shown(columns, monkeypatch) as (pty, console):
        half_way(console)
        assert pty.hang_up().lines() == [line]


def test_no_width_makes_a_bar_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in range(2, 160, 7):
        with shown(columns, monkeypatch) as (pty, console):
            half_way(console)
            screen = pty.hang_up()
            (line,) = screen.lines()
            assert len(line) < columns
            assert WHOLE.startswith(line[:32])
            assert screen.wrapped == 0


def test_a_bar_goes_away_and_leaves_what_it_said_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(200, monkeypatch) as (pty, console):
        half_way(console)
        console.epoch(5, 10, 0, 2500)
        console.close()
        console.close()
        line = (
            WHOLE.replace(" ━━━━━━━───────", "")
            .replace("epoch  4", "epoch  5")
            .replace("1,250/2,500  50%", "    0/2,500  0%")
        )
        assert pty.hang_up().lines() == [line.replace("06:29", "12:59")]


def test_after_a_validation_a_bar_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(80, monkeypatch) as (pty, console):
        half_way(console)
        console.validation({"step": 15_000, "epoch": 4, "val_loss": 1.7921, "seconds": 12.4}, 1.7921, True, ["last"])
        console.close()
        assert pty.hang_up().lines() == [
            "val    epoch 4  update 15,000  loss 1.7921  best 1.7921 *  12.4 s  saved last"
        ]


def test_a_validation_in_a_narrow_terminal_is_one_line_without_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(80, monkeypatch) as (pty, console):
        record = {"step": 15_000, "epoch": 4, "val_loss": 1.7921, "seconds": 12.4}
        console.validation(record, 1.7921, True, ["best", "last"])
        assert pty.hang_up().lines() == ["val    epoch 4  update 15,000  loss 1.7921  best 1.7921 *  saved best, last"]


def test_there_is_no_estimate_where_the_length_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(80, monkeypatch) as (pty, console):
        console.epoch(1, None, 0, None)
        console.advance()
        console.log(RECORD)
        assert pty.hang_up().lines() == ["epoch 1  updates 1  3.21 up/s  loss 1.8342  lr 2.7e-04  |g| 0.83  skip 2"]


def test_what_is_printed_stands_above_the_bar_whole_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(80, monkeypatch) as (pty, console):
        half_way(console)
        print("one")
        console.advance()
        print("two\nthree")
        console.say("four")
        print("fi", end="")
        console.advance()
        console.log(RECORD)
        print("ve")
        print("six", file=sys.stderr)
        sys.stdout.writelines(["seven\n", "eight\n"])
        console.advance()
        print("nine", end="")
        console.close()
        print("ten")
        lines = pty.hang_up().lines()
    printed = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    assert [line for line in lines if not line.startswith("epoch")] == printed
    assert len(lines) == len(printed) + 1, "more of the bar is left than its last line"


def test_what_reaches_the_terminal_by_another_way_starts_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(80, monkeypatch) as (pty, console):
        half_way(console)
        os.write(pty.slave, b"a program in C, whose message is as long as the bar that it is written over ...\n")
        console.advance()
        console.log(RECORD)
        console.validation({"step": 1, "epoch": 4, "val_loss": 1.0}, 1.0, True)
        console.close()
        assert pty.hang_up().lines() == [
            "a program in C, whose message is as long as the bar that it is written over ...",
            "val    epoch 4  update 1  loss 1.0000  best 1.0000 *",
        ]


def test_output_is_itself_again_when_the_bar_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(80, monkeypatch) as (pty, console):
        half_way(console)
        kept = sys.stdout
        assert (kept.fileno(), kept.encoding, kept.isatty()) == (pty.slave, "utf-8", True)
        assert kept is not pty.stream
        console.close()
        assert sys.stdout is sys.stderr is pty.stream
        print("begun, ", end="", file=kept, flush=True)
        print("and ended", file=kept)
        assert pty.hang_up().lines()[1:] == ["begun, and ended"]


def test_output_that_goes_elsewhere_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with shown(80, monkeypatch) as (_, console), open(tmp_path / "out", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        half_way(console)
        assert sys.stdout is file
        console.close()


def test_two_bars_have_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(80, monkeypatch) as (pty, console):
        half_way(console)
        for _ in tqdm(range(3), desc="mine", ncols=40, mininterval=0, leave=False):
            console.advance()
            console.log(RECORD)
        console.validation({"step": 1, "epoch": 4, "val_loss": 1.0}, 1.0, True)
        console.close()
        assert pty.hang_up().lines() == ["val    epoch 4  update 1  loss 1.0000  best 1.0000 *"]


def test_a_terminal_of_few_letters_has_a_bar_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(80, monkeypatch) as (pty, _), open(pty.slave, "w", encoding="ascii", closefd=False) as stream:
        console = Console(stream)
        half_way(console)
        assert pty.hang_up().lines() == [
            "epoch  4/10  updates 1,250/2,500  50% ===---  3.21 up/s  eta 06:29  loss 1.8342"
        ]


def test_a_bar_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown(80, monkeypatch) as (_, console):
        before = threading.active_count()
        half_way(console)
        assert threading.active_count() == before
        console.close()


def test_a_terminal_that_has_gone_ends_no_run() -> None:
    master, slave = os.openpty()
    stream = os.fdopen(slave, "w")
    console = Console(stream)
    half_way(console)
    os.close(master)
    console.advance()
    console.log(RECORD)
    console.say("to nobody")
    console.epoch(5, 10, 0, 2500)
    console.close()
    with pytest.raises(OSError, match="Input/output error"):
        stream.close()  # it still has the lines


RUN = """if True:
    import fcntl, sys, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C in this terminal is for this program
    import torch
    from functrain.optimizers.momentum import sgd
    from functrain.trainer import Trainer

    def tell(event, trainer):
        if event == "update" and trainer.updates == 3:
            print("three updates")
            input()

    batches = [torch.ones(2)] * 1000
    objective = lambda m, x: m(x[:, None]).square().mean()
    trainer = Trainer(
        torch.nn.Linear(1, 1), sgd(0.0), batches, objective=objective, max_epochs=None, max_steps=10**9, log_interval=1,
        callbacks=[tell], save_dir=sys.argv[1],
    )
    trainer.train()
"""


def test_after_ctrl_c_no_bar_and_no_half_line_is_left(tmp_path: Path) -> None:
    with terminal(100) as pty:
        child = subprocess.Popen(
            [sys.executable, "-c", RUN, str(tmp_path / "run")],
            stdin=pty.slave, stdout=pty.slave, stderr=pty.slave, start_new_session=True,
        )  # fmt: skip
        pty.wait_for("three updates")
        pty.type(b"\x03")
        pty.type(b"\n")
        assert child.wait(60) == 130
        lines = pty.hang_up().lines()
    lines = [re.sub(r"\d+\.\d+ up/s.*", "...", line) for line in lines]
    assert lines[1:3] == [f"run {tmp_path / 'run'}   new", "three updates"]
    assert lines[-1] == "stopped at update 3: resume='auto' goes on from here"
    assert "epoch 1  updates     3/1,000  0%  ..." in lines[3:]
    assert not [line for line in lines if "━" in line or "─" in line]
