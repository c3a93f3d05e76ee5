"""What a schedule is, and what a transform does with one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from functrain.counter import wide

Scalar: TypeAlias = float | Tensor
Schedule: TypeAlias = Callable[[Tensor | int], Tensor]
ScalarOrSchedule: TypeAlias = Scalar | Callable[[Tensor], Scalar]  # a function of the user's may be plainer


def as_schedule(value: ScalarOrSchedule) -> Schedule:
    """The schedule that a number, a 0-dim tensor or a function of the count stands for."""
    if not callable(value):
        return lambda count: like(value, floating(count))
    return lambda count: like(value(integer(count)), floating(count))


def value_at(where: str, schedule: Schedule, count: Tensor) -> Tensor:
    """schedule(count), found finite wherever it can be read without waiting for a device.

    That is in plain eager code on a CPU: not while compiling, and not under the transforms of `torch.func`.

    Raises:
        ValueError: the value is not finite, or not a scalar; the message names `where` and the count.
    """
    value = schedule(count)
    if value.dim():
        raise ValueError(f"{where}: a schedule must return a number or a 0-dim tensor, got shape {tuple(value.shape)}")
    eager = not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None
    if eager and value.device.type == "cpu" and not math.isfinite(value.detach()):
        raise ValueError(f"{where}: a schedule must return finite values, got {value.item()} at count {int(count)}")
    return value


def integer(count: Tensor | int) -> Tensor:
    return count if isinstance(count, Tensor) else torch.full((), count, dtype=torch.int64)


def floating(count: Tensor | int) -> Tensor:
    t = integer(count)
    return t.to(wide(t.device))


def like(value: Scalar, t: Tensor) -> Tensor:
    """The value as a tensor of the device and dtype of t."""
    return value.to(t.device, t.dtype) if isinstance(value, Tensor) else torch.full_like(t, value)
