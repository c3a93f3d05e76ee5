"""Randomness that is a function of (seed, update, micro-batch).

Nothing random is carried from update to update, so nothing has to be restored: a run that resumes at update t draws
what it would have drawn. The global generators are set for the length of a call and put back as they were found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch


def fold(seed: int, *counters: int) -> int:
    """63 bits that depend on every argument."""
    text = ",".join(map(str, (seed, *counters))).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest()) >> 1


@contextmanager
def seeded(seed: int, *counters: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run the block with the default generators set to (seed, counters), and put them back.

        with ft.seeded(seed, t):
            x = torch.rand(3)        # the same for the same seed and t, whatever was drawn before

    Args:
        seed: the run's seed.
        counters: what sets this call apart: the update's number, the micro-batch's.
        device: whose default generator to set beside the CPU's.
    """
    generators = [torch.default_generator, *_accelerator(torch.device(device))]
    before = [generator.get_state() for generator in generators]
    key = fold(seed, *counters)
    try:
        for generator in generators:
            generator.manual_seed(key)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def _accelerator(device: torch.device) -> list[torch.Generator]:
    if device.type != "cuda":
        return []
    torch.cuda.current_device()  # makes the context, and with it the generators
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.cuda.default_generators[index]]
