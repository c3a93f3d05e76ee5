"""Pure eager AdamW, `update_and_apply`, against `torch.optim.AdamW(foreach=True)`."""

from __future__ import annotations

import torch

import functrain as ft
from tests.benchmarks.faces import Leaves, over
from tests.benchmarks.gpt import leaves_of_30m
from tests.benchmarks.timing import Contender, Row, interleave, main

GOAL = 2.0


def torchs(params: Leaves, grads: Leaves, **kind: bool) -> Contender:
    """torch.optim.AdamW over clones of these parameters."""
    return over(torch.optim.AdamW, params, grads, lr=1e-3, weight_decay=0.1, **kind).step


def pure(params: Leaves, grads: Leaves) -> Contender:
    """functrain's AdamW, carrying its state from call to call."""
    tx = ft.adamw(1e-3, weight_decay=0.1)
    step, now = ft.update_and_apply(tx), {"params": params, "state": tx.init(params)}

    def call() -> None:
        now["params"], now["state"] = step(grads, now["state"], now["params"])

    return call


def squares(small: bool) -> Leaves:
    """1,000 leaves of 64 x 64."""
    torch.manual_seed(0)
    return {str(i): torch.randn(64, 64) for i in range(10 if small else 1000)}


def run(small: bool) -> list[Row]:
    """One row a tree."""
    rows = []
    trees = {"148 GPT-like leaves, 30M": leaves_of_30m(small), "1,000 leaves of 64 x 64": squares(small)}
    for name, params in trees.items():
        grads = {path: torch.randn_like(p) for path, p in params.items()}
        contenders = {"pure": pure(params, grads), "foreach": torchs(params, grads, foreach=True)}
        times = interleave(contenders, rounds=3 if small else 25, calls=3)
        what = f"eager update_and_apply(adamw) / torch foreach, {name}"
        rows.append(Row(what, times.ratio("pure", "foreach"), GOAL, times.detail("pure", "foreach")))
    return rows


if __name__ == "__main__":
    main(run)
