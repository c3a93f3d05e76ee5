"""Decay: what is drawn to zero, and what is not touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from functrain import schedules, tree
from functrain.transforms.decay import AddDecayedWeightsState, add_decayed_weights

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
    assert {x.dtype for x in tree.leaves(decayed(0.5, g=tree.cast_to(G, dtype)))} == {dtype}


# --- errors


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
