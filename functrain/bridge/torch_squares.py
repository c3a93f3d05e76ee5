"""The classes of torch.optim that divide the gradient itself by the size of gradients: RMSprop, Adagrad, Adadelta."""

from __future__ import annotations

import torch
from torch import Tensor

from functrain.base import GradientTransformation, identity
from functrain.bridge.face import Params
from functrain.bridge.given import require
from functrain.bridge.torch_face import Number, TorchFace, descend, elementwise, on, unbounded
from functrain.combinators.chain import chain
from functrain.counter import first_count, increment
from functrain.transforms.adaptive import scale_by_rms, scale_by_stddev
from functrain.transforms.histories import scale_by_adadelta
from functrain.transforms.momentum import trace
from functrain.transforms.torch_adaptive import scale_by_torch_adagrad
from functrain.tree import Tree


class RMSprop(TorchFace):
    """The gradient over its root mean square.

        v ← α v + (1 - α) g²                  b ← μ b + g / (√v + ε)
        p ← p - η b

    Args:
        alpha: α in [0, 1), memory of v.
        eps: ε >= 0, in the unit of g.
        momentum: μ in [0, 1).
        centered: v less the square of the mean gradient: the variance.

    Reference:
        Hinton, Neural Networks for Machine Learning, lecture 6, 2012.
        Graves, Generating sequences with recurrent neural networks, 2013. https://arxiv.org/abs/1308.0850
    """

    traits = elementwise({"count": "step", "nu": "square_avg", "mu": "grad_avg", "trace": "momentum_buffer"})

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        compile: bool = False,
    ) -> None:
        values: dict[str, object] = dict(
            lr=lr, momentum=momentum, alpha=alpha, eps=eps, centered=centered, weight_decay=weight_decay,
            capturable=capturable, foreach=foreach, maximize=maximize, differentiable=differentiable,
        )  # fmt: skip
        super().__init__(params, values, compile)

    @staticmethod
    def rule(
        lr: Number,
        alpha: Number,
        eps: Number,
        weight_decay: Number,
        momentum: Number,
        centered: bool,
        maximize: bool,
        **rest: object,
    ) -> GradientTransformation:
        """Weight decay, the division, and momentum before the rate."""
        by_size = scale_by_stddev if centered else scale_by_rms
        size = by_size(unbounded(alpha), eps, 0.0, eps_in_sqrt=False)
        step = chain(size, trace(unbounded(momentum)) if on(momentum) else identity())
        return descend(lr, step, weight_decay, maximize)


class Adagrad(TorchFace):
    """The gradient over the root of the sum of all squares so far.

        s ← s + g²
        p ← p - η / (1 + (t - 1) γ) g / (√s + ε)

    As in torch there is state before the first step.

    Args:
        lr_decay: γ >= 0.
        initial_accumulator_value: s >= 0 before the first step, in the unit of g².
        eps: ε >= 0, in the unit of g.

    Reference:
        Duchi et al., Adaptive subgradient methods, 2011, figure 1.
    """

    traits = elementwise({"count": "step", "sum": "sum"})

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compile: bool = False,
    ) -> None:
        values: dict[str, object] = dict(
            lr=lr, lr_decay=lr_decay, eps=eps, weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value, foreach=foreach, maximize=maximize,
            differentiable=differentiable, fused=fused,
        )  # fmt: skip
        super().__init__(params, values, compile)

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Add a group, whose parameters have their state at once."""
        super().add_param_group(param_group)
        self.start(len(self.param_groups) - 1)

    @staticmethod
    def rule(
        lr: Number,
        lr_decay: Number,
        weight_decay: Number,
        initial_accumulator_value: Number,
        eps: Number,
        maximize: bool,
        **rest: object,
    ) -> GradientTransformation:
        """Weight decay, then the division."""
        step = scale_by_torch_adagrad(lr_decay, initial_accumulator_value, eps)
        return descend(lr, step, weight_decay, maximize)


class Adadelta(TorchFace):
    """Steps of the size of recent steps, by gradients in the unit of recent gradients.

        G ← ρ G + (1 - ρ) g²
        u = √(X + ε) g / √(G + ε)
        X ← ρ X + (1 - ρ) u²                  p ← p - η u

    Args:
        rho: ρ in [0, 1).
        eps: ε > 0.

    Reference:
        Zeiler, Adadelta, 2012, algorithm 1. https://arxiv.org/abs/1212.5701
    """

    traits = elementwise({"count": "step", "e_g": "square_avg", "e_x": "acc_delta"})

    def __init__(
        self,
        params: Params,
        lr: Number = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        compile: bool = False,
    ) -> None:
        require(0 <= rho <= 1, f"Invalid rho value: {rho}; hint: it is in [0, 1)")
        values: dict[str, object] = dict(
            lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, maximize=maximize, capturable=capturable,
            foreach=foreach, differentiable=differentiable,
        )  # fmt: skip
        super().__init__(params, values, compile)

    @staticmethod
    def rule(
        lr: Number, rho: Number, eps: Number, weight_decay: Number, maximize: bool, **rest: object
    ) -> GradientTransformation:
        """Weight decay, then the division; a counter, which torch keeps."""
        return descend(
            lr,
            chain(
                _counted(), scale_by_adadelta(unbounded(rho), eps if on(eps) else torch.zeros((), dtype=torch.float64))
            ),
            weight_decay,
            maximize,
        )


def _counted() -> GradientTransformation:
    """The identity, counting updates."""

    def update(g: Tree, state: dict[str, Tensor], params: Tree | None = None) -> tuple[Tree, dict[str, Tensor]]:
        return g, {"count": increment(state["count"])}

    return GradientTransformation(lambda params: {"count": first_count(params)}, update, local=True)
