"""Faults that were planted by hand, as data: `tests/mutants.py` plants them one at a time."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault, and who notices it."""

    fault: str  # in words
    file: str  # under functrain/; ../examples/x.py is an example
    old: str  # occurs there once
    new: str
    killers: tuple[str, ...]  # under tests/: what pytest runs


def mutant(fault: str, file: str, old: str, new: str, *killers: str) -> Mutant:
    """A fault whose killers are listed at the end."""
    return Mutant(fault, file, old, new, killers)


def optax(entry: str) -> str:
    """The test that compares an entry of the catalogue with Optax."""
    return f"test_catalogue.py::test_25_updates_agree_with_optax[{entry}]"


MOMENTUM, ADAPTIVE = "transforms/test_momentum.py::", "transforms/test_adaptive.py::"
SCALE, CLIP, SQUARES = "transforms/test_scale.py::", "transforms/test_clip.py::", "transforms/test_squares.py::"
CORRECTION, DECAY, SCHEDULES = "test_bias_correction.py::", "test_decay.py::", "test_schedules.py::"
CHAIN, SELECT = "combinators/test_chain.py::", "combinators/test_select.py::"
GATE, WRAP = "combinators/test_gate.py::", "combinators/test_wrap.py::"
STEP, SKIP, PRECISION = "test_step.py::", "test_skip.py::", "test_precision.py::"
EVERY_COUNT = SCHEDULES + "test_a_schedule_agrees_with_optax_at_every_count"
