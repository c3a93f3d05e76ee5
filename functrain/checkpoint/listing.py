"""The checkpoints of a run directory."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from functrain.checkpoint.contents import CheckpointError
from functrain.checkpoint.reading import verify

STEP_FILE = re.compile(r"step-(\d+)\.pt")


def latest(directory: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint of a run directory that verifies; None where there is none."""
    for path in candidates(directory):
        with contextlib.suppress(CheckpointError):
            verify(path)
            return path
    return None


def candidates(directory: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run directory, newest first: by update as a number, then the two that have none."""
    where = Path(directory)
    steps = sorted(
        (int(match[1]), path) for path in where.glob("step-*.pt") if (match := STEP_FILE.fullmatch(path.name))
    )
    others = [where / name for name in ("last.pt", "best_model.pt")]
    return [path for _, path in reversed(steps)] + [path for path in others if path.exists()]
