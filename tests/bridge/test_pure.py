"""as_transform: the step as a pure function, which goes on from the optimizer's state and is given back to it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functrain as ft
from functrain import TorchOptimizer
from tests.bridge.faces import MATRICES, STEPPED, assert_bitwise
from tests.bridge.named import (
    Grads,
    Named,
    assert_equal,
    assert_moved,
    groups,
    history,
    leaves,
    pure_steps,
    steps,
    values,
)
from tests.catalogue import CATALOGUE, Entry

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    **{row.name: lambda p, row=row: row.ours(p, **row.options) for row in STEPPED if row.name != "Muon"},
    "lion": lambda p: TorchOptimizer(p, ft.lion, lr=0.01),
    "schedule_free": lambda p: TorchOptimizer(p, ft.schedule_free_adamw, lr=0.05, warmup_steps=3),
    "masked": lambda p: TorchOptimizer(p, ft.adamw, lr=0.1, mask=ft.mask_by(lambda path, x: x.ndim >= 2)),
    "schedule": lambda p: TorchOptimizer(p, ft.adamw, lr=ft.schedules.linear_schedule(0.1, 0.01, 5)),
    "whole": lambda p: TorchOptimizer(p, ft.chain(ft.clip_by_global_norm(1.0), ft.adam(0.1))),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def pure(optimizer: Any, params: Mapping[str, Tensor], grads: Sequence[Grads]) -> tuple[Named, Any]:
    """Parameters and state after these steps of the pure form, under the names of `params`."""
    return pure_steps(optimizer.as_transform(params), params, grads)


# --- the step, as a function


@every_optimizer
@pytest.mark.parametrize("holes", [False, True], ids=["all", "holes"])
def test_it_does_what_step_does(make: Callable[[Any], Any], holes: bool) -> None:
    params, grads = leaves(), history(8, holes=holes)
    after, _ = pure(make(params.items()), params, grads)
    assert_moved(params, after)
    optimizer = make(params.items())
    assert_equal(after, steps(optimizer, params, grads))


def test_muon_does_what_step_does() -> None:
    params = {str(i): torch.ones(shape, dtype=torch.float64).requires_grad_() for i, shape in enumerate(MATRICES)}
    draw = torch.Generator().manual_seed(0)
    grads = [{n: torch.randn(p.shape, generator=draw, dtype=p.dtype) for n, p in params.items()} for _ in range(4)]
    after, _ = pure(ft.optim.Muon(params.items()), params, grads)
    assert_equal(after, steps(ft.optim.Muon(params.items()), params, grads))


@pytest.mark.parametrize("entry", [e for e in CATALOGUE if not e.extras], ids=lambda entry: entry.id)
def test_any_rule_does_what_step_does(entry: Entry) -> None:
    params, grads = leaves(), history(5, holes=True)
    after, _ = pure(TorchOptimizer(params.items(), entry.make()), params, grads)
    assert_equal(after, steps(TorchOptimizer(params.items(), entry.make()), params, grads))


@pytest.mark.parametrize("cls", [ft.optim.Adam, ft.optim.SGD, ft.optim.RMSprop])
def test_groups_have_their_own_values(cls: Any) -> None:
    params, grads = leaves(), history(6, holes=True)
    own = {"lr": 0.1, "weight_decay": 0.3}
    after, state = pure(cls(groups(params, **own), lr=0.01), params, grads)
    assert [float(g["learning_rate"]) for g in state.groups] == [0.01, 0.1]
    assert_equal(after, steps(cls(groups(params, **own), lr=0.01), params, grads))


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adadelta", "RMSprop"])
@pytest.mark.parametrize("holes", [False, True], ids=["all", "holes"])
def test_complex_parameters_are_what_step_makes_of_them(name: str, holes: bool) -> None:
    params, grads = leaves(torch.complex128), history(6, torch.complex128, holes)
    after, _ = pure(OPTIMIZERS[name](params.items()), params, grads)
    assert_equal(after, steps(OPTIMIZERS[name](params.items()), params, grads))


def test_it_writes_to_no_argument_and_leaves_the_optimizer_alone() -> None:
    params, grads = leaves(), history(3)
    optimizer = ft.optim.Adam(params.items())
    steps(optimizer, params, grads)
    before = copy.deepcopy(optimizer.state_dict())
    tx = optimizer.as_transform()
    at: Any = values(params)
    state = tx.init(at)
    kept = copy.deepcopy((at, state, grads))
    tx.update(grads[0], state, at)
    assert_bitwise((at, state, grads), kept)
    assert_bitwise(optimizer.state_dict(), before)


# --- to and fro


@every_optimizer
def test_its_first_state_shares_no_memory_with_the_optimizers(make: Callable[[Any], Any]) -> None:
    """A compiled step writes into it."""
    params, grads = leaves(), history(3)
    optimizer = make(params.items())
    steps(optimizer, params, grads)
    state = optimizer.as_transform().init(values(params))
    there = {x.data_ptr() for x in ft.tree.leaves([*optimizer.state.values(), *optimizer.whole.flat().values()])}
    assert there
    assert there.isdisjoint(x.data_ptr() for x in ft.tree.leaves(state))


@every_optimizer
def test_it_goes_on_from_the_optimizers_state(make: Callable[[Any], Any]) -> None:
    params, grads = leaves(), history(9, holes=True)
    optimizer = make(params.items())
    steps(optimizer, params, grads[:4])
    after, _ = pure(optimizer, params, grads[4:])
    assert_equal(after, steps(optimizer, params, grads[4:]))


@every_optimizer
def test_taken_back_it_goes_on_where_the_pure_form_stopped(make: Callable[[Any], Any]) -> None:
    params, grads = leaves(), history(9, holes=True)
    expected = steps(make(params.items()), params, grads)
    params = leaves()
    optimizer = make(params.items())
    steps(optimizer, params, grads[:2])
    after, state = pure(optimizer, params, grads[2:5])
    optimizer.take_back(state)
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(after[name])
    assert_equal(steps(optimizer, params, grads[5:]), expected)


@every_optimizer
def test_what_is_taken_back_is_what_the_steps_would_have_left(make: Callable[[Any], Any]) -> None:
    params, grads = leaves(), history(5, holes=True)
    stepped = make(params.items())
    _, state = pure(stepped, params, grads)
    optimizer = make(params.items())
    optimizer.take_back(state)
    steps(stepped, params, grads)
    a, b = optimizer.state_dict(), stepped.state_dict()
    assert a["state"].keys() == b["state"].keys()
    for number, expected in b["state"].items():
        assert_equal(dict(sorted(a["state"][number].items())), dict(sorted(expected.items())))
    assert_equal(a.get("functrain", {}), b.get("functrain", {}))


def test_what_is_taken_back_is_a_copy() -> None:
    params, grads = leaves(), history(3)
    optimizer = ft.optim.Adam(params.items())
    _, state = pure(optimizer, params, grads)
    kept = copy.deepcopy(state.params)
    optimizer.take_back(state)
    steps(optimizer, params, grads)
    for name, x in kept.items():
        assert_equal(state.params[name], x)


def test_a_parameter_that_has_not_stepped_has_no_state_to_take_back() -> None:
    params, grads = leaves(), history(3)
    optimizer = ft.optim.Adam(params.items())
    _, state = pure(optimizer, params, [g | {"scale": None} for g in grads])
    optimizer.take_back(state)
    assert params["scale"] not in optimizer.state
    assert params["kernel"] in optimizer.state


# --- names


def test_names_are_those_of_the_groups_or_numbers() -> None:
    params = leaves()
    unnamed = ft.optim.Adam([{"params": list(params.values())[:2]}, {"params": list(params.values())[2:]}])
    numbered: Any = {str(i): p.detach() for i, p in enumerate(params.values())}
    assert list(unnamed.as_transform().init(numbered).params) == ["0", "1", "2", "3", "4"]
    assert list(ft.optim.Adam(params.items()).as_transform().init(values(params)).params) == list(params)


def test_names_that_are_given_belong_to_the_parameters_that_are_meant() -> None:
    """By identity, whatever their order, and whatever the groups call them."""
    params, grads = leaves(), history(5)
    backwards = dict(reversed(list(params.items())))
    made = [{"params": [(f"other.{n}", p)], "lr": 0.01 * i} for i, (n, p) in enumerate(params.items(), 1)]
    optimizer = ft.optim.Adam(made)
    after, state = pure(optimizer, backwards, [{n: g[n] for n in backwards} for g in grads])
    expected = steps(ft.optim.Adam(made), params, grads)
    assert_equal({n: after[n] for n in params}, expected)
    optimizer.take_back(state, backwards)
    for name, p in params.items():
        assert torch.equal(optimizer.state[p]["exp_avg"], state.params[name]["exp_avg"])


def test_a_parameter_that_no_group_has_stays() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    optimizer = ft.optim.Adam(module[0].parameters(), lr=0.1)
    params: Any = dict(module.named_parameters())
    tx = optimizer.as_transform(params)
    state = tx.init(params)
    assert list(state.params) == ["0.weight", "0.bias"]
    updates, _ = tx.update({n: torch.ones_like(p) for n, p in params.items()}, state, params)
    after = ft.apply_updates(params, updates)
    assert [torch.equal(after[n], p) for n, p in params.items()] == [False, False, True, True]
