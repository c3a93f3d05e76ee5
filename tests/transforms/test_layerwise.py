"""Rules that look at a leaf as a whole: norms by hand, zeros, half precision, derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from functrain import tree
from functrain.base import GradientTransformation
from functrain.testing import strategies
from functrain.transforms.layerwise import scale_by_novograd, scale_by_param_block_rms, scale_by_trust_ratio
from tests.oracle import assert_bitwise

INTEGERS = st.integers(-8, 8).map(float)  # squares, and their sums, are exact


def whole_numbers() -> st.SearchStrategy[tree.Tree]:
    return strategies.trees(leaf=strategies.tensors(torch.float64, values=INTEGERS))


@st.composite
def params_and_history(draw: st.DrawFn) -> tuple[tree.Tree, list[tree.Tree]]:
    params = draw(whole_numbers())
    return params, draw(strategies.histories(params, values=INTEGERS))


def update(tx: GradientTransformation, g: Any, params: Any) -> Any:
    return tx.update(g, tx.init(params), params)[0]


# --- the trust ratio


def test_the_trust_ratio_by_hand() -> None:
    """‖p‖ = 10, ‖g‖ = 5: with c = 1/2 and ε = 5 that is g · 10 / 2 / 10."""
    p, g = torch.tensor([6.0, 8.0]), torch.tensor([3.0, -4.0])
    assert update(scale_by_trust_ratio(), g, p).tolist() == pytest.approx([6.0, -8.0])
    assert update(scale_by_trust_ratio(trust_coefficient=0.5, eps=5.0), g, p).tolist() == pytest.approx([1.5, -2.0])
    assert update(scale_by_trust_ratio(min_norm=20.0), g, p).tolist() == pytest.approx([3.0, -4.0])
    assert update(scale_by_trust_ratio(min_norm=8.0), g, p).tolist() == pytest.approx([3.75, -5.0])


@given(params_and_history(), st.floats(1e-3, 2.0))
def test_the_update_of_every_leaf_has_the_norm_of_the_leaf_times_the_coefficient(
    drawn: tuple[tree.Tree, list[tree.Tree]], c: float
) -> None:
    params, (g, *_) = drawn
    u = update(scale_by_trust_ratio(trust_coefficient=c), g, params)
    for got, old, p in zip(tree.leaves(u), tree.leaves(g), tree.leaves(params), strict=True):
        if not p.any() or not old.any():
            assert torch.equal(got, old)
        else:
            assert got.norm().item() == pytest.approx(c * p.norm().item(), rel=1e-12)
            torch.testing.assert_close(got / got.norm(), old / old.norm(), rtol=1e-12, atol=0)


def test_norms_of_half_precision_leaves_do_not_overflow() -> None:
    p, g = torch.full((4,), 3e4, dtype=torch.float16), torch.full((4,), 2e4, dtype=torch.float16)
    assert update(scale_by_trust_ratio(), g, p).tolist() == p.tolist()
    assert update(scale_by_param_block_rms(), torch.ones_like(g), p).tolist() == p.tolist()
    u = update(scale_by_novograd(), g, torch.zeros_like(g))
    assert u.tolist() == [0.5] * 4


def test_a_ratio_beyond_the_dtype_is_no_infinity() -> None:
    p, g = torch.full((1,), 1e15), torch.full((1,), 1e-18)
    torch.testing.assert_close(update(scale_by_trust_ratio(trust_coefficient=1e10), g, p), torch.full((1,), 1e25))


@pytest.mark.parametrize("where", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)], ids=str)
def test_derivatives_of_the_trust_ratio_are_finite_at_zero(where: tuple[float, float]) -> None:
    def total(g: Tensor, p: Tensor) -> Tensor:
        return update(scale_by_trust_ratio(), g, p).sum()

    at = [torch.full((3,), x, dtype=torch.float64) for x in where]
    assert all(d.isfinite().all() for d in torch.func.grad(total, argnums=(0, 1))(*at))


# --- the root mean square of parameters


def test_the_block_rms_by_hand() -> None:
    """rms(3, 4) = 5 / √2; smaller than s = 10."""
    p, g = torch.tensor([3.0, 4.0]), torch.tensor([1.0, -2.0])
    assert update(scale_by_param_block_rms(), g, p).tolist() == pytest.approx([5 / 2**0.5, -10 / 2**0.5])
    assert update(scale_by_param_block_rms(10.0), g, p).tolist() == [10.0, -20.0]
    assert update(scale_by_param_block_rms(), g, 0 * p).tolist() == pytest.approx([1e-3, -2e-3])


@given(params_and_history(), st.integers(-20, 20))
def test_parameters_in_another_unit_have_updates_in_that_unit(drawn: tuple[tree.Tree, list[tree.Tree]], k: int) -> None:
    params, (g, *_) = drawn
    tx = scale_by_param_block_rms(0.0)
    here, there = update(tx, g, params), update(tx, g, tree.map(lambda p: p * 2.0**k, params))
    assert_bitwise(there, tree.map(lambda u: u * 2.0**k, here))


# --- novograd


def test_novograd_by_hand() -> None:
    """‖g‖ = 5, then 10: ν = 25, then 25 / 2 + 100 / 2; λ p = (1, 0)."""
    p, g = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.tensor([3.0, 4.0], dtype=torch.float64)
    tx = scale_by_novograd(0.5, 0.5, eps=0.0, weight_decay=0.5)
    u, state = tx.update(g, tx.init(p), p)
    assert u.tolist() == pytest.approx([0.6 + 1.0, 0.8], rel=1e-14)
    assert state.nu.item() == 25.0
    u, state = tx.update(2 * g, state, p)
    assert u.tolist() == pytest.approx([0.8 + 6 / 62.5**0.5 + 1.0, 0.4 + 8 / 62.5**0.5], rel=1e-14)


def test_eps_of_novograd_is_beside_the_root_and_eps_root_under_it() -> None:
    g = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert update(scale_by_novograd(eps=5.0), g, g).tolist() == pytest.approx([0.3, 0.4], rel=1e-14)
    assert update(scale_by_novograd(eps=0.0, eps_root=75.0), g, g).tolist() == pytest.approx([0.3, 0.4], rel=1e-14)


@given(params_and_history(), st.integers(-20, 20))
def test_novograd_does_not_see_a_factor_that_all_gradients_of_a_leaf_have(
    drawn: tuple[tree.Tree, list[tree.Tree]], k: int
) -> None:
    params, history = drawn
    tx = scale_by_novograd(eps=0.0, weight_decay=0.1)
    here, there = tx.init(params), tx.init(params)
    for g in history:
        u, here = tx.update(g, here, params)
        v, there = tx.update(tree.map(lambda x: x * 2.0**k, g), there, params)
        assert_bitwise(v, u)


def test_the_mean_square_of_novograd_is_one_number_a_leaf() -> None:
    state = scale_by_novograd(mu_dtype=torch.bfloat16).init({"w": torch.ones(3, 2), "b": torch.ones(())})
    assert {name: n.shape for name, n in state.nu.items()} == {"w": (), "b": ()}
    assert {m.dtype for m in state.mu.values()} == {torch.bfloat16}


# --- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_by_trust_ratio(-1.0), "scale_by_trust_ratio: min_norm must be >= 0 and finite, got -1.0"),
        (
            lambda: scale_by_trust_ratio(trust_coefficient=-1.0),
            "scale_by_trust_ratio: trust_coefficient must be >= 0 and finite, got -1.0",
        ),
        (lambda: scale_by_trust_ratio(eps=-1.0), "scale_by_trust_ratio: eps must be >= 0 and finite, got -1.0"),
        (
            lambda: scale_by_param_block_rms(-1.0),
            "scale_by_param_block_rms: min_scale must be >= 0 and finite, got -1.0",
        ),
        (lambda: scale_by_novograd(b2=1.0), "scale_by_novograd: b2 must be in [0, 1), got 1.0"),
        (
            lambda: scale_by_novograd(weight_decay=-1.0),
            "scale_by_novograd: weight_decay must be >= 0 and finite, got -1.0",
        ),
    ],
)
def test_a_value_outside_its_range_is_an_error(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        call()
    assert str(error.value) == message
