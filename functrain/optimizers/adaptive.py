"""Optimizers that step by gradients in the unit of their own size.

Arguments that mean the same everywhere:
    learning_rate: η >= 0, or a schedule of it.
    b1, b2, decay: β in [0, 1), memory of an average.
    eps: ε >= 0, in the unit of g.
    eps_root: ε' >= 0, in the unit of g², added under the root.
    mu_dtype: the dtype in which the mean is kept; None is the parameter's, but at least float32.
    weight_decay: λ >= 0, decoupled: without gradients each update multiplies the parameters by 1 - η λ; or a schedule.
    mask: which leaves decay: a tree of bools, a prefix of one, or a function from parameters to that; None is all.
"""

from __future__ import annotations

import torch

from functrain.base import GradientTransformation, identity, rule
from functrain.combinators.chain import chain
from functrain.schedules import Scalar, ScalarOrSchedule
from functrain.transforms.adaptive import scale_by_adam, scale_by_lion, scale_by_rms, scale_by_stddev
from functrain.transforms.decay import add_decayed_weights
from functrain.transforms.momentum import trace
from functrain.transforms.scale import scale_by_learning_rate
from functrain.tree import Tree


@rule
def adam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam: the mean gradient over its root mean square, both corrected for their beginning at zero.

        p ← p - η μ̂ / (√(ν̂ + ε') + ε)

    Args:
        nesterov: look one update ahead, as `nadam` does.

    Reference:
        Kingma & Ba, Adam, 2015, algorithm 1. https://arxiv.org/abs/1412.6980
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


@rule
def nadam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Adam with Nesterov's step ahead.

    PyTorch's NAdam is another rule: its β₁ changes over time.

    Reference:
        Dozat, Incorporating Nesterov momentum into Adam, 2016.
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=True)


@rule
def adamw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Tree | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam with decoupled weight decay.

        p ← p - η (μ̂ / (√(ν̂ + ε') + ε) + λ p)

    With λ = 0 it is `adam`, bit for bit. PyTorch's default λ is 0.01.

    Args:
        nesterov: look one update ahead, as `nadamw` does.

    Reference:
        Loshchilov & Hutter, Decoupled weight decay regularization, 2019, algorithm 2. https://arxiv.org/abs/1711.05101
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@rule
def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Tree | None = None,
) -> GradientTransformation:
    """Adam with Nesterov's step ahead and decoupled weight decay.

    Reference:
        Dozat, Incorporating Nesterov momentum into Adam, 2016.
    """
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=True)


@rule
def lion(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    mu_dtype: torch.dtype | None = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Tree | None = None,
) -> GradientTransformation:
    """The sign of a mean gradient that leans on the newest, with decoupled weight decay.

        p ← p - η (sign(β₁ μ + (1 - β₁) g) + λ p)
        μ ← β₂ μ + (1 - β₂) g

    Every entry moves by η, decay aside: where Adam's learning rate is good, a third to a tenth of it is good here.

    Reference:
        Chen et al., Symbolic discovery of optimization algorithms, 2023, program 1. https://arxiv.org/abs/2302.06675
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@rule
def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> GradientTransformation:
    """The gradient over its root mean square, or centered over its standard deviation.

        ν ← β ν + (1 - β) g²
        p ← p - η g / √(ν + ε)

    PyTorch's RMSprop has ε beside the root, and applies the learning rate after the momentum.

    Args:
        eps: ε; in the unit of g² where it is under the root.
        initial_scale: ν before the first update.
        eps_in_sqrt: ε under the root, or beside it.
        centered: subtract the square of the mean gradient from ν.
        momentum: in [0, 1), of the updates with their learning rate; None is off.
        nesterov: step as if one update ahead.
        bias_correction: correct the averages for their beginning.

    Reference:
        Hinton, Neural Networks for Machine Learning, lecture 6, 2012.
        Graves, Generating sequences with recurrent neural networks, 2013. https://arxiv.org/abs/1308.0850
    """
    by_size = scale_by_stddev if centered else scale_by_rms
    return chain(
        by_size(decay, eps, initial_scale, eps_in_sqrt, bias_correction),
        scale_by_learning_rate(learning_rate),
        identity() if momentum is None else trace(momentum, nesterov),
    )
