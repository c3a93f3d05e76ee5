"""TorchOptimizer runs exactly the rule given, over every rule of the catalogue."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

from functrain import GradientTransformation, TorchOptimizer
from tests.bridge.named import (
    arguments,
    assert_equal,
    assert_moved,
    history,
    leaves,
    pure_steps,
    steps,
    values,
)
from tests.catalogue import CATALOGUE, Entry

LOCAL = [entry for entry in CATALOGUE if entry.local]
STILL = {"set_to_zero"}  # entries that leave the parameters where they are


def by_entry(entries: list[Entry]) -> Any:
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: entry.id)


both = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


# --- the rule given, exactly


@both
@by_entry(LOCAL)
def test_a_rule_does_what_it_does_made_or_as_a_factory_with_arguments(entry: Entry, dtype: torch.dtype) -> None:
    tx, grads = entry.make(), history(10, dtype)
    expected, _ = pure_steps(tx, leaves(dtype), grads)
    if entry.name not in STILL:
        assert_moved(leaves(dtype), expected)
    params = leaves(dtype)
    assert_equal(steps(TorchOptimizer(params.items(), tx), params, grads), expected)
    if call := arguments(tx):
        params = leaves(dtype)
        assert_equal(steps(TorchOptimizer(params.items(), call[0], **call[1]), params, grads), expected)


def test_most_entries_are_tried_as_factories() -> None:
    assert sum(arguments(entry.make()) is not None for entry in LOCAL) > 0.9 * len(LOCAL)


@by_entry(LOCAL)
def test_each_parameter_counts_its_own_steps(entry: Entry) -> None:
    """With gradients that come and go, a parameter ends where it ends alone with those that it had."""
    params, grads = leaves(), history(6, holes=True)
    optimizer = TorchOptimizer(params.items(), entry.make())
    before = values(params)
    after = steps(optimizer, params, grads)
    for name, p in before.items():
        own = [{name: g[name]} for g in grads if g[name] is not None]
        alone, _ = pure_steps(entry.make(), {name: p}, own)
        assert_equal({name: after[name]}, alone)


def saved(optimizer: TorchOptimizer, tx: GradientTransformation) -> TorchOptimizer:
    """Another over copies of the parameters, that has read what this one wrote."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    (group,) = optimizer.param_groups
    copies = [p.detach().clone().requires_grad_() for p in group["params"]]
    other = TorchOptimizer(zip(group["param_names"], copies, strict=True), tx)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@by_entry(LOCAL)
def test_saved_pickled_or_copied_it_goes_on_as_if_it_had_not_been(entry: Entry) -> None:
    params, grads = leaves(), history(5)
    optimizer = TorchOptimizer(params.items(), entry.make())
    steps(optimizer, params, grads[:3])
    others = saved(optimizer, entry.make()), pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)
    expected = steps(optimizer, params, grads[3:])
    for other in others:
        (group,) = other.param_groups
        assert_equal(steps(other, dict(zip(group["param_names"], group["params"], strict=True)), grads[3:]), expected)
