"""The sweep: a member of the ensemble is the network that torch.optim trains alone, and the best is the best."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft
from tests.example import load

pytestmark = pytest.mark.long

EPOCHS, N = 3, 3


@pytest.fixture(scope="module")
def sweep() -> ModuleType:
    return load("experiments/sweep")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()


def alone(sweep: ModuleType, rule: str, choice: dict[str, float]) -> list[Tensor]:
    """The weights that a plain loop with torch.optim ends with, in float64."""
    module = network()
    rate, decay = choice["learning_rate"], choice["weight_decay"]
    optimizer: torch.optim.Optimizer
    if rule == "sgd":
        optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=decay)
    for x, y in sweep.batches(sweep.digits()[0], EPOCHS):
        optimizer.zero_grad()
        F.cross_entropy(module(x.double()), y).backward()
        # as clip_by_global_norm: torch's own clipping adds 1e-6 to the norm
        norm = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm().item()
        for p in module.parameters():
            assert p.grad is not None
            p.grad.mul_(min(1.0, choice["max_norm"] / norm))
            if rule == "sgd":  # its decay comes after the clipping, where torch's own cannot be
                p.grad.add_(p.detach(), alpha=decay)
        optimizer.step()
    return [p.detach() for p in module.parameters()]


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_a_member_of_the_ensemble_is_the_network_that_torch_trains_alone(sweep: ModuleType, rule: str) -> None:
    model, tx = ft.functionalize(network()), ft.inject_hyperparams(sweep.RULES[rule])(0.1, 0.1, 1.0)
    one, grid = ft.TrainState.create(model, tx), sweep.choices(rule, N)
    states = ft.tree.stack([ft.tree.set(one, **choice) for choice in grid])
    together = torch.func.vmap(ft.train_step(model.loss(F.cross_entropy), tx), in_dims=(0, None))
    for x, y in sweep.batches(sweep.digits()[0], EPOCHS):
        states, _ = together(states, (x.double(), y))
    # Two rates at each threshold, with the middle decay: what diverges, with greater ones, magnifies rounding.
    picked = [i for i in range(len(grid)) if i % N < 2 and i // N % N == 1]
    assert {grid[i]["max_norm"] for i in picked} == set(sweep.CLIPS)
    for i in picked:
        for p, wanted in zip(states.params.values(), alone(sweep, rule, grid[i]), strict=True):
            torch.testing.assert_close(p[i], wanted, rtol=1e-9, atol=1e-11)


def test_each_choice_is_there_once_over_three_decades(sweep: ModuleType) -> None:
    grid = sweep.choices("sgd", 4)
    assert len({tuple(choice.values()) for choice in grid}) == len(grid) == 4 * 4 * len(sweep.CLIPS)
    rates = [choice["learning_rate"] for choice in grid[:4]]
    assert rates == pytest.approx([0.01, 0.1, 1.0, 10.0])
    assert [choice["weight_decay"] for choice in grid[:16:4]] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])


def test_no_image_is_in_two_parts(sweep: ModuleType) -> None:
    parts = [{tuple(x.tolist()) for x in images} for images, _ in sweep.digits()]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 1797
    assert [len(labels) for _, labels in sweep.digits()] == [200, 800, 797]


def test_the_star_is_on_the_network_of_the_least_loss(sweep: ModuleType) -> None:
    losses = torch.full((4, 3, 3), 1.0)
    losses[2, 0, 1] = 0.5
    figure = sweep.draw(losses, sweep.choices("sgd", 3), best=int(losses.argmin()))
    starred = [axes for axes in figure.axes if axes.get_lines()]
    assert [axes.get_title() for axes in starred] == ["clipped at 0.3"]
    (star,) = starred[0].get_lines()
    assert star.get_xydata().tolist() == [[1.5, 0.5]]  # the second rate, the first decay


def test_what_diverged_is_never_the_best(
    sweep: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explosive(rule: str, n: int) -> list[dict[str, float]]:
        """One in four has a rate and a decay with which it can learn."""
        numbers = product(sweep.CLIPS, (1e18, 0.0), (1e10, 0.1))
        return [dict(learning_rate=rate, weight_decay=decay, max_norm=clip) for clip, decay, rate in numbers]

    monkeypatch.setattr(sweep, "choices", explosive)
    sweep.main(n=2, epochs=4, out=tmp_path)
    assert "best: learning_rate 0.1, weight_decay 0, " in capsys.readouterr().out
