"""The checkpoints of a run directory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from functrain.checkpoint.contents import CheckpointError
from functrain.checkpoint.reading import verify

STEP_FILE = re.compile(r"step-(\d+)\.pt")


def latest(
    directory: str | os.PathLike[str], say: Callable[[CheckpointError], object] = lambda error: None
) -> Path | None:
    """The newest checkpoint of a run directory that verifies; None where there is none.

    Args:
        directory: of a run.
        say: hears why those before it do not verify.
    """
    for path in candidates(directory):
        try:
            verify(path)
        except CheckpointError as error:
            say(error)
        else:
            return path
    return None


def candidates(directory: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run directory, newest first: by update as a number, then the two that have none."""
    others = [Path(directory) / name for name in ("last.pt", "best_model.pt")]
    return [path for _, path in reversed(numbered(directory))] + [path for path in others if path.exists()]


def numbered(directory: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """The checkpoints that have an update's number, by it."""
    found = Path(directory).glob("step-*.pt")
    return sorted((int(match[1]), path) for path in found if (match := STEP_FILE.fullmatch(path.name)))
