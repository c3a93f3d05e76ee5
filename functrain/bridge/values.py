"""The values of a group: which are numbers in the rule's formula, and which shape the rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from functrain.gradient import functional
from functrain.paths import children
from functrain.tree import Tree

NOT_HYPER = frozenset({"params", "param_names"})  # what else is in a group
RATE = "learning_rate"  # what a rule calls torch's `lr`


def values_of(group: Mapping[str, object]) -> dict[str, object]:
    """The hyper-parameters of a group, and what schedulers note there."""
    return {name: value for name, value in group.items() if name not in NOT_HYPER}


def has_tensor(values: Mapping[str, object]) -> bool:
    """True if some value may change in place."""
    rows = (value if isinstance(value, tuple | list) else (value,) for value in values.values())
    return any(isinstance(x, Tensor) for row in rows for x in row)


def numbers_of(values: Mapping[str, object], static: frozenset[str]) -> tuple[dict[str, Tree], dict[str, object]]:
    """The numbers among a group's values, as 0-dim float64 tensors, also those in tuples; and the other values.

    A plain zero is among the others: it switches a part of the rule off. The learning rate is always a number.
    """
    numbers: dict[str, Tree] = {}
    others: dict[str, object] = {}
    for name, value in values.items():
        if name in static or (name != "lr" and not isinstance(value, Tensor) and value == 0):
            others[name] = value
        elif _is_number(value):
            numbers[RATE if name == "lr" else name] = _tensor(value)
        elif isinstance(value, tuple) and value and all(_is_number(x) for x in value):
            numbers[name] = tuple(_tensor(x) for x in value)
        else:
            others[name] = value
    return numbers, others


def values_from(numbers: Mapping[str, object], others: Mapping[str, object]) -> dict[str, object]:
    """The inverse: numbers as Python numbers in plain eager code on a CPU, as tensors elsewhere."""
    return {**others, **{"lr" if name == RATE else name: _plain(value) for name, value in numbers.items()}}


def _is_number(x: object) -> bool:
    return isinstance(x, float | Tensor) or (isinstance(x, int) and not isinstance(x, bool))


def _tensor(x: object) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach().to("cpu", torch.float64, copy=True)
    return torch.tensor(float(cast("float", x)), dtype=torch.float64)


def _plain(value: object) -> object:
    below = children(value)
    if below is not None:
        return tuple(_plain(x) for _, x in below)
    readable = isinstance(value, Tensor) and not functional() and not value.requires_grad and value.is_cpu
    return cast("Tensor", value).item() if readable else value
