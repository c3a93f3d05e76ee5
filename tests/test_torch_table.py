"""The table of docs/torch_face.md is about these classes, and its figures are true."""

from __future__ import annotations

import pytest
import torch

from functrain import optim
from tests.bridge.faces import NAMES, ROWS, Row, every_row
from tests.torch_table import BEGIN, END, FORMULAS, PAGE, Distance, apart, chain_of, configurations, furthest, line

TABLE = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


def cells(name: str) -> list[str]:
    """The row of a class as it is committed, cell by cell."""
    (found,) = (text for text in TABLE.splitlines() if text.startswith(f"| {name} | "))
    return found.strip("| ").split(" | ")


def test_the_table_has_a_row_for_each_class_and_no_other() -> None:
    rows = [text.split(" | ")[0].removeprefix("| ") for text in TABLE.splitlines() if text.startswith("| ")]
    assert rows == ["class", *NAMES]
    assert set(NAMES) == set(FORMULAS) == set(optim.__all__)


@every_row()
def test_a_row_shows_the_chain_that_the_class_builds_and_says_how_often_it_was_tried(row: Row) -> None:
    again = line(row, Distance(len(configurations(row)), 0.0, 0.0)).strip("| ").split(" | ")
    assert cells(row.name)[:3] == again[:3], "python -m tests.torch_table --write"
    assert cells(row.name)[5] == again[5]


@every_row()
def test_the_committed_figures_are_those_of_rounding(row: Row) -> None:
    _, _, _, float64, float32, _ = cells(row.name)
    assert 0 <= float(float64) < 1e-10
    assert 0 <= float(float32) < 1e-5


@every_row()
def test_measured_again_in_float64_a_class_is_at_torchs_numbers(row: Row) -> None:
    assert furthest(row, torch.float64) < 1e-10


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in ("Adam", "RMSprop")], ids=lambda row: row.name)
def test_another_epsilon_in_torchs_class_would_be_measured(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Row.reference
    monkeypatch.setattr(Row, "reference", lambda self, params, **options: reference(self, params, eps=1e-6, **options))
    assert apart(row, {}, torch.float64) > 1e-8


def test_a_chain_is_told_in_the_names_of_the_arguments() -> None:
    chains = {row.name: chain_of(row) for row in ROWS}
    assert chains["AdamW"] == ["scale_by_adam(*betas, eps)", "scale(-lr)", "shrink_weights(lr * weight_decay)"]
    assert chains["Rprop"] == ["scale_by_torch_rprop(lr, etas, step_sizes)"]
