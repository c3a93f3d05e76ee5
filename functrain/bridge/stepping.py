"""One step of a group under a local rule, in place: eagerly, block by block, or compiled."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from functrain.base import GradientTransformation
from functrain.bridge.blocks import Row, add_, blocks, copy_
from functrain.bridge.layout import Columns, Layout, State
from functrain.bridge.traits import Traits
from functrain.state import unshared

States = MutableMapping[Tensor, State]
Named = Sequence[tuple[str, Tensor]]


class Built(NamedTuple):
    """What a group's values make."""

    values: dict[str, object]
    rule: GradientTransformation
    layout: Layout


class Member(NamedTuple):
    """A parameter that has a gradient."""

    name: str
    param: Tensor
    grad: Tensor
    state: State
    fresh: bool  # this is its first step


Compiled = Callable[[Built, Mapping[str, Tensor], Sequence[str], Sequence[Row]], None]


def step_group(
    where: str, built: Built, traits: Traits, named: Named, states: States, compiled: Compiled | None
) -> None:
    """Update the parameters that have a gradient, and their states.

    Args:
        where: the optimizer's name.
        built: the rule.
        traits: how it meets parameters.
        named: the group's parameters.
        states: of all parameters.
        compiled: how to run a cohort compiled; None is eagerly.

    Raises:
        RuntimeError: a gradient is sparse.
    """
    cohorts: dict[Hashable, list[Member]] = {}
    for member in _members(where, built, traits, named, states):
        cohorts.setdefault(built.layout.cohort(member.state, member.fresh), []).append(member)
    for cohort in cohorts.values():
        _step_cohort(built, traits, cohort, compiled)


def check_kind(where: str, traits: Traits, named: Named) -> None:
    """Raise RuntimeError if a parameter is complex under a rule that has no complex ones."""
    for name, p in named:
        if traits.real_only and p.is_complex():
            raise RuntimeError(
                f"{where} does not support complex parameters, and {name!r} is one; hint: torch.view_as_real of a "
                "complex tensor is a real one over the same memory"
            )


def first_states(built: Built, traits: Traits, params: Mapping[str, Tensor], whole: bool = False) -> list[State]:
    """The states of these parameters before their first step; with the hidden numbers if `whole`."""
    if not params:
        return []
    seen = {name: traits.seen(p) for name, p in params.items()}
    columns = built.layout.split(unshared(built.rule.init(seen), seen))
    each = {key: {n: traits.shown(x, params[n]) for n, x in column.items()} for key, column in columns.each.items()}
    shared = {key: x.cpu() for key, x in columns.shared.items()}
    return built.layout.scatter(list(seen), Columns(shared, each), whole)


def complete(built: Built, traits: Traits, named: Named, states: States) -> None:
    """Add what states lack that there are: the group has another rule now, or the states are another optimizer's."""
    known = {name: p for name, p in named if states.get(p)}
    for (_, p), first in zip(known.items(), first_states(built, traits, _detached(known)), strict=True):
        states[p] = first | states[p]


def _members(where: str, built: Built, traits: Traits, named: Named, states: States) -> list[Member]:
    found = [(name, p, g) for name, p in named if (g := p.grad) is not None]
    for name, _, g in found:
        if g.layout is not torch.strided:
            raise RuntimeError(
                f"{where} does not support sparse gradients, and parameter {name!r} has one; "
                "hint: build the module without sparse=True, or give this parameter to torch.optim.SparseAdam"
            )
    if not built.layout.fields:
        return [Member(name, p, g, {}, False) for name, p, g in found]
    fresh = {name: p for name, p, _ in found if not states.get(p)}
    for (_, p), state in zip(fresh.items(), first_states(built, traits, _detached(fresh)), strict=True):
        states[p] = state
    return [Member(name, p, g, states[p], name in fresh) for name, p, g in found]


def _step_cohort(built: Built, traits: Traits, cohort: Sequence[Member], compiled: Compiled | None) -> None:
    names, states = [m.name for m in cohort], [m.state for m in cohort]
    columns = built.layout.gather(names, states, cohort[0].fresh)
    keys = [key for key, column in columns.each.items() if column]  # a cohort has an entry for all, or for none
    rows = [Row(m.name, (m.param.detach(), m.grad, *[m.state[key] for key in keys])) for m in cohort]
    if traits.as_real and any(m.param.is_complex() for m in cohort):
        rows = [Row(row.name, tuple(traits.seen(x) for x in row.tensors)) for row in rows]
    if compiled is not None:
        compiled(built, columns.shared, keys, rows)
        if not columns.shared:
            return
        least = min(rows, key=lambda row: row.tensors[0].numel())
        copy = _empty if traits.elementwise else torch.clone
        rows = [Row(least.name, tuple(copy(x) for x in least.tensors))]  # only what is shared is left to do
    shared = columns.shared
    for block in blocks(rows, traits.elementwise):
        shared = _run(built, traits, columns.shared, keys, block)
    for key, x in shared.items():
        if key not in traits.hidden:
            copy_([s[key] for s in states], [x] * len(states))


def _run(
    built: Built, traits: Traits, shared: dict[str, Tensor], keys: Sequence[str], block: Sequence[Row]
) -> dict[str, Tensor]:
    """The rule on a block, written in place. What is shared afterwards."""
    names = [row.name for row in block]
    params, grads, *columns = ([*column] for column in zip(*(row.tensors for row in block), strict=True))
    each: dict[str, dict[str, Tensor]] = {field.key: {} for field in built.layout.fields if field.each}
    each |= {key: dict(zip(names, column, strict=True)) for key, column in zip(keys, columns, strict=True)}
    updates, state = built.rule.update(
        dict(zip(names, map(traits.gradient, grads), strict=True)),
        built.layout.join(names, Columns(shared, each)),
        dict(zip(names, params, strict=True)),
    )
    new = built.layout.split(state)
    add_(params, list(updates.values()))
    for key, column in zip(keys, columns, strict=True):
        copy_(column, list(new.each[key].values()))
    return new.shared


def _empty(x: Tensor) -> Tensor:
    """A tensor like this one, without entries."""
    return x[:0] if x.dim() else x.new_empty(0)


def _detached(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same memory, without autograd."""
    return {name: p.detach() for name, p in params.items()}
