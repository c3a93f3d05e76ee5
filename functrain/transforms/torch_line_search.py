"""How far to go along a direction: the line search of torch.optim.LBFGS, for the strong Wolfe conditions.

Along x + t d the loss is a function of one number, φ(t) = f(x + t d) with slope φ'(t) = ∇f(x + t d)ᵀ d. A length t is
good where φ has fallen enough and has become flat enough. The search follows φ outwards until such a t must lie in
between, then narrows the bracket.

It decides by numbers, so it runs on the host. Scalars that come from tensors stay 0-dim tensors, and every formula is
written in the order in which PyTorch rounds it.

References, by their numbers below:
    Nocedal & Wright, Numerical Optimization, 2nd edition, 2006: equations 3.7 and 3.59, algorithms 3.5 and 3.6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from functrain.schedules import Scalar

SUFFICIENT, FLAT = 1e-4, 0.9  # c₁ and c₂ of the strong Wolfe conditions
NARROW = 1e-9  # a bracket in which no entry of x moves so far is not searched: PyTorch has one number for all


class Evaluation(NamedTuple):
    """A loss and its gradient at a point."""

    x: Tensor  # (n,): where; not where it was asked for if the loss moves its parameters, into a box for example
    loss: float  # f(x)
    grad: Tensor  # (n,): ∇f(x)


Evaluate: TypeAlias = Callable[[Tensor], Evaluation]


class Trial(NamedTuple):
    """A step length that was tried."""

    t: Scalar
    loss: float  # φ(t)
    grad: Tensor  # (n,): ∇f(x + t d)
    slope: Tensor  # (): φ'(t) = ∇f(x + t d)ᵀ d

    def high(self, start: Trial) -> bool:
        """Not enough below the start: φ(t) > φ(0) + c₁ t φ'(0)."""
        return bool(self.loss > start.loss + SUFFICIENT * self.t * start.slope)

    def flat(self, start: Trial) -> bool:
        """|φ'(t)| <= c₂ |φ'(0)|."""
        return bool(abs(self.slope) <= -FLAT * start.slope)


class Line(NamedTuple):
    """The function φ."""

    evaluate: Evaluate
    x: Tensor
    d: Tensor

    def __call__(self, t: Scalar) -> Trial:
        at = self.evaluate(along(self.x, t, self.d))
        return Trial(t, at.loss, at.grad, at.grad.dot(self.d))


def strong_wolfe(line: Line, start: Trial, t: Scalar, budget: int) -> tuple[Trial, int]:
    """A step length t that satisfies the strong Wolfe conditions, and the evaluations that it took.

        φ(t) <= φ(0) + c₁ t φ'(0)        |φ'(t)| <= c₂ |φ'(0)|

    Args:
        line: φ.
        start: φ at 0, where it falls.
        t: the first length to try. It is evaluated whatever the budget.
        budget: evaluations after the first. The best end of the bracket is returned when they are used up.
    """
    ends, used = bracket(line, start, t, budget)
    if len(ends) == 1:
        return ends[0], used + 1
    end, used = zoom(line, start, ends, used, budget)
    return end, used + 1


def bracket(line: Line, start: Trial, t: Scalar, budget: int) -> tuple[tuple[Trial, ...], int]:
    """Two lengths between which a good one lies, or a good one alone; and the evaluations after the first.

    φ is followed outwards until it rises, or flattens. When the budget is used up, the ends are 0 and the last length.

    Reference:
        Algorithm 3.5.
    """
    before, at = start, line(t)
    for used in range(budget):
        if at.high(start) or (used > 1 and at.loss >= before.loss):
            return (before, at), used
        if at.flat(start):
            return (at,), used
        if at.slope >= 0:
            return (before, at), used
        t = interpolate(before, at, at.t + 0.01 * (at.t - before.t), at.t * 10)
        before, at = at, line(t)
    return (start, at), max(budget, 0)


def zoom(line: Line, start: Trial, ends: tuple[Trial, ...], used: int, budget: int) -> tuple[Trial, int]:
    """A good length between the ends, or the best that was found; and the evaluations used.

    Of the two ends, `ends[low]` has the lower loss, and φ falls from it towards the other.

    Reference:
        Algorithm 3.6.
    """
    pair, low, stalled = list(ends), 0 if ends[0].loss <= ends[1].loss else 1, False
    reach = largest(line.d)
    while used < budget:
        nearest, farthest = smaller(pair[0].t, pair[1].t), larger(pair[0].t, pair[1].t)
        if (farthest - nearest) * reach < NARROW:
            break
        t = interpolate(pair[0], pair[1], nearest, farthest)
        t, stalled = keep_away(t, nearest, farthest, stalled)
        at, used = line(t), used + 1
        high = 1 - low
        if at.high(start) or at.loss >= pair[low].loss:
            pair[high] = at
            low = 0 if pair[0].loss <= pair[1].loss else 1
            continue
        flat = at.flat(start)
        if not flat and at.slope * (pair[high].t - pair[low].t) >= 0:
            pair[high] = pair[low]
        pair[low] = at
        if flat:
            break
    return pair[low], used


def keep_away(t: Scalar, nearest: Scalar, farthest: Scalar, stalled: bool) -> tuple[Scalar, bool]:
    """Keep a trial off the ends of its bracket, where it would teach little.

    The second time in a row that t is within a tenth of an end, and whenever it is at one, it is moved to that tenth.

    Returns:
        t, and whether it is so near and was left there.
    """
    margin = 0.1 * (farthest - nearest)
    if not smaller(farthest - t, t - nearest) < margin:
        return t, False
    if not (stalled or t >= farthest or t <= nearest):
        return t, True
    return (farthest - margin if farthest - t < t - nearest else nearest + margin), False


def interpolate(a: Trial, b: Trial, least: Scalar, greatest: Scalar) -> Scalar:
    """Where the cubic through two trials and their slopes has its minimum, held between two lengths.

        d₁ = φ'(a) + φ'(b) - 3 (φ(a) - φ(b)) / (a - b)        d₂ = √(d₁² - φ'(a) φ'(b))
        t = b - (b - a) (φ'(b) + d₂ - d₁) / (φ'(b) - φ'(a) + 2 d₂)        where a <= b

    The middle of the two lengths where the cubic has no minimum.

    Reference:
        Equation 3.59.
    """
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
    square = d1**2 - a.slope * b.slope
    if not square >= 0:
        return (least + greatest) / 2.0
    d2 = square.sqrt()
    if a.t > b.t:
        a, b = b, a
    t = b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2))
    return smaller(larger(t, least), greatest)


# --- arithmetic


def along(x: Tensor, t: Scalar, d: Tensor) -> Tensor:
    """x + t d."""
    return torch.add(x, d, alpha=float(t))


def largest(x: Tensor) -> Scalar:
    """The largest absolute value; zero where there are no entries."""
    return x.abs().max() if x.numel() else 0.0


def smaller(a: Scalar, b: Scalar) -> Scalar:
    """The smaller of two; a where one is NaN."""
    return b if b < a else a


def larger(a: Scalar, b: Scalar) -> Scalar:
    """The larger of two; a where one is NaN."""
    return b if b > a else a
