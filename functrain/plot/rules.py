"""What rules do: their paths through a valley, and their updates of gradients that stay or turn."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from functrain import ranges
from functrain.base import GradientTransformation
from functrain.plot.canvas import COLOURS, MARKERS, STYLES, grid, named, names
from functrain.plot.valleys import KNOWN, Valley, Walk, ravine, walk

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patheffects import AbstractPathEffect

Rules: TypeAlias = GradientTransformation | Mapping[str, GradientTransformation]

SHAPE = 1.3  # width of the valley's panel over its height
HIGH = 2.0  # a path is followed as far as it stays below so many times the height of its start
ACROSS, LEVELS = 160, 12  # points of the valley along x, and lines of equal height


def rule(
    *rules: Rules, valley: Valley = ravine, start: Sequence[float] | Tensor | None = None, steps: int = 100
) -> Figure:
    """The paths of rules through a valley, and the loss along them.

        ft.plot.rule(ft.adam(0.1))
        ft.plot.rule(ft.adam(0.1), ft.sgd(0.01))
        ft.plot.rule({"slow": ft.sgd(0.001), "fast": ft.sgd(0.01)}, valley=ft.plot.rosenbrock)

    A point is an update. The darker, the higher; there is as much land between two lines of equal height as between
    any other two. A rule that keeps an average of its parameters, as `schedule_free` and `params_ema` do, has the
    average's path too, dotted. What climbs to over twice the height of the start is not followed: where a path is cut
    off its name says so.

    Args:
        rules: transformations, or mappings from names to transformations. Those that need value, grad or value_fn get
            it.
        valley: from a tensor of two numbers to a 0-dim tensor; `ravine`, `rosenbrock` or your own.
        start: two numbers; needed for a valley of your own. The parameters are a vector of the default dtype, or, if a
            tensor is given, of its dtype and shape: some rules take only matrices.
        steps: updates, at least one.

    Raises:
        TypeError: what came is not a transformation, or the valley does not return a 0-dim tensor.
        ValueError: no rule, no start, or not two numbers; a rule needs something else; the start is not finite.
    """
    where = "plot.rule"
    chosen = _checked(where, rules, steps)
    known = KNOWN.get(valley)
    if start is None:
        if known is None:
            raise ValueError(f"{where}: a valley of your own needs a start; hint: start=(-1.0, 2.0)")
        start = known.start
    at = torch.as_tensor(start)
    if at.numel() != 2:
        raise ValueError(f"{where}: start must be two numbers, got {at.tolist()}; hint: start=(-1.0, 2.0)")
    at = at.detach() if at.is_floating_point() else at.to(torch.get_default_dtype())
    reached = valley(at.reshape(2))
    if not isinstance(reached, Tensor) or reached.dim():
        what = f"shape {tuple(reached.shape)}" if isinstance(reached, Tensor) else f"a {type(reached).__name__}"
        raise TypeError(f"{where}: a valley returns a 0-dim tensor, got {what}; hint: sum it up with tensors")

    walks = [(label, walk(tx, valley, at, steps)) for label, tx in chosen]
    window = _window([each for _, each in walks], known.lowest if known else None)

    figure, ((map_, losses),) = grid(1, 2)
    figure.set_size_inches(10, 4.2)
    _land(map_, valley, window, at.dtype)
    lines: list[Artist] = []
    for i, (label, each) in enumerate(walks):
        lines += _path(map_, losses, label, each, window, i)
    x, y = walks[0][1].points[0]
    map_.plot([x], [y], "o", color="black", markerfacecolor="white", markersize=8, zorder=4, label="_start")
    map_.annotate("start", (x, y), xytext=(0, 8), textcoords="offset points", ha="center", path_effects=_halo(3))
    if known:
        map_.plot(*[[c] for c in known.lowest], "*", color="black", markersize=13, zorder=4, label="_lowest")
    _scale([each for _, each in walks], losses)
    names(figure, lines)
    return figure


class Window(NamedTuple):
    """The part of the valley that is drawn."""

    left: float
    right: float
    bottom: float
    top: float

    def has(self, point: tuple[float, float]) -> bool:
        """False for a point outside, or not finite."""
        return self.left <= point[0] <= self.right and self.bottom <= point[1] <= self.top


def _window(walks: Sequence[Walk], lowest: tuple[float, float] | None) -> Window:
    """Around the start, the lowest point, and wherever the paths are not much higher than the start."""
    finite = [h for each in walks for h in each.heights + each.average_heights if math.isfinite(h)]
    floor, first = min(finite), walks[0].heights[0]
    shown = [walks[0].points[0], *([lowest] if lowest else [])]
    for each in walks:
        reached = zip(each.points + each.averages, each.heights + each.average_heights, strict=True)
        shown += [point for point, height in reached if height - floor <= HIGH * (first - floor)]
    (left, right), (bottom, top) = ((min(side), max(side)) for side in zip(*shown, strict=True))
    width, height = (1.25 * (high - low) or 1.0 for low, high in ((left, right), (bottom, top)))
    if 1 / 8 < width / height < 8:  # beyond that, as many units of x as of y would leave nothing to see
        width, height = max(width, SHAPE * height), max(height, width / SHAPE)
    x, y = (left + right) / 2, (bottom + top) / 2
    return Window(x - width / 2, x + width / 2, y - height / 2, y + height / 2)


def _land(axes: Axes, valley: Valley, window: Window, dtype: torch.dtype) -> None:
    """Lines of equal height, the darker the higher."""
    xs = torch.linspace(window.left, window.right, ACROSS, dtype=dtype)
    ys = torch.linspace(window.bottom, window.top, round(ACROSS / SHAPE), dtype=dtype)
    points = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2)
    try:
        found = torch.func.vmap(valley)(points)
    except RuntimeError:  # it asks what its numbers are, so one point at a time
        found = torch.stack([valley(point) for point in points])
    found = found.detach().reshape(len(ys), len(xs)).double()
    solid = found[found.isfinite()]
    if solid.numel() and solid.max() > solid.min():
        parts = torch.linspace(0, 1, LEVELS + 1, dtype=torch.float64)
        levels = sorted(set(solid.quantile(parts).tolist()))  # as much land between two lines as between two others
        shades = [i / len(levels) for i in range(len(levels) - 1)]
        tints = [(0.97 - 0.33 * shade, 0.98 - 0.26 * shade, 0.99 - 0.2 * shade) for shade in shades]
        drawn = xs.tolist(), ys.tolist(), found.tolist()
        axes.contourf(*drawn, levels=levels, colors=tints)
        axes.contour(*drawn, levels=levels, colors="white", linewidths=0.8)
    axes.grid(False)
    axes.set(xlim=(window.left, window.right), ylim=(window.bottom, window.top), xlabel="x", ylabel="y")
    if math.isclose(window.right - window.left, SHAPE * (window.top - window.bottom)):
        axes.set_aspect("equal")


def _path(map_: Axes, losses: Axes, label: str, each: Walk, window: Window, i: int) -> list[Artist]:
    """Draw one rule; the lines that stand for it in the legend."""
    color, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    inside = [window.has(point) for point in each.points]
    end = len(inside) - inside[::-1].index(True)  # the start is inside
    if end < len(inside):
        label += f" (leaves the picture at update {end})"
    elif not all(inside):
        label += " (partly outside the picture)"
    shown = [point for point in each.points[: end + 1] if all(map(math.isfinite, point))]
    few = max(1, len(each.heights) // 12)  # samples of the marker along a line, the last point always among them
    marked = list(range((len(each.heights) - 1) % few, len(each.heights), few))

    path = list(zip(*shown, strict=True))
    above = 3 - i / 100  # the first rule lies over the others
    small = 5 if len(shown) < 150 else 3
    map_.plot(*path, color="white", linewidth=3, zorder=above, label="_halo")
    map_.plot(*path, color=color, marker=".", markersize=small, linewidth=1.4, zorder=above, label=label)
    if end == len(inside):
        last = [[c] for c in each.points[-1]]
        map_.plot(*last, marker, color=color, markeredgecolor="white", markersize=9, zorder=3.5, label="_end")
    losses.plot(each.heights, color=color, marker=marker, markevery=marked, markersize=5, linewidth=1.4, label=label)
    lines = [losses.get_lines()[-1]]
    if each.averages:
        label += ", average"
        map_.plot(*zip(*each.averages, strict=True), ":", color=color, linewidth=2.6, zorder=3.2, label=label)
        losses.plot(each.average_heights, ":", color=color, linewidth=2.6, zorder=3, label=label)
        lines.append(losses.get_lines()[-1])
    return cast("list[Artist]", lines)


def _scale(walks: Sequence[Walk], axes: Axes) -> None:
    """Losses up to a little above the start; in powers of ten if none is below zero and one is a hundredth of it."""
    finite = [h for each in walks for h in each.heights + each.average_heights if math.isfinite(h)]
    first, floor = walks[0].heights[0], min(finite)
    ceiling = min(max(finite), max(first + (HIGH - 1) * (first - floor), first))
    if (floor >= 0 and 0 < 100 * floor < first) or (floor == 0 and first > 0):
        axes.set_yscale("log")
        axes.set_ylim(max(min(h for h in finite if h > 0), 1e-9 * first) / 2, 2 * ceiling)
    elif ceiling > floor:
        margin = 0.05 * (ceiling - floor)
        axes.set_ylim(floor - margin, ceiling + margin)
    axes.set(xlabel="updates", ylabel="loss")


def _halo(width: float) -> list[AbstractPathEffect]:
    """White around a line or letters, so that they stand out from what they cross."""
    effects = importlib.import_module("matplotlib.patheffects")
    return cast("list[AbstractPathEffect]", [effects.withStroke(linewidth=width, foreground="white")])


def response(*rules: Rules, steps: int = 200) -> Figure:
    """The updates that rules make of a gradient that is 1 throughout, and of one that turns to -1 halfway.

    Args:
        rules: transformations, or mappings from names to transformations. The parameter of each is one number, 1 at
            the start, that takes the updates.
        steps: updates, at least one.

    Raises:
        TypeError: what came is not a transformation.
        ValueError: no rule, or steps is not a number of at least one; a rule needs something beside the gradient.
    """
    where = "plot.response"
    chosen = _checked(where, rules, steps)
    for _, tx in chosen:
        if tx.needs:
            raise ValueError(f"{where}: {tx!r} needs {', '.join(sorted(tx.needs))}; hint: plot.rule has a loss for it")
    half = steps // 2
    inputs = {"gradient 1": [1.0] * steps, "gradient 1, then -1": [1.0] * half + [-1.0] * (steps - half)}
    figure, columns = grid(1, 2)
    for axes, (title, gradients) in zip(columns[0], inputs.items(), strict=True):
        axes.set(title=title, xlabel="updates", ylabel="update")
        for (label, tx), style in zip(chosen, cycle(STYLES), strict=False):
            axes.plot(range(1, steps + 1), _updates(tx, gradients), linestyle=style, label=label)
        axes.axhline(0.0, color="gray", linewidth=0.8)
    names(figure, columns[0][0].get_lines()[: len(chosen)])
    return figure


def _updates(tx: GradientTransformation, gradients: Sequence[float]) -> list[float]:
    params = torch.ones(1)
    state, made = tx.init(params), []
    for g in gradients:
        update, state = tx.update(torch.full((1,), g), state, params)
        params = params + update
        made.append(update.item())
    return made


def _checked(where: str, rules: Sequence[Rules], steps: int) -> list[tuple[str, GradientTransformation]]:
    """The rules with their names."""
    ranges.positive_int(where, steps=steps)
    chosen = named(where, "rule", rules)
    for _, tx in chosen:
        if not isinstance(tx, GradientTransformation):
            raise TypeError(f"{where}: it draws transformations, got a {type(tx).__name__}; hint: ft.adam(0.1), say")
    return chosen
