"""An entry of the catalogue: a public factory in one of its uses, and what is known about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from functrain.base import GradientTransformation


class Entry(NamedTuple):
    """A public factory in one of its uses."""

    name: str  # the factory, as users call it
    make: Callable[[], GradientTransformation]
    oracle: Callable[[], Any] | None = None  # the same in Optax; call it where jax computes in float64
    use: str = ""  # which use, where there are several
    needs_params: bool = False  # update is an error without them
    extras: frozenset[str] = frozenset()  # what it declares in `needs`
    local: bool = True  # a leaf alone gives what it gives in the tree
    complex: bool = True  # complex gradients count by their absolute value: turned, they turn the updates
    overflows: bool = False  # large finite gradients may give an infinite update, by definition
    differentiable: bool = True  # the update has a derivative in the gradient, almost everywhere not zero
    rounds: bool = False  # it computes in bfloat16: steps without a slope, and other roundings of a batch
    eager: bool = False  # it decides by numbers, on the host: neither mapped nor compiled nor differentiated
    torch: Callable[[list[Tensor]], Optimizer] | None = None  # adds its updates times -lr to (some of) these parameters
    steps: bool = False  # torch adds its updates as they are

    @property
    def id(self) -> str:
        return f"{self.name}/{self.use}" if self.use else self.name
