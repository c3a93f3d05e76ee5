"""A torch optimizer as a pure transformation: `optimizer.as_transform()`.

The step of a `Face`, as a function. Its state has the numbers of each group, so that a program may change them, and for
each parameter what `optimizer.state` has for it; both as tensors. So it is differentiable, maps under vmap, and is what
the Trainer drives.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from functrain import tree
from functrain.base import GradientTransformation
from functrain.bridge.layout import STEP, Columns, Layout, State, layout_of
from functrain.bridge.stepping import Built, first_states
from functrain.bridge.traits import Traits
from functrain.bridge.values import numbers_of, values_from, values_of
from functrain.bridge.whole import Whole, check_equal
from functrain.gradient import functional
from functrain.holes import is_hole
from functrain.tree import Tree

Tensors = dict[str, Tensor]
_HOLE = cast("Tensor", ())  # stands where a parameter has no update


class FaceState(NamedTuple):
    """The state of a torch optimizer, as a tree."""

    groups: list[dict[str, Tree]]  # of each group: its numbers, 0-dim float64; `lr` is called `learning_rate`
    params: dict[str, State]  # of each parameter: what torch has for it, and the counters that torch has not
    whole: Tree  # the state of a rule that sees all parameters at once; () for a local one


class Part(NamedTuple):
    """A group, as the pure form knows it."""

    params: Mapping[str, Tensor]  # those of the optimizer, by the names that the pure form has for them
    group: Mapping[str, object]
    make: Callable[..., GradientTransformation]  # the rule of the group's values
    traits: Traits

    def numbers(self) -> dict[str, Tree]:
        """The group's numbers as they are now, as tensors."""
        return numbers_of(values_of(self.group), self.traits.static)[0]

    def layout(self, rule: GradientTransformation) -> Layout:
        """Where the rule's state lies."""
        return layout_of(rule, dict(list(self.params.items())[:1]), self.traits.torch_names, self.traits.hidden)


def pure_form(parts: Sequence[Part], states: Mapping[Tensor, State], whole: Whole) -> GradientTransformation:
    """See `Face.as_transform`.

    Args:
        parts: the groups.
        states: what the optimizer has for each parameter.
        whole: and for all of them.
    """
    rules = [part.make(**values_of(part.group)) for part in parts]
    fixed = [numbers_of(values_of(part.group), part.traits.static)[1] for part in parts]
    layouts = [part.layout(rule) for part, rule in zip(parts, rules, strict=True)]  # numbers do not shape them
    needs: frozenset[str] = frozenset().union(*(rule.needs for rule in rules))
    local = all(rule.local for rule in rules) and not needs
    if not local:
        check_equal("as_transform", rules)

    def first_each(params: Tensors) -> FaceState:
        first: dict[str, State] = {}
        for part in parts:
            first |= _start(part, {name: params[name] for name in part.params if name in params}, states)
        return FaceState([part.numbers() for part in parts], first, ())

    def first_whole(params: Tensors) -> FaceState:
        return FaceState([part.numbers() for part in parts], {}, whole.state_for(rules[0], params))

    def update_each(grads: Tensors, state: FaceState, params: Tensors) -> tuple[Tensors, FaceState]:
        updates: Tensors = dict.fromkeys(grads, _HOLE)  # what no group has stays as it is
        after = dict(state.params)
        for part, layout, numbers, others in zip(parts, layouts, state.groups, fixed, strict=True):
            mine = {name: params[name] for name in part.params if name in grads and not is_hole(grads[name])}
            if mine:
                rule = part.make(**values_from(numbers, others))
                new, changed = _advance(part, rule, layout, mine, grads, state.params)
                updates |= new
                after |= changed
        return updates, state._replace(params=after)

    def update_whole(grads: Tensors, state: FaceState, params: Tensors, **extra: object) -> tuple[Tensors, FaceState]:
        rule = parts[0].make(**values_from(state.groups[0], fixed[0]))  # all groups have equal values
        mine = {name: params[name] for part in parts for name in part.params if name in params}
        new, after = rule.update({name: grads[name] for name in mine}, state.whole, mine, **extra)
        return {**dict.fromkeys(grads, _HOLE), **new}, state._replace(whole=after)

    if local:
        return GradientTransformation(first_each, update_each, local=True)
    return GradientTransformation(first_whole, update_whole, needs)


def put_back(parts: Sequence[Part], states: MutableMapping[Tensor, State], whole: Whole, state: FaceState) -> None:
    """See `Face.take_back`."""
    for part in parts:
        for name, p in part.params.items():
            known = state.params.get(name, {})
            kept = {key: x.detach().clone() for key, x in known.items() if key not in part.traits.hidden}
            if kept and _stepped(known, part.traits.hidden):
                states[p] = kept
    whole.load(dict(zip(tree.keys(state.whole), tree.leaves(state.whole), strict=True)))


def _advance(
    part: Part,
    rule: GradientTransformation,
    layout: Layout,
    params: Tensors,
    grads: Tensors,
    states: Mapping[str, State],
) -> tuple[Tensors, dict[str, State]]:
    """The updates of some parameters, and their states afterwards."""
    traits = part.traits
    updates: Tensors = {}
    after: dict[str, State] = {}
    for names in _cohorts(layout, list(params), states):
        columns = layout.gather(names, [states[name] for name in names], fresh=False)
        each = {key: {n: traits.seen(x) for n, x in column.items()} for key, column in columns.each.items()}
        g = {name: traits.gradient(grads[name]) for name in names}
        joined = layout.join(names, Columns(columns.shared, each))
        u, state = rule.update(g, joined, {name: traits.seen(params[name]) for name in names})
        new = layout.split(state)
        shown = {key: {n: traits.shown(x, params[n]) for n, x in col.items()} for key, col in new.each.items()}
        shared = {key: _as_kept(key, x, columns.shared[key]) for key, x in new.shared.items()}
        updates |= {name: traits.shown(u[name], params[name]) for name in names}
        scattered = layout.scatter(names, Columns(shared, shown), whole=True)
        after |= {name: {**states[name], **s} for name, s in zip(names, scattered, strict=True)}
    return updates, after


def _cohorts(layout: Layout, names: Sequence[str], states: Mapping[str, State]) -> list[list[str]]:
    """Names of parameters with equal counters; each alone where counters cannot be read."""
    if functional():
        return [[name] for name in names]
    found: dict[Hashable, list[str]] = {}
    for name in names:
        found.setdefault(layout.cohort(states[name], False), []).append(name)
    return list(found.values())


def _start(part: Part, params: Tensors, states: Mapping[Tensor, State]) -> dict[str, State]:
    """The states of a group's parameters: what is known, and beginnings for the rest."""
    values = values_of(part.group)
    rule = part.make(**values)
    built = Built(values, rule, part.layout(rule))
    fresh = dict(zip(params, first_states(built, part.traits, params, whole=True), strict=True))
    return {n: {**s, **_known(s, states.get(part.params[n], {}), built.layout)} for n, s in fresh.items()}


def _known(fresh: State, known: State, layout: Layout) -> State:
    """Copies of what is known; a hidden counter stands past the first step as soon as anything is."""
    copies = {key: x.clone() for key, x in known.items() if key in fresh}
    past = {key: torch.full_like(fresh[key], n) for key, n in layout.hidden.items() if key in fresh and known}
    return {**copies, **past}


def _stepped(state: State, hidden: Sequence[str]) -> bool:
    """False for a parameter that has only its beginning."""
    counters = [state[key] for key in (STEP, *hidden) if key in state]
    return not counters or any(bool(x > 0) for x in counters)


def _as_kept(key: str, x: Tensor, old: Tensor) -> Tensor:
    return x if key == STEP else x.to(old.dtype)
