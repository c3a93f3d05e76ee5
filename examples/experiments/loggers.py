"""Curves in TensorBoard and in Weights & Biases: three learning rates on digits, logged to both, read back and drawn.

    python examples/experiments/loggers.py                        # seconds on a CPU; draws runs/loggers/loggers.png
    tensorboard --logdir runs/loggers                             # the same curves in a browser
    wandb sync runs/loggers/*/wandb/offline-run-*                 # later, where there is a network and an account

`loggers=["tensorboard", "wandb"]` is all it takes: each run gets its own directory, and TensorBoard shows all that are
below one. W&B is offline unless WANDB_MODE says otherwise. What is drawn here is read from TensorBoard's event files
by its own reader, so it is what a browser would show.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import functrain as ft

RATES = [3e-4, 3e-3, 3e-2]
Curves = dict[str, list[tuple[int, float]]]  # by the name of what is logged: updates so far, value


def accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The part of a batch that is recognized."""
    return (output.argmax(1) == batch[1]).float().mean()


def train(rate: float, epochs: int, directory: Path) -> None:
    """A run of its own, with both loggers."""
    x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
    torch.manual_seed(0)
    train, val = random_split(TensorDataset(x.float() / 16, y), [1297, 500])
    trainer = ft.Trainer(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        ft.adamw(rate, weight_decay=0.1),
        DataLoader(train, batch_size=32, shuffle=True),
        DataLoader(val, batch_size=500),
        loss_fn=F.cross_entropy,
        metrics={"accuracy": accuracy},
        max_epochs=epochs,
        log_interval=10,
        save_dir=directory,
        loggers=["tensorboard", "wandb"],
    )
    trainer.train()


def read(directory: Path) -> Curves:
    """What TensorBoard shows of a run: all points, not a sample."""
    events = EventAccumulator(str(directory / "tb"), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def draw(runs: dict[str, Curves]) -> Figure:
    """A panel for each of three numbers, a line for each run."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), ["loss", "val_loss", "val_accuracy"], strict=True):
        for run, curves in runs.items():
            axes.plot(*zip(*curves[name], strict=True), label=run)
        axes.set(xlabel="update", title=name)
        if name != "val_accuracy":
            axes.set_yscale("log")
        axes.legend()
    return figure


def main(epochs: int = 20, out: Path = Path("runs/loggers")) -> None:
    """Train with each rate, read back what was logged, draw it."""
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    for rate in RATES:
        train(rate, epochs, out / f"lr={rate:g}")
    runs = {f"lr={rate:g}": read(out / f"lr={rate:g}") for rate in RATES}
    draw(runs).savefig(out / "loggers.png")
    for run, curves in runs.items():
        points, offline = sum(map(len, curves.values())), len([*(out / run).glob("wandb/offline-run-*/*.wandb")])
        print(f"{run}: {points} points in TensorBoard; runs kept for W&B: {offline}")
    least = {run: min((value, step) for step, value in curves["val_loss"]) for run, curves in runs.items()}
    ends = ", ".join(f"{run} {value:.3f} at {step}" for run, (value, step) in least.items())
    print(f"least validation loss: {ends}: best {min(least, key=least.__getitem__)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer epochs")
    short = parser.parse_args().short
    torch.set_num_threads(1)  # a second one costs models of this size more than it brings
    main(**({"epochs": 2} if short else {}))
