"""Compiled AdamW, `ft.jit(ft.update_and_apply(tx))`, against `torch.optim.AdamW(fused=True)`."""

from __future__ import annotations

import torch

import functrain as ft
from tests.benchmarks.gpt import leaves_of_30m
from tests.benchmarks.rule_eager import torchs
from tests.benchmarks.timing import Row, first_call, interleave, main

GOAL = 1.1


def run(small: bool) -> list[Row]:
    """The one row."""
    params = leaves_of_30m(small)
    grads = {path: torch.randn_like(p) for path, p in params.items()}
    fused = torchs(params, grads, fused=True)

    tx = ft.adamw(1e-3, weight_decay=0.1)
    step = ft.jit(ft.update_and_apply(tx))
    now = {"params": ft.tree.map(torch.clone, params), "state": tx.init(params)}

    def compiled() -> None:
        now["params"], now["state"] = step(grads, now["state"], now["params"])

    seconds = first_call(compiled)
    times = interleave({"compiled": compiled, "fused": fused}, rounds=3 if small else 25, calls=5)
    what = "jit(update_and_apply(adamw)) / torch fused, 148 GPT-like leaves, 30M"
    detail = f"{times.detail('compiled', 'fused')}; compiles in {seconds:.0f} s"
    return [Row(what, times.ratio("compiled", "fused"), GOAL, detail)]


if __name__ == "__main__":
    main(run)
