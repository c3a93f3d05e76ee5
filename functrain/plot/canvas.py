"""What all pictures have in common: a figure that draws into files, colours, and names beside the lines."""

from __future__ import annotations

import importlib
import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar, cast

from functrain.record import show

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

T = TypeVar("T")

# The colours of Okabe & Ito without their yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
SAMPLE = 7  # characters that a sample of a line takes


def grid(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure that draws into files, and its axes.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plot: matplotlib is not installed; hint: pip install 'functrain[plot]'") from error
    figure = cast("Figure", figure_module.Figure(figsize=(5.5 * columns, 3.8 * rows), layout="constrained"))
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.set_prop_cycle(color=COLOURS)
        one.grid(alpha=0.3)
        _plain_numbers(one)
    return figure, [list(row) for row in axes]


def _plain_numbers(axes: Axes) -> None:
    """Heights written out, 0.0025 or 2.5e-06: no common factor stands above the axis, where names are."""

    def written(y: float, position: float) -> str:
        low, high = axes.get_ylim()
        marks = [0.0 if abs(mark) < 1e-9 * abs(high - low) else float(mark) for mark in (*axes.get_yticks(), y)]
        texts = [f"{mark:.10g}" for mark in marks]
        digits = max(len(text.partition(".")[2]) for text in texts)
        text = texts[-1] if any("e" in text for text in texts) else f"{marks[-1]:,.{digits}f}"
        return text.replace("-", "\N{MINUS SIGN}")

    axes.yaxis.set_major_formatter(written)


def named(where: str, what: str, given: Sequence[T | Mapping[str, T]]) -> list[tuple[str, T]]:
    """Things with their names: those of a mapping, else how they print."""
    found: list[tuple[str, T]] = []
    for each in given:
        found += each.items() if isinstance(each, Mapping) else [(show(each), each)]
    if not found:
        raise ValueError(f"{where}: there is nothing to draw; hint: give it a {what}, several, or a mapping from names")
    return found


def names(figure: Figure, lines: Sequence[Artist]) -> None:
    """Above all panels the name of what is drawn, or beside a sample of each line its own."""
    wide = round(10.5 * figure.get_figwidth())  # characters in a row, about
    labels = [textwrap.fill(str(line.get_label()), wide - SAMPLE) for line in lines]
    if len(labels) == 1:
        figure.suptitle(labels[0])
        return
    columns = next(n for n in range(len(labels), 0, -1) if n == 1 or sum(_widths(labels, n)) <= wide)
    rows = math.ceil(sum(1 + label.count("\n") for label in labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.22 * (rows - 1))  # the panels keep their heights
    figure.legend(handles=lines, labels=labels, loc="outside upper center", ncols=columns, frameon=False)


def _widths(labels: Sequence[str], columns: int) -> list[int]:
    """What each column of a legend takes, which is filled downwards, the first columns with one more."""
    least, more = divmod(len(labels), columns)
    ends = [n * least + min(n, more) for n in range(columns + 1)]
    return [max(map(len, labels[i:j])) + SAMPLE for i, j in pairwise(ends)]


def decades(axes: Axes, heights: Sequence[float]) -> None:
    """A logarithmic axis for numbers above zero of which one is a hundred times another."""
    finite = [y for y in heights if math.isfinite(y)]
    if finite and min(finite) > 0 and max(finite) >= 100 * min(finite):
        axes.set_yscale("log")


def heights(line: Line2D) -> list[float]:
    """The finite ones."""
    return [y for y in map(float, cast("Sequence[float]", line.get_ydata())) if math.isfinite(y)]
