"""The records of a run that was stopped and resumed are those of a run that was not."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from functrain.optimizers.adaptive import adamw
from functrain.run.nonfinite import NonFiniteError
from functrain.trainer import Trainer

CLOCKS = {"seconds", "updates_per_second", "samples_per_second", "data_wait"}


def make(**kwargs: object) -> Trainer:
    torch.manual_seed(3)
    x = torch.randn(22, 3, generator=torch.Generator().manual_seed(1))
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 4, shuffle=True)
    net = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.2), nn.Linear(5, 1))
    settings = {"loss_fn": F.mse_loss, "max_epochs": 3, "log_interval": 1} | kwargs
    return Trainer(net, adamw(1e-2), data, data, **settings)


def at(update: int, act: Callable[[], object]) -> Callable[[str, Trainer], None]:
    def callback(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates == update:
            act()

    return callback


def told(trainer: Trainer) -> list[dict[str, object]]:
    return [{name: x for name, x in record.items() if name not in CLOCKS} for record in trainer.history]


def test_the_rows_go_on_and_those_past_the_restored_update_are_marked(tmp_path: Path) -> None:
    def die() -> None:
        raise RuntimeError("dead")

    a = make(save_dir=tmp_path, save_interval=4, callbacks=[at(11, die)])
    with pytest.raises(RuntimeError, match="dead"):
        a.train()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "lo')  # killed within a line

    b = make(save_dir=tmp_path, save_interval=4, resume="auto")
    assert b.updates == 8
    b.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if not row.get("stale")] == b.history
    assert [row["step"] for row in rows if row.get("stale")] == [9, 10]
    assert [row["step"] for row in b.history if "loss" in row] == list(range(1, 19))


@pytest.mark.parametrize("how", ["signal", "stop()", "max_time"])
def test_res_1_a_run_that_was_stopped_has_no_record_that_another_has_not(tmp_path: Path, how: str) -> None:
    whole = make(log_interval=5)
    torch.manual_seed(5)
    whole.train()

    first = make(log_interval=5, save_dir=tmp_path, max_time=1e9)
    acts: dict[str, Callable[[], object]] = {
        "signal": lambda: signal.raise_signal(signal.SIGTERM),
        "stop()": first.stop,
        "max_time": lambda: setattr(first, "_deadline", -math.inf),
    }
    first.callbacks.append(at(7, acts[how]))
    torch.manual_seed(5)
    try:
        first.train()
    except SystemExit:
        assert how == "signal"
    assert first.updates == 7
    second = make(log_interval=5, save_dir=tmp_path, resume="auto")
    second.train()
    assert told(second) == told(whole)


def test_nan_1_at_a_stop_too_it_is_an_error() -> None:
    class Times(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return (self.w * x).sum()

    batches = [torch.ones(1), torch.full((1,), math.nan), torch.ones(1), torch.ones(1)]
    trainer = Trainer(Times(), adamw(0.1), batches, max_epochs=1)
    trainer.callbacks.append(at(3, trainer.stop))
    with pytest.raises(NonFiniteError, match=r"^Trainer: update 2 in epoch 1 was not finite: loss nan"):
        trainer.train()
