"""Optimizers by name and for a module: whose numbers they have, and which groups."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import functrain as ft
from functrain import TorchOptimizer, optimizers, transforms
from tests.bridge.faces import STEPPED, Row, assert_near, every_row, gradients, parameters, trajectory
from tests.bridge.named import assert_equal, assert_moved, history, leaves, pure_steps, steps
from tests.catalogue import CATALOGUE
from tests.networks import NormNet, Transformer

CLASSES = {name.lower() for name in ft.optim.__all__}
GIVEN: dict[str, Any] = {  # what a rule needs beside a rate
    "params_ema": {"decay": 0.9},
    "trace": {"decay": 0.9},
    "ema": {"decay": 0.9},
    "scale": {"step_size": -0.1},
    "scale_by_schedule": {"step_size_fn": 0.1},
    "shrink_weights": {"rate": 0.01},
    "clip": {"max_delta": 0.5},
    "clip_by_block_rms": {"threshold": 0.5},
    "clip_by_global_norm": {"max_norm": 0.5},
    "torch_trace": {"decay": 0.9},
}
ELSEWHERE = {"torch_lbfgs", "scale_by_torch_muon"}  # one wants a closure, the other matrices


def rules_of(*modules: Any) -> dict[str, Any]:
    """The public factories that these packages define, by name, where torch has none of the name."""
    public = {name: getattr(ft, name) for name in ft.__all__}
    found = {n: f for n, f in public.items() if inspect.isfunction(f) and hasattr(f, "__wrapped__")}
    return {n: f for n, f in found.items() if f.__module__.startswith(tuple(m.__name__ + "." for m in modules))}


RULES = {name: f for name, f in rules_of(optimizers, transforms).items() if name not in CLASSES}


# --- by name


def test_every_rule_of_the_catalogue_that_is_no_combinator_has_its_name() -> None:
    combinators = {entry.name for entry in CATALOGUE} - set(rules_of(optimizers, transforms))
    assert combinators - {"identity", "set_to_zero"} == {
        "chain", "named_chain", "masked", "partition", "freeze", "selective_transform", "inject_hyperparams",
        "apply_if_finite", "conditionally_transform", "conditionally_mask", "MultiSteps", "schedule_free",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(RULES) - ELSEWHERE))
def test_a_rule_by_its_name_is_that_rule(name: str) -> None:
    rule, given = RULES[name], GIVEN.get(name, {})
    has_rate = "learning_rate" in inspect.signature(rule).parameters
    tx = rule(**given, **({"learning_rate": 0.1} if has_rate else {}))
    params, grads = leaves(), history(4)
    expected, _ = pure_steps(tx, params, grads)
    optimizer = ft.create_optimizer(name, params.items(), lr=0.1 if has_rate else None, **given)
    assert type(optimizer) is TorchOptimizer
    assert_moved(params, expected)
    assert_equal(steps(optimizer, params, grads), expected)


@every_row(STEPPED)
def test_where_torch_has_the_name_its_numbers_are_torchs(row: Row) -> None:
    runs = []
    for make in (lambda p: ft.create_optimizer(row.name.lower(), p, 0.02), lambda p: row.reference(p, lr=0.02)):
        params = parameters(row.shapes, torch.float64)
        runs.append(trajectory(row, make(params), params, gradients(row.shapes, torch.float64, 5)))
    assert_near(*runs, row)


@every_row()
def test_without_a_rate_it_is_the_class_with_its_own(row: Row) -> None:
    optimizer = ft.create_optimizer(row.name.lower(), parameters(row.shapes, torch.float64))
    assert type(optimizer) is getattr(ft.optim, row.name)
    assert optimizer.param_groups[0]["lr"] == row.defaults["lr"]


@pytest.mark.parametrize("lr", [0.0, 0.25])
def test_a_rate_that_is_given_counts_even_zero(lr: float) -> None:
    assert ft.create_optimizer("adam", leaves().values(), lr=lr).param_groups[0]["lr"] == lr
    assert ft.create_optimizer("lion", leaves().values(), lr=lr).param_groups[0]["lr"] == lr


def test_other_arguments_are_passed_on() -> None:
    ours = ft.create_optimizer("adamw", leaves().values(), 0.1, betas=(0.5, 0.6), compile=True)
    assert ours.param_groups[0]["betas"] == (0.5, 0.6)
    assert ft.create_optimizer("lion", leaves().values(), 0.1, b1=0.5).param_groups[0]["b1"] == 0.5
    with pytest.raises(TypeError, match="lion needs learning_rate"):
        ft.create_optimizer("lion", leaves().values())
    with pytest.raises(TypeError, match="has no argument 'betas'"):
        ft.create_optimizer("lion", leaves().values(), 0.1, betas=(0.5, 0.6))


SAID = {
    "adamv": "'adamv'; hint: did you mean 'adam' or 'radam' or 'nadam'?",
    "AdamW": "'AdamW'; hint: did you mean 'adamw' or 'nadamw' or 'adam'?",
    "lyon": "'lyon'; hint: did you mean 'lion' or 'yogi' or 'muon'?",
    "rms_prop": "'rms_prop'; hint: did you mean 'rmsprop' or 'rprop'?",
}


@pytest.mark.parametrize("name", SAID)
def test_an_unknown_name_is_told_its_neighbours(name: str) -> None:
    with pytest.raises(ValueError, match=r"^create_optimizer: no optimizer is called ") as caught:
        ft.create_optimizer(name, leaves().values(), 0.1)
    assert str(caught.value) == f"create_optimizer: no optimizer is called {SAID[name]}"


def test_a_name_near_none_is_told_all() -> None:
    with pytest.raises(ValueError, match=r"^create_optimizer: ") as caught:
        ft.create_optimizer("qqq", leaves().values(), 0.1)
    said = str(caught.value).removeprefix("create_optimizer: no optimizer is called 'qqq'; hint: there are ")
    assert said.split(", ") == sorted(CLASSES | set(RULES))


# --- for a module


class Names(nn.Module):
    """A matrix, a bias, a norm, a 0-dim parameter, a kernel; an embedding that is tied to the head; a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.conv = nn.Conv1d(4, 4, 2)
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


DECAYED = ["embedding.weight", "inner.weight", "conv.weight"]
OTHERS = ["temperature", "inner.bias", "norm.weight", "norm.bias", "conv.bias"]


def groups_of(optimizer: Optimizer) -> list[tuple[list[str], float, float]]:
    return [(g["param_names"], g["weight_decay"], g["lr"]) for g in optimizer.param_groups]


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "lamb"])
def test_matrices_decay_and_vectors_do_not(name: str) -> None:
    module = Names()
    optimizer = ft.configure_optimizer(module, name, lr=0.1, weight_decay=0.3)
    assert groups_of(optimizer) == [(DECAYED, 0.3, 0.1), (OTHERS, 0.0, 0.1)]
    there = dict(module.named_parameters())
    for group in optimizer.param_groups:
        for key, p in zip(group["param_names"], group["params"], strict=True):
            assert p is there[key]


def test_its_defaults_are_adamw_a_rate_of_1e_3_and_a_decay_of_1e_2() -> None:
    optimizer = ft.configure_optimizer(Names())
    assert type(optimizer) is ft.optim.AdamW
    assert groups_of(optimizer) == [(DECAYED, 0.01, 1e-3), (OTHERS, 0.0, 1e-3)]


def test_its_steps_are_those_of_torch_with_two_groups() -> None:
    ours, torchs = Transformer().double(), Transformer().double()
    torchs.load_state_dict(ours.state_dict())
    matrices = [p for p in torchs.parameters() if p.ndim >= 2]
    vectors = [p for p in torchs.parameters() if p.ndim < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}], lr=0.1, foreach=False
    )
    optimizer = ft.configure_optimizer(ours, "adamw", 0.1, 0.3)
    for t in range(4):
        for module in (ours, torchs):
            draw = torch.Generator().manual_seed(t)
            for p in module.parameters():
                p.grad = torch.randn(p.shape, generator=draw, dtype=p.dtype)
        optimizer.step()
        reference.step()
    for p, q in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_a_functional_module_is_taken_for_the_module_that_it_is_of() -> None:
    module = NormNet()
    optimizer = ft.configure_optimizer(ft.functionalize(module))
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in module.parameters()}


def test_where_all_are_matrices_there_is_one_group() -> None:
    assert groups_of(ft.configure_optimizer(nn.Linear(2, 2, bias=False))) == [(["weight"], 0.01, 1e-3)]


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^configure_optimizer: ") as caught:
        ft.configure_optimizer(nn.Linear(2, 2).requires_grad_(False))
    assert str(caught.value) == (
        "configure_optimizer: Linear has no parameter with requires_grad; hint: unfreeze what is to be trained"
    )


@pytest.mark.parametrize("name", ["rprop", "nadam", "yogi", "rmsprop"])
def test_an_optimizer_without_decay_wants_to_be_told_so(name: str) -> None:
    takes = name in ("nadam", "rmsprop")  # torch's classes of these names do
    if takes:
        assert len(ft.configure_optimizer(Names(), name).param_groups) == 2
        return
    with pytest.raises(ValueError, match=r"^configure_optimizer: ") as caught:
        ft.configure_optimizer(Names(), name)
    assert str(caught.value) == (
        f"configure_optimizer: {name!r} has no weight decay, and weight_decay is 0.01; hint: weight_decay=0"
    )
    (group,) = ft.configure_optimizer(Names(), name, weight_decay=0).param_groups
    assert sorted(group["param_names"]) == sorted(DECAYED + OTHERS)


def test_an_unknown_type_is_told_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"^create_optimizer: no optimizer is called 'adamv'; hint: did you mean "):
        ft.configure_optimizer(Names(), "adamv")
