"""The directory of a run: its checkpoints, and what else lies there.

    step-00001234.pt   the checkpoint after update 1234; the newest few are kept
    last.pt            the newest of them
    best_model.pt      the one with the lowest validation loss
    metrics.jsonl      a record a line
    config.json        how the run was called

`last.pt` and `best_model.pt` are further names of the same file where the file system has hard links, else copies.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from functrain import checkpoint
from functrain.checkpoint import CheckpointError
from functrain.checkpoint.contents import words
from functrain.checkpoint.durable import Damaged, beside, check_seal, replacing, sync
from functrain.checkpoint.listing import numbered
from functrain.logging import JsonLines
from functrain.tree import Tree

if sys.platform != "win32":
    import fcntl

HALF_WRITTEN = re.compile(r"\..+\.\d+\.tmp")  # of a file, by a process


class RunDirectory:
    """A directory, and how many checkpoints it keeps."""

    def __init__(self, path: str | os.PathLike[str], keep: int = 3) -> None:
        self.path, self.keep = Path(path), keep
        self.rows = JsonLines(self.path / "metrics.jsonl")
        self._protected: os.stat_result | None = None  # the checkpoint that was resumed from
        self.config: Mapping[str, object] = {}  # what config.json tells
        self._ours = False  # best_model.pt is this run's
        self._begun = False  # checkpoints here are this run's
        self._locked = False  # by a run of ours

    def create(self) -> None:
        """Make it, if it is not there.

        Raises:
            CheckpointError: the system says why not.
        """
        if self.path.is_file():
            raise CheckpointError(f"Trainer: save_dir={str(self.path)!r} is a file; hint: the path of a folder")
        with _told(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, tree: Tree, meta: Mapping[str, object], best: bool, least: float = -math.inf) -> Path:
        """Write a checkpoint under the number of its update, then its other names, and only then delete old ones.

        Args:
            step: its update.
            tree: the state.
            meta: what is beside it.
            best: as `best_model.pt` too.
            least: its validation loss. A run that went back keeps a `best_model.pt` that is as good.

        Raises:
            CheckpointError: as in `checkpoint.save`; what was there before is there still.
            RuntimeError: somebody else is writing here.
        """
        path = self.path / f"step-{step:08d}.pt"
        with nullcontext() if self._locked else self._alone():
            protected = self._is_protected(path)
            if not self._begun and path.is_file():
                with _told(path):
                    _set_aside(path)
            checkpoint.save(path, tree, meta=meta)
            with _told(path):
                if protected:  # saved anew: another file, which is to stay as the old one was
                    self._protected = path.stat()
                give_name(path, self.path / "last.pt")
                if best and self._may_replace_best(least):
                    give_name(path, self.path / "best_model.pt")
                    self._ours = True
                self._rotate(step)
        return path

    def _may_replace_best(self, least: float) -> bool:
        """Set aside what another run left; keep what this one had before it went back, if it is as good."""
        path = self.path / "best_model.pt"
        if self._ours or not path.exists():
            return True
        if self._protected is None:
            _set_aside(path)
            return True
        try:
            found = checkpoint.read(path).meta.get("best")
        except CheckpointError:
            return True
        return not isinstance(found, float) or least < found

    def _rotate(self, step: int) -> None:
        """Delete all but the newest; set aside what another run left, and what is of updates yet to be made."""
        found = [(number, path) for number, path in numbered(self.path) if path.is_file()]
        for number, path in found:
            if number > step or (number < step and not self._begun):
                _set_aside(path)
        past = [path for number, path in found if number <= step and (self._begun or number == step)]
        self._begun = True
        for path in past[: -self.keep]:
            if not self._is_protected(path):
                path.unlink()

    def _is_protected(self, path: Path) -> bool:
        return self._protected is not None and path.exists() and os.path.samestat(path.stat(), self._protected)

    def protect(self, path: Path) -> bool:
        """Never delete this file. True if it lies here."""
        here = path.resolve().parent == self.path.resolve()
        self._protected, self._ours, self._begun = path.stat() if here else None, False, here
        return here

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A block in which nobody else writes here. What writers that were killed left half-written is removed.

        Raises:
            RuntimeError: somebody does: another process, or another Trainer in this one.
            CheckpointError: the system says why the directory cannot be written to.
        """
        with self._alone():
            with _told(config := self.path / "config.json"), replacing(config) as file:
                file.write((json.dumps(self.config, indent=2) + "\n").encode())
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.create()
        with _lock(self.path):
            with _told(self.path):
                for path in self.path.iterdir():
                    if HALF_WRITTEN.fullmatch(path.name):
                        path.unlink(missing_ok=True)
            yield


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """A block whose errors of the system are a checkpoint's."""
    try:
        yield
    except (OSError, Damaged) as error:
        raise CheckpointError(f"checkpoint.save: {path}: {words(error)}") from error


_LOCKS: set[int] = set()  # descriptors


def _let_go() -> None:
    """A worker that was forked must not hold on what the trainer lets go."""
    while _LOCKS:
        os.close(_LOCKS.pop())


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """A block with the lock of a directory, which dies with the process.

    It belongs to an open file, not to the process as the other kind: a second Trainer in one process is refused, too,
    and who reads all files of the directory, to copy them, does not lose it by closing this one.
    """
    path = directory / "lock"
    with _told(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _LOCKS.add(descriptor)
    try:
        with _told(path):
            try:
                if sys.platform != "win32":
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 20).decode() or "?"
                raise RuntimeError(
                    f"Trainer: process {holder} is writing to {directory}; hint: choose another save_dir"
                ) from None
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        if descriptor in _LOCKS:  # else this is a fork of who opened it
            _LOCKS.discard(descriptor)
            os.close(descriptor)


def _set_aside(path: Path) -> None:
    os.replace(path, path.with_name(path.name + ".stale"))


def give_name(path: Path, name: Path) -> None:
    """Another name for a file, in one instant; a copy where the file system has no hard links."""
    try:
        with beside(name) as temporary:
            os.link(path, temporary)
            os.replace(temporary, name)
    except OSError:
        with open(path, "rb") as source, replacing(name, check_seal) as copy:
            shutil.copyfileobj(source, copy)
    sync(name.parent)


def check_path(what: str, path: object) -> None:
    """Raise TypeError for what is no path."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{what} is a {type(path).__name__}; hint: the path of a checkpoint that a Trainer has saved")


def choose_checkpoint(
    resume: str | os.PathLike[str] | None, run: RunDirectory | None, say: Callable[[str], object]
) -> str | os.PathLike[str] | None:
    """The file that `resume` means; "auto" is the newest in the run's directory, and None where there is none.

    Raises:
        ValueError: "auto" without a directory.
        TypeError: it is no path.
    """
    if resume is not None:
        check_path("Trainer: resume", resume)
    if resume != "auto":
        return resume
    if run is None:
        raise ValueError("Trainer: resume='auto' looks for checkpoints in save_dir, which is None")
    return checkpoint.latest(run.path, lambda error: say(f"skipped: {error}"))
