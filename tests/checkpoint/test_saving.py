"""What survives a kill, a full disk and a system call that fails: the old file or the new, and nothing else."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from functrain import checkpoint
from functrain.checkpoint import CheckpointError, durable
from tests.checkpoint.files import fails, same

ERRNOS = [errno.ENOSPC, errno.EIO, errno.EACCES]


def alone(path: Path, *values: float) -> None:
    """The file is whole, all its weights are one of these values, and nothing lies beside it."""
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    weights = checkpoint.read(path).leaves["w"]
    assert isinstance(weights, torch.Tensor)
    assert any(same(weights, torch.full_like(weights, value)) for value in values)


# --- a full disk


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """A folder with two MiB, and what the system says when they are full; limited files where it may not mount."""
    with ExitStack() as stack:
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
        if sys.platform == "linux" and subprocess.run(mount, capture_output=True).returncode == 0:
            stack.callback(subprocess.run, ["umount", str(folder)], check=True)
            yield os.strerror(errno.ENOSPC)
        else:
            stack.enter_context(file_size_limit(2 << 20))
            yield os.strerror(errno.EFBIG)


def test_ckpt_2_a_full_disk_is_one_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path) as words:
        path = tmp_path / "a.pt"
        checkpoint.save(path, {"w": torch.ones(10)})
        for _ in range(3):  # what was tried is given back
            fails(f"checkpoint.save: {path}: {words}", checkpoint.save, path, {"w": torch.zeros(700_000)})
            alone(path, 1.0)
        checkpoint.save(path, {"w": torch.zeros(300_000)})
        alone(path, 0.0)


def test_ckpt_2_a_file_that_may_not_grow_is_one_error_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"w": torch.ones(10)})
    for size in (0, 1, 100, 5_000, 100_000, 399_990):
        with file_size_limit(size):
            fails(f"checkpoint.save: {path}: File too large", checkpoint.save, path, {"w": torch.zeros(100_000)})
        alone(path, 1.0)


WITHOUT_LEAVE = """
import os, sys, torch
from functrain import checkpoint
folder, other = sys.argv[1:]
checkpoint.save(other + "/b.pt", {"w": torch.ones(10)})  # imports whatever saving imports
os.chmod(folder, 0o555)
if os.getuid() == 0:
    os.setuid(65534)  # root may write anywhere
try:
    checkpoint.save(folder + "/a.pt", {"w": torch.zeros(10)})
except checkpoint.CheckpointError as error:
    print(error)
"""


def test_ckpt_2_a_folder_that_may_not_be_written_to_is_one_error(tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    path = folder / "a.pt"
    checkpoint.save(path, {"w": torch.ones(10)})
    command = [sys.executable, "-c", WITHOUT_LEAVE, str(folder), str(other)]
    run = subprocess.run(command, capture_output=True, text=True)
    folder.chmod(0o755)
    assert (run.stdout, run.stderr) == (f"checkpoint.save: {path}: Permission denied\n", "")
    alone(path, 1.0)


# --- a call that fails


class Disk:
    """The system's calls, of which the n-th fails with an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, number: int) -> None:
        self.fail_at, self.number, self.calls = fail_at, number, list[str]()
        for name in ("fsync", "replace", "open"):
            monkeypatch.setattr(durable.os, name, self.failing(name, getattr(os, name)))
        monkeypatch.setattr(durable, "open", self.failing("create", self.opened), raising=False)

    def failing(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def made(*args: object, **kwargs: object) -> object:
            self.calls.append(name)
            if len(self.calls) == self.fail_at:
                raise OSError(self.number, os.strerror(self.number))
            return call(*args, **kwargs)

        return made

    def opened(self, path: Path, mode: str) -> object:
        return Watched(open(path, mode), self)


class Watched:
    """A file whose calls are the disk's."""

    def __init__(self, file: object, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def __getattr__(self, name: str) -> object:
        found = getattr(self.file, name)
        return self.disk.failing(name, found) if name in ("write", "flush", "seek", "read") else found

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.parametrize("number", ERRNOS)
def test_ckpt_2_an_error_of_any_system_call_is_one_error_and_loses_nothing(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.pt"
    calls: list[str] = []
    n = 0
    while True:
        n += 1
        checkpoint.save(path, {"w": torch.ones(10)})
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = Disk(monkeypatch, n, number)
            said = ""
            try:
                checkpoint.save(path, {"w": torch.zeros(10)})
            except CheckpointError as error:
                said = str(error)
        if len(disk.calls) < n:
            break
        assert said == f"checkpoint.save: {path}: {os.strerror(number)}", f"of call {n}, {disk.calls[n - 1]}"
        calls = disk.calls
        alone(path, 0.0 if "replace" in calls[:-1] else 1.0)
    assert n > 30


def test_ckpt_1_a_file_is_synced_and_read_back_before_it_has_its_name_and_its_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, 0, 0)
    checkpoint.save(tmp_path / "a.pt", {"w": torch.zeros(10)})
    calls = [call for call in disk.calls if call != "seek"]
    order = [call for call, before in zip(calls, ["", *calls], strict=False) if call != before]
    renamed = order.index("replace")
    assert order[:4] == ["create", "write", "flush", "fsync"]
    assert set(order[4:renamed]) == {"read"}
    assert order[renamed:] == ["replace", "open", "fsync"]


def test_ckpt_3_what_is_written_wrong_is_found_before_the_old_file_goes(
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
    alone(path, 1.0)


def test_ckpt_3_what_would_not_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, saves = tmp_path / "a.pt", torch.save
    checkpoint.save(path, {"w": torch.ones(10)})
    monkeypatch.setattr(torch, "save", lambda content, file: saves({**content, "format": 2}, file))
    fails(f"checkpoint.save: {path}: it is not in format 1", checkpoint.save, path, {"w": torch.zeros(10)})
    alone(path, 1.0)


def test_ckpt_2_an_interrupted_save_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(durable.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "a.pt", {"w": torch.ones(10)})
    assert not list(tmp_path.iterdir())


# --- a kill


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


def test_ckpt_1_a_kill_while_saving_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    kill_while_saving(tmp_path / "a.pt", 3)


@pytest.mark.long
def test_ckpt_1_forty_kills_while_saving_leave_the_old_file_or_the_new(tmp_path: Path) -> None:
    kill_while_saving(tmp_path / "a.pt", 40)
