"""64 networks with 64 learning rates learn scikit-learn's digits in one step: `torch.func.vmap` of the training step.

    python examples/ensemble_digits.py        # seconds on a CPU; draws runs/ensemble_digits/ensemble_digits.png

The states of the networks are stacked into one state, whose every tensor has an axis more; a step maps over it. That
is the same mathematics as 64 runs one after another; four of them are also run in that way, as a plain loop of
PyTorch's, and the weights and the time compared. The rate is chosen on digits that no network learned from, and what it
is worth is told on others again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft

Batch = tuple[Tensor, Tensor]  # images (n, 64), labels (n,)


def digits(updates: int) -> tuple[list[Batch], Batch, Batch]:
    """Batches of 1,000 digits to learn from, 300 digits to choose the rate with, and 497 for the test."""
    images, labels = load_digits(return_X_y=True)
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=draw)
    x, y = torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    chosen = torch.randint(1000, (updates, 50), generator=draw)
    return [(x[i], y[i]) for i in chosen], (x[1000:1300], y[1000:1300]), (x[1300:], y[1300:])


def network() -> nn.Sequential:
    """The same weights at each call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))


def together(rates: Tensor, batches: list[Batch]) -> tuple[ft.TrainState, Tensor]:
    """The stacked states of networks that learned with these rates, and their losses, (batches, networks)."""
    model, tx = ft.functionalize(network()), ft.inject_hyperparams(ft.sgd)(learning_rate=0.1, momentum=0.9)
    step = torch.func.vmap(ft.train_step(model.loss(F.cross_entropy), tx), in_dims=(0, None))
    one, losses = ft.TrainState.create(model, tx), []
    states = ft.tree.stack([ft.tree.set(one, learning_rate=rate) for rate in rates])
    for batch in batches:
        states, metrics = step(states, batch)
        losses.append(metrics["loss"])
    return states, torch.stack(losses)


def alone(rate: float, batches: list[Batch]) -> dict[str, Tensor]:
    """The weights of a network that learned with this rate, in PyTorch's words."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return dict(net.state_dict())


def measure(states: ft.TrainState, data: Batch) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of each network, (networks,) both."""
    model, (x, y) = ft.functionalize(network()), data
    logits, _ = torch.func.vmap(model.apply, in_dims=(0, 0, None))(states.params, states.buffers, x)
    return torch.stack([F.cross_entropy(z, y) for z in logits]), (logits.argmax(-1) == y).float().mean(-1)


def draw(rates: Tensor, losses: Tensor, val: tuple[Tensor, Tensor], best: int, path: Path) -> None:
    """What each rate came to, and the way there, a colour a rate."""
    worth, way = (figure := Figure(figsize=(8, 4), layout="constrained")).subplots(1, 2)
    worth.plot(rates, val[1], ".-", color="tab:blue", label="accuracy")
    worth.plot(rates, val[0].clamp(max=3), ".-", color="tab:orange", label="loss, at most 3")
    worth.axvline(rates[best], color="black", linewidth=1, label=f"least loss, at {rates[best]:.2g}")
    worth.set(xscale="log", xlabel="learning rate", title="on digits to choose with")
    worth.legend()
    scale = ScalarMappable(LogNorm(rates[0].item(), rates[-1].item()), "viridis")
    smooth = F.avg_pool1d(losses.T, 20, 5)  # means, so that the lines can be told apart
    for i, rate in enumerate(rates):
        style = {"color": "black", "zorder": 3} if i == best else {"color": scale.to_rgba(rate), "linewidth": 0.7}
        way.plot(10 + 5 * torch.arange(smooth.shape[1]), smooth[i], **style)
    way.set(yscale="log", ylim=(None, 10), xlabel="update", title="loss while learning")
    figure.colorbar(scale, ax=way, label="learning rate")
    figure.savefig(path)


def main(networks: int = 64, updates: int = 500, out: Path = Path("runs/ensemble_digits")) -> None:
    """Train all at once, choose, and compare with a few alone."""
    out.mkdir(parents=True, exist_ok=True)
    rates, (batches, choose, test) = torch.logspace(-4, 1, networks), digits(updates)
    together(rates, batches[:2])  # what is slow once only
    began = time.perf_counter()
    states, losses = together(rates, batches)
    took, val = time.perf_counter() - began, measure(states, choose)
    best = int(val[0].nan_to_num(torch.inf).argmin())
    draw(rates, losses, val, best, out / "ensemble_digits.png")

    few, began = torch.linspace(0, best, 4).int(), time.perf_counter()  # beyond the best, rounding errors grow
    same = ft.tree.stack([alone(rate.item(), batches) for rate in rates[few]])
    each = (time.perf_counter() - began) / len(few)
    apart = max((states.params[name][few] - w).abs().max().item() for name, w in same.items())
    print(f"{networks} networks at once: {took:.1f} s; one by one {networks * each / took:.1f} times that (4 measured)")
    print(f"weights of those that were also trained alone: equal to within {apart:.0e}")
    right = measure(states, test)[1][best]
    print(f"best rate {rates[best]:.2g}: loss {val[0][best]:.3f} where it was chosen, {right:.1%} of the test digits")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="8 networks, few updates")
    torch.set_num_threads(1)  # a second one costs networks of this size more than it brings
    main(*((8, 60) if parser.parse_args().short else ()))
