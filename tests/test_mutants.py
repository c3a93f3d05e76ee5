"""The faults of tests/faults are still about this source: running them takes minutes, this does not."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant

every_mutant = pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.fault)


def source(mutant: Mutant) -> str:
    return (ROOT / "functrain" / mutant.file).read_text(encoding="utf-8")


@every_mutant
def test_a_fault_has_one_place_and_leaves_python_that_compiles(mutant: Mutant) -> None:
    assert source(mutant).count(mutant.old) == 1
    assert mutant.new != mutant.old
    compile(source(mutant).replace(mutant.old, mutant.new), mutant.file, "exec")


@every_mutant
def test_the_killers_of_a_fault_are_there(mutant: Mutant) -> None:
    assert mutant.killers
    for killer in mutant.killers:
        file, _, name = killer.partition("::")
        tests = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert name.partition("[")[0] in {f.name for f in tests.body if isinstance(f, ast.FunctionDef)}


def test_no_two_faults_are_one() -> None:
    changes = {(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}
    assert len(changes) == len(MUTANTS) == len({mutant.fault for mutant in MUTANTS})


def rules() -> Iterator[tuple[str, str]]:
    """Every factory that `@rule` decorates: file and name."""
    package = ROOT / "functrain"
    for path in sorted(package.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and "rule" in map(ast.unparse, node.decorator_list):
                yield path.relative_to(package).as_posix(), node.name


@pytest.mark.parametrize(("file", "name"), list(rules()))
def test_every_rule_has_a_fault_in_its_own_lines(file: str, name: str) -> None:
    text = (ROOT / "functrain" / file).read_text(encoding="utf-8")
    (factory,) = (f for f in ast.parse(text).body if isinstance(f, ast.FunctionDef) and f.name == name)
    places = [text[: text.index(m.old)].count("\n") + 1 for m in MUTANTS if m.file == file]
    assert any(factory.lineno <= place <= (factory.end_lineno or 0) for place in places)
