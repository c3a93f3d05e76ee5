"""The example of hypergradients: against central differences, against a loop of torch's, and downhill."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functrain as ft
from tests.example import load
from tests.networks import D

pytestmark = pytest.mark.long  # it needs the extras `examples` and `plot`
UPDATES = 12


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("hypergradient")


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Any, Any]:
    """A small classifier, and points of three kinds to train and to validate with."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=draw, dtype=D)
    y = (x[:, :3] + 0.5 * torch.randn(60, 3, generator=draw, dtype=D)).argmax(1)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return module, (x[:20], y[:20]), (x[20:], y[20:])


def schedule() -> dict[str, Tensor]:
    rates = torch.linspace(-1.0, -2.0, UPDATES, dtype=D)
    return {"rate": rates, "decay": torch.tensor(-0.5, dtype=D)}


def test_the_hypergradient_is_a_central_difference(example: ModuleType, problem: Any) -> None:
    """Of the decay, and of the rate of every single update."""
    module, train, valid = problem
    after, hyper, h = example.unrolled(module, train, UPDATES), schedule(), 1e-5
    _, found = ft.value_and_grad(after)(hyper, valid)
    by_func = torch.func.grad(after)(hyper, valid)
    for name, x in hyper.items():
        expected = torch.zeros_like(x)
        for i in range(x.numel()):
            e = torch.zeros_like(x)
            e.view(-1)[i] = h
            expected.view(-1)[i] = (after(hyper | {name: x + e}, valid) - after(hyper | {name: x - e}, valid)) / (2 * h)
        assert (expected.abs() > 1e-4).all()  # nothing is near enough to zero to be met by it
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(by_func[name], found[name], rtol=1e-12, atol=0)


def test_what_is_differentiated_is_torchs_training(example: ModuleType, problem: Any) -> None:
    """The value: torch.optim.AdamW with these rates, one after the other."""
    module, (x, y), valid = problem
    found = example.unrolled(module, (x, y), UPDATES)(schedule(), valid)
    own = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    own.load_state_dict(module.state_dict())
    optimizer = torch.optim.AdamW(own.parameters(), weight_decay=10**-0.5)
    for rate in schedule()["rate"]:
        optimizer.param_groups[0]["lr"] = 10 ** rate.item()
        optimizer.zero_grad()
        F.cross_entropy(own(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(found, F.cross_entropy(own(valid[0]), valid[1]).detach(), rtol=1e-10, atol=0)


def test_the_slope_of_the_first_rate_is_the_product_of_two_gradients(example: ModuleType, problem: Any) -> None:
    """Baydin et al. 2018: after one update of descent, dV/dη = -∇V(p₁)·∇L(p₀). Adam's first update is a sign."""
    module, train, (x, y) = problem
    hyper = {"rate": torch.tensor(-2.0, dtype=D), "decay": torch.tensor(-20.0, dtype=D)}
    _, found = ft.value_and_grad(example.unrolled(module, train, 1))(hyper, (x, y))
    p = dict(module.named_parameters())
    g = torch.autograd.grad(F.cross_entropy(module(train[0]), train[1]), list(p.values()))
    sign = [a / (a.abs() + 1e-8) for a in g]
    moved = {name: (w - 0.01 * s).detach().requires_grad_() for (name, w), s in zip(p.items(), sign, strict=True)}
    out = torch.func.functional_call(module, moved, (x,))
    after = torch.autograd.grad(F.cross_entropy(out, y), list(moved.values()))
    slope = -sum((a * s).sum() for a, s in zip(after, sign, strict=True))
    torch.testing.assert_close(found["rate"], slope * 0.01 * torch.tensor(10.0, dtype=D).log(), rtol=1e-6, atol=0)


def test_a_grid_in_one_call_is_the_loop_over_it(example: ModuleType, problem: Any) -> None:
    module, train, valid = problem
    after = example.unrolled(module, train, UPDATES)
    grid = {"rate": torch.tensor([-3.0, -2.0, -1.0], dtype=D), "decay": torch.tensor([-1.0, 0.0, -2.0], dtype=D)}
    together = torch.func.vmap(after, in_dims=(0, None))(grid, valid)
    alone = torch.stack([after({name: x[i] for name, x in grid.items()}, valid) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=0)


def test_the_descent_lowers_the_loss_and_begins_where_it_is_told(example: ModuleType, problem: Any) -> None:
    module, train, valid = problem
    after = example.unrolled(module, train, UPDATES)
    begin = {"rate": torch.tensor(-3.0, dtype=D), "decay": torch.tensor(-0.5, dtype=D)}
    path = example.tune(after, begin, valid, 0.1, 20)
    assert len(path) == 21
    assert path[0] is begin
    assert after(path[-1], valid).item() < 0.9 * after(begin, valid).item()
