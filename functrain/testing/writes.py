"""Who writes to an argument: seen at the operator that does it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from functrain import tree
from functrain.testing.trial import leaf_name, same, show
from functrain.tree import Tree


class Guard(TorchDispatchMode):
    """Watches over trees while code runs: no operator may write to their memory, nor code to their containers.

    An operator writes to the arguments that its schema marks as mutable. What was written some other way (through
    NumPy, say) shows in the numbers afterwards. `complaint` says what happened first, None if nothing did.
    """

    complaint: str | None = None

    def __init__(self, **trees: Tree) -> None:
        super().__init__()
        self.trees = trees
        self.keys = {role: tree.keys(t) for role, t in trees.items()}
        self.leaves = {role: [x for x in tree.leaves(t) if isinstance(x, Tensor)] for role, t in trees.items()}
        self.copies = {role: [x.clone() for x in leaves] for role, leaves in self.leaves.items()}
        self.owners = {
            x.untyped_storage()._cdata: f"{leaf_name(path)} of {role}"
            for role, t in trees.items()
            for path, x in zip(tree.paths(t), tree.leaves(t), strict=True)
            if isinstance(x, Tensor)
        }

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for role, before in self.keys.items():
            now = [x for x in tree.leaves(self.trees[role]) if isinstance(x, Tensor)]
            if tree.keys(self.trees[role]) != before or list(map(id, now)) != list(map(id, self.leaves[role])):
                self.complaint = self.complaint or f"changes a container of {role}"
            for key, x, copy in zip(before, self.leaves[role], self.copies[role], strict=False):
                if not same(x, copy):
                    what = f"writes to {leaf_name(key)} of {role}: it was {show(copy)}, is {show(x)}"
                    self.complaint = self.complaint or what


def _written(func: torch._ops.OpOverload, args: Sequence[object], kwargs: dict[str, object]) -> Iterator[Tensor]:
    """The tensors that an operator writes to, by its schema."""
    if not func._schema.is_mutable:
        return
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            for x in value if isinstance(value, list | tuple) else [value]:
                if isinstance(x, Tensor):
                    yield x
