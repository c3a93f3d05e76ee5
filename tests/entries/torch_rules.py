"""Rules that compute what torch.optim computes, where Optax computes something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.entry import Entry

ENTRIES: tuple[Entry, ...] = ()
FACTORIES: tuple[Callable[..., Any], ...] = ()
