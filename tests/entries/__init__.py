"""Entries of the catalogue, a family a file: each has ENTRIES, and FACTORIES that `eval(repr(tx))` needs."""

from collections.abc import Callable
from typing import Any

from tests.entries import averaged, averages, beliefs, layerwise, torch_matrix, torch_rules
from tests.entry import Entry

FAMILIES = layerwise, beliefs, averaged, averages, torch_rules, torch_matrix

ENTRIES: tuple[Entry, ...] = tuple(entry for family in FAMILIES for entry in family.ENTRIES)
FACTORIES: tuple[Callable[..., Any], ...] = tuple(factory for family in FAMILIES for factory in family.FACTORIES)
