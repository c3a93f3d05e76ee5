"""Pictures: what is on their axes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from functrain import plot, schedules
from functrain.plot.__main__ import main

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

UPDATE = {"epoch": 1, "max_grad_norm": 1.5}
ROWS = [
    {**UPDATE, "step": 1, "loss": 3.0, "learning_rate": 0.1, "grad_norm": 2.0, "samples_per_second": 9.0},
    {**UPDATE, "step": 9, "loss": 0.0, "stale": True},
    {**UPDATE, "step": 2, "loss": float("nan"), "learning_rate": 0.2, "grad_norm": 4.0, "samples_per_second": 8.0},
    {"step": 2, "epoch": 1, "val_loss": float("nan")},
    {"step": 3, "epoch": 1, "val_loss": 2.5},
    {"step": 4, "epoch": 1, "val_loss": 2.75},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def curves(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {
        str(line.get_label()): (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in axes.get_lines()
    }


def rendered(figure: Figure, path: Path) -> Sequence[Axes]:
    figure.savefig(path / "a.png")
    assert (path / "a.png").stat().st_size > 5_000
    return figure.axes


def test_a_history_shows_the_losses_with_the_best_the_rate_the_norm_with_its_limit_and_the_speed(run: Path) -> None:
    losses, rates, norms, speeds = rendered(plot.history(run), run)
    assert [a.get_ylabel() for a in (losses, rates, norms, speeds)] == [
        "loss", "learning rate", "gradient norm", "samples/s",
    ]  # fmt: skip
    assert {a.get_xlabel() for a in (losses, rates, norms, speeds)} == {"update"}
    found = curves(losses)
    assert repr(found["training"]) == repr(([1.0, 2.0], [3.0, math.nan]))
    assert repr(found["validation"]) == repr(([2.0, 3.0, 4.0], [math.nan, 2.5, 2.75]))
    assert found["best 2.5000 at 3"] == ([3], [2.5])
    assert found["not finite (2)"][0] == [2, 2]
    assert curves(rates)["learning rate"] == ([1, 2], [0.1, 0.2])
    assert curves(norms)["before clipping"] == ([1, 2], [2.0, 4.0])
    assert curves(norms)["limit 1.5"][1] == [1.5, 1.5]
    assert curves(speeds)["samples/s"] == ([1, 2], [9.0, 8.0])
    assert speeds.get_ylim()[0] == 0


def test_what_else_is_validated_has_a_panel_each_beside_what_training_says_of_it() -> None:
    rows = [
        {"step": 1, "epoch": 1, "loss": 1.0, "accuracy": 0.5},
        {"step": 1, "epoch": 1, "val_loss": 1.0, "val_accuracy": 0.4, "val_mse": 9.0, "val_f1": 0.3, "seconds": 1.0},
    ]
    *_, accuracy, mse, f1 = plot.history(SimpleNamespace(history=rows)).axes
    assert [a.get_ylabel() for a in (accuracy, mse, f1)] == ["accuracy", "mse", "f1"]
    assert curves(accuracy) == {"training": ([1], [0.5]), "validation": ([1], [0.4])}
    assert curves(mse) == {"validation": ([1], [9.0])}
    assert curves(f1) == {"validation": ([1], [0.3])}


def losses_of(*losses: float) -> Axes:
    rows = [{"step": i, "epoch": 1, "loss": loss} for i, loss in enumerate(losses)]
    return plot.history(SimpleNamespace(history=rows)).axes[0]


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ((100.0, 1.0), "log"), ((99.0, 1.0), "linear"), ((100.0, 0.0), "linear"), ((100.0, -1.0), "linear"),
        ((math.nan, math.inf), "linear"), ((math.nan, 3.0, 2.0), "linear"), ((math.inf, 1e-3, 1.0), "log"),
    ],
)  # fmt: skip
def test_losses_above_zero_that_span_two_decades_have_a_logarithmic_axis(losses: list[float], scale: str) -> None:
    assert losses_of(*losses).get_yscale() == scale


def test_many_points_have_a_running_mean_of_the_finite_ones(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).normal(size=10_000)
    losses[[0, 50, 9_999]] = math.nan
    found = curves(losses_of(*losses))
    assert found["training"] == (list(range(10_000)), pytest.approx(losses, nan_ok=True, abs=0))
    means = found["mean of 101"][1]
    for i in (0, 3, 50, 100, 5_000, 9_999):
        assert means[i] == pytest.approx(np.nanmean(losses[max(0, i - 50) : i + 51]), abs=1e-10)
    assert set(curves(losses_of(*losses[:300]))) == {"training", "not finite (2)"}


def test_one_record_is_a_point_over_a_whole_number() -> None:
    axes = losses_of(2.3)
    (line,) = axes.get_lines()
    assert line.get_marker() == "."
    low, high = axes.get_xlim()
    assert [x for x in axes.get_xticks() if low <= x <= high] == [0]


def test_an_empty_panel_says_so(run: Path) -> None:
    row = {"step": 1, "epoch": 1, "val_loss": 1.0}
    _, *others = rendered(plot.history(SimpleNamespace(history=[row])), run)
    assert [[text.get_text() for text in axes.texts] for axes in others] == [["no record"]] * 3


def test_no_legend_lies_over_data() -> None:
    rows = [
        {"step": i, "epoch": 1, "loss": 1.0, "val_loss": 1.0, **{f"learning_rate/{n}": 0.1 for n in range(9)}}
        for i in range(3)
    ]
    figure = plot.history(SimpleNamespace(history=rows))
    figure.draw_without_rendering()
    for axes in figure.axes[:2]:
        legend = axes.get_legend()
        assert legend is not None
        box, panel = legend.get_window_extent(), axes.get_window_extent()
        assert not box.overlaps(panel) or box.y0 >= panel.y1 - 1
        assert box.y1 <= figure.bbox.y1


def test_a_directory_its_file_and_its_trainer_give_one_picture(run: Path) -> None:
    trained = SimpleNamespace(history=[row for row in ROWS if "stale" not in row])
    pictures = [plot.history(x) for x in (run, str(run / "metrics.jsonl"), trained)]
    a, b, c = ([repr(curves(axes)) for axes in picture.axes] for picture in pictures)
    assert a == b == c


def test_several_rates_have_their_labels(run: Path) -> None:
    row = {"step": 1, "epoch": 1, "loss": 1.0, "learning_rate/a": 0.1, "learning_rate/b": 0.2}
    (run / "metrics.jsonl").write_text(json.dumps(row))
    rates = rendered(plot.history(run), run)[1]
    assert curves(rates) == {"a": ([1], [0.1]), "b": ([1], [0.2])}


def test_a_run_without_records_is_an_error_in_words(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    message = f"plot.history: there is no {path}; hint: a Trainer with save_dir= writes it"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        plot.history(tmp_path)
    path.touch()
    with pytest.raises(ValueError, match=r"^plot\.history: the run has no record yet$"):
        plot.history(tmp_path)


@pytest.mark.parametrize("steps", [5, 3000])
def test_a_schedule_is_drawn_from_its_first_count_to_its_last(tmp_path: Path, steps: int) -> None:
    figure = plot.schedule(schedules.linear_schedule(1.0, 0.0, steps - 1), steps)
    (axes,) = rendered(figure, tmp_path)
    ((counts, values),) = curves(axes).values()
    assert (counts[0], counts[-1]) == (0, steps - 1)
    assert values == pytest.approx([1 - count / (steps - 1) for count in counts])
    assert figure.get_suptitle() == f"schedules.linear_schedule(1.0, 0.0, {steps - 1})"


def test_several_schedules_are_drawn_beside_each_other() -> None:
    falling, plain = schedules.linear_schedule(1.0, 0.0, 2), lambda count: 0.5 * count
    by_names = plot.schedule({"falling": falling, "mine": plain}, 4)
    expected = {"falling": ([0, 1, 2, 3], [1.0, 0.5, 0.0, 0.0]), "mine": ([0, 1, 2, 3], [0.0, 0.5, 1.0, 1.5])}
    assert curves(by_names.axes[0]) == expected
    assert curves(plot.schedule({"falling": falling}, {"mine": plain}, steps=4).axes[0]) == expected
    figure = plot.schedule(falling, plain, steps=4)
    shown = ["schedules.linear_schedule(1.0, 0.0, 2)", "<lambda>"]
    assert list(curves(figure.axes[0])) == [text.get_text() for text in figure.legends[0].get_texts()] == shown
    assert len({line.get_linestyle() for line in figure.axes[0].get_lines()}) == 2


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.schedule(float, steps=0), "steps must be an integer >= 1, got 0; hint: plot.schedule(fn, 1000)"),
        (lambda: plot.schedule(float), "steps must be an integer >= 1, got None; hint: plot.schedule(fn, 1000)"),
        (
            lambda: plot.schedule(steps=3),
            "there is nothing to draw; hint: give it a schedule, several, or a mapping from names",
        ),
        (
            lambda: plot.schedule(0.1, 3),
            "a schedule is a function of the count, got a float; hint: ft.schedules.constant_schedule(0.1), say",
        ),
    ],
)
def test_schedules_that_cannot_be_drawn_are_an_error_in_words(draw: Callable[[], Figure], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape('plot.schedule: ' + message)}$"):
        draw()


def test_there_is_no_common_factor_above_an_axis() -> None:
    rows = [{"step": i, "epoch": 1, "learning_rate/a": 3e-5 * i, "learning_rate/b": 1e-5} for i in range(5)]
    for k, expected in ((1.0, "0.00012"), (1e-4, "1e\N{MINUS SIGN}08"), (-1e9, "\N{MINUS SIGN}100,000")):
        scaled = [{n: x * k if "rate" in n else x for n, x in row.items()} for row in rows]
        figure = plot.history(SimpleNamespace(history=scaled))
        figure.draw_without_rendering()
        rates = figure.axes[1]
        assert rates.get_legend() is not None
        assert rates.yaxis.get_offset_text().get_text() == ""
        texts = {text.get_text(): y for text, y in zip(rates.get_yticklabels(), rates.get_yticks(), strict=True)}
        assert expected in texts
        for text, y in texts.items():
            read = float(text.replace("\N{MINUS SIGN}", "-").replace(",", ""))
            assert read == pytest.approx(y, rel=1e-9, abs=1e-12 * abs(k))


def test_pyplot_and_its_state_are_left_alone(run: Path) -> None:
    code = "import sys, functrain.plot as p; p.history(sys.argv[1]); print('matplotlib.pyplot' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code, str(run)], check=True, capture_output=True, text=True)
    assert out.stdout == "False\n"


def test_without_matplotlib_the_error_names_the_extra(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = "plot: matplotlib is not installed; hint: pip install 'functrain[plot]'"
    with pytest.raises(ModuleNotFoundError) as caught:
        plot.history(run)
    assert str(caught.value) == message


def test_the_command_writes_a_picture_and_says_where(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'history.png'}\n"
    assert (run / "history.png").read_bytes().startswith(b"\x89PNG")
    assert main([]) == 2
    assert capsys.readouterr().err == "usage: python -m functrain.plot RUN_DIR\n"
    assert main([str(run / "missing")]) == 1
    assert "plot.history: there is no" in capsys.readouterr().err


def test_the_command_runs_as_a_module_without_a_warning(run: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", "-m", "functrain.plot", str(run)], check=True, capture_output=True)
    assert (run / "history.png").exists()
