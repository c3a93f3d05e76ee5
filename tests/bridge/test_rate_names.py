"""A rule may call its rate `lr` or `learning_rate`; a group of TorchOptimizer calls it `lr`."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

import functrain as ft
from functrain import TorchOptimizer
from tests.bridge.named import assert_equal, assert_moved, history, leaves, pure_steps, steps, values


@ft.rule
def sl(lr: Any) -> ft.GradientTransformation:
    """SGD with momentum, whose rate has torch's name."""
    return ft.chain(ft.trace(0.9), ft.scale_by_learning_rate(lr))


@ft.rule
def whole(lr: int = 1) -> ft.GradientTransformation:
    """Its rate is said to be an integer, and has a default."""
    return sl(lr)


@ft.rule
def two(learning_rate: float, lr: float = 1.0) -> ft.GradientTransformation:
    """One rate too many."""
    return ft.scale(-learning_rate * lr)


MAKES: dict[str, Callable[[Any], TorchOptimizer]] = {
    "made": lambda params: TorchOptimizer(params, sl(0.1)),
    "made by its name": lambda params: TorchOptimizer(params, sl(lr=0.1)),
    "lr": lambda params: TorchOptimizer(params, sl, lr=0.1),
    "learning_rate": lambda params: TorchOptimizer(params, sl, learning_rate=0.1),
    "another by default": lambda params: TorchOptimizer(params, whole, lr=0.1),
}
every_make = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)


@every_make
def test_lr_of_the_group_is_lr_of_the_rule(make: Callable[[Any], TorchOptimizer]) -> None:
    """Against torch.optim.SGD, with a scheduler of torch on both."""
    params, others, grads = leaves(), leaves(), history(6)
    optimizer, witness = make(params.items()), torch.optim.SGD(others.values(), lr=0.1, momentum=0.9)
    assert {k: x for k, x in optimizer.param_groups[0].items() if k not in ("params", "param_names")} == {"lr": 0.1}
    ours, theirs = StepLR(optimizer, 2, 0.5), StepLR(witness, 2, 0.5)
    for g in grads:
        steps(optimizer, params, [g])
        steps(witness, others, [g])
        ours.step()
        theirs.step()
    assert optimizer.param_groups[0]["lr"] == 0.1 / 8
    for name, p in params.items():
        torch.testing.assert_close(p, others[name], rtol=1e-13, atol=1e-15)


def test_its_default_is_the_rate_and_no_factor() -> None:
    params, grads = leaves(), history(3)
    optimizer = TorchOptimizer(params.items(), whole)
    assert optimizer.param_groups[0]["lr"] == 1
    optimizer.param_groups[0]["lr"] = 0.5
    expected, _ = pure_steps(sl(0.5), params, grads)
    assert_equal(steps(optimizer, params, grads), expected)


def test_a_group_may_have_an_lr_of_its_own() -> None:
    params, grads = leaves(), history(3)
    first, second = list(params)[:2], list(params)[2:]
    expected = {}
    for names, lr in ((first, 0.1), (second, 0.5)):
        part = {n: params[n] for n in names}
        expected |= pure_steps(sl(lr), part, [{n: g[n] for n in names} for g in grads])[0]
    groups = [{"params": [(n, params[n]) for n in first]}, {"params": [(n, params[n]) for n in second], "lr": 0.5}]
    assert_equal(steps(TorchOptimizer(groups, sl, lr=0.1), params, grads), expected)


@pytest.mark.parametrize("given", [lambda count: 0.1 / (1 + count), None], ids=["a schedule", "None"])
def test_where_it_is_no_number_the_lr_of_the_group_is_a_factor(given: Any) -> None:
    params, grads = leaves(), history(3)
    expected, _ = pure_steps(ft.chain(sl(given), ft.scale(0.25)), params, grads)
    optimizer = TorchOptimizer(params.items(), sl, lr=given)
    (group,) = optimizer.param_groups
    assert group["lr"] == 1.0
    group["lr"] = 0.25
    before = values(params)
    assert_equal(steps(optimizer, params, grads), expected)
    assert_moved(before, expected)


@every_make
def test_the_pure_form_has_it_as_its_learning_rate(make: Callable[[Any], TorchOptimizer]) -> None:
    params, grads = leaves(), history(4)
    tx: Any = make(params.items()).as_transform()
    state = tx.init(values(params))
    assert state.groups == [{"learning_rate": torch.tensor(0.1, dtype=torch.float64)}]
    state.groups[0]["learning_rate"] = torch.tensor(0.2, dtype=torch.float64)
    expected, _ = pure_steps(sl(0.2), params, grads)
    assert_equal(pure_steps(tx, params, grads, state)[0], expected)


@every_make
def test_saved_pickled_or_copied_it_goes_on(make: Callable[[Any], TorchOptimizer]) -> None:
    params, grads = leaves(), history(5)
    optimizer = make(params.items())
    optimizer.param_groups[0]["lr"] = 0.3
    steps(optimizer, params, grads[:3])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = make([(name, p.detach().clone().requires_grad_()) for name, p in params.items()])
    loaded.load_state_dict(torch.load(file, weights_only=True))
    others = loaded, pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)
    expected = steps(optimizer, params, grads[3:])
    for other in others:
        (group,) = other.param_groups
        assert group["lr"] == 0.3
        assert_equal(steps(other, dict(zip(group["param_names"], group["params"], strict=True)), grads[3:]), expected)


@pytest.mark.long
def test_compiled_it_computes_the_same() -> None:
    params, others, grads = leaves(torch.float32), leaves(torch.float32), history(4, torch.float32)
    compiled, eager = TorchOptimizer(params.items(), sl(0.1), compile=True), TorchOptimizer(others.items(), sl(0.1))
    for t, g in enumerate(grads):
        compiled.param_groups[0]["lr"] = eager.param_groups[0]["lr"] = 0.1 / (1 + t)
        steps(compiled, params, [g])
        steps(eager, others, [g])
    for name, p in params.items():
        torch.testing.assert_close(p, others[name], rtol=1e-6, atol=1e-6)


# --- messages

KEY = (
    "TorchOptimizer: a group has 'learning_rate': 0.5; hint: the group's key is 'lr', whatever the rule calls its rate"
)


@pytest.mark.parametrize("rule", [ft.adamw, sl, ft.scale_by_adam, ft.adadelta], ids=lambda rule: rule.__name__)
def test_a_group_with_a_learning_rate_is_told_its_key(rule: Any) -> None:
    weight, bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError) as caught:
        TorchOptimizer([{"params": [weight], "learning_rate": 0.5}], rule, lr=0.1)
    assert str(caught.value) == KEY
    optimizer = TorchOptimizer([weight], rule, lr=0.1)
    with pytest.raises(TypeError) as caught:
        optimizer.add_param_group({"params": [bias], "learning_rate": 0.5})
    assert str(caught.value) == KEY
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0]["learning_rate"] = 0.5
    weight.grad = torch.ones(2)
    with pytest.raises(TypeError) as caught:
        optimizer.step()
    assert str(caught.value) == KEY


SAID: dict[str, tuple[Any, dict[str, Any], str]] = {
    "missing": (sl, {}, "TorchOptimizer: sl needs lr; hint: TorchOptimizer(params, sl, lr=...)"),
    "unknown": (sl, {"lr": 0.1, "b1": 0.9}, "TorchOptimizer: sl has no argument 'b1'; hint: it has lr"),
    "doubled": (
        sl,
        {"lr": 0.1, "learning_rate": 0.1},
        "TorchOptimizer: lr and learning_rate are both given, and they are one",
    ),
    "two": (
        two,
        {"lr": 0.1},
        "TorchOptimizer: two has both lr and learning_rate, and a group has one rate; hint: give one of the arguments "
        "another name",
    ),
}


@pytest.mark.parametrize(("rule", "options", "message"), SAID.values(), ids=SAID)
def test_what_is_wrong_with_arguments_is_said(rule: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        TorchOptimizer(leaves().items(), rule, **options)
    assert str(caught.value) == message
