"""Optimizers whose steps depend on the size of each leaf, or keep less than an entry an entry.

Arguments that mean the same everywhere:
    learning_rate: η >= 0, or a schedule of it.
    b1, b2: β in [0, 1), memory of an average.
    eps: ε >= 0, in the unit of g.
    eps_root: ε' >= 0, in the unit of g², added under the root.
    weight_decay: λ >= 0, or a schedule of it.
    mask, weight_decay_mask: which leaves decay: a tree of bools, a prefix of one, or a function from parameters to
        that; None is all.
"""

from __future__ import annotations

import torch

from functrain.base import GradientTransformation, identity, rule
from functrain.combinators.chain import chain
from functrain.combinators.select import masked
from functrain.schedules import Scalar, ScalarOrSchedule
from functrain.transforms.adaptive import scale_by_adam
from functrain.transforms.clip import clip_by_block_rms
from functrain.transforms.decay import add_decayed_weights
from functrain.transforms.factored import scale_by_factored_rms
from functrain.transforms.layerwise import scale_by_novograd, scale_by_param_block_rms, scale_by_trust_ratio
from functrain.transforms.momentum import ema, trace
from functrain.transforms.scale import scale, scale_by_learning_rate
from functrain.tree import Tree


@rule
def lamb(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Tree | None = None,
) -> GradientTransformation:
    """Adam's direction for each leaf, with a step in proportion to the leaf's norm. For very large batches.

        r = μ̂ / (√(ν̂ + ε') + ε) + λ p
        p ← p - η ‖p‖ r / ‖r‖

    Every leaf moves by η times its own norm; a leaf of zeros by η r.

    Reference:
        You et al., Large batch optimization for deep learning, 2020, algorithm 2, with φ the identity.
        https://arxiv.org/abs/1904.00962
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )


@rule
def lars(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Tree | None = True,
    trust_coefficient: Scalar = 0.001,
    eps: Scalar = 0.0,
    trust_ratio_mask: Tree = True,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
) -> GradientTransformation:
    """Momentum for each leaf, by gradients in proportion to the leaf's norm. For very large batches.

        r = g + λ p
        m ← β m - η c ‖p‖ r / (‖r‖ + ε)
        p ← p + m, or with Nesterov one step ahead

    The first update of every leaf has the norm η c ‖p‖; that of a leaf of zeros is -η r.

    Args:
        trust_coefficient: c >= 0.
        trust_ratio_mask: which leaves have a trust ratio; the others step by -η r, such as biases and norms should.
        momentum: β in [0, 1), of updates with their learning rate.
        nesterov: step as if one update ahead.

    Reference:
        You et al., Large batch training of convolutional networks, 2017, algorithm 1. https://arxiv.org/abs/1708.03888
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        masked(scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )


@rule
def novograd(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.25,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
) -> GradientTransformation:
    """Momentum of gradients that are divided by the norm of their leaf.

        ν ← β₂ ν + (1 - β₂) ‖g‖²
        μ ← β₁ μ + g / (√(ν + ε') + ε) + λ p
        p ← p - η μ

    Args:
        weight_decay: λ >= 0. It goes through the momentum.

    Reference:
        Ginsburg et al., Stochastic gradient methods with layer-wise adaptive moments, 2019, algorithm 1.
        https://arxiv.org/abs/1905.11286
    """
    return chain(scale_by_novograd(b1, b2, eps, eps_root, weight_decay), scale_by_learning_rate(learning_rate))


@rule
def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Scalar = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Scalar | None = 1.0,
    momentum: Scalar | None = None,
    dtype_momentum: torch.dtype = torch.float32,
    weight_decay_rate: ScalarOrSchedule | None = None,
    eps: Scalar = 1e-30,
    factored: bool = True,
    weight_decay_mask: Tree | None = None,
) -> GradientTransformation:
    """The gradient over its root mean square, in little memory: of a matrix it keeps a row and a column.

        û = g / √V                            V ≈ R C / mean R for matrices
        û ← û / max(1, rms(û) / d)
        p ← p - (η max(rms(p), 0.001) û + λ p)

    With a momentum of None its state for a matrix of n m entries is n + m numbers. PyTorch's Adafactor is another rule.

    Args:
        learning_rate: η >= 0, relative to the size of each leaf; None is 1.
        min_dim_size_to_factor: >= 1; a leaf is factored, over its two largest dimensions, if both have so many entries.
        decay_rate: k >= 0: update t averages with 1 - t^-k.
        decay_offset: updates to leave out of t.
        multiply_by_parameter_scale: if False, η is absolute.
        clipping_threshold: d > 0; None is off.
        momentum: β in [0, 1), of updates with their learning rate, m ← β m + (1 - β) u; None is off.
        dtype_momentum: the dtype of m; for complex parameters a complex one.
        weight_decay_rate: λ >= 0, not multiplied by η; or a schedule; None is off.
        eps: ε >= 0, in the unit of g², added to squares.
        factored: if False, no leaf is factored.

    Reference:
        Shazeer & Stern, Adafactor, 2018, algorithms 4 and 5. https://arxiv.org/abs/1804.04235
    """
    return chain(
        scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps),
        identity() if clipping_threshold is None else clip_by_block_rms(clipping_threshold),
        scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_param_block_rms() if multiply_by_parameter_scale else identity(),
        identity() if momentum is None else ema(momentum, debias=False, accumulator_dtype=dtype_momentum),
        identity() if weight_decay_rate is None else add_decayed_weights(weight_decay_rate, weight_decay_mask),
        scale(-1.0),
    )
