"""Faults in the rules that compute what torch.optim computes."""

from tests.faults import Mutant

FAULTS: tuple[Mutant, ...] = ()
