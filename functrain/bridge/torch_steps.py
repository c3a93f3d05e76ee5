"""The classes of torch.optim with a step of their own: SGD, Rprop, ASGD, Adafactor, Muon."""

from __future__ import annotations

from typing import Literal

from functrain.base import GradientTransformation, identity
from functrain.bridge.face import Params
from functrain.bridge.given import check_rate, require
from functrain.bridge.torch_face import Number, TorchFace, descend, elementwise, on, sign
from functrain.bridge.traits import Traits
from functrain.combinators.chain import chain
from functrain.transforms.decay import add_decayed_weights, shrink_weights
from functrain.transforms.scale import scale
from functrain.transforms.torch_matrix import scale_by_torch_adafactor, scale_by_torch_muon
from functrain.transforms.torch_steps import scale_by_torch_asgd, scale_by_torch_rprop, torch_trace


class SGD(TorchFace):
    """Stochastic gradient descent, with momentum.

        b ← μ b + (1 - d) g, at first g
        p ← p - η b, or with Nesterov p - η (g + μ b)

    Args:
        momentum: μ in [0, 1); with 0 there is no b, and no state.
        dampening: d.
        nesterov: step as if one update ahead.

    Reference:
        Sutskever et al., On the importance of initialization and momentum in deep learning, 2013.
    """

    traits = elementwise({"trace": "momentum_buffer"}, hidden=("count",))

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: Number = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        compile: bool = False,
    ) -> None:
        values: dict[str, object] = dict(
            lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
            maximize=maximize, foreach=foreach, differentiable=differentiable, fused=fused,
        )  # fmt: skip
        require(
            not nesterov or (momentum > 0 and dampening == 0),
            "Nesterov momentum requires a momentum and zero dampening",
        )
        super().__init__(params, values, compile)

    @staticmethod
    def rule(
        lr: Number,
        momentum: Number,
        dampening: Number,
        weight_decay: Number,
        nesterov: bool,
        maximize: bool,
        **rest: object,
    ) -> GradientTransformation:
        """Weight decay, then momentum."""
        step = torch_trace(momentum, dampening, nesterov) if on(momentum) else identity()
        return descend(lr, step, weight_decay, maximize)


class Rprop(TorchFace):
    """Steps by the sign of the gradient; each entry's grows while its sign stays, and shrinks when it turns.

        Δ ← Δ η⁺ where g has the sign it had, Δ η⁻ where it turned, between Δ_min and Δ_max
        p ← p - sign(g) Δ, but not where it turned

    Args:
        lr: Δ of the first step; read when a parameter's state is made, and then no more.
        etas: (η⁻, η⁺), 0 < η⁻ < 1 < η⁺.
        step_sizes: (Δ_min, Δ_max), in the unit of the parameters.

    Reference:
        Riedmiller & Braun, A direct adaptive method for faster backpropagation learning, 1993.
    """

    traits = elementwise({"count": "step"})

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        compile: bool = False,
    ) -> None:
        require(
            0 < etas[0] < 1 < etas[1], f"Invalid eta values: {etas[0]}, {etas[1]}; hint: (η⁻, η⁺) with 0 < η⁻ < 1 < η⁺"
        )
        values: dict[str, object] = dict(
            lr=lr, etas=etas, step_sizes=step_sizes, foreach=foreach, maximize=maximize,
            differentiable=differentiable, capturable=capturable,
        )  # fmt: skip
        super().__init__(params, values, compile)

    @staticmethod
    def rule(
        lr: Number, etas: tuple[Number, Number], step_sizes: tuple[Number, Number], maximize: bool, **rest: object
    ) -> GradientTransformation:
        """The steps as they are."""
        return chain(sign(maximize), scale_by_torch_rprop(lr, etas, step_sizes))


class ASGD(TorchFace):
    """Gradient descent at a falling rate; the average of the parameters is kept in the state, as `ax`.

        p ← p - η (g + λ p)                   a ← a + m (p - a)
        η ← γ / (1 + λ γ t)^α                 m ← 1 / max(1, t - t₀)

    Args:
        lr: γ.
        lambd: λ >= 0, decay.
        alpha: α, power of the rate's fall.
        t0: t₀, when the averaging begins.

    Reference:
        Polyak & Juditsky, Acceleration of stochastic approximation by averaging, 1992.
    """

    traits = elementwise({"count": "step"})

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        compile: bool = False,
    ) -> None:
        values: dict[str, object] = dict(
            lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay, foreach=foreach, maximize=maximize,
            differentiable=differentiable, capturable=capturable,
        )  # fmt: skip
        super().__init__(params, values, compile)

    @staticmethod
    def rule(
        lr: Number, lambd: Number, alpha: Number, t0: Number, weight_decay: Number, maximize: bool, **rest: object
    ) -> GradientTransformation:
        """Weight decay, then the step, rate and all."""
        return chain(sign(maximize), add_decayed_weights(weight_decay), scale_by_torch_asgd(lr, lambd, alpha, t0))


class Adafactor(TorchFace):
    """Adam's divisor from the means of its rows and columns, and a rate relative to the parameter's size.

    The formula is that of `functrain.scale_by_torch_adafactor`, with decoupled weight decay.

    Args:
        lr: the largest relative step.
        beta2_decay: τ <= 0, how fast the memory lengthens.
        eps: (ε₁, ε₂): in the unit of g, None for the machine's; the least size of a parameter.
        d: d >= 1, the largest root mean square of an update.

    Reference:
        Shazeer & Stern, Adafactor, 2018, algorithms 4 and 5. https://arxiv.org/abs/1804.04235
    """

    traits = Traits({"count": "step"}, real_only=True, upcast=True)

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        compile: bool = False,
    ) -> None:
        check_rate(lr)
        require(bool(lr >= 0), f"Learning rate should be >= 0 but is: {lr}; hint: lr=1e-2 is the default")
        require(beta2_decay <= 0, f"beta2_decay should be <= 0 but is: {beta2_decay}; hint: -0.8 is the default")
        require(eps[0] is None or eps[0] >= 0, f"epsilon1 should be >= 0 but is: {eps[0]}; hint: None is the machine's")
        require(eps[1] >= 0, f"epsilon2 should be >= 0 but is: {eps[1]}; hint: 1e-3 is the default")
        require(d >= 1, f"Clipping threshold d should be >= 1 but is: {d}; hint: a greater d clips less")
        require(weight_decay >= 0, f"weight_decay should be >= 0 but is: {weight_decay}; hint: 0 is none")
        values: dict[str, object] = dict(
            lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay, foreach=foreach, maximize=maximize
        )
        super().__init__(params, values, compile)

    @staticmethod
    def rule(
        lr: Number,
        beta2_decay: Number,
        eps: tuple[Number | None, Number],
        d: Number,
        weight_decay: Number,
        maximize: bool,
        **rest: object,
    ) -> GradientTransformation:
        """The step, and weight decay behind it."""
        return chain(
            sign(maximize), scale_by_torch_adafactor(lr, beta2_decay, eps, d), shrink_weights(lr * weight_decay)
        )


class Muon(TorchFace):
    """Steps along the nearest orthogonal matrix to a mean gradient, with decoupled weight decay. For matrices alone.

    The formula is that of `functrain.scale_by_torch_muon`.

    Args:
        momentum: μ >= 0, memory of the mean.
        nesterov: look one update ahead.
        ns_coefficients, eps, ns_steps: of the Newton-Schulz iteration.
        adjust_lr_fn: "original" or "match_rms_adamw": how the step depends on the shape.

    Reference:
        Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.
        https://kellerjordan.github.io/posts/muon/
    """

    traits = Traits(real_only=True, upcast=True, static=frozenset({"ns_coefficients", "ns_steps"}))

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        compile: bool = False,
    ) -> None:
        check_rate(lr)
        require(bool(lr >= 0), f"Learning rate should be >= 0 but is: {lr}; hint: lr=1e-3 is the default")
        require(momentum >= 0, f"momentum should be >= 0 but is: {momentum}; hint: 0.95 is the default")
        require(weight_decay >= 0, f"weight decay should be >= 0 but is: {weight_decay}; hint: 0 is none")
        require(
            adjust_lr_fn in (None, "original", "match_rms_adamw"),
            f"Adjust learning rate function {adjust_lr_fn} is not supported; hint: 'original' or 'match_rms_adamw'",
        )
        values: dict[str, object] = dict(
            lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, ns_coefficients=ns_coefficients,
            eps=eps, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn,
        )  # fmt: skip
        super().__init__(params, values, compile)

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Add a group of matrices."""
        super().add_param_group(param_group)
        for name, p in self.named(len(self.param_groups) - 1):
            if p.ndim != 2:
                self.param_groups.pop()
                raise ValueError(
                    f"Muon only supports 2D parameters whereas we found a parameter with size: {p.size()}; it is "
                    f"{name!r}; hint: Muon is for matrices, and AdamW for the others"
                )

    @staticmethod
    def rule(
        lr: Number,
        weight_decay: Number,
        momentum: Number,
        nesterov: bool,
        ns_coefficients: tuple[float, float, float],
        eps: Number,
        ns_steps: int,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None,
        **rest: object,
    ) -> GradientTransformation:
        """The direction, and weight decay behind it."""
        step = scale_by_torch_muon(momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn, lr)
        return chain(step, scale(-1.0), shrink_weights(lr * weight_decay))
