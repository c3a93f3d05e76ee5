"""A run in pictures, from its `metrics.jsonl` alone or from a Trainer."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from functrain import logging
from functrain.console import legible
from functrain.logging import Record, number
from functrain.plot.canvas import COLOURS, decades, grid, heights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY, MEAN = 300, 200  # from how many points on a line has a mean, and a window is what part of them, twice


class HasHistory(Protocol):
    """A Trainer, or anything else with records."""

    history: list[Record]


def history(run: str | os.PathLike[str] | HasHistory) -> Figure:
    """Loss with the best validation marked, learning rate, gradient norm with its limit, speed, and what else is known.

    There is a panel more for each further number that validations measure. A loss or a norm that spans two decades has
    a logarithmic axis; many noisy points have a running mean; what is not finite is marked at the bottom.

    Args:
        run: a run's directory, its `metrics.jsonl`, or a Trainer.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: there is no record.
    """
    if isinstance(run, str | os.PathLike):
        path = Path(run) / "metrics.jsonl" if Path(run).is_dir() else Path(run)
        if not path.exists():
            raise FileNotFoundError(f"plot.history: there is no {path}; hint: a Trainer with save_dir= writes it")
        records = logging.history(path)
    else:
        records = run.history
    if not records:
        raise ValueError("plot.history: the run has no record yet")

    known = dict.fromkeys(name for r in records for name, x in r.items() if isinstance(x, int | float))
    others = [name.removeprefix("val_") for name in known if name.startswith("val_") and name != "val_loss"]
    rates = [name for name in known if name.partition("/")[0] == "learning_rate"]

    figure, rows = grid(2 + math.ceil(len(others) / 2), 2)
    panels = [axes for row in rows for axes in row]
    _measured(panels[0], records, "loss")
    if best := [r for r in records if math.isfinite(number(r.get("val_loss")))]:
        least = min(best, key=lambda r: number(r["val_loss"]))
        x, y = number(least["step"]), number(least["val_loss"])
        panels[0].plot([x], [y], "*", markersize=12, color="black", label=f"best {legible(y, 4)} at {x:,.0f}")

    panels[1].set_ylabel("learning rate")
    for name in rates:
        _curve(panels[1], records, name, name.partition("/")[2] or "learning rate")
    decades(panels[1], [max(heights(line), default=math.nan) for line in panels[1].get_lines()])  # of groups

    panels[2].set_ylabel("gradient norm")
    _curve(panels[2], records, "grad_norm", "before clipping", mean=True)
    if limits := [number(r["max_grad_norm"]) for r in records if "max_grad_norm" in r]:
        panels[2].axhline(limits[-1], linestyle="--", color="black", label=f"limit {limits[-1]:g}")
    decades(panels[2], [y for line in panels[2].get_lines() for y in heights(line)])

    panels[3].set_ylabel("samples/s")
    _curve(panels[3], records, "samples_per_second", "samples/s")
    panels[3].set_ylim(0, 1.1 * max((y for line in panels[3].get_lines() for y in heights(line)), default=1.0))

    for axes, name in zip(panels[4:], others, strict=False):
        _measured(axes, records, name)
    for axes in panels[4 + len(others) :]:
        axes.remove()
    _finish(panels[: 4 + len(others)], [number(r["step"]) for r in records])
    return figure


def _measured(axes: Axes, records: Sequence[Record], name: str) -> None:
    """What is measured in training and in validation."""
    axes.set_ylabel(name)
    _curve(axes, records, name, "training", color=COLOURS[0], mean=True)
    _curve(axes, records, f"val_{name}", "validation", color=COLOURS[1], marker=True)
    decades(axes, [y for line in axes.get_lines() for y in heights(line)])
    lost = [
        number(r["step"]) for r in records for x in (name, f"val_{name}") if x in r and not math.isfinite(number(r[x]))
    ]
    if lost:
        low = axes.get_xaxis_transform()  # heights in parts of the panel's
        axes.plot(lost, [0.02] * len(lost), "x", color="red", transform=low, label=f"not finite ({len(lost)})")


def _finish(panels: Sequence[Axes], steps: Sequence[float]) -> None:
    """The same updates below all of them, and above each what its lines are."""
    margin = 0.02 * (max(steps) - min(steps)) or 0.5
    for axes in panels:
        axes.set_xlim(min(steps) - margin, max(steps) + margin)
        axes.set_xlabel("update")
        axes.locator_params(axis="x", integer=True, nbins=6, min_n_ticks=1)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        if not axes.get_lines():
            axes.text(0.5, 0.5, "no record", transform=axes.transAxes, ha="center", color="gray")
        if len(axes.get_lines()) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize="small")


def _curve(
    axes: Axes,
    records: Sequence[Record],
    name: str,
    label: str,
    color: str | None = None,
    marker: bool = False,
    mean: bool = False,
) -> None:
    """A quantity over updates. A value that is not finite is a gap; `mean` draws the running one of many points too."""
    points = [(number(r["step"]), number(r[name])) for r in records if name in r]
    if not points:
        return
    xs, ys = [x for x, _ in points], [y if math.isfinite(y) else math.nan for _, y in points]
    width = len(points) // MEAN * 2 + 1 if mean and len(points) > MANY else 1
    alone = [math.isfinite(y) for y in ys].count(True) == 1
    style = "." if alone or (marker and len(points) <= MANY) else None
    axes.plot(xs, ys, label=label, color=color, marker=style, alpha=0.35 if width > 1 else None)
    if width > 1:
        axes.plot(xs, running_mean(ys, width), label=f"mean of {width}", color=axes.get_lines()[-1].get_color())


def running_mean(ys: Sequence[float], width: int) -> list[float]:
    """The mean of the finite ones among so many around each, fewer at the ends; NaN where there is none."""
    finite = [math.isfinite(y) for y in ys]
    sums = list(accumulate((y if ok else 0.0 for y, ok in zip(ys, finite, strict=True)), initial=0.0))
    counts = list(accumulate(finite, initial=0))
    ends = [(max(0, i - width // 2), min(len(ys), i + width // 2 + 1)) for i in range(len(ys))]
    return [(sums[j] - sums[i]) / n if (n := counts[j] - counts[i]) else math.nan for i, j in ends]
