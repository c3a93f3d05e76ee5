"""Schedules of several pieces, one after another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from functrain import ranges
from functrain.base import rule
from functrain.schedules.pieces import cosine_decay_schedule, exponential_decay, linear_schedule
from functrain.schedules.values import Scalar, Schedule, as_schedule, floating, integer, like


@rule
def join_schedules(schedules: Sequence[Callable[[Tensor], Scalar]], boundaries: Sequence[int]) -> Schedule:
    """One schedule after another, each counting from its own beginning.

    Args:
        schedules: the pieces.
        boundaries: the counts at which the second, the third ... begins.

    Raises:
        ValueError: the boundaries are not one fewer than the schedules.
    """
    if len(boundaries) != len(schedules) - 1:
        raise ValueError(
            f"join_schedules: {len(schedules)} schedules meet at {len(schedules) - 1} boundaries, got {len(boundaries)}"
        )
    first, *rest = map(as_schedule, schedules)

    def schedule(count: Tensor | int) -> Tensor:
        t = integer(count)
        value = first(t)
        for boundary, piece in zip(boundaries, rest, strict=True):
            value = torch.where(t < boundary, value, piece((t - boundary).clamp(min=0)))
        return value

    return schedule


@rule
def piecewise_constant_schedule(
    init_value: Scalar, boundaries_and_scales: Mapping[int, float] | None = None
) -> Schedule:
    """I, multiplied by a factor at each boundary.

    Args:
        init_value: I.
        boundaries_and_scales: from count to factor >= 0; the factor holds from that count on.
    """
    steps = _steps("piecewise_constant_schedule", boundaries_and_scales)

    def schedule(count: Tensor | int) -> Tensor:
        t = floating(count)
        value = like(init_value, t)
        for boundary, factor in steps:
            value = torch.where(t < boundary, value, value * factor)
        return value

    return schedule


@rule
def piecewise_interpolate_schedule(
    interpolate_type: str, init_value: Scalar, boundaries_and_scales: Mapping[int, float] | None = None
) -> Schedule:
    """The values of `piecewise_constant_schedule` at its boundaries, and lines or half cosines between them.

    Args:
        interpolate_type: "linear" or "cosine".
        init_value: the value at count 0.
        boundaries_and_scales: from count to factor >= 0.
    """
    if interpolate_type not in ("linear", "cosine"):
        raise ValueError(
            f"piecewise_interpolate_schedule: interpolate_type must be 'linear' or 'cosine', got {interpolate_type!r}"
        )
    steps = _steps("piecewise_interpolate_schedule", boundaries_and_scales)
    bounds = [0, *(boundary for boundary, _ in steps)]
    factors = list(itertools.accumulate((factor for _, factor in steps), lambda a, b: a * b, initial=1.0))

    def schedule(count: Tensor | int) -> Tensor:
        t = floating(count)
        value = like(factors[-1], t)
        for i in reversed(range(len(steps))):
            s = (t - bounds[i]) / max(bounds[i + 1] - bounds[i], 1)
            s = s if interpolate_type == "linear" else (1 - torch.cos(math.pi * s)) / 2
            value = torch.where(t < bounds[i + 1], factors[i] + (factors[i + 1] - factors[i]) * s, value)
        return like(init_value * value, t)

    return schedule


def _steps(where: str, boundaries_and_scales: Mapping[int, float] | None) -> list[tuple[int, float]]:
    steps = sorted((boundaries_and_scales or {}).items())
    for boundary, factor in steps:
        ranges.non_negative(where, **{f"the factor at {boundary}": factor})
    return steps


@rule
def warmup_constant_schedule(init_value: Scalar, peak_value: Scalar, warmup_steps: int) -> Schedule:
    """A line from I up to the peak in `warmup_steps` updates, and the peak from then on."""
    return linear_schedule(init_value, peak_value, warmup_steps)


@rule
def warmup_cosine_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: int,
    decay_steps: int,
    end_value: Scalar = 0.0,
    exponent: Scalar = 1.0,
) -> Schedule:
    """A line from I up to the peak, then half a cosine down to E.

    Args:
        init_value: I.
        peak_value: the value at count `warmup_steps`.
        warmup_steps: the length of the line.
        decay_steps: the length of the whole, above `warmup_steps`; E from then on.
        end_value: E.
        exponent: p of `cosine_decay_schedule`.
    """
    if decay_steps <= warmup_steps:
        raise ValueError(
            f"warmup_cosine_decay_schedule: decay_steps must be > warmup_steps = {warmup_steps}, got {decay_steps}; "
            "hint: decay_steps is the length of the whole, warmup included"
        )
    off = not isinstance(peak_value, Tensor) and peak_value == 0
    up = linear_schedule(init_value, peak_value, warmup_steps)
    down = cosine_decay_schedule(
        peak_value, decay_steps - warmup_steps, 0.0 if off else end_value / peak_value, exponent
    )
    return join_schedules([up, down], [warmup_steps])


@rule
def warmup_exponential_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> Schedule:
    """A line from I up to the peak in `warmup_steps` updates, then `exponential_decay` from the peak."""
    up = linear_schedule(init_value, peak_value, warmup_steps)
    down = exponential_decay(peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value)
    return join_schedules([up, down], [warmup_steps])


@rule
def linear_onecycle_schedule(
    transition_steps: int,
    peak_value: Scalar,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Three lines: from I = peak / `div_factor` up to the peak, back down to I, and on to I / `final_div_factor`.

    Args:
        transition_steps: T > 0, the length of the whole.
        peak_value: the greatest value.
        pct_start: where the peak is, as a fraction of T.
        pct_final: where the value is I again, as a fraction of T.
        div_factor: peak / I.
        final_div_factor: I / the last value.

    Reference:
        Smith & Topin, Super-Convergence, 2017. https://arxiv.org/abs/1708.07120
    """
    ranges.positive("linear_onecycle_schedule", transition_steps=transition_steps)
    turns = {
        int(pct_start * transition_steps): div_factor,
        int(pct_final * transition_steps): 1 / div_factor,
        transition_steps: 1 / final_div_factor,
    }
    return piecewise_interpolate_schedule("linear", peak_value / div_factor, turns)


@rule
def cosine_onecycle_schedule(
    transition_steps: int,
    peak_value: Scalar,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Two half cosines: from I = peak / `div_factor` up to the peak, and down to I / `final_div_factor`.

    Args:
        transition_steps: T > 0, the length of the whole.
        peak_value: the greatest value.
        pct_start: where the peak is, as a fraction of T.
        div_factor: peak / I.
        final_div_factor: I / the last value.

    Reference:
        Smith & Topin, Super-Convergence, 2017. https://arxiv.org/abs/1708.07120
    """
    ranges.positive("cosine_onecycle_schedule", transition_steps=transition_steps)
    turns = {int(pct_start * transition_steps): div_factor, transition_steps: 1 / (div_factor * final_div_factor)}
    return piecewise_interpolate_schedule("cosine", peak_value / div_factor, turns)


class WarmupCosineDecay(TypedDict, total=False):
    """Arguments of `warmup_cosine_decay_schedule`, one cycle of `sgdr_schedule`."""

    init_value: Scalar
    peak_value: Scalar
    warmup_steps: int
    decay_steps: int
    end_value: Scalar
    exponent: Scalar


@rule
def sgdr_schedule(cosine_kwargs: Sequence[WarmupCosineDecay]) -> Schedule:
    """Warm restarts: one `warmup_cosine_decay_schedule` after another.

    Args:
        cosine_kwargs: the arguments of each; its `decay_steps` is the length of the cycle.

    Reference:
        Loshchilov & Hutter, SGDR, 2017. https://arxiv.org/abs/1608.03983
    """
    ends = list(itertools.accumulate(cycle["decay_steps"] for cycle in cosine_kwargs))
    return join_schedules([warmup_cosine_decay_schedule(**cycle) for cycle in cosine_kwargs], ends[:-1])
