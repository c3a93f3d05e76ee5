"""Rules that remember more than two moments: by hand, and what their docstrings claim."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from functrain import tree
from functrain.base import GradientTransformation
from functrain.testing import strategies
from functrain.transforms.adaptive import scale_by_adam
from functrain.transforms.histories import scale_by_adadelta, scale_by_adamax, scale_by_adan, scale_by_rss

GRADIENTS = st.lists(st.floats(-8, 8), min_size=1, max_size=8)
SIZES = st.floats(1e-3, 1e3)


def updates_of(tx: GradientTransformation, gs: list[float]) -> list[float]:
    state, seen = tx.init(torch.zeros(1, dtype=torch.float64)), []
    for g in gs:
        u, state = tx.update(torch.tensor([g], dtype=torch.float64), state)
        seen.append(u.item())
    return seen


# --- adamax


def test_adamax_by_hand() -> None:
    """β = 1/2, gradients 2 and 1/2: ν = 2, then 1; with ε = 1: 3."""
    assert updates_of(scale_by_adamax(0.5, 0.5, 0.0), [2.0, 0.5]) == pytest.approx([1.0, (0.75 / 0.75) / 1], rel=1e-14)
    assert updates_of(scale_by_adamax(0.5, 0.5, 1.0), [2.0]) == pytest.approx([2 / 3], rel=1e-14)


@given(GRADIENTS, strategies.decays())
def test_without_a_mean_no_update_of_adamax_is_beyond_one(gs: list[float], b2: float) -> None:
    assert all(abs(u) <= 1 for u in updates_of(scale_by_adamax(0.0, b2, 0.0), gs))


# --- the sum of squares


def test_the_sum_of_squares_by_hand() -> None:
    """s = 5 + 4, then 9 + 7²... with ε = 7 under the root: √16."""
    assert updates_of(scale_by_rss(5.0, 7.0), [2.0]) == pytest.approx([0.5], rel=1e-14)
    assert updates_of(scale_by_rss(0.0, 0.0), [3.0, 4.0]) == pytest.approx([1.0, 0.8], rel=1e-14)


@given(SIZES)
def test_under_a_constant_gradient_the_update_over_the_sum_falls_as_one_over_root_t(g: float) -> None:
    u = updates_of(scale_by_rss(0.0, 0.0), [g] * 9)
    assert u == pytest.approx([t**-0.5 for t in range(1, 10)], rel=1e-12)


def test_what_never_had_a_gradient_does_not_move() -> None:
    assert updates_of(scale_by_rss(0.0, 0.0), [0.0, 0.0]) == [0.0, 0.0]


# --- adadelta


def test_adadelta_by_hand() -> None:
    """ρ = 1/2, ε = 2: G = 2, u = √2 · 2 / √4; then X = 1, G = 1, u = √3 · 0 / √3."""
    tx = scale_by_adadelta(0.5, 2.0)
    state = tx.init(torch.zeros(1))
    u, state = tx.update(torch.full((1,), 2.0), state)
    assert u.item() == pytest.approx(2**0.5)
    assert (state.e_g.item(), state.e_x.item()) == pytest.approx((2.0, 1.0))
    u, state = tx.update(torch.full((1,), 4.0), state)
    assert u.item() == pytest.approx(3**0.5 * 4 / 11**0.5)


@given(SIZES, st.floats(0.0, 0.99))
def test_the_first_update_of_adadelta_does_not_depend_on_the_scale_of_the_gradient(g: float, rho: float) -> None:
    up, down = (updates_of(scale_by_adadelta(rho, 1e-12), [x])[0] for x in (g, -g))
    assert up == -down
    assert up == pytest.approx((1e-12 / (1 - rho)) ** 0.5, rel=1e-3)


# --- adan


def test_adan_by_hand() -> None:
    """β = 1/2, gradients 2 and 4: d = 0, then 2; m = 1, 5/2; v = 0, 1; n = 2, 1 + 25/2, corrected by 1/2, 3/4."""
    u = updates_of(scale_by_adan(0.5, 0.5, 0.5, eps=0.0), [2.0, 4.0])
    second = (2.5 / 0.75 + 0.5 * 1 / 0.75) / (13.5 / 0.75) ** 0.5
    assert u == pytest.approx([1.0, second], rel=1e-14)
    assert updates_of(scale_by_adan(0.5, 0.5, 0.5, 1.0, 5.0), [2.0]) == pytest.approx([2 / 4], rel=1e-14)


@given(st.floats(-8, 8), strategies.decays(), strategies.decays(), strategies.decays())
def test_under_a_constant_gradient_adan_is_adam(g: float, b1: float, b2: float, b3: float) -> None:
    adan, adam = updates_of(scale_by_adan(b1, b2, b3), [g] * 4), updates_of(scale_by_adam(b1, b3), [g] * 4)
    assert adan == pytest.approx(adam, rel=1e-12)


def test_the_first_change_is_zero_whatever_the_state_says() -> None:
    tx, g = scale_by_adan(), torch.ones(2)
    state = tx.init(g)
    _, new = tx.update(g, state._replace(g=torch.full((2,), torch.inf)))
    assert new.v.tolist() == [0.0, 0.0]
    assert tree.get(new, "g").tolist() == [1.0, 1.0]


# --- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_by_adamax(b1=1.0), "scale_by_adamax: b1 must be in [0, 1), got 1.0"),
        (lambda: scale_by_rss(-1.0), "scale_by_rss: initial_accumulator_value must be >= 0 and finite, got -1.0"),
        (lambda: scale_by_adadelta(eps=0.0), "scale_by_adadelta: eps must be > 0 and finite, got 0.0"),
        (lambda: scale_by_adadelta(1.0), "scale_by_adadelta: rho must be in [0, 1), got 1.0"),
        (lambda: scale_by_adan(b3=1.0), "scale_by_adan: b3 must be in [0, 1), got 1.0"),
    ],
)
def test_a_value_outside_its_range_is_an_error(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        call()
    assert str(error.value) == message
