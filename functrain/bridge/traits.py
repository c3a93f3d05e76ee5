"""How a rule meets torch's parameters: what is known about an optimizer class beside its rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from functrain import tree


class Traits(NamedTuple):
    """What is known about an optimizer class."""

    torch_names: Mapping[str, str] = {}  # what torch calls the fields of the rule's state
    hidden: tuple[str, ...] = ()  # fields that torch does not keep: counters that matter at the first step alone
    elementwise: bool = False  # the rule treats each entry alone
    as_real: bool = False  # complex parameters are pairs of real ones to the rule
    real_only: bool = False  # it has no complex parameters
    upcast: bool = False  # half-precision gradients are float32 to the rule, and rounded when they are added
    by_name: bool = False  # the rule may treat parameters by their names
    static: frozenset[str] = frozenset()  # values of a group that shape the rule, though they are numbers

    def seen(self, x: Tensor) -> Tensor:
        """A tensor as the rule sees it."""
        return torch.view_as_real(x) if self.as_real and x.is_complex() else x

    def shown(self, x: Tensor, param: Tensor) -> Tensor:
        """A tensor of the rule as the optimizer shows it, for this parameter."""
        return torch.view_as_complex(x) if self.as_real and param.is_complex() else x

    def gradient(self, g: Tensor) -> Tensor:
        """A gradient as the rule sees it."""
        g = self.seen(g)
        return g.float() if self.upcast and g.dtype in tree.HALF else g
