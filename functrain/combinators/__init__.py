"""Transformations of transformations: in sequence, where, when, around."""
