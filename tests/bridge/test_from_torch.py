"""from_torch: the class here that goes on where an instance of torch.optim stands."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import functrain as ft
from tests.bridge.faces import (
    Row,
    assert_bitwise,
    assert_near,
    assert_states_near,
    every_row,
    gradients,
    parameters,
    trajectory,
)

BEFORE, AFTER = 5, 6


def halfway(row: Row, names: bool = False) -> tuple[Optimizer, list[Tensor]]:
    """Torch's optimizer after some steps; parameters lack gradients now and then."""
    params = parameters(row.shapes, torch.float64)
    groups: Any = row.grouped(params, row.options)
    if names:
        number = iter(range(len(params)))
        groups = [g | {"params": [(f"leaf.{next(number)}", p) for p in g["params"]]} for g in groups]
    optimizer = row.reference(groups, **row.options)
    trajectory(row, optimizer, params, gradients(row.shapes, torch.float64, BEFORE))
    return optimizer, params


def afterwards(row: Row) -> list[list[Tensor | None]]:
    return gradients(row.shapes, torch.float64, BEFORE + AFTER)[BEFORE:]


@every_row()
def test_it_goes_on_as_torch_goes_on(row: Row) -> None:
    torchs, params = halfway(row)
    other = copy.deepcopy(torchs)
    theirs = [p for group in other.param_groups for p in group["params"]]
    if row.closure:  # torch's deep copy of an LBFGS lacks what __init__ sets
        other = row.reference(theirs, **row.options)
        other.load_state_dict(copy.deepcopy(torchs.state_dict()))
    ours = ft.from_torch(torchs)
    assert type(ours) is row.ours
    a, b = (trajectory(row, o, p, afterwards(row)) for o, p in ((ours, params), (other, theirs)))
    assert_near(a, b, row)
    assert_states_near(ours.state_dict(), other.state_dict(), row)
    assert any(not torch.equal(x, y) for x, y in zip(a[0], a[-1], strict=True))


@every_row()
def test_its_groups_and_its_state_are_torchs(row: Row) -> None:
    torchs, params = halfway(row)
    ours = ft.from_torch(torchs)
    assert_bitwise(ours.state_dict(), torchs.state_dict())
    assert torchs.state_dict()["state"]
    mine = [p for group in ours.param_groups for p in group["params"]]
    assert all(p is q for p, q in zip(mine, params, strict=True))


@every_row()
def test_its_state_is_its_own(row: Row) -> None:
    torchs, params = halfway(row)
    before = copy.deepcopy(torchs.state_dict())
    trajectory(row, ft.from_torch(torchs), params, afterwards(row))
    assert_bitwise(torchs.state_dict(), before)


@every_row()
def test_names_of_parameters_are_carried_over(row: Row) -> None:
    torchs, _ = halfway(row, names=True)
    ours = ft.from_torch(torchs)
    for mine, its in zip(ours.param_groups, torchs.param_groups, strict=True):
        assert mine["param_names"] == its["param_names"]
        assert all(p is q for p, q in zip(mine["params"], its["params"], strict=True))
    assert "param_names" in torchs.param_groups[0]


@every_row()
def test_values_that_were_edited_are_carried_over_and_so_are_the_defaults_of_groups_to_come(row: Row) -> None:
    torchs, _ = halfway(row)
    torchs.param_groups[0]["lr"] = 0.123
    ours = ft.from_torch(torchs)
    assert ours.param_groups[0]["lr"] == 0.123
    assert torchs.defaults["lr"] != 0.123
    assert row.defaults.keys() <= ours.defaults.keys()
    assert all(ours.defaults[name] == torchs.defaults[name] for name in row.defaults)
    if row.info.supports_param_groups:
        ours.add_param_group({"params": [torch.zeros(2, 2, requires_grad=True)]})
        assert ours.param_groups[-1]["lr"] == torchs.defaults["lr"]


@every_row()
def test_one_that_has_not_stepped_begins(row: Row) -> None:
    runs = []
    for make in (lambda o: ft.from_torch(o), lambda o: o):
        params = parameters(row.shapes, torch.float64)
        optimizer = make(row.reference(row.grouped(params, row.options), **row.options))
        runs.append(trajectory(row, optimizer, params, gradients(row.shapes, torch.float64, 5)))
    assert_near(*runs, row)


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_torchs_fast_loops_are_taken_too(name: str, foreach: bool | None) -> None:
    p = torch.ones(3, requires_grad=True)
    ours = ft.from_torch(getattr(torch.optim, name)([p], lr=0.1, foreach=foreach))
    assert ours.param_groups[0]["foreach"] is foreach


def test_a_scheduler_that_had_begun_is_in_the_groups() -> None:
    torchs = torch.optim.SGD([torch.ones(3, requires_grad=True)], lr=0.1)
    torch.optim.lr_scheduler.StepLR(torchs, 2)
    ours = ft.from_torch(torchs)
    assert ours.param_groups[0]["initial_lr"] == 0.1
    scheduler = torch.optim.lr_scheduler.StepLR(ours, 2, last_epoch=1)
    assert scheduler.get_last_lr() == [pytest.approx(0.01)]


@every_row()
def test_an_optimizer_of_functrain_is_itself(row: Row) -> None:
    ours = row.ours(parameters(row.shapes, torch.float64))
    assert ft.from_torch(ours) is ours


def test_any_rule_is_itself_too() -> None:
    ours = ft.TorchOptimizer([torch.ones(3, requires_grad=True)], ft.lion, lr=0.1)
    assert ft.from_torch(ours) is ours


class MyAdam(torch.optim.Adam):
    """A user's class, which may do anything."""


class Adam(torch.optim.Optimizer):
    """A user's class that has only its name from torch."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})


UNKNOWN: dict[str, tuple[Any, str]] = {
    "subclass": (MyAdam, "tests.bridge.test_from_torch.MyAdam"),
    "namesake": (Adam, "tests.bridge.test_from_torch.Adam"),
    "SparseAdam": (torch.optim.SparseAdam, "torch.optim.sparse_adam.SparseAdam"),
}


@pytest.mark.parametrize(("kind", "name"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_class_without_an_equal_is_named(kind: Any, name: str) -> None:
    with pytest.raises(TypeError, match=r"^from_torch: ") as caught:
        ft.from_torch(kind([torch.ones(3, requires_grad=True)]))
    assert str(caught.value) == (
        f"from_torch: {name} has no equal here; hint: there are ASGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, "
        "Adamax, LBFGS, Muon, NAdam, RAdam, RMSprop, Rprop, SGD, and ft.TorchOptimizer(params, rule) for any rule"
    )


def test_it_is_torchs_step_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes back does not call the class that it came from."""
    p = torch.ones(3, requires_grad=True)
    torchs = torch.optim.Adam([p], lr=0.1)
    ours = ft.from_torch(torchs)
    monkeypatch.setattr(torch.optim.Adam, "step", None)
    p.grad = torch.ones(3)
    ours.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.9))
