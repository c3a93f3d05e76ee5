"""Optimizers of torch.optim and of functrain.optim over equal parameters, with equal gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from tests.benchmarks.timing import Times, interleave

Leaves = dict[str, Tensor]


def over(kind: Callable[..., Optimizer], params: Leaves, grads: Leaves, **options: object) -> Optimizer:
    """An optimizer of this class over clones of these parameters, which share their gradients with every other's."""
    own = [torch.nn.Parameter(p.clone()) for p in params.values()]
    for p, g in zip(own, grads.values(), strict=True):
        p.grad = g
    return kind(own, **options)


def steps(optimizers: Mapping[str, Optimizer], model: str, rounds: int, calls: int = 1, warmup: int = 3) -> Times:
    """Time their steps in turn. Afterwards all parameters are finite, and differ from the model's by rounding alone.

    Args:
        optimizers: by name.
        model: which of them the others must agree with.
        rounds, calls, warmup: as in `interleave`.

    Raises:
        ArithmeticError: an optimizer is wrong, so its speed means nothing.
    """
    times = interleave({name: made.step for name, made in optimizers.items()}, rounds, calls, warmup)
    expected = _flat(optimizers[model])
    for name, made in optimizers.items():
        x = _flat(made)
        if not x.isfinite().all():
            raise ArithmeticError(f"{name}: {type(made).__name__} has made parameters that are not finite")
        off = float((x - expected).norm() / expected.norm())
        if off > 1e-3:
            raise ArithmeticError(
                f"{name}: {type(made).__name__} is off the parameters of {model} by {off:.1e} of their norm"
            )
    return times


def _flat(optimizer: Optimizer) -> Tensor:
    return torch.cat([p.detach().flatten() for group in optimizer.param_groups for p in group["params"]])
