"""Lightning, Transformers and Accelerate train with functrain's optimizers as they do with torch's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import functrain as ft
from functrain import optim

pytestmark = [
    pytest.mark.long,  # they need the extra `interop`, whose imports take seconds
    # Lightning looks for leaves in a tree by a way that torch has deprecated.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.usefixtures("accelerate_begins_anew"),
]
each_example = pytest.mark.parametrize("name", ["interop_lightning", "interop_transformers", "interop_accelerate"])

Load = Callable[[str], ModuleType]
Make = Callable[[Iterable[Tensor]], Optimizer]


@pytest.fixture
def accelerate_begins_anew() -> Iterator[None]:
    """A process's first Accelerator decides the precision of all later ones."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def adamw(module: ModuleType) -> Make:
    return lambda params: module.AdamW(params, lr=3e-3, weight_decay=0.1)


def lion(params: Iterable[Tensor]) -> Optimizer:
    return ft.create_optimizer("lion", params, lr=1e-3)


def assert_falls(losses: Tensor) -> None:
    first, *_, last = losses.tensor_split(10)
    assert last.mean() < 0.8 * first.mean()


@each_example
def test_training_ends_at_the_weights_of_torch_whoever_wrote_the_checkpoint_halfway(
    name: str, load: Load, tmp_path: Path
) -> None:
    train = load(name).train
    expected, expected_losses = train(adamw(torch.optim), adamw(torch.optim), tmp_path / "torch")
    assert_falls(expected_losses)
    for begin, go_on in ((optim, optim), (torch.optim, optim), (optim, torch.optim)):
        weights, losses = train(adamw(begin), adamw(go_on), tmp_path / f"{begin.__name__}, {go_on.__name__}")
        assert {w.dtype for w in weights.values()} == {torch.float64}
        torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(losses, expected_losses, rtol=1e-10, atol=1e-10)


@each_example
def test_a_rule_that_torch_has_not_trains(name: str, load: Load, tmp_path: Path) -> None:
    _, losses = load(name).train(lion, lion, tmp_path)
    assert_falls(losses)


def test_accelerate_trains_in_bf16(load: Load, tmp_path: Path) -> None:
    train = load("interop_accelerate").train
    weights, losses = train(adamw(optim), adamw(optim), tmp_path / "functrain", bf16=True)
    _, expected = train(adamw(torch.optim), adamw(torch.optim), tmp_path / "torch", bf16=True)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert_falls(losses)
    torch.testing.assert_close(losses[-32:].mean(), expected[-32:].mean(), rtol=0.01, atol=0)


@each_example
def test_the_program_shows_that_the_weights_are_those_of_torch(
    name: str, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    load(name).main()
    shown = {}
    for line in capsys.readouterr().out.splitlines():
        who, _, apart = line.partition("weights differ from torch.optim's by ")
        shown[who.partition("  ")[0]] = float(apart)
    assert list(shown) == [
        "torch.optim.AdamW",
        "functrain.optim.AdamW",
        "torch's, then functrain's",
        "functrain's lion",
    ]
    assert max(list(shown.values())[:3]) < 1e-10
