"""Where: a transformation for some of the leaves.

A **mask** says for which: a tree of Python bools like the parameters, a prefix of one (a bool stands for all that is
below), or a function from the parameters to either. **Labels** are the same with names in place of bools. Both are
structure, not numbers: a mask is asked anew at each call, of the parameters, and must always answer the same.

The transformation inside sees trees with holes in place of the other leaves (parameters, updates and state alike), so
it keeps no state for them, and a norm that it takes is a norm of its own leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import NamedTuple

from functrain import tree
from functrain.base import GradientTransformation, rule, set_to_zero
from functrain.combinators.parts import check_part, needs_of, update_part
from functrain.holes import fill, fits, punch
from functrain.masks import at, check_bools, holes_outside, spread
from functrain.paths import walk
from functrain.tree import Tree


class MaskedState(NamedTuple):
    """The state of a transformation that sees some of the leaves."""

    inner_state: Tree  # with holes for the leaves that are masked out


@rule
def masked(
    inner: GradientTransformation,
    mask: Tree | Callable[[Tree], Tree],
    *,
    mask_compatible_extra_args: bool = False,
) -> GradientTransformation:
    """Apply a transformation where the mask is True; elsewhere the updates pass through, the same tensors.

    With a mask of True it is `inner`, with a mask of False the identity.

    Args:
        inner: the transformation.
        mask: True for the leaves that it transforms. With a function, update needs params.
        mask_compatible_extra_args: mask those extras too that have the structure of the parameters (`grad`).

    Raises:
        TypeError: `inner` is no transformation, or the mask holds something else than bools.
        ValueError: the mask does not fit the parameters; the message names the place.
    """
    check_part("masked: inner", inner)

    def init(params: Tree) -> MaskedState:
        return MaskedState(inner.init(punch(params, holes_outside("masked", mask, params))))

    def update(
        updates: Tree, state: MaskedState, params: Tree | None = None, **extra: object
    ) -> tuple[Tree, MaskedState]:
        inside = holes_outside("masked", mask, updates if params is None else params)
        given = _punch_extras(extra, inside) if mask_compatible_extra_args else extra
        new, inner_state = _update_inside(inner, inside, updates, state.inner_state, params, given)
        return new, MaskedState(inner_state)

    return _combined(mask, init, update, (inner,))


@rule
def mask_by(fn: Callable[..., Hashable]) -> Callable[[Tree], Tree]:
    """The mask that asks each leaf.

    >>> import torch
    >>> mask_by(lambda path, leaf: leaf.ndim >= 2)({"w": torch.ones(2, 3), "b": torch.ones(3)})
    {'w': True, 'b': False}

    Args:
        fn: (path, leaf) -> bool; the path is one that people read, as `tree.paths` lists them (`"blocks.0.weight"`).
            For `partition` it returns a label instead.
    """
    return lambda params: tree.map_with_path(fn, params)


class PartitionState(NamedTuple):
    """The states of the transformations of a partition."""

    inner_states: dict[Hashable, MaskedState]  # by label; each with holes for the leaves of other labels


@rule
def partition(
    transforms: Mapping[Hashable, GradientTransformation],
    param_labels: Tree | Callable[[Tree], Tree],
    *,
    mask_compatible_extra_args: bool = False,
) -> GradientTransformation:
    """Apply to each leaf the transformation of its label.

    With one label it is the transformation of that label.

    Args:
        transforms: from label to transformation.
        param_labels: the label of each leaf. With a function, update needs params.
        mask_compatible_extra_args: see `masked`.

    Raises:
        TypeError: a value of `transforms` is no transformation.
        ValueError: the labels do not fit the parameters, or a label is not among the transformations; the message
            names the place.
    """
    parts = {label: check_part(f"partition: {label!r}", part) for label, part in transforms.items()}

    def init(params: Tree) -> PartitionState:
        labels = _labels(param_labels, params, parts)
        return PartitionState(
            {label: MaskedState(part.init(punch(params, _equal(labels, label)))) for label, part in parts.items()}
        )

    def update(
        updates: Tree, state: PartitionState, params: Tree | None = None, **extra: object
    ) -> tuple[Tree, PartitionState]:
        labels = _labels(param_labels, updates if params is None else params, parts)
        states = {}
        for label, part in parts.items():
            inside, old = _equal(labels, label), state.inner_states[label].inner_state
            given = _punch_extras(extra, inside) if mask_compatible_extra_args else extra
            updates, new = _update_inside(part, inside, updates, old, params, given)
            states[label] = MaskedState(new)
        return updates, PartitionState(states)

    return _combined(param_labels, init, update, parts.values())


@rule
def freeze(mask: Tree | Callable[[Tree], Tree]) -> GradientTransformation:
    """Replace the updates by zero where the mask is True.

    At the end of a chain it leaves the parameters there bitwise as they are. Their moments in the chain before it still
    advance: `selective_transform` keeps none.

    Args:
        mask: True for the leaves that are frozen.
    """
    return masked(set_to_zero(), mask)


@rule
def selective_transform(
    optimizer: GradientTransformation, *, freeze_mask: Tree | Callable[[Tree], Tree]
) -> GradientTransformation:
    """Apply an optimizer where the mask is False; replace the updates by zero where it is True.

    The optimizer keeps no state for what is frozen, and does not see it.

    Args:
        optimizer: the transformation of what is trained.
        freeze_mask: True for the leaves that are frozen.
    """

    def labels(mask: Tree) -> Tree:
        check_bools("selective_transform", mask)
        return tree.map(lambda frozen: "freeze" if frozen else "train", mask)

    param_labels = (lambda params: labels(freeze_mask(params))) if callable(freeze_mask) else labels(freeze_mask)
    return partition({"train": optimizer, "freeze": set_to_zero()}, param_labels)


# --- `inside`: a tree like the parameters, with holes for the leaves that a transformation does not see


def _equal(labels: Tree, label: Hashable) -> Tree:
    return tree.map(lambda other: other == label or (), labels)


def _labels(
    param_labels: Tree | Callable[[Tree], Tree], params: Tree, parts: Mapping[Hashable, GradientTransformation]
) -> Tree:
    labels = spread("partition", "labels", param_labels, params)
    for path, label in walk(labels):
        if label not in parts:
            known = ", ".join(map(repr, parts))
            raise ValueError(
                f"partition: no transformation for {label!r}, the label {at(path)}; hint: there is {known}"
            )
    return labels


def _update_inside(
    part: GradientTransformation,
    inside: Tree,
    updates: Tree,
    state: Tree,
    params: Tree | None,
    extra: Mapping[str, object],
) -> tuple[Tree, Tree]:
    """The update of the leaves inside; those outside pass through."""
    seen = None if params is None else punch(params, inside)
    new, state = update_part(part, punch(updates, inside), state, seen, extra)
    return fill(new, updates), state


def _punch_extras(extra: Mapping[str, object], inside: Tree) -> dict[str, object]:
    return {name: punch(value, inside) if fits(value, inside) else value for name, value in extra.items()}


def _combined(
    mask: Tree | Callable[[Tree], Tree],
    init: Callable[[Tree], Tree],
    update: Callable[..., tuple[Tree, Tree]],
    parts: Collection[GradientTransformation],
) -> GradientTransformation:
    def update_with_params(updates: Tree, state: Tree, params: Tree, **extra: object) -> tuple[Tree, Tree]:
        return update(updates, state, params, **extra)

    chosen = update_with_params if callable(mask) else update
    return GradientTransformation(init, chosen, needs_of(parts), all(part.local for part in parts))
