"""The example of callbacks: the numbers they tell, and the traces they do not leave."""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import functrain as ft
from functrain import logging
from functrain.logging import JsonLines
from tests.example import load
from tests.networks import NormNet, mlp, points
from tests.oracle import assert_bitwise

EXAMPLE = Path(__file__).parent.parent / "examples" / "callbacks.py"
LAYERS = ("0", "2")  # of mlp(3, 4, 2)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("callbacks")


class Noisy(TensorDataset):
    """Points with noise from three streams, as augmentation is."""

    def __getitem__(self, i: Any) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(i)
        return x + 0.1 * torch.randn(3) + random.random() + np.random.standard_normal(), y


def pure() -> Any:
    return ft.inject_hyperparams(ft.adamw)(learning_rate=1e-2)


def trainer_of(module: nn.Module, optimizer: Any, **options: Any) -> ft.Trainer:
    """A run over three streams and a generator of the loader's own."""
    loader = DataLoader(Noisy(*points(24)), 4, shuffle=True, generator=torch.Generator().manual_seed(7))
    options = {"max_epochs": 2, "log_interval": 1, **options}
    return ft.Trainer(module, optimizer, loader, [points(6)], loss_fn=F.mse_loss, seed=3, **options)


def seed_all() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


# --- what they tell


def trained(steps: int, **options: Any) -> dict[str, Tensor]:
    """The module's own weights after so many updates, in torch's words."""
    seed_all()
    module = mlp(3, 4, 2)
    trainer_of(module, pure(), max_steps=steps, **options).train()
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def flat(weights: dict[str, Tensor], layer: str) -> Tensor:
    return torch.cat([weights[f"{layer}.weight"].flatten(), weights[f"{layer}.bias"]])


@pytest.mark.parametrize("every", [1, 3])
def test_the_norms_are_those_of_the_modules_weights_and_of_their_change(
    example: ModuleType, tmp_path: Path, every: int
) -> None:
    file = tmp_path / "norms.jsonl"
    trained(7, callbacks=[example.norms(JsonLines(file), every)])
    rows = logging.history(file)
    assert [row["step"] for row in rows] == ([2, 3, 4, 5, 6, 7] if every == 1 else [3, 6])
    for row in rows:
        assert set(row) == {"step", "epoch", *(f"{kind}/{layer}" for kind in ("norm", "ratio") for layer in LAYERS)}
        now, before = (trained(int(str(row["step"])) - back) for back in (0, 1))
        for layer in LAYERS:
            norm = torch.linalg.vector_norm(flat(now, layer))
            way = torch.linalg.vector_norm(flat(now, layer) - flat(before, layer))
            assert row[f"norm/{layer}"] == pytest.approx(norm.item(), rel=1e-6)
            assert row[f"ratio/{layer}"] == pytest.approx((way / norm).item(), rel=1e-4)


def test_the_finder_finds_a_rate_that_trains_and_not_one_that_explodes(example: ModuleType) -> None:
    """½ w² under w ← w - η w: the loss falls while η < 2."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    batches = [torch.ones(1, 1)] * 60
    trainer = ft.Trainer(
        module, ft.inject_hyperparams(ft.sgd)(1.0), batches, objective=lambda m, x: m(x).square().mean() / 2
    )
    assert 0.1 < 10 * example.find_rate(trainer, 60) < 10


def test_a_rate_that_nobody_obeys_is_an_error(example: ModuleType) -> None:
    trainer = trainer_of(mlp(3, 4, 2), ft.adamw(1e-2))
    with pytest.raises(ValueError, match="obeys nobody") as error:
        example.find_rate(trainer)
    assert str(error.value) == (
        "find_rate: the rate obeys nobody; hint: ft.inject_hyperparams(ft.adamw)(learning_rate=1)"
    )


@pytest.mark.parametrize("kind", ["iterator", "workers that stay"])
def test_a_loader_that_remembers_being_looked_at_is_refused(example: ModuleType, kind: str) -> None:
    data = TensorDataset(*points())
    loader = iter([points()]) if kind == "iterator" else DataLoader(data, 4, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="peek") as error:
        example.peek(loader, 1, torch.device("cpu"))
    name = type(loader).__name__
    assert str(error.value) == f"peek: a {name} like this one remembers that somebody looked"


def test_the_dry_run_tells_the_losses_of_one_update_and_one_validation_batch(example: ModuleType) -> None:
    module, (x, y) = NormNet(), points(8)
    loss = F.mse_loss(copy.deepcopy(module)(x), y)
    val = F.mse_loss(copy.deepcopy(module).eval()(x[:4]), y[:4])
    told = example.dry_run(ft.Trainer(module, pure(), [(x, y)], [(x[:4], y[:4]), (x[4:], y[4:])], loss_fn=F.mse_loss))
    match = re.fullmatch(
        r"batch \[\(8, 3\), \(8, 2\)\], loss (.*), validation loss (.*), "
        r"state ([\d,]+) bytes, at most [\d,]+ on a GPU, \d+\.\d\d s",
        told,
    )
    assert match
    assert match.groups()[:2] == (f"{loss:.3f}", f"{val:.3f}")
    assert int(match[3].replace(",", "")) > 3 * 4 * sum(p.numel() for p in module.parameters())  # and Adam's moments


# --- what they leave


def everything(trainer: ft.Trainer, module: nn.Module) -> tuple[Any, Any]:
    """Tensors, and all the rest that a run depends on."""
    tensors = {"state": trainer.state, "module": module.state_dict(), "torch": torch.get_rng_state()}
    generator: Any = getattr(trainer.feed.loader, "generator", None)
    tensors["loader"] = generator.get_state()
    flags = [m.training for m in module.modules()]
    grads = [p.grad for p in module.parameters()]
    place, legacy = trainer.feed.place._replace(begun=None, now=None), np.random.get_state()
    assert isinstance(legacy, tuple)
    rest = place, list(trainer.history), random.getstate(), legacy[1].tolist(), legacy[2:], flags, grads
    return ft.tree.map(torch.clone, tensors), rest


def tracers(example: ModuleType) -> dict[str, Callable[[ft.Trainer], object]]:
    return {"find_rate": lambda t: example.find_rate(t, 5), "dry_run": example.dry_run}


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "pure": lambda module: pure(),
    "torch's": lambda module: torch.optim.AdamW(module.parameters(), lr=1e-2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("look", ["find_rate", "dry_run"])
@pytest.mark.parametrize("trained", [False, True], ids=["before training", "after it"])
def test_a_look_changes_nothing_that_a_run_depends_on(
    example: ModuleType, look: str, optimizer: str, trained: bool
) -> None:
    seed_all()
    module = NormNet(dropout=0.5)
    trainer = trainer_of(module, OPTIMIZERS[optimizer](module))
    if trained:
        trainer.train()
    before, rest = everything(trainer, module)
    tracers(example)[look](trainer)
    after, rest_after = everything(trainer, module)
    assert_bitwise(after, before)
    assert rest_after == rest


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=[pytest.mark.inductor, pytest.mark.long])])
@pytest.mark.parametrize("look", ["find_rate", "dry_run"])
@pytest.mark.parametrize("when", ["before", "within"])
def test_a_run_that_was_looked_at_is_bitwise_the_run_that_was_not(
    example: ModuleType, look: str, when: str, compile: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, see = [], tracers(example)[look]
    for looks in (True, False):
        seed_all()
        module = NormNet(dropout=0.5)
        callbacks = [example.once(see)] if looks and when == "within" else []
        trainer = trainer_of(module, pure(), callbacks=callbacks, compile=compile)
        if looks and when == "before":
            see(trainer)
        trainer.train()
        records = [{k: r[k] for k in r.keys() & {"step", "loss", "val_loss", "grad_norm"}} for r in trainer.history]
        ran.append((everything(trainer, module)[0], records))
    assert_bitwise(ran[0][0], ran[1][0])
    assert ran[0][1] == ran[1][1]
    assert len(capsys.readouterr().out.splitlines()) == (when == "within")  # once, though there were many events


# --- the program


def test_the_program_prints_what_it_shows_and_learns(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deep" / "norms.jsonl"
    example.main(epochs=3, file=file)
    rate, dry, row, val = capsys.readouterr().out.splitlines()
    assert 1e-5 < float(rate.removeprefix("find_rate: ")) < 0.1
    assert dry.startswith("dry_run: batch [(20, 2), (20,)], loss ")
    assert [r["step"] for r in logging.history(file)] == [100, 200, 300]
    assert json.loads(row) == logging.history(file)[-1]
    assert float(val.removeprefix("validation loss ")) < 0.4


@pytest.mark.long
def test_the_command_runs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1].removeprefix("validation loss ")) < 0.1
    assert (tmp_path / "runs" / "callbacks" / "norms.jsonl").is_file()
