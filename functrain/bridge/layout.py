"""A rule's state, parameter by parameter.

A rule keeps one tree for all parameters; torch keeps a flat dict of tensors for each. A `Layout` knows where in the
tree each entry of such a dict belongs. Entries are of two kinds: tensors of a parameter's own (moments), and numbers
that a rule shares among its parameters (counters), of which each parameter has a copy here. So parameters whose
numbers differ, because one had no gradient for a while, go through the rule one cohort at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from functrain.base import GradientTransformation
from functrain.holes import is_hole
from functrain.paths import Path, children, readable, rebuild
from functrain.tree import Tree

State = dict[str, Tensor]  # what a parameter has
STEP = "step"  # torch's counter: a float, where a rule has an int32


@dataclass(frozen=True)
class Field:
    """A place in a rule's state."""

    key: str  # the entry of a parameter's dict
    each: bool  # a tensor for each parameter; else a number that they share


class Columns(NamedTuple):
    """The state of a cohort: what its parameters share, and what each has, by name."""

    shared: dict[str, Tensor]
    each: dict[str, dict[str, Tensor]]  # by entry, then by parameter; without those that lack it


@dataclass(frozen=True)
class Layout:
    """The shape of a rule's state, with a Field at each place."""

    template: Tree
    fields: tuple[Field, ...]
    hidden: Mapping[str, int]  # numbers that torch does not keep: what they are once there is any state

    def join(self, names: Sequence[str], columns: Columns) -> Tree:
        """The rule's state over `{name: parameter}`."""

        def put(node: Tree) -> Tree:
            if isinstance(node, Field):
                if not node.each:
                    x = columns.shared[node.key]
                    return x.to(torch.int32) if node.key == STEP else x
                column = columns.each[node.key]
                return {name: column.get(name, ()) for name in names}
            below = children(node)
            return node if not below else rebuild(node, [put(child) for _, child in below])

        return put(self.template)

    def split(self, state: Tree) -> Columns:
        """The inverse of `join`."""
        columns = Columns({}, {})

        def take(node: Tree, part: Tree) -> None:
            if isinstance(node, Field):
                if node.each:
                    entries = cast("dict[str, Tensor]", part).items()  # as its template says
                    columns.each[node.key] = {name: x for name, x in entries if not is_hole(x)}
                else:
                    columns.shared[node.key] = cast("Tensor", part)  # as its template says
                return
            for (_, below), (_, child) in zip(children(node) or (), children(part) or (), strict=True):
                take(below, child)

        take(self.template, state)
        return columns

    def gather(self, names: Sequence[str], states: Sequence[State], fresh: bool) -> Columns:
        """The columns of these parameters, which agree in what they share."""
        columns = Columns({}, {})
        for field in self.fields:
            if field.each:
                rows = zip(names, states, strict=True)
                columns.each[field.key] = {name: s[field.key] for name, s in rows if field.key in s}
            elif field.key in self.hidden and field.key not in states[0]:
                columns.shared[field.key] = torch.tensor(0 if fresh else self.hidden[field.key], dtype=torch.int32)
            else:
                columns.shared[field.key] = states[0][field.key]
        return columns

    def scatter(self, names: Sequence[str], columns: Columns, whole: bool = False) -> list[State]:
        """The inverse of `gather`: a dict for each parameter, with numbers of its own; the hidden ones if `whole`."""
        states: list[State] = [{} for _ in names]
        for field in self.fields:
            if field.each:
                for name, state in zip(names, states, strict=True):
                    if name in columns.each[field.key]:
                        state[field.key] = columns.each[field.key][name]
            elif whole or field.key not in self.hidden:
                x = columns.shared[field.key]
                for state in states:
                    state[field.key] = as_step(x) if field.key == STEP else x.clone()
        return states

    def cohort(self, state: State, fresh: bool) -> Hashable:
        """What parameters must have in common to go through the rule together."""
        numbers = [str(state[field.key].tolist()) for field in self.fields if not field.each and field.key in state]
        return fresh, *numbers, *[field.key in state for field in self.fields if field.each]


def layout_of(
    rule: GradientTransformation, params: Mapping[str, Tensor], torch_names: Mapping[str, str], hidden: Iterable[str]
) -> Layout:
    """The layout of a rule's state over these parameters. Allocates nothing.

    Args:
        rule: the rule.
        params: some parameters by name; one is enough where all are treated alike.
        torch_names: what torch calls a field. Another goes by its own name, or by its path where two have one name.
        hidden: fields that torch does not keep; they count, and say only whether this is the first update.
    """
    found: list[tuple[Path, bool]] = []

    def look(node: Tree, path: Path) -> None:
        if type(node) is dict and node.keys() == params.keys():
            if any(children(x) for x in node.values()):
                raise TypeError(
                    f"{name_of(rule)}: its state has a container for each parameter at {readable(path)!r}; "
                    "hint: a torch optimizer keeps tensors: one tree like the parameters for each of them"
                )
            found.append((path, True))
        elif (below := children(node)) is None:
            found.append((path, False))
        else:
            for entry, child in below:
                look(child, (*path, entry))

    meta = {name: torch.empty(p.shape, dtype=p.dtype, device="meta") for name, p in params.items()}
    state = rule.init(meta)
    look(state, ())

    lasts = [str(path[-1].name) if path else "state" for path, _ in found]
    keys = [
        torch_names.get(last) or (last if lasts.count(last) == 1 else readable(path))
        for last, (path, _) in zip(lasts, found, strict=True)
    ]
    fields = {path: Field(key, each) for key, (path, each) in zip(keys, found, strict=True)}

    def mark(node: Tree, path: Path) -> Tree:
        if path in fields:
            return fields[path]
        below = children(node)
        return node if not below else rebuild(node, [mark(child, (*path, entry)) for entry, child in below])

    return Layout(mark(state, ()), tuple(fields.values()), dict.fromkeys(hidden, 1))


def as_step(count: Tensor) -> Tensor:
    """torch's counter: a float of the default dtype."""
    return count.to(torch.get_default_dtype(), copy=True)


def name_of(rule: GradientTransformation) -> str:
    """What messages call it."""
    return rule.spec.name if rule.spec else "transformation"
