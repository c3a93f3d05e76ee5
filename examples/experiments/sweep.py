"""A sweep of learning rate, weight decay and clip threshold: 256 networks on digits, trained in one step by vmap.

    python examples/experiments/sweep.py                  # a quarter of a minute on a CPU; draws runs/sweep/sweep.png
    python examples/experiments/sweep.py --rule adamw     # the same with another rule

The hyper-parameters are tensors in the optimizer's state. Networks that differ in nothing else are then a batch of
states, and `torch.func.vmap` turns the step of one into the step of all. They start from the same weights and see the
same batches. 200 images train them, 800 choose the best, and the 797 left tell what the choice is worth.
"""

from __future__ import annotations

import argparse
import math
from itertools import product
from pathlib import Path
from timeit import repeat

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft

Batch = tuple[Tensor, Tensor]  # images (B, 64), labels (B,)


def sgd(learning_rate: float, weight_decay: float, max_norm: float) -> ft.GradientTransformation:
    """Clip the gradient, add the decay, gather momentum."""
    decay = ft.add_decayed_weights(weight_decay)
    return ft.chain(ft.clip_by_global_norm(max_norm), decay, ft.sgd(learning_rate, momentum=0.9))


def adamw(learning_rate: float, weight_decay: float, max_norm: float) -> ft.GradientTransformation:
    """Clip the gradient; the decay is AdamW's own."""
    return ft.chain(ft.clip_by_global_norm(max_norm), ft.adamw(learning_rate, weight_decay=weight_decay))


RULES, CLIPS = {"sgd": sgd, "adamw": adamw}, [0.03, 0.1, 0.3, 10.0]
LEAST = {"sgd": (1e-2, 1e-4), "adamw": (3e-4, 1e-2)}  # learning rate and decay, of the thousandfold range of each


def digits() -> list[Batch]:
    """Images with entries from 0 to 1, and what they show: for training, validation and test."""
    x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = [200, 800, 797]
    return list(zip((x[order] / 16).float().split(parts), y[order].split(parts), strict=True))


def choices(name: str, n: int) -> list[dict[str, float]]:
    """n rates times n decays times the thresholds; the rates change fastest."""
    rates, decays = (torch.logspace(math.log10(x), math.log10(x) + 3, n).tolist() for x in LEAST[name])
    return [dict(learning_rate=r, weight_decay=d, max_norm=c) for c, d, r in product(CLIPS, decays, rates)]


def batches(data: Batch, epochs: int) -> list[Batch]:
    """All batches of 50 of a training, shuffled anew each epoch."""
    dice = torch.Generator().manual_seed(0)
    return [(data[0][i], data[1][i]) for _ in range(epochs) for i in torch.randperm(200, generator=dice).split(50)]


def draw(losses: Tensor, grid: list[dict[str, float]], best: int) -> Figure:
    """A panel a threshold, a cell a network. (clips, decays, rates)"""
    figure, n = Figure(figsize=(12, 3.8), layout="constrained"), losses.shape[-1]
    panels = figure.subplots(1, len(CLIPS), sharey=True)
    for axes, clip, part in zip(panels, CLIPS, losses, strict=True):
        image = axes.pcolormesh(part, norm=LogNorm(losses.min(), 2.4), cmap="viridis_r")
        axes.set(title=f"clipped at {clip:g}", xlabel="learning rate", aspect="equal")
        axes.set_xticks([i + 0.5 for i in range(n)], [f"{c['learning_rate']:.2g}" for c in grid[:n]], rotation=90)
        axes.set_yticks([i + 0.5 for i in range(n)], [f"{c['weight_decay']:.2g}" for c in grid[: n * n : n]])
    panels[best // n**2].plot(best % n + 0.5, best // n % n + 0.5, "r*", markersize=14)
    panels[0].set_ylabel("weight decay")
    ticks = [0.2, 0.4, 0.8, 1.6, 2.3]  # log 10, the loss of chance, is 2.3
    figure.colorbar(image, ax=panels, label="validation loss", ticks=ticks, format="%g").minorticks_off()
    return figure


def main(rule: str = "sgd", n: int = 8, epochs: int = 75, out: Path = Path("runs/sweep")) -> None:
    """Train all, choose one, and tell what that is worth and what it took."""
    train, val, test = digits()
    torch.manual_seed(0)
    model = ft.functionalize(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    tx, grid = ft.inject_hyperparams(RULES[rule])(learning_rate=0.1, weight_decay=0.1, max_norm=1.0), choices(rule, n)
    one = ft.TrainState.create(model, tx)
    states = ft.tree.stack([ft.tree.set(one, **choice) for choice in grid])
    step = ft.train_step(model.loss(F.cross_entropy), tx)
    together = torch.func.vmap(step, in_dims=(0, None))  # the states are mapped over, the batch is the same for all
    for batch in batches(train, epochs):
        states, _ = together(states, batch)

    def measure(params: dict[str, Tensor], data: Batch) -> tuple[Tensor, Tensor]:
        logits, _ = model.apply(params, {}, data[0])
        return F.cross_entropy(logits, data[1]), (logits.argmax(1) == data[1]).double().mean()

    losses = torch.func.vmap(measure, in_dims=(0, None))(states.params, val)[0].nan_to_num(nan=math.inf)
    best, by_clip = int(losses.argmin()), losses.view(len(CLIPS), n, n)
    for clip, part in zip(CLIPS, by_clip, strict=True):
        print(f"clipped at {clip:5g}: least loss {part.min():.3f}, {(part < 1).sum():2} of {n * n} networks below 1")
    _, accuracy = measure(ft.tree.map(lambda p: p[best], states.params), test)
    chosen = ", ".join(f"{name} {x:.2g}" for name, x in grid[best].items())
    print(f"best: {chosen}: {accuracy:.1%} of the test images")
    out.mkdir(parents=True, exist_ok=True)
    draw(by_clip, grid, best).savefig(out / "sweep.png")
    all_at_once = min(repeat(lambda: together(states, batch), number=1, repeat=20))  # the fastest: the least disturbed
    loop = min(repeat(lambda: [step(one, batch) for _ in range(8)], number=1, repeat=20)) / 8 * len(grid)
    print(f"{len(grid)} networks in one step: {all_at_once / loop:.3f} of the time of a loop over them")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rule", choices=RULES, default="sgd", help="(%(default)s)")
    parser.add_argument("--short", action="store_true", help="fewer networks and epochs")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a second one costs models of this size more than it brings
    main(args.rule, **({"n": 3, "epochs": 5} if args.short else {}))
