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
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from functrain import logging
from functrain.base import GradientTransformation
from functrain.logging import Record, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class HasHistory(Protocol):
    """A Trainer, or anything else with records."""

    history: list[Record]


def history(run: str | os.PathLike[str] | HasHistory) -> Figure:
    """Loss (with the best validation marked), learning rate, gradient norm (with its limit) and samples a second.

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

    figure, ((losses, rates), (norms, speeds)) = _grid(2, 2)
    losses.set(title="loss", xlabel="updates")
    _curve(losses, records, "loss", "training")
    _curve(losses, records, "val_loss", "validation", marker=".")
    if best := [r for r in records if math.isfinite(number(r.get("val_loss")))]:
        least = min(best, key=lambda r: number(r["val_loss"]))
        x, y = number(least["step"]), number(least["val_loss"])
        losses.plot([x], [y], "*", markersize=12, color="black", label=f"best {y:.4f} at {x:,.0f}")

    rates.set(title="learning rate", xlabel="updates")
    for name in dict.fromkeys(name for r in records for name in r if name.startswith("learning_rate")):
        _curve(rates, records, name, name.removeprefix("learning_rate").lstrip("/") or "learning rate")

    norms.set(title="gradient norm", xlabel="updates")
    _curve(norms, records, "grad_norm", "before clipping")
    if limits := [number(r["max_grad_norm"]) for r in records if "max_grad_norm" in r]:
        norms.axhline(limits[-1], linestyle="--", color="black", label=f"limit {limits[-1]:g}")

    speeds.set(title="samples a second", xlabel="updates")
    _curve(speeds, records, "samples_per_second", "samples a second")
    speeds.set_ylim(bottom=0)
    for axes in (losses, rates, norms):
        if len(axes.get_lines()) > 1:
            axes.legend()
    return figure


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


def _curve(axes: Axes, records: Sequence[Record], name: str, label: str, marker: str | None = None) -> None:
    """A quantity over updates. A value that is not finite is a gap."""
    points = [(number(r["step"]), number(r[name])) for r in records if name in r]
    if points:
        alone = "." if len(points) == 1 else marker
        axes.plot([x for x, _ in points], [y for _, y in points], label=label, marker=alone)


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
