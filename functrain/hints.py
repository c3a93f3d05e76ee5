"""What to say of a thing that came where a tensor, or a tree of tensors, belongs.

Nothing here is asked while all goes well: a check that fails looks for its words here, and an error on its way out is
given a note that says which leaf is where. The error itself stays as it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, KeysView, Sequence, ValuesView
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from functrain import tree
from functrain.tree import Tree


class Part(NamedTuple):
    """A tree with a name for its leaves."""

    leaf: str  # "parameter {}": {} is the path
    root: str  # "the parameter": of a tree that is one leaf
    tree: Tree

    def named(self) -> list[tuple[str, object]]:
        """Every leaf with its name."""
        pairs = zip(tree.paths(self.tree), tree.leaves(self.tree), strict=True)
        return [(self.leaf.format(repr(path)) if path else self.root, x) for path, x in pairs]


def parameters(x: Tree) -> Part:
    """The leaves as parameters."""
    return Part("parameter {}", "the parameter", x)


def batch_of(x: Tree) -> Part:
    """The leaves as entries of a batch."""
    return Part("entry {} of the batch", "the batch", x)


def instead(x: object) -> str:
    """What to give instead of x where a tree of tensors belongs."""
    if isinstance(x, nn.Module):
        return "ft.functionalize(module).params"
    if isinstance(x, Optimizer):
        return "an optimizer of torch has no place here; dict(module.named_parameters()) is a tree of what it trains"
    if isinstance(x, Iterator):
        return "dict(module.named_parameters()), which can be read twice"
    if isinstance(x, KeysView | ValuesView):
        return "the dict itself"
    if hasattr(x, "params"):  # a functionalized module
        return f"its params: {type(x).__name__.lower()}.params"
    return "torch.as_tensor makes one" if hasattr(x, "__array__") else "torch.tensor makes one"


def check_tensors(where: str, what: str, given: Tree) -> None:
    """Raise TypeError for the first leaf that is no tensor; `what` is the name of one, such as "parameter"."""
    for path, x in zip(tree.paths(given), tree.leaves(given), strict=True):
        if not isinstance(x, Tensor):
            kind = type(x).__name__
            came = f"{what} {path!r} is a {kind}, not a tensor" if path else f"{what}s are a {kind}, no tree of tensors"
            gradients = what == "update" and not path
            hint = "ft.value_and_grad(loss)(params, batch) gives gradients" if gradients else instead(x)
            raise TypeError(f"{where}: {came}; hint: {hint}") from None


def instead_of_rule(x: object) -> str:
    """The kind of x, and what to give instead where a transformation belongs."""
    if isinstance(x, Optimizer):
        hint = "ft.from_torch(optimizer).as_transform(dict(module.named_parameters()))"
    elif inspect.isroutine(x) or isinstance(x, partial):
        hint = "call the factory, as in adamw(0.001)"
    else:
        hint = "ft.adamw(0.001)" if isinstance(x, str | type) else "GradientTransformation(init, update) makes one"
    return f"{type(x).__name__}, not a GradientTransformation; hint: {hint}"


# --- notes on errors of others


def explain_update(error: Exception, name: str, updates: Tree, state: Tree, params: Tree | None) -> None:
    """Say of an error inside a rule what is wrong with the trees, if it is that.

    Raises:
        TypeError: a leaf is no tensor.
    """
    if not isinstance(error, RuntimeError) and "hint: " not in str(error):  # else a rule inside has said it
        check_tensors(name, "update", updates)
        check_tensors(name, "parameter", params)
    parts = Part("leaf {} of the state", "the state", state), Part("update {}", "the update", updates)
    note(error, name, parameters(params), *parts)


def note(error: Exception, where: str, *parts: Part) -> None:
    """Add to an error what functrain knows of it, once: tensors on two devices, entries of a batch that are no tensors.

    Args:
        error: on its way out.
        where: who tells.
        *parts: what was computed with; the last is the batch.
    """
    if getattr(error, "__notes__", None):
        return
    if isinstance(error, RuntimeError):
        told = _devices(parts)
    elif isinstance(error, TypeError | AttributeError):
        told = _entries(str(error), parts[-1])
    else:
        return
    if told:
        error.add_note(f"{where}: {told}")


def _devices(parts: Sequence[Part]) -> str:
    """Two tensors that lie on two devices; a 0-dim tensor on the CPU goes with all."""
    named = [(name, x) for part in parts for name, x in part.named() if isinstance(x, Tensor)]
    placed = [(name, x) for name, x in named if x.dim() or not x.is_cpu]
    for name, x in placed[1:]:
        first, one = placed[0]
        if x.device != one.device:
            return f"{first} is on {one.device}, and {name} on {x.device}; hint: .to({str(one.device)!r}) moves it"
    return ""


def _entries(text: str, batch: Part) -> str:
    """What in the batch is no tensor, where the error is of the kind that such things make."""
    whole = batch.tree
    kind = type(whole).__name__
    if isinstance(whole, tuple | list | dict) and whole and f"not {kind}" in text:
        entry = repr(next(iter(whole))) if isinstance(whole, dict) else 0
        return f"{batch.root} is a {kind} of {len(whole)}; hint: give the module its entries: m(batch[{entry}])"
    for name, x in batch.named():
        if not isinstance(x, Tensor) and ("Tensor" in text or f"{type(x).__name__}' object" in text):
            what = f"{name} is a {type(x).__name__}, not a tensor; hint: "
            if isinstance(x, str):
                return what + "make numbers of strings in the dataset, or in the loader's collate_fn"
            return what + "torch.as_tensor in the dataset, or in the loader's collate_fn"
    return ""
