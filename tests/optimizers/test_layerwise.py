"""Optimizers that look at a leaf as a whole: what they are made of, and what their docstrings claim."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from functrain import tree
from functrain.base import GradientTransformation, apply_updates
from functrain.combinators.chain import chain
from functrain.combinators.select import masked
from functrain.optimizers.layerwise import adafactor, lamb, lars, novograd
from functrain.testing import strategies
from functrain.transforms.adaptive import scale_by_adam
from functrain.transforms.clip import clip_by_block_rms
from functrain.transforms.decay import add_decayed_weights
from functrain.transforms.factored import scale_by_factored_rms
from functrain.transforms.layerwise import scale_by_novograd, scale_by_param_block_rms, scale_by_trust_ratio
from functrain.transforms.momentum import ema, trace
from functrain.transforms.scale import scale, scale_by_learning_rate
from tests.oracle import assert_bitwise, gradients, run

LR = scale_by_learning_rate(0.1)
HALF = {"layers": True, "head": False}

SPELLED: dict[str, tuple[GradientTransformation, GradientTransformation]] = {
    "lamb": (
        lamb(0.1, 0.8, 0.9, 1e-3, 1e-2, 0.5, HALF),
        chain(scale_by_adam(0.8, 0.9, 1e-3, 1e-2), add_decayed_weights(0.5, HALF), scale_by_trust_ratio(), LR),
    ),
    "lars": (
        lars(0.1, 0.5, HALF, 0.01, 1e-3, {"layers": False, "head": True}, 0.8, True),
        chain(
            add_decayed_weights(0.5, HALF),
            masked(scale_by_trust_ratio(0.0, 0.01, 1e-3), {"layers": False, "head": True}),
            LR,
            trace(0.8, True),
        ),
    ),
    "novograd": (
        novograd(0.1, 0.8, 0.9, 1e-3, 1e-2, 0.5),
        chain(scale_by_novograd(0.8, 0.9, 1e-3, 1e-2, 0.5), LR),
    ),
    "adafactor": (
        adafactor(0.1, 2, 0.7, -3, True, 0.5, 0.9, torch.float64, 0.5, 1e-4, True, HALF),
        chain(
            scale_by_factored_rms(True, 0.7, -3, 2, 1e-4),
            clip_by_block_rms(0.5),
            scale_by_learning_rate(0.1, flip_sign=False),
            scale_by_param_block_rms(),
            ema(0.9, debias=False, accumulator_dtype=torch.float64),
            add_decayed_weights(0.5, HALF),
            scale(-1.0),
        ),
    ),
    "adafactor of nothing": (
        adafactor(None, 128, 0.8, 0, False, None, factored=False),
        chain(scale_by_factored_rms(False), scale(-1.0)),
    ),
}


@pytest.mark.parametrize(("alias", "spelled"), SPELLED.values(), ids=SPELLED)
def test_an_alias_is_the_chain_that_it_names_bit_for_bit(
    alias: GradientTransformation, spelled: GradientTransformation
) -> None:
    a, b = run(alias, gradients(5)), run(spelled, gradients(5))
    assert_bitwise(a.updates, b.updates)
    assert_bitwise(a.params, b.params)


# --- what the docstrings say

INTEGERS = st.integers(-8, 8).map(float)


@st.composite
def trials(draw: st.DrawFn) -> tuple[tree.Tree, tree.Tree]:
    params = draw(strategies.trees(leaf=strategies.tensors(torch.float64, values=INTEGERS)))
    return params, draw(strategies.gradients(params, INTEGERS))


@given(trials(), strategies.learning_rates(), strategies.weight_decays())
def test_every_leaf_of_lamb_moves_by_the_rate_times_its_norm(
    trial: tuple[tree.Tree, tree.Tree], rate: float, decay: float
) -> None:
    params, g = trial
    tx = lamb(rate, weight_decay=decay)
    u, _ = tx.update(g, tx.init(params), params)
    for step, p in zip(tree.leaves(u), tree.leaves(params), strict=True):
        if step.any() and p.any():
            assert step.norm().item() == pytest.approx(rate * p.norm().item(), rel=1e-9)


@given(trials(), strategies.learning_rates(), st.floats(1e-4, 1.0))
def test_the_first_update_of_a_leaf_by_lars_has_its_norm_times_rate_and_coefficient(
    trial: tuple[tree.Tree, tree.Tree], rate: float, c: float
) -> None:
    params, g = trial
    tx = lars(rate, trust_coefficient=c)
    u, _ = tx.update(g, tx.init(params), params)
    for step, p, x in zip(tree.leaves(u), tree.leaves(params), tree.leaves(g), strict=True):
        if p.any():
            assert step.norm().item() == pytest.approx(rate * c * p.norm().item() * bool(x.any()), rel=1e-9)
        else:
            torch.testing.assert_close(step, -rate * x, rtol=1e-12, atol=0)


@given(trials(), st.integers(-20, 20))
def test_novograd_takes_the_same_steps_whatever_the_unit_of_the_loss(
    trial: tuple[tree.Tree, tree.Tree], k: int
) -> None:
    params, g = trial
    tx = novograd(0.1, eps=0.0)
    here, _ = tx.update(g, tx.init(params), params)
    there, _ = tx.update(tree.map(lambda x: x * 2.0**k, g), tx.init(params), params)
    assert_bitwise(here, there)


@given(trials(), strategies.learning_rates(), st.floats(0.1, 2.0))
def test_no_update_of_adafactor_is_larger_than_its_threshold_relative_to_the_leaf(
    trial: tuple[tree.Tree, tree.Tree], rate: float, d: float
) -> None:
    params, g = trial
    tx = adafactor(rate, 1, clipping_threshold=d)
    state = tx.init(params)
    for _ in range(2):
        u, state = tx.update(g, state, params)
        for step, p in zip(tree.leaves(u), tree.leaves(params), strict=True):
            if p.numel():
                bound = rate * d * max(p.square().mean().sqrt().item(), 1e-3)
                assert step.square().mean().sqrt().item() <= bound * (1 + 1e-12)


def test_the_decay_of_adafactor_is_not_multiplied_by_the_rate() -> None:
    params = {"w": torch.full((3,), 2.0, dtype=torch.float64)}
    tx = adafactor(0.1, weight_decay_rate=0.25)
    u, _ = tx.update(tree.zeros_like(params), tx.init(params), params)
    assert apply_updates(params, u)["w"].tolist() == [1.5] * 3
