"""The line search of L-BFGS: its formulas by hand, and the strong Wolfe conditions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from functrain.transforms.torch_line_search import (
    Evaluation,
    Line,
    Trial,
    along,
    interpolate,
    keep_away,
    larger,
    smaller,
    strong_wolfe,
)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def trial(t: float, loss: float, slope: float) -> Trial:
    return Trial(t, loss, numbers(slope), torch.tensor(slope, dtype=torch.float64))


@pytest.mark.parametrize("flip", [False, True])
def test_interpolation_finds_the_minimum_of_a_cubic(flip: bool) -> None:
    """φ(t) = t³ - 3t has it at 1."""
    a, b = (trial(t, t**3 - 3 * t, 3 * t * t - 3) for t in (0.2, 2.0))
    t = interpolate(b, a, 0.2, 2.0) if flip else interpolate(a, b, 0.2, 2.0)
    assert float(t) == pytest.approx(1.0, rel=1e-12)
    assert float(interpolate(a, b, 1.5, 2.0)) == 1.5
    assert float(interpolate(a, b, 0.2, 0.5)) == 0.5


def test_interpolation_halves_where_the_cubic_only_falls() -> None:
    a, b = (trial(t, -t - t**3, -1 - 3 * t * t) for t in (1.0, 2.0))
    assert interpolate(a, b, 3.0, 5.0) == 4.0


def test_a_trial_near_an_end_is_moved_the_second_time() -> None:
    assert keep_away(0.5, 0.0, 1.0, True) == (0.5, False)
    assert keep_away(0.05, 0.0, 1.0, False) == (0.05, True)
    assert keep_away(0.05, 0.0, 1.0, True) == (0.1, False)
    assert keep_away(0.95, 0.0, 1.0, True) == (0.9, False)
    assert keep_away(1.0, 0.0, 1.0, False) == (0.9, False)
    assert keep_away(0.0, 0.0, 1.0, False) == (0.1, False)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "bowl": lambda x: (x - 3) ** 2,
    "steep": lambda x: 1e6 * (x - 1e-3) ** 2,
    "flat": lambda x: (1e-3 * x - 2) ** 4,
    "waves": lambda x: torch.cos(3 * x) - 0.1 * x,
    "log": lambda x: x - torch.log(x + 0.1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("first", [1e-3, 0.3, 1.0, 30.0])
def test_the_length_that_is_found_satisfies_the_strong_wolfe_conditions(name: str, first: float) -> None:
    calls = []

    def evaluate(x: Tensor) -> Evaluation:
        calls.append(x)
        at = x.detach().requires_grad_()
        loss = FUNCTIONS[name](at).sum()
        return Evaluation(x, loss.item(), torch.autograd.grad(loss, at)[0])

    x = numbers(0.2)
    at = evaluate(x)
    d = -at.grad
    start = Trial(0.0, at.loss, at.grad, at.grad.dot(d))
    end, used = strong_wolfe(Line(evaluate, x, d), start, first, 60)
    assert used == len(calls) - 1
    there = evaluate(along(x, end.t, d))
    assert there.loss == end.loss
    assert there.loss <= at.loss + 1e-4 * float(end.t) * float(at.grad.dot(d))
    assert abs(there.grad.dot(d)) <= 0.9 * abs(at.grad.dot(d))


def test_a_search_without_a_budget_evaluates_once_and_keeps_the_better_end() -> None:
    calls = []

    def evaluate(x: Tensor) -> Evaluation:
        calls.append(x)
        return Evaluation(x, x.square().item(), 2 * x)

    start = Trial(0.0, 1.0, numbers(2.0), numbers(2.0).dot(numbers(-2.0)))
    line = Line(evaluate, numbers(1.0), numbers(-2.0))
    for budget in (0, -3):
        assert strong_wolfe(line, start, 3.0, budget) == (start, 1)
    end, used = strong_wolfe(line, start, 0.9, 0)
    assert (end.t, used) == (0.9, 1)
    assert [x.item() for x in calls] == pytest.approx([-5.0, -5.0, -0.8])


def test_of_a_number_and_nan_the_first_is_taken() -> None:
    nan = float("nan")
    assert (smaller(1.0, 2.0), smaller(2.0, 1.0), larger(1.0, 2.0), larger(2.0, 1.0)) == (1.0, 1.0, 2.0, 2.0)
    assert (smaller(1.0, nan), larger(1.0, nan)) == (1.0, 1.0)
    assert smaller(nan, 1.0) != smaller(nan, 1.0)
