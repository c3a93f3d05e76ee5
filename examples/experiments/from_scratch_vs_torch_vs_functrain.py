"""One training with an optimizer from scratch, with torch's and with functrain's: do the curves lie on each other?

    python examples/experiments/from_scratch_vs_torch_vs_functrain.py     # seconds on a CPU; draws a picture in runs/

A small network learns scikit-learn's digits with SGD (momentum, Nesterov) and with AdamW, in float64 and in float32,
each from the same weights, over the same batches, with equal hyper-parameters. `functrain.optim` stands in torch's
loop, `ft.train_step` is the pure step. After each update the weights w are compared with those of torch.optim, v:
|w - v| / |v|. What is there is rounding, since no two of them multiply and add in the same order.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft
from functrain.tutorial import AdamWFromScratch, SGDFromScratch

TORCH, SCRATCH, FACE, PURE = "torch.optim", "from scratch", "functrain.optim", "ft.train_step"
CLASSES = {
    "SGD": {TORCH: torch.optim.SGD, SCRATCH: SGDFromScratch, FACE: ft.optim.SGD},
    "AdamW": {TORCH: torch.optim.AdamW, SCRATCH: AdamWFromScratch, FACE: ft.optim.AdamW},
}
NUMBERS = {
    "SGD": dict(lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "AdamW": dict(lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
}
RULES = {  # the same, as pure rules; SGD's decay is a part of the gradient, so it comes first
    "SGD": ft.chain(ft.add_decayed_weights(1e-3), ft.sgd(0.05, momentum=0.9, nesterov=True)),
    "AdamW": ft.adamw(3e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1),
}
Batch = tuple[Tensor, Tensor]  # images (B, 64), labels (B,)
Walk = tuple[list[float], Tensor]  # the loss before each update, and all weights after it (updates, weights)


def network(dtype: torch.dtype) -> nn.Module:
    """From 64 pixels to the logits of ten digits."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)).to(dtype)


def batches(updates: int, dtype: torch.dtype) -> list[Batch]:
    """Batches of 32, drawn from all digits."""
    x, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
    drawn = torch.randint(len(x), (updates, 32), generator=torch.Generator().manual_seed(0))
    return [(x[i].to(dtype) / 16, y[i]) for i in drawn]


def with_optimizer(kind: str, whose: str, data: list[Batch], dtype: torch.dtype) -> Walk:
    """The loop that an optimizer stands in; it does not know which."""
    model, losses, weights = network(dtype), [], []
    optimizer = CLASSES[kind][whose](model.parameters(), **NUMBERS[kind])
    for x, y in data:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    return losses, torch.stack(weights)


def with_pure_step(kind: str, data: list[Batch], dtype: torch.dtype) -> Walk:
    """The loop around a function from state to state."""
    model, losses, weights = ft.functionalize(network(dtype)), [], []
    step = ft.train_step(model.loss(F.cross_entropy), RULES[kind])
    state = ft.TrainState.create(model, RULES[kind])
    for batch in data:
        state, metrics = step(state, batch)
        losses.append(metrics["loss"].item())
        weights.append(nn.utils.parameters_to_vector(ft.tree.leaves(state.params)))
    return losses, torch.stack(weights)


def apart(walk: Walk, torchs: Walk) -> Tensor:
    """|w - v| / |v| after each update; what is equal to the bit is no point on a log axis."""
    distance = (walk[1] - torchs[1]).norm(dim=1) / torchs[1].norm(dim=1)
    return distance.where(distance > 0, math.nan)


def main(updates: int = 300, out: Path = Path("runs/from_scratch_vs_torch_vs_functrain")) -> None:
    """Train four times in each of four ways, compare, draw."""
    figure, greatest = Figure(figsize=(9, 6), layout="constrained"), {}
    for row, kind in zip(figure.subplots(2, 2), CLASSES, strict=True):
        for dtype, line in ((torch.float64, "-"), (torch.float32, ":")):
            data, precision = batches(updates, dtype), str(dtype).removeprefix("torch.")
            walks = {whose: with_optimizer(kind, whose, data, dtype) for whose in CLASSES[kind]}
            walks[PURE] = with_pure_step(kind, data, dtype)
            for i, (whose, walk) in enumerate(walks.items()):
                if dtype == torch.float32:
                    row[0].plot(walk[0], linewidth=7 - 2 * i, color=f"C{i}", label=whose)
                if whose != TORCH:
                    distances, label = apart(walk, walks[TORCH]), f"{whose}, {precision}"
                    row[1].semilogy(distances, line, linewidth=7 - 2 * i, color=f"C{i}", label=label)
                    distance = float(distances.nan_to_num()[-1])
                    greatest[precision] = max(greatest.get(precision, 0.0), distance)
                    print(f"{kind:5} {precision} {whose:15}: weights {distance:.0e} from {TORCH}'s")
        row[0].set(title=f"{kind}, float32", xlabel="update", ylabel="loss")
        row[1].set(title="distance of weights from torch.optim's", xlabel="update", ylabel="|w - v| / |v|")
        for axes in row:
            axes.legend(fontsize="small", loc="center right")
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{out.name}.png")
    print("after", updates, "updates at most", ", ".join(f"{x:.0e} in {p}" for p, x in greatest.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer updates")
    short = parser.parse_args().short
    torch.set_num_threads(1)  # a second one costs models of this size more than it brings
    main(**({"updates": 20} if short else {}))
