"""Optimizers: chains that have a name."""
