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
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from functrain import checkpoint
from functrain.checkpoint import STEP_FILE, CheckpointError
from functrain.durable import beside, check_seal, replacing, sync
from functrain.logging import JsonLines, Record
from functrain.tree import Tree

if sys.platform != "win32":
    import fcntl


class RunDirectory:
    """A directory, and how many checkpoints it keeps."""

    def __init__(self, path: str | os.PathLike[str], keep: int = 3) -> None:
        self.path, self.keep = Path(path), keep
        self.rows = JsonLines(self.path / "metrics.jsonl")
        self._protected: os.stat_result | None = None  # the checkpoint that was resumed from

    def create(self) -> None:
        """Make it, if it is not there.

        Raises:
            CheckpointError: the system says why not.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"checkpoint.save: {self.path}: {error.strerror}") from error

    def save(self, step: int, tree: Tree, meta: Mapping[str, object], best: bool) -> Path:
        """Write a checkpoint under the number of its update, then its other names, and only then delete old ones.

        Raises:
            CheckpointError: as in `checkpoint.save`; what was there before is there still.
        """
        self.create()
        path = self.path / f"step-{step:08d}.pt"
        checkpoint.save(path, tree, meta=meta)
        try:
            for name in ("last.pt", *(["best_model.pt"] if best else [])):
                give_name(path, self.path / name)
            self._rotate(step)
        except OSError as error:
            raise CheckpointError(f"checkpoint.save: {path}: {error.strerror}") from error
        return path

    def _rotate(self, step: int) -> None:
        """Delete all but the newest; set aside what another run wrote for updates that this one has yet to make."""
        numbered = sorted(
            (int(match[1]), path) for path in self.path.glob("step-*.pt") if (match := STEP_FILE.fullmatch(path.name))
        )
        for number, path in numbered:
            if number > step:
                os.replace(path, path.with_name(path.name + ".stale"))
        past = [path for number, path in numbered if number <= step]
        for path in past[: -self.keep]:
            if self._protected is None or not os.path.samestat(path.stat(), self._protected):
                path.unlink()

    def protect(self, path: Path) -> bool:
        """Never delete this file. True if it lies here."""
        self._protected = path.stat()
        return path.resolve().parent == self.path.resolve()

    def newest(self, say: Callable[[str], object]) -> Path | None:
        """The newest checkpoint that verifies; `say` hears why those before it do not."""
        for path in checkpoint.candidates(self.path):
            try:
                checkpoint.verify(path)
            except CheckpointError as error:
                say(f"skipped: {error}")
            else:
                return path
        return None

    def begin(self, config: Mapping[str, object], history: Sequence[Record]) -> None:
        """Write `config.json`, and let `metrics.jsonl` go on from these records."""
        with replacing(self.path / "config.json") as file:
            file.write((json.dumps(config, indent=2) + "\n").encode())
        self.rows.go_on_from(history)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A block in which no other process writes here. What writers that were killed left half-written is removed.

        Raises:
            RuntimeError: another process does.
        """
        self.create()
        with open(self.path / "lock", "a+", encoding="utf-8") as file:
            # A lock of the process: workers that it forks do not hold it on, as they would one of the descriptor.
            try:
                if sys.platform != "win32":
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise RuntimeError(
                    f"Trainer: process {file.read() or '?'} is writing to {self.path}; hint: choose another save_dir"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            for half_written in self.path.glob(".*.tmp"):
                half_written.unlink()
            yield


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


def choose_checkpoint(
    resume: str | os.PathLike[str] | None, run: RunDirectory | None, say: Callable[[str], object]
) -> str | os.PathLike[str] | None:
    """The file that `resume` means; "auto" is the newest in the run's directory, and None where there is none.

    Raises:
        ValueError: "auto" without a directory.
    """
    if resume != "auto":
        return resume
    if run is None:
        raise ValueError("Trainer: resume='auto' looks for checkpoints in save_dir, which is None")
    return run.newest(say)
