"""The example of MAML: its gradient against autograd twice by hand, and against finite differences."""

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
from tests.test_nested import differences

pytestmark = pytest.mark.long  # it needs the extra `plot`


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("maml_sine")


@pytest.fixture
def problem(example: ModuleType) -> tuple[nn.Module, Any]:
    """A small network and five tasks."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    return module, ft.tree.map(lambda x: x.to(D), example.draw_tasks(5))


def meta_gradient(example: ModuleType, module: nn.Module, tx: Any, k: int, tasks: Any) -> dict[str, Tensor]:
    model = ft.functionalize(module)
    _, grads = ft.value_and_grad(example.adapted(model.loss(F.mse_loss), tx, k))(model.params, tasks)
    return grads


@pytest.mark.parametrize("k", [0, 1, 3])
def test_its_gradient_is_autograd_through_autograd(example: ModuleType, problem: Any, k: int) -> None:
    """By hand: descent with create_graph, task after task, and one backward pass through it all."""
    module, tasks = problem
    found = meta_gradient(example, module, ft.sgd(0.1), k, tasks)
    params = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    call = lambda weights, x: torch.func.functional_call(module, weights, (x,))  # noqa: E731
    (support_x, support_y), (query_x, query_y) = tasks
    total = torch.zeros((), dtype=D)
    for i in range(5):
        weights = dict(params)
        for _ in range(k):
            loss = F.mse_loss(call(weights, support_x[i]), support_y[i])
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), grads, strict=True)}
        total = total + F.mse_loss(call(weights, query_x[i]), query_y[i]) / 5
    expected = torch.autograd.grad(total, list(params.values()))
    for (name, g), e in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-10, atol=1e-12, msg=name)


def test_a_gradient_that_stops_at_the_inner_one_is_another(example: ModuleType, problem: Any) -> None:
    """What is left where the second derivatives are dropped: the control of the tests around."""
    module, tasks = problem
    model = ft.functionalize(module)
    found = meta_gradient(example, module, ft.sgd(0.1), 1, tasks)
    adapted = [
        example.adapt(model.loss(F.mse_loss), ft.sgd(0.1), 1, model.params, (x, y))
        for x, y in zip(*tasks[0], strict=True)
    ]
    first_order = [
        ft.value_and_grad(model.loss(F.mse_loss))(p, (x, y))[1] for p, x, y in zip(adapted, *tasks[1], strict=True)
    ]
    mean = ft.tree.map(lambda g: g.mean(0), ft.tree.stack(first_order))
    assert ft.tree.norm(ft.tree.map(torch.sub, mean, found)) > 0.1 * ft.tree.norm(found)


@pytest.mark.parametrize(
    "tx",
    [ft.adam(0.05, eps=1.0), ft.adam(0.05), ft.sgd(0.05, momentum=0.9), ft.lion(0.01)],
    ids=["adam with eps 1", "adam", "momentum", "lion"],
)
def test_its_gradient_is_what_finite_differences_say(example: ModuleType, problem: Any, tx: Any) -> None:
    module, tasks = problem
    loss = ft.functionalize(module).loss(F.mse_loss)
    found = meta_gradient(example, module, tx, 2, tasks)
    mean = example.adapted(loss, tx, 2)
    expected = differences(lambda p: mean(p, tasks), ft.functionalize(module).params)
    for name, g in found.items():
        torch.testing.assert_close(g, expected[name], rtol=1e-6, atol=1e-7, msg=name)


def test_mapped_over_tasks_it_is_the_loop(example: ModuleType, problem: Any) -> None:
    module, tasks = problem
    model, tx = ft.functionalize(module), ft.adam(0.05, eps=1.0)
    loss = model.loss(F.mse_loss)
    (sx, sy), (qx, qy) = tasks
    alone = [loss(example.adapt(loss, tx, 3, model.params, (sx[i], sy[i])), (qx[i], qy[i])) for i in range(5)]
    torch.testing.assert_close(example.adapted(loss, tx, 3)(model.params, tasks), torch.stack(alone).mean())


def test_a_task_is_one_wave(example: ModuleType) -> None:
    """All its points lie on a sin(x - φ) = α sin x + β cos x, with α and β from least squares."""
    (sx, sy), (qx, qy) = example.draw_tasks(50)
    for x, y in zip(torch.cat([sx, qx], 1), torch.cat([sy, qy], 1), strict=True):
        design = torch.cat([x.sin(), x.cos()], 1)
        coefficients = torch.linalg.lstsq(design, y).solution
        torch.testing.assert_close(design @ coefficients, y, rtol=1e-4, atol=1e-4)
        assert 0.1 - 1e-3 <= coefficients.norm().item() <= 5 + 1e-3
        assert coefficients[1].item() <= 1e-3  # φ between 0 and π: β = -a sin φ
    assert sx.abs().max().item() <= 5


def test_what_is_differentiated_is_torchs_training(example: ModuleType, problem: Any) -> None:
    """The weights after four updates by Adam, whose moments go from one to the next."""
    module, tasks = problem
    model, support = ft.functionalize(module), (tasks[0][0][0], tasks[0][1][0])
    found = example.adapt(model.loss(F.mse_loss), ft.adam(0.05, eps=1.0), 4, model.params, support)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05, eps=1.0)
    for _ in range(4):
        optimizer.zero_grad()
        F.mse_loss(module(support[0]), support[1]).backward()
        optimizer.step()
    for name, p in module.named_parameters():
        torch.testing.assert_close(found[name], p.detach(), rtol=1e-10, atol=1e-12, msg=name)
