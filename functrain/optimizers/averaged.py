"""Optimizers that average where they go, and need no plan for their learning rate.

Parameters are trained at a point between the newest and the average; `schedule_free_eval_params(state, params)` is the
average, to be evaluated and kept.

Arguments that mean the same everywhere:
    learning_rate: η >= 0, the greatest one.
    warmup_steps: updates over which the rate rises from zero to η, the first being zero; None is no warmup.
    b1: β₁ in (0, 1], how near to the average gradients are taken.
    weight_lr_power: k: a point weighs η^k in the average.
    state_dtype: the dtype of the newest point; None is the parameter's, but at least float32.
"""

from __future__ import annotations

import torch

from functrain.base import GradientTransformation, identity, rule
from functrain.combinators.average import schedule_free
from functrain.combinators.chain import chain
from functrain.schedules import Scalar, ScalarOrSchedule, warmup_constant_schedule
from functrain.transforms.adaptive import scale_by_rms
from functrain.transforms.decay import add_decayed_weights
from functrain.transforms.scale import scale_by_learning_rate


@rule
def schedule_free_adamw(
    learning_rate: Scalar = 0.0025,
    warmup_steps: int | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    weight_lr_power: Scalar = 2.0,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """`schedule_free` around Adam without a mean: the average of points is in its place.

        z ← z - η (g / (√ν̂ + ε) + λ y)

    Args:
        b2: β₂ in [0, 1), memory of ν, the mean square of g.
        eps: ε >= 0, in the unit of g.
        weight_decay: λ >= 0, decoupled.

    Reference:
        Defazio et al., The road less scheduled, 2024, algorithm 1. https://arxiv.org/abs/2405.15682
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    return schedule_free(
        chain(
            scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
            add_decayed_weights(weight_decay),
            scale_by_learning_rate(rate),
        ),
        rate,
        b1,
        weight_lr_power,
        state_dtype,
    )


@rule
def schedule_free_sgd(
    learning_rate: Scalar = 1.0,
    warmup_steps: int | None = None,
    b1: Scalar = 0.9,
    weight_decay: Scalar | None = None,
    weight_lr_power: Scalar = 2.0,
    state_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """`schedule_free` around plain gradient descent.

        z ← z - η (g + λ y)

    Args:
        weight_decay: λ >= 0; None is off.

    Reference:
        Defazio et al., The road less scheduled, 2024, equations 3 to 5. https://arxiv.org/abs/2405.15682
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    decay = identity() if weight_decay is None else add_decayed_weights(weight_decay)
    return schedule_free(chain(decay, scale_by_learning_rate(rate)), rate, b1, weight_lr_power, state_dtype)


def _warmed_up(learning_rate: Scalar, warmup_steps: int | None) -> ScalarOrSchedule:
    return learning_rate if warmup_steps is None else warmup_constant_schedule(0.0, learning_rate, warmup_steps)
