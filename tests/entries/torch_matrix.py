"""Rules of torch.optim that look at a leaf as a matrix: Adafactor and Muon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.entry import Entry

ENTRIES: tuple[Entry, ...] = ()
FACTORIES: tuple[Callable[..., Any], ...] = ()
