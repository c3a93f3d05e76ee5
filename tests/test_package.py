"""The package as a whole: who imports whom, what an import costs, what is public."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import functrain

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "functrain"

# A module imports from lower floors, from its own folder, and, if it is a plain file, from the files beside it on its
# floor. A name is a file or a folder of functrain/.
FLOORS = (
    {"batch", "elementwise", "holes", "paths", "seeding", "traced", "tree"},
    {"base", "counter", "donation", "hints", "masks", "random", "ranges", "record"},
    {"schedules"},
    {"transforms"},
    {"combinators"},
    {"optimizers"},
    {"compile", "data", "gradient", "loss", "precision", "state", "step", "window"},
    {"bridge", "checkpoint"},
    {"bar", "console", "loggers", "logging"},
    {"plot"},
    {"run"},
    {"trainer"},
)
# Outside the house: nobody imports them, and they see the floors below this one.
ANNEXES = {"testing": 7, "tutorial": 0}
KNOWS_OPTREE = {"tree"}

EXTRAS = {"hypothesis", "jax", "matplotlib", "mpmath", "optax", "pandas", "safetensors", "tensorboard", "wandb"}
IMPORT_SECONDS = 0.25


def modules() -> dict[str, Path]:
    """Every file of the package by its dotted name: `functrain`, `functrain.tree`, `functrain.transforms.scale` ..."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def floor(unit: str) -> int | None:
    return next((n for n, units in enumerate(FLOORS) if unit in units), None)


def imported(source: str) -> Iterator[str]:
    """Every module that the source names in an import, at any depth; `.` for a relative one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "."
        elif isinstance(node, ast.ImportFrom) and node.module == "functrain":
            yield from (f"functrain.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def complaints(name: str, source: str, folders: set[str]) -> list[str]:
    """What is wrong with the imports of the module `name`, where `folders` are the units that are folders."""
    if name == "functrain":
        return []
    unit = name.split(".")[1]
    here = floor(unit)
    if here is None and unit not in ANNEXES:
        return [f"{name} is on no floor: FLOORS in tests/test_package.py names them"]
    below = ANNEXES[unit] if here is None else here

    wrong = []
    for target in imported(source):
        package, _, rest = target.partition(".")
        if package == "":
            wrong.append(f"{name} has a relative import")
        elif package == "optree" and unit not in KNOWS_OPTREE:
            wrong.append(f"{name} imports optree: only {sorted(KNOWS_OPTREE)} know it")
        elif package == "functrain":
            other = rest.split(".")[0]
            there = floor(other)
            lower = there is not None and there < below
            beside = there is not None and there == here and not {unit, other} & folders
            if not (lower or beside or other == unit):
                wrong.append(f"{name} imports {target}, which is not below it")
    return wrong


def test_modules_import_only_from_lower_floors_or_their_own_folder() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    wrong = [line for name, path in modules().items() for line in complaints(name, path.read_text("utf-8"), folders)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("name", "source", "complaint"),
    [
        ("functrain.base", "def f():\n    from functrain.transforms import scale", "imports functrain.transforms,"),
        ("functrain.base", "from functrain import step", "imports functrain.step,"),
        ("functrain.base", "from functrain import adam", "imports functrain.adam,"),
        ("functrain.base", "import functrain", "imports functrain,"),
        ("functrain.transforms.scale", "from . import clip", "has a relative import"),
        ("functrain.transforms.scale", "import optree.integrations", "imports optree"),
        ("functrain.checkpoint", "from functrain.bridge import modules", "imports functrain.bridge,"),
        ("functrain.loss", "from functrain.testing import laws", "imports functrain.testing,"),
        ("functrain.testing.laws", "import functrain.trainer", "imports functrain.trainer,"),
        ("functrain.tutorial.adamw", "from functrain.tree import map", "imports functrain.tree,"),
        ("functrain.utils", "", "is on no floor"),
    ],
)
def test_the_floors_test_sees_a_wrong_import(name: str, source: str, complaint: str) -> None:
    (line,) = complaints(name, source, {"bridge", "transforms", "testing", "tutorial"})
    assert line.startswith(f"{name} {complaint}")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("functrain.step", "import torch\nfrom functrain.loss import run\nfrom functrain import tree"),
        ("functrain.transforms.scale", "from functrain.transforms.clip import clip\nimport functrain.base"),
        ("functrain.testing.laws", "from functrain.step import train_step\nfrom functrain.testing import strategies"),
        ("functrain.tree", "import optree\nfrom functrain.batch import Batch"),
    ],
)
def test_the_floors_test_lets_right_imports_pass(name: str, source: str) -> None:
    assert complaints(name, source, {"transforms", "testing"}) == []


@functools.cache
def fresh_import() -> tuple[float, set[str]]:
    """Import functrain after torch in a new process: seconds of its processor time, and the modules that are new."""
    code = """if True:
        import json, sys, time
        import torch
        before, start = set(sys.modules), time.process_time()
        import functrain
        print(json.dumps([time.process_time() - start, sorted(set(sys.modules) - before)]))
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, names = json.loads(run.stdout)
    return seconds, set(names)


def test_importing_functrain_adds_less_than_a_quarter_second_to_importing_torch() -> None:
    # The best of five, since a loaded machine and a cold cache only add; most often the first will do.
    best = float("inf")
    for _ in range(5):
        best = min(best, fresh_import()[0])
        if best < IMPORT_SECONDS:
            break
        fresh_import.cache_clear()
    assert best < IMPORT_SECONDS


def test_importing_functrain_imports_no_extra_and_no_compiler() -> None:
    _, new = fresh_import()
    assert "functrain" in new
    heavy = {name for name in new if name.split(".")[0] in EXTRAS | {"numpy"}}
    heavy |= {name for name in new if name.startswith(("torch._dynamo", "torch._inductor"))}
    assert not heavy  # what `import torch` brings by itself does not count


def test_the_public_names_are_exactly_those_listed() -> None:
    lines = (ROOT / "tests" / "public_names.txt").read_text("utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == sorted(set(listed)), "tests/public_names.txt is not sorted, or has a name twice"
    assert list(functrain.__all__) == listed

    for name in listed:
        assert hasattr(functrain, name), f"functrain.__all__ names {name}, which is not there"
    found = {
        name for name, value in vars(functrain).items() if not (name.startswith("_") or isinstance(value, ModuleType))
    }
    assert found <= set(listed), "names of functrain that __all__ leaves out"


def test_the_version_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert functrain.__version__ == project["version"]


def test_the_package_says_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_no_file_has_more_than_300_lines() -> None:
    long = {name: n for name, path in modules().items() if (n := len(path.read_text("utf-8").splitlines())) > 300}
    assert not long


def test_no_checker_is_silenced_in_the_package() -> None:
    silenced = re.compile(r"#\s*(type:\s*ignore|noqa|ruff:|mypy:|pyright:)")
    assert not [name for name, path in modules().items() if silenced.search(path.read_text("utf-8"))]


def annotations(node: ast.FunctionDef) -> Iterator[ast.expr]:
    spec = node.args
    for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg):
        if arg is not None and arg.annotation is not None:
            yield arg.annotation
    if node.returns is not None:
        yield node.returns


def public_functions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions and methods of a module that a user can reach by a public name."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, ast.FunctionDef) and re.match(r"(?!_)|__(init|new|call)__$", node.name):
            yield f"{prefix}.{node.name}", node


def test_no_public_signature_says_any() -> None:
    wrong = {
        name
        for module, path in modules().items()
        for name, function in public_functions(ast.parse(path.read_text("utf-8")).body, module)
        for annotation in annotations(function)
        if re.search(r"\bAny\b", ast.unparse(annotation))
    }
    assert not wrong
