"""Pictures: what is on their axes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from functrain import plot, schedules
from functrain.optimizers.adaptive import adam
from functrain.optimizers.momentum import sgd

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
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def rendered(figure: Figure, path: Path) -> Sequence[Axes]:
    figure.savefig(path / "a.png")
    assert (path / "a.png").stat().st_size > 5_000
    return figure.axes


def test_a_history_shows_the_losses_with_the_best_the_rate_the_norm_with_its_limit_and_the_speed(run: Path) -> None:
    losses, rates, norms, speeds = rendered(plot.history(run), run)
    assert [a.get_title() for a in (losses, rates, norms, speeds)] == [
        "loss", "learning rate", "gradient norm", "samples a second",
    ]  # fmt: skip
    found = curves(losses)
    assert found["training"][0] == [1, 2]
    assert found["validation"][0] == [2, 3, 4]
    assert found["best 2.5000 at 3"] == ([3], [2.5])
    assert curves(rates)["learning rate"] == ([1, 2], [0.1, 0.2])
    assert curves(norms)["before clipping"] == ([1, 2], [2.0, 4.0])
    assert curves(norms)["limit 1.5"][1] == [1.5, 1.5]
    assert curves(speeds)["samples a second"] == ([1, 2], [9.0, 8.0])


def test_a_directory_its_file_and_its_trainer_give_one_picture(run: Path) -> None:
    trained = SimpleNamespace(history=[row for row in ROWS if "stale" not in row])
    pictures = [plot.history(x) for x in (run, str(run / "metrics.jsonl"), trained)]
    a, b, c = ([repr(curves(axes)) for axes in picture.axes] for picture in pictures)
    assert a == b == c


def test_several_rates_have_their_labels(run: Path) -> None:
    row = {"step": 1, "epoch": 1, "loss": 1.0, "learning_rate/a": 0.1, "learning_rate/b": 0.2}
    (run / "metrics.jsonl").write_text(json.dumps(row))
    assert set(curves(rendered(plot.history(run), run)[1])) == {"a", "b"}


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
    (axes,) = rendered(plot.schedule(schedules.linear_schedule(1.0, 0.0, steps - 1), steps), tmp_path)
    ((counts, values),) = curves(axes).values()
    assert (counts[0], counts[-1]) == (0, steps - 1)
    assert (values[0], values[-1]) == (1.0, 0.0)
    assert axes.get_title() == f"schedules.linear_schedule(1.0, 0.0, {steps - 1})"


def test_a_rule_is_drawn_by_its_updates(tmp_path: Path) -> None:
    constant, turning = rendered(plot.rule(sgd(0.5), steps=4), tmp_path)
    assert constant.get_lines()[0].get_ydata().tolist() == [-0.5] * 4
    assert turning.get_lines()[0].get_ydata().tolist() == [-0.5, -0.5, 0.5, 0.5]
    assert plot.rule(adam(0.1)).get_suptitle() == "adam(0.1)"


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
    assert plot.main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'history.png'}\n"
    assert (run / "history.png").read_bytes().startswith(b"\x89PNG")
    assert plot.main([]) == 2
    assert capsys.readouterr().err == "usage: python -m functrain.plot RUN_DIR\n"
    assert plot.main([str(run / "missing")]) == 1
    assert "plot.history: there is no" in capsys.readouterr().err


def test_the_command_runs_as_a_module_without_a_warning(run: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", "-m", "functrain.plot", str(run)], check=True, capture_output=True)
    assert (run / "history.png").exists()
