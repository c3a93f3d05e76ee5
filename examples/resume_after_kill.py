"""A training process is killed in the middle of an epoch, started again, and ends with the bits of one that never was.

    python examples/resume_after_kill.py        # half a minute on a CPU, most of it starts of Python

This program is the parent; it starts itself as child. SIGKILL lets nobody tidy up, and comes whenever it comes: in the
middle of an update, or of a save. Where that was differs from run to run. What the second child ends with does not: it
goes on from the newest whole checkpoint, with the same order of digits, the same noise on them and the same dropout,
though it is given another seed than the first.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import functrain as ft

SIZE = 16  # digits in a batch


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """The digits, each with new noise whenever it is looked at."""

    def __init__(self) -> None:
        x, y = load_digits(return_X_y=True)
        self.x, self.y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + 0.1 * torch.randn(64), self.y[i]


def child(directory: Path, seed: int, epochs: int) -> None:
    """Train, and tell each update."""
    torch.manual_seed(seed)
    trainer = ft.Trainer(
        nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, 10)),
        ft.adamw(ft.schedules.cosine_decay_schedule(3e-3, epochs * len(Noisy()) // SIZE), weight_decay=0.1),
        DataLoader(Noisy(), SIZE, shuffle=True),
        loss_fn=F.cross_entropy,
        max_epochs=epochs,
        save_dir=directory,
        save_interval=20,
        resume="auto",
        callbacks=[lambda event, trainer: print(trainer.updates, flush=True) if event == "update" else None],
    )
    trainer.train()


def live(directory: Path, seed: int, epochs: int, kill_at: int | None = None) -> int:
    """Run a child; kill it when it tells of this update. Returns the last update that it told of."""
    command = [sys.executable, __file__, "--child", str(directory), "--seed", str(seed), "--epochs", str(epochs)]
    told = 0
    with (
        directory.with_suffix(".log").open("a") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout
        for line in process.stdout:
            told = int(line)
            if told == kill_at:
                process.kill()  # SIGKILL
    if process.returncode != (-signal.SIGKILL if kill_at else 0):
        raise RuntimeError(f"the child ended with {process.returncode}; hint: read {log.name}")
    return told


def main(epochs: int = 6, out: Path = Path("runs/resume_after_kill")) -> None:
    """Two runs, one of them killed, and what they ended with."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    killed, whole = out / "killed", out / "whole"
    updates = -(-len(Noisy()) // SIZE)  # in an epoch

    last = live(killed, 1, epochs, kill_at=updates * 3 // 2)
    print(f"killed after update {last}, {last % updates} of {updates} into epoch {last // updates + 1} of {epochs}")
    print(f"newest checkpoint {ft.checkpoint.latest(killed).name}; started again, it came to update", end=" ")
    print(f"{live(killed, 2, epochs)}; a run that was never killed came to {live(whole, 1, epochs)}")

    one, other = (ft.checkpoint.read(path / "last.pt").leaves for path in (killed, whole))
    apart = [name for name in one.keys() | other if not torch.equal(one[name], other[name])]
    print(
        f"leaves that differ: {apart}" if apart else f"all {len(one)} leaves of the two states are equal, bit for bit"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="two epochs")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=6, help="(%(default)s)")
    args = parser.parse_args()
    if args.child:
        child(args.child, args.seed, args.epochs)
    else:
        main(2 if args.short else args.epochs)
