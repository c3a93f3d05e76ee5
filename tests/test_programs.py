"""The programs of examples/ run as their first lines say, in a process each, and say what they found."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.example import EXAMPLES
from tests.programs import PROGRAMS, Program

every = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
LINES = {"char_lm": 215}  # a whole model, its data and its training; the others have 120


def lines(program: Program) -> list[str]:
    return (EXAMPLES / f"{program.name}.py").read_text("utf-8").splitlines()


def test_the_table_has_every_program_and_no_other() -> None:
    found = {path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in EXAMPLES.rglob("*.py")}
    assert {program.name for program in PROGRAMS} == found


@every
def test_a_program_is_short_and_begins_with_its_command(program: Program) -> None:
    text = lines(program)
    assert len(text) < LINES.get(program.stem, 120)
    first = (ast.get_docstring(ast.parse("\n".join(text))) or "").splitlines()[:8]
    assert any(line.startswith(f"    python examples/{program.name}.py") for line in first), first


@every
@pytest.mark.long
def test_a_program_runs_in_short(program: Program, tmp_path: Path) -> None:
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    ran = subprocess.run(
        program.command(*program.short), cwd=tmp_path, env=os.environ | quiet, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    last = ran.stdout.rstrip().splitlines()[-1]
    assert re.fullmatch(program.ends, last), last
    assert {path.name for path in tmp_path.iterdir()} <= {"runs", ".hypothesis"}  # and nowhere else
    if program.picture:
        drawn = tmp_path / "runs" / program.picture
        assert drawn.read_bytes().startswith(b"\x89PNG")
        assert drawn.stat().st_size < 200_000
