"""The Trainer over a torch optimizer, and the loop that one writes with torch alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from functrain.trainer import Callback, Trainer
from tests.bridge.faces import SLOW, distance, flat

Batch = tuple[Tensor, Tensor]
Between = Callable[[int, Optimizer], None]  # what is done by hand before an update


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 6), nn.LayerNorm(6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1)
    ).double()  # fmt: skip


def batches(n: int, seed: int = 1) -> list[Batch]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, 3, dtype=torch.float64, generator=draw)
    return [(x[i], x[i].sin().sum(1, keepdim=True)) for i in range(n)]


def spoiled(given: list[Batch], *places: int) -> list[Batch]:
    """The batches, some of them with a target that is not finite."""
    return [(x, y * (float("nan") if i in places else 1.0)) for i, (x, y) in enumerate(given)]


def decayed(module: nn.Module, decay: float = 0.1) -> list[dict[str, Any]]:
    """Two groups, as `configure_optimizer` makes them."""
    params = list(module.parameters())
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]


def nothing(update: int, optimizer: Optimizer) -> None: ...


def torch_loop(
    module: nn.Module,
    optimizer: Optimizer,
    scheduler: Any,
    given: Sequence[Batch],
    k: int = 1,
    limit: float | None = None,
    validation: Sequence[Batch] = (),
    between: Between = nothing,
) -> list[float]:
    """The rates used, update by update. A window whose loss is not finite is passed over."""
    rates = []
    for t in range(0, len(given), k):
        between(t // k, optimizer)
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.zero_grad()
        loss = torch.stack([F.mse_loss(module(x), y) for x, y in given[t : t + k]]).mean()
        if loss.isfinite():
            loss.backward()
            if limit is not None:
                nn.utils.clip_grad_norm_(module.parameters(), limit)
            optimizer.step()
            if scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
        if validation:
            with torch.no_grad():
                scheduler.step(torch.stack([F.mse_loss(module(x), y) for x, y in validation]).mean())
    return rates


def trainer_of(module: nn.Module, optimizer: Any, scheduler: Any = None, given: Any = None, **settings: Any) -> Trainer:
    """A Trainer of one epoch, with a record an update."""
    settings = {"loss_fn": F.mse_loss, "max_epochs": 1, "log_interval": 1} | settings
    return Trainer(module, optimizer, batches(12) if given is None else given, scheduler=scheduler, **settings)


def by_hand(between: Between) -> Callback:
    """The callback that does it in a Trainer, after the update before."""

    def callback(event: str, trainer: Trainer) -> None:
        if event == "update":
            between(trainer.updates, trainer.optimizer)

    return callback


def rates(trainer: Trainer) -> list[float]:
    return [record["learning_rate"] for record in trainer.history if "learning_rate" in record]


def apart(a: nn.Module, b: nn.Module) -> float:
    """The greatest relative distance between two modules' parameters."""
    return max(distance(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def values(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Copies of the groups' values, but for those that choose one of torch's loops."""
    return [{k: copy.deepcopy(v) for k, v in g.items() if k not in ("params", *SLOW)} for g in optimizer.param_groups]


def everything(trainer: Trainer, scheduler: Any = None) -> dict[str, Any]:
    """Copies of all that a run with a torch optimizer has, by path."""
    parts = {
        "module": trainer.model.module.state_dict(),
        "optimizer": trainer.optimizer.state_dict() if isinstance(trainer.optimizer, Optimizer) else {},
        "scheduler": {} if scheduler is None else scheduler.state_dict(),
    }
    return dict(flat(copy.deepcopy(parts)))
