"""An average of the parameters: torch's AveragedModel over the same run, and what validations measure."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import functrain as ft
from functrain import tree
from tests.networks import D, NormNet, mlp, points
from tests.trainer.test_amp import Weight, gradients, guard_of, same, set_scale, weighted

DECAY, GAMMA = 0.9, 0.8
DATA = [points(8, seed=i, dtype=D) for i in range(12)]


def in_torch(batches: list[Any], k: int, gamma: float) -> tuple[nn.Module, nn.Module]:
    """torch's loop, windows of k batches, a rate that decays: the trained module and the averaged one."""
    torch.manual_seed(0)
    module = mlp(3, 8, 2, dtype=D)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    average.update_parameters(module)  # its first is a copy
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    scheduler = ExponentialLR(optimizer, gamma)
    for i in range(0, len(batches), k):
        optimizer.zero_grad()
        for x, y in batches[i : i + k]:
            (F.mse_loss(module(x), y) / k).backward()
        optimizer.step()
        scheduler.step()
        average.update_parameters(module)
    return module, average.module


def adamw(kind: str, module: nn.Module) -> Any:
    if kind == "rule":
        return ft.adamw(0.01, weight_decay=0.1)
    family = ft.optim if kind == "ours" else torch.optim
    return family.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


def trainer_of(kind: str = "rule", batches: Any = DATA, **kwargs: Any) -> ft.Trainer:
    torch.manual_seed(0)
    module = mlp(3, 8, 2, dtype=D)
    optimizer = adamw(kind, module)
    scheduler = ExponentialLR(optimizer, GAMMA) if isinstance(optimizer, torch.optim.Optimizer) else None
    given = {"loss_fn": F.mse_loss, "max_epochs": 1, "ema_decay": DECAY, "scheduler": scheduler} | kwargs
    return ft.Trainer(module, optimizer, batches, **given)


def close(tensors: dict[str, Tensor], module: nn.Module) -> None:
    for name, x in module.named_parameters():
        torch.testing.assert_close(tensors[name], x.detach(), rtol=1e-12, atol=1e-14)


KINDS = ["rule", "ours", "torchs"]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_torchs_averaged_model_over_the_same_run(kind: str, k: int) -> None:
    trainer = trainer_of(kind, grad_accum_steps=k)
    trainer.train()
    module, average = in_torch(DATA, k, 1.0 if kind == "rule" else GAMMA)
    close(trainer.averaged.params, average)
    close(dict(trainer.model.module.named_parameters()), module)  # the module has the weights that trained
    assert not torch.equal(average[0].weight, module[0].weight)
    trainer.model.write_back(trainer.averaged.params, trainer.averaged.buffers)
    close(dict(trainer.model.module.named_parameters()), average)  # and has the average when asked to


def test_an_optimizer_that_was_configured_for_the_module_has_an_average_too(tmp_path: Path) -> None:
    def run(**kwargs: Any) -> ft.Trainer:
        torch.manual_seed(0)
        module = NormNet()
        optimizer = ft.configure_optimizer(module, "adamw", lr=0.05)
        trainer = ft.Trainer(
            module, optimizer, [points(seed=i) for i in range(6)], loss_fn=F.mse_loss, max_epochs=1, ema_decay=0.5,
            save_dir=tmp_path, **kwargs,
        )  # fmt: skip
        trainer.train()
        return trainer

    means: list[dict[str, Tensor]] = []

    def fold(event: str, trainer: ft.Trainer) -> None:
        if event == "update":
            before = means[-1] if means else first
            means.append({name: before[name].lerp(x, 0.5) for name, x in trainer.state.params.items()})

    torch.manual_seed(0)
    first = {name: x.detach().clone() for name, x in NormNet().named_parameters()}
    whole = run(callbacks=[fold])
    for name, x in means[-1].items():
        torch.testing.assert_close(whole.averaged.params[name], x)
    run(max_steps=3)
    assert same(run(resume=tmp_path / "step-00000003.pt").state, whole.state)


def test_validations_measure_the_average_and_the_best_is_chosen_by_it(tmp_path: Path) -> None:
    """The weight goes -1, -2, ..., its average lags behind: the loss (w + 3)² has its least at different updates."""

    def objective(m: Any, x: Tensor) -> Tensor:
        return m(x) if m.training else (m.w[0] + 3) ** 2

    losses = []
    for decay in (None, 0.5):
        trainer = weighted(
            gradients(*[1] * 6), objective=objective, ema_decay=decay, val_loader=gradients(1), eval_interval=1,
            save_dir=tmp_path / str(decay),
        )  # fmt: skip
        trainer.train()
        losses.append([record["val_loss"] for record in trainer.history if "val_loss" in record])
        assert trainer.evaluate()["loss"] == losses[-1][-1]
        best = ft.checkpoint.load(tmp_path / str(decay) / "best_model.pt", like=trainer.state)
        assert best.step.item() == (3 if decay is None else 4)
    assert losses[0] == [4, 1, 0, 1, 4, 9]
    means, mean = [], 0.0
    for t in range(1, 7):
        mean += 0.5 * (-t - mean)
        means.append((mean + 3) ** 2)
    assert losses[1] == means


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_an_average_is_saved_and_resumed_exactly(kind: str, tmp_path: Path) -> None:
    def run(**kwargs: Any) -> ft.Trainer:
        trainer = trainer_of(kind, grad_accum_steps=2, val_loader=DATA[:2], eval_interval=2, **kwargs)
        trainer.train()
        return trainer

    whole = run()
    run(max_steps=3, save_dir=tmp_path)
    resumed = run(save_dir=tmp_path, resume="auto")
    assert same(resumed.state, whole.state)
    assert same(resumed.averaged, whole.averaged)
    values = [[r["val_loss"] for r in t.history if "val_loss" in r] for t in (whole, resumed)]
    assert values[0] == values[1]


def test_with_and_without_an_average_are_different_runs_to_a_checkpoint(tmp_path: Path) -> None:
    with_one, without = trainer_of(save_dir=tmp_path / "a"), trainer_of(save_dir=tmp_path / "b", ema_decay=None)
    paths = with_one.save_checkpoint(), without.save_checkpoint()
    for path, there, here, settings in (
        (paths[0], "chain(adamw, params_ema)", "adamw", {"ema_decay": None}),
        (paths[1], "adamw", "chain(adamw, params_ema)", {}),
    ):
        message = f"checkpoint.load: {path}: its optimizer is {there}, and this run's is {here}"
        with pytest.raises(ft.CheckpointError, match=rf"^{re.escape(message)}$"):
            trainer_of(resume=path, **settings)


def test_training_with_an_average_is_training_without() -> None:
    found = []
    for decay in (None, 0.0, 0.99):
        trainer = trainer_of(ema_decay=decay, val_loader=DATA[:1])
        trainer.train()
        found.append(trainer)
    assert same(found[0].state.params, found[1].state.params)
    assert same(found[0].state.params, found[2].state.params)
    assert found[0].averaged is found[0].state  # without one, the parameters themselves
    assert same(found[1].averaged.params, found[1].state.params)  # nothing is remembered


def test_skipped_updates_with_fp16_are_not_averaged() -> None:
    def run(xs: list[float], scale: float) -> ft.Trainer:
        trainer = weighted(
            gradients(*xs), ft.adamw(0.1), precision="fp16", ema_decay=DECAY,
            objective=lambda m, x: (m.w.half() * x.half()).float().sum(),
        )  # fmt: skip
        set_scale(trainer, scale)
        trainer.train()
        return trainer

    skipping = run([1, math.inf, 2, math.inf, math.inf, 4], 2.0**16)  # the first overflows too
    plain = run([2, 4], 1.0)
    assert guard_of(skipping)[2:] == [4, 0]
    assert same(skipping.state.opt_state, plain.state.opt_state)
    assert same(skipping.averaged.params, plain.averaged.params)


def test_an_average_in_half_precision_parameters_keeps_what_they_cannot() -> None:
    trainer = ft.Trainer(
        Weight(), ft.sgd(2.0**-10), gradients(*[1.0] * 50), max_epochs=1, ema_decay=0.99,
        precision=ft.Precision(param=torch.bfloat16, compute=torch.float32),
    )  # fmt: skip
    trainer.train()
    (average,) = tree.leaves(ft.tree.get(trainer.state.opt_state, "ema"))
    assert (average.dtype, trainer.averaged.params["w"].dtype) == (torch.float32, torch.bfloat16)
    expected = 0.0
    w = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(50):
        w = w - torch.tensor(2.0**-10, dtype=torch.bfloat16)
        expected += 0.01 * (w.item() - expected)
    assert average[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["rule", pytest.param("torchs", marks=pytest.mark.long)])
def test_the_command_line_exports_the_average(kind: str, tmp_path: Path) -> None:
    trainer = trainer_of(kind, save_dir=tmp_path)
    trainer.train()
    for flags, state in ((["--ema"], trainer.averaged), ([], trainer.state)):
        out = tmp_path / "weights.safetensors"
        command = [sys.executable, "-m", "functrain.checkpoint", "export", str(tmp_path / "last.pt"), str(out), *flags]
        subprocess.run(command, check=True, capture_output=True)
        assert same(dict(sorted(load_file(out).items())), dict(sorted(state.params.items())))


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    message = f"params_ema: decay must be in [0, 1), got {decay}"
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        trainer_of(ema_decay=decay)
