"""Around: a transformation whose hyper-parameters are state.

The hyper-parameters of a rule are numbers in its formula. Injected, they are 0-dim tensors in its state, where a
program can read and change them, a schedule drive them, and `torch.func.vmap` map over them. The rule is built anew
from them at each update; being data and cheap, it does not mind.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from functrain.base import GradientTransformation
from functrain.combinators.parts import update_part
from functrain.counter import first_count, increment, wide
from functrain.record import Call, Recorded
from functrain.schedules import Schedule, as_schedule, value_at
from functrain.tree import Tree


class InjectHyperparamsState(NamedTuple):
    """The state of a transformation, with its hyper-parameters."""

    count: Tensor  # (), int32: updates so far
    hyperparams: dict[str, Tensor]  # (): those of the last update; before the first, the first one's
    inner_state: Tree  # the state of the transformation that they make


def inject_hyperparams(
    inner_factory: Callable[..., GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: torch.dtype | None = None,
) -> Injection:
    """The factory whose transformations keep their hyper-parameters in their state.

        tx = inject_hyperparams(adamw)(learning_rate=0.001)
        opt_state = tree.set(opt_state, learning_rate=0.0005)       # obeyed at the next update

    It takes the arguments of `inner_factory`, and computes the same updates, bit for bit. A number becomes a 0-dim
    tensor; a schedule may stand for it, and then decides at each update, whatever was set.

    Which arguments can be numbers, their annotations say: those that include `float`. All others stay as they are: an
    `int` that counts, masks and other functions; so do bools and None. An argument without annotation is taken for what
    its value suggests: a number, or a function for a schedule, unless `static_args` names it.

    Args:
        inner_factory: a factory of transformations, such as `adamw`.
        static_args: names of arguments that stay as they are.
        hyperparam_dtype: of the tensors. None is the widest float of the device, in which they are the Python numbers.
            An argument that is a tensor keeps its own.

    Raises:
        ValueError: static_args names an argument that inner_factory does not have.
    """
    names = (static_args,) if isinstance(static_args, str) else tuple(static_args)
    options: dict[str, object] = {}
    if names:
        options["static_args"] = static_args if isinstance(static_args, str) else names
    if hyperparam_dtype:
        options["hyperparam_dtype"] = hyperparam_dtype
    return Injection(inner_factory, names, hyperparam_dtype, Call(inject_hyperparams, (inner_factory,), options))


class Injection(Recorded):
    """What `inject_hyperparams` returns: a factory that prints and pickles as the call that made it."""

    def __init__(
        self,
        inner_factory: Callable[..., GradientTransformation],
        static_args: tuple[str, ...],
        hyperparam_dtype: torch.dtype | None,
        spec: Call,
    ) -> None:
        super().__init__(inner_factory, spec)
        self.inner_factory, self.dtype = inner_factory, hyperparam_dtype
        self.signature = _signature(inner_factory)
        parameters = self.signature.parameters
        for name in static_args:
            if name not in parameters:
                factory = getattr(inner_factory, "__name__", "the factory")
                raise ValueError(
                    f"inject_hyperparams: {factory} has no argument {name!r} to be static; "
                    f"hint: it has {', '.join(parameters)}"
                )
        self.dynamic = {name for name, p in parameters.items() if name not in static_args and _may_be_number(p)}

    def __call__(self, *args: object, **kwargs: object) -> GradientTransformation:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        static: dict[str, object] = {}
        numbers: dict[str, float | Tensor] = {}
        schedules: dict[str, Schedule] = {}
        for name, value in bound.arguments.items():
            if self.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                static |= value
            elif name in self.dynamic and isinstance(value, float | int | Tensor) and not isinstance(value, bool):
                numbers[name] = value
            elif name in self.dynamic and callable(value):
                schedules[name] = as_schedule(value)
            else:
                static[name] = value

        return _injected(self.inner_factory, static, numbers, schedules, self.dtype, Call(self, args, kwargs))


def _injected(
    factory: Callable[..., GradientTransformation],
    static: Mapping[str, object],
    numbers: Mapping[str, float | Tensor],
    schedules: Mapping[str, Schedule],
    dtype: torch.dtype | None,
    spec: Call,
) -> GradientTransformation:
    def scheduled(count: Tensor) -> dict[str, Tensor]:
        kind = dtype or wide(count.device)
        return {name: value_at(f"{spec.name}: {name}", f, count).to(kind) for name, f in schedules.items()}

    def build(hyperparams: Mapping[str, float | Tensor]) -> GradientTransformation:
        # Copies, so that no state inside shares memory with the hyper-parameters beside it.
        own = {name: h.clone() if isinstance(h, Tensor) else h for name, h in hyperparams.items()}
        return factory(**static, **own)

    def init(params: Tree) -> InjectHyperparamsState:
        count = first_count(params)
        kind = dtype or wide(count.device)
        hyperparams = {
            name: h.to(count.device, copy=True) if isinstance(h, Tensor) else torch.full_like(count, h, dtype=kind)
            for name, h in numbers.items()
        }
        hyperparams |= scheduled(count)
        return InjectHyperparamsState(count, hyperparams, build(hyperparams).init(params))

    def update(
        g: Tree, state: InjectHyperparamsState, params: Tree | None = None, **extra: object
    ) -> tuple[Tree, InjectHyperparamsState]:
        hyperparams = state.hyperparams | scheduled(state.count)
        u, inner_state = update_part(build(hyperparams), g, state.inner_state, params, extra)
        return u, InjectHyperparamsState(increment(state.count), hyperparams, inner_state)

    # Built once from the numbers as they are: their values are checked, and what the rule needs is known.
    example = build({**numbers, **scheduled(torch.zeros((), dtype=torch.int32))})
    return GradientTransformation(init, update, example.needs, example.local, spec)


def _signature(factory: Callable[..., object]) -> inspect.Signature:
    try:
        return inspect.signature(factory, eval_str=True)
    except NameError:  # an annotation that exists for type checkers only
        return inspect.signature(factory)


def _may_be_number(parameter: inspect.Parameter) -> bool:
    hint: object = parameter.annotation
    unknown = hint is inspect.Parameter.empty or hint is Any or isinstance(hint, str)
    return unknown or hint is float or float in get_args(hint)
