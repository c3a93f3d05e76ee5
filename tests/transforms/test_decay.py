"""Decay: what is drawn to zero, and what is not touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from functrain import schedules, tree
from functrain.base import apply_updates
from functrain.transforms.decay import AddDecayedWeightsState, add_decayed_weights, shrink_weights

P = {"w": torch.full((2, 2), 2.0), "b": [torch.full((2,), 4.0), torch.tensor(8.0)]}
G = {"w": torch.ones(2, 2), "b": [torch.ones(2), torch.tensor(1.0)]}


def decayed(weight_decay: Any, mask: Any = None, g: Any = G) -> Any:
    tx = add_decayed_weights(weight_decay, mask)
    return tx.update(g, tx.init(P), P)[0]


def test_a_fraction_of_the_parameters_is_added_by_hand() -> None:
    u = decayed(0.5)
    assert [x.flatten().tolist() for x in tree.leaves(u)] == [[2.0] * 4, [3.0] * 2, [5.0]]


def test_a_schedule_decides_by_the_count_and_the_state_shows_it() -> None:
    tx = add_decayed_weights(schedules.linear_schedule(1.0, 0.0, 2))
    state, seen = tx.init(P), []
    for _ in range(3):
        u, state = tx.update(G, state, P)
        seen.append((u["b"][1].item(), state.weight_decay.item()))
    assert seen == [(9.0, 1.0), (5.0, 0.5), (1.0, 0.0)]
    assert isinstance(state, AddDecayedWeightsState)
    assert state.count == 3


@pytest.mark.parametrize(
    "mask",
    [
        {"w": True, "b": [False, False]},
        {"w": True, "b": False},
        lambda params: {"w": True, "b": False},
        lambda params: tree.map(lambda p: p.ndim == 2, params),
    ],
    ids=["tree", "prefix", "function of a prefix", "function"],
)
def test_a_masked_leaf_is_the_same_tensor(mask: Any) -> None:
    u = decayed(0.5, mask)
    assert u["w"].flatten().tolist() == [2.0] * 4
    assert u["b"][0] is G["b"][0]
    assert u["b"][1] is G["b"][1]


def test_a_mask_of_one_bool_is_all_or_nothing() -> None:
    assert decayed(0.5, False)["w"] is G["w"]
    assert torch.equal(decayed(0.5, True)["w"], decayed(0.5)["w"])


def test_a_mask_function_sees_all_parameters_though_a_gradient_is_missing() -> None:
    seen = []

    def mask(params: Any) -> Any:
        seen.append(tree.paths(params))
        return {"w": params["b"][1].ndim == 0, "b": False}

    u = decayed(0.5, mask, {"w": G["w"], "b": [(), G["b"][1]]})
    assert u["w"].flatten().tolist() == [2.0] * 4
    assert u["b"] == [(), G["b"][1]]
    assert set(map(tuple, seen)) == {("w", "b.0", "b.1")}


def test_no_decay_returns_the_updates_as_they_are() -> None:
    assert decayed(0.0) is G


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_update_has_the_dtype_of_the_gradient(dtype: torch.dtype) -> None:
    assert {x.dtype for x in tree.leaves(decayed(0.5, g=tree.cast(G, dtype)))} == {dtype}


# --- behind the learning rate


def without_gradients(tx: Any, p: Tensor, updates: int) -> Tensor:
    for _ in range(updates):
        p = apply_updates(p, tx.update(torch.zeros_like(p), tx.init(p), p)[0])
    return p


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rate", [1e-5, 0.03])
def test_without_gradients_weights_shrink_as_torchs_adamw_shrinks_them_bit_for_bit(
    rate: float, dtype: torch.dtype
) -> None:
    p = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    theirs = p.clone().requires_grad_()
    theirs.grad = torch.zeros_like(p)
    optimizer = torch.optim.AdamW([theirs], lr=rate, weight_decay=1.0)
    for _ in range(20):
        optimizer.step()
    assert torch.equal(without_gradients(shrink_weights(rate), p, 20), theirs)


def test_in_float32_a_small_rate_has_two_digits_by_hand() -> None:
    """1 - r is rounded to a multiple of 2⁻²⁴, and r = 10⁻⁵ is 167.8 of those."""
    shrunk, _ = shrink_weights(1e-5).update(torch.zeros(()), (), torch.ones(()))
    added, _ = add_decayed_weights(1e-5).update(torch.zeros(()), (), torch.ones(()))
    assert shrunk.item() == -168 * 2.0**-24
    assert added.item() == torch.tensor(1e-5).item()


@pytest.mark.parametrize("g", [0.0, 1.0, -300.0])
def test_shrinking_is_the_same_whatever_the_gradient(g: float) -> None:
    p = torch.tensor([2.0, -4.0], dtype=torch.float64)
    u, _ = shrink_weights(0.25).update(torch.full_like(p, g), (), p)
    assert u.tolist() == [g - 0.5, g + 1.0]


def test_shrinking_by_nothing_returns_the_updates_as_they_are() -> None:
    tx = shrink_weights(0.0)
    assert tx.update(G, tx.init(P), P)[0] is G


def test_a_rate_that_is_a_tensor_shrinks_as_the_number_does() -> None:
    u, _ = shrink_weights(torch.tensor(0.5)).update(G, (), P)
    assert [x.flatten().tolist() for x in tree.leaves(u)] == [[0.0] * 4, [-1.0] * 2, [-3.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_shrinking_half_precision_is_rounded_once_from_float32(dtype: torch.dtype) -> None:
    p = torch.tensor([1.0, 3.0], dtype=dtype)
    u, _ = shrink_weights(1e-3).update(torch.zeros_like(p), (), p)
    assert u.dtype == dtype
    assert torch.equal(u, (p.float() * (1 - 1e-3) - p.float()).to(dtype))


# --- errors


def test_a_negative_shrinking_is_an_error() -> None:
    with pytest.raises(ValueError, match="rate") as error:
        shrink_weights(-0.1)
    assert str(error.value) == "shrink_weights: rate must be >= 0 and finite, got -0.1"


def test_a_negative_decay_is_an_error() -> None:
    with pytest.raises(ValueError, match="decay") as error:
        add_decayed_weights(-0.1)
    assert str(error.value) == "add_decayed_weights: weight_decay must be >= 0 and finite, got -0.1"


def test_a_schedule_of_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match="finite") as error:
        decayed(lambda count: float("nan"))
    assert str(error.value) == "add_decayed_weights: a schedule must return finite values, got nan at count 0"


def test_a_mask_of_another_structure_is_an_error_that_names_the_place() -> None:
    with pytest.raises(ValueError, match="prefix") as error:
        decayed(0.5, {"w": True, "b": [True]})
    assert str(error.value) == (
        "add_decayed_weights: the prefix does not fit the tree at 'b'; "
        "hint: give a tree of bools like the parameters, or a prefix of one"
    )


def test_a_mask_of_numbers_is_an_error_that_names_the_leaf() -> None:
    with pytest.raises(TypeError, match="bool") as error:
        decayed(0.5, {"w": True, "b": [1, True]})
    assert str(error.value) == (
        "add_decayed_weights: the mask at 'b.0' is 1, not a bool; hint: a mask is structure, not numbers"
    )
