"""The calls that a person types first: the constructor's arguments in order, best and last, and going on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import functrain as ft


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3)).double()


def loaders() -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    x = torch.randn(88, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = x[:, :3].argmax(1)
    train = DataLoader(TensorDataset(x[:64], y[:64]), 8)
    return train, DataLoader(TensorDataset(x[64:], y[64:]), 8)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=8),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
}


def torch_loop(name: str, epochs: int) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """The loop of torch's manual: the weights, the rate of each update, the validation losses."""
    module, (train, val) = network(), loaders()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in module.parameters() if p.ndim >= 2], "weight_decay": 0.01},
            {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-3,
    )
    scheduler, rates, losses = SCHEDULERS[name](optimizer), [], []
    for _ in range(epochs):
        module.train()
        batches = list(train)
        for i in range(0, len(batches), 4):
            for x, y in batches[i : i + 4]:
                (F.cross_entropy(module(x), y) / 4).backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            optimizer.zero_grad()
            if name != "plateau":
                scheduler.step()
        module.eval()
        with torch.no_grad():
            losses.append(sum(F.cross_entropy(module(x), y).item() for x, y in val) / len(val))
        if name == "plateau":
            scheduler.step(losses[-1])
    return module.state_dict(), rates, losses


def trainer_of(name: str, epochs: int, directory: Path, **kwargs: Any) -> ft.Trainer:
    """Every argument by position or name, as in a first program."""
    module, (train, val) = network(), loaders()
    optimizer = ft.configure_optimizer(module, optimizer_type="adamw", lr=1e-3, weight_decay=0.01)
    return ft.Trainer(
        module, optimizer, train, val, SCHEDULERS[name](optimizer), "cpu",
        loss_fn=F.cross_entropy, max_epochs=epochs, grad_accum_steps=4, max_grad_norm=1.0, use_amp=False,
        log_interval=1, save_dir=str(directory), **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_first_program_is_the_loop_of_torchs_manual(tmp_path: Path, name: str) -> None:
    weights, rates, losses = torch_loop(name, 3)
    trainer = trainer_of(name, 3, tmp_path)
    trainer.train()
    told = [r for r in trainer.history if "loss" in r]
    assert [r["learning_rate"] for r in told] == pytest.approx(rates, rel=1e-12)
    assert [r["val_loss"] for r in trainer.history if "val_loss" in r] == pytest.approx(losses, rel=1e-6)
    for key, x in trainer.model.module.state_dict().items():
        torch.testing.assert_close(x, weights[key], rtol=1e-6, atol=1e-9)  # torch clips by norm + 1e-6


@pytest.mark.parametrize("name", SCHEDULERS)
def test_best_loaded_by_hand_and_trained_further_ends_where_one_run_does(tmp_path: Path, name: str) -> None:
    whole = trainer_of(name, 4, tmp_path / "whole")
    whole.train()

    first = trainer_of(name, 2, tmp_path / "parts")
    first.train()
    first.save_checkpoint(is_best=True)
    assert {p.name for p in (tmp_path / "parts").iterdir()} >= {"best_model.pt", "last.pt"}
    second = trainer_of(name, 4, tmp_path / "parts")
    second.load_checkpoint(str(tmp_path / "parts" / "best_model.pt"))
    assert second.updates == 4
    for key, x in second.model.module.state_dict().items():
        assert torch.equal(x, first.model.module.state_dict()[key])
    second.train()
    for key, x in second.model.module.state_dict().items():
        assert torch.equal(x, whole.model.module.state_dict()[key]), key
    assert second.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_stop_ends_at_the_next_boundary_saved_and_a_further_train_goes_on(tmp_path: Path) -> None:
    def train(*stops: int) -> ft.Trainer:
        trainer = trainer_of("one cycle", 3, tmp_path / str(stops))
        trainer.callbacks.append(
            lambda event, t: t.stop("enough") if event == "update" and t.updates in stops else None
        )
        for _ in range(len(stops) + 1):
            trainer.train()
        return trainer

    whole, parts = train(), train(1, 4)
    assert [p.name for p in sorted((tmp_path / "(1, 4)").glob("step-*"))][-1] == "step-00000006.pt"
    for a, b in zip(ft.tree.leaves(whole.state), ft.tree.leaves(parts.state), strict=True):
        assert torch.equal(a, b)
    told = [[(r["step"], "loss" in r) for r in t.history] for t in (whole, parts)]
    assert [x for x in told[1] if x not in told[0]] == []


def test_at_the_end_event_the_module_holds_the_trained_weights(tmp_path: Path) -> None:
    seen = []

    def note(event: str, trainer: ft.Trainer) -> None:
        if event == "end":
            seen.append(trainer.model.module[0].weight.detach().clone())

    trainer = trainer_of("cosine", 1, tmp_path, callbacks=[note])
    trainer.train()
    assert torch.equal(seen[0], trainer.state.params["0.weight"])


def test_early_stopping_ends_the_run_and_a_resumed_one_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(**kwargs: Any) -> ft.Trainer:
        train, val = loaders()
        return ft.Trainer(
            network(), ft.sgd(0.0), train, val, loss_fn=F.cross_entropy, max_epochs=50, save_dir=tmp_path,
            early_stopping=2, **kwargs,
        )  # fmt: skip

    trainer = make()
    trainer.train()
    assert trainer.updates == 3 * 8  # the first is the best, and two are not better
    again = make(resume="auto")
    capsys.readouterr()
    again.train()
    loss = trainer.history[-1]["val_loss"]
    assert again.updates == 24
    assert (
        f"nothing to do: val_loss has not fallen below {loss:.5g} of update 8 in 2 validations"
        in capsys.readouterr().err
    )


def test_a_logger_by_its_name_writes_into_the_runs_directory(tmp_path: Path) -> None:
    trainer_of("cosine", 1, tmp_path, loggers=["tensorboard"]).train()
    assert list((tmp_path / "tb").glob("events.out.tfevents.*"))


def test_loggers_go_on_from_the_restored_history_and_are_closed(tmp_path: Path) -> None:
    heard: list[tuple[str, object]] = []

    class Log:
        def log(self, record: dict[str, object]) -> None:
            heard.append(("log", record["step"]))

        def go_on_from(self, history: list[dict[str, object]]) -> None:
            heard.append(("go on", len(history)))

        def close(self) -> None:
            heard.append(("close", None))

    def stop(event: str, trainer: ft.Trainer) -> None:
        if event == "update" and trainer.updates == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit):
        trainer_of("cosine", 1, tmp_path, loggers=[Log()], callbacks=[stop]).train()
    trainer_of("cosine", 1, tmp_path, loggers=[Log()], resume="auto").train()
    assert heard == [
        ("go on", 0), ("log", 1), ("close", None), ("go on", 1), ("log", 2), ("log", 2), ("close", None),
    ]  # fmt: skip
