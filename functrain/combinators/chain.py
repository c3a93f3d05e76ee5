"""In sequence: each transformation works on what the one before it made.

    u₀ = g        uᵢ, sᵢ ← updateᵢ(uᵢ₋₁, sᵢ, params)        u = uₙ

Every part sees the parameters as they were before the whole update. The order is the meaning: `chain(clip, adam)` clips
gradients, `chain(adam, clip)` clips updates.
"""

from __future__ import annotations

from functrain.base import GradientTransformation, rule
from functrain.combinators.parts import check_part, needs_of, update_part
from functrain.tree import Tree


@rule
def chain(*transforms: GradientTransformation) -> GradientTransformation:
    """Apply transformations one after another.

    Associative, with `identity()` as neutral element; a chain of nothing is the identity. Its state is the tuple of the
    states of its parts.

    Args:
        transforms: the parts, first to last.

    Raises:
        TypeError: an argument is not a transformation.
    """
    for i, part in enumerate(transforms, 1):
        check_part(f"chain: argument {i}", part)

    def init(params: Tree) -> tuple[Tree, ...]:
        return tuple(part.init(params) for part in transforms)

    def update(
        updates: Tree, state: tuple[Tree, ...], params: Tree | None = None, **extra: object
    ) -> tuple[Tree, tuple[Tree, ...]]:
        _check_states("chain", len(transforms), len(state))
        new = []
        for part, old in zip(transforms, state, strict=True):
            updates, s = update_part(part, updates, old, params, extra)
            new.append(s)
        return updates, tuple(new)

    return GradientTransformation(init, update, needs_of(transforms), all(part.local for part in transforms))


@rule
def named_chain(*transforms: tuple[str, GradientTransformation]) -> GradientTransformation:
    """Apply transformations one after another, each with a name for its state.

    The same updates as `chain` of the same parts. Its state is a dict from name to the state of that part.

    Args:
        transforms: pairs (name, transformation), first to last.

    Raises:
        TypeError: an argument is not such a pair.
        ValueError: a name occurs twice.
    """
    parts: dict[str, GradientTransformation] = {}
    given: tuple[object, ...] = transforms
    for i, pair in enumerate(given, 1):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"named_chain: argument {i} is not a pair; hint: ('adam', scale_by_adam())")
        if pair[0] in parts:
            raise ValueError(f"named_chain: two parts are called {pair[0]!r}; hint: each needs a name of its own")
        parts[pair[0]] = check_part(f"named_chain: {pair[0]!r}", pair[1])

    def init(params: Tree) -> dict[str, Tree]:
        return {name: part.init(params) for name, part in parts.items()}

    def update(
        updates: Tree, state: dict[str, Tree], params: Tree | None = None, **extra: object
    ) -> tuple[Tree, dict[str, Tree]]:
        _check_states("named_chain", len(parts), len(state))
        new = {}
        for name, part in parts.items():
            updates, new[name] = update_part(part, updates, state[name], params, extra)
        return updates, new

    return GradientTransformation(init, update, needs_of(parts.values()), all(p.local for p in parts.values()))


def _check_states(where: str, parts: int, states: int) -> None:
    if parts != states:
        raise ValueError(f"{where}: it has {parts} parts, and the state {states}; hint: init makes the state")
