"""The groups of TorchOptimizer: what they hold, who may change it, and what is wrong with it."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

import functrain as ft
from functrain import GradientTransformation, TorchOptimizer
from tests.bridge.named import assert_equal, history, leaves, pure_steps, steps, values
from tests.catalogue import DECAY, MATRICES


def made(name: str, lr: Any) -> dict[str, Any]:
    """Every number of adamw by its own name, with `lr` in place of the rate."""
    return {name: lr, "b1": 0.8, "b2": 0.95, "eps": 1e-6, "eps_root": 1e-4, "weight_decay": 0.1}


@pytest.mark.parametrize("name", ["lr", "learning_rate"])
def test_a_group_holds_lr_and_the_other_numbers_by_their_names(name: str) -> None:
    optimizer = TorchOptimizer(leaves().items(), ft.adamw, **made(name, 0.01))
    (group,) = optimizer.param_groups
    expected = made("lr", 0.01) | {"mask": None, "mu_dtype": None, "nesterov": False}
    assert {key: x for key, x in group.items() if key not in ("params", "param_names")} == expected


@pytest.mark.parametrize(
    ("key", "value"), [("lr", 0.5), ("b1", 0.1), ("b2", 0.2), ("eps", 0.3), ("eps_root", 0.4), ("weight_decay", 0.5)]
)
def test_a_value_that_is_edited_is_obeyed_at_the_next_step(key: str, value: float) -> None:
    params, grads = leaves(), history(6)
    first = made("learning_rate", 0.01)
    halfway, state = pure_steps(ft.adamw(**first), params, grads[:3])
    second = first | {"learning_rate" if key == "lr" else key: value}
    expected, _ = pure_steps(ft.adamw(**second), halfway, grads[3:], state)
    optimizer = TorchOptimizer(params.items(), ft.adamw, **first)
    assert_equal(steps(optimizer, params, grads[:3]), halfway)
    optimizer.param_groups[0][key] = value
    assert_equal(steps(optimizer, params, grads[3:]), expected)


def test_a_group_may_have_values_of_its_own() -> None:
    params, grads = leaves(), history(5)
    names = list(params)
    own = [{}, {"lr": 0.5, "b1": 0.5, "weight_decay": 0.0}]
    split = [names[:2], names[2:]]
    expected = {}
    for part, values_ in zip(split, own, strict=True):
        numbers = {"learning_rate": values_.get("lr", 0.01), "b1": values_.get("b1", 0.9)}
        tx = ft.adamw(weight_decay=values_.get("weight_decay", 0.1), **numbers)
        expected |= pure_steps(tx, {n: params[n] for n in part}, [{n: g[n] for n in part} for g in grads])[0]
    groups = [{"params": [(n, params[n]) for n in part], **more} for part, more in zip(split, own, strict=True)]
    optimizer = TorchOptimizer(groups, ft.adamw, lr=0.01, weight_decay=0.1)
    assert_equal(steps(optimizer, params, grads), expected)


SCHEDULERS: dict[str, Any] = {
    "cosine": lambda o: CosineAnnealingLR(o, 10),
    "lambda": lambda o: LambdaLR(o, lambda t: 0.5**t),
    "one cycle": lambda o: OneCycleLR(o, 0.1, total_steps=12, cycle_momentum=False),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("rule", [ft.lion, ft.sgd, ft.adamw])
def test_a_scheduler_drives_the_rate(scheduler: Any, rule: Any) -> None:
    """What it does to a torch.optim.SGD is read there, and given to the rule step by step."""
    params, grads = leaves(), history(10)
    witness = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    telling, rates = scheduler(witness), []
    for _ in grads:
        rates.append(witness.param_groups[0]["lr"])
        witness.step()
        telling.step()
    assert len(set(rates)) > 5
    expected, state = values(params), rule(0.1).init(params)
    for rate, g in zip(rates, grads, strict=True):
        expected, state = pure_steps(rule(rate), expected, [g], state)
    optimizer = TorchOptimizer(params.items(), rule, lr=0.1)
    driven = scheduler(optimizer)
    for g in grads:
        steps(optimizer, params, [g])
        driven.step()
    assert_equal(values(params), expected)


# --- a rule without a rate of its own

WITHOUT: dict[str, tuple[Any, dict[str, Any]]] = {
    "no rate": (ft.scale_by_adam, {}),
    "a schedule": (ft.adamw, {"learning_rate": DECAY}),
    "rate None": (ft.adadelta, {}),
    "made": (ft.chain(ft.trace(0.9), ft.scale(-0.1)), {}),
}


@pytest.mark.parametrize(("rule", "options"), WITHOUT.values(), ids=WITHOUT)
def test_lr_is_one_and_a_factor_of_what_the_rule_makes(rule: Any, options: dict[str, Any]) -> None:
    params, grads = leaves(), history(5)
    optimizer = TorchOptimizer(params.items(), rule, **options)
    assert optimizer.param_groups[0]["lr"] == 1.0
    tx = rule if isinstance(rule, GradientTransformation) else rule(**options)
    halfway, state = pure_steps(tx, params, grads[:3])
    expected, _ = pure_steps(ft.chain(tx, ft.scale(-0.25)), halfway, grads[3:], (state, ()))
    assert_equal(steps(optimizer, params, grads[:3]), halfway)
    optimizer.param_groups[0]["lr"] = -0.25
    assert_equal(steps(optimizer, params, grads[3:]), expected)


@pytest.mark.parametrize("name", ["lr", "learning_rate"])
def test_a_factor_may_be_given_to_a_rule_without_a_rate(name: str) -> None:
    given: dict[str, Any] = {name: -0.25}
    optimizer = TorchOptimizer(leaves().items(), ft.scale_by_adam, **given)
    assert optimizer.param_groups[0]["lr"] == -0.25


def test_a_made_rule_takes_lr_as_a_factor() -> None:
    assert TorchOptimizer(leaves().items(), ft.chain(ft.trace(0.9)), lr=-0.25).param_groups[0]["lr"] == -0.25


# --- masks and what else is no plain value


def biases(path: str, p: Tensor) -> bool:
    return path.endswith("bias")


def test_a_mask_sees_the_names_of_the_parameters() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    params = dict(module.named_parameters())
    seen: list[str] = []

    def noted(path: str, p: Tensor) -> bool:
        seen.append(path)
        return biases(path, p)

    optimizer = TorchOptimizer(module.named_parameters(), ft.adamw, lr=0.1, weight_decay=0.5, mask=ft.mask_by(noted))
    before = values(params)
    steps(optimizer, params, [{name: torch.zeros_like(p) for name, p in params.items()}])
    assert set(seen) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    for name, p in params.items():  # without a gradient's pull, decay alone moves: by 1 - 0.1 × 0.5
        expected = before[name] * (0.95 if name.endswith("bias") else 1.0)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-14, atol=0)


def test_parameters_without_names_are_masked_by_their_numbers() -> None:
    seen: set[str] = set()
    mask = ft.mask_by(lambda path, p: bool(seen.add(path)))
    params = leaves()
    halves = [{"params": list(params.values())[:2]}, {"params": list(params.values())[2:]}]
    steps(TorchOptimizer(halves, ft.adamw, lr=0.1, mask=mask), params, history(1))
    assert seen == {"0", "1", "2", "3", "4"}


def test_what_is_no_plain_value_is_in_no_group() -> None:
    optimizer = TorchOptimizer(
        leaves().items(), ft.adamw, lr=DECAY, mask=MATRICES, mu_dtype=torch.float32, weight_decay=0.1
    )
    (group,) = optimizer.param_groups
    assert set(group) == {"params", "param_names", "lr", "b1", "b2", "eps", "eps_root", "nesterov", "weight_decay"}
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["param_groups"][0]["weight_decay"] == 0.1


# --- messages

PARAMS = leaves()
SAID: dict[str, tuple[Any, dict[str, Any], str]] = {
    "unknown": (
        ft.sgd,
        {"lr": 0.1, "betas": (0.9, 0.99)},
        "TorchOptimizer: sgd has no argument 'betas'; hint: it has learning_rate, momentum, nesterov, "
        "accumulator_dtype",
    ),
    "missing": (ft.lion, {}, "TorchOptimizer: lion needs learning_rate; hint: TorchOptimizer(params, lion, "
                "learning_rate=...)"),
    "doubled": (
        ft.lion,
        {"lr": 0.1, "learning_rate": 0.1},
        "TorchOptimizer: lr and learning_rate are both given, and they are one",
    ),
    "chain": (
        ft.chain,
        {},
        "TorchOptimizer: chain needs transforms; hint: give a transformation that is made: "
        "TorchOptimizer(params, ft.chain(...))",
    ),
    "no rule": (
        0.1,
        {},
        "TorchOptimizer: rule is a float, neither a factory nor a GradientTransformation; "
        "hint: TorchOptimizer(model.parameters(), ft.lion, learning_rate=1e-3)",
    ),
    "made": (
        ft.chain(ft.scale(0.1)),
        {"b1": 0.9},
        "TorchOptimizer: chain(scale(0.1)) is made, and has no argument 'b1'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "options", "message"), SAID.values(), ids=SAID)
def test_what_is_wrong_with_arguments_is_said(rule: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        TorchOptimizer(PARAMS.items(), rule, **options)
    assert str(caught.value) == message


def test_a_value_out_of_range_is_said_at_once_and_leaves_no_group_behind() -> None:
    with pytest.raises(ValueError, match="b1"):
        TorchOptimizer(PARAMS.items(), ft.adamw, lr=0.1, b1=1.5)
    optimizer = TorchOptimizer(list(PARAMS.items())[:1], ft.adamw, lr=0.1)
    with pytest.raises(ValueError, match="b1"):
        optimizer.add_param_group({"params": list(PARAMS.items())[1:], "b1": 1.5})
    assert len(optimizer.param_groups) == 1


def test_its_repr_names_the_rule() -> None:
    assert repr(TorchOptimizer(PARAMS.items(), ft.lion, lr=0.1)).startswith("TorchOptimizer of lion (\nParameter Group")
    assert repr(TorchOptimizer(PARAMS.items(), ft.chain(ft.scale(0.1)))).startswith(
        "TorchOptimizer of chain(scale(0.1)) (\nParameter Group"
    )


def test_a_mask_that_is_a_dict_by_name_holds_when_a_gradient_is_missing() -> None:
    params = {name: torch.nn.Parameter(torch.ones(2)) for name in ("a", "b")}
    mask = {"a": True, "b": False}
    optimizer = TorchOptimizer(params.items(), ft.adamw, learning_rate=0.1, weight_decay=0.5, mask=mask)
    for missing in (None, "a", "b"):
        for name, p in params.items():
            p.grad = None if name == missing else torch.zeros(2)
        optimizer.step()
    assert params["a"].tolist() == pytest.approx([0.95**2] * 2)  # each of two steps decays it by 0.1 * 0.5
    assert params["b"].tolist() == [1.0] * 2


def test_a_mask_without_an_entry_for_a_parameter_is_an_error() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = TorchOptimizer([p], ft.adamw, learning_rate=0.1, mask={"a": True})
    p.grad = torch.zeros(2)
    with pytest.raises(ValueError, match="the mask") as caught:
        optimizer.step()
    assert str(caught.value) == (
        "TorchOptimizer: the mask has no entry for parameter '0'; hint: name the parameters as the mask does: "
        "TorchOptimizer(model.named_parameters(), ...)"
    )
