"""MAML: initial weights from which a single update on ten points all but finds a sine wave.

    pip install -e '.[plot]'
    python examples/maml_sine.py           # two minutes on a CPU; draws runs/maml_sine/maml_sine.png

A task is a wave a sin(x - φ); its support is ten points to train with, its query ten more to be judged by. U makes k
updates of some rule, from that rule's first state. The initial weights θ that MAML looks for have the least

    mean over tasks of loss(U(θ, support), query)

An update is a pure function, so this is a loss like any other: `vmap` takes it over tasks, its gradient goes through
the updates, moments and all, and `ft.train_step` descends it. With k = 0 it is plain pretraining: the weights that are
best for all waves at once, and far from each.

The rule inside is descent or Adam, here with ε = 1: with the usual 1e-8 its first update is a sign, which has no slope.

Source: Finn et al., Model-agnostic meta-learning for fast adaptation of deep networks, 2017, section 5.1,
https://arxiv.org/abs/1703.03400.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft

Points = tuple[Tensor, Tensor]  # x and y, (n, 1) each; of several tasks (tasks, n, 1)
Params = dict[str, Tensor]
Loss = Callable[[Params, Points], Tensor]


def adapt(loss: Loss, tx: ft.GradientTransformation, k: int, params: Params, support: Points) -> Params:
    """The weights after k updates on a task's support."""
    state = tx.init(params)
    for _ in range(k):
        _, grads = ft.value_and_grad(loss)(params, support)
        updates, state = tx.update(grads, state, params)
        params = ft.apply_updates(params, updates)
    return params


def adapted(loss: Loss, tx: ft.GradientTransformation, k: int) -> Callable[[Params, tuple[Points, Points]], Tensor]:
    """The mean loss on the queries of tasks, after k updates on the support of each."""

    def mean(params: Params, tasks: tuple[Points, Points]) -> Tensor:
        each = torch.func.vmap(lambda support, query: loss(adapt(loss, tx, k, params, support), query))
        return each(*tasks).mean()

    return mean


def draw_tasks(n: int) -> tuple[Points, Points]:
    """Supports and queries: amplitudes between 0.1 and 5, phases between 0 and π, and x between -5 and 5."""
    amplitude, phase = 0.1 + 4.9 * torch.rand(n, 1, 1), math.pi * torch.rand(n, 1, 1)
    x = 10 * torch.rand(n, 20, 1) - 5
    y = amplitude * torch.sin(x - phase)
    return (x[:, :10], y[:, :10]), (x[:, 10:], y[:, 10:])


def main(updates: int = 4000) -> None:
    """Find three initial weights, and tell how fast they learn 500 waves that they have not met."""
    torch.manual_seed(0)
    model = ft.functionalize(nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)))
    loss, unseen, line = model.loss(F.mse_loss), draw_tasks(500), torch.linspace(-5, 5, 200)[:, None]
    points = unseen[0][0][0], unseen[0][1][0]  # the support of the first, to be drawn
    *waves, errors = (figure := Figure((10, 4), layout="constrained")).subplots(1, 3)
    print("squared error after       0       1       2       5      10 updates")
    curves = {}
    rules = {"pretrained": (ft.sgd(0.01), 0), "MAML": (ft.sgd(0.01), 1), "MAML, Adam": (ft.adam(0.05, eps=1.0), 2)}
    for axes, (name, (tx, inner)) in zip([*waves, None], rules.items(), strict=True):
        torch.manual_seed(1)
        step = ft.train_step(adapted(loss, tx, inner), ft.adam(ft.schedules.cosine_decay_schedule(3e-3, updates)))
        state = ft.TrainState.create(model, step.tx)
        for _ in range(updates):
            state, _ = step(state, draw_tasks(25))
        curve = curves[name] = [adapted(loss, tx, k)(state.params, unseen).item() for k in range(11)]
        print(f"{name:19}" + "".join(f"{curve[k]:8.3f}" for k in (0, 1, 2, 5, 10)))
        errors.plot(curve, ".-", label=name)
        for k, style in ((0, ":"), (1, "--"), (10, "-")) if axes else ():
            fit, _ = model.apply(adapt(loss, tx, k, state.params, points), {}, line)
            axes.plot(line, fit, style, label=f"after {k} updates")
    for axes, name in zip(waves, curves, strict=False):
        axes.plot(*points, "ko", label="the support")
        axes.set(title=name, ylim=(-4, 8))
    errors.set(xlabel="updates", title="squared error on 500 waves", yscale="log")
    for axes in (*waves, errors):
        axes.legend(loc="upper right")
    (path := Path("runs/maml_sine/maml_sine.png")).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    once, often = curves["MAML"][1], curves["pretrained"][10]
    print(f"one update from MAML's weights: {once:.3f}; ten from pretrained ones: {often:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="few updates")
    torch.set_num_threads(1)  # a second one costs networks of this size more than it brings
    main(*((100,) if parser.parse_args().short else ()))
