"""What an optimizer is given: parameters, and the values of groups. Errors are torch's, and say what to do.

Each message begins as torch's does, so that whoever looks for torch's words finds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


def check_params(where: str, params: Iterable[T]) -> list[T]:
    """The parameters or groups as a list.

    Raises:
        TypeError, ValueError: it is a tensor, not iterable, or empty.
    """
    if isinstance(params, Tensor):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, but got "
            f"{torch.typename(params)}; hint: {where}([tensor])"
        )
    given: object = params  # users are not all type-checked
    if not isinstance(given, Iterable):
        hint = "call it: model.parameters()" if callable(given) else f"{where}(model.parameters())"
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, but got "
            f"{type(given).__name__}; hint: {hint}"
        )
    found = list(params)
    if not found:
        raise ValueError(
            f"optimizer got an empty parameter list; hint: {where} was given nothing to train: does the module have "
            "parameters, or was its generator used up before?"
        )
    return found


def check_group(where: str, group: object, others: Sequence[Mapping[str, object]]) -> None:
    """Find what torch would find when a group is added, with the parameter's place in the message.

    Raises:
        TypeError, ValueError: a parameter is not a tensor, not a leaf, or there already.
    """
    if not isinstance(group, dict):
        raise TypeError(f"param_group must be a dict, but got {type(group)}; hint: {{'params': [...], 'lr': 0.1}}")
    if "params" not in group:
        raise KeyError(f"params: the group has none; hint: {where}([{{'params': [...], 'lr': 0.1}}])")
    params = group["params"]
    if isinstance(params, Tensor | set) or not isinstance(params, Iterable):
        return  # torch takes one tensor, and says what is wrong with the others
    group["params"] = found = list(params)
    there = {id(p): i for i, other in enumerate(others) for p in _tensors(other["params"])}
    for i, entry in enumerate(found):
        name, p = entry if isinstance(entry, tuple) else (i, entry)
        if not isinstance(p, Tensor):
            hints = {str: "; hint: .values() or .items() of a dict"}
            hint = "; hint: module.parameters()" if isinstance(p, torch.nn.Module) else hints.get(type(p), "")
            raise TypeError(
                f"optimizer can only optimize Tensors, but one of the params is {torch.typename(p)}; it is parameter "
                f"{name!r} of group {len(others)}{hint}"
            )
        if not (p.is_leaf or p.retains_grad):
            raise ValueError(
                f"can't optimize a non-leaf Tensor; parameter {name!r} of group {len(others)} was computed from "
                "others; hint: .detach().requires_grad_() makes a leaf of its values"
            )
        if id(p) in there:
            raise ValueError(
                f"some parameters appear in more than one parameter group; parameter {name!r} of group {len(others)} "
                f"is in group {there[id(p)]} too"
            )


def _tensors(params: object) -> Iterable[object]:
    return params if isinstance(params, list | tuple) else [params]


# --- the values of groups


def check_values(**values: object) -> None:
    """Raise ValueError, in torch's words, for a hyper-parameter out of its range.

    Ranges go by the name that torch gives the argument.
    """
    lr = values.get("lr")
    check_rate(lr)
    for name, label in NON_NEGATIVE.items():
        value = values.get(name)
        if isinstance(value, int | float | Tensor) and not value >= 0:
            raise ValueError(f"Invalid {label}: {value}; hint: it is at least 0")
    betas = values.get("betas")
    if isinstance(betas, tuple | list):
        if "amsgrad" in values and len({isinstance(b, Tensor) for b in betas}) > 1:  # only Adam minds
            raise ValueError("betas must be either both floats or both Tensors")
        for i, b in enumerate(betas):
            if isinstance(b, Tensor) and b.numel() != 1:
                raise ValueError(f"Tensor betas[{i}] must be 1-element; it has shape {tuple(b.shape)}")
            if not 0 <= b < 1:
                raise ValueError(f"Invalid beta parameter at index {i}: {b}; hint: it is in [0, 1)")
    if values.get("fused") and values.get("differentiable"):
        raise RuntimeError("`fused` does not support `differentiable`; hint: as_transform() is differentiable")
    if values.get("fused") and values.get("foreach"):
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if values.get("foreach") and not values.get("capturable") and "amsgrad" in values:  # Adam's own rule in torch
        for name, x in {"lr": lr, **{f"betas[{i}]": b for i, b in enumerate(cast("Sequence[object]", betas))}}.items():
            if isinstance(x, Tensor):
                raise ValueError(f"{name} as a Tensor is not supported for capturable=False and foreach=True")


def check_rate(lr: object) -> None:
    """Raise ValueError for a learning rate in a tensor of several entries."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element; it has shape {tuple(lr.shape)}")


def require(condition: bool, message: str) -> None:
    """Raise ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


NON_NEGATIVE = {
    "lr": "learning rate",
    "eps": "epsilon value",
    "weight_decay": "weight_decay value",
    "momentum": "momentum value",
    "lr_decay": "lr_decay value",
    "momentum_decay": "momentum_decay value",
    "initial_accumulator_value": "initial_accumulator_value value",
    "alpha": "alpha value",
}
