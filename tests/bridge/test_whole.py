"""Rules that see all parameters at once have one state for all, wherever it goes."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

import functrain as ft
from functrain import GradientTransformation, TorchOptimizer, tree
from tests.bridge.named import (
    Named,
    assert_equal,
    assert_moved,
    give,
    history,
    leaves,
    pure_steps,
    steps,
)
from tests.catalogue import CATALOGUE, Entry

WHOLE = [entry for entry in CATALOGUE if not entry.local and not entry.extras]
every_whole = pytest.mark.parametrize("entry", WHOLE, ids=lambda entry: entry.id)
RULE = ft.chain(ft.clip_by_global_norm(1.0), ft.scale_by_adam(), ft.scale(-0.1))


def again(optimizer: TorchOptimizer, tx: GradientTransformation) -> TorchOptimizer:
    """Another over copies of the parameters, that has read what this one wrote."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    (group,) = optimizer.param_groups
    copies = [p.detach().clone().requires_grad_() for p in group["params"]]
    other = TorchOptimizer(zip(group["param_names"], copies, strict=True), tx)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def named(optimizer: TorchOptimizer) -> Named:
    (group,) = optimizer.param_groups
    return dict(zip(group["param_names"], group["params"], strict=True))


# --- the rule given, exactly


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("holes", [False, True], ids=["all", "holes"])
@every_whole
def test_it_does_what_the_pure_rule_does(entry: Entry, holes: bool, dtype: torch.dtype) -> None:
    tx, params, grads = entry.make(), leaves(dtype), history(10, dtype, holes)
    expected, _ = pure_steps(tx, params, grads)
    assert_moved(params, expected)
    assert_equal(steps(TorchOptimizer(params.items(), tx), params, grads), expected)


@every_whole
def test_its_state_is_the_pure_rules_by_key_in_the_state_dict(entry: Entry) -> None:
    tx, params, grads = entry.make(), leaves(), history(4, holes=True)
    _, state = pure_steps(ft.chain(tx, ft.scale(1.0)), params, grads)  # lr comes behind it
    optimizer = TorchOptimizer(params.items(), tx)
    assert "functrain" not in optimizer.state_dict()
    steps(optimizer, params, grads)
    expected = dict(zip(tree.keys(state), tree.leaves(state), strict=True))
    assert optimizer.state_dict()["state"] == {}
    assert_equal(optimizer.state_dict().get("functrain", {}), expected)


@every_whole
def test_saved_pickled_or_copied_it_goes_on_as_if_it_had_not_been(entry: Entry) -> None:
    params, grads = leaves(), history(8, holes=True)
    optimizer = TorchOptimizer(params.items(), entry.make())
    steps(optimizer, params, grads[:4])
    others = again(optimizer, entry.make()), pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)
    expected = steps(optimizer, params, grads[4:])
    for other in others:
        assert_equal(steps(other, named(other), grads[4:]), expected)


def test_loading_shares_nothing_with_what_was_loaded() -> None:
    params, grads = leaves(), history(4)
    optimizer = TorchOptimizer(params.items(), RULE)
    steps(optimizer, params, grads[:2])
    state_dict = optimizer.state_dict()
    before = copy.deepcopy(state_dict)
    other = TorchOptimizer(named(optimizer).items(), RULE)
    other.load_state_dict(state_dict)
    steps(other, params, grads[2:])
    assert_equal(state_dict["functrain"], before["functrain"])
    assert_equal(optimizer.state_dict()["functrain"], before["functrain"])


def test_what_is_saved_twice_without_a_step_between_is_all_there() -> None:
    params, grads = leaves(), history(6)
    optimizer = TorchOptimizer(params.items(), RULE)
    steps(optimizer, params, grads[:3])
    other = again(again(optimizer, RULE), RULE)
    assert_equal(steps(other, named(other), grads[3:]), steps(optimizer, params, grads[3:]))


def test_a_parameter_added_late_begins_as_the_others_go_on() -> None:
    """The pure rule sees a hole until then; its moments are zeros, and the count is everyone's."""
    grads, late = history(8), "kernel"
    held = [{n: None if n == late and t < 4 else x for n, x in g.items()} for t, g in enumerate(grads)]
    params = leaves()
    order = [n for n in params if n != late] + [late]
    params = {n: params[n] for n in order}
    expected, _ = pure_steps(RULE, params, [{n: g[n] for n in order} for g in held])
    optimizer = TorchOptimizer([(n, p) for n, p in params.items() if n != late], RULE)
    steps(optimizer, {n: p for n, p in params.items() if n != late}, grads[:4])
    optimizer.add_param_group({"params": [(late, params[late])]})
    assert_equal(steps(optimizer, params, grads[4:]), expected)


def test_several_groups_are_one_tree() -> None:
    params, grads = leaves(), history(5)
    expected, _ = pure_steps(RULE, params, grads)
    pairs = list(params.items())
    optimizer = TorchOptimizer([{"params": pairs[:2]}, {"params": pairs[2:]}], RULE)
    assert_equal(steps(optimizer, params, grads), expected)


def test_lr_is_a_factor_and_obeyed() -> None:
    params, grads = leaves(), history(6)
    halfway, state = pure_steps(RULE, params, grads[:3])
    expected, _ = pure_steps(ft.chain(RULE, ft.scale(0.125)), halfway, grads[3:], (state, ()))
    optimizer = TorchOptimizer(params.items(), RULE)
    assert_equal(steps(optimizer, params, grads[:3]), halfway)
    optimizer.param_groups[0]["lr"] = 0.125
    assert_equal(steps(optimizer, params, grads[3:]), expected)


def test_groups_with_other_values_are_refused() -> None:
    params = leaves()
    pairs = list(params.items())
    groups = [{"params": pairs[:2]}, {"params": pairs[2:], "max_norm": 2.0}]
    optimizer = TorchOptimizer(groups, ft.clip_by_global_norm, max_norm=1.0)
    give(params, history(1)[0])
    with pytest.raises(ValueError, match=r"^TorchOptimizer: chain ") as caught:
        optimizer.step()
    assert str(caught.value) == (
        "TorchOptimizer: chain sees all parameters at once, so its groups must have equal values: group 0 makes "
        "chain(clip_by_global_norm(max_norm=1.0), scale(1.0)), group 1 chain(clip_by_global_norm(max_norm=2.0), "
        "scale(1.0)); hint: ft.partition gives each set of parameters a rule"
    )
