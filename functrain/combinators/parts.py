"""What every combinator does with the transformations it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from functrain.base import GradientTransformation
from functrain.hints import instead_of_rule
from functrain.tree import Tree

T = TypeVar("T")
S = TypeVar("S")


def check_part(where: str, part: object) -> GradientTransformation:
    """The part, if it is a transformation; TypeError if not. `where` names the combinator and the place."""
    if not isinstance(part, GradientTransformation):
        raise TypeError(f"{where} is a {instead_of_rule(part)}")
    return part


def needs_of(parts: Iterable[GradientTransformation]) -> frozenset[str]:
    """The extras that some part needs."""
    return frozenset().union(*(part.needs for part in parts))


def update_part(
    part: GradientTransformation, updates: T, state: S, params: Tree | None, extra: Mapping[str, object]
) -> tuple[T, S]:
    """The update of a part, given those extras that it needs."""
    return part.update(updates, state, params, **{name: extra[name] for name in part.needs})
