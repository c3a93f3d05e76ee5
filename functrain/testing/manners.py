"""What is asked of a rule before any law: that it is one, returns a pair, and runs; and how a broken law is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from functrain.base import GradientTransformation
from functrain.hints import instead_of_rule
from functrain.tree import Tree


class LawBroken(AssertionError):
    """A transformation breaks a law. The message names the law, the transformation, the leaf and the numbers."""

    def __init__(self, law: str, tx: GradientTransformation, what: str) -> None:
        super().__init__(f"{law}: {tx!r} {what}")


def update(
    tx: GradientTransformation, grads: Tree, state: Tree, params: Tree, extra: dict[str, object]
) -> tuple[Tree, Tree]:
    """What the rule's update returns, which is a pair: what has another length, or is a dict of two, is an error."""
    given: object = tx.update(grads, state, params, **extra)
    if isinstance(given, tuple | list) and len(given) == 2:
        return given[0], given[1]
    what = f"{a_kind(given)} of {len(given)}" if isinstance(given, tuple | list) else a_kind(given)
    raise TypeError(
        f"{tx!r}: update returned {what}, not (updates, state); hint: a rule without memory returns (updates, ())"
    )


def check_rule(where: str, tx: GradientTransformation) -> None:
    """Raise TypeError for what is no transformation, such as a factory that was not called."""
    if not isinstance(tx, GradientTransformation):
        raise TypeError(f"{where}: tx is {a(instead_of_rule(tx))}")


@contextmanager
def possible(law: str, tx: GradientTransformation, how: str) -> Iterator[None]:
    """An error in here breaks the law: the same rule ran without one when it was not mapped (or what `how` says)."""
    try:
        yield
    except Exception as error:
        first = str(error).partition("\n")[0].removeprefix("vmap: ")
        raise LawBroken(law, tx, f"cannot be {how}: {first}") from error


def a(noun: str) -> str:
    """The noun with its article."""
    return f"an {noun}" if noun[0].lower() in "aeiou" else f"a {noun}"


def a_kind(x: object) -> str:
    """What kind of thing x is."""
    return "None" if x is None else a(type(x).__name__)
