"""A learning rate and a weight decay, and then a whole schedule, learned by differentiating through training.

    pip install -e '.[examples,plot]'
    python examples/hypergradient.py           # a minute on a CPU; draws runs/hypergradient/hypergradient.png

The step is a pure function, so the loss on other data after 40 updates is a function of the hyper-parameters:

    V(λ) = validation loss(step(... step(state, train; λ) ..., train; λ))

Like any loss it has a gradient, through all updates and Adam's moments, and any optimizer can descend it. `vmap` draws
it: the networks of a whole grid of rates and decays train at once. From where the descent ends, each update then gets
a rate of its own: 40 numbers, which no grid could search.

The network trains on 100 digits and V looks at 400. The test loss is of the other 1297, which no gradient has seen.

Sources: Maclaurin et al., Gradient-based hyperparameter optimization through reversible learning, 2015,
https://arxiv.org/abs/1502.03492; Franceschi et al., Forward and reverse gradient-based hyperparameter optimization,
2017, https://arxiv.org/abs/1703.01785.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft

Hyper = dict[str, Tensor]  # "rate": () or (updates,), "decay": (): logarithms to base 10
Batch = tuple[Tensor, Tensor]


def unrolled(module: nn.Module, train: Batch, updates: int) -> Callable[[Hyper, Batch], Tensor]:
    """The loss on a batch after so many updates on `train`, as a function of the hyper-parameters."""
    model, tx = ft.functionalize(module), ft.inject_hyperparams(ft.adamw)(learning_rate=0.0, weight_decay=0.0)
    loss = model.loss(F.cross_entropy)
    step, start = ft.train_step(loss, tx), ft.TrainState.create(model, tx)

    def after(hyper: Hyper, batch: Batch) -> Tensor:
        state = start
        for rate in (10 ** hyper["rate"]).expand(updates):
            opt_state = ft.tree.set(state.opt_state, learning_rate=rate, weight_decay=10 ** hyper["decay"])
            state, _ = step(state._replace(opt_state=opt_state), train)
        return loss(state.params, batch)

    return after


def tune(after: Callable[[Hyper, Batch], Tensor], hyper: Hyper, batch: Batch, rate: float, updates: int) -> list[Hyper]:
    """Descend the loss after training: the hyper-parameters from the first to the last."""
    step = ft.train_step(after, ft.adam(ft.schedules.cosine_decay_schedule(rate, updates)))
    path, state = [hyper], ft.TrainState.create(hyper, step.tx)
    for _ in range(updates):
        state, _ = step(state, batch)
        path.append(state.params)
    return path


def main(updates: int = 40, outer: int = 100, n: int = 24) -> None:
    """Check the gradient, draw the landscape, descend it, and go on with a rate for each update."""
    torch.manual_seed(0)
    order = torch.randperm(1797)
    x, y = (torch.tensor(a)[order] for a in load_digits(return_X_y=True))
    train, valid, test = zip((x / 16).split([100, 400, 1297]), y.split([100, 400, 1297]), strict=True)
    after = unrolled(nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double(), train, updates)

    begin = {"rate": torch.tensor(-3.0).double(), "decay": torch.tensor(0.5).double()}
    _, slope = ft.value_and_grad(after)(begin, valid)
    up, down = (after(begin | {"rate": begin["rate"] + h}, valid) for h in (1e-4, -1e-4))
    print(f"slope along the rate {slope['rate']:.8f}, by differences {(up - down) / 2e-4:.8f}")

    rates, decays = torch.linspace(-3.25, -0.75, n).double(), torch.linspace(-2, 1, n).double()
    grid = dict(zip(("rate", "decay"), map(torch.flatten, torch.meshgrid(rates, decays, indexing="xy")), strict=True))
    landscape = torch.func.vmap(after, in_dims=(0, None))(grid, valid).view(n, n)
    path = tune(after, begin, valid, 0.1, outer)
    scheduled = tune(after, {**path[-1], "rate": path[-1]["rate"].expand(updates)}, valid, 0.02, outer)
    print("                     validation loss   test loss")
    best = {name: x[landscape.argmin()] for name, x in grid.items()}
    ends = {"at first": begin, "best of the grid": best, "learned": path[-1], "a rate an update": scheduled[-1]}
    found = {name: (after(hyper, valid).item(), after(hyper, test).item()) for name, hyper in ends.items()}
    for name, losses in found.items():
        print(f"{name:20} {losses[0]:15.3f} {losses[1]:11.3f}")

    left, right = (figure := Figure((10, 4), layout="constrained")).subplots(1, 2)
    levels = left.contourf(rates, decays, landscape.clamp(max=2).log10(), 20)
    figure.colorbar(levels, label="log10 of the validation loss")
    left.plot(*([hyper[name] for hyper in path] for name in ("rate", "decay")), "r.-")
    left.set(xlabel="log10 of the rate", ylabel="log10 of the decay", title=f"{n * n} trainings, and the descent")
    for i in (0, outer // 4, outer):
        right.plot(10 ** scheduled[i]["rate"], ".-", label=f"after {i} outer updates")
    right.set(xlabel="update", ylabel="rate", yscale="log", title="a rate for each update")
    right.legend(loc="lower left")
    (out := Path("runs/hypergradient/hypergradient.png")).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(
        f"test loss {found['learned'][1]:.3f} with one learned rate, {found['a rate an update'][1]:.3f} with {updates}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="few outer updates, a coarse landscape")
    torch.set_num_threads(1)  # a second one costs networks of this size more than it brings
    main(*((10, 5, 5) if parser.parse_args().short else ()))
