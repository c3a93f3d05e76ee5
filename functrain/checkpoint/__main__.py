"""Look into checkpoints, check them, take the weights out.

    python -m functrain.checkpoint show runs/a
    python -m functrain.checkpoint verify runs/a runs/b/last.pt
    python -m functrain.checkpoint export runs/a/best_model.pt weights.safetensors --ema

The exit status is 0, 1 where a file is not whole or not there, or 2 where the command is not one of these.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from functrain.checkpoint.contents import CheckpointError
from functrain.checkpoint.exporting import export_weights, weights_of
from functrain.checkpoint.listing import candidates
from functrain.checkpoint.reading import read, verify
from functrain.checkpoint.showing import directory_lines, file_lines, reason


def show(path: Path) -> int:
    """Print what is in a file, or which checkpoints are in a directory."""
    if not path.is_dir():
        for line in file_lines(read(path)):
            print(line)
        return 0
    print(f"{path}: {_count(path)}")
    results = []
    for whole, line in directory_lines(path):
        print(line, flush=True)
        results.append(whole)
    return 0 if results and all(results) else 1


def verify_all(paths: Sequence[Path]) -> int:
    """Print a line a file; 0 if all are whole."""
    status = 0
    for path in paths:
        if path.is_dir() and not candidates(path):
            print(f"none     {path}: {_count(path)}")
            status = 1
        for file in candidates(path) if path.is_dir() else [path]:
            try:
                verify(file)
            except CheckpointError as error:
                print(f"not      {file}: {reason(error, file)}", flush=True)
                status = 1
            else:
                print(f"whole    {file}", flush=True)
    return status


def export(checkpoint: Path, out: Path, averaged: bool) -> int:
    """Write the weights of a Trainer's checkpoint to a safetensors file, and print what was written."""
    tensors = weights_of(read(checkpoint), averaged)
    export_weights(out, tensors)
    print(f"{out}: {len(tensors):,} tensors, {out.stat().st_size:,} bytes")
    return 0


def _count(directory: Path) -> str:
    n = len(candidates(directory))
    return f"{n} checkpoint{'s' * (n != 1)}, newest first" if n else "there is no checkpoint in it"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m functrain.checkpoint", description="Look into checkpoints, check them, take the weights out."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="show | verify | export")
    shows = commands.add_parser("show", help="what is in a file, or which checkpoints are in a run's directory")
    shows.add_argument("path", type=Path, metavar="PATH", help="a checkpoint, or a run's directory")
    verifies = commands.add_parser("verify", help="a line a file; the exit status is 1 if one is not whole")
    verifies.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="checkpoints, or runs' directories")
    exports = commands.add_parser("export", help="the weights of a Trainer's checkpoint in a safetensors file")
    exports.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a file that a Trainer wrote")
    exports.add_argument("out", type=Path, metavar="OUT.safetensors", help="the file to write")
    exports.add_argument("--ema", action="store_true", help="the running mean of the parameters (ft.params_ema)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run one command: its exit status."""
    given = _parser().parse_args(arguments)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of a terminal that knows fewer letters
    try:
        if given.command == "show":
            status = show(given.path)
        elif given.command == "verify":
            status = verify_all(given.paths)
        else:
            status = export(given.checkpoint, given.out, given.ema)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough; nothing may be said any more, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CheckpointError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
