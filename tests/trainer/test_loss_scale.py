"""The loss scale over a run: never seen in what is computed, and that of torch's GradScaler through checkpoints."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import functrain as ft
from functrain import tree
from functrain.precision import GROWTH_INTERVAL
from tests.networks import D
from tests.trainer.test_amp import Weight, gradients, guard_of, numbers, same, set_scale, weighted

# --- the scale is not seen


@given(
    data=st.lists(st.integers(1, 8), min_size=12, max_size=12),
    weights=st.lists(st.integers(-8, 8), min_size=6, max_size=6),
    exponents=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    k=st.sampled_from([1, 2]),
    limit=st.sampled_from([None, 1e-3]),
)
def test_amp_1_norm_update_and_loss_do_not_depend_on_the_scale(
    data: list[int], weights: list[int], exponents: tuple[int, int], k: int, limit: float | None
) -> None:
    """Of gradients from 2**-14 to 2**-8: with scales from 1 to 2**20 float16 has them all without a subnormal."""
    x = torch.tensor(data, dtype=torch.float32).reshape(4, 3)
    found = []
    for exponent in exponents:
        module = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            module.weight.copy_(torch.tensor(weights, dtype=torch.float32).reshape(2, 3) / 8)
        trainer = ft.Trainer(
            module,
            ft.sgd(1.0),
            list(x.split(4 // k)),
            objective=lambda m, x: m(x).float().sum() / 2**14,
            precision="fp16",
            grad_accum_steps=k,
            max_grad_norm=limit,
            max_epochs=1,
        )
        set_scale(trainer, 2.0**exponent)
        trainer.train()
        (record,) = trainer.history
        assert record["loss_scale"] == 2.0**exponent
        found.append((record["grad_norm"], record["loss"], trainer.state.params["weight"]))
    expected = 2**0.5 * (x.reshape(k, -1, 3).sum(1).mean(0) / 2**14).double().norm()  # two rows, the same gradient
    assert found[0][:2] == found[1][:2]
    assert torch.equal(found[0][2], found[1][2])
    assert found[0][0] == pytest.approx(expected.item(), rel=1e-6)


def recording(seen: list[Tensor]) -> ft.GradientTransformation:
    """Leaves gradients as they are, and remembers them."""

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        seen.extend(tree.leaves(updates))
        return updates, state

    return ft.GradientTransformation(lambda params: (), update)


@given(
    gradient=st.lists(
        st.floats(-1e3, 1e3, width=32).map(lambda x: x if abs(x) > 1e-15 else 0.0), min_size=2, max_size=2
    ),
    limit=st.floats(1e-3, 1e3),
    precision=st.sampled_from([None, "bf16", "fp16"]),
)
def test_amp_2_the_norm_after_clipping_is_at_most_the_limit_and_below_it_nothing_is_touched(
    gradient: list[float], limit: float, precision: Any
) -> None:
    seen: list[Tensor] = []
    tx = ft.chain(recording(seen), ft.sgd(1.0))
    trainer = weighted([torch.tensor(gradient)], tx, max_grad_norm=limit, precision=precision)
    trainer.train()
    ((clipped,), (record,)) = seen, trainer.history
    norm = torch.tensor(gradient, dtype=D).norm().item()
    assert record["grad_norm"] == pytest.approx(norm, rel=1e-6, abs=1e-37)  # the one before
    assert clipped.to(D).norm().item() <= limit * (1 + 3 * torch.finfo(torch.float32).eps)  # three roundings
    if norm < limit * (1 - 1e-6):
        assert torch.equal(clipped, torch.tensor(gradient))
    if norm > limit * (1 + 1e-6):
        torch.testing.assert_close(clipped, torch.tensor(gradient) * (limit / norm), rtol=1e-6, atol=1e-37)


# --- it is torch's


RATE = 2.0**-30  # so small that no loss overflows, for which a step here is skipped, and torch's scaler does not ask


def half_product(m: Weight, x: Tensor) -> Tensor:
    """Its gradient is x, taken in float16: scaled beyond 65504 it overflows."""
    return (m.w.half() * x.half()).float().sum()


def of_torch(xs: Sequence[float], scale: float, good_steps: int) -> tuple[list[float], list[float], Tensor]:
    """Each update's scale, the last scale and growth counter, and the weight: by torch's GradScaler."""
    w = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([w], lr=RATE)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=GROWTH_INTERVAL)
    scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": good_steps})
    scales = []
    for x in gradients(*xs):
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
        scaler.scale((w.half() * x.half()).float().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    return scales, [scaler.get_scale(), scaler.state_dict()["_growth_tracker"]], w.detach()


def half_run(xs: Sequence[float], **kwargs: Any) -> ft.Trainer:
    given = {"precision": "fp16", "objective": half_product, "log_interval": 1, "max_skips": 10**6} | kwargs
    return weighted(gradients(*xs), ft.sgd(RATE), **given)


OVERFLOWING = math.inf
VALUES = st.sampled_from([0.0, 2**-8, 0.125, 1.0, 1.5, 64.0, 6e4, OVERFLOWING, math.nan])


@given(
    xs=st.lists(VALUES, min_size=1, max_size=30),
    stops=st.sets(st.integers(1, 29), max_size=3),
    exponent=st.integers(0, 24),
    good_steps=st.integers(GROWTH_INTERVAL - 8, GROWTH_INTERVAL - 1),
)
def test_amp_5_scales_and_growth_are_those_of_torchs_grad_scaler_through_checkpoints(
    xs: list[float], stops: set[int], exponent: int, good_steps: int
) -> None:
    scales, end, w = of_torch(xs, 2.0**exponent, good_steps)
    with tempfile.TemporaryDirectory() as directory:
        for i, stop in enumerate([*sorted(stops), None]):
            resume = "auto" if i else None
            trainer = half_run(xs, max_steps=stop, save_dir=directory, resume=resume)
            if not i:
                set_scale(trainer, 2.0**exponent, good_steps)
            trainer.train()
    assert numbers(trainer, "loss_scale") == scales
    assert guard_of(trainer)[:2] == end
    assert torch.equal(trainer.state.params["w"], w)


@pytest.mark.long
def test_amp_5_a_long_run_from_nothing_has_torchs_scales() -> None:
    xs = [0.5] * (2 * GROWTH_INTERVAL + 20)
    xs[1234] = OVERFLOWING
    scales, end, w = of_torch(xs, 2.0**16, 0)
    trainer = half_run(xs)
    trainer.train()
    assert numbers(trainer, "loss_scale") == scales
    assert len(set(scales)) > 2
    assert guard_of(trainer)[:2] == end
    assert torch.equal(trainer.state.params["w"], w)


def test_amp_5_a_run_saved_after_1999_good_updates_doubles_at_its_next(tmp_path: Path) -> None:
    xs = [0.5] * 6
    first = half_run(xs, max_steps=3, save_dir=tmp_path)
    set_scale(first, 2.0**10, GROWTH_INTERVAL - 4)
    first.train()
    assert guard_of(first)[:2] == [2.0**10, 1999]

    second = half_run(xs, save_dir=tmp_path, resume="auto")
    assert same(second.state, first.state)
    second.train()
    assert numbers(second, "loss_scale") == [2.0**10] * 4 + [2.0**11] * 2
    assert guard_of(second)[:2] == [2.0**11, 2]


@pytest.mark.parametrize("good_steps", [0, 1, GROWTH_INTERVAL - 1])
@pytest.mark.parametrize("scale", [2.0**-30, 1.0, 2.0**16, 2.0**127])
def test_amp_5_the_guard_in_a_file_is_the_runs_bit_for_bit(scale: float, good_steps: int, tmp_path: Path) -> None:
    trainer = half_run([1.0], save_dir=tmp_path)
    set_scale(trainer, scale, good_steps)
    path = trainer.save_checkpoint()
    again = half_run([1.0], resume=path)
    assert same(again.state.guard, trainer.state.guard)
    assert guard_of(again) == [scale, good_steps, 0, 0]
