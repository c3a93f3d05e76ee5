"""Optimizers that step along a sum of gradients."""

from __future__ import annotations

import torch

from functrain.base import GradientTransformation, identity, rule
from functrain.combinators.chain import chain
from functrain.schedules import Scalar, ScalarOrSchedule
from functrain.transforms.momentum import trace
from functrain.transforms.scale import scale_by_learning_rate


@rule
def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    accumulator_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Stochastic gradient descent, with momentum.

        m ← g + β m
        p ← p - η m, or with Nesterov p - η (g + β m)

    Args:
        learning_rate: η >= 0, or a schedule of it.
        momentum: β in [0, 1); None keeps no m.
        nesterov: step as if one update ahead.
        accumulator_dtype: the dtype of m.

    Reference:
        Sutskever et al., On the importance of initialization and momentum in deep learning, 2013.
    """
    return chain(
        identity() if momentum is None else trace(momentum, nesterov, accumulator_dtype),
        scale_by_learning_rate(learning_rate),
    )
