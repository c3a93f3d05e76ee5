"""Any rule as a torch optimizer: `TorchOptimizer(model.parameters(), ft.lion, learning_rate=1e-3)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast, get_args

from torch import Tensor

from functrain.base import GradientTransformation
from functrain.bridge.face import Face, Params
from functrain.bridge.traits import Traits
from functrain.bridge.values import RATE
from functrain.combinators.chain import chain
from functrain.record import show
from functrain.transforms.scale import scale

TORCH_NAMES = {"mu": "exp_avg", "nu": "exp_avg_sq", "trace": "momentum_buffer", "learning_rate": "lr"}
Factory = Callable[..., GradientTransformation]


@dataclass(frozen=True)
class Recipe:
    """How the values of a group make a rule."""

    factory: Factory
    fixed: dict[str, object]  # arguments that are no plain values: masks, schedules, other rules
    has_rate: bool  # lr is the rule's learning rate; else it multiplies what the rule makes

    def __call__(self, lr: float | Tensor, **values: object) -> GradientTransformation:
        """The rule.

        Raises:
            TypeError: a group has a `learning_rate`.
        """
        if values.get(RATE) is not None:  # None is the argument of a rule that then has no rate
            raise TypeError(
                f"TorchOptimizer: a group has {RATE!r}: {values[RATE]}; hint: the group's key is 'lr', whatever the "
                "rule calls its rate"
            )
        names = inspect.signature(self.factory).parameters
        arguments = {**self.fixed, **{name: value for name, value in values.items() if name in names}}
        if self.has_rate and "lr" in names:
            return self.factory(**arguments, lr=lr)
        if self.has_rate:
            return self.factory(**arguments, **{RATE: lr})
        return chain(self.factory(**arguments), scale(lr))


class TorchOptimizer(Face):
    """A `torch.optim.Optimizer` that runs exactly the rule given.

        optimizer = TorchOptimizer(model.parameters(), ft.lion, learning_rate=1e-3, weight_decay=0.1)

    Its groups hold `lr`, which is the rule's learning rate, and the other hyper-parameters by their own names; a group
    may have values of its own, and schedulers of torch drive `lr`. What is no plain value (a mask, a schedule, another
    rule) is the same for all groups. A rule without a learning rate, or with a schedule for one, has `lr = 1.0`, which
    multiplies its updates.

    Masks by path see the parameters' names where they were given: `TorchOptimizer(model.named_parameters(), ...)`.

    Args:
        params: parameters, pairs (name, parameter), or groups.
        rule: a factory such as `ft.lion`, or a transformation, such as `ft.chain(...)` makes.
        compile: compile the update; a rule with masks, over parameters with names, once for each of them.
        **hyperparameters: the factory's arguments; `lr` and `learning_rate` are one, whichever the factory has.

    Raises:
        TypeError: the rule is neither, an argument is missing or unknown, or a group has a `learning_rate`.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        params: Params,
        rule: Factory | GradientTransformation,
        *,
        compile: bool = False,
        **hyperparameters: object,
    ) -> None:
        recipe, defaults = read_rule(rule, hyperparameters)
        by_name = any(_asks(value) for value in recipe.fixed.values()) or _asks(getattr(recipe.factory, "tx", None))
        self.rule, self.traits = recipe, Traits(TORCH_NAMES, by_name=by_name, static=_counting(recipe, defaults))
        super().__init__(params, defaults, compile)

    def __repr__(self) -> str:
        name = type(self).__name__
        return super().__repr__().replace(f"{name} (", f"{name} of {show(self.recipe.factory)} (", 1)

    @property
    def recipe(self) -> Recipe:
        """How a group's values make the rule."""
        assert isinstance(self.rule, Recipe)  # set above, and by unpickling
        return self.rule

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "rule": self.rule, "traits": self.traits}


def _counting(recipe: Recipe, values: Mapping[str, object]) -> frozenset[str]:
    """The values that shape the rule: integers, by the factory's own annotations. The rate is never one."""
    hints = inspect.signature(recipe.factory).parameters
    return frozenset(name for name in values if name != "lr" and name in hints and _counts(hints[name].annotation))


def _counts(annotation: object) -> bool:
    """True for int, and for what may be an int or something that is no number."""
    if isinstance(annotation, str):
        return "int" in annotation.split(" | ") and "float" not in annotation
    kinds = get_args(annotation) or (annotation,)
    return int in kinds and float not in kinds


def _asks(value: object) -> bool:
    """True if an argument may treat parameters by their names: a mask, or a rule with one."""
    if isinstance(value, GradientTransformation):
        return value.spec is None or any(_asks(x) for x in (*value.spec.args, *value.spec.kwargs.values()))
    return isinstance(value, dict | list) or (callable(value) and not show(value).startswith("schedules."))


def read_rule(rule: Factory | GradientTransformation, given: Mapping[str, object]) -> tuple[Recipe, dict[str, object]]:
    """The recipe, and the values that a group has.

    Raises:
        TypeError: see TorchOptimizer.
    """
    if isinstance(rule, GradientTransformation):
        return _read_made(rule, given)
    if not callable(rule):
        raise TypeError(
            f"TorchOptimizer: rule is a {type(rule).__name__}, neither a factory nor a GradientTransformation; "
            "hint: TorchOptimizer(model.parameters(), ft.lion, learning_rate=1e-3)"
        )
    arguments, parameters = dict(given), inspect.signature(rule).parameters
    if "lr" in parameters and RATE in parameters:
        raise TypeError(
            f"TorchOptimizer: {show(rule)} has both lr and learning_rate, and a group has one rate; "
            "hint: give one of the arguments another name"
        )
    if "lr" in arguments and RATE in arguments:
        raise TypeError("TorchOptimizer: lr and learning_rate are both given, and they are one")
    own = "lr" if "lr" in parameters else RATE  # what the rule calls it
    for name in {"lr", RATE} & arguments.keys():
        arguments[own] = arguments.pop(name)
    rate = arguments.pop(own) if own in arguments and own not in parameters else None
    for name in arguments:
        if name not in parameters:
            raise TypeError(
                f"TorchOptimizer: {show(rule)} has no argument {name!r}; hint: it has {', '.join(parameters)}"
            )
    for name, parameter in parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            arguments.setdefault(name, parameter.default)
        elif name not in arguments:
            hint = (
                "give a transformation that is made: TorchOptimizer(params, ft.chain(...))"
                if parameter.kind is inspect.Parameter.VAR_POSITIONAL
                else f"TorchOptimizer(params, {show(rule)}, {name}=...)"
            )
            raise TypeError(f"TorchOptimizer: {show(rule)} needs {name}; hint: {hint}")
    lr = arguments.pop(own) if _plain(arguments.get(own, ())) and arguments.get(own) is not None else None
    fixed = {name: _by_name(value) for name, value in arguments.items() if not _plain(value)}
    values = {name: value for name, value in arguments.items() if _plain(value)}
    if lr is not None:
        return Recipe(rule, fixed, True), {"lr": lr, **values}
    if "lr" in values:  # it is None, and a group's lr a factor
        fixed["lr"] = values.pop("lr")
    return Recipe(rule, fixed, False), {"lr": 1.0 if rate is None else rate, **values}


def _read_made(tx: GradientTransformation, given: Mapping[str, object]) -> tuple[Recipe, dict[str, object]]:
    """A transformation that is made: by the call that made it, where its arguments have names."""
    spec = tx.spec
    if spec is not None:
        kinds = {p.kind for p in inspect.signature(spec.factory).parameters.values()}
        if not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            bound = inspect.signature(spec.factory).bind(*spec.args, **spec.kwargs).arguments
            return read_rule(cast("Factory", spec.factory), {**bound, **given})  # it made tx
    for name in given:
        if name != "lr":
            raise TypeError(f"TorchOptimizer: {tx} is made, and has no argument {name!r}")
    return Recipe(_Made(tx), {}, False), {"lr": given.get("lr", 1.0)}


@dataclass(frozen=True)
class _Made:
    """The factory of one transformation."""

    tx: GradientTransformation

    def __call__(self) -> GradientTransformation:
        return self.tx

    def __repr__(self) -> str:
        return repr(self.tx)


@dataclass(frozen=True)
class _ByName:
    """A mask, or labels, as a function of the parameters: the entries of those that are there."""

    entries: dict[str, object]

    def __call__(self, params: Mapping[str, object]) -> dict[str, object]:
        for name in params:
            if name not in self.entries:
                raise ValueError(
                    f"TorchOptimizer: the mask has no entry for parameter {name!r}; hint: name the parameters as the "
                    "mask does: TorchOptimizer(model.named_parameters(), ...)"
                )
        return {name: self.entries[name] for name in params}


def _by_name(value: object) -> object:
    """A dict of bools or labels as a function, since a rule sees the parameters in parts; others as they are."""
    flat = isinstance(value, dict) and all(isinstance(x, bool | str) for x in value.values())
    return _ByName(cast("dict[str, object]", value)) if flat else value


def _plain(value: object) -> bool:
    """True for what a group may hold, and `torch.load(weights_only=True)` reads."""
    if isinstance(value, tuple):
        return not hasattr(value, "_fields") and all(_plain(x) for x in value)
    return value is None or isinstance(value, bool | int | float | str | Tensor)
