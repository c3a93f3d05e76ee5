"""Names of leaves: the path that people read and the key that files use; fields found and changed by name.

A container is a dict, a list, a tuple or a NamedTuple; anything else is a leaf. The functions here walk in Python,
since compiled code cannot ask optree for paths.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


class Entry(NamedTuple):
    """One step from a container to a child."""

    kind: Literal["field", "index", "key"]
    name: object  # the field's name, the position, or the dict's key


Path = tuple[Entry, ...]


def children(node: object) -> list[tuple[Entry, object]] | None:
    """A container's children in order; None for a leaf. A hole, `()` or None, is a container without children."""
    kind = type(node)
    if kind is dict or kind is OrderedDict or kind is defaultdict:
        return [(Entry("key", k), v) for k, v in cast("dict[object, object]", node).items()]  # type() does not narrow
    if isinstance(node, tuple) and hasattr(kind, "_fields"):
        return [(Entry("field", f), v) for f, v in zip(kind._fields, list(node), strict=True)]
    if kind is list or kind is tuple:
        return [(Entry("index", i), v) for i, v in enumerate(cast("Sequence[object]", node))]  # type() does not narrow
    return [] if node is None else None


def rebuild(node: T, values: Sequence[object]) -> T:
    """A container like `node` with these children instead."""
    if isinstance(node, defaultdict):
        made: object = defaultdict(node.default_factory, zip(node, values, strict=True))
    elif isinstance(node, dict):
        made = type(node)(zip(node, values, strict=True))
    elif isinstance(node, tuple) and hasattr(node, "_fields"):
        made = cast("Callable[..., object]", type(node))(*values)  # a NamedTuple's constructor takes its fields
    else:
        made = type(node)(values) if isinstance(node, list | tuple) else node
    return cast("T", made)  # the same type by construction


def walk(node: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """(path, leaf) for every leaf, in order."""
    below = children(node)
    if below is None:
        yield path, node
    else:
        for entry, child in below:
            yield from walk(child, (*path, entry))


def readable(path: Path) -> str:
    """`blocks.0.weight`; the empty string for the root."""
    return ".".join(str(entry.name) for entry in path)


def paths(tree: object) -> list[str]:
    """The path of every leaf, in order: the strings that `mask_by` sees.

    >>> import torch
    >>> paths({"b": [torch.ones(2), torch.ones(3)], "a.c": torch.ones(())})
    ['b.0', 'b.1', 'a.c']
    """
    return [readable(path) for path, _ in walk(tree)]


def keys(tree: object) -> list[str]:
    r"""The key of every leaf, in order: a path in which nothing is ambiguous.

    Backslash is the mark: `\\` and `\.` are characters of a name, `\7` is the string "7" where `7` is a position,
    `\i7` the int 7, `\e` the empty string, `\r` before the repr of anything else. Distinct paths have distinct keys.

    >>> keys({"a.b": 1, "a": {"b": 2}, "7": 3, 7: 4, "": 5})
    ['a\\.b', 'a.b', '\\7', '\\i7', '\\e']
    """
    return [".".join(_escape(entry) for entry in path) for path, _ in walk(tree)]


def _escape(entry: Entry) -> str:
    if entry.kind != "key":
        return str(entry.name)
    if not isinstance(entry.name, str):
        mark = r"\i" if type(entry.name) is int else r"\r"
        return mark + repr(entry.name).replace("\\", "\\\\").replace(".", r"\.")
    if not entry.name:
        return r"\e"
    escaped = entry.name.replace("\\", "\\\\").replace(".", r"\.")
    return "\\" + escaped if entry.name[0].isdigit() else escaped


def get(tree: object, name: str) -> object:
    """The field or dict entry called `name`, at any depth: the shallowest.

    Raises:
        KeyError: there is none, or several lie equally deep.
    """
    level: list[tuple[Path, object]] = [((), tree)]
    while level:
        below = [((*path, entry), child) for path, node in level for entry, child in children(node) or ()]
        found = [(path, child) for path, child in below if path[-1].name == name and path[-1].kind != "index"]
        if len(found) > 1:
            places = ", ".join(readable(path) for path, _ in found)
            raise KeyError(f"tree.get: {name!r} is found {len(found)} times equally deep: {places}")
        if found:
            return found[0][1]
        level = below
    raise KeyError(f"tree.get: no field {name!r} in the tree")


def set(tree: T, **fields: object) -> T:
    """A copy of the tree in which every field or dict entry of these names, at any depth, has the new value.

    A number replaces a tensor as a tensor of the same dtype, device and shape.

    Raises:
        KeyError: a name is nowhere in the tree.
    """
    seen: dict[str, int] = dict.fromkeys(fields, 0)

    def change(node: object) -> object:
        below = children(node)
        if below is None:
            return node
        values = []
        for entry, child in below:
            if entry.kind != "index" and entry.name in fields:
                name = str(entry.name)
                seen[name] += 1
                values.append(_like(child, fields[name]))
            else:
                values.append(change(child))
        return rebuild(node, values)

    changed = change(tree)
    for name, count in seen.items():
        if not count:
            raise KeyError(f"tree.set: no field {name!r} in the tree")
    return cast("T", changed)  # rebuilt with the same containers


def _like(old: object, new: object) -> object:
    if isinstance(old, Tensor) and children(new) is None:
        return torch.as_tensor(new, dtype=old.dtype, device=old.device).expand(old.shape).clone()
    return new
