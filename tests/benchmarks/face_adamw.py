"""A step of `functrain.optim.AdamW`, eager and compiled, against `torch.optim.AdamW`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.optim import Optimizer

from functrain import optim
from tests.benchmarks.faces import Leaves, over, steps
from tests.benchmarks.gpt import leaves_of_30m
from tests.benchmarks.rule_eager import squares
from tests.benchmarks.timing import Row, child, main

VALUES = {"lr": 1e-3, "weight_decay": 0.1}
EAGER, SECONDS = 2.2, 10.0  # goals of every tree


class Tree(NamedTuple):
    """What is optimised."""

    name: str
    make: Callable[[bool], Leaves]
    compiled: float  # goal of compile=True / torch foreach

    def leaves(self, small: bool) -> tuple[Leaves, Leaves]:
        """Parameters and gradients."""
        params = self.make(small)
        return params, {path: torch.randn_like(p) for path, p in params.items()}


TREES = {
    "gpt": Tree("148 GPT-like leaves, 30M", leaves_of_30m, 0.5),
    "squares": Tree("1,000 leaves of 64 x 64", squares, 1.1),
}


def ours(params: Leaves, grads: Leaves, **options: object) -> Optimizer:
    """functrain's AdamW."""
    return over(optim.AdamW, params, grads, **VALUES, **options)


def torchs(params: Leaves, grads: Leaves, **options: object) -> Optimizer:
    """torch's."""
    return over(torch.optim.AdamW, params, grads, **VALUES, **options)


def first_step(key: str, small: bool) -> float:
    """Seconds of the first step with compile=True, in a fresh process with an empty cache."""
    if small:  # in any cache, which saves a minute
        seconds = child("first_step", key, "--small")
    else:
        with tempfile.TemporaryDirectory(prefix="functrain-bench-") as cache:
            seconds = child("first_step", key, TORCHINDUCTOR_CACHE_DIR=cache)
    assert isinstance(seconds, float)
    return seconds


def run(small: bool) -> list[Row]:
    """Four rows a tree."""
    rows = []
    for key, tree in TREES.items():
        seconds = first_step(key, small)
        params, grads = tree.leaves(small)
        made = {
            "eager": ours(params, grads),
            "compiled": ours(params, grads, compile=True),
            "foreach": torchs(params, grads, foreach=True),
            "fused": torchs(params, grads, fused=True),
        }
        times = steps(made, "foreach", rounds=3 if small else 25, calls=3)
        for what, mine, theirs, goal in (
            ("optim.AdamW / torch foreach", "eager", "foreach", EAGER),
            ("optim.AdamW(compile=True) / torch foreach", "compiled", "foreach", tree.compiled),
            ("optim.AdamW(compile=True) / torch fused", "compiled", "fused", None),
        ):
            rows.append(Row(f"{what}, {tree.name}", times.ratio(mine, theirs), goal, times.detail(mine, theirs)))
        what = f"first step of optim.AdamW(compile=True) / {SECONDS:.0f} s, {tree.name}"
        rows.append(Row(what, seconds / SECONDS, 1.0, f"{seconds:.1f} s, compilation and all"))
    return rows


if __name__ == "__main__":
    main(run)
