"""The training step as a pure function, and the state it maps to the next.

    step = train_step(loss, tx, accumulate=4, precision="bf16", max_grad_norm=1.0)
    state = TrainState.create(model, tx, seed=0)
    for batch in loader:
        state, metrics = step(state, batch)

An update in order: per micro-batch scale the loss, differentiate, unscale, fold into the window's mean; then once: is
it finite, clip, update, select. Nothing is written to; a skipped update returns what it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch
from torch import Tensor

from functrain import tree
from functrain.base import GradientTransformation, apply_updates
from functrain.combinators.parts import check_part
from functrain.gradient import functional, mapped
from functrain.hints import batch_of, note, parameters
from functrain.loss import Loss, LossOut, Watched, lift, run
from functrain.paths import children
from functrain.precision import GROWTH_INTERVAL, Guard, Precision, PrecisionLike, policy
from functrain.ranges import positive, positive_int
from functrain.seeding import seeded
from functrain.state import TrainState, check_state
from functrain.tree import Tree
from functrain.window import Gradients, casts, first_device, fold, micro_batch, per_example, split

T = TypeVar("T")
Metrics = dict[str, Tensor]


def train_step(
    loss: Loss | Callable[..., object],
    tx: GradientTransformation,
    accumulate: int = 1,
    precision: PrecisionLike | Precision = None,
    max_grad_norm: float | None = None,
    skip_nonfinite: bool = True,
    gradients: Literal["mean", "per_example"] = "mean",
) -> Step:
    """The step `(state, batch) -> (state, metrics)` that trains with this loss and this optimizer.

    Metrics are 0-dim tensors: `loss` (the mean over the window), `grad_norm` (before clipping), `learning_rate` (the
    one used; `learning_rate/<label>` where there are several), `skipped` (1 or 0), `loss_scale`, and what the loss
    logged. Nothing here waits for an accelerator.

    Args:
        loss: `model.loss(...)`, `model.objective(...)` or a function `(params, batch)`; see functrain.loss.
        tx: the optimizer.
        accumulate: K >= 1, micro-batches an update: a batch is split along its first axis.
        precision: None or "fp32", "bf16", "fp16", or a Precision.
        max_grad_norm: gradients of a greater global norm are scaled down to it.
        skip_nonfinite: an update whose loss or gradient is not finite changes nothing but the counts of `guard`. With
            fp16 it is always so.
        gradients: "per_example" gives tx the gradient of every example, along a first axis.

    Raises:
        ValueError: an argument is out of range, or per-example gradients meet what needs the batch as one.
        TypeError: the loss is none, tx is no transformation.
    """
    positive_int("train_step", accumulate=accumulate)
    if max_grad_norm is not None:
        positive("train_step", max_grad_norm=max_grad_norm)
    if gradients not in ("mean", "per_example"):
        raise ValueError(f"train_step: gradients must be 'mean' or 'per_example', got {gradients!r}")
    if isinstance(loss, GradientTransformation):
        raise TypeError("train_step: the transformation came first; hint: train_step(loss, tx)")
    check_part("train_step: tx", tx)
    chosen, lifted = policy(precision), lift(loss)
    if gradients == "per_example":
        obstacles = {
            _BATCHNORM: lifted.mixes_examples,
            _ACCUMULATION: accumulate > 1,
            "precision='fp16'": chosen.scaled,
            "max_grad_norm": max_grad_norm is not None,
        }
        for what, there in obstacles.items():
            if there:
                raise _no_examples("train_step", what)
    return Step(lifted, tx, accumulate, chosen, max_grad_norm, skip_nonfinite, gradients == "per_example")


class Step:
    """A training step.

    Called, it takes a whole batch; in halves, it takes windows that stream:

        acc = step.gradients(state, first)
        acc = step.gradients(state, second, acc)
        state, metrics = step.apply(state, acc)
    """

    def __init__(
        self,
        loss: Loss,
        tx: GradientTransformation,
        accumulate: int,
        precision: Precision,
        max_grad_norm: float | None,
        skip_nonfinite: bool,
        each: bool,
    ) -> None:
        self.loss, self.tx, self.accumulate, self.precision = loss, tx, accumulate, precision
        self.max_grad_norm, self.skip_nonfinite, self.each = max_grad_norm, skip_nonfinite, each
        # Per-example gradients want BatchNorm in eval mode.
        self.watched = loss if isinstance(loss, Watched) and not each else None

    def __repr__(self) -> str:
        return f"train_step({type(self.loss).__name__}, {self.tx}, accumulate={self.accumulate})"

    def __call__(self, state: TrainState, batch: Tree, **extra: object) -> tuple[TrainState, Metrics]:
        """One update from a whole batch. Extras that tx needs and the step does not know go by keyword."""
        check_state("step", state)
        pieces = [batch] if self.accumulate == 1 else split(batch, self.accumulate)
        acc = None
        for piece in pieces:
            acc = self.gradients(state, piece, acc)
        assert acc is not None  # accumulate >= 1
        if "value_fn" in self.tx.needs:
            extra.setdefault("value_fn", lambda params: self.value(state, params, pieces))
        return self.apply(state, acc, **extra)

    def gradients(self, state: TrainState, batch: Tree, acc: Gradients | None = None) -> Gradients:
        """The gradient of a micro-batch, folded into `acc`, whose buffers and micro-batch number it takes up."""
        check_state("step.gradients", state)
        self.look()
        if self.each and acc is not None:
            raise _no_examples("step.gradients", _ACCUMULATION)
        with self.randomness(state, 0 if acc is None or mapped() else int(acc.pieces)):
            try:
                new = self.micro(state, batch, state.buffers if acc is None else acc.buffers)
            except Exception as error:
                self.explain(error, state, batch)
                raise
        return new if acc is None else fold(acc, new)

    def apply(self, state: TrainState, acc: Gradients, **extra: object) -> tuple[TrainState, Metrics]:
        """The update that this window's gradient makes."""
        check_state("step.apply", state)
        new, metrics = self.finish(state, acc, **extra)
        return new._replace(step=state.step + 1), metrics

    # --- the pure parts, which `jit` compiles

    def micro(self, state: TrainState, batch: Tree, buffers: Tree) -> Gradients:
        """The gradient of one micro-batch."""
        if not self.each:
            scale = state.guard.scale
            return micro_batch(self.loss, self.precision, state.params, state.frozen, buffers, scale, batch)
        if self.loss.mixes_examples:  # asked again: a module's training flags may change
            raise _no_examples("step.gradients", _BATCHNORM)
        return per_example(self.loss, self.precision, state.params, state.frozen, buffers, batch)

    def finish(self, state: TrainState, acc: Gradients, **extra: object) -> tuple[TrainState, Metrics]:
        """Everything after the gradient but the count of steps."""
        mean = tree.map(lambda g: g.mean(0), acc.grads) if self.each else acc.grads
        norm = tree.norm(mean)
        finite = torch.isfinite(norm) & torch.isfinite(acc.loss)
        ok = (acc.weight > 0) & finite if self.skip_nonfinite or self.precision.scaled else acc.weight > 0

        on_host = not functional() and ok.device.type == "cpu"
        if on_host and not ok:
            opt_state, params, buffers = state.opt_state, state.params, state.buffers
        else:
            params, opt_state = self.updated(state, acc, norm, extra)
            buffers = acc.buffers
            if not on_host:
                params, opt_state, buffers = (
                    tree.map(lambda new, old: torch.where(ok, new, old), new, old)
                    for new, old in ((params, state.params), (opt_state, state.opt_state), (buffers, state.buffers))
                )
        guard = self.guarded(state.guard, ok, finite)
        metrics = {
            **acc.logs,
            "loss": acc.loss,
            "grad_norm": norm,
            "skipped": (~ok).to(torch.int32),
            "loss_scale": state.guard.scale if self.precision.scaled else torch.ones_like(state.guard.scale),
            **rates(opt_state),
        }
        return state._replace(params=params, opt_state=opt_state, buffers=buffers, guard=guard), metrics

    def updated(self, state: TrainState, acc: Gradients, norm: Tensor, extra: dict[str, object]) -> tuple[Tree, Tree]:
        """Clip, update, apply."""
        grads = acc.grads
        if self.max_grad_norm is not None:
            limit = self.max_grad_norm
            factor = torch.where(norm > limit, limit / norm, torch.ones_like(norm))
            grads = tree.pointwise(lambda g: g * factor, grads)
        given = {"value": acc.loss, "grad": acc.grads, **extra}
        needed = {name: given[name] for name in self.tx.needs if name in given}
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params, **needed)
        return apply_updates(state.params, updates), opt_state

    def guarded(self, guard: Guard, ok: Tensor, finite: Tensor) -> Guard:
        """The guard after an update that was applied, or not."""
        applied = ok.to(torch.int32)
        skipped = guard.skipped + 1 - applied
        in_row = (guard.skipped_in_row + (~finite).to(torch.int32)) * (1 - applied)
        if not self.precision.scaled:
            return Guard(guard.scale, guard.good_steps, skipped, in_row)
        good = torch.where(finite, guard.good_steps + applied, torch.zeros_like(guard.good_steps))
        grown = good >= GROWTH_INTERVAL
        twice = torch.where(torch.isfinite(guard.scale * 2), guard.scale * 2, guard.scale)
        scale = torch.where(finite, torch.where(grown, twice, guard.scale), guard.scale / 2)
        return Guard(scale, torch.where(grown, torch.zeros_like(good), good), skipped, in_row)

    # --- on the host

    def look(self) -> None:
        """Warn, once, of a loss that is not as training wants it."""
        if self.watched is not None:
            self.watched.check_training()

    def explain(self, error: Exception, state: TrainState, batch: Tree) -> None:
        """Say on an error what of it can be seen from the state and the batch."""
        note(error, "step", parameters(state.params), batch_of(batch))

    def randomness(self, state: TrainState, piece: int) -> AbstractContextManager[None]:
        """The generators set to (seed, update, micro-batch). Under vmap the caller's `randomness=` rules."""
        if mapped():
            return nullcontext()
        return seeded(int(state.seed), int(state.step), piece, device=first_device(state.params))

    def value(self, state: TrainState, params: Tree, pieces: list[Tree]) -> Tensor:
        """The window's mean loss at other parameters, with the window's own randomness."""
        loss = casts(self.loss, self.precision)
        window = LossOut(torch.zeros(()), torch.zeros(()), state.buffers, {})
        for i, piece in enumerate(pieces):
            with self.randomness(state, i):
                out = run(loss, params, state.frozen, window.buffers, piece)
            window = LossOut(window.sum + out.sum, window.weight + out.weight, out.buffers, {})
        return window.mean


_ACCUMULATION, _BATCHNORM = "accumulation", "training BatchNorm"


def _no_examples(where: str, what: str) -> ValueError:
    return ValueError(f"{where}: gradients='per_example' does not go with {what}, which needs the batch")


def rates(opt_state: Tree) -> Metrics:
    """The learning rates in a state: those of the labels of a dict, elsewhere the shallowest field of that name."""
    found = _rates("", opt_state)
    if len(found) == 1:
        return {"learning_rate": found[0][1]}
    return {f"learning_rate/{label or i}": x for i, (label, x) in enumerate(found)}


def _rates(label: str, root: Tree) -> list[tuple[str, Tensor]]:
    level = [root]
    while level:
        below: list[Tree] = []
        found: list[tuple[str, Tensor]] = []
        for node in level:
            for entry, child in children(node) or ():
                if entry.name == "learning_rate" and isinstance(child, Tensor):
                    found.append((label, child))
                elif entry.kind == "key":
                    found += _rates(str(entry.name), child)
                else:
                    below.append(child)
        if found:
            return found
        level = below
    return []
