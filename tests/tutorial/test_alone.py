"""The tutorial uses tensors and loops, and nothing that does its work for it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tutorial.sources import FOLDER, source

FILES = ["optimizer_from_scratch", "trainer_from_scratch"]
ALLOWED = {"__future__", "collections", "math", "os", "pathlib", "typing", "torch"}


@pytest.mark.parametrize("name", FILES)
def test_it_imports_torch_and_the_standard_library_alone(name: str) -> None:
    nodes = list(ast.walk(ast.parse(source(name))))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {module.split(".")[0] for module in modules} <= ALLOWED
    assert "torch.optim" not in modules


@pytest.mark.parametrize("name", FILES)
def test_it_uses_no_ready_optimizer_scaler_schedule_or_clipping(name: str) -> None:
    nodes = list(ast.walk(ast.parse(source(name))))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.id for node in nodes if isinstance(node, ast.Name)}
    assert not used & {"optim", "GradScaler", "lr_scheduler", "clip_grad_norm_", "clip_grad_value_", "utils", "func"}


@pytest.mark.long
def test_the_files_train_where_functrain_is_not_installed(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / f"{name}.py").write_text(source(name), "utf-8")
    program = """if True:
        import sys
        sys.modules["functrain"] = None  # an import of it is an error
        import torch
        from optimizer_from_scratch import AdamWFromScratch
        from trainer_from_scratch import TrainerFromScratch
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2)
        x = torch.randn(64, 2)
        batches = [(x, x.argmax(1))] * 20
        trainer = TrainerFromScratch(model, AdamWFromScratch(model.parameters(), lr=0.1), batches, batches, "cpu", 9)
        trainer.train()
        print(trainer.best < 0.1)
    """
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("True\n", "")


def test_it_is_all_of_the_folder() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*FILES, "__init__"}
