"""Calls that are remembered: the `repr` and the pickle of what a factory made.

An optimizer is an expression, `chain(clip_by_global_norm(1.0), adamw(0.001))`. What is remembered here is that
expression: the factory and its arguments. Printing shows it, pickling stores it, and unpickling calls it again.
"""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """A recorded call of a factory."""

    factory: Callable[..., object]
    args: tuple[object, ...]
    kwargs: dict[str, object]

    @property
    def name(self) -> str:
        """The factory's own name, for messages."""
        return getattr(self.factory, "__name__", "transformation")

    def __repr__(self) -> str:
        arguments = [show(a) for a in self.args] + [f"{k}={show(v)}" for k, v in self.kwargs.items()]
        return f"{show(self.factory)}({', '.join(arguments)})"


def show(x: object) -> str:
    """An argument as it was written: functions by name, containers entry by entry."""
    if isinstance(x, Tensor):
        return f"torch.tensor({x.tolist()}, dtype={x.dtype})"
    if inspect.isroutine(x):
        module, name = getattr(x, "__module__", None) or "", getattr(x, "__qualname__", repr(x))
        return f"schedules.{name}" if module.startswith("functrain.schedules.") else name.rpartition(".")[2]
    if type(x) is dict:
        return "{" + ", ".join(f"{show(k)}: {show(v)}" for k, v in x.items()) + "}"
    if type(x) is list:
        return "[" + ", ".join(map(show, x)) + "]"
    if type(x) is tuple:
        return "(" + ", ".join(map(show, x)) + ("," if len(x) == 1 else "") + ")"
    return repr(x)


class Recorded:
    """A function that knows the call it came from: a schedule, a mask."""

    def __init__(self, function: Callable[..., object], spec: Call) -> None:
        functools.update_wrapper(self, function)  # first: it copies the attributes of a function that is Recorded too
        self.function, self.spec = function, spec

    def __call__(self, *args: object) -> object:
        return self.function(*args)

    def __repr__(self) -> str:
        return repr(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recorded) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.spec.name)  # not of the arguments: 1 == 1.0, and lists have no hash

    def __copy__(self) -> Recorded:
        return self

    def __deepcopy__(self, memo: object) -> Recorded:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        return replay(self.spec)


def replay(spec: Call) -> tuple[object, ...]:
    """What pickle needs to make the call again; PicklingError if a function in it has no name to be found by."""
    check_picklable(spec.name, spec.factory)
    for argument in (*spec.args, *spec.kwargs.values()):
        check_picklable(spec.name, argument)
    return _again, (spec.factory, spec.args, spec.kwargs)


def _again(factory: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    return factory(*args, **kwargs)


def check_picklable(name: str, argument: object) -> None:
    """Raise PicklingError for a lambda or a local function."""
    qualified = getattr(argument, "__qualname__", "")
    if inspect.isroutine(argument) and ("<lambda>" in qualified or "<locals>" in qualified):
        raise pickle.PicklingError(
            f"{name}: cannot pickle the function {qualified}; hint: give one that is defined at the top of a module"
        )
