"""What the classes of torch.optim have in common, for `functrain.bridge.optim`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from functrain.base import GradientTransformation, identity
from functrain.bridge.face import Face, Params
from functrain.bridge.given import check_values
from functrain.bridge.traits import Traits
from functrain.combinators.chain import chain
from functrain.transforms.decay import add_decayed_weights, shrink_weights
from functrain.transforms.scale import scale

Number: TypeAlias = float | Tensor


def elementwise(torch_names: Mapping[str, str], hidden: tuple[str, ...] = ()) -> Traits:
    """The traits of torch's elementwise rules."""
    return Traits(torch_names, hidden, elementwise=True, as_real=True, upcast=True)


class TorchFace(Face):
    """An optimizer under torch's name and with torch's numbers."""

    def __init__(self, params: Params, values: dict[str, object], compile: bool = False) -> None:
        check_values(**values)
        super().__init__(params, {name: _scalar(value) for name, value in values.items()}, compile)


def descend(
    lr: Number,
    step: GradientTransformation,
    weight_decay: Number = 0,
    maximize: bool = False,
    decoupled: bool = False,
) -> GradientTransformation:
    """p ← p - η u, where u is what `step` makes of the gradient, with weight decay before or behind it."""
    if decoupled:
        return chain(sign(maximize), step, scale(-lr), shrink_weights(lr * weight_decay))
    return chain(sign(maximize), add_decayed_weights(weight_decay), step, scale(-lr))


def sign(maximize: bool) -> GradientTransformation:
    """The gradient, turned where the loss is to grow."""
    return scale(-1.0) if maximize else identity()


def on(x: Number) -> bool:
    """False for a plain zero, which switches a part off; a tensor is read by nobody."""
    return isinstance(x, Tensor) or x != 0


def unbounded(memory: Number) -> Number:
    """The memory of an average, which torch allows to be 1 and more: the rules are not asked about a tensor."""
    return memory if isinstance(memory, Tensor) or 0 <= memory < 1 else torch.tensor(memory, dtype=torch.float64)


def _scalar(value: object) -> object:
    """Tensors of one element as 0-dim ones, also in a tuple."""
    if isinstance(value, tuple):
        return tuple(_scalar(x) for x in value)
    return value.squeeze() if isinstance(value, Tensor) and value.dim() else value
