"""Weight decay that is decoupled: a contraction that knows the rate and nothing of the gradients.

Bounds on errors are counted: u is half an eps, the error of one rounding. An update computes p + -η (0 + λ p), where at
most five roundings meet the decay and one the sum, so without gradients an entry errs by at most u (1 + 5 x / (1 - x))
an update, relatively, where x = η λ.
"""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mpmath import mpf
from torch import Tensor

import functrain as ft
from functrain import tree
from functrain.testing import strategies
from functrain.testing.strategies import decays, learning_rates, weight_decays

D = torch.float64
every_float = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)

# Far enough from the edges of a float that a few contractions do not reach them.
SIZES = st.floats(2.0**-10, 2.0**10)
ENTRIES = st.just(0.0) | st.builds(math.copysign, SIZES, st.sampled_from((1, -1)))
RATES = st.lists(learning_rates(), min_size=1, max_size=6)
SOME_DECAYS = weight_decays().filter(lambda w: w > 1e-3)


Tree = Any  # of tensors


def parameters(dtype: torch.dtype) -> st.SearchStrategy[Tree]:
    return strategies.trees(leaf=strategies.tensors(dtype, values=ENTRIES), max_leaves=4)


def listed(values: list[float]) -> Any:
    """The schedule that goes through these values."""
    return lambda count: torch.tensor(values, dtype=D)[count]


def train(tx: ft.GradientTransformation, params: Tree, gs: list[Tree]) -> Tree:
    state = tx.init(params)
    for g in gs:
        updates, state = tx.update(g, state, params)
        params = ft.apply_updates(params, updates)
    return params


def without_gradients(tx: ft.GradientTransformation, params: Tree, updates: int) -> Tree:
    return train(tx, params, [tree.zeros_like(params)] * updates)


def same_bits(a: Tree, b: Tree) -> bool:
    pairs = list(zip(tree.leaves(a), tree.leaves(b), strict=True))
    return all(torch.equal(x, y) and torch.equal(x.signbit(), y.signbit()) for x, y in pairs)


def slack(dtype: torch.dtype, rates: list[float], decay: float) -> float:
    """How far an entry may be from its exact contraction, relatively."""
    u = torch.finfo(dtype).eps / 2
    return 1.01 * sum(u * (1 + 5 * rate * decay / (1 - rate * decay)) for rate in rates)


# --- without gradients


@every_float
@given(data=st.data(), rates=RATES, decay=weight_decays(), b1=decays(), b2=decays(), nesterov=st.booleans())
def test_without_gradients_adamw_contracts_by_the_product_of_one_minus_rate_times_decay(
    dtype: torch.dtype, data: st.DataObject, rates: list[float], decay: float, b1: float, b2: float, nesterov: bool
) -> None:
    params = data.draw(parameters(dtype))
    tx = ft.adamw(listed(rates), b1, b2, weight_decay=decay, nesterov=nesterov)
    after = without_gradients(tx, params, len(rates))
    bound = slack(dtype, rates, decay) + torch.finfo(D).eps  # the factor below is rounded, and its product with p
    assume(bound < 1)  # in half precision a contraction to almost nothing is all rounding
    with mpmath.workdps(50):
        factor = float(mpmath.fprod(1 - mpf(rate) * mpf(decay) for rate in rates))
    for p, q in zip(tree.leaves(params), tree.leaves(after), strict=True):
        assert ((q.double() - factor * p.double()).abs() <= bound * factor * p.double().abs()).all()


@given(p=ENTRIES, rates=RATES, decay=weight_decays())
def test_each_contraction_is_p_minus_rate_times_decay_times_p_as_float64_rounds_it(
    p: float, rates: list[float], decay: float
) -> None:
    """Bit for bit in this order: what is subtracted is η (λ p), not (η λ) p, and p is not multiplied by 1 - η λ."""
    after = without_gradients(ft.adamw(listed(rates), weight_decay=decay), torch.tensor([p], dtype=D), len(rates))
    for rate in rates:
        p = p - rate * (decay * p)
    assert after.item() == p


@given(p=SIZES, rates=RATES, data=st.data())
def test_a_scheduled_decay_contracts_by_the_product_too(p: float, rates: list[float], data: st.DataObject) -> None:
    falling = [data.draw(weight_decays()) for _ in rates]
    tx = ft.adamw(listed(rates), weight_decay=listed(falling))
    after = without_gradients(tx, torch.tensor([p], dtype=D), len(rates))
    for rate, decay in zip(rates, falling, strict=True):
        p = p - rate * (decay * p)
    assert after.item() == p


@every_float
@given(data=st.data(), rates=RATES, decay=weight_decays(), power=st.integers(-20, 20))
def test_decay_commutes_with_scaling_the_parameters(
    dtype: torch.dtype, data: st.DataObject, rates: list[float], decay: float, power: int
) -> None:
    params = data.draw(parameters(dtype))
    tx = ft.adamw(listed(rates), weight_decay=decay)
    scaled = tree.map(lambda p: p * 2.0**power, params)
    after, after_scaled = (without_gradients(tx, p, len(rates)) for p in (params, scaled))
    assert same_bits(after_scaled, tree.map(lambda p: p * 2.0**power, after))


@given(p=SIZES, scale=st.floats(1e-3, 1e3), rates=RATES, decay=weight_decays())
def test_decay_commutes_with_any_scale_but_for_rounding(
    p: float, scale: float, rates: list[float], decay: float
) -> None:
    tx = ft.adamw(listed(rates), weight_decay=decay)
    one, other = (without_gradients(tx, torch.tensor([x], dtype=D), len(rates)).item() for x in (p, scale * p))
    bound = 2 * slack(D, rates, decay) + 3 * torch.finfo(D).eps
    assert abs(other - scale * one) <= bound * abs(scale * one)


@every_float
@given(data=st.data(), rates=RATES, decay=weight_decays())
def test_decay_never_changes_a_sign_while_rate_times_decay_is_below_one(
    dtype: torch.dtype, data: st.DataObject, rates: list[float], decay: float
) -> None:
    params = data.draw(parameters(dtype))
    after = without_gradients(ft.adamw(listed(rates), weight_decay=decay), params, len(rates))
    for p, q in zip(tree.leaves(params), tree.leaves(after), strict=True):
        assert torch.equal(p.sign(), q.sign())
        assert (q.abs() <= p.abs()).all()


def test_decay_changes_signs_where_rate_times_decay_is_above_one() -> None:
    """The negative control."""
    after = without_gradients(ft.adamw(1.0, weight_decay=1.5), torch.ones(1), 1)
    assert after.item() == -0.5


# --- with gradients


@every_float
@given(data=st.data(), rates=RATES, b1=decays(), b2=decays(), nesterov=st.booleans())
def test_adamw_without_decay_is_adam_bit_for_bit(
    dtype: torch.dtype, data: st.DataObject, rates: list[float], b1: float, b2: float, nesterov: bool
) -> None:
    params = data.draw(parameters(dtype))
    gs = [data.draw(strategies.gradients(params, ENTRIES)) for _ in rates]
    adam = ft.adam(listed(rates), b1, b2, nesterov=nesterov)
    adamw = ft.adamw(listed(rates), b1, b2, weight_decay=0.0, nesterov=nesterov)
    assert same_bits(train(adamw, params, gs), train(adam, params, gs))


@every_float
@given(data=st.data(), rates=RATES, decay=SOME_DECAYS)
def test_masked_entries_are_untouched_by_decay_bit_for_bit_and_the_others_decay(
    dtype: torch.dtype, data: st.DataObject, rates: list[float], decay: float
) -> None:
    params = data.draw(parameters(dtype))
    gs = [data.draw(strategies.gradients(params, ENTRIES)) for _ in rates]
    mask = tree.map(lambda p: data.draw(st.booleans()), params)
    adam, masked, everywhere = (
        train(tx, params, gs)
        for tx in (
            ft.adam(listed(rates)),
            ft.adamw(listed(rates), weight_decay=decay, mask=mask),
            ft.adamw(listed(rates), weight_decay=decay),
        )
    )
    for chosen, a, m, e in zip(*map(tree.leaves, (mask, adam, masked, everywhere)), strict=True):
        assert same_bits(m, e if chosen else a)


def last_update(tx: ft.GradientTransformation, gs: list[Tensor], p: Tensor) -> Tensor:
    """After these gradients, all at the parameter p."""
    state, updates = tx.init(p), p
    for g in gs:
        updates, state = tx.update(g, state, p)
    return updates


@given(data=st.data(), rate=learning_rates(), decay=SOME_DECAYS, b1=decays(), b2=decays())
def test_decoupled_decay_does_not_depend_on_the_gradients_history(
    data: st.DataObject, rate: float, decay: float, b1: float, b2: float
) -> None:
    p = data.draw(strategies.tensors(D, values=ENTRIES))
    gs = data.draw(strategies.histories(p, values=ENTRIES))
    plain = last_update(ft.adam(rate, b1, b2), gs, p)
    decayed = last_update(ft.adamw(rate, b1, b2, weight_decay=decay), gs, p)
    exact = -rate * decay * p
    assert (((decayed - plain) - exact).abs() <= 4 * torch.finfo(D).eps * (plain.abs() + exact.abs())).all()


@given(p=SIZES, rate=learning_rates(), decay=SOME_DECAYS)
def test_l2_regularization_in_adam_depends_on_the_gradients_history(p: float, rate: float, decay: float) -> None:
    """The negative control: where gradients were large, the same parameter is drawn less."""
    l2, adam = ft.chain(ft.add_decayed_weights(decay), ft.adam(rate)), ft.adam(rate)
    at = torch.tensor([p], dtype=D)
    after_small, after_large = ([torch.tensor([g], dtype=D), torch.zeros(1, dtype=D)] for g in (decay * p, 1e3 * p))
    small, large = (last_update(l2, gs, at) - last_update(adam, gs, at) for gs in (after_small, after_large))
    assert small.abs() > 2 * large.abs()
