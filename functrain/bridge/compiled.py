"""The update of one parameter as a compiled function of any size.

A compiled update of all parameters takes minutes to compile when there are many. A local rule needs less: one function
for one parameter, or for a handful of small ones, whose sizes are variables, called again and again. It takes the
numbers of the group as a tensor, so that a schedule compiles nothing anew, and writes into parameters and states.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.fx.experimental import _config

from functrain.base import GradientTransformation
from functrain.bridge.blocks import Row
from functrain.bridge.layout import Columns, Layout
from functrain.bridge.traits import Traits
from functrain.bridge.values import RATE
from functrain.compile import announced
from functrain.tree import Tree

Call = Callable[..., None]
SERIAL = 1 << 15  # entries below which one thread is faster than two
CHUNK = 8  # so many small parameters go into one call: it costs fifty microseconds, and each of them compile time
NAME = "p"  # what a rule is told of a parameter, unless it asks for names


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
        alike: dict[Hashable, list[tuple[Tensor, ...]]] = {}
        for row in rows:
            tensors = row.tensors
            size = tensors[0].numel()
            if traits.elementwise and all([x.is_contiguous() for x in tensors]):
                tensors = tuple([x.view(-1).detach() for x in tensors])  # dynamo looks at what a view is of
            # A graph takes a 0-dim float64 tensor on the CPU for a Python number, and drops what is written to it.
            scalars = tuple([not x.dim() for x in tensors])
            if any(scalars):
                tensors = tuple([x if x.dim() else x.view(1).detach() for x in tensors])
            few = size < SERIAL and tensors[0].is_cpu
            ones = [n == 1 for n in tensors[0].shape]  # a size of one is no variable
            name = row.name if traits.by_name else NAME
            like = [(x.dim(), x.dtype) for x in tensors]
            kind = (name, few, few and traits.elementwise and size > 1, scalars, tensors[0].device, *ones, *like)
            alike.setdefault(kind, []).append(tensors)
        for (name, few, together, scalars, *what), group in cast("dict[tuple[Any, ...], Any]", alike).items():
            group.sort(key=_minus_size)  # the sizes of the first call decide on threads
            key = (common, name, few, together, scalars, *what)
            chunk = CHUNK if together else 1
            for i in range(0, len(group), chunk):
                part = group[i : i + chunk]
                part += [tuple(x.clone() for x in group[0]) for _ in range(chunk - len(part))]  # always as many
                flat = [x for tensors in part for x in tensors]
                if (call := self._calls.get(key)) is not None:
                    call(packed, given, *flat)
                elif flat[0].numel():
                    call = self._calls[key] = leaf.compiled(name, few, scalars)
                    with announced("the update of a parameter", "inductor", True, "seconds, once"), _sizes_apart():
                        call(packed, given, *flat)


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

    def compiled(self, name: str, few: bool, scalars: Sequence[bool]) -> Call:
        """The function, compiled with sizes as variables; its code is its own, since dynamo counts graphs a code.

        Args:
            name: what the rule is told of the first parameter.
            few: for parameters too small to be worth a second thread.
            scalars: which tensors are 0-dim, and come with one dimension.
        """
        width = len(scalars)

        def update(packed: Tensor, given: list[Tensor], *boxed: Tensor) -> None:
            flat = [x.view(()) if scalars[i % width] else x for i, x in enumerate(boxed)]
            self(name, packed, given, [flat[i : i + width] for i in range(0, len(flat), width)])

        update.__code__ = update.__code__.replace(co_name="update_of_a_parameter")
        options: dict[str, str | int | bool | Callable[..., object]] = {"cpp.threads": 1} if few else {}
        return cast("Call", torch.compile(update, fullgraph=True, dynamic=True, options=options))

    def __call__(self, first: str, packed: Tensor, given: Sequence[Tensor], rows: Sequence[Sequence[Tensor]]) -> None:
        """Update parameters and what they have, a row each."""
        values: dict[str, object] = {}
        place = 0
        for name, count in self.counts.items():
            part = [packed[i] for i in range(place, place + count)]
            values["lr" if name == RATE else name] = part[0] if count == 1 else tuple(part)
            place += count
        rule = self.make(**values, **self.static)
        names = [first, *(f"{first}{i}" for i in range(1, len(rows)))]
        params = {name: row[0] for name, row in zip(names, rows, strict=True)}
        grads = {name: self.traits.gradient(row[1]) for name, row in zip(names, rows, strict=True)}
        shared = {key: x.view(()) for key, x in zip(self.shared, given, strict=True)}
        each: dict[str, dict[str, Tensor]] = {field.key: {} for field in self.layout.fields if field.each}
        for i, key in enumerate(self.keys):
            each[key] = {name: row[2 + i] for name, row in zip(names, rows, strict=True)}
        updates, state = rule.update(grads, self.layout.join(names, Columns(shared, each)), params)
        new = self.layout.split(state)
        for name, row in zip(names, rows, strict=True):
            row[0].add_(updates[name])
            for i, key in enumerate(self.keys):
                row[2 + i].copy_(new.each[key][name])


def _minus_size(tensors: Sequence[Tensor]) -> int:
    return -tensors[0].numel()


class Patch(Protocol):
    """A module of torch's settings."""

    def patch(self, **settings: bool) -> AbstractContextManager[None]:
        """These settings for the length of a block."""
        ...


def _sizes_apart() -> AbstractContextManager[None]:
    """While compiling: sizes that are equal now are variables of their own."""
    return cast("Patch", _config).patch(use_duck_shape=False)


def _flat(value: Tree) -> Sequence[Tensor]:
    return cast("Sequence[Tensor]", value if isinstance(value, tuple) else (value,))
