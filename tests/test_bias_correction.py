"""Bias correction: averages that begin at zero, and make up for it.

Bounds on errors are counted, not tried: u is half an eps, the error of one rounding. A step of β m + (1 - β) g makes
three of them (the constant, the product, the sum), so t steps stay within 3 t u of the exact mean of the |g|.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch import Tensor

import functrain as ft
from functrain import counter
from functrain.testing import strategies
from functrain.testing.strategies import counts, decays, epsilons, learning_rates

D = torch.float64
every_float = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
wide_floats = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
LAST = torch.iinfo(torch.int32).max

# Neither they nor their squares come near the edges of a float.
SIZES = st.floats(2.0**-10, 2.0**10)
NOT_ZERO = st.sampled_from((1.0, -1.0)) | st.builds(math.copysign, SIZES, st.sampled_from((1, -1)))
ENTRIES = st.just(0.0) | NOT_ZERO


def unit(dtype: torch.dtype) -> float:
    """u of the dtype that moments have: at least float32."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).double()


@st.composite
def histories(
    draw: st.DrawFn, dtype: torch.dtype, max_size: int = 30, entries: st.SearchStrategy[float] = ENTRIES
) -> list[Tensor]:
    """Gradients of one parameter, of one shape and any layout."""
    shape = draw(strategies.shapes())
    n = draw(st.integers(1, max_size))
    few = [draw(strategies.tensors(dtype, shape, entries)) for _ in range(min(n, 4))]
    return [few[i] for i in draw(st.lists(st.integers(0, len(few) - 1), min_size=n, max_size=n))]


def run(tx: ft.GradientTransformation, gs: list[Tensor]) -> tuple[list[Tensor], Any]:
    state, seen = tx.init(torch.zeros_like(gs[0])), []
    for g in gs:
        u, state = tx.update(g, state)
        seen.append(u)
    return seen, state


def exact_correction(decay: float, t: int) -> mpf:
    """1 - βᵗ to 50 digits, of the float β."""
    with mpmath.workdps(50):
        return 1 - mpf(decay) ** t


# --- a constant gradient


@every_float
@given(data=st.data(), decay=decays(), t=st.integers(1, 50))
def test_the_corrected_mean_of_a_constant_gradient_is_that_gradient(
    dtype: torch.dtype, data: st.DataObject, decay: float, t: int
) -> None:
    g = data.draw(strategies.tensors(dtype, values=ENTRIES))
    for i, u in enumerate(run(ft.ema(decay), [g] * t)[0], 1):
        error = (u.double() - g.double()).abs()
        # Half precision is rounded from a float32 that is so close to g that it becomes g again.
        bound = 0 if dtype == torch.bfloat16 else 3 * (i + 1) * unit(dtype)
        assert (error <= bound * g.double().abs()).all()


@every_float
@given(data=st.data(), b1=decays(), b2=decays(), t=st.integers(1, 50))
def test_adams_corrected_moments_of_a_constant_gradient_are_it_and_its_square(
    dtype: torch.dtype, data: st.DataObject, b1: float, b2: float, t: int
) -> None:
    g = data.draw(strategies.tensors(dtype, values=ENTRIES))
    _, state = run(ft.scale_by_adam(b1, b2), [g] * t)
    bound = 3 * (t + 2) * unit(dtype)
    for moment, decay, exact in ((state.mu, b1, g.double()), (state.nu, b2, g.double() ** 2)):
        corrected = moment.double() / counter.bias_correction(decay, state.count)
        assert ((corrected - exact).abs() <= bound * exact.abs()).all()


@wide_floats
@given(decay=decays(), t=counts(), g=SIZES)
def test_an_update_at_any_count_keeps_the_corrected_mean_of_a_constant_gradient(
    dtype: torch.dtype, decay: float, t: int, g: float
) -> None:
    """The step of the induction whose beginning is the first update: what 10^6 updates would take too long to show."""
    constant = torch.tensor([g], dtype=dtype)
    tx = ft.ema(decay)
    before = constant.double() * float(exact_correction(decay, t - 1))
    state = tx.init(constant)._replace(count=torch.tensor(t - 1, dtype=torch.int32), ema=before.to(dtype))
    u, state = tx.update(constant, state)
    assert state.count == t
    assert abs(u.item() / constant.item() - 1) <= 8 * unit(dtype)


def test_without_correction_the_mean_of_a_constant_gradient_is_not_that_gradient() -> None:
    """The negative control: the first mean is a thousandth of the gradient."""
    (u,), _ = run(ft.ema(0.999, debias=False), [torch.ones(1, dtype=D)])
    assert u.item() == pytest.approx(0.001, rel=1e-12)


# --- any gradients


@every_float
@given(data=st.data(), decay=decays())
def test_the_corrected_mean_lies_between_the_least_and_the_greatest_gradient(
    dtype: torch.dtype, data: st.DataObject, decay: float
) -> None:
    gs = data.draw(histories(dtype))
    all_g = torch.stack(gs).double()
    for t, u in enumerate(run(ft.ema(decay), gs)[0], 1):
        seen = all_g[:t]
        slack = 3 * (t + 1) * unit(dtype) * seen.abs().amax(0)
        assert (u.double() >= rounded(seen.amin(0) - slack, dtype)).all()
        assert (u.double() <= rounded(seen.amax(0) + slack, dtype)).all()


@given(decay=decays(), n=st.integers(1, 60))
def test_the_weights_of_the_corrected_mean_sum_to_one_and_fall_by_beta_with_age(decay: float, n: int) -> None:
    """The gradient at step i is one in entry i alone, so the update lists the weights."""
    weights = run(ft.ema(decay), list(torch.eye(n, dtype=D)))[0][-1]
    assert abs(math.fsum(weights.tolist()) - 1) <= 3 * (n + 1) * unit(D)
    with mpmath.workdps(50):
        exact = [(1 - mpf(decay)) * mpf(decay) ** (n - 1 - i) / (1 - mpf(decay) ** n) for i in range(n)]
    tiny = torch.finfo(D).tiny  # a weight that underflows has no relative error
    assert all(abs(w - e) <= 3 * (n + 1) * unit(D) * e + tiny for w, e in zip(weights.tolist(), exact, strict=True))


@wide_floats
@given(data=st.data(), decay=decays(), a=ENTRIES)
def test_the_corrected_mean_is_linear_in_the_gradients(
    dtype: torch.dtype, data: st.DataObject, decay: float, a: float
) -> None:
    xs = data.draw(histories(dtype))
    ys = [data.draw(strategies.tensors(dtype, xs[0].shape, ENTRIES)), *xs[:-1]]
    tx = ft.ema(decay)
    (u, v, w) = (run(tx, gs)[0][-1].double() for gs in (xs, ys, [x + a * y for x, y in zip(xs, ys, strict=True)]))
    size = torch.stack(xs).double().abs().amax(0) + abs(a) * torch.stack(ys).double().abs().amax(0)
    assert ((w - (u + a * v)).abs() <= 2 * 3 * (len(xs) + 2) * unit(dtype) * size).all()


@every_float
@given(data=st.data())
def test_a_mean_without_memory_is_the_newest_gradient_bit_for_bit(dtype: torch.dtype, data: st.DataObject) -> None:
    gs = data.draw(histories(dtype, 5))
    assert all(map(torch.equal, run(ft.ema(0.0), gs)[0], gs))


# --- Adam


@every_float
@given(data=st.data(), rate=learning_rates(), b1=decays(), b2=decays(), eps=epsilons(), nesterov=st.booleans())
def test_adams_first_update_is_the_rate_times_g_over_abs_g_plus_eps(
    dtype: torch.dtype, data: st.DataObject, rate: float, b1: float, b2: float, eps: float, nesterov: bool
) -> None:
    g = data.draw(strategies.tensors(dtype, values=ENTRIES))
    (u,), _ = run(ft.adam(rate, b1, b2, eps), [g])
    exact = -rate * g.double() / (g.double().abs() + eps)
    # 14 roundings in the dtype of the moments, 10 in the corrections; in half precision one after Adam, one after η.
    bound = 24 * unit(dtype) + (torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0)
    assert u.dtype == dtype
    assert ((u.double() - exact).abs() <= bound * exact.abs()).all()


@every_float
@given(data=st.data(), b1=decays(), b2=decays(), power=st.integers(-20, 20), nesterov=st.booleans())
def test_without_eps_adam_does_not_feel_a_power_of_two_bit_for_bit(
    dtype: torch.dtype, data: st.DataObject, b1: float, b2: float, power: int, nesterov: bool
) -> None:
    """Of gradients that are not zero: where β₂ remembers zeros alone, and β₁ more, the mean is divided by zero."""
    gs = data.draw(histories(dtype, 8, NOT_ZERO))
    tx = ft.scale_by_adam(b1, b2, eps=0.0, nesterov=nesterov)
    assert all(map(torch.equal, run(tx, gs)[0], run(tx, [g * 2.0**power for g in gs])[0]))


@wide_floats
@given(data=st.data(), b1=decays(), b2=decays(), scale=st.floats(1e-3, 1e3))
def test_without_eps_adam_feels_no_scale_but_in_its_rounding(
    dtype: torch.dtype, data: st.DataObject, b1: float, b2: float, scale: float
) -> None:
    gs = data.draw(histories(dtype, 8, NOT_ZERO))
    tx = ft.scale_by_adam(b1, b2, eps=0.0)
    # The mean may cancel: its error is one of the mean of the |g|, over the same root.
    sizes = run(tx, [g.abs() for g in gs])[0]
    pairs = zip(run(tx, gs)[0], run(tx, [g * scale for g in gs])[0], sizes, strict=True)
    for t, (u, v, size) in enumerate(pairs, 1):
        assert ((u.double() - v.double()).abs() <= 2 * 6 * (t + 3) * unit(dtype) * size.double()).all()


def test_with_eps_adam_feels_the_scale() -> None:
    """The negative control: a gradient of the size of eps gives half the update."""
    (small,), _ = run(ft.scale_by_adam(eps=1e-3), [torch.full((1,), 1e-3, dtype=D)])
    (large,), _ = run(ft.scale_by_adam(eps=1e-3), [torch.full((1,), 1e3, dtype=D)])
    assert (small.item(), large.item()) == pytest.approx((0.5, 1.0), rel=1e-5)


# --- the correction itself


def ulps(found: Tensor, exact: mpf) -> float:
    """The error in units of the last place of the found number."""
    last = torch.nextafter(found, torch.full_like(found, math.inf)).double() - found.double()
    with mpmath.workdps(50):
        return float(abs(mpf(found.item()) - exact) / mpf(last.item()))


def at(t: int) -> Tensor:
    return torch.tensor(t, dtype=torch.int32)


AS_GIVEN: dict[str, Callable[[float], tuple[Any, float]]] = {
    "number": lambda b: (b, b),
    "float64 tensor": lambda b: (torch.tensor(b, dtype=D), b),
    "float32 tensor": lambda b: (torch.tensor(b), torch.tensor(b).item()),
}


@pytest.mark.parametrize("given_as", AS_GIVEN)
@given(decay=decays(), t=counts())
def test_the_correction_is_right_to_4_ulp_of_its_own_float(given_as: str, decay: float, t: int) -> None:
    """Of float64, and so to half an ulp more than the best in float32, in which moments are divided by it."""
    passed, value = AS_GIVEN[given_as](decay)
    c = counter.bias_correction(passed, at(t))
    assert c.dtype == D
    assert ulps(c, exact_correction(value, t)) < 4
    assert ulps(c.float(), exact_correction(value, t)) < 0.51


@pytest.mark.parametrize("given_as", AS_GIVEN)
@given(decay=decays(), t=counts())
def test_where_the_count_cannot_be_read_the_correction_is_right_to_4_ulp_too(
    given_as: str, decay: float, t: int
) -> None:
    passed, value = AS_GIVEN[given_as](decay)
    (c,) = torch.func.vmap(lambda count: counter.bias_correction(passed, count))(at(t)[None])
    assert c.dtype == D
    assert ulps(c, exact_correction(value, t)) < 4


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999])
def test_the_correction_is_right_to_4_ulp_at_counts_from_1_to_a_million(decay: float) -> None:
    steps = {round(10 ** (i / 20)) for i in range(121)}
    assert {1, 10**6} <= steps
    assert max(ulps(counter.bias_correction(decay, at(t)).float(), exact_correction(decay, t)) for t in steps) < 4


@pytest.mark.parametrize(("decay", "lost"), [(0.9, 1), (0.99, 10), (0.999, 100), (0.9999, 1000)])
def test_the_naive_correction_in_float32_loses_digits(decay: float, lost: float) -> None:
    """The negative control: at the first update 1 - β**t keeps the rounding of β, and of its size almost nothing."""
    naive = 1 - torch.tensor(decay) ** at(1)
    assert ulps(naive, exact_correction(decay, 1)) > lost
    assert ulps(counter.bias_correction(decay, at(1)).float(), exact_correction(decay, 1)) < 0.51


# --- the counter


def test_the_counter_counts_and_saturates() -> None:
    assert counter.increment(at(0)) == 1
    assert counter.increment(at(LAST - 1)) == LAST
    assert counter.increment(at(LAST)) == LAST
    assert counter.increment(at(LAST)).dtype == torch.int32
    assert at(LAST) + 1 < 0  # the negative control: int32 wraps


def test_the_counter_saturates_where_it_cannot_be_read_too() -> None:
    counts = torch.tensor([0, LAST - 1, LAST], dtype=torch.int32)
    assert torch.func.vmap(counter.increment)(counts).tolist() == [1, LAST, LAST]


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_rule_goes_on_at_the_end_of_its_counter(nesterov: bool) -> None:
    g = torch.ones(2, dtype=D)
    for tx in (ft.ema(0.9), ft.scale_by_adam(eps=0.0, nesterov=nesterov)):
        state = tx.init(g)
        state = ft.tree.map(lambda x: torch.ones_like(x) if x.is_floating_point() else torch.full_like(x, LAST), state)
        for _ in range(2):
            u, state = tx.update(g, state)
            assert state.count == LAST
            torch.testing.assert_close(u, g, rtol=1e-14, atol=0)
