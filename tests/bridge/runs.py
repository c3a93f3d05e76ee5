"""Problems for L-BFGS, and two optimizers side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

Loss = Callable[[list[Parameter]], Tensor]


def rosenbrock(dtype: torch.dtype = torch.float64) -> tuple[list[Parameter], Loss]:
    def loss(params: list[Parameter]) -> Tensor:
        x = torch.cat([p.reshape(-1) for p in params])
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum() / 100

    return [Parameter(torch.tensor([[-1.2], [1.0]], dtype=dtype)), Parameter(torch.tensor(0.5, dtype=dtype))], loss


def network(dtype: torch.dtype = torch.float64) -> tuple[list[Parameter], Loss]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)

    inputs = normal(20, 4)
    targets = torch.sin(inputs.sum(1, keepdim=True))

    def loss(params: list[Parameter]) -> Tensor:
        w, b, v = params
        return (torch.tanh(inputs @ w + b) @ v - targets).square().mean()

    return [Parameter(0.5 * normal(4, 6)), Parameter(normal(6)), Parameter(normal(6, 1))], loss


def logarithm(dtype: torch.dtype = torch.float64) -> tuple[list[Parameter], Loss]:
    """One entry has no lowest point, and where one is negative the loss is NaN."""
    return [Parameter(torch.tensor([0.5, 3.0], dtype=dtype))], lambda params: (params[0].log() - 2 * params[0]).sum()


class Run:
    """An optimizer and what it optimizes."""

    def __init__(self, cls: Any, problem: tuple[list[Parameter], Loss], **kwargs: Any) -> None:
        self.params, self.loss = problem
        self.optimizer = cls(self.params, **kwargs)

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.loss(self.params)
        loss.backward()
        return loss

    def step(self) -> Any:
        return self.optimizer.step(self.closure)

    @property
    def kept(self) -> dict[str, Any]:
        return self.optimizer.state[self.params[0]]


def assert_together(ours: Run, theirs: Run, steps: int, tolerance: float) -> None:
    for _ in range(steps):
        a, b = ours.step().item(), theirs.step().item()
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance, nan_ok=True)
        for p, q in zip(ours.params, theirs.params, strict=True):
            torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert ours.kept.keys() == theirs.kept.keys()
    for key in ("n_iter", "func_evals"):
        assert ours.kept[key] == theirs.kept[key]
