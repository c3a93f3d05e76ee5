"""The update of one parameter as a compiled function of any size.

A compiled update of all parameters takes minutes to compile when there are many. A local rule needs less: one function
for one parameter, whose sizes are variables, called for each. It takes the numbers of the group as a tensor, so that a
schedule compiles nothing anew, and writes into the parameter and its state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from functrain.base import GradientTransformation
from functrain.bridge.blocks import Row
from functrain.bridge.layout import Columns, Layout
from functrain.bridge.traits import Traits
from functrain.bridge.values import RATE
from functrain.compile import announced
from functrain.tree import Tree

Call = Callable[..., None]
SERIAL = 1 << 15  # entries below which one thread is faster than two
NAME = "p"  # what the parameter is called in there


class CompiledLeaf:
    """The compiled functions of an optimizer, made when they are first needed."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, Call] = {}

    def step(
        self,
        make: Callable[..., GradientTransformation],
        values: tuple[Mapping[str, Tree], Mapping[str, object]],
        traits: Traits,
        layout: Layout,
        shared: Mapping[str, Tensor],
        keys: Sequence[str],
        rows: Sequence[Row],
    ) -> None:
        """Update these parameters and their states in place; what they share stays as it is.

        Args:
            make: the rule of a group's values.
            values: those that are numbers, as tensors, and the others.
            traits: how the rule meets parameters.
            layout: where its state lies.
            shared: what the parameters share.
            keys: what each has, as in the rows.
            rows: parameters, gradients, states.
        """
        numbers, static = values
        counts = {name: len(_flat(x)) for name, x in numbers.items()}
        packed = torch.stack([x for value in numbers.values() for x in _flat(value)])
        given = [x.reshape(1) for x in shared.values()]
        leaf = Leaf(make, counts, static, layout, list(shared), keys, traits)
        common = (*counts.items(), *sorted(static.items(), key=lambda item: item[0]), *shared, *keys)
        for row in sorted(rows, key=lambda row: -row.tensors[0].numel()):  # sizes of the first call decide on threads
            tensors = row.tensors
            size = tensors[0].numel()
            if not size:
                continue
            if traits.elementwise and all(x.is_contiguous() for x in tensors):
                tensors = tuple(x.view(-1) for x in tensors)
            # A graph takes a 0-dim float64 tensor on the CPU for a Python number, and drops what is written to it.
            scalars = tuple(not x.dim() for x in tensors)
            tensors = tuple(x.view(1) if scalar else x for x, scalar in zip(tensors, scalars, strict=True))
            few = size < SERIAL and tensors[0].is_cpu
            kind = (common, few, scalars, size == 1, *((x.dim(), x.dtype, x.device) for x in tensors))
            if (call := self._calls.get(kind)) is not None:
                call(packed, given, *tensors)
            else:
                call = self._calls[kind] = leaf.compiled(few, scalars)
                with announced("the update of a parameter", "inductor", True, "seconds, once"):
                    call(packed, given, *tensors)


class Leaf:
    """What is compiled."""

    def __init__(
        self,
        make: Callable[..., GradientTransformation],
        counts: Mapping[str, int],
        static: Mapping[str, object],
        layout: Layout,
        shared: Sequence[str],
        keys: Sequence[str],
        traits: Traits,
    ) -> None:
        self.make, self.counts, self.static, self.layout = make, counts, static, layout
        self.shared, self.keys, self.traits = shared, keys, traits

    def compiled(self, few: bool, scalars: Sequence[bool]) -> Call:
        """The function, compiled with sizes as variables; its code is its own, since dynamo counts graphs a code.

        Args:
            few: for parameters too small to be worth a second thread.
            scalars: which tensors are 0-dim, and come with one dimension.
        """

        def update(packed: Tensor, given: list[Tensor], *boxed: Tensor) -> None:
            p, g, *columns = (x.view(()) if scalar else x for x, scalar in zip(boxed, scalars, strict=True))
            self(packed, given, p, g, columns)

        update.__code__ = update.__code__.replace(co_name="update_of_a_parameter")
        options: dict[str, str | int | bool | Callable[..., object]] = {"cpp.threads": 1} if few else {}
        return cast("Call", torch.compile(update, fullgraph=True, dynamic=True, options=options))

    def __call__(
        self, packed: Tensor, given: Sequence[Tensor], p: Tensor, g: Tensor, columns: Sequence[Tensor]
    ) -> None:
        """Update p and its columns."""
        values: dict[str, object] = {}
        place = 0
        for name, count in self.counts.items():
            part = [packed[i] for i in range(place, place + abs(count))]
            values["lr" if name == RATE else name] = part[0] if count == 1 else tuple(part)
            place += count
        rule = self.make(**values, **self.static)
        shared = {key: x.view(()) for key, x in zip(self.shared, given, strict=True)}
        each: dict[str, dict[str, Tensor]] = {field.key: {} for field in self.layout.fields if field.each}
        for key, x in zip(self.keys, columns, strict=True):
            each[key] = {NAME: x}
        updates, state = rule.update(
            {NAME: self.traits.gradient(g)}, self.layout.join([NAME], Columns(shared, each)), {NAME: p}
        )
        new = self.layout.split(state)
        p.add_(updates[NAME])
        for key, x in zip(self.keys, columns, strict=True):
            x.copy_(new.each[key][NAME])


def _flat(value: Tree) -> Sequence[Tensor]:
    return cast("Sequence[Tensor]", value if isinstance(value, tuple) else (value,))
