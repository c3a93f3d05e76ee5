"""The README does what it shows: its blocks run in order, in one namespace, as somebody would type them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)


@pytest.fixture
def _quick_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README compiles with inductor is compiled without it here: `tests/test_jit.py` has the real thing."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn, **kw: compile_(fn, **{**kw, "backend": "aot_eager"}))


@pytest.mark.usefixtures("_quick_backend")
def test_every_block_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)  # torch.compile imports the modules of the functions it inlines
    for number, block in enumerate(BLOCKS, 1):
        exec(compile(block, f"README.md, block {number}", "exec"), vars(module))
    assert len(BLOCKS) >= 8
    assert (tmp_path / "runs/readme/best_model.pt").exists()
