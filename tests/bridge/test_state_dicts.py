"""State dicts go from torch's optimizers to ours and back, and through files; a wrong one changes nothing."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from tests.bridge.faces import (
    STEPPED,
    Row,
    assert_bitwise,
    assert_near,
    assert_states_near,
    every_row,
    flat,
    gradients,
    outcome,
    parameters,
    trajectory,
)

BEFORE, AFTER = 5, 20


def stepped(
    row: Row, make: Callable[..., Optimizer], dtype: torch.dtype = torch.float64, steps: int = BEFORE
) -> tuple[list[Tensor], Optimizer]:
    """Parameters and their optimizer after some steps."""
    params = parameters(row.shapes, dtype)
    optimizer = make(row.grouped(params, row.options), **row.options)
    trajectory(row, optimizer, params, gradients(row.shapes, dtype, steps))
    return params, optimizer


def loaded(row: Row, make: Callable[..., Optimizer], params: Sequence[Tensor], state: Any) -> tuple[Any, Optimizer]:
    """A new optimizer over copies of these parameters, with this state."""
    mine = [p.detach().clone().requires_grad_() for p in params]
    optimizer = make(row.grouped(mine, {}))
    optimizer.load_state_dict(copy.deepcopy(state))  # torch's shares tensors with what it loads
    return mine, optimizer


def go_on(row: Row, optimizer: Optimizer, params: Sequence[Tensor]) -> list[list[Tensor]]:
    return trajectory(row, optimizer, params, gradients(row.shapes, params[0].dtype, AFTER, seed=2))


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


@every_row()
@DTYPES
def test_torchs_run_goes_on_in_ours(row: Row, dtype: torch.dtype) -> None:
    params, torchs = stepped(row, row.reference, dtype)
    mine, ours = loaded(row, row.ours, params, torchs.state_dict())
    assert_near(go_on(row, ours, mine), go_on(row, torchs, params), row)
    assert_states_near(ours.state_dict(), torchs.state_dict(), row)


@every_row()
@DTYPES
def test_our_run_goes_on_in_torchs(row: Row, dtype: torch.dtype) -> None:
    """As torch's own would: loading rounds some of its state."""
    runs = []
    for make in (row.ours, row.reference):
        params, first = stepped(row, make, dtype)
        mine, second = loaded(row, row.reference, params, first.state_dict())
        runs.append(go_on(row, second, mine))
    assert_near(*runs, row)


@every_row()
def test_a_state_dict_has_torchs_keys_dtypes_shapes_and_numbers(row: Row) -> None:
    _, ours = stepped(row, row.ours)
    _, torchs = stepped(row, row.torchs)
    a, b = ours.state_dict(), torchs.state_dict()
    assert list(a) == list(b)
    assert_states_near(a, b, row)
    for mine, its in zip(a["param_groups"], b["param_groups"], strict=True):
        assert list(mine) == list(its)
        assert_bitwise(mine, its)


@every_row()
def test_before_the_first_step_a_state_dict_is_torchs(row: Row) -> None:
    assert_bitwise(*(stepped(row, make, steps=0)[1].state_dict() for make in (row.ours, row.torchs)))


@every_row()
def test_a_state_dict_goes_through_a_file_bitwise(row: Row, tmp_path: Path) -> None:
    params, optimizer = stepped(row, row.ours)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert_bitwise(state, optimizer.state_dict())

    other, again = loaded(row, row.ours, params, state)
    assert_bitwise(again.state_dict(), optimizer.state_dict())
    assert_bitwise(go_on(row, again, other), go_on(row, optimizer, params))


@every_row()
def test_a_loaded_state_shares_no_tensor_with_what_was_loaded(row: Row) -> None:
    params, optimizer = stepped(row, row.ours)
    state, before = optimizer.state_dict(), copy.deepcopy(optimizer.state_dict())
    again = row.ours(row.grouped(params, {}))
    again.load_state_dict(state)
    go_on(row, again, params)
    assert_bitwise(state, before)


@every_row(STEPPED)
def test_float32_moments_over_bfloat16_parameters_stay_float32(row: Row) -> None:
    params, optimizer = stepped(row, row.ours, torch.float32)
    state = optimizer.state_dict()
    _, half = loaded(row, row.ours, [p.to(torch.bfloat16) for p in params], state)
    assert_bitwise(half.state_dict()["state"], state["state"])


@every_row(STEPPED)
def test_state_made_over_bfloat16_parameters_is_loaded_bitwise(row: Row) -> None:
    params, optimizer = stepped(row, row.ours, torch.bfloat16)
    other, again = loaded(row, row.ours, params, optimizer.state_dict())
    assert_bitwise(again.state_dict(), optimizer.state_dict())
    assert_bitwise(go_on(row, again, other), go_on(row, optimizer, params))


@every_row()
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_bitwise(row: Row, clone: Callable[[Any], Any]) -> None:
    params, optimizer = stepped(row, row.ours)
    mine, its = clone((params, optimizer))
    assert repr(its) == repr(optimizer)
    assert_bitwise(go_on(row, its, mine), go_on(row, optimizer, params))
    assert_bitwise(its.state_dict(), optimizer.state_dict())


@every_row()
def test_a_copy_shares_nothing(row: Row) -> None:
    params, optimizer = stepped(row, row.ours)
    mine, its = copy.deepcopy((params, optimizer))
    before = copy.deepcopy((optimizer.state_dict(), params))
    go_on(row, its, mine)
    assert_bitwise((optimizer.state_dict(), params), before)


def hooked(row: Row, make: Callable[..., Optimizer]) -> tuple[list[str], Any, Any]:
    """Which hooks fired in which order, and what they made of the state dict."""
    _, optimizer = stepped(row, make)
    calls: list[str] = []

    def note(name: str, answer: Callable[[Any], Any] = lambda state: None) -> Callable[..., Any]:
        def hook(optimizer: Optimizer, *state: Any) -> Any:
            calls.append(name)
            return answer(*state) if state else None

        return hook

    optimizer.register_state_dict_pre_hook(note("before state_dict"))
    optimizer.register_state_dict_pre_hook(note("first before state_dict"), prepend=True)
    optimizer.register_state_dict_post_hook(note("after state_dict", lambda state: {**state, "more": 1}))
    optimizer.register_load_state_dict_pre_hook(
        note(
            "before load", lambda state: {**state, "param_groups": [{**g, "lr": 0.125} for g in state["param_groups"]]}
        )
    )
    optimizer.register_load_state_dict_post_hook(note("after load"))
    optimizer.register_load_state_dict_post_hook(note("first after load"), prepend=True).remove()
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    return calls, list(state), [group["lr"] for group in optimizer.param_groups]


@every_row()
def test_hooks_of_state_dicts_fire_as_torchs(row: Row) -> None:
    assert hooked(row, row.ours) == hooked(row, row.torchs)


def reshaped(state: Any) -> tuple[Any, int]:
    """The state dict with another shape in the last parameter that has a tensor of its shape, and which that is."""
    state = copy.deepcopy(state)
    index = max(i for i, entry in state["state"].items() if any(x.dim() for x in entry.values()))
    key = next(key for key, x in state["state"][index].items() if x.dim())
    state["state"][index][key] = torch.zeros(7, 7, dtype=torch.float64)
    return state, index


def regrouped(state: Any) -> Any:
    """The state dict with a parameter more in its last group."""
    state = copy.deepcopy(state)
    state["param_groups"][-1]["params"].append(99)
    return state


def with_one_group_more(state: Any) -> Any:
    state = copy.deepcopy(state)
    state["param_groups"].append({**state["param_groups"][-1], "params": []})
    return state


def assert_changes_nothing(row: Row, state: Callable[[Any], Any]) -> BaseException | None:
    """Loading is refused, and the run goes on as if nothing had been tried. What was raised."""
    (params, optimizer), (others, other) = stepped(row, row.ours), stepped(row, row.ours)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * 0.5  # what is loaded would show
    before = copy.deepcopy(optimizer.state_dict())
    wrong = state(other.state_dict())
    error = outcome(lambda: optimizer.load_state_dict(wrong))
    assert_bitwise(optimizer.state_dict(), before)
    for group in other.param_groups:
        group["lr"] = group["lr"] * 0.5
    assert_bitwise(go_on(row, optimizer, params), go_on(row, other, others))
    return error


@every_row(STEPPED)
def test_a_state_of_another_shape_is_refused_by_the_parameters_number(row: Row) -> None:
    _, optimizer = stepped(row, row.ours)
    _, index = reshaped(optimizer.state_dict())
    error = assert_changes_nothing(row, lambda state: reshaped(state)[0])
    assert type(error) is ValueError
    assert re.search(rf"parameter '?{index}\b", str(error))
    assert "(7, 7)" in str(error)


@every_row(STEPPED)
def test_a_state_of_another_shape_is_refused_by_the_parameters_name(row: Row) -> None:
    params = parameters(row.shapes, torch.float64)
    optimizer = row.ours([(f"layer{i}.weight", p) for i, p in enumerate(params)], **row.options)
    trajectory(row, optimizer, params, gradients(row.shapes, torch.float64, BEFORE))
    state, index = reshaped(optimizer.state_dict())
    with pytest.raises(ValueError, match=rf"layer{index}\.weight"):
        optimizer.load_state_dict(state)


@every_row()
@pytest.mark.parametrize("change", [regrouped, with_one_group_more])
def test_a_state_of_other_groups_is_refused_in_torchs_words(row: Row, change: Callable[[Any], Any]) -> None:
    error = assert_changes_nothing(row, change)
    _, torchs = stepped(row, row.torchs)
    its = outcome(lambda: torchs.load_state_dict(change(torchs.state_dict())))
    assert type(error) is type(its) is ValueError
    assert str(error).startswith(str(its))
    assert str(error) != str(its), "it says no more than torch"


@every_row()
def test_names_in_a_state_dict_win_as_in_torch(row: Row) -> None:
    names = []
    for make in (row.ours, row.torchs):
        params = parameters(row.shapes, torch.float64)
        old = make([(f"old{i}", p) for i, p in enumerate(params)])
        new = make([(f"new{i}", p) for i, p in enumerate(params)])
        nameless = make(params)
        kept = [flat(new.state_dict()["param_groups"][0]["param_names"])]
        new.load_state_dict(nameless.state_dict())
        kept.append(flat(new.state_dict()["param_groups"][0]["param_names"]))
        new.load_state_dict(old.state_dict())
        kept.append(flat(new.state_dict()["param_groups"][0]["param_names"]))
        names.append([list(k) for k in kept])
    assert names[0] == names[1]
