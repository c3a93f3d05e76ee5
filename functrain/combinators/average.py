"""Averaged: a transformation whose parameters are an average of where it went.

An average of the parameters does what a falling learning rate does, without a plan for when to stop. Gradients are
taken between the average and the newest point, so the average is there at every update.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, rule
from functrain.combinators.parts import check_part, update_part
from functrain.counter import first_count, increment
from functrain.schedules import Scalar, ScalarOrSchedule, as_schedule, value_at
from functrain.tree import Tree

T = TypeVar("T")


class ScheduleFreeState(NamedTuple):
    """Where the transformation inside is, and what the average of its points weighs."""

    b1: Tensor  # (), widest float: β₁, for `schedule_free_eval_params`
    weight_sum: Tensor  # (), widest float: the sum of all weights so far
    step_count: Tensor  # (), int32: updates so far, and one
    max_lr: Tensor  # (), widest float: the greatest learning rate so far
    base_optimizer_state: Tree  # the state of the transformation inside
    z: Tree  # like params: where the transformation inside is


@rule
def schedule_free(
    base_optimizer: GradientTransformation,
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    weight_lr_power: Scalar = 2.0,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Train at a point between where an optimizer goes and the average of where it was.

        z ← z + u                             u of the optimizer, by gradients at y and parameters y
        w = (greatest η so far)^k             c = w / (sum of w so far)
        x ← (1 - c) x + c z
        y ← β₁ x + (1 - β₁) z

    The parameters are y. What is evaluated and kept is x, the mean of all z, weighed by w: `schedule_free_eval_params`
    computes it.

    Args:
        base_optimizer: the transformation inside, learning rate included, without momentum: β₁ is in its place.
        learning_rate: η >= 0 of the weights, or a schedule of it: that of base_optimizer. Asked for the update after
            this one, as Optax does: with a warmup from zero the first weight is not zero.
        b1: β₁ in (0, 1]: near 1 gradients are taken near the average.
        weight_lr_power: k. With 0 all z weigh the same.
        state_dtype: the dtype of z; None is the parameter's, but at least float32.

    Raises:
        ValueError: b1 is out of its range, or the schedule returned NaN or an infinity.

    Reference:
        Defazio et al., The road less scheduled, 2024, algorithm 1. https://arxiv.org/abs/2405.15682
    """
    where = "schedule_free"
    check_part(f"{where}: base_optimizer", base_optimizer)
    ranges.non_negative(where, learning_rate=learning_rate)
    if isinstance(b1, int | float) and not 0 < b1 <= 1:
        raise ValueError(f"{where}: b1 must be in (0, 1], got {b1}")
    rate, memory = as_schedule(learning_rate), as_schedule(b1)

    def init(params: Tree) -> ScheduleFreeState:
        count = first_count(params)
        beta = memory(count).clone()
        zero = torch.zeros_like(beta)
        z = tree.map(lambda p: p.to(state_dtype or p.dtype, copy=True), tree.upcast(params))
        return ScheduleFreeState(beta, zero, increment(count), zero.clone(), base_optimizer.init(params), z)

    def update(
        updates: Tree, state: ScheduleFreeState, params: Tree, **extra: object
    ) -> tuple[Tree, ScheduleFreeState]:
        u, base_state = update_part(base_optimizer, updates, state.base_optimizer_state, params, extra)
        max_lr = torch.maximum(state.max_lr, value_at(where, rate, state.step_count))
        weight = max_lr**weight_lr_power
        weight_sum = state.weight_sum + weight
        c = weight / torch.where(weight_sum == 0, 1.0, weight_sum)

        y, z = tree.upcast(params), tree.upcast(state.z)
        x = tree.pointwise(lambda y, z: (y - (1 - b1) * z) / b1, y, z)
        z = tree.pointwise(lambda z, u: z + u, z, tree.upcast(u))
        x = tree.pointwise(lambda x, z: (1 - c) * x + c * z, x, z)
        step = tree.pointwise(lambda x, z, y: b1 * x + (1 - b1) * z - y, x, z, y)
        return tree.cast_like(step, updates), ScheduleFreeState(
            state.b1, weight_sum, increment(state.step_count), max_lr, base_state, tree.cast_like(z, state.z)
        )

    return GradientTransformation(init, update, base_optimizer.needs, base_optimizer.local)


def schedule_free_eval_params(state: Tree, params: T) -> T:
    """The average of `schedule_free`: x = (y - (1 - β₁) z) / β₁, in the dtype of the parameters y.

    Args:
        state: of `schedule_free`; of a chain it is one part.
        params: the parameters that are trained.

    Raises:
        TypeError: another state.
    """
    if not isinstance(state, ScheduleFreeState):
        raise TypeError(
            f"schedule_free_eval_params: the state is a {type(state).__name__}, not a ScheduleFreeState; "
            "hint: the state of a chain is a tuple with a state a part"
        )
    b1 = state.b1
    x = tree.pointwise(lambda y, z: (y - (1 - b1) * z) / b1, tree.upcast(params), state.z)
    return tree.cast_like(x, params)
