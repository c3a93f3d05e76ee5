"""Schedules of one piece."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from functrain import ranges
from functrain.base import rule
from functrain.schedules.values import Scalar, Schedule, as_schedule, floating, like


@rule
def constant_schedule(value: Scalar) -> Schedule:
    """The same value at every count."""
    return as_schedule(value)


@rule
def polynomial_schedule(
    init_value: Scalar, end_value: Scalar, power: Scalar, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    """From I to E along a power of the fraction of updates that remain.

        E + (I - E) (1 - s)ᵖ        s = (t - B) / T, held between 0 and 1

    Args:
        init_value: I.
        end_value: E.
        power: p.
        transition_steps: T; with T <= 0 the value stays I.
        transition_begin: B; a negative one is read as 0.
    """
    if transition_steps <= 0:
        return as_schedule(init_value)
    begin = max(transition_begin, 0)

    def schedule(count: Tensor | int) -> Tensor:
        s = (floating(count) - begin).clamp(0, transition_steps) / transition_steps
        return like(end_value + (init_value - end_value) * (1 - s) ** power, s)

    return schedule


@rule
def linear_schedule(
    init_value: Scalar, end_value: Scalar, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    """From I to E in a straight line: `polynomial_schedule` with power 1.

    Args:
        init_value: I.
        end_value: E.
        transition_steps: T; with T <= 0 the value stays I.
        transition_begin: the last count with the value I; a negative one is read as 0.
    """
    return polynomial_schedule(init_value, end_value, 1, transition_steps, transition_begin)


@rule
def cosine_decay_schedule(
    init_value: Scalar, decay_steps: int, alpha: Scalar = 0.0, exponent: Scalar = 1.0
) -> Schedule:
    """From I to α I along half a cosine.

        I (α + (1 - α) ((1 + cos(π s)) / 2)ᵖ)        s = min(t / T, 1)

    Args:
        init_value: I.
        decay_steps: T > 0.
        alpha: α, the end value as a fraction of I.
        exponent: p.

    Reference:
        Loshchilov & Hutter, SGDR, 2017, equation 5. https://arxiv.org/abs/1608.03983
    """
    ranges.positive("cosine_decay_schedule", decay_steps=decay_steps)

    def schedule(count: Tensor | int) -> Tensor:
        s = floating(count).clamp(max=decay_steps) / decay_steps
        cosine = (1 + torch.cos(math.pi * s)) / 2
        return like(init_value * (alpha + (1 - alpha) * cosine**exponent), s)

    return schedule


@rule
def exponential_decay(
    init_value: Scalar,
    transition_steps: int,
    decay_rate: float,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> Schedule:
    """A factor every T updates.

        I rˢ        s = max(t - B, 0) / T, rounded down on a staircase

    Args:
        init_value: I.
        transition_steps: T; with T <= 0 the value stays I.
        decay_rate: r; with r = 0 the value stays I.
        transition_begin: B; a negative one is read as 0.
        staircase: change at multiples of T only.
        end_value: the least value if r < 1, the greatest if not.
    """
    if transition_steps <= 0 or decay_rate == 0:
        return as_schedule(init_value)
    begin = max(transition_begin, 0)

    def schedule(count: Tensor | int) -> Tensor:
        s = (floating(count) - begin).clamp(min=0) / transition_steps
        value = like(init_value * decay_rate ** (s.floor() if staircase else s), s)
        if end_value is None:
            return value
        bound = torch.maximum if decay_rate < 1 else torch.minimum
        return bound(value, like(end_value, s))

    return schedule
