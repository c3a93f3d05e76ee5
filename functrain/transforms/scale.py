"""Rules that multiply every entry by one number.

A number that changes over time is a schedule, evaluated at the count of updates so far: the first update sees 0. The
state keeps the value that was used last, for people to read; the schedule decides, not the state.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, identity, rule, stateless
from functrain.counter import first_count, increment
from functrain.schedules import Scalar, ScalarOrSchedule, as_schedule, value_at
from functrain.tree import Tree


@rule
def scale(step_size: Scalar) -> GradientTransformation:
    """Multiply by a fixed number, of any sign."""
    return stateless(lambda updates, params: times(step_size, updates), local=True)


class ScaleByScheduleState(NamedTuple):
    """Where the schedule is."""

    count: Tensor  # (), int32: updates so far
    value: Tensor  # (), widest float: the factor of the last update; before the first, the first one's


@rule
def scale_by_schedule(step_size_fn: ScalarOrSchedule) -> GradientTransformation:
    """Multiply by the value of a schedule.

    Args:
        step_size_fn: from the count of updates so far to a number of any sign.

    Raises:
        ValueError: the schedule returned NaN, an infinity or more than one number; seen at once in eager code on a CPU.
    """
    where = "scale_by_schedule"
    schedule = as_schedule(step_size_fn)

    def init(params: Tree) -> ScaleByScheduleState:
        count = first_count(params)
        return ScaleByScheduleState(count, value_at(where, schedule, count))

    def update(
        updates: Tree, state: ScaleByScheduleState, params: Tree | None = None
    ) -> tuple[Tree, ScaleByScheduleState]:
        value = value_at(where, schedule, state.count)
        return times(value, updates), ScaleByScheduleState(increment(state.count), value)

    return GradientTransformation(init, update, local=True)


class ScaleByLearningRateState(NamedTuple):
    """Where the learning rate is."""

    count: Tensor  # (), int32: updates so far
    learning_rate: Tensor  # (), widest float: η of the last update; before the first, the first one's


@rule
def scale_by_learning_rate(
    learning_rate: ScalarOrSchedule | None = None, *, flip_sign: bool = True
) -> GradientTransformation:
    """Step against the gradient.

        u = -η g

    The last part of an optimizer: after it, updates are added to the parameters.

    Args:
        learning_rate: η >= 0, or a schedule of it; None is the identity.
        flip_sign: if False, u = η g.

    Raises:
        TypeError: neither a number nor a function.
        ValueError: a negative number; a schedule that returned NaN, an infinity or more than one number, seen at once
            in eager code on a CPU.
    """
    where = "scale_by_learning_rate"
    if learning_rate is None:
        return identity()
    ranges.number_or_function(where, learning_rate=learning_rate)
    ranges.non_negative(where, learning_rate=learning_rate)
    schedule = as_schedule(learning_rate)

    def init(params: Tree) -> ScaleByLearningRateState:
        count = first_count(params)
        return ScaleByLearningRateState(count, value_at(where, schedule, count))

    def update(
        updates: Tree, state: ScaleByLearningRateState, params: Tree | None = None
    ) -> tuple[Tree, ScaleByLearningRateState]:
        rate = value_at(where, schedule, state.count)
        u = times(-rate if flip_sign else rate, updates)
        return u, ScaleByLearningRateState(increment(state.count), rate)

    return GradientTransformation(init, update, local=True)


def times(factor: Scalar, updates: Tree) -> Tree:
    """The updates times one number, each in its own dtype."""
    return tree.pointwise(lambda g: g * factor, updates)  # the other way round PyTorch makes the factor half too
