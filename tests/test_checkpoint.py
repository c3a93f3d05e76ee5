"""Checkpoints: what comes back, what is refused, and what survives a kill, a full disk and a changed byte."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from functrain import checkpoint, durable, tree
from functrain.checkpoint import CheckpointError

HINT = "hint: this is the checkpoint of another model or optimizer"


class Pair(NamedTuple):
    mean: object
    rest: object


def example() -> dict[str, object]:
    torch.manual_seed(0)
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.bool, torch.complex64)
    return {
        "by dtype": [torch.randn(3, 2).mul(9).to(dtype) for dtype in dtypes],
        "a.b": Pair(torch.tensor(float("nan")), (torch.zeros(0, 3), torch.tensor(-0.0))),
        "a": {"b": torch.arange(5), "": 1, 7: 2.5, "7": "seven", "flag": True},
        "hole": (),
    }


def same(a: object, b: object) -> bool:
    """Bit for bit, types included."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b) and a == b
    if (a.dtype, a.shape, a.device) != (b.dtype, b.shape, b.device):
        return False
    return bytes(a.contiguous().view(-1).view(torch.uint8).tolist()) == bytes(
        b.contiguous().view(-1).view(torch.uint8).tolist()
    )


def same_tree(a: object, b: object) -> bool:
    return tree.keys(a) == tree.keys(b) and all(map(same, tree.leaves(a), tree.leaves(b)))


def fails(message: str, call: Callable[..., object], *args: object, **kwargs: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        call(*args, **kwargs)
    assert str(caught.value) == message


# --- what comes back


def test_a_tree_comes_back_bit_for_bit_with_its_structure(tmp_path: Path) -> None:
    saved = example()
    checkpoint.save(tmp_path / "a.pt", saved)
    like = tree.map(lambda x: torch.full_like(x, 1) if isinstance(x, torch.Tensor) else x, saved)
    before = tree.map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, like)

    loaded = checkpoint.load(str(tmp_path / "a.pt"), like=like)
    assert same_tree(loaded, saved)
    assert type(loaded["a.b"]) is Pair
    assert same_tree(like, before), "the template was written to"


def test_a_tree_may_be_one_tensor(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", torch.arange(3))
    assert same(checkpoint.load(tmp_path / "a.pt", torch.zeros(3, dtype=torch.int64)), torch.arange(3))


def test_a_saved_and_loaded_tree_saves_equal_content(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", example())
    checkpoint.save(tmp_path / "b.pt", checkpoint.load(tmp_path / "a.pt", example()))
    a, b = (checkpoint.read(tmp_path / name).leaves for name in ("a.pt", "b.pt"))
    assert list(a) == list(b)
    assert all(map(same, a.values(), b.values()))


def test_a_view_is_saved_as_its_own_elements(tmp_path: Path) -> None:
    whole = torch.arange(1_000_000.0).reshape(1000, 1000)
    views = {"row": whole[3], "column": whole[:, 3], "transposed": whole[:2, :3].T, "expanded": whole[0, 1].expand(2)}
    checkpoint.save(tmp_path / "a.pt", views)
    assert same_tree(checkpoint.load(tmp_path / "a.pt", views), views)
    assert (tmp_path / "a.pt").stat().st_size < 20_000


def test_conjugate_and_negative_views_keep_their_values(tmp_path: Path) -> None:
    z = torch.randn(3, dtype=torch.complex64)
    views = {"conj": z.conj(), "neg": z.conj().imag}
    assert views["conj"].is_conj()
    assert views["neg"].is_neg()
    checkpoint.save(tmp_path / "a.pt", views)
    loaded = checkpoint.load(tmp_path / "a.pt", views)
    assert all(torch.equal(loaded[name], views[name]) for name in views)


def test_tied_leaves_are_written_once_and_are_tied_where_the_template_is(tmp_path: Path) -> None:
    w = torch.randn(300, 300)
    tied = {"embed": w, "head": w}
    checkpoint.save(tmp_path / "a.pt", tied)
    assert (tmp_path / "a.pt").stat().st_size < 1.5 * w.nbytes

    again = checkpoint.load(tmp_path / "a.pt", tied)
    assert again["embed"] is again["head"]
    apart = checkpoint.load(tmp_path / "a.pt", {"embed": w, "head": w.clone()})
    assert apart["embed"].data_ptr() != apart["head"].data_ptr()
    assert same(apart["head"], w)


def test_a_tied_template_refuses_a_file_in_which_the_leaves_differ(tmp_path: Path) -> None:
    path, w = tmp_path / "a.pt", torch.ones(2)
    checkpoint.save(path, {"embed": w, "head": 2 * w})
    message = f"checkpoint.load: {path}: leaves 'embed' and 'head' are one tensor, and differ in the file; {HINT}"
    fails(message, checkpoint.load, path, {"embed": w, "head": w})


def test_leaves_come_as_plain_tensors_where_and_as_the_template_lies(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    like = torch.nn.Parameter(torch.zeros_like(image))
    checkpoint.save(tmp_path / "a.pt", image.contiguous())
    loaded = checkpoint.load(tmp_path / "a.pt", like)
    assert type(loaded) is torch.Tensor
    assert not loaded.requires_grad
    assert loaded.stride() == image.stride()
    assert torch.equal(loaded, image)
    assert checkpoint.load(tmp_path / "a.pt", torch.empty(2, 3, 4, 4, device="meta")).device.type == "cpu"


def test_meta_comes_back_nan_and_all(tmp_path: Path) -> None:
    meta = {"best": float("inf"), "loss": float("nan"), "rows": [{"step": 1, "x": None}]}
    checkpoint.save(tmp_path / "a.pt", {}, meta=meta)
    assert json.dumps(checkpoint.read(tmp_path / "a.pt").meta) == json.dumps(meta)


def test_a_file_is_a_zip_that_torch_reads_without_running_code(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", {"w": torch.ones(2)})
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["leaves"]["w"], torch.ones(2))


# --- what is refused, word for word


def test_each_misfit_names_the_first_leaf(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"layer": {"w": torch.zeros(3), "n": 1}})
    where = f"checkpoint.load: {path}: leaf"
    cases = [
        (
            {"layer": {"w": torch.zeros(4), "n": 1}},
            f"{where} 'layer.w' is float32 of shape (3,) in the file, and should be float32 of shape (4,); {HINT}",
        ),
        (
            {"layer": {"w": torch.zeros(3, dtype=torch.bfloat16), "n": 1}},
            f"{where} 'layer.w' is float32 of shape (3,) in the file, and should be bfloat16 of shape (3,); {HINT}",
        ),
        (
            {"layer": {"w": torch.zeros(3), "n": torch.zeros(())}},
            f"{where} 'layer.n' is of type int in the file, and should be float32 of shape (); {HINT}",
        ),
        (
            {"layer": {"w": torch.zeros(3), "n": 1}, "bias": torch.zeros(2)},
            f"{where} 'bias', float32 of shape (2,), is not in the file; {HINT}",
        ),
        (
            {"layer": {"n": 1}},
            f"{where} 'layer.w' of the file, float32 of shape (3,), has no place; {HINT}",
        ),
    ]
    for like, message in cases:
        fails(message, checkpoint.load, path, like)


def test_an_absent_file_is_a_checkpoint_error_in_the_systems_words(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    fails(f"checkpoint.load: {path}: No such file or directory", checkpoint.load, path, {})
    fails(f"checkpoint.verify: {path}: No such file or directory", checkpoint.verify, path)
    missing = tmp_path / "missing" / "a.pt"
    fails(f"checkpoint.save: {missing}: No such file or directory", checkpoint.save, missing, {})
    fails(f"checkpoint.load: {tmp_path}: Is a directory", checkpoint.load, tmp_path, {})


def test_what_cannot_be_saved_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    where = f"checkpoint.save: {path}: leaf 'a.b'"
    hint = "hint: a checkpoint holds tensors, bool, int, float and str"
    fails(f"{where} is a bytes; {hint}", checkpoint.save, path, {"a": {"b": b""}})
    dense = "is not a dense tensor with values"
    for x, what in (
        (torch.eye(2).to_sparse(), "(Tensor, torch.sparse_coo, on cpu)"),
        (torch.empty(2, device="meta"), "(Tensor, torch.strided, on meta)"),
    ):
        fails(f"{where} {dense} {what}; hint: convert it first", checkpoint.save, path, {"a": {"b": x}})
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.save(path, {}, meta={"x": object()})
    assert not list(tmp_path.iterdir())


# --- damage


def damaged(path: Path, whole: bytes, changed: bytes) -> None:
    """A changed file is an error in all three ways of looking at it."""
    assert changed != whole
    path.write_bytes(changed)
    for look in (checkpoint.verify, checkpoint.read):
        with pytest.raises(CheckpointError, match="is damaged, or no checkpoint: "):
            look(path)


def sample(tmp_path: Path) -> tuple[Path, bytes]:
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"w": torch.arange(40.0), "b": torch.ones(3)}, meta={"step": 3})
    assert checkpoint.verify(path) is True
    return path, path.read_bytes()


def test_one_changed_bit_anywhere_is_an_error(tmp_path: Path) -> None:
    path, whole = sample(tmp_path)
    draw = random.Random(0)
    for i in range(len(whole)):
        damaged(path, whole, whole[:i] + bytes([whole[i] ^ 1 << draw.randrange(8)]) + whole[i + 1 :])


def test_every_truncation_and_every_tail_is_an_error(tmp_path: Path) -> None:
    path, whole = sample(tmp_path)
    for n in range(0, len(whole), 3):
        damaged(path, whole, whole[:n])
    damaged(path, whole, whole + b"\0")
    damaged(path, whole, whole + whole)


def test_zeroed_and_swapped_ranges_are_errors(tmp_path: Path) -> None:
    path, whole = sample(tmp_path)
    draw = random.Random(1)
    for _ in range(100):
        i, j = sorted(draw.sample(range(len(whole)), 2))
        for changed in (whole[:i] + bytes(j - i) + whole[j:], whole[j:] + whole[i:j] + whole[:i]):
            if changed != whole:
                damaged(path, whole, changed)


def test_damage_is_told_in_words(tmp_path: Path) -> None:
    path, whole = sample(tmp_path)
    where = f"checkpoint.load: {path} is damaged, or no checkpoint:"
    path.write_bytes(whole[:50])
    fails(f"{where} it is too short", checkpoint.load, path, {})
    path.write_bytes(whole[:-1] + b"x")
    fails(f"{where} its bytes do not match its seal", checkpoint.load, path, {})
    torch.save({"w": torch.ones(100)}, path)
    fails(f"{where} its bytes do not match its seal", checkpoint.load, path, {})


# --- hostile files, under a seal that is right: everybody can compute one


def seal(path: Path, content: object) -> None:
    """A sealed file of whatever torch.save writes."""
    with open(path, "w+b") as file:
        sealing = durable.Sealing(file)
        torch.save(content, sealing)
        sealing.seal()


def seal_zip(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with open(path, "w+b") as file:
        sealing = durable.Sealing(file)
        sealing.write(buffer.getvalue())
        sealing.seal()
    assert checkpoint.verify(path)


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_no_code_in_a_file_runs(tmp_path: Path) -> None:
    path, trace = tmp_path / "a.pt", tmp_path / "trace"
    for content in (
        Runs(trace),
        {"format": 1, "leaves": {"w": Runs(trace)}, "meta": "{}"},
        {"format": Runs(trace), "leaves": {}, "meta": "{}"},
    ):
        seal(path, content)
        with pytest.raises(CheckpointError, match="is damaged, or no checkpoint: "):
            checkpoint.read(path)
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match="is damaged, or no checkpoint: "):
            checkpoint.read(path)
    assert not trace.exists()


def test_what_is_no_flat_map_of_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    fine: dict[str, object] = {"format": 1, "leaves": {}, "meta": "{}"}
    for change in (
        {"format": 2},
        {"leaves": [1]},
        {"leaves": {"w": None}},
        {"leaves": {1: 1}},
        {"leaves": {"w": torch.eye(2).to_sparse()}},
        {"leaves": {"w": torch.empty(2, device="meta")}},
        {"leaves": {"w": {"nested": torch.ones(1)}}},
        {"meta": "[]"},
        {"meta": "{"},
        {"meta": "[" * 100_000},
        {"meta": 3},
    ):
        seal(path, {**fine, **change})
        with pytest.raises(CheckpointError, match="is damaged, or no checkpoint: "):
            checkpoint.read(path)
    seal(path, fine)
    assert checkpoint.read(path).leaves == {}


def test_sizes_that_a_file_only_claims_allocate_nothing(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "small.pt", {"w": torch.arange(5.0)})
    with zipfile.ZipFile(tmp_path / "small.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    path = tmp_path / "a.pt"

    seal_zip(path, {**entries, "archive/data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    fails(
        f"checkpoint.load: {path} is damaged, or no checkpoint: its entries are larger than it is",
        checkpoint.read,
        path,
    )

    five, huge = b"K\x05", b"J" + struct.pack("<i", 1 << 30)  # pickle's opcodes for the sizes of storage and tensor
    assert entries["archive/data.pkl"].count(five) == 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for pickled in (
        entries["archive/data.pkl"].replace(five, huge),
        entries["archive/data.pkl"].replace(five, huge, 1),
        huge.join(entries["archive/data.pkl"].rsplit(five, 1)),
    ):
        seal_zip(path, {**entries, "archive/data.pkl": pickled})
        with pytest.raises(CheckpointError):
            checkpoint.load(path, {"w": torch.arange(5.0)})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB: under a twentieth of the claim


# --- the order of writes


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"w": torch.ones(10)})
    for size in (0, 1, 100, 5_000, 100_000, 399_990):
        with file_size_limit(size):
            fails(f"checkpoint.save: {path}: File too large", checkpoint.save, path, {"w": torch.zeros(100_000)})
        assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
        assert same(checkpoint.load(path, {"w": torch.zeros(10)})["w"], torch.ones(10))


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_an_error_of_any_system_call_is_one_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"w": torch.ones(10)})

    def broken(*args: object) -> object:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable.os, call, broken)
    fails(f"checkpoint.save: {path}: Input/output error", checkpoint.save, path, {"w": torch.zeros(10)})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert float(checkpoint.load(path, {"w": torch.zeros(10)})["w"].sum()) in ({0.0} if call == "open" else {10.0})


def test_what_is_written_wrong_is_found_before_the_old_file_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"w": torch.ones(10)})
    seals = durable.Sealing.seal

    def flip(self: durable.Sealing) -> None:
        seals(self)
        self.file.seek(700)
        self.file.write(b"?")

    monkeypatch.setattr(durable.Sealing, "seal", flip)
    fails(f"checkpoint.save: {path}: its bytes do not match its seal", checkpoint.save, path, {"w": torch.zeros(10)})
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
    assert same(checkpoint.load(path, {"w": torch.zeros(10)})["w"], torch.ones(10))


def test_an_interrupted_save_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(durable.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "a.pt", {"w": torch.ones(10)})
    assert not list(tmp_path.iterdir())


SAVES = """
import sys, torch
from functrain import checkpoint
n = int(sys.argv[2])
while True:
    n += 1
    checkpoint.save(sys.argv[1], {"w": torch.full((100_000,), float(n))})
    print(n, flush=True)
"""


def kill_while_saving(path: Path, kills: int) -> None:
    draw, n = random.Random(kills), 0
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, "-c", SAVES, str(path), str(n)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(draw.uniform(0, 0.03))  # at any moment of the saves, which follow each other without a pause
        child.kill()
        told, _ = child.communicate()
        assert child.returncode == -signal.SIGKILL, "the child ended before the kill"

        values = checkpoint.load(path, {"w": torch.zeros(100_000)})["w"]
        returned = max(map(int, told.split()), default=n + 1)
        n = int(values[0])
        assert (values == n).all()
        assert n in (returned, returned + 1), "neither the last that was saved nor the one that was being saved"


def test_a_kill_while_saving_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    kill_while_saving(tmp_path / "a.pt", 3)


@pytest.mark.long
def test_forty_kills_while_saving_leave_the_old_file_or_the_new(tmp_path: Path) -> None:
    kill_while_saving(tmp_path / "a.pt", 40)


# --- a directory


def test_latest_is_the_newest_by_number_that_verifies(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "missing") is None
    assert checkpoint.latest(tmp_path) is None
    for n in ("9", "10", "00000002", "0100000000"):
        checkpoint.save(tmp_path / f"step-{n}.pt", {"n": int(n)})
    (tmp_path / "step-9999999999.pt.stale").write_bytes(b"")
    (tmp_path / "step-x.pt").write_bytes(b"")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-0100000000.pt"
    (tmp_path / "step-0100000000.pt").write_bytes(b"damaged")
    assert checkpoint.latest(str(tmp_path)) == tmp_path / "step-10.pt"
    for path in tmp_path.glob("step-*"):
        path.write_bytes(b"damaged")
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path / "best_model.pt", {"n": 1})
    assert checkpoint.latest(tmp_path) == tmp_path / "best_model.pt"
    checkpoint.save(tmp_path / "last.pt", {"n": 1})
    assert checkpoint.latest(tmp_path) == tmp_path / "last.pt"
