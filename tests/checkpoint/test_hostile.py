"""Files that somebody wrote to harm: nothing in them runs, and they take no more memory than they are large.

A seal is right in most of them: everybody can compute one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from functrain import checkpoint
from functrain.checkpoint import durable, reading
from tests.checkpoint.files import fails, pickled_by_torch, refused, sealed, zipped
from tests.checkpoint.hostile import GOOD, HUGE
from tests.checkpoint.pickles import call, contents, name, number, sizes, storage, tensor, text

ROOT = Path(__file__).parents[2]


def watched(folder: Path, count: int, seed: int) -> None:
    command = [sys.executable, "-m", "tests.checkpoint.watch", str(folder), str(count), str(seed)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (run.stdout, run.stderr, run.returncode) == (f"{count} files\n", "", 0)


def test_sec_1_fifty_hostile_files_run_nothing_and_take_no_memory(tmp_path: Path) -> None:
    watched(tmp_path, 50, seed=0)


@pytest.mark.long
def test_sec_1_five_hundred_hostile_files_run_nothing_and_take_no_memory(tmp_path: Path) -> None:
    watched(tmp_path, 500, seed=1)


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_sec_1_no_code_in_what_torch_saves_runs(tmp_path: Path) -> None:
    path, trace = tmp_path / "a.pt", tmp_path / "trace"
    for content in (
        Runs(trace),
        {"format": 1, "leaves": {"w": Runs(trace)}, "meta": "{}"},
        {"format": Runs(trace), "leaves": {}, "meta": "{}"},
    ):
        refused(sealed(pickled_by_torch(content), path), "it names 'posix.mkdir', and a checkpoint names nothing but")
    assert not trace.exists()


def harmless(*_: object) -> None:
    raise AssertionError("something in the file ran")


def test_sec_1_a_list_of_what_torch_may_call_does_not_bind_checkpoints(tmp_path: Path) -> None:
    content = zipped({**GOOD, "archive/data.pkl": contents({"w": call(name(__name__, "harmless"), text("x"))})})
    with torch.serialization.safe_globals([harmless]):
        refused(
            sealed(content, tmp_path / "a.pt"), f"it names '{__name__}.harmless', and a checkpoint names nothing but"
        )


def test_sec_1_torchs_reader_alone_would_run_nothing_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind the check of claims holds without it."""
    path, trace = tmp_path / "a.pt", tmp_path / "trace"
    sealed(pickled_by_torch({"format": 1, "leaves": {"w": Runs(trace)}, "meta": "{}"}), path)
    monkeypatch.setattr(reading, "check_file", durable.check_seal)
    with pytest.raises(checkpoint.CheckpointError, match="is damaged, or no checkpoint: Weights only load failed"):
        checkpoint.read(path)
    assert not trace.exists()


def test_sec_1_refusals_are_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    where = f"checkpoint.verify: {path} is damaged, or no checkpoint:"
    for pickled, message in {
        contents(form=number(2)): "it is not in format 1",
        contents(meta=text("[]")): "its meta is no JSON object",
        contents({"w": number(1)}): "it holds more than it names",
        contents({"w": tensor() + b"\x85"}): "it holds something else than tensors and scalars by name",
        contents({"w": tensor() + b"l"}): "its instruction b'l' is none that a checkpoint has",
        contents({"w": b")" + b"\x85" * 9}): "it is nested too deeply",
        contents({"w": tensor(storage(count=HUGE))}): "it has a storage of another size than it claims",
        contents({"w": tensor(shape=sizes(HUGE))}): "it has a tensor of another size than its storage",
        contents(
            {"w": tensor(shape=sizes(HUGE), strides=sizes(0))}
        ): "it has a tensor of another size than its storage",
        contents({"w": tensor(strides=sizes(2))}): "it has a tensor of another size than its storage",
        contents({"w": tensor(storage(key="../0"))}): "it has a storage of another size than it claims",
        contents({"w": tensor(hooks=number(1))}): "it has a tensor that is none",
        contents()[:-9]: "it ends too early",
    }.items():
        sealed(zipped({**GOOD, "archive/data.pkl": pickled}), path)
        fails(f"{where} {message}", checkpoint.verify, path)
    for entries, message in (
        ({**GOOD, "archive/data.pkl": contents(), "../x": b"1"}, "its entries are not those of a checkpoint"),
        ({**GOOD}, "its entries are not those of a checkpoint"),
    ):
        fails(f"{where} {message}", checkpoint.verify, sealed(zipped(entries), path))
    bomb = zipped({**GOOD, "archive/data.pkl": contents(), "archive/data/1": bytes(50_000_000)}, compression=8)
    fails(f"{where} its entries are compressed", checkpoint.verify, sealed(bomb, path))
    right = zipped({**GOOD, "archive/data.pkl": contents()})
    fails(f"{where} its directory is not where it says", checkpoint.verify, sealed(b"before" + right, path))
    assert checkpoint.verify(sealed(right, path))


def test_sec_1_what_verifies_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    """A check that reads differently from torch would check another file."""
    tensors = {"w": torch.randn(3, 4), "tied": torch.arange(3), "half": torch.ones(2, 0).to(torch.bfloat16)}
    checkpoint.save(tmp_path / "a.pt", tensors)
    torchs = torch.load(tmp_path / "a.pt", weights_only=True)["leaves"]
    ours = checkpoint.read(tmp_path / "a.pt").leaves
    assert list(torchs) == list(ours) == list(tensors)
    assert all(torch.equal(ours[key], x) and torch.equal(torchs[key], x) for key, x in tensors.items())
