"""Who writes to an argument: seen at the operator that does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from functrain import tree
from functrain.testing.trial import leaf_name, same, show
from functrain.tree import Tree

T = TypeVar("T")


class _Watch(TorchDispatchMode):
    """Sees every operator, and compares what its schema marks as written with memory that has an owner."""

    def __init__(self, owners: dict[int, str]) -> None:
        TorchDispatchMode.__init__(self)
        self.owners = owners  # storage -> whose it is
        self.complaint: str | None = None

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        given = kwargs or {}
        for x in _written(func, args, given):
            owner = self.owners.get(x.untyped_storage()._cdata)
            if owner and not self.complaint:
                self.complaint = f"writes to {owner} with {func}"
        return func(*args, **given)


def _written(func: torch._ops.OpOverload, args: Sequence[object], kwargs: dict[str, object]) -> Iterator[Tensor]:
    """The tensors that an operator writes to, by its schema."""
    if not func._schema.is_mutable:
        return
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (x for x in (value if isinstance(value, list | tuple) else [value]) if isinstance(x, Tensor))


def watched(call: Callable[[], T], **trees: Tree) -> tuple[T, str | None]:
    """The result of `call`, and what it did to one of these trees: the first thing, or None.

    No operator may write to the memory of their leaves, a view of it included, and no code to their containers. What is
    written past PyTorch (through NumPy, say) shows in the numbers afterwards.
    """
    before = {role: _tensors(t) for role, t in trees.items()}
    copies = {role: {key: x.clone() for key, x in leaves.items()} for role, leaves in before.items()}
    owners = {
        x.untyped_storage()._cdata: f"{leaf_name(key)} of {role}"
        for role, leaves in before.items()
        for key, x in leaves.items()
    }
    with _Watch(owners) as watch:
        result = call()
    return result, watch.complaint or _changed(trees, before, copies)


def _tensors(t: Tree) -> dict[str, Tensor]:
    pairs = zip(tree.keys(t), tree.leaves(t), strict=True)
    return {key: x for key, x in pairs if isinstance(x, Tensor)}  # extras hold functions too


def _changed(
    trees: dict[str, Tree], before: dict[str, dict[str, Tensor]], copies: dict[str, dict[str, Tensor]]
) -> str | None:
    for role, leaves in before.items():
        now = _tensors(trees[role])
        if list(now) != list(leaves) or any(now[key] is not x for key, x in leaves.items()):
            return f"changes a container of {role}"
        for key, x in leaves.items():
            if not same(x, copies[role][key]):
                return f"writes to {leaf_name(key)} of {role}: it was {show(copies[role][key])}, is {show(x)}"
    return None
