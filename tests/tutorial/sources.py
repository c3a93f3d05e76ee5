"""The tutorial's files with something left out: what they say breaks is broken in their own text."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import functrain.tutorial

FOLDER = Path(functrain.tutorial.__file__).parent


def source(name: str) -> str:
    return (FOLDER / f"{name}.py").read_text("utf-8")


def without(name: str, *changes: tuple[str, str]) -> Any:
    """The module of this name with pieces of its text replaced, each of which is there once."""
    text = source(name)
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {name}.py"
        text = text.replace(old, new)
    module = ModuleType(f"{name}_without")
    exec(compile(text, f"{name}.py", "exec", dont_inherit=True), vars(module))
    return module


def trainer_without(*changes: tuple[str, str]) -> Any:
    """TrainerFromScratch with pieces of its text replaced."""
    return without("trainer_from_scratch", *changes).TrainerFromScratch
