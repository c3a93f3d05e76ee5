"""L-BFGS as torch.optim computes it: a quasi-Newton method, with or without a line search.

The core works on one flat vector x and a function `evaluate(x)` that gives a loss and its gradient. It decides by
numbers (has the loss fallen enough?), so it runs on the host: it can be neither compiled nor mapped nor differentiated.
Scalars that come from tensors stay 0-dim tensors, and every formula is written in the order in which PyTorch rounds it.

References, by their numbers below:
    Nocedal & Wright, Numerical Optimization, 2nd edition, 2006: equation 7.20, algorithms 7.4 and 7.5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from functrain.schedules import Scalar
from functrain.transforms.torch_line_search import (
    Evaluate,
    Evaluation,
    Line,
    Trial,
    along,
    largest,
    smaller,
    strong_wolfe,
)

CURVED = 1e-10  # sᵀy above which a pair is remembered: the Hessian that it shows is positive


class Settings(NamedTuple):
    """The hyper-parameters."""

    lr: Scalar  # η: the step length, or the first one that the line search tries
    max_iter: int  # iterations in a step
    max_eval: int  # evaluations in a step; one iteration may exceed it
    tolerance_grad: float  # largest |entry of the gradient| that counts as zero
    tolerance_change: float  # largest change of an entry of x, or of the loss, that counts as none
    history_size: int  # pairs that are remembered
    line_search: bool  # seek a step length that satisfies the strong Wolfe conditions


class Memory(NamedTuple):
    """What is carried from iteration to iteration, and from step to step."""

    n_iter: int  # iterations so far
    func_evals: int  # evaluations so far
    d: Tensor  # (n,): the last direction
    t: Scalar  # the last step length
    old_dirs: tuple[Tensor, ...]  # y = change of the gradient, (n,) each, oldest first
    old_stps: tuple[Tensor, ...]  # s = change of x, (n,) each
    ro: tuple[Tensor, ...]  # ρ = 1 / yᵀs
    H_diag: Scalar  # γ: the inverse Hessian is γ I before the pairs improve it
    prev_flat_grad: Tensor  # (n,): the gradient from which the last direction was made
    prev_loss: float  # the loss there
    al: tuple[Tensor, ...]  # α of the last recursion, one a pair


def first_memory(x: Tensor) -> Memory:
    """The memory before the first step."""
    zeros = torch.zeros_like(x)
    return Memory(0, 0, zeros, 0.0, (), (), (), 1, zeros, 0.0, ())


def minimise(evaluate: Evaluate, at: Evaluation, memory: Memory, settings: Settings) -> tuple[Tensor, Memory]:
    """One step of torch.optim.LBFGS: up to `max_iter` iterations x ← x + t d. Returns the new x.

    The step ends early where the gradient is zero, where d does not lead down, where x or the loss hardly changes, or
    when the evaluations are used up. Without a line search, x at the end is not evaluated.

    Args:
        evaluate: the loss and its gradient anywhere.
        at: the same where the step begins. It counts as one evaluation.
        memory: from the last step; not written to.
        settings: the hyper-parameters.

    Reference:
        Algorithm 7.5, with these tests of progress and a fixed step length if there is no line search.
    """
    evals = 1
    memory = memory._replace(func_evals=memory.func_evals + 1)
    if largest(at.grad) <= settings.tolerance_grad:
        return at.x, memory

    for n in range(1, settings.max_iter + 1):
        last = n == settings.max_iter
        memory = turn(memory, at.grad, settings.history_size)
        d, loss = memory.d, at.loss
        t = first_length(at.grad, settings.lr) if memory.n_iter == 1 else settings.lr
        memory = memory._replace(t=t, prev_flat_grad=at.grad, prev_loss=loss)
        slope = at.grad.dot(d)
        if slope > -settings.tolerance_change:
            break

        used = 0
        if settings.line_search and t > 0:  # at rate zero there is no line
            line = Line(evaluate, at.x, d)
            start, budget = Trial(0.0, loss, at.grad, slope), settings.max_eval - evals
            end, used = strong_wolfe(line, start, t, budget)
            t, at = end.t, Evaluation(along(at.x, end.t, d), end.loss, end.grad)
        elif last:
            at = at._replace(x=along(at.x, t, d))
        else:
            at, used = evaluate(along(at.x, t, d)), 1
        evals += used
        memory = memory._replace(t=t, func_evals=memory.func_evals + used)

        still = largest(d * t) <= settings.tolerance_change or abs(at.loss - loss) < settings.tolerance_change
        if last or evals >= settings.max_eval or largest(at.grad) <= settings.tolerance_grad or still:
            break
    return at.x, memory


def first_length(grad: Tensor, lr: Scalar) -> Scalar:
    """η min(1, 1 / ‖g‖₁): before any curvature is known, x moves by η at most in the 1-norm."""
    return smaller(1.0, 1.0 / grad.abs().sum()) * lr


# --- the direction


def turn(memory: Memory, grad: Tensor, history_size: int) -> Memory:
    """The next direction: -g at first, then -H g with the inverse Hessian H that the pairs stand for."""
    memory = memory._replace(n_iter=memory.n_iter + 1)
    if memory.n_iter == 1:
        return memory._replace(d=-grad, old_dirs=(), old_stps=(), ro=(), H_diag=1)
    memory = remember(memory, grad, history_size)
    d, al = two_loops(memory, grad)
    return memory._replace(d=d, al=al)


def remember(memory: Memory, grad: Tensor, history_size: int) -> Memory:
    """Add the pair of the last iteration to the history, and drop the oldest where it is full.

        y = g - g_old        s = t d        ρ = 1 / yᵀs        γ = yᵀs / yᵀy

    A pair with yᵀs near zero or below is left out: H stays positive definite.

    Reference:
        Equation 7.20 (γ).
    """
    y = grad - memory.prev_flat_grad
    s = memory.d * memory.t
    ys = y.dot(s)
    if not ys > CURVED:
        return memory
    start = max(0, len(memory.ro) + 1 - history_size)
    return memory._replace(
        old_dirs=(*memory.old_dirs, y)[start:],
        old_stps=(*memory.old_stps, s)[start:],
        ro=(*memory.ro, 1.0 / ys)[start:],
        H_diag=ys / y.dot(y),
    )


def two_loops(memory: Memory, grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """-H g, and the α of each pair.

        q = -g
        newest to oldest:   α = ρ sᵀq        q ← q - α y
        r = γ q
        oldest to newest:   β = ρ yᵀr        r ← r + (α - β) s

    Reference:
        Algorithm 7.4.
    """
    pairs = list(zip(memory.old_dirs, memory.old_stps, memory.ro, strict=True))
    q, newest_first = -grad, []
    for y, s, rho in reversed(pairs):
        alpha = s.dot(q) * rho
        q = along(q, -alpha, y)
        newest_first.append(alpha)
    r, al = q * memory.H_diag, tuple(reversed(newest_first))
    for (y, s, rho), alpha in zip(pairs, al, strict=True):
        beta = y.dot(r) * rho
        r = along(r, alpha - beta, s)
    return r, al
