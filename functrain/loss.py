"""What a loss is.

A loss is a pure function of parameters and a batch. It returns one of

    mean                          a 0-dim tensor: it weighs as much as the batch is long
    (sum, weight)                 two 0-dim tensors: the loss is sum / weight
    {"loss": either, **logs}      the same, with 0-dim things to log

Carrying the weight is what makes accumulation right: micro-batches of unequal size, or with unequal numbers of masked
tokens, add up to one batch.

Inside, every loss is a `Loss`: it opens for given parameters, frozen parameters and buffers, and while it is open it
maps batches to `LossOut`. A module's loss (`bridge/modules.py`) swaps tensors into the module when it opens, so that a
backward pass can still run inside; a plain function has nothing to open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from functrain.data import length
from functrain.tree import Tree


class LossOut(NamedTuple):
    """A loss, taken apart."""

    sum: Tensor  # (): at least float32
    weight: Tensor  # (): same dtype, detached; sum / weight is the loss
    buffers: Tree  # like the buffers that came in
    logs: dict[str, Tensor]  # 0-dim each, floating, detached

    @property
    def mean(self) -> Tensor:
        """sum / weight; zero where nothing has weight."""
        return self.sum / torch.where(self.weight == 0, torch.ones_like(self.weight), self.weight)


Evaluate = Callable[[Tree], LossOut]


@runtime_checkable
class Loss(Protocol):
    """A loss that can be held open."""

    @property
    def frozen(self) -> Tree:
        """Its own frozen parameters, for a call that names none."""
        ...

    @property
    def buffers(self) -> Tree:
        """Its own buffers, for a call that names none."""
        ...

    @property
    def mixes_examples(self) -> bool:
        """True if an example's loss depends on the examples beside it, as under training BatchNorm."""
        ...

    @property
    def opaque(self) -> bool:
        """True if it may swap a module's weights where nobody sees it: saved-tensor hooks are then refused."""
        ...

    def hold(self, params: Tree, frozen: Tree, buffers: Tree) -> AbstractContextManager[Evaluate]:
        """A block in which batches are evaluated with these tensors."""
        ...


@runtime_checkable
class Watched(Protocol):
    """A loss that knows whether it is meant to be trained with as it is."""

    def check_training(self) -> None:
        """Warn, once, if it looks as if it is not."""
        ...


class PlainLoss:
    """A function `(params, batch)` as a `Loss` without frozen parameters and buffers."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function
        self.frozen: Tree = {}
        self.buffers: Tree = {}
        self.mixes_examples = False
        self.opaque = True

    @contextmanager
    def hold(self, params: Tree, frozen: Tree, buffers: Tree) -> Iterator[Evaluate]:
        """Nothing to open: the function takes its parameters as an argument."""
        yield lambda batch: read(self.function(params, batch), batch, buffers)


def lift(loss: object) -> Loss:
    """The loss as a `Loss`.

    Raises:
        TypeError: it is none, and no function of parameters and a batch either.
    """
    if isinstance(loss, Loss):
        return loss
    what = "train_step: a loss is a function (params, batch) or model.loss(criterion)"
    if isinstance(loss, nn.Module):
        raise TypeError(f"{what}, got the module {type(loss).__name__}; hint: ft.functionalize(module).loss(criterion)")
    if getattr(loss, "__module__", "") == "torch.nn.functional":
        name = getattr(loss, "__name__", "criterion")
        raise TypeError(f"{what}, got the criterion {name}; hint: ft.functionalize(module).loss(F.{name})")
    if callable(loss):
        return PlainLoss(cast("Callable[..., object]", loss))  # callable() does not say of what
    raise TypeError(f"{what}, got {type(loss).__name__}")


def run(loss: Loss, params: Tree, frozen: Tree, buffers: Tree, batch: Tree) -> LossOut:
    """Open, evaluate one batch, close."""
    with loss.hold(params, frozen, buffers) as evaluate:
        return evaluate(batch)


def read(out: object, batch: Tree, buffers: Tree) -> LossOut:
    """What a loss returned, taken apart.

    Raises:
        TypeError, ValueError: it is none of the three things a loss may return.
    """
    logs: dict[str, Tensor] = {}
    if isinstance(out, dict):
        if "loss" not in out:
            raise ValueError(f'loss: a dict needs the entry "loss", got the entries {sorted(map(str, out))}')
        logs = {str(k): _floating(scalar(f"loss: the entry {k!r}", v).detach()) for k, v in out.items() if k != "loss"}
        out = out["loss"]
    if isinstance(out, tuple):
        if len(out) != 2:
            raise ValueError(f"loss: a tuple is (sum, weight), got one of {len(out)} entries")
        total = _wide(differentiable("loss: the sum", out[0]))
        weight = scalar("loss: the weight", out[1]).detach().to(total)
        return LossOut(total, weight, buffers, logs)
    mean = _wide(differentiable("loss: the result", out))
    weight = torch.full_like(mean, length(batch), requires_grad=False)
    return LossOut(mean * weight, weight, buffers, logs)


def scalar(what: str, x: object) -> Tensor:
    """x, which must be a 0-dim tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} must be a 0-dim tensor, got {type(x).__name__}; hint: {_tensor_from(x)}")
    if x.dim():
        hint = "a pair is (sum, weight), and what is to be logged goes into a dict" if "weight" in what else _MEAN
        raise ValueError(f"{what} must be a 0-dim tensor, got shape {tuple(x.shape)}; hint: {hint}")
    return x


_MEAN = "take the mean, or return (sum, weight)"


def _tensor_from(x: object) -> str:
    """What a loss that returned x should have returned."""
    if x is None:
        return "return the loss"
    if isinstance(x, int | float) or hasattr(x, "__array__"):
        return "return the tensor itself, without .item() or .numpy(); torch.tensor makes one of a number"
    return 'return a mean, (sum, weight), or a dict with the entry "loss"'


def differentiable(what: str, x: object) -> Tensor:
    """x, which must be a 0-dim floating tensor."""
    x = scalar(what, x)
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"{what} has dtype {x.dtype}, which has no gradient; hint: return a floating tensor")
    return x


def _floating(x: Tensor) -> Tensor:
    """A log as a number that has a mean."""
    return x if x.is_floating_point() or x.is_complex() else x.float()


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
