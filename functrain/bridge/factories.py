"""Optimizers by name, and from torch's."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import nn
from torch.optim import Optimizer

from functrain.bridge import optim
from functrain.bridge.face import Face, Params
from functrain.bridge.modules import Model
from functrain.bridge.torch_optimizer import Factory, TorchOptimizer

CLASSES: dict[str, Callable[..., Optimizer]] = {name.lower(): getattr(optim, name) for name in optim.__all__}


def create_optimizer(name: str, params: Params, lr: float | None = None, **kw: object) -> Optimizer:
    """An optimizer by its lower-case name.

        create_optimizer("adamw", model.parameters(), lr=1e-3)      # torch's numbers, where torch has the name
        create_optimizer("lion", model.parameters(), lr=1e-4)       # else functrain's rule of this name

    Args:
        name: a class of torch.optim, or a rule of functrain, in lower case.
        params: parameters, pairs (name, parameter), or groups.
        lr: the learning rate; None is the class's own, where it has one.
        **kw: what else the class or the rule takes.

    Raises:
        ValueError: nothing has this name; the message lists those that are near.
        TypeError: an argument is missing or unknown.
    """
    given = kw if lr is None else {"lr": lr, **kw}
    if name in CLASSES:
        return CLASSES[name](params, **given)
    if name in rules():
        make: Callable[..., Optimizer] = TorchOptimizer
        return make(params, rules()[name], **given)
    known = sorted({*CLASSES, *rules()})
    near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(known)}"
    raise ValueError(f"create_optimizer: no optimizer is called {name!r}; hint: {hint}")


def configure_optimizer(
    model: nn.Module | Model,
    optimizer_type: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    **kw: object,
) -> Optimizer:
    """An optimizer over a module's parameters, in two groups: matrices decay; biases, norms and other vectors do not.

    Frozen parameters are left out, and a tied one is there once. The groups have the module's names.

    Args:
        model: the module.
        optimizer_type: a name that `create_optimizer` knows.
        lr: the learning rate.
        weight_decay: of parameters with two dimensions or more.
        **kw: what else the optimizer takes.

    Raises:
        TypeError: it is no module.
        ValueError: nothing is trainable; the optimizer has no weight decay, and it is not 0.
    """
    module: object = model.module if isinstance(model, Model) else model  # users are not all type-checked
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"configure_optimizer: model must be a torch.nn.Module, got {type(module).__name__}; "
            "hint: the module itself, whose parameters it sorts"
        )
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError(
            f"configure_optimizer: {type(module).__name__} has no parameter with requires_grad; "
            "hint: unfreeze what is to be trained"
        )
    if not _decays(optimizer_type):
        if weight_decay:
            raise ValueError(
                f"configure_optimizer: {optimizer_type!r} has no weight decay, and weight_decay is {weight_decay}; "
                "hint: weight_decay=0"
            )
        return create_optimizer(optimizer_type, named, lr, **kw)
    groups = [
        {"params": [(n, p) for n, p in named if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [(n, p) for n, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return create_optimizer(optimizer_type, [group for group in groups if group["params"]], lr, **kw)


def from_torch(optimizer: Optimizer) -> Optimizer:
    """The equal of a torch.optim instance: its class here, over the same parameters, with its groups and its state.

    Hooks and schedulers stay with the one it was. An optimizer of functrain's is returned as it is.

    Raises:
        TypeError: a class that torch.optim does not have, or has no equal here.
    """
    if isinstance(optimizer, Face | optim.LBFGS):
        return optimizer
    name = type(optimizer).__name__
    if getattr(torch.optim, name, None) is not type(optimizer) or name.lower() not in CLASSES:
        kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        raise TypeError(
            f"from_torch: {kind} has no equal here; hint: there are {', '.join(optim.__all__)}, and "
            "ft.TorchOptimizer(params, rule) for any rule"
        )
    chosen = CLASSES[name.lower()]
    accepted = inspect.signature(chosen).parameters
    defaults = {key: value for key, value in optimizer.defaults.items() if key in accepted}
    groups = [dict(group) for group in optimizer.param_groups]
    for group in groups:
        if "param_names" in group:
            group["params"] = list(zip(group.pop("param_names"), group["params"], strict=True))
    made = chosen(groups, **defaults)
    made.load_state_dict(optimizer.state_dict())
    return made


@cache
def rules() -> dict[str, Factory]:
    """The rules that have a name: optimizers and transforms."""
    return dict(_rules("optimizers")) | {name: f for name, f in _rules("transforms") if name not in CLASSES}


def _rules(folder: str) -> Iterator[tuple[str, Factory]]:
    package = importlib.import_module(f"functrain.{folder}")
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for name, f in vars(importlib.import_module(info.name)).items():
            if hasattr(f, "__wrapped__") and f.__module__ == info.name and not name.startswith("_"):
                yield name, f


def _decays(name: str) -> bool:
    """True if the optimizer of this name takes `weight_decay`; an unknown name is for `create_optimizer` to refuse."""
    made = CLASSES.get(name) or rules().get(name)
    return made is None or "weight_decay" in inspect.signature(made).parameters
