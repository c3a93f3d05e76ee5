"""Rules of torch.optim with steps of their own: first steps by hand, and what their docstrings claim of all steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from functrain.base import GradientTransformation, apply_updates
from functrain.testing import strategies
from functrain.testing.strategies import decays
from functrain.transforms.momentum import ema, trace
from functrain.transforms.torch_steps import scale_by_torch_asgd, scale_by_torch_rprop, torch_trace

D = torch.float64
U = torch.finfo(D).eps / 2  # the error of one rounding
SCALES = st.sampled_from((1.0, 1e-200, 1e-300, 1e200)) | st.floats(1e-300, 1e300)  # squares underflow and overflow
NUMBERS = st.sampled_from((0.0, 1.0, -1.0)) | st.floats(-1e3, 1e3)


def run(tx: GradientTransformation, gs: list[Tensor], params: Tensor | None = None) -> tuple[list[Tensor], list[Any]]:
    """The updates and states of one parameter, which the updates move."""
    p = torch.zeros_like(gs[0]) if params is None else params
    state, updates, states = tx.init(p), [], []
    for g in gs:
        u, state = tx.update(g, state, p)
        p = apply_updates(p, u)
        updates.append(u)
        states.append(state)
    return updates, states


def updates_of(tx: GradientTransformation, gs: list[float], start: float = 0.0) -> list[float]:
    first = torch.tensor([start], dtype=D)
    return [u.item() for u in run(tx, [torch.tensor([g], dtype=D) for g in gs], first)[0]]


@st.composite
def histories(draw: st.DrawFn, max_size: int = 8) -> list[Tensor]:
    """Gradients of one parameter of any shape."""
    shape = draw(strategies.shapes())
    return [draw(strategies.tensors(D, shape, NUMBERS)) for _ in range(draw(st.integers(1, max_size)))]


# --- momentum


def test_dampened_momentum_by_hand() -> None:
    """The first gradient is whole, the others count three quarters."""
    assert updates_of(torch_trace(0.5, 0.25), [4.0, 8.0, 16.0]) == [4.0, 8.0, 16.0]
    assert updates_of(torch_trace(0.5, 0.25), [1.0, 1.0, 1.0]) == [1.0, 1.25, 1.375]
    assert updates_of(torch_trace(0.5, 0.25, nesterov=True), [1.0, 1.0]) == [1.5, 1.625]


@given(gs=histories(), decay=decays(), nesterov=st.booleans())
def test_without_dampening_it_is_trace(gs: list[Tensor], decay: float, nesterov: bool) -> None:
    ours, plain = (run(tx, gs)[0] for tx in (torch_trace(decay, nesterov=nesterov), trace(decay, nesterov)))
    assert all(map(torch.equal, ours, plain))


@given(gs=histories(), decay=decays())
def test_dampened_by_its_own_memory_it_is_a_mean_that_begins_at_the_first_gradient(
    gs: list[Tensor], decay: float
) -> None:
    ours = run(torch_trace(decay, decay), gs)[0]
    rest = run(ema(decay, debias=False), [g - gs[0] for g in gs])[0]
    for u, m in zip(ours, rest, strict=True):
        torch.testing.assert_close(u, gs[0] + m, rtol=1e-13, atol=1e-12)


# --- Rprop


def test_rprop_by_hand() -> None:
    """It grows, turns (no step, no memory of the sign), goes on, grows, is held at its greatest."""
    tx = scale_by_torch_rprop(1.0, (0.25, 2.0), (0.125, 3.0))
    u = updates_of(tx, [5.0, 0.1, -7.0, -7.0, -7.0, -7.0, -7.0, 0.0, -1.0])
    assert u == [-1.0, -2.0, 0.0, 0.5, 1.0, 2.0, 3.0, 0.0, 3.0]
    least = scale_by_torch_rprop(0.25, (0.25, 2.0), (0.125, 3.0))
    assert updates_of(least, [1.0, -1.0, -1.0]) == [-0.25, 0.0, 0.125]


@given(g=SCALES, t=st.integers(1, 12), plus=st.floats(1.1, 3), start=st.floats(1e-3, 10))
def test_a_step_grows_by_eta_plus_while_its_sign_stays(g: float, t: int, plus: float, start: float) -> None:
    """Whatever the size of the gradient, though its square underflow."""
    u = updates_of(scale_by_torch_rprop(start, (0.5, plus)), [g / 2**i for i in range(t)])
    assert u == pytest.approx([-min(start * plus**i, 50.0) for i in range(t)], rel=2 * t * U)


@given(g=SCALES, t=st.integers(1, 12), minus=st.floats(0.1, 0.9))
def test_where_the_sign_turns_there_is_no_step_and_the_next_is_eta_minus_as_long(
    g: float, t: int, minus: float
) -> None:
    signs = [1.0, *(s for i in range(t) for s in 2 * [(-1.0) ** (i + 1)])]
    u = updates_of(scale_by_torch_rprop(0.1, (minus, 1.2), (0.0, 50.0)), [g * s for s in signs])
    steps = [0.1 * minus**i for i in range(t + 1)]
    expected = [-0.1, *(x for i in range(1, t + 1) for x in (0.0, -steps[i] * (-1.0) ** i))]
    assert u == pytest.approx(expected, rel=2 * t * U)


@given(gs=histories(), power=st.integers(-900, 900))
def test_rprop_does_not_feel_the_scale_of_gradients(gs: list[Tensor], power: int) -> None:
    whole = [torch.where(g.abs() < 1, g.sign(), g) for g in gs]  # none underflows when it is scaled
    scaled = [g * 2.0**power for g in whole]
    assert all(map(torch.equal, *(run(scale_by_torch_rprop(), x)[0] for x in (whole, scaled))))


@given(gs=histories(), least=st.floats(0, 0.1), greatest=st.floats(0.1, 1))
def test_a_step_stays_between_the_least_and_the_greatest(gs: list[Tensor], least: float, greatest: float) -> None:
    updates, states = run(scale_by_torch_rprop(0.1, step_sizes=(least, greatest)), gs)
    for u, s in zip(updates, states, strict=True):
        assert ((s.step_size >= least) & (s.step_size <= greatest)).all()
        assert ((u == 0) | (u.abs() == s.step_size)).all()


def test_a_complex_entry_turns_by_more_than_a_right_angle() -> None:
    """By 63 degrees, 72, 108: it grows, grows, turns."""
    gs = [torch.tensor([z], dtype=torch.complex128) for z in (1 + 0j, 1 + 2j, -1 + 1j, -1 - 2j)]
    updates, states = run(scale_by_torch_rprop(1.0, (0.5, 2.0)), gs)
    assert [s.step_size.item() for s in states] == [1.0, 2.0, 4.0, 2.0]
    assert updates[1].item() == pytest.approx(-2 * (1 + 2j) / 5**0.5)
    assert updates[3].item() == 0


# --- ASGD


def test_asgd_by_hand() -> None:
    """γ = 1/2, λ = 1, α = 1: η = 1/2, then 1 / (2 + t). From p = 4, gradients of 1."""
    u = updates_of(scale_by_torch_asgd(0.5, 1.0, 1.0), [1.0, 1.0, 1.0], start=4.0)
    assert u == pytest.approx([-5 / 2, -(5 / 2) / 3, -(5 / 3) / 4], rel=1e-6)  # η is kept in float32


@given(gs=histories(12), t0=st.integers(-1, 6), lambd=st.floats(0, 1))
def test_the_average_is_the_mean_of_the_parameters_from_step_t0_plus_2_on(
    gs: list[Tensor], t0: int, lambd: float
) -> None:
    updates, states = run(scale_by_torch_asgd(0.1, lambd, t0=float(t0)), gs)
    p, seen = torch.zeros_like(gs[0]), []
    for t, (u, s) in enumerate(zip(updates, states, strict=True), 1):
        p = p + u
        seen.append(p)
        since = torch.stack(seen[max(t0 + 1, 0) :] or seen[-1:])
        if t <= t0 + 2:
            assert torch.equal(s.ax, p)
        else:  # the weight 1 / (t - t₀) is kept in float32
            torch.testing.assert_close(s.ax, since.mean(0), rtol=1e-6, atol=1e-6 * since.norm().item())


@given(gs=histories(), t0=st.integers(0, 4))
def test_the_average_does_not_reach_the_updates(gs: list[Tensor], t0: int) -> None:
    ours, late = (run(scale_by_torch_asgd(t0=t), gs)[0] for t in (float(t0), 1e6))
    assert all(map(torch.equal, ours, late))


def test_the_average_of_half_precision_parameters_is_kept_in_float32() -> None:
    gs = [torch.full((2,), 1.0, dtype=torch.bfloat16)] * 4
    _, states = run(scale_by_torch_asgd(1e-3, t0=0.0), gs, torch.ones(2, dtype=torch.bfloat16))
    assert states[-1].ax.dtype == torch.float32
    assert (states[-1].ax == 1).all()  # the parameters never moved, being rounded


# --- guards


def test_arguments_outside_their_range_are_errors() -> None:
    for make, name in (
        (lambda: torch_trace(-0.1), "torch_trace: decay must be >= 0 and finite, got -0.1"),
        (lambda: scale_by_torch_rprop(-1.0), "scale_by_torch_rprop: learning_rate must be >= 0 and finite, got -1.0"),
        (
            lambda: scale_by_torch_rprop(etas=(1.0, 1.2)),
            "scale_by_torch_rprop: etas must be (η⁻, η⁺) with 0 < η⁻ < 1 < η⁺, got (1.0, 1.2)",
        ),
        (
            lambda: scale_by_torch_rprop(etas=(0.5, 1.0)),
            "scale_by_torch_rprop: etas must be (η⁻, η⁺) with 0 < η⁻ < 1 < η⁺, got (0.5, 1.0)",
        ),
        (
            lambda: scale_by_torch_rprop(step_sizes=(-1.0, 1.0)),
            "scale_by_torch_rprop: step_sizes must be (Δ_min, Δ_max) >= 0, got (-1.0, 1.0)",
        ),
        (lambda: scale_by_torch_asgd(-1.0), "scale_by_torch_asgd: learning_rate must be >= 0 and finite, got -1.0"),
        (lambda: scale_by_torch_asgd(lambd=-1.0), "scale_by_torch_asgd: lambd must be >= 0 and finite, got -1.0"),
    ):
        with pytest.raises(ValueError, match=name.split(":")[0]) as error:
            make()
        assert str(error.value) == name
