"""Faults in the matrix rules of torch.optim, and in L-BFGS."""

from tests.faults import Mutant

FAULTS: tuple[Mutant, ...] = ()
