"""The pages do what they show: the blocks of each run in order, in one namespace, as somebody would type them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [("README.md", 9), ("docs/torch_face.md", 14), ("docs/trainer.md", 9), ("docs/checkpoints.md", 2)]


@pytest.fixture
def _quick_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page compiles with inductor is compiled without it here: `tests/test_jit.py` has the real thing."""
    compile_ = torch.compile
    quick = {"backend": "aot_eager", "options": None}
    monkeypatch.setattr(torch, "compile", lambda fn, **kw: compile_(fn, **{**kw, **quick}))


@pytest.mark.usefixtures("_quick_backend")
@pytest.mark.parametrize(("page", "at_least"), PAGES)
def test_every_block_of_a_page_runs(page: str, at_least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # torch.compile imports the modules of the functions it inlines
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}, block {number}", "exec"), vars(module))
    assert len(blocks) >= at_least
    assert page != "README.md" or (tmp_path / "runs/readme/best_model.pt").exists()
