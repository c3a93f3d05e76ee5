"""The mistakes of docs/errors.md, at every door through which a user meets them: each message, word for word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft

SGD, ADAMW = ft.sgd(0.1), ft.adamw(0.1)
X, Y = torch.ones(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
BATCH = X, Y
P = {"w": torch.ones(4), "b": torch.zeros(())}
META = torch.device("meta")


class Door(NamedTuple):
    """What a user writes, and what comes."""

    call: Callable[[], object]
    kind: type[Exception]
    message: str  # with the notes, a line each


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


MODULE = net()
MODEL = ft.functionalize(MODULE)
LOSS = MODEL.loss(F.cross_entropy)


def squares(params: dict[str, Tensor], x: Tensor) -> Tensor:
    """The loss of P."""
    return (x @ params["w"] + params["b"]).square().mean()


def state(tx: ft.GradientTransformation = SGD) -> ft.TrainState:
    return ft.TrainState.create(MODEL, tx)


def step(loss: Any = LOSS, **options: Any) -> Any:
    return ft.train_step(loss, SGD, **options)


def train(optimizer: Any = SGD, loader: Any = (BATCH,), module: Any = None, **options: Any) -> ft.Trainer:
    """A Trainer that has trained for an epoch."""
    given = {"loss_fn": F.cross_entropy, "max_epochs": 1} | options
    trainer = ft.Trainer(net() if module is None else module, optimizer, loader, **given)
    trainer.train()
    return trainer


def said(call: Callable[[], object]) -> tuple[type[BaseException] | None, str]:
    """The error that a call ends in, as a traceback ends: its message, and its notes."""
    try:
        call()
    except Exception as error:
        return type(error), "\n".join([str(error), *getattr(error, "__notes__", ())])
    return None, ""
