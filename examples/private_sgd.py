"""Differentially private SGD: each example's gradient is clipped, their sum is noised, and the privacy spent is told.

    pip install -e '.[examples,plot]'
    python examples/private_sgd.py           # a minute on a CPU; draws runs/private_sgd/private_sgd.png

`gradients="per_example"` gives the rule the gradients gᵢ of a batch along a first axis, and the rule is a chain:

    u = (Σᵢ gᵢ min(1, C / ‖gᵢ‖) + σ C z) / L        z ~ N(0, 1)

Each example is in a batch with probability q, whatever the others do, and L = q N is a batch's mean length. How well T
updates together tell whether one example was among the N is bounded by Rényi's divergence of any order α > 1, which
they add up to T ρ(α), and so by (ε, δ) for any δ. For whole α, and k = 0 ... α,

    ρ(α) = 1 / (α - 1)  log Σₖ binomial(α, k) (1 - q)ᵅ⁻ᵏ qᵏ exp((k² - k) / 2σ²)         α / 2σ² if q = 1
    ε(δ) = min over α:  T ρ(α) + log((α - 1) / α) - (log δ + log α) / (α - 1)

Opacus keeps the account. The loss that a step returns is in none; and who knows the seed can take the noise off.
Sources: Abadi et al. 2016, algorithm 1, https://arxiv.org/abs/1607.00133; Mironov et al. 2019, section 3.3 (ρ),
https://arxiv.org/abs/1908.10530; Balle et al. 2020, theorem 21 (ε), https://arxiv.org/abs/1905.09982.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft
from functrain.tree import Tree

ORDERS = [1 + i / 10 for i in range(1, 100)] + [float(i) for i in range(11, 513)]  # α
C, L, N, DELTA = 0.5, 128, 1437, 1e-4  # clip, mean length of a batch, examples to train with, δ < 1 / N


@ft.rule
def add_each(inner: ft.GradientTransformation) -> ft.GradientTransformation:
    """The sum over examples of what a rule without state makes of each one's gradient."""
    each = torch.func.vmap(lambda g: inner.update(g, ())[0])
    return ft.stateless(lambda updates, params: ft.tree.map(lambda g: g.sum(0), each(updates)))


class NoiseState(NamedTuple):
    """What decides the next noise."""

    count: Tensor  # (), int64: updates so far
    seed: Tensor  # (), int64


@ft.rule
def add_noise(deviation: float, seed: int) -> ft.GradientTransformation:
    """Add normal numbers of this standard deviation, drawn anew at every update."""

    def update(g: Tree, state: NoiseState, params: Tree | None = None) -> tuple[Tree, NoiseState]:
        with ft.seeded(int(state.seed), int(state.count)):
            noisy = ft.tree.map(lambda g: g + deviation * torch.randn_like(g), g)
        return noisy, state._replace(count=state.count + 1)

    return ft.GradientTransformation(lambda params: NoiseState(torch.tensor(0), torch.tensor(seed)), update)


def private_sgd(rate: float, noise: float, clip: float, length: float, seed: int) -> ft.GradientTransformation:
    """The optimizer: σ is `noise`, C is `clip`, L is `length`."""
    clipped = add_each(ft.clip_by_global_norm(clip))
    return ft.chain(clipped, add_noise(noise * clip, seed), ft.scale(1 / length), ft.sgd(rate, momentum=0.9))


def epsilon(q: float, noise: float, updates: int, delta: float) -> float:
    """ε after so many updates."""
    rdp = compute_rdp(q=q, noise_multiplier=noise, steps=updates, orders=ORDERS)
    return float(get_privacy_spent(orders=ORDERS, rdp=rdp, delta=delta)[0])


def train(noise: float, updates: int, every: int, seed: int) -> list[float]:
    """The accuracy on 360 digits that were not trained with, after every so many updates."""
    digits, shuffle = load_digits(), torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(digits.data, dtype=torch.float32)[shuffle] / 16, torch.tensor(digits.target)[shuffle]
    torch.manual_seed(seed)
    model = ft.functionalize(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)))
    tx = private_sgd(0.2, noise, C, L, seed)
    step = ft.train_step(model.loss(F.cross_entropy), tx, gradients="per_example")
    state, accuracies = ft.TrainState.create(model, tx), []
    for t in range(1, updates + 1):
        drawn = (torch.rand(N) < L / N).nonzero()[:, 0]  # never the same number: the account is of batches like these
        state, _ = step(state, (x[drawn], y[drawn]))
        if t % every == 0:
            out, _ = model.apply(state.params, state.buffers, x[N:])
            accuracies.append((out.argmax(1) == y[N:]).double().mean().item())
    return accuracies


def main(updates: int = 300, every: int = 15, runs: int = 5, levels: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)) -> None:
    """Train without noise and with more and more, and draw what the privacy costs."""
    axes = (figure := Figure((8, 4))).add_subplot(xscale="log", xlabel=f"ε at δ = {DELTA:g}", ylabel="test accuracy")
    free = torch.tensor([train(0.0, updates, every, seed)[-1] for seed in range(runs)]).mean().item()
    axes.axhline(free, color="gray", linestyle=":", label="without noise")
    print(f"σ = 0   ε =   inf   accuracy {free:.3f}")
    for noise in levels:
        curve = torch.tensor([train(noise, updates, every, seed) for seed in range(runs)]).mean(0)
        spent = [epsilon(L / N, noise, t, DELTA) for t in range(every, updates + 1, every)]
        axes.plot(spent, curve, ".-", label=f"σ = {noise:g}")
        print(f"σ = {noise:g}   ε = {spent[-1]:5.2f}   accuracy {curve[-1]:.3f}")
    axes.legend()
    (path := Path("runs/private_sgd/private_sgd.png")).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    print(f"ε = {spent[-1]:.2f} at δ = {DELTA:g} costs {100 * (free - curve[-1]):.1f} points of accuracy")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one run a level, few updates")
    torch.set_num_threads(1)  # a second one costs models of this size more than it brings
    main(*((60, 30, 1, (2.0, 4.0)) if parser.parse_args().short else ()))
