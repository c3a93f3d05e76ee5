"""Rules that measure the size of gradients in other ways than Adam: by hand, and what their docstrings claim."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from functrain import tree
from functrain.base import GradientTransformation
from functrain.testing import strategies
from functrain.transforms.beliefs import scale_by_amsgrad, scale_by_belief, scale_by_radam, scale_by_yogi

MEMORIES = st.floats(0.1, 0.99)
GRADIENTS = st.lists(st.floats(-8, 8), min_size=1, max_size=8)


def run(tx: GradientTransformation, gs: list[float]) -> tuple[list[float], list[tree.Tree]]:
    """The updates of one number, and the states after them."""
    state, updates, states = tx.init(torch.zeros(1, dtype=torch.float64)), [], []
    for g in gs:
        u, state = tx.update(torch.tensor([g], dtype=torch.float64), state)
        updates.append(u.item())
        states.append(state)
    return updates, states


def updates_of(tx: GradientTransformation, gs: list[float]) -> list[float]:
    return run(tx, gs)[0]


# --- belief


def test_belief_by_hand() -> None:
    """β = 1/2, gradients 2 and 2: μ = 1, 3/2; ν = 1/2, 1/4 + 1/8; corrected by 1/2, 3/4."""
    u = updates_of(scale_by_belief(0.5, 0.5, eps=0.0, eps_root=0.0), [2.0, 2.0])
    assert u == pytest.approx([2.0, 2.0 / 0.5**0.5], rel=1e-14)
    assert updates_of(scale_by_belief(0.5, 0.5, eps=1.0, eps_root=0.0), [2.0]) == pytest.approx([1.0], rel=1e-14)


def test_eps_root_of_belief_is_added_at_each_update_and_stays() -> None:
    _, states = run(scale_by_belief(0.0, 0.5, eps_root=4.0), [1.0, 1.0, 1.0])
    assert [tree.get(state, "nu").item() for state in states] == [4.0, 6.0, 7.0]


def test_nesterov_belief_by_hand() -> None:
    """At t = 1: (1/2) 1 / (3/4) + (1/2) 2 / (1/2), over √1."""
    u = updates_of(scale_by_belief(0.5, 0.5, eps=0.0, eps_root=0.0, nesterov=True), [2.0])
    assert u == pytest.approx([8 / 3], rel=1e-14)


@given(MEMORIES, MEMORIES)
def test_under_a_constant_gradient_each_update_of_belief_is_longer_than_the_one_before(b1: float, b2: float) -> None:
    u = updates_of(scale_by_belief(b1, b2, eps=0.0, eps_root=0.0), [1.0] * 6)
    assert all(later > earlier for earlier, later in itertools.pairwise(u))


# --- yogi


def test_yogi_by_hand() -> None:
    """β = 1/2, from 0, gradients 2 and 1: ν = 2, then 2 - 1/2; μ = 1, then 1."""
    u = updates_of(scale_by_yogi(0.5, 0.5, eps=0.0, initial_accumulator_value=0.0), [2.0, 1.0])
    assert u == pytest.approx([2 / 4**0.5, (4 / 3) / (1.5 * 4 / 3) ** 0.5], rel=1e-14)
    u = updates_of(scale_by_yogi(0.5, 0.5, eps=1.0, eps_root=5.0, initial_accumulator_value=0.0), [2.0])
    assert u == pytest.approx([2 / (9**0.5 + 1)], rel=1e-14)


def test_both_moments_of_yogi_begin_at_the_initial_value() -> None:
    state = scale_by_yogi(initial_accumulator_value=0.25).init(torch.zeros(2))
    assert (state.mu.tolist(), state.nu.tolist()) == ([0.25] * 2, [0.25] * 2)


@given(GRADIENTS, strategies.decays())
def test_an_update_changes_the_mean_square_of_yogi_by_one_minus_b2_of_the_square_at_most(
    gs: list[float], b2: float
) -> None:
    tx = scale_by_yogi(b2=b2)
    nu = [1e-6, *(tree.get(state, "nu").item() for state in run(tx, gs)[1])]
    for g, old, new in zip(gs, nu, nu[1:], strict=False):
        assert abs(new - old) <= (1 - b2) * g * g * (1 + 1e-12) + 1e-15 * old
        assert new >= 0


# --- amsgrad


def test_amsgrad_by_hand() -> None:
    """β = 1/2, gradients 2 and 0: ν̂ = 4, then 4/3; divided by √4 both times."""
    assert updates_of(scale_by_amsgrad(0.5, 0.5, eps=0.0), [2.0, 0.0]) == pytest.approx([1.0, 1 / 3], rel=1e-14)
    u = updates_of(scale_by_amsgrad(0.5, 0.5, 1.0, 2.0, None, False, False), [2.0])
    assert u == pytest.approx([1 / (4**0.5 + 1)], rel=1e-14)


@given(GRADIENTS, strategies.decays())
def test_what_amsgrad_divides_by_never_falls(gs: list[float], b2: float) -> None:
    tops = [tree.get(state, "nu_max").item() for state in run(scale_by_amsgrad(b2=b2), gs)[1]]
    assert tops == sorted(tops)


def test_the_mean_of_amsgrad_is_kept_in_the_dtype_that_was_asked_for() -> None:
    tx, g = scale_by_amsgrad(mu_dtype=torch.bfloat16), torch.ones(3)
    u, state = tx.update(g, tx.init(g))
    assert (u.dtype, state.mu.dtype, state.nu.dtype) == (torch.float32, torch.bfloat16, torch.float32)


# --- radam


@given(st.lists(st.floats(-8, 8), min_size=5, max_size=8), st.floats(0.1, 0.95))
def test_the_first_five_updates_of_radam_are_the_corrected_mean(gs: list[float], b1: float) -> None:
    u, states = run(scale_by_radam(b1), gs)
    for t, state in enumerate(states[:5], 1):
        mean = tree.get(state, "mu").item() / (1 - b1**t)
        assert u[t - 1] == pytest.approx(mean, rel=1e-12)


def test_the_rectification_of_radam_by_hand() -> None:
    """β₁ = 0, β₂ = 0.9, under ones: u = r, with ρ∞ = 19."""
    u = updates_of(scale_by_radam(0.0, 0.9, eps=0.0), [1.0] * 9)
    for t in range(1, 10):
        rho = 19 - 2 * t * 0.9**t / (1 - 0.9**t)
        r = ((rho - 4) * (rho - 2) * 19 / (15 * 17 * rho)) ** 0.5 if rho >= 5 else 1.0
        assert u[t - 1] == pytest.approx(r, rel=1e-12)


def test_the_derivative_of_radam_is_finite_before_there_are_enough_terms() -> None:
    tx = scale_by_radam(b2=0.6)  # ρ∞ = 4, where r has no value
    slope = torch.func.grad(lambda g: tx.update(g, tx.init(g))[0].sum())(torch.tensor([0.0, 1.0]))
    assert slope.tolist() == pytest.approx([1.0, 1.0])


# --- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_by_belief(b1=1.0), "scale_by_belief: b1 must be in [0, 1), got 1.0"),
        (lambda: scale_by_belief(eps_root=-1.0), "scale_by_belief: eps_root must be >= 0 and finite, got -1.0"),
        (lambda: scale_by_yogi(b2=1.0), "scale_by_yogi: b2 must be in [0, 1), got 1.0"),
        (
            lambda: scale_by_yogi(initial_accumulator_value=-1.0),
            "scale_by_yogi: initial_accumulator_value must be >= 0 and finite, got -1.0",
        ),
        (lambda: scale_by_amsgrad(b1=-1.0), "scale_by_amsgrad: b1 must be in [0, 1), got -1.0"),
        (lambda: scale_by_radam(threshold=-1.0), "scale_by_radam: threshold must be >= 0 and finite, got -1.0"),
    ],
)
def test_a_value_outside_its_range_is_an_error(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        call()
    assert str(error.value) == message
