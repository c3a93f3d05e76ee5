"""The table of docs/peers.md is what the trainers do, measured again, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.peer_table import ROWS, TITLES, committed, inside, measure, table
from tests.interop.runners import RUNNERS, WAYS

pytestmark = pytest.mark.long  # it needs the extra `interop`, and processes that import it


@pytest.mark.parametrize("name", TITLES)
def test_each_cell_of_a_column_is_measured(name: str, tmp_path: Path) -> None:
    (folder := tmp_path / name).mkdir()
    assert measure(name, folder) == committed(name), "python -m tests.interop.peer_table --write"


def test_the_page_is_about_the_versions_that_are_measured_and_about_nothing_else() -> None:
    assert list(TITLES) == list(RUNNERS)
    assert all(list(ways) == list(RUNNERS) for ways in WAYS.values())
    assert inside() == table({name: committed(name) for name in TITLES})


def test_functrain_is_what_the_guarantees_say() -> None:
    ours = committed("functrain")
    assert set(ours) == set(ROWS)
    assert ours["window"] == "3.0"
    assert {ours["shuffled"], ours["augmented"], ours["end"]} == {"exact"}
    assert ours["nan"] == "`NonFiniteError`, weights finite"
    assert ours["flips"] == "30 × `CheckpointError`"
    assert ours["stop"] == "saved, exit 143"
