"""Optimizers that measure the size of gradients in other ways than Adam.

Arguments that mean the same everywhere:
    learning_rate: η >= 0, or a schedule of it.
    b1, b2, b3, rho: β or ρ in [0, 1), memory of an average.
    eps: ε >= 0, in the unit of g.
    eps_root: ε' >= 0, in the unit of g², added under the root.
    weight_decay: λ >= 0, decoupled: without gradients each update multiplies the parameters by 1 - η λ; or a schedule.
    mask: which leaves decay: a tree of bools, a prefix of one, or a function from parameters to that; None is all.
    nesterov: look one update ahead, as `nadam` does.
"""

from __future__ import annotations

import torch

from functrain.base import GradientTransformation, rule
from functrain.combinators.chain import chain
from functrain.schedules import Scalar, ScalarOrSchedule
from functrain.transforms.beliefs import scale_by_amsgrad, scale_by_belief, scale_by_radam, scale_by_yogi
from functrain.transforms.decay import add_decayed_weights
from functrain.transforms.histories import scale_by_adadelta, scale_by_adamax, scale_by_adan, scale_by_rss
from functrain.transforms.scale import scale_by_learning_rate
from functrain.tree import Tree


@rule
def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """The mean gradient over how far gradients are from it: long steps where they are as expected.

        ν ← β₂ ν + (1 - β₂) (g - μ)² + ε'
        p ← p - η μ̂ / (√ν̂ + ε)

    Reference:
        Zhuang et al., AdaBelief, 2020, algorithm 2. https://arxiv.org/abs/2010.07468
    """
    return chain(
        scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


@rule
def yogi(
    learning_rate: ScalarOrSchedule, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-3
) -> GradientTransformation:
    """Adam with a mean square that changes by (1 - β₂) g² at most.

        ν ← ν - (1 - β₂) sign(ν - g²) g²
        p ← p - η μ̂ / (√ν̂ + ε)

    Reference:
        Zaheer et al., Adaptive methods for nonconvex optimization, 2018, algorithm 2.
    """
    return chain(scale_by_yogi(b1, b2, eps), scale_by_learning_rate(learning_rate))


@rule
def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    mu_dtype: torch.dtype | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransformation:
    """Adam over the greatest root mean square that there has been, so that no step is longer than one before it.

        ν̌ ← max(ν̌, ν̂)
        p ← p - η μ̂ / (√(ν̌ + ε') + ε)

    PyTorch's Adam with `amsgrad=True` is another rule: it takes the maximum of ν.

    Args:
        mu_dtype: the dtype in which the mean is kept; None is the parameter's, but at least float32.
        bias_correction_mu: if False, μ̂ = μ.
        bias_correction_nu: if False, ν̂ = ν.

    Reference:
        Reddi et al., On the convergence of Adam and beyond, 2018, algorithm 2. https://arxiv.org/abs/1904.09237
    """
    return chain(
        scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu),
        scale_by_learning_rate(learning_rate),
    )


@rule
def radam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam that steps by the mean gradient alone until its mean square is one of enough terms.

    Args:
        threshold: how many, about; at least 4.

    Reference:
        Liu et al., On the variance of the adaptive learning rate and beyond, 2020, algorithm 2.
        https://arxiv.org/abs/1908.03265
    """
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


@rule
def adamax(
    learning_rate: ScalarOrSchedule, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> GradientTransformation:
    """The mean gradient over the greatest gradient, the older ones counting less.

        ν ← max(β₂ ν, |g| + ε)
        p ← p - η μ̂ / ν

    Reference:
        Kingma & Ba, Adam, 2015, algorithm 2. https://arxiv.org/abs/1412.6980
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


@rule
def adamaxw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Tree | None = None,
) -> GradientTransformation:
    """`adamax` with decoupled weight decay.

        p ← p - η (μ̂ / ν + λ p)

    Reference:
        Loshchilov & Hutter, Decoupled weight decay regularization, 2019. https://arxiv.org/abs/1711.05101
    """
    return chain(
        scale_by_adamax(b1, b2, eps),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@rule
def adan(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.98,
    b2: Scalar = 0.92,
    b3: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Tree | None = None,
) -> GradientTransformation:
    """The mean gradient, led by its mean change, over its root mean square.

        p ← p - η ((m̂ + (1 - β₂) v̂) / (√(n̂ + ε') + ε) + λ p)

    The paper weighs v̂ by β₂, and divides by 1 + η λ in place of the decay.

    Reference:
        Xie et al., Adan, 2022, algorithm 1. https://arxiv.org/abs/2208.06677
    """
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@rule
def adadelta(
    learning_rate: ScalarOrSchedule | None = None,
    rho: Scalar = 0.9,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Tree | None = None,
) -> GradientTransformation:
    """Steps of the size of recent steps, along gradients in the unit of recent gradients.

        g ← g + λ p
        p ← p - η √(X + ε) g / √(G + ε)

    Args:
        learning_rate: None leaves out η, and the sign with it, as Optax does: give 1.0.
        eps: ε > 0, in the unit of g² and of u².
        weight_decay: λ >= 0, of L2 regularization; or a schedule.
        weight_decay_mask: which leaves decay, as `mask` of others.

    Reference:
        Zeiler, Adadelta, 2012, algorithm 1. https://arxiv.org/abs/1212.5701
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(learning_rate),
    )


@rule
def adagrad(
    learning_rate: ScalarOrSchedule, initial_accumulator_value: Scalar = 0.1, eps: Scalar = 1e-7
) -> GradientTransformation:
    """The gradient over the root of the sum of all squares so far.

        s ← s + g²
        p ← p - η g / √(s + ε)

    PyTorch's Adagrad begins at s = 0 and has ε beside the root.

    Args:
        initial_accumulator_value: s before the first update, in the unit of g².
        eps: ε >= 0, in the unit of g².

    Reference:
        Duchi et al., Adaptive subgradient methods, 2011, figure 1, with diagonal matrices.
    """
    return chain(scale_by_rss(initial_accumulator_value, eps), scale_by_learning_rate(learning_rate))
