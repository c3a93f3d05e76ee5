"""Rules that draw parameters towards zero."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, identity, rule
from functrain.counter import first_count, increment
from functrain.holes import fill, punch
from functrain.masks import holes_outside
from functrain.schedules import Scalar, ScalarOrSchedule, as_schedule, value_at
from functrain.tree import Tree


class AddDecayedWeightsState(NamedTuple):
    """Where the schedule of weight decay is."""

    count: Tensor  # (), int32: updates so far
    weight_decay: Tensor  # (), widest float: λ of the last update; before the first, the first one's


@rule
def add_decayed_weights(weight_decay: ScalarOrSchedule = 0.0, mask: Tree | None = None) -> GradientTransformation:
    """Add a fraction of the parameters to the updates.

        u = g + λ p

    Before a rule that adapts to gradients this is L2 regularization. After it, and before the learning rate, it is
    decoupled weight decay: without gradients each update multiplies the parameters by 1 - η λ.

    Args:
        weight_decay: λ >= 0, or a schedule of it.
        mask: which leaves decay: a tree of bools like the parameters, a prefix of one, or a function from parameters
            to that. Other leaves are untouched, bit for bit. None is all.

    Raises:
        ValueError: a negative number, or a schedule that returned NaN or an infinity.

    Reference:
        Loshchilov & Hutter, Decoupled weight decay regularization, 2019, algorithm 2. https://arxiv.org/abs/1711.05101
    """
    where = "add_decayed_weights"
    ranges.non_negative(where, weight_decay=weight_decay)

    def decayed(g: Tree, params: Tree, rate: Scalar) -> Tree:
        chosen = g if mask is None else punch(g, holes_outside(where, mask, params))
        p = params if mask is None else punch(params, chosen)
        u = tree.cast_like(tree.pointwise(lambda g, p: g + p * rate, chosen, p), chosen)
        return u if mask is None else fill(u, g)

    if callable(weight_decay):
        schedule = as_schedule(weight_decay)

        def init(params: Tree) -> AddDecayedWeightsState:
            count = first_count(params)
            return AddDecayedWeightsState(count, value_at(where, schedule, count))

        def update(g: Tree, state: AddDecayedWeightsState, params: Tree) -> tuple[Tree, AddDecayedWeightsState]:
            rate = value_at(where, schedule, state.count)
            return decayed(g, params, rate), AddDecayedWeightsState(increment(state.count), rate)

        return GradientTransformation(init, update, local=True)

    if not isinstance(weight_decay, Tensor) and weight_decay == 0:
        return identity()
    rate: Scalar = weight_decay
    return GradientTransformation(
        lambda params: (), lambda g, state, params: (decayed(g, params, rate), state), local=True
    )


@rule
def shrink_weights(rate: Scalar) -> GradientTransformation:
    """Draw the parameters towards zero behind the learning rate, as torch.optim does.

        u = g + (p (1 - r) - p)

    Without gradients each update multiplies the parameters by 1 - r, rounded once. With r = η λ this is what
    `add_decayed_weights(λ)` before the learning rate is mathematically; but 1 - r is rounded to the parameter's dtype
    here, and with r near 1e-5 float32 has two digits of it: most of the difference between this and another AdamW.

    Args:
        rate: r >= 0, learning rate times weight decay.
    """
    ranges.non_negative("shrink_weights", rate=rate)
    if not isinstance(rate, Tensor) and rate == 0:
        return identity()
    keep = 1 - rate

    def update(updates: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        u = tree.pointwise(lambda g, p: g + (p * keep - p), updates, tree.upcast(params))
        return tree.cast_like(u, updates), state

    return GradientTransformation(lambda params: (), update, local=True)
