"""The Trainer against the bare loop that calls the same step on the same batches."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import functrain as ft
from functrain.logging import JsonLines
from tests.benchmarks.timing import Row, interleave, main

GOAL = 1.03


def run(small: bool) -> list[Row]:
    """The one row. A step of this model takes about 5 ms on two cores: what the loop adds would show.

    The Trainer logs every tenth update to `metrics.jsonl` and to the console, whose lines are made and go nowhere.
    """
    width, updates = (16, 20) if small else (448, 300)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 10))
    data = TensorDataset(torch.randn(64 * updates, 64), torch.randint(10, (64 * updates,)))
    loader = DataLoader(data, batch_size=64, shuffle=True)
    tx = ft.adamw(1e-3)
    model = ft.functionalize(module)
    step = ft.train_step(model.loss(F.cross_entropy), tx, max_grad_norm=1.0)
    start = ft.TrainState.create(model, tx)

    def bare() -> Tensor:
        state = start
        for batch in loader:
            state, metrics = step(state, batch)
        return metrics["loss"]

    with tempfile.TemporaryDirectory() as directory:
        rows = JsonLines(Path(directory) / "metrics.jsonl")

        def trained() -> None:
            with contextlib.redirect_stderr(io.StringIO()):
                ft.Trainer(
                    model, tx, loader, loss_fn=F.cross_entropy, max_epochs=1, max_grad_norm=1.0,
                    log_interval=10, loggers=[rows],
                ).train()  # fmt: skip

        times = interleave({"Trainer": trained, "bare loop": bare}, rounds=3 if small else 15, warmup=1)
    what = f"Trainer, logging every 10 updates / bare loop, an epoch of {updates} updates of a perceptron with 3 layers"
    return [Row(what, times.ratio("Trainer", "bare loop"), GOAL, times.detail("Trainer", "bare loop"))]


if __name__ == "__main__":
    main(run)
