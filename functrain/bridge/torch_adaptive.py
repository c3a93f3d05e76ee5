"""The classes of torch.optim that follow a mean gradient, each entry at its own rate: Adam's family."""

from __future__ import annotations

from functrain.base import GradientTransformation
from functrain.bridge.face import Params
from functrain.bridge.torch_face import Number, TorchFace, descend, elementwise
from functrain.transforms.adaptive import scale_by_adam
from functrain.transforms.histories import scale_by_adamax
from functrain.transforms.torch_adaptive import scale_by_torch_amsgrad, scale_by_torch_nadam, scale_by_torch_radam


class Adam(TorchFace):
    """Mean gradient over root mean square.

        m ← β₁ m + (1 - β₁) g                 v ← β₂ v + (1 - β₂) g²
        p ← p - η (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε)

    Args:
        betas: (β₁, β₂), each in [0, 1).
        eps: ε >= 0, in the unit of g.
        amsgrad: divide by the greatest v so far.
        decoupled_weight_decay: as AdamW.

    Reference:
        Kingma & Ba, Adam, 2015, algorithm 1. https://arxiv.org/abs/1412.6980
    """

    traits = elementwise({"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"})

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        compile: bool = False,
    ) -> None:
        values: dict[str, object] = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize,
            foreach=foreach, capturable=capturable, differentiable=differentiable, fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip
        super().__init__(params, values, compile)

    @staticmethod
    def rule(
        lr: Number,
        betas: tuple[Number, Number],
        eps: Number,
        weight_decay: Number,
        amsgrad: bool,
        maximize: bool,
        decoupled_weight_decay: bool,
        **rest: object,
    ) -> GradientTransformation:
        """Weight decay before Adam, or decoupled behind it."""
        step = scale_by_torch_amsgrad(*betas, eps) if amsgrad else scale_by_adam(*betas, eps)
        return descend(lr, step, weight_decay, maximize, decoupled_weight_decay)


class AdamW(Adam):
    """Adam with decoupled weight decay.

        p ← p - η (m̂ / (√v̂ + ε) + λ p)

    Reference:
        Loshchilov & Hutter, Decoupled weight decay regularization, 2019, algorithm 2. https://arxiv.org/abs/1711.05101
    """

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize, capturable=capturable,
            differentiable=differentiable, fused=fused, decoupled_weight_decay=True, compile=compile,
        )  # fmt: skip


class Adamax(TorchFace):
    """Mean gradient over the greatest gradient, the older ones counting less.

        m ← β₁ m + (1 - β₁) g                 v ← max(β₂ v, |g| + ε)
        p ← p - η (m / (1 - β₁ᵗ)) / v

    Args:
        betas: (β₁, β₂), each in [0, 1).
        eps: ε >= 0, in the unit of g.

    Reference:
        Kingma & Ba, Adam, 2015, algorithm 2. https://arxiv.org/abs/1412.6980
    """

    traits = elementwise({"count": "step", "mu": "exp_avg", "nu": "exp_inf"})

    def __init__(
        self,
        params: Params,
        lr: Number = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        compile: bool = False,
    ) -> None:
        values: dict[str, object] = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=foreach, maximize=maximize,
            differentiable=differentiable, capturable=capturable,
        )  # fmt: skip
        super().__init__(params, values, compile)

    @staticmethod
    def rule(
        lr: Number,
        betas: tuple[Number, Number],
        eps: Number,
        weight_decay: Number,
        maximize: bool,
        **rest: object,
    ) -> GradientTransformation:
        """Weight decay, then Adamax."""
        return descend(lr, scale_by_adamax(*betas, eps), weight_decay, maximize)


class NAdam(TorchFace):
    """Adam that steps as if one update ahead, with a momentum that grows.

        μₜ = β₁ (1 - 0.96^(t ψ) / 2)
        p ← p - η (μₜ₊₁ m / (1 - ∏μ up to t+1) + (1 - μₜ) g / (1 - ∏μ up to t)) / (√v̂ + ε)

    Args:
        betas: (β₁, β₂), each in [0, 1).
        eps: ε >= 0, in the unit of g.
        momentum_decay: ψ >= 0.
        decoupled_weight_decay: shrink the parameter, as AdamW does.

    Reference:
        Dozat, Incorporating Nesterov momentum into Adam, 2016, algorithm 2.
    """

    traits = elementwise({"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"})

    def __init__(
        self,
        params: Params,
        lr: Number = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        compile: bool = False,
    ) -> None:
        values: dict[str, object] = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay,
            decoupled_weight_decay=decoupled_weight_decay, maximize=maximize, foreach=foreach, capturable=capturable,
            differentiable=differentiable,
        )  # fmt: skip
        super().__init__(params, values, compile)

    @staticmethod
    def rule(
        lr: Number,
        betas: tuple[Number, Number],
        eps: Number,
        weight_decay: Number,
        momentum_decay: Number,
        decoupled_weight_decay: bool,
        maximize: bool,
        **rest: object,
    ) -> GradientTransformation:
        """Weight decay before NAdam, or decoupled behind it."""
        step = scale_by_torch_nadam(*betas, eps, momentum_decay)
        return descend(lr, step, weight_decay, maximize, decoupled_weight_decay)


class RAdam(TorchFace):
    """Adam that waits with dividing until the variance of its divisor is known.

        ρ∞ = 2 / (1 - β₂) - 1                 ρ = ρ∞ - 2 t β₂ᵗ / (1 - β₂ᵗ)
        p ← p - η m̂ r / (√v + ε) √(1 - β₂ᵗ)   where ρ > 5, with r = √((ρ-4)(ρ-2)ρ∞ / ((ρ∞-4)(ρ∞-2)ρ)), else p - η m̂

    Args:
        betas: (β₁, β₂), each in [0, 1).
        eps: ε >= 0, in the unit of g.
        decoupled_weight_decay: shrink the parameter, as AdamW does.

    Reference:
        Liu et al., On the variance of the adaptive learning rate and beyond, 2020, algorithm 2.
        https://arxiv.org/abs/1908.03265
    """

    traits = elementwise({"count": "step", "mu": "exp_avg", "nu": "exp_avg_sq"})

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        compile: bool = False,
    ) -> None:
        values: dict[str, object] = dict(
            lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize, foreach=foreach,
            capturable=capturable, decoupled_weight_decay=decoupled_weight_decay, differentiable=differentiable,
        )  # fmt: skip
        super().__init__(params, values, compile)

    @staticmethod
    def rule(
        lr: Number,
        betas: tuple[Number, Number],
        eps: Number,
        weight_decay: Number,
        decoupled_weight_decay: bool,
        maximize: bool,
        **rest: object,
    ) -> GradientTransformation:
        """Weight decay before RAdam, or decoupled behind it."""
        return descend(lr, scale_by_torch_radam(*betas, eps), weight_decay, maximize, decoupled_weight_decay)
