"""Entries of the catalogue, a family a file: each has ENTRIES, and FACTORIES that `eval(repr(tx))` needs."""

from collections.abc import Callable
from typing import Any

from tests.entries import layerwise, torch_matrix, torch_rules
from tests.entry import Entry

ENTRIES: tuple[Entry, ...] = (*layerwise.ENTRIES, *torch_rules.ENTRIES, *torch_matrix.ENTRIES)
FACTORIES: tuple[Callable[..., Any], ...] = (*layerwise.FACTORIES, *torch_rules.FACTORIES, *torch_matrix.FACTORIES)
