"""Three ways to train the same GPT by one batch, again and again."""

from __future__ import annotations

import torch
from torch.nn import functional as F

import functrain as ft
from tests.benchmarks.gpt import of_31m
from tests.benchmarks.timing import Contender


def eager(small: bool) -> Contender:
    """Torch, eager, with fused AdamW."""
    return _torchs(small, compiled=False)


def compiled(small: bool) -> Contender:
    """Torch, forward and backward compiled, with fused AdamW."""
    return _torchs(small, compiled=True)


def jit(small: bool) -> Contender:
    """The whole step compiled, the state donated."""
    module, batch = of_31m(small)
    model, tx = ft.functionalize(module), ft.adamw(1e-4, weight_decay=0.1)
    step = ft.jit(ft.train_step(model.loss(F.cross_entropy), tx))
    now = {"state": ft.TrainState.create(model, tx, copy=False)}  # one copy of the weights, as in torch's loops

    def call() -> None:
        now["state"], _ = step(now["state"], batch)

    return call


def _torchs(small: bool, compiled: bool) -> Contender:
    module, (x, y) = of_31m(small)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    forward = torch.compile(module) if compiled else module

    def call() -> None:
        loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


CONTENDERS = {"eager": eager, "compiled": compiled, "jit": jit}
