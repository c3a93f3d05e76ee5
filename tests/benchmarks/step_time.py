"""`ft.jit(step)` on a GPT of 31M parameters, against torch eager and compiled, both with fused AdamW."""

from __future__ import annotations

from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.timing import Row, first_call, interleave, main

GOALS = {"eager": 0.9, "compiled": 1.0}


def run(small: bool) -> list[Row]:
    """One row for each of torch's two ways."""
    made = {name: build(small) for name, build in CONTENDERS.items()}
    seconds = {name: first_call(call) for name, call in made.items()}
    times = interleave(made, rounds=3 if small else 25, calls=2)
    return [
        Row(
            f"jit(step) / torch {theirs} with fused AdamW, GPT of 31M, time",
            times.ratio("jit", theirs),
            goal,
            f"{times.detail('jit', theirs)}; first calls {seconds['jit']:.0f} s, {seconds[theirs]:.0f} s",
        )
        for theirs, goal in GOALS.items()
    ]


if __name__ == "__main__":
    main(run)
