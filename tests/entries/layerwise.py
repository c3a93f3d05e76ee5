"""Rules of Optax that look at a leaf as a whole, or at other averages than Adam's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.entry import Entry

ENTRIES: tuple[Entry, ...] = ()
FACTORIES: tuple[Callable[..., Any], ...] = ()
