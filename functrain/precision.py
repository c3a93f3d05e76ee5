"""Precision policies, and the guard that watches for numbers that are not finite.

A policy says in what dtype a loss is computed. `"bf16"` and `"fp16"` are autocast over float32 parameters: matrix
products in half precision, reductions in float32. A `Precision` casts instead: everything computes in one dtype.

float16 has few exponents, so its gradients are taken of the loss times a scale, and divided by it afterwards. The scale
is state, in the `Guard`: halved when a gradient overflows, doubled after `GROWTH_INTERVAL` updates that did not.

It is saved with the rest of the state, whatever the precision, and a run goes on with what the file has. Only fp16
reads or changes it: a run that comes to fp16 from another precision begins at 2¹⁶, or, if it had been there before,
with the scale that it had then.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor

PrecisionLike = Literal["fp32", "bf16", "fp16"] | None


class Guard(NamedTuple):
    """What a step remembers about numbers that were not finite."""

    scale: Tensor  # (), float32: the loss scale; without one nothing reads it
    good_steps: Tensor  # (), int32: updates since the scale last changed
    skipped: Tensor  # (), int32: updates skipped so far
    skipped_in_row: Tensor  # (), int32: of them, the latest that were not finite, without one applied between


class Precision(NamedTuple):
    """A policy of three dtypes; None leaves what it finds.

    Args:
        compute: of parameters, buffers and floating batch entries inside the loss.
        param: of the parameters in the state; TrainState.create casts to it.
        output: of the loss; where it is a half, float32.
        autocast: of matrix products alone, instead of `compute`.
        scaled: True for a dynamic loss scale.
    """

    compute: torch.dtype | None = None
    param: torch.dtype | None = None
    output: torch.dtype | None = None
    autocast: torch.dtype | None = None
    scaled: bool = False


POLICIES = {
    "fp32": Precision(),
    "bf16": Precision(autocast=torch.bfloat16),
    "fp16": Precision(autocast=torch.float16, scaled=True),
}
FIRST_SCALE = 2.0**16
GROWTH_INTERVAL = 2000


def policy(precision: PrecisionLike | Precision) -> Precision:
    """The policy of this name."""
    if isinstance(precision, Precision):
        return precision
    name = "fp32" if precision is None else precision
    if name not in POLICIES:
        raise ValueError(
            f"train_step: precision must be None, 'fp32', 'bf16', 'fp16' or ft.Precision(...), got {precision!r}"
        )
    return POLICIES[name]


def casting(chosen: Precision, device: torch.device, cache: bool) -> AbstractContextManager[object]:
    """The block in which a loss is evaluated. The cache of cast weights is for plain eager code alone."""
    if chosen.autocast is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=chosen.autocast, cache_enabled=cache)


def first_guard(device: torch.device) -> Guard:
    """A guard that has seen nothing. Its scale is the first of fp16; without scaling nothing reads it."""
    zero = torch.zeros((), dtype=torch.int32, device=device)
    return Guard(torch.full((), FIRST_SCALE, dtype=torch.float32, device=device), zero, zero.clone(), zero.clone())
