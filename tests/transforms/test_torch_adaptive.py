"""Adaptive rules of torch.optim: first steps by hand, and what their docstrings claim of all steps."""

from __future__ import annotations

import itertools
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

from functrain import tree
from functrain.base import GradientTransformation
from functrain.testing import strategies
from functrain.testing.strategies import counts, decays, epsilons
from functrain.transforms.adaptive import scale_by_adam
from functrain.transforms.momentum import ema
from functrain.transforms.torch_adaptive import (
    rectifier,
    scale_by_torch_adagrad,
    scale_by_torch_amsgrad,
    scale_by_torch_nadam,
    scale_by_torch_radam,
)

D = torch.float64
U = torch.finfo(D).eps / 2  # the error of one rounding
# Neither they nor their squares come near the edges of a float.
SIZES = st.floats(2.0**-10, 2.0**10)
NUMBERS = st.just(0.0) | st.builds(math.copysign, SIZES, st.sampled_from((1, -1)))


def run(tx: GradientTransformation, gs: list[Tensor]) -> tuple[list[Tensor], list[Any]]:
    """The updates and states of one parameter."""
    state, updates, states = tx.init(torch.zeros_like(gs[0])), [], []
    for g in gs:
        u, state = tx.update(g, state)
        updates.append(u)
        states.append(state)
    return updates, states


def updates_of(tx: GradientTransformation, gs: list[float]) -> list[float]:
    return [u.item() for u in run(tx, [torch.tensor([g], dtype=D) for g in gs])[0]]


@st.composite
def histories(draw: st.DrawFn, max_size: int = 8) -> list[Tensor]:
    """Gradients of one parameter of any shape."""
    shape = draw(strategies.shapes())
    return [draw(strategies.tensors(D, shape, NUMBERS)) for _ in range(draw(st.integers(1, max_size)))]


# --- AMSGrad


def test_amsgrad_by_hand() -> None:
    """b1 = b2 = 1/2, gradients 2 and 0: mu = 1, 1/2; nu = 2, 1, of which the greatest is 2; corrections 1/2, 3/4."""
    u = updates_of(scale_by_torch_amsgrad(0.5, 0.5, eps=0.0), [2.0, 0.0])
    assert u == pytest.approx([2 / 4**0.5, (2 / 3) / (8 / 3) ** 0.5], rel=1e-14)
    assert updates_of(scale_by_torch_amsgrad(0.0, 0.0, eps=1.0), [3.0]) == pytest.approx([3 / 4], rel=1e-14)


@given(gs=histories(), b2=decays())
def test_the_greatest_mean_square_never_falls_and_is_one_that_adam_has_had(gs: list[Tensor], b2: float) -> None:
    states = run(scale_by_torch_amsgrad(0.9, b2), gs)[1]
    seen = torch.stack([s.nu for s in run(scale_by_adam(0.9, b2), gs)[1]])
    for t, s in enumerate(states, 1):
        assert torch.equal(s.nu_max, seen[:t].amax(0))
        assert t == 1 or (s.nu_max >= states[t - 2].nu_max).all()


@given(gs=histories(), b1=decays(), b2=decays(), eps=epsilons())
def test_amsgrad_is_adam_bit_for_bit_while_gradients_double(gs: list[Tensor], b1: float, b2: float, eps: float) -> None:
    growing = [gs[0] * 2.0**t for t in range(len(gs))]
    ours, adam = (run(rule(b1, b2, eps), growing)[0] for rule in (scale_by_torch_amsgrad, scale_by_adam))
    assert all(map(torch.equal, ours, adam))


def test_amsgrad_is_not_adam_after_a_large_gradient() -> None:
    """The negative control."""
    ours, adam = (updates_of(rule(0.0, 0.5), [8.0, 1.0])[1] for rule in (scale_by_torch_amsgrad, scale_by_adam))
    assert (ours, adam) == pytest.approx(((32 / 0.75) ** -0.5, (16.5 / 0.75) ** -0.5))


# --- NAdam


def momentum(b1: float, psi: float, t: int) -> mpf:
    return mpf(b1) * (1 - mpf(0.5) * mpf(0.96) ** (t * mpf(psi)))


@pytest.fixture
def wide_default() -> Any:
    """float64 as the default dtype."""
    torch.set_default_dtype(D)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("wide_default")
@given(b1=decays(), psi=st.sampled_from((0.0, 4e-3, 1.0)) | st.floats(0, 10), t=st.integers(1, 40))
def test_the_product_of_momenta_is_right_to_the_rounding_of_its_factors(b1: float, psi: float, t: int) -> None:
    states = run(scale_by_torch_nadam(b1, momentum_decay=psi), [torch.ones(1, dtype=D)] * t)[1]
    with mpmath.workdps(50):
        exact = mpmath.fprod(momentum(b1, psi, i) for i in range(1, t + 1))
        # A factor makes 5 roundings, and one more for each power of e in 0.96^(t ψ); then one for the product.
        assert abs(mpf(states[-1].mu_product.item()) - exact) <= (7 + t * psi) * t * U * exact + torch.finfo(D).tiny


@pytest.mark.usefixtures("wide_default")
@given(b1=st.floats(0.1, 0.9999), psi=st.sampled_from((4e-3, 1.0)))
def test_the_momentum_grows_from_half_of_b1_and_stays_under_it(b1: float, psi: float) -> None:
    states = run(scale_by_torch_nadam(b1, momentum_decay=psi), [torch.ones(1, dtype=D)] * 12)[1]
    products = [1.0, *(s.mu_product.item() for s in states)]
    momenta = [b / a for a, b in itertools.pairwise(products)]
    assert all(a < b for a, b in itertools.pairwise(momenta))
    assert b1 / 2 < momenta[0] < (b1 / 2) * (1 + 0.05 * psi)
    assert momenta[-1] < b1


@pytest.mark.usefixtures("wide_default")
@given(b1=decays(), b2=decays(), g=NUMBERS.filter(bool), t=st.integers(1, 30))
def test_of_a_constant_gradient_nadam_is_its_sign_times_two_weights(b1: float, b2: float, g: float, t: int) -> None:
    """μ is (1 - β₁ᵗ) g, and √ν̂ is |g|."""
    psi = 4e-3
    u = updates_of(scale_by_torch_nadam(b1, b2, 0.0, psi), [g] * t)[-1]
    with mpmath.workdps(50):
        product = mpmath.fprod(momentum(b1, psi, i) for i in range(1, t + 1))
        now, ahead = momentum(b1, psi, t), momentum(b1, psi, t + 1)
        exact = ahead * (1 - mpf(b1) ** t) / (1 - product * ahead) + (1 - now) / (1 - product)
        assert abs(mpf(u) * int(math.copysign(1, g)) - exact) <= (3 * t + 24) * U * exact  # of μ, and of all else


# --- RAdam


def rho(b2: float, t: int) -> tuple[mpf, mpf]:
    """ρ∞ and ρ."""
    most = 2 / (1 - mpf(b2)) - 1
    return most, most - 2 * t * mpf(b2) ** t / (1 - mpf(b2) ** t)


def exact_rectifier(b2: float, t: int) -> mpf | None:
    """r, or None where ρ <= 5; of the float β₂."""
    most, now = rho(b2, t)
    if now <= 5:
        return None
    return mpmath.sqrt((now - 4) * (now - 2) * most / ((most - 4) * (most - 2) * now))


@given(b2=decays(), t=counts())
def test_the_rectification_is_right_and_begins_where_rho_passes_5(b2: float, t: int) -> None:
    count = torch.tensor(t, dtype=torch.int32)
    c2 = torch.tensor(float(1 - mpf(b2) ** t), dtype=D)
    trusted, r = rectifier(b2, count, c2)
    with mpmath.workdps(50):
        most, now = rho(b2, t)
        if abs(now - 5) > 16 * U * most:  # what ρ loses as the difference of two numbers of this size
            exact = exact_rectifier(b2, t)
            assert trusted.item() is (exact is not None)
            assert abs(mpf(r.item()) - (exact or 1)) <= 32 * U * max(most, 1)


@given(b1=decays(), b2=st.floats(0.99, 0.9999), gs=histories(5))
def test_the_first_five_steps_of_radam_are_plain_momentum(b1: float, b2: float, gs: list[Tensor]) -> None:
    ours, mean = (run(tx, gs)[0] for tx in (scale_by_torch_radam(b1, b2), ema(b1)))
    for u, m in zip(ours, mean, strict=True):
        torch.testing.assert_close(u, m, rtol=4 * U, atol=0)


def test_the_sixth_step_of_radam_is_rectified() -> None:
    u = updates_of(scale_by_torch_radam(eps=0.0), [4.0] * 6)
    assert u[:5] == pytest.approx([4.0] * 5, rel=1e-14)
    with mpmath.workdps(50):
        assert u[5] == pytest.approx(float(exact_rectifier(0.999, 6)), rel=1e-10)


@pytest.mark.parametrize("b2", [0.0, 1 / 3, 0.5, 0.6])
def test_with_a_short_memory_radam_is_never_rectified(b2: float) -> None:
    """At β₂ = 1/3 and 0.6, ρ∞ is 2 and 4, where r would divide by zero."""
    assert updates_of(scale_by_torch_radam(b2=b2), [4.0] * 40) == pytest.approx([4.0] * 40, rel=1e-13)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_radam_has_finite_derivatives_in_the_branch_that_it_does_not_take(dtype: torch.dtype, eps: float) -> None:
    def end(gs: Tensor, b2: Tensor) -> Tensor:
        return torch.stack(run(scale_by_torch_radam(0.9, b2, eps), list(gs))[0]).sum()

    gs = torch.tensor([[0.0, 1.0, 0.0]] * 8, dtype=dtype)
    for b2 in (0.6, 0.999):
        slopes = torch.func.grad(end, argnums=(0, 1))(gs, torch.tensor(b2, dtype=D))
        assert all(x.isfinite().all() for x in slopes)


# --- Adagrad


def test_adagrad_by_hand() -> None:
    assert updates_of(scale_by_torch_adagrad(eps=0.0), [3.0, 4.0]) == pytest.approx([1.0, 4 / 5], rel=1e-14)
    assert updates_of(scale_by_torch_adagrad(eps=1.0), [3.0]) == pytest.approx([3 / 4], rel=1e-14)
    late = scale_by_torch_adagrad(0.5, 16.0, eps=0.0)
    assert updates_of(late, [3.0, 0.0, 12.0]) == pytest.approx([3 / 5, 0.0, (12 / 13) / 2], rel=1e-14)


@given(g=NUMBERS.filter(bool), t=st.integers(1, 60), decay=st.floats(0, 2))
def test_under_a_constant_gradient_adagrad_falls_as_one_over_the_root_of_t(g: float, t: int, decay: float) -> None:
    u = updates_of(scale_by_torch_adagrad(decay, eps=0.0), [g] * t)
    exact = [math.copysign(1, g) / i**0.5 / (1 + (i - 1) * decay) for i in range(1, t + 1)]
    assert u == pytest.approx(exact, rel=(t + 6) * U)


# --- guards

RULES: dict[str, Callable[..., GradientTransformation]] = {
    f.__name__: f for f in (scale_by_torch_amsgrad, scale_by_torch_nadam, scale_by_torch_radam, scale_by_torch_adagrad)
}


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D], ids=str)
def test_without_eps_an_entry_that_never_had_a_gradient_has_no_update(
    make: Callable[..., GradientTransformation], dtype: torch.dtype
) -> None:
    gs = [torch.tensor([0.0, 1.0], dtype=dtype)] * 8
    for u in run(make(eps=0.0), gs)[0]:
        assert u.dtype == dtype
        assert u[0] == 0
        assert u[1] != 0


def test_torch_makes_nan_of_a_zero_gradient_in_float16() -> None:
    """The negative control: ε is zero there."""
    p = torch.ones(2, dtype=torch.float16)
    optimizer = torch.optim.NAdam([p])
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert p.isnan().all()


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
def test_arguments_outside_their_range_are_errors(make: Callable[..., GradientTransformation]) -> None:
    wrong = {"eps": -1.0} if make is scale_by_torch_adagrad else {"b1": 1.0, "b2": -0.1, "eps": -1.0}
    others = {
        scale_by_torch_adagrad: ("lr_decay", "initial_accumulator_value"),
        scale_by_torch_nadam: ("momentum_decay",),
    }
    for name, value in (wrong | dict.fromkeys(others.get(make, ()), -1.0)).items():
        with pytest.raises(ValueError, match=name) as error:
            make(**{name: value})
        range_ = "in [0, 1)" if name in ("b1", "b2") else ">= 0 and finite"
        assert str(error.value) == f"{make.__name__}: {name} must be {range_}, got {value}"


def test_states_of_a_tree_are_like_its_leaves() -> None:
    params = {"w": torch.ones(3, 2, dtype=torch.bfloat16), "s": torch.ones((), dtype=D)}
    for make in RULES.values():
        for field, value in make().init(params)._asdict().items():
            if isinstance(value, Tensor):
                assert value.shape == (), field
            else:
                kinds = [(x.dtype, x.shape) for x in tree.leaves(value)]
                assert kinds == [(torch.float32, (3, 2)), (D, ())], field
