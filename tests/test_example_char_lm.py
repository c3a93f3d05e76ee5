"""The example: its model, its data, and its promises about files and interruptions."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import pytest
import torch

from functrain import checkpoint, logging
from tests.example import load

EXAMPLE = Path(__file__).parent.parent / "examples" / "char_lm.py"
STEPS = 600  # of a tiny model: a few seconds
TINY = shlex.split(f"--steps {STEPS} --width 32 --layers 1 --context 16 --batch 4 --device cpu")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("char_lm")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(topics[name] for name in sorted(topics))[:20_000], "utf-8")
    return path


# --- the model and the data


def test_the_model_has_a_million_parameters(example: ModuleType) -> None:
    gpt = example.GPT(V=103, T=128, D=128, H=4, layers=5)
    assert 0.9e6 < sum(p.numel() for p in gpt.parameters()) < 1.1e6


def test_a_character_changes_no_prediction_before_it(example: ModuleType) -> None:
    torch.manual_seed(0)
    gpt = example.GPT(V=7, T=12, D=32, H=2, layers=2)
    x = torch.randint(7, (3, 12))
    changed = x.clone()
    changed[:, 5] = (x[:, 5] + 1) % 7
    before, after = gpt(x), gpt(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


def test_attention_feels_distance_and_not_position(example: ModuleType) -> None:
    torch.manual_seed(0)
    turn = example.GPT(V=7, T=40, D=64, H=2, layers=1).turn.to(torch.complex128)
    q, k = torch.randn(2, 1, 1, 1, 32, dtype=torch.float64)
    score = [[example.rotate(q, turn[i]) @ example.rotate(k, turn[j]).mT for j in (3, 10)] for i in (5, 12)]
    torch.testing.assert_close(score[0][0], score[1][1], rtol=1e-5, atol=0)  # both 2 back
    assert abs(score[0][0] - score[1][0]) > 0.1


def test_a_window_comes_with_its_successors(example: ModuleType) -> None:
    windows = example.Windows(torch.arange(20), T=6)
    assert len(windows) == 14
    for i in (0, 13):
        x, y = windows[i]
        assert x.tolist() == list(range(i, i + 6))
        assert y.tolist() == list(range(i + 1, i + 7))


@pytest.mark.parametrize("length", [2, 16, 17, 18, 100])
def test_validation_predicts_every_character_but_the_first_once(example: ModuleType, length: int) -> None:
    text = torch.arange(length)
    batches = example.once_through(text, B=3, T=8)
    assert all(torch.equal(x + 1, y) for x, y in batches)
    assert torch.cat([y.flatten() for _, y in batches]).tolist() == list(range(1, length))


def test_the_loss_of_a_batch_is_a_sum_and_the_number_of_its_characters(example: ModuleType) -> None:
    logits = torch.zeros(2, 3, 5)
    total, weight = example.next_character_loss(lambda x: logits, (torch.zeros(2, 3), torch.zeros(2, 3).long()))
    assert weight == 6
    torch.testing.assert_close(total / weight, torch.tensor(5.0).log())


# --- the program


def test_the_example_leaves_its_files_and_ends_with_the_validation_loss(
    example: ModuleType,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    few = shlex.split("--steps 40 --width 32 --layers 1 --context 16 --batch 4 --device cpu --lr 0.01")
    monkeypatch.setattr(sys, "argv", ["char_lm.py", *few, "--text", str(text), "--out", str(out)])
    example.main()

    for name in ("best_model.pt", "last.pt", "metrics.jsonl", "config.json"):
        assert (out / name).is_file()
    assert (out / "history.png").read_bytes().startswith(b"\x89PNG")
    *_, last = capsys.readouterr().out.splitlines()
    match = re.fullmatch(r"validation loss (\d\.\d{3})", last)
    assert match
    losses = [row["val_loss"] for row in logging.history(out / "metrics.jsonl") if "val_loss" in row]
    assert len(losses) == 10
    assert match[1] == f"{min(losses):.3f}"
    assert losses[-1] < losses[0]


def test_a_text_too_short_for_a_window_is_refused(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short", "utf-8")
    monkeypatch.setattr(sys, "argv", ["char_lm.py", "--text", str(short), "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="2"):
        example.main()
    assert capsys.readouterr().err.endswith("the text has 9 characters, too few for windows of 128\n")
    assert not (tmp_path / "run").exists()


# --- in real processes


def command(text: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(EXAMPLE), *TINY, "--text", str(text), "--out", str(out), *more]


def finish(argv: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def interrupt(argv: list[str], out: Path, send: Callable[[subprocess.Popen[str]], None]) -> subprocess.Popen[str]:
    """Start, wait for the second checkpoint, send, and return the process as it ends."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(list(out.glob("step-*.pt"))) < 2:
        assert process.poll() is None, "the run ended before anything was sent"
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.005)  # between two looks
    send(process)
    return process


def weights(out: Path) -> dict[str, object]:
    return checkpoint.read(out / "last.pt").leaves


def updates(out: Path) -> int:
    return max(int(path.stem.removeprefix("step-")) for path in out.glob("step-*.pt"))


def assert_bitwise_equal(a: dict[str, object], b: dict[str, object]) -> None:
    assert a.keys() == b.keys()
    assert any(key.startswith("params.") for key in a)
    for key, x in a.items():
        assert isinstance(x, torch.Tensor)
        assert isinstance(b[key], torch.Tensor)
        assert torch.equal(x, b[key]), key


@pytest.mark.long
def test_a_run_that_was_killed_and_resumed_ends_with_bitwise_the_same_weights(text: Path, tmp_path: Path) -> None:
    finish(command(text, tmp_path / "whole"))

    out = tmp_path / "killed"
    process = interrupt(command(text, out), out, subprocess.Popen.kill)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 0 < updates(out) < STEPS  # it landed mid-run
    assert not (out / "history.png").exists()

    resumed = finish(command(text, out, "--resume"))
    match = re.search(r"^run .*   resumed step-(\d+)\.pt .*, exact$", resumed.stderr, re.MULTILINE)
    assert match
    assert 0 < int(match[1]) < STEPS
    assert updates(out) == STEPS
    assert_bitwise_equal(weights(out), weights(tmp_path / "whole"))


@pytest.mark.long
def test_ctrl_c_saves_and_prints_the_command_that_goes_on(text: Path, tmp_path: Path) -> None:
    finish(command(text, tmp_path / "whole"))

    out = tmp_path / "stopped"
    process = interrupt(command(text, out), out, lambda p: p.send_signal(signal.SIGINT))
    said, _ = process.communicate()
    assert process.returncode == 130
    match = re.search(r"^stopped after update (\d+), and saved; to go on:\n(.*)\n", said, re.MULTILINE)
    assert match
    assert 0 < int(match[1]) < STEPS
    assert updates(out) == int(match[1])  # the last update made is the one saved

    again = shlex.split(match[2])
    assert again == command(text, out, "--resume")
    finish(again)
    assert_bitwise_equal(weights(out), weights(tmp_path / "whole"))
    assert os.path.samefile(out / "last.pt", out / f"step-{STEPS:08d}.pt")
