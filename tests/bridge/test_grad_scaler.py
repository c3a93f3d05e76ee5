"""Under GradScaler a step of ours is skipped when torch's is, whoever unscales."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from tests.bridge.faces import (
    ROWS,
    STEPPED,
    Row,
    assert_bitwise,
    assert_near,
    assert_states_near,
    every_row,
    gradients,
    parameters,
)

FUSED = [row for row in ROWS if "fused" in row.defaults]
COMPILED = [FUSED[0], *(pytest.param(row, marks=pytest.mark.long) for row in FUSED[1:])]  # each compiles for seconds
STEPS, OVERFLOW = 8, 3  # the fourth of eight steps overflows


def scaled(row: Row, make: Callable[..., Optimizer], unscale: bool = False, **options: Any) -> tuple[Any, ...]:
    """Parameters after each step, scales, and the state at the end."""
    params = parameters(row.shapes, torch.float32)
    optimizer = make(params, **row.options, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    seen, scales = [], []
    for t, g in enumerate(gradients(row.shapes, torch.float32, STEPS)):
        optimizer.zero_grad()
        products = [(p * x).sum() for p, x in zip(params, g, strict=True) if x is not None]
        loss = torch.stack(products).sum() * (float("inf") if t == OVERFLOW else 1.0)
        before = copy.deepcopy((params, optimizer.state_dict()["state"]))
        scaler.scale(loss).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if t == OVERFLOW:
            assert_bitwise((params, optimizer.state_dict()["state"]), before)
        seen.append([p.detach().clone() for p in params])
        scales.append(scaler.get_scale())
    return seen, scales, optimizer.state_dict()


def assert_as_torch(row: Row, unscale: bool, **options: Any) -> None:
    ours, scales, state = scaled(row, row.ours, unscale, **options)
    torchs, its_scales, its_state = scaled(row, row.reference, unscale)
    assert scales == its_scales
    assert scales[OVERFLOW] == scales[OVERFLOW - 1] / 2
    assert_near(ours, torchs, row)
    assert_states_near(state, its_state, row._replace(float32=1e-5))


@every_row(STEPPED)
@pytest.mark.parametrize("unscale", [False, True], ids=["step unscales", "unscaled before"])
def test_an_overflow_is_skipped_and_the_scale_halved_as_with_torch(row: Row, unscale: bool) -> None:
    assert_as_torch(row, unscale)


@pytest.mark.inductor
@pytest.mark.parametrize("row", COMPILED, ids=[row.name for row in FUSED])
@pytest.mark.parametrize("unscale", [False, True], ids=["step unscales", "unscaled before"])
def test_a_fused_optimizer_unscales_and_skips_for_itself(row: Row, unscale: bool) -> None:
    assert_as_torch(row, unscale, fused=True)


def attributed(row: Row, found: float, scale: float | None, grads: Sequence[Tensor]) -> list[Tensor]:
    """One step with the attributes that GradScaler sets."""
    params = parameters(row.shapes, torch.float32)
    optimizer = row.ours(params, **row.options, fused=True)
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    optimizer.found_inf = torch.tensor(found)
    optimizer.grad_scale = None if scale is None else torch.tensor(scale)
    optimizer.step()
    return params


@pytest.mark.inductor
@pytest.mark.parametrize("row", COMPILED, ids=[row.name for row in FUSED])
def test_a_fused_step_divides_by_grad_scale_and_does_nothing_when_found_inf_is_set(row: Row) -> None:
    grads = [torch.full(shape, 0.25) for shape in row.shapes]
    plain = attributed(row, 0.0, None, grads)
    divided = attributed(row, 0.0, 4.0, [4 * g for g in grads])
    assert_bitwise(divided, plain)
    left = attributed(row, 1.0, 4.0, grads)
    assert_bitwise(left, parameters(row.shapes, torch.float32))


@every_row()
def test_only_a_fused_optimizer_asks_to_unscale_for_itself(row: Row) -> None:
    def asks(**options: Any) -> bool:
        optimizer = row.ours(parameters(row.shapes, torch.float32), **options)
        return bool(getattr(optimizer, "_step_supports_amp_scaling", False))

    assert not asks()
    assert all(asks(**{flag: True}) for flag in {"fused"} & set(row.defaults))
