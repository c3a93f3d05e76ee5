"""32 small models trained by `torch.func.vmap(step)`, against a loop of 32 steps."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import functrain as ft
from tests.benchmarks.timing import Row, interleave, main

GOAL = 1 / 8
MEMBERS = 32


def perceptron(seed: int) -> nn.Module:
    """16 inputs, 32 hidden, 1 output."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1))


def run(small: bool) -> list[Row]:
    """The one row."""
    members = 4 if small else MEMBERS
    models = [ft.functionalize(perceptron(seed)) for seed in range(members)]
    tx = ft.adamw(1e-3)
    step = ft.train_step(models[0].loss(F.mse_loss), tx)
    many = torch.func.vmap(step, in_dims=(0, None), randomness="different")
    batch = torch.randn(64, 16), torch.randn(64, 1)

    states = [ft.TrainState.create(model, tx, seed=seed) for seed, model in enumerate(models)]
    now = {"stacked": ft.tree.stack(states), "states": states}

    def vmapped() -> None:
        now["stacked"], _ = many(now["stacked"], batch)

    def loop() -> None:
        now["states"] = [step(state, batch)[0] for state in now["states"]]

    times = interleave({"vmap": vmapped, "loop": loop}, rounds=3 if small else 25, calls=4)
    what = f"vmap(step) / loop over step, {MEMBERS} perceptrons of 16-32-1, batch 64"
    return [Row(what, times.ratio("vmap", "loop"), GOAL, times.detail("vmap", "loop"))]


if __name__ == "__main__":
    main(run)
