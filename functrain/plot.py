"""Pictures of a run, of a schedule and of a rule.

    python -m functrain.plot runs/a        # writes runs/a/history.png

A run is drawn from its `metrics.jsonl` alone, or from a Trainer. Functions return a matplotlib figure, which has
`savefig`; nothing opens a window, and pyplot is not touched.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from functrain import logging
from functrain.base import GradientTransformation
from functrain.console import legible
from functrain.logging import Record, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

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

    figure, grid = _grid(2 + math.ceil(len(others) / 2), 2)
    panels = [axes for row in grid for axes in row]
    _measured(panels[0], records, "loss")
    if best := [r for r in records if math.isfinite(number(r.get("val_loss")))]:
        least = min(best, key=lambda r: number(r["val_loss"]))
        x, y = number(least["step"]), number(least["val_loss"])
        panels[0].plot([x], [y], "*", markersize=12, color="black", label=f"best {legible(y, 4)} at {x:,.0f}")

    panels[1].set_ylabel("learning rate")
    panels[1].ticklabel_format(axis="y", scilimits=(-2, 4))
    for name in rates:
        _curve(panels[1], records, name, name.partition("/")[2] or "learning rate")
    _decades(panels[1], [max(_heights(line), default=math.nan) for line in panels[1].get_lines()])  # of groups

    panels[2].set_ylabel("gradient norm")
    _curve(panels[2], records, "grad_norm", "before clipping", mean=True)
    if limits := [number(r["max_grad_norm"]) for r in records if "max_grad_norm" in r]:
        panels[2].axhline(limits[-1], linestyle="--", color="black", label=f"limit {limits[-1]:g}")
    _decades(panels[2], [y for line in panels[2].get_lines() for y in _heights(line)])

    panels[3].set_ylabel("samples/s")
    _curve(panels[3], records, "samples_per_second", "samples/s")
    panels[3].set_ylim(0, 1.1 * max((y for line in panels[3].get_lines() for y in _heights(line)), default=1.0))

    for axes, name in zip(panels[4:], others, strict=False):
        _measured(axes, records, name)
    for axes in panels[4 + len(others) :]:
        axes.remove()
    _finish(panels[: 4 + len(others)], [number(r["step"]) for r in records])
    return figure


def _measured(axes: Axes, records: Sequence[Record], name: str) -> None:
    """What is measured in training and in validation."""
    axes.set_ylabel(name)
    _curve(axes, records, name, "training", color="C0", mean=True)
    _curve(axes, records, f"val_{name}", "validation", color="C1", marker=True)
    _decades(axes, [y for line in axes.get_lines() for y in _heights(line)])
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


def _decades(axes: Axes, heights: Sequence[float]) -> None:
    """A logarithmic axis for numbers above zero of which one is a hundred times another."""
    finite = [y for y in heights if math.isfinite(y)]
    if finite and min(finite) > 0 and max(finite) >= 100 * min(finite):
        axes.set_yscale("log")


def _heights(line: Line2D) -> list[float]:
    return [y for y in map(float, cast("Sequence[float]", line.get_ydata())) if math.isfinite(y)]


def schedule(fn: Callable[[Tensor], object], steps: int) -> Figure:
    """A schedule's value over counts 0 to steps - 1.

    Args:
        fn: from a count, a 0-dim int32 tensor, to a value.
        steps: how many counts, at least one.
    """
    counts = sorted({round(i * (steps - 1) / 999) for i in range(1000)}) if steps > 1000 else list(range(steps))
    values = [float(cast("Tensor", fn(torch.tensor(n, dtype=torch.int32)))) for n in counts]  # or a float
    figure, ((axes,),) = _grid(1, 1)
    axes.set(title=repr(fn), xlabel="count", ylabel="value")
    axes.plot(counts, values)
    return figure


def rule(tx: GradientTransformation, steps: int = 200) -> Figure:
    """The updates that a rule makes of a gradient that is 1 throughout, and of one that turns to -1 halfway.

    Args:
        tx: the rule; its parameter is one number, 1 at the start, that takes the updates.
        steps: updates.
    """
    half = steps // 2
    inputs = {"gradient 1": [1.0] * steps, "gradient 1, then -1": [1.0] * half + [-1.0] * (steps - half)}
    figure, columns = _grid(1, 2)
    for axes, (title, gradients) in zip(columns[0], inputs.items(), strict=True):
        axes.set(title=title, xlabel="updates", ylabel="update")
        axes.plot(range(1, steps + 1), _updates(tx, gradients))
        axes.axhline(0.0, color="gray", linewidth=0.8)
    figure.suptitle(repr(tx))
    return figure


def _updates(tx: GradientTransformation, gradients: Sequence[float]) -> list[float]:
    params = torch.ones(1)
    state, made = tx.init(params), []
    for g in gradients:
        update, state = tx.update(torch.full((1,), g), state, params)
        params = params + update
        made.append(update.item())
    return made


def _grid(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """A figure that draws into files, and its axes."""
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plot: matplotlib is not installed; hint: pip install 'functrain[plot]'") from error
    figure = cast("Figure", figure_module.Figure(figsize=(5.5 * columns, 3.8 * rows), layout="constrained"))
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.grid(alpha=0.3)
    return figure, [list(row) for row in axes]


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


def main(arguments: Sequence[str]) -> int:
    """`python -m functrain.plot RUN_DIR`: write RUN_DIR/history.png, and say where."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m functrain.plot RUN_DIR", file=sys.stderr)
        return 2
    try:
        figure = history(arguments[0])
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    run = Path(arguments[0])
    target = (run if run.is_dir() else run.parent) / "history.png"
    figure.savefig(target, dpi=120)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
