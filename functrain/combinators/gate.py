"""When: a transformation that acts at some updates only.

Whether it acts is a tensor, never a Python bool: both outcomes are computed and `torch.where` selects, so the same code
runs compiled and under `torch.func.vmap`, where each example may decide for itself. What is not selected leaves no
trace, a NaN neither.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, rule
from functrain.combinators.parts import check_part, update_part
from functrain.counter import first_count, increment
from functrain.tree import Tree

T = TypeVar("T")


def choose(condition: Tensor, yes: T, no: Tree) -> T:
    """Each leaf of `yes` where the condition holds, of `no` elsewhere."""
    return tree.map(lambda y, n: torch.where(condition, y, n), yes, no)


def count_not_finite(updates: Tree) -> Tensor:
    """How many entries of all leaves together are infinite or not a number: a 0-dim int64."""
    leaves = tree.leaves(updates)
    if not leaves:
        return torch.zeros((), dtype=torch.int64)
    return torch.stack([(~torch.isfinite(x)).sum().to(leaves[0].device) for x in leaves]).sum()


class ApplyIfFiniteState(NamedTuple):
    """The state of a transformation that ignores what is not finite."""

    notfinite_count: Tensor  # (), int32: updates in a row that were not finite
    last_finite: Tensor  # (), bool: whether the last update was finite
    total_notfinite: Tensor  # (), int32: updates that were not finite, ever
    inner_state: Tree  # the state of the transformation inside


@rule
def apply_if_finite(inner: GradientTransformation, max_consecutive_errors: int) -> GradientTransformation:
    """Ignore an update that holds an infinity or a NaN: it becomes zero, and the state inside stays as it was.

    After more than `max_consecutive_errors` in a row it gives up and lets them through.

    Args:
        inner: the transformation.
        max_consecutive_errors: how many in a row are ignored, >= 0.
    """
    check_part("apply_if_finite: inner", inner)
    ranges.non_negative("apply_if_finite", max_consecutive_errors=max_consecutive_errors)

    def init(params: Tree) -> ApplyIfFiniteState:
        zero = first_count(params)
        return ApplyIfFiniteState(zero, zero == 0, zero.clone(), inner.init(params))

    def update(
        g: Tree, state: ApplyIfFiniteState, params: Tree | None = None, **extra: object
    ) -> tuple[Tree, ApplyIfFiniteState]:
        finite = count_not_finite(g) == 0
        in_a_row = torch.where(finite, 0, increment(state.notfinite_count))
        total = torch.where(finite, state.total_notfinite, increment(state.total_notfinite))
        accepted = finite | (in_a_row > max_consecutive_errors)

        u, s = update_part(inner, g, state.inner_state, params, extra)
        u, s = choose(accepted, u, tree.zeros_like(u)), choose(accepted, s, state.inner_state)
        return u, ApplyIfFiniteState(in_a_row, finite, total, s)

    return GradientTransformation(init, update, inner.needs)


class ConditionallyTransformState(NamedTuple):
    """The state of a transformation that acts at some steps."""

    inner_state: Tree  # the state of the transformation inside
    step: Tensor  # (), int32: updates so far


@rule
def conditionally_transform(
    inner: GradientTransformation, should_transform_fn: Callable[..., Tensor], forward_extra_args: bool = False
) -> GradientTransformation:
    """Apply a transformation at some steps; at the others the updates pass through and its state stays.

    Args:
        inner: the transformation.
        should_transform_fn: from the step, a 0-dim int32 tensor that starts at 0, to a 0-dim bool tensor.
        forward_extra_args: give it those among `value`, `grad` and `value_fn` too that its signature names.
    """
    check_part("conditionally_transform: inner", inner)
    asked = _extras_of(should_transform_fn) if forward_extra_args else frozenset[str]()
    return _at_steps(inner, should_transform_fn, asked, lambda g: g, ConditionallyTransformState)


class ConditionallyMaskState(NamedTuple):
    """The state of a transformation that acts at some steps."""

    step: Tensor  # (), int32: updates so far
    inner_state: Tree  # the state of the transformation inside


@rule
def conditionally_mask(
    inner: GradientTransformation, should_transform_fn: Callable[..., Tensor], forward_extra_args: bool = False
) -> GradientTransformation:
    """Apply a transformation at some steps; at the others the updates are zero and its state stays.

    Args:
        inner: the transformation.
        should_transform_fn: from the step, a 0-dim int32 tensor that starts at 0, to a 0-dim bool tensor.
        forward_extra_args: give it those among `value`, `grad` and `value_fn` too that its signature names.
    """
    check_part("conditionally_mask: inner", inner)
    asked = _extras_of(should_transform_fn) if forward_extra_args else frozenset[str]()
    return _at_steps(inner, should_transform_fn, asked, tree.zeros_like, ConditionallyMaskState)


S = TypeVar("S", ConditionallyTransformState, ConditionallyMaskState)


def _at_steps(
    inner: GradientTransformation,
    chosen_at: Callable[..., Tensor],
    asked: frozenset[str],
    otherwise: Callable[[Tree], Tree],
    kind: type[S],
) -> GradientTransformation:
    """Updates of `inner` where `chosen_at(step)`, else `otherwise(updates)`."""

    def init(params: Tree) -> S:
        return kind(step=first_count(params), inner_state=inner.init(params))

    def update(g: Tree, state: S, params: Tree | None = None, **extra: object) -> tuple[Tree, S]:
        chosen = chosen_at(state.step, **{name: extra[name] for name in asked})
        u, s = update_part(inner, g, state.inner_state, params, extra)
        u, s = choose(chosen, u, otherwise(g)), choose(chosen, s, state.inner_state)
        return u, kind(step=increment(state.step), inner_state=s)

    return GradientTransformation(init, update, inner.needs | asked, inner.local and not asked)


def _extras_of(f: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(f).parameters) & {"value", "grad", "value_fn"}


class MultiStepsState(NamedTuple):
    """The state of a transformation that gathers gradients over several updates."""

    mini_step: Tensor  # (), int32: gradients gathered in this window
    gradient_step: Tensor  # (), int32: windows completed
    inner_opt_state: Tree  # the state of the transformation inside
    acc_grads: Tree  # like params: the mean (or sum) of the gradients gathered
    skip_state: Tree  # what should_skip_update_fn said of the last update, () without one


@rule
def MultiSteps(
    opt: GradientTransformation,
    every_k_schedule: int | Callable[[Tensor], Tensor | int],
    use_grad_mean: bool = True,
    should_skip_update_fn: Callable[[Tree, Tensor, Tree | None], tuple[Tensor, Tree]] | None = None,
    accumulator_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Gather gradients over k updates, and apply a transformation to their mean at the k-th.

        ḡ ← ḡ + (g - ḡ) / (n + 1)             n = 0, 1, ... k - 1 within the window
        u = update(ḡ) if n = k - 1 else 0

    The updates in between are zero and leave the state inside as it was: k micro-batches of equal size are one batch.
    A parameter without a gradient in the last update of a window is left as it is.

    Args:
        opt: the transformation.
        every_k_schedule: k >= 1, or a function from the number of windows completed, a 0-dim int32 tensor, to k.
        use_grad_mean: gather the mean; if False, the sum.
        should_skip_update_fn: (updates, gradient_step, params) -> (a 0-dim bool tensor, a tree of tensors). If the
            first is true, that update leaves no trace but the second, kept in `skip_state`.
        accumulator_dtype: of ḡ. None is the parameters' own, but at least float32.

    Raises:
        ValueError: should_skip_update_fn does not return a 0-dim bool tensor.
    """
    check_part("MultiSteps: opt", opt)
    if not callable(every_k_schedule):
        ranges.positive_int("MultiSteps", every_k_schedule=every_k_schedule)

    def asked_to_skip(g: Tree, gradient_step: Tensor, params: Tree | None) -> tuple[Tensor, Tree]:
        if should_skip_update_fn is None:
            return torch.zeros((), dtype=torch.bool, device=gradient_step.device), ()
        skip, skip_state = should_skip_update_fn(g, gradient_step, params)
        if skip.dtype != torch.bool or skip.dim():
            raise ValueError(
                "MultiSteps: should_skip_update_fn returned a tensor of "
                f"dtype {skip.dtype} and shape {tuple(skip.shape)}; hint: a 0-dim bool"
            )
        return skip, skip_state

    def init(params: Tree) -> MultiStepsState:
        zero, zeros = first_count(params), tree.zeros_like(params)
        acc = tree.zeros_like(params, accumulator_dtype) if accumulator_dtype else tree.upcast(zeros)
        return MultiStepsState(zero, zero.clone(), opt.init(params), acc, asked_to_skip(zeros, zero, params)[1])

    def update(
        g: Tree, state: MultiStepsState, params: Tree | None = None, **extra: object
    ) -> tuple[Tree, MultiStepsState]:
        n = increment(state.mini_step)
        k = every_k_schedule(state.gradient_step) if callable(every_k_schedule) else every_k_schedule
        skip, skip_state = asked_to_skip(g, state.gradient_step, params)
        last = (n >= k) & ~skip

        if use_grad_mean:
            acc = tree.pointwise(lambda a, g: a + (g - a) / n, state.acc_grads, g)
        else:
            acc = tree.pointwise(lambda a, g: a + g, state.acc_grads, g)
        u, s = update_part(opt, tree.cast_like(acc, g), state.inner_opt_state, params, extra)

        acc = tree.cast_like(acc, state.acc_grads)
        acc = choose(skip, state.acc_grads, choose(last, tree.zeros_like(acc), acc))
        return choose(last, u, tree.zeros_like(u)), MultiStepsState(
            torch.where(skip, state.mini_step, torch.where(last, 0, n)),
            torch.where(last, increment(state.gradient_step), state.gradient_step),
            choose(last, s, state.inner_opt_state),
            acc,
            skip_state,
        )

    return GradientTransformation(init, update, opt.needs, opt.local and should_skip_update_fn is None)


def has_updated(state: MultiStepsState) -> Tensor:
    """Whether the last update of a `MultiSteps` completed a window: a 0-dim bool."""
    return (state.mini_step == 0) & (state.gradient_step > 0)


def skip_not_finite(updates: Tree, gradient_step: Tensor, params: Tree | None) -> tuple[Tensor, dict[str, Tensor]]:
    """For `MultiSteps`: skip what holds an infinity or a NaN."""
    count = count_not_finite(updates)
    return count > 0, {"should_skip": count > 0, "num_not_finite": count}


def skip_large_updates(
    updates: Tree, gradient_step: Tensor, params: Tree | None, max_squared_norm: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """For `MultiSteps`, with functools.partial: skip what has a squared norm of max_squared_norm or more, or NaN."""
    norm_squared = tree.norm(updates).square()
    skip = ~(norm_squared < max_squared_norm)
    return skip, {"should_skip": skip, "norm_squared": norm_squared}
