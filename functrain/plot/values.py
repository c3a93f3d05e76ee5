"""Schedules, as lines over the count of updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle
from typing import TYPE_CHECKING, TypeAlias, cast, overload

import torch
from torch import Tensor

from functrain.plot.canvas import STYLES, grid, named, names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Fn: TypeAlias = Callable[[Tensor], object]
Schedules: TypeAlias = Fn | Mapping[str, Fn]

POINTS = 1000  # at most, on a line


@overload
def schedule(fns: Schedules, /, steps: int) -> Figure: ...
@overload
def schedule(*fns: Schedules, steps: int) -> Figure: ...
def schedule(*fns: Schedules | int, steps: int | None = None) -> Figure:
    """The values of schedules over counts 0 to steps - 1.

        ft.plot.schedule(fn, 1000)
        ft.plot.schedule({"cosine": fn, "linear": other}, 1000)
        ft.plot.schedule(fn, other, steps=1000)

    Args:
        fns: from a count, a 0-dim int32 tensor, to a value; or mappings from names to such.
        steps: how many counts, at least one.

    Raises:
        TypeError: what came is not a function.
        ValueError: no schedule, or steps is not a number of at least one.
    """
    where = "plot.schedule"
    count = fns[-1] if fns and isinstance(fns[-1], int) else steps
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{where}: steps must be an integer >= 1, got {count!r}; hint: plot.schedule(fn, 1000)")
    chosen = named(where, "schedule", [each for each in fns if not isinstance(each, int)])
    for _, one in chosen:
        if not callable(one):
            hint = "ft.schedules.constant_schedule(0.1), say"
            raise TypeError(f"{where}: a schedule is a function of the count, got a {type(one).__name__}; hint: {hint}")
    last = count - 1
    counts = sorted({round(i * last / (POINTS - 1)) for i in range(POINTS)}) if count > POINTS else list(range(count))

    figure, ((axes,),) = grid(1, 1)
    figure.set_size_inches(7.5, 3.8)
    axes.set(xlabel="count", ylabel="value")
    for (label, one), style in zip(chosen, cycle(STYLES), strict=False):
        values = [float(cast("Tensor", one(torch.tensor(n, dtype=torch.int32)))) for n in counts]  # or a float
        axes.plot(counts, values, linestyle=style, label=label)
    names(figure, axes.get_lines())
    return figure
