"""A rule twice over the same gradients: pure, and as a torch optimizer over parameters with names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from functrain.base import GradientTransformation, apply_updates
from functrain.testing.trial import extras

SHAPES = {"layer.weight": (3, 2), "layer.bias": (3,), "scale": (), "kernel": (2, 3, 2, 2), "head.weight": (1, 4)}
Named = dict[str, Tensor]
Grads = Mapping[str, Tensor | None]


def drawn(seed: int, dtype: torch.dtype = torch.float64) -> Named:
    """A tensor for each name."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return {name: torch.randn(shape, generator=draw, dtype=wide).to(dtype) for name, shape in SHAPES.items()}


def leaves(dtype: torch.dtype = torch.float64) -> Named:
    """Parameters."""
    return {name: p.requires_grad_() for name, p in drawn(0, dtype).items()}


def history(steps: int, dtype: torch.dtype = torch.float64, holes: bool = False) -> list[dict[str, Tensor | None]]:
    """Gradients, a dict a step; with holes every parameter lacks some, each at other steps."""
    every = [drawn(100 + t, dtype) for t in range(steps)]
    if not holes:
        return [dict(g) for g in every]
    return [
        {name: None if (t + 2 * i) % 5 == 1 else x for i, (name, x) in enumerate(g.items())}
        for t, g in enumerate(every)
    ]


def groups(params: Mapping[str, Tensor], **own: Any) -> list[dict[str, Any]]:
    """Two groups, the second with values of its own."""
    pairs = list(params.items())
    return [{"params": pairs[:2]}, {"params": pairs[2:], **own}]


def give(params: Mapping[str, Tensor], g: Grads) -> None:
    """Give parameters their gradients."""
    for name, p in params.items():
        x = g[name]
        p.grad = None if x is None else x.clone()


def steps(optimizer: Optimizer, params: Mapping[str, Tensor], grads: Sequence[Grads]) -> Named:
    """The parameters after these steps."""
    for g in grads:
        give(params, g)
        optimizer.step()
    return values(params)


def values(params: Mapping[str, Tensor]) -> Named:
    """Copies."""
    return {name: p.detach().clone() for name, p in params.items()}


def pure_steps(
    tx: GradientTransformation, params: Mapping[str, Tensor], grads: Sequence[Grads], state: Any = None
) -> tuple[Named, Any]:
    """The same by the pure rule: parameters and state. A missing gradient is a hole."""
    at: Any = values(params)
    state = tx.init(at) if state is None else state
    for g in grads:
        held = {name: () if x is None else x for name, x in g.items()}
        updates, state = tx.update(held, state, at, **extras(tx, at, held))
        at = apply_updates(at, updates)
    return at, state


def arguments(tx: GradientTransformation) -> tuple[Callable[..., GradientTransformation], dict[str, Any]] | None:
    """The factory that made it and its arguments by name; None where they have no names."""
    assert tx.spec
    factory: Any = tx.spec.factory
    signature = inspect.signature(factory)
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values()):
        return None
    return factory, signature.bind(*tx.spec.args, **tx.spec.kwargs).arguments


def assert_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Bit for bit, name by name."""
    assert list(a) == list(b)
    for name, x in a.items():
        assert x.dtype == b[name].dtype, name
        assert torch.equal(x, b[name]), f"{name}: {(x - b[name]).abs().max():.1e} apart"


def assert_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Something changed: what is compared is not two optimizers that do nothing."""
    assert any(not torch.equal(before[name], after[name]) for name in before)
