"""The micro-batches of one update: how a batch is split, and how their gradients become one.

A window is exact whatever its pieces are: each carries its weight, and the mean over the window is the weighted mean of
the pieces' means. It is kept as that mean, so a window of one piece is its gradient, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from functrain import tree
from functrain.gradient import functional, loss_and_grad
from functrain.loss import Evaluate, Loss, LossOut, run
from functrain.precision import Precision, casting
from functrain.tree import Tree


class Gradients(NamedTuple):
    """The gradient of a window so far."""

    grads: Tree  # like params: the mean gradient, unscaled, in at least float32; per example: one leading axis more
    loss: Tensor  # (): the mean loss
    weight: Tensor  # (): what the micro-batches so far weigh together
    buffers: Tree  # as the last micro-batch left them
    logs: dict[str, Tensor]  # 0-dim each: means like the loss
    pieces: Tensor  # (), int64 on the CPU: micro-batches so far

    def __add__(self, other: object) -> Gradients:
        """The window of two replicas together, with the buffers of the first."""
        if not isinstance(other, Gradients):
            raise TypeError(f"Gradients: only Gradients can be added, got {type(other).__name__}")
        return fold(self, other)._replace(buffers=self.buffers)


def fold(acc: Gradients, new: Gradients) -> Gradients:
    """The window with a micro-batch more: m ← m + (w / W)(g - m), W the weight of both."""
    weight = acc.weight + new.weight
    share = new.weight / torch.where(weight == 0, torch.ones_like(weight), weight)

    def mean(old: Tensor, new: Tensor) -> Tensor:
        return old + share * (new - old)

    return Gradients(
        tree.pointwise(mean, acc.grads, new.grads),
        mean(acc.loss, new.loss),
        weight,
        new.buffers,
        tree.pointwise(mean, acc.logs, new.logs),
        acc.pieces + new.pieces,
    )


def micro_batch(
    loss: Loss, chosen: Precision, params: Tree, frozen: Tree, buffers: Tree, scale: Tensor, batch: Tree
) -> Gradients:
    """The gradient of one micro-batch: scale the loss, differentiate, unscale."""
    factor = scale if chosen.scaled else None
    out, grads = loss_and_grad(casts(loss, chosen), params, frozen, buffers, batch, factor)
    grads = tree.upcast(grads)
    if factor is not None:
        grads = tree.pointwise(lambda g: g / factor, grads)
    return Gradients(grads, out.mean, out.weight, out.buffers, out.logs, one_piece())


def per_example(loss: Loss, chosen: Precision, params: Tree, frozen: Tree, buffers: Tree, batch: Tree) -> Gradients:
    """The gradients of a batch's examples, each seen as a batch of one, stacked along a first axis."""

    def objective(params: Tree, example: Tree) -> tuple[Tensor, LossOut]:
        alone = tree.map(lambda x: x.unsqueeze(0), example)
        out = run(casts(loss, chosen), params, frozen, buffers, alone)
        return out.mean, out._replace(buffers=())

    of_each = torch.func.vmap(
        torch.func.grad_and_value(objective, has_aux=True), in_dims=(None, 0), randomness="different"
    )
    grads, (_, out) = of_each(params, batch)
    weight = out.weight.sum()
    logs = {name: x.mean() for name, x in out.logs.items()}
    mean = out.sum.sum() / torch.where(weight == 0, torch.ones_like(weight), weight)
    return Gradients(tree.upcast(grads), mean, weight, buffers, logs, one_piece())


def one_piece() -> Tensor:
    """The count of micro-batches in a window of one."""
    return torch.ones((), dtype=torch.int64, device="cpu")


def casts(loss: Loss, chosen: Precision) -> Loss:
    """The loss computed in the policy's dtypes."""
    plain = chosen.compute is None and chosen.output is None and chosen.autocast is None
    return loss if plain else _Cast(loss, chosen)


class _Cast:
    """A loss whose tensors and batches are cast on their way in, and whose sum and buffers are cast on their way out.

    Autocast is on while the loss is evaluated and no longer: a backward pass inside would cast anew, and lose what a
    module computes in float32 on purpose.
    """

    def __init__(self, loss: Loss, chosen: Precision) -> None:
        self.loss, self.chosen = loss, chosen
        self.opaque, self.mixes_examples = loss.opaque, loss.mixes_examples

    @property
    def frozen(self) -> Tree:
        """As the loss inside has them."""
        return self.loss.frozen

    @property
    def buffers(self) -> Tree:
        """As the loss inside has them."""
        return self.loss.buffers

    @contextmanager
    def hold(self, params: Tree, frozen: Tree, buffers: Tree) -> Iterator[Evaluate]:
        """The loss inside, with its tensors cast."""
        compute, output, device = self.chosen.compute, self.chosen.output, first_device(params)
        low = buffers
        if compute is not None:
            params, frozen, low = (tree.cast(part, compute) for part in (params, frozen, buffers))
        with self.loss.hold(params, frozen, low) as evaluate:

            def cast_and_evaluate(batch: Tree) -> LossOut:
                with casting(self.chosen, device, cache=not functional()):
                    out = evaluate(batch if compute is None else tree.map(_floating_to(compute), batch))
                if compute is not None:
                    out = out._replace(buffers=tree.map(_moved, buffers, low, out.buffers))
                if output is None:
                    return out
                dtype = torch.promote_types(output, torch.float32)
                return out._replace(sum=out.sum.to(dtype), weight=out.weight.to(dtype))

            yield cast_and_evaluate


def _moved(old: Tensor, low: Tensor, new: Tensor) -> Tensor:
    """A buffer after a call that had it in lower precision: what did not move keeps its bits."""
    return torch.where(new == low, old, new.to(old.dtype))


def _floating_to(dtype: torch.dtype) -> Callable[[object], object]:
    return lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


def first_device(params: Tree) -> torch.device:
    """The device of the first parameter."""
    leaves = tree.leaves(params)
    return leaves[0].device if leaves else torch.device("cpu")


def split(batch: Tree, k: int) -> list[Tree]:
    """The batch in k pieces along the first axis of its tensors, as even as they go.

    Strings, numbers and None go to every piece.

    Raises:
        ValueError, TypeError: the batch does not split; the message names the entry.
    """
    lengths: dict[str, int] = {}
    for path, x in zip(tree.paths(batch), tree.leaves(batch), strict=True):
        name = f"entry {path!r} of the batch" if path else "the batch"
        if isinstance(x, Tensor):
            if not x.dim():
                raise ValueError(f"accumulate={k}: {name} is a 0-dim tensor and does not split; hint: give it an axis")
            lengths[name] = x.shape[0]
        elif not isinstance(x, str | int | float):
            raise TypeError(
                f"accumulate={k}: {name} is a {type(x).__name__}, which does not split; "
                "hint: batches are dicts, lists and tuples of tensors"
            )
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"accumulate={k}: the tensors of the batch differ in leading size: "
            + ", ".join(f"{name} has {n}" for name, n in lengths.items())
        )
    if any(n < k for n in lengths.values()):
        rows = next(iter(lengths.values()))
        raise ValueError(
            f"accumulate={k}: the batch has {rows} rows, fewer than {k}; hint: a larger batch or smaller k"
        )
    pieces = [x.tensor_split(k) if isinstance(x, Tensor) else [x] * k for x in tree.leaves(batch)]
    return [tree.unflatten(batch, [piece[i] for piece in pieces]) for i in range(k)]
