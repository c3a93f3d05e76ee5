"""Rules that average the parameters over time.

The last parameters of a run carry the noise of its last batches; their average over many updates carries little of it,
and is often what is better evaluated and kept. It is part of the state, beside the parameters that are trained.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from functrain import ranges, tree
from functrain.base import GradientTransformation, rule
from functrain.schedules import Scalar
from functrain.tree import Tree


class ParamsEmaState(NamedTuple):
    """The running mean of the parameters."""

    ema: Tree  # like params, in at least float32: mean of p + u


@rule
def params_ema(decay: Scalar) -> GradientTransformation:
    """Keep the mean of all parameters so far, older ones weighing less, and leave the updates as they are.

        e ← β e + (1 - β) (p + u)             before the first update e = p

    It belongs last in a chain, where u is what is added to the parameters:

        tx = chain(adamw(0.001), params_ema(0.999))
        averaged = tree.get(opt_state, "ema")

    The average of constant parameters is those parameters, and with β = 0 it is the parameters after each update, both
    exactly. A leaf without a gradient keeps its average.

    The first parameters still weigh βᵗ after t updates. `inject_hyperparams(params_ema)` takes a schedule for β too:
    with one that begins at 0 they weigh nothing.

    Args:
        decay: β in [0, 1). The mean is over the last 1 / (1 - β) updates or so.
    """
    ranges.unit_interval("params_ema", decay=decay)

    def init(params: Tree) -> ParamsEmaState:
        return ParamsEmaState(tree.map(torch.clone, tree.upcast(params)))

    def update(updates: Tree, state: ParamsEmaState, params: Tree) -> tuple[Tree, ParamsEmaState]:
        p = tree.pointwise(lambda p, u: p + u, params, tree.cast_like(updates, params))  # rounded as apply_updates does
        # β e + (1 - β) p written so that it is exactly p where e = p, and where β = 0
        e = tree.pointwise(lambda e, p: p + decay * (e - p), state.ema, tree.upcast(p))
        return updates, ParamsEmaState(e)

    return GradientTransformation(init, update, local=True)
