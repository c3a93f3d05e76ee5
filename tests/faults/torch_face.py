"""Faults in the torch face."""

from tests.faults import Mutant

FAULTS: tuple[Mutant, ...] = ()
