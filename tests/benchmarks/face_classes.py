"""A step of each class of `functrain.optim`, eager and compiled, against torch's class with its defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from functrain import optim
from tests.benchmarks.faces import Leaves, over, steps
from tests.benchmarks.gpt import leaves_of_11m
from tests.benchmarks.timing import Contender, Row, interleave, main

CLASSES = [name for name in optim.__all__ if name != "LBFGS"]
WARMUP = 6  # RAdam does more from its sixth step on


def run(small: bool) -> list[Row]:
    """Two rows a class, and one of LBFGS, where compile=True changes nothing.

    Muon has the matrices of one block: its own products of matrices take much longer than anything else here.
    """
    leaves = leaves_of_11m(small)
    matrices = {name: p for name, p in leaves.items() if p.dim() == 2 and name.startswith("blocks.0.")}
    rows = []
    for name in CLASSES:
        rows += of_class(name, matrices if name == "Muon" else leaves, small)
    return [*rows, lbfgs(small)]


def of_class(name: str, params: Leaves, small: bool) -> list[Row]:
    """The rows of one class, whose arguments are the defaults."""
    grads = {path: torch.randn_like(p) for path, p in params.items()}
    ours, theirs = getattr(optim, name), getattr(torch.optim, name)
    made = {
        "eager": over(ours, params, grads),
        "compiled": over(ours, params, grads, compile=True),
        "torch": over(theirs, params, grads),
    }
    times = steps(made, "torch", rounds=3 if small else 9, warmup=WARMUP)
    what = f"torch's, {len(params)} leaves, {sum(p.numel() for p in params.values()) / 1e6:.1f}M"
    return [
        Row(f"optim.{name}{how} / {what}", times.ratio(mine, "torch"), None, times.detail(mine, "torch"))
        for mine, how in (("eager", ""), ("compiled", "(compile=True)"))
    ]


def lbfgs(small: bool) -> Row:
    """LBFGS over least squares whose curvatures lie between 1 and 1e-4, so that no step ends before its 20th iteration.

    A call begins anew: a second step would find little left to do.
    """
    torch.manual_seed(0)
    equations, unknowns = (64, 16) if small else (512, 128)
    A = torch.randn(equations, unknowns) * torch.logspace(0, -2, unknowns)
    b = torch.randn(equations)
    last: dict[str, Any] = {}

    def solve(name: str, kind: Callable[..., Any]) -> Contender:
        def call() -> None:
            x = nn.Parameter(torch.zeros(unknowns))

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = (A @ x - b).square().mean()
                loss.backward()
                return loss

            optimizer = last[name] = kind([x])
            optimizer.step(closure)

        return call

    made = {"ours": solve("ours", optim.LBFGS), "torch": solve("torch", torch.optim.LBFGS)}
    times = interleave(made, rounds=3 if small else 25, calls=3)
    done = {}
    for name, optimizer in last.items():
        (x,) = optimizer.param_groups[0]["params"]
        if not x.isfinite().all():
            raise ArithmeticError(f"{name}: LBFGS has made parameters that are not finite")
        done[name] = optimizer.state[x]["n_iter"], optimizer.state[x]["func_evals"]
    if done["ours"] != done["torch"]:
        raise ArithmeticError(f"LBFGS: iterations and evaluations differ: {done}")
    what = f"optim.LBFGS / torch's, a step of {done['ours'][0]} iterations, least squares of {equations} x {unknowns}"
    return Row(what, times.ratio("ours", "torch"), None, times.detail("ours", "torch"))


if __name__ == "__main__":
    main(run)
