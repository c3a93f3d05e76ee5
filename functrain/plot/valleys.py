"""Functions of two numbers to walk on, and the walk of a rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from functrain.base import GradientTransformation, apply_updates
from functrain.combinators.average import ScheduleFreeState, schedule_free_eval_params
from functrain.gradient import value_and_grad
from functrain.transforms.averages import ParamsEmaState
from functrain.tree import Tree

Valley: TypeAlias = Callable[[Tensor], Tensor]


def ravine(p: Tensor) -> Tensor:
    """½ (u² + 25 v²), where (u, v) is p turned by 30°: a bowl five times as long as it is wide, across the axes.

    Descent by the gradient alone grows there if its rate is above 2 / 25 = 0.08. Lowest at (0, 0).
    """
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    u, v = c * p[0] + s * p[1], c * p[1] - s * p[0]
    return 0.5 * (u**2 + 25 * v**2)


def rosenbrock(p: Tensor) -> Tensor:
    """(1 - x)² + 100 (y - x²)²: a bent valley whose floor hardly falls. Lowest at (1, 1).

    Reference:
        Rosenbrock, An automatic method for finding the greatest or least value of a function, 1960.
    """
    x, y = p[0], p[1]
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


class Known(NamedTuple):
    """What is known of a valley."""

    start: tuple[float, float]
    lowest: tuple[float, float]


KNOWN: dict[Valley, Known] = {
    ravine: Known((-2.5, 0.5), (0.0, 0.0)),
    rosenbrock: Known((-1.2, 1.0), (1.0, 1.0)),
}


class Walk(NamedTuple):
    """Where a rule went: entry n is after n updates. It ends early where a number is not finite."""

    points: list[tuple[float, float]]
    heights: list[float]
    averages: list[tuple[float, float]]  # empty for a rule that keeps no average of its parameters
    average_heights: list[float]


def walk(tx: GradientTransformation, valley: Valley, start: Tensor, steps: int) -> Walk:
    """A rule's path from `start` over so many updates.

    Raises:
        ValueError: the rule needs what a valley does not have, or the valley is not finite at the start.
    """
    where = "plot.rule"
    if unknown := sorted(tx.needs - {"value", "grad", "value_fn"}):
        raise ValueError(
            f"{where}: {tx!r} needs {', '.join(unknown)}, which a valley does not have; "
            "hint: it has value, grad and value_fn"
        )

    def value_fn(p: Tensor) -> Tensor:
        return valley(p.reshape(2))

    params = start
    state = tx.init(params)
    found = Walk([], [], [], [])
    for n in range(steps + 1):
        value, grad = value_and_grad(value_fn)(params)
        height = float(value)
        if n == 0 and not math.isfinite(height):
            raise ValueError(
                f"{where}: the valley is {height} at the start, {_pair(start)}; hint: start= where it is finite"
            )
        found.points.append(_pair(params))
        found.heights.append(height)
        if (average := average_of(state, params)) is not None:
            found.averages.append(_pair(average))
            found.average_heights.append(float(value_fn(average)))
        if n == steps or not math.isfinite(height):
            break
        extras = {"value": value, "grad": grad, "value_fn": value_fn}
        updates, state = tx.update(grad, state, params, **{name: extras[name] for name in tx.needs})
        params = apply_updates(params, updates)
    return found


def average_of(state: Tree, params: Tensor) -> Tensor | None:
    """The average of the parameters that the state of a rule keeps, if it is one of `schedule_free` or `params_ema`."""
    if isinstance(state, ScheduleFreeState):
        return schedule_free_eval_params(state, params)
    if isinstance(state, ParamsEmaState):
        return state.ema if isinstance(state.ema, Tensor) else None
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return next((found for part in parts if (found := average_of(part, params)) is not None), None)


def _pair(p: Tensor) -> tuple[float, float]:
    x, y = p.flatten().tolist()
    return float(x), float(y)
