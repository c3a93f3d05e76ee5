"""Transformations of updates, one family a file."""
