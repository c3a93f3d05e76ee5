"""Faults in the layerwise and other rules of Optax."""

from tests.faults import Mutant

FAULTS: tuple[Mutant, ...] = ()
