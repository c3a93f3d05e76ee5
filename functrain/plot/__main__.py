"""`python -m functrain.plot RUN_DIR`: write RUN_DIR/history.png, and say where."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from functrain.plot.runs import history


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0, 1 where there is nothing to draw, or 2 where the command is another."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m functrain.plot RUN_DIR", file=sys.stderr)
        return 2
    try:
        figure = history(arguments[0])
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    run = Path(arguments[0])
    target = (run if run.is_dir() else run.parent) / "history.png"
    figure.savefig(target, dpi=120)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
