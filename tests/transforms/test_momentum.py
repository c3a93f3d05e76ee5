"""Averages over time: trace and ema."""

from __future__ import annotations

import pytest
import torch

from functrain import tree
from functrain.transforms.momentum import ema, trace

P = {"w": torch.zeros(2), "b": torch.zeros(())}


def ones(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2,), value), "b": torch.tensor(value)}


def after(tx, gs):
    state, seen = tx.init(P), []
    for g in gs:
        u, state = tx.update(ones(g), state)
        seen.append(u["b"].item())
    return seen


def test_the_first_traces_by_hand() -> None:
    assert after(trace(0.5), [1.0, 2.0, 4.0]) == [1.0, 2.5, 5.25]


def test_the_first_nesterov_traces_by_hand() -> None:
    assert after(trace(0.5, nesterov=True), [1.0, 2.0, 4.0]) == [1.5, 3.25, 6.625]


def test_the_trace_of_a_constant_gradient_grows_to_its_limit() -> None:
    assert after(trace(0.9), [1.0] * 400)[-1] == pytest.approx(10.0, rel=1e-6)


def test_the_first_means_by_hand() -> None:
    assert after(ema(0.5), [1.0, 4.0]) == [1.0, 3.0]  # (1/2 4 + 1/4 1) / (3/4)
    assert after(ema(0.5, debias=False), [1.0, 4.0]) == [0.5, 2.25]


def test_a_constant_gradient_is_its_own_mean_from_the_first_update_on() -> None:
    assert after(ema(0.999), [3.0] * 20) == pytest.approx([3.0] * 20, rel=1e-6)


@pytest.mark.parametrize("factory", [trace, ema], ids=lambda f: f.__name__)
def test_the_accumulator_has_the_dtype_asked_for_and_the_update_that_of_the_gradient(factory) -> None:
    tx = factory(0.9, accumulator_dtype=torch.bfloat16)
    state = tx.init(P)
    for _ in range(2):
        u, state = tx.update(ones(), state)
    assert {x.dtype for x in tree.leaves(u)} == {torch.float32}
    assert {x.dtype for x in tree.leaves(state) if x.is_floating_point()} == {torch.bfloat16}


def test_a_trace_in_half_precision_does_not_lose_small_gradients() -> None:
    """Kept in float16, 1 + 0.0004 would be 1 again at every update."""
    p = torch.zeros(1, dtype=torch.float16)
    tx = trace(0.999)
    _, state = tx.update(torch.ones_like(p), tx.init(p))
    for _ in range(10):
        _, state = tx.update(torch.full_like(p, 1.4e-3), state)
    expected = 0.999**10 + sum(float(torch.tensor(1.4e-3).half()) * 0.999**k for k in range(10))
    assert state.trace.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("factory", [trace, ema], ids=lambda f: f.__name__)
@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_memory_outside_its_range_is_an_error(factory, decay: float) -> None:
    with pytest.raises(ValueError, match="decay") as error:
        factory(decay)
    assert str(error.value) == f"{factory.__name__}: decay must be in [0, 1), got {decay}"
