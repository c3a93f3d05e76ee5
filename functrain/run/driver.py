"""What moves beside the pure step: an optimizer and a scheduler of torch's kind, whose values a run obeys.

A transformation has everything in its state, and there is nothing to do. A torch optimizer has a life outside: a
scheduler, a callback or the user changes its groups between updates. So before each update the groups' numbers go into
the state, and whenever somebody may look, the state goes back into the optimizer.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from functrain import tree
from functrain.base import GradientTransformation
from functrain.bridge.face import Face
from functrain.bridge.factories import from_torch
from functrain.bridge.lbfgs import LBFGS
from functrain.bridge.pure import FaceState
from functrain.bridge.torch_optimizer import TorchOptimizer
from functrain.bridge.values import has_tensor, numbers_of, values_of
from functrain.checkpoint import CheckpointError, Contents
from functrain.combinators.chain import chain
from functrain.record import show
from functrain.run.encoding import decode, encode
from functrain.run.recipe import outline
from functrain.run.scheduler import Scheduler, called, check_schedule, checked, name_of
from functrain.state import TrainState
from functrain.step import Metrics
from functrain.transforms.averages import ParamsEmaState, params_ema

Meta = dict[str, object]
LOOPS = frozenset({"foreach", "fused", "capturable", "differentiable"})  # how torch loops, and not what it computes


class Driver:
    """A transformation: nothing moves beside it.

    Args:
        rule: the transformation.
        ema_decay: of an average of the parameters, which is then kept behind the rule; None keeps none.
    """

    def __init__(self, rule: GradientTransformation, ema_decay: float | None) -> None:
        self.rule, self.averages = rule, ema_decay is not None
        self.tx = rule if ema_decay is None else chain(rule, params_ema(ema_decay))
        self.outline, self.config = outline(self.tx), show(self.tx)

    def averaged(self, state: TrainState) -> TrainState:
        """The state with the average of the parameters in their place, where there is one."""
        if not self.averages:
            return state
        average = cast("tuple[object, ParamsEmaState]", state.opt_state)[1].ema
        return state._replace(params=tree.cast_like(average, state.params))

    def of_rule(self, state: TrainState) -> object:
        """The state of the rule alone."""
        return cast("tuple[object, object]", state.opt_state)[0] if self.averages else state.opt_state

    def before(self, state: TrainState) -> TrainState:
        """The state for the next update."""
        return state

    def after(self, metrics: Metrics) -> Metrics:
        """What an update reports, when it is done."""
        return metrics

    def validated(self, loss: float) -> None:
        """A validation is done."""

    def write_back(self, state: TrainState) -> None:
        """Let the outside see how far the state is."""

    def to_meta(self) -> Meta:
        """What a checkpoint must know beside the state."""
        return {}

    def load(self, contents: Contents, state: TrainState) -> TrainState:
        """Go on from a checkpoint, and the state that was in it: the state to go on with. A failure changes nothing."""
        return state


class TorchDriver(Driver):
    """A torch optimizer, and the scheduler that sets its rates.

    Args:
        optimizer: one of functrain's, or of torch.optim, whose equal here then does the work.
        scheduler: steps after each applied update; a ReduceLROnPlateau, after each validation.
        module: whose parameters they are.
        ema_decay: as in Driver.

    Raises:
        ValueError: the optimizer has parameters that the module has not; the scheduler is over another optimizer.
        TypeError: a torch optimizer without an equal here; no scheduler.
    """

    def __init__(self, optimizer: Optimizer, scheduler: object, module: nn.Module, ema_decay: float | None) -> None:
        face = from_torch(optimizer)
        assert isinstance(face, Face | LBFGS)  # what from_torch makes
        self.given, self.face = optimizer, face
        self.scheduler = checked(scheduler, optimizer)
        self.names = dict(module.named_parameters())
        there = {id(p) for p in self.names.values()}
        for i in range(len(face.param_groups)):
            for name, p in face.named(i):
                if id(p) not in there:
                    raise ValueError(
                        f"Trainer: parameter {name!r} of the optimizer's group {i} is none of the model's; "
                        "hint: build the optimizer from this model's parameters()"
                    )
        super().__init__(face.as_transform(self.names), ema_decay)
        averaged = " with an average" if self.averages else ""
        self.outline = f"torch.{_rule_of(face)}" + (f" under {name_of(scheduler)}" if scheduler else "") + averaged
        self.config = " ".join(repr(face).split())
        self._fixed, self._values = self.face.numbers()[1], cast("object", None)

    def before(self, state: TrainState) -> TrainState:
        """The state with the groups' numbers as they are now."""
        if (n := len(self.given.param_groups)) != len(self._fixed):
            raise ValueError(
                f"Trainer: the optimizer has {n} groups, and had {len(self._fixed)} when the Trainer was built; "
                "hint: build a Trainer anew"
            )
        for mine, given in zip(self.face.param_groups, self.given.param_groups, strict=True):
            mine.update(values_of(given))
        values = [values_of(group) for group in self.face.param_groups]
        changing = any(map(has_tensor, values))  # perhaps in place
        if values == self._values and not changing:
            return state
        if changed := self._another_rule(values):
            raise ValueError(
                f"Trainer: {changed} was set in a group while training, which makes another rule; "
                "hint: numbers may change, from and to anything but 0; for the rest build a Trainer anew"
            )
        if not self.rule.local and any(v != values[0] for v in values):
            raise ValueError(
                f"Trainer: {_rule_of(self.face)} sees all parameters at once, so its groups must have equal values; "
                "hint: ft.partition gives each set of parameters a rule"
            )
        self._values, groups = values, self.face.numbers()[0]
        face_state = cast("FaceState", self.of_rule(state))._replace(groups=groups)  # as_transform made it
        if not self.averages:
            return state._replace(opt_state=face_state)
        return state._replace(opt_state=(face_state, cast("tuple[object, object]", state.opt_state)[1]))

    def after(self, metrics: Metrics) -> Metrics:
        """Step the scheduler if the update was applied; the first group's rate is the learning rate."""
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau) and not metrics["skipped"]:
            vars(self.given)["_opt_called"] = True  # as step() would, or the scheduler warns that it comes too early
            self.scheduler.step()
        return {"learning_rate": metrics["learning_rate/0"], **metrics} if "learning_rate/0" in metrics else metrics

    def validated(self, loss: float) -> None:
        """Step a ReduceLROnPlateau."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)

    def write_back(self, state: TrainState) -> None:
        """Set the optimizer's state to the run's."""
        opt_state = cast("FaceState", self.of_rule(state))  # as_transform made it
        for name in opt_state.params:
            self.face.state.pop(self.names[name], None)  # take_back leaves out what has made no step
        self.face.take_back(opt_state, self.names)
        if self.given is not self.face:
            groups = self.given.param_groups
            self.given.load_state_dict({**self.given.state_dict(), "state": self.face.state_dict()["state"]})
            self.given.param_groups = groups  # the very dicts and tensors that schedulers and users hold

    def to_meta(self) -> Meta:
        """The groups' values and the scheduler's state."""
        groups = [{k: v for k, v in values_of(group).items() if k not in LOOPS} for group in self.given.param_groups]
        schedule = None if self.scheduler is None else self.scheduler.state_dict()
        return {"torch": {"groups": encode(groups, "a group"), "scheduler": encode(schedule, "the scheduler")}}

    def load(self, contents: Contents, state: TrainState) -> TrainState:
        """Set groups, scheduler and the optimizer's state to what they were."""
        where, saved = f"checkpoint.load: {contents.path}", contents.meta.get("torch")
        if not isinstance(saved, dict):
            raise CheckpointError(f"{where}: it has no groups of a torch optimizer; hint: this is of another run")
        if missing := {"groups", "scheduler"} - saved.keys():
            raise CheckpointError(
                f"{where}: the torch optimizer's {min(missing)!r} is missing; hint: this is of another run"
            )
        try:
            groups, schedule = cast("list[dict[str, object]]", decode(saved["groups"])), decode(saved["scheduler"])
        except ValueError as error:
            raise CheckpointError(f"{where}: its groups are not as they were written") from error
        if changed := self._another_rule(groups):
            raise CheckpointError(f"{where}: its optimizer has {changed}, which makes another rule than this run's")
        if self.scheduler is not None:
            before = copy.deepcopy(self.scheduler.state_dict())
            try:
                self.scheduler.load_state_dict(cast("dict[str, object]", schedule))
            except Exception as error:  # whatever a scheduler makes of the state of one that was built otherwise
                self.scheduler.load_state_dict(before)
                raise CheckpointError(f"{where}: its {name_of(self.scheduler)} is not like this run's") from error
        for group, values in zip(self.given.param_groups, groups, strict=True):
            for name, value in values.items():
                if isinstance(old := group.get(name), Tensor):
                    old.copy_(torch.as_tensor(value))
                else:
                    group[name] = value
        self._values = None
        self.write_back(state)
        return state

    def _another_rule(self, groups: Sequence[Mapping[str, object]]) -> str:
        """What in these groups makes another rule than the one that is driven: values that are no plain numbers."""
        changed = []
        for values, old in zip(groups, self._fixed, strict=True):
            new = numbers_of(values, self.face.traits.static)[1]
            names = [k for k in values if k not in LOOPS and (k in new, new.get(k)) != (k in old, old.get(k))]
            changed += [f"{name}={values[name]!r}" for name in names]
        return ", ".join(changed)


def choose_driver(
    optimizer: object, scheduler: object, module: nn.Module, total: int | None, ema_decay: float | None
) -> tuple[Driver, object]:
    """The driver of an optimizer, and the optimizer.

    Args:
        optimizer: a transformation, a torch optimizer, or a function that makes one from the run's updates in all.
        scheduler: torch's, over the torch optimizer, or a function (optimizer, total) that makes one.
        module: what is trained.
        total: updates of the whole run, if known.
        ema_decay: of an average of the parameters, or None.

    Raises:
        TypeError: it is none; there is a scheduler beside a transformation.
        ValueError: there is a function, and nobody knows how long the run is.
    """
    if not isinstance(optimizer, Optimizer | GradientTransformation) and callable(optimizer):
        _check_maker(optimizer)
        optimizer = cast("Callable[[int], object]", optimizer)(_known(total, "optimizer"))
    if isinstance(optimizer, Optimizer):
        check_schedule(scheduler)
        if not isinstance(scheduler, Scheduler) and callable(scheduler):
            scheduler = cast("Callable[[Optimizer, int], object]", scheduler)(optimizer, _known(total, "scheduler"))
        return TorchDriver(optimizer, scheduler, module, ema_decay), optimizer
    if not isinstance(optimizer, GradientTransformation):
        raise TypeError(
            "Trainer: optimizer must be a GradientTransformation or a torch optimizer, got "
            f"{type(optimizer).__name__}; hint: ft.adamw(0.001), or ft.configure_optimizer(module)"
        )
    if scheduler is not None:
        raise TypeError(
            f"Trainer: {called(scheduler)} sets the rate of a torch optimizer, and {outline(optimizer)} is a "
            "transformation; hint: give it a schedule, such as ft.adamw(ft.schedules.cosine_decay_schedule(...)), or "
            "train with ft.configure_optimizer(...)"
        )
    return Driver(optimizer, ema_decay), optimizer


def _check_maker(optimizer: Callable[..., object]) -> None:
    """Refuse what would take the number of updates for something else: a class, a rule's own factory, a module.

    Raises:
        TypeError: it is that.
    """
    try:
        first = next(iter(inspect.signature(optimizer).parameters), "")
    except ValueError:  # some things that are written in C have none
        first = ""
    if isinstance(optimizer, type | nn.Module) or first in ("learning_rate", "lr", "params"):
        kind = "module" if isinstance(optimizer, nn.Module) else "class" if isinstance(optimizer, type) else "factory"
        plain = getattr(optimizer, "func", optimizer)  # of a partial
        name = type(optimizer).__name__ if kind == "module" else getattr(plain, "__name__", "rule")
        made = "Trainer(module, ft.adamw(0.001), loader)" if kind == "module" else f"{name}(0.001)"
        if first == "params":
            made = f"{name}(module.parameters(), lr=0.001)"
        raise TypeError(f"Trainer: optimizer is the {kind} {name}, and not an optimizer; hint: {made}")


def _known(total: int | None, what: str) -> int:
    if total is None:
        raise ValueError(
            f"Trainer: {what} is a function of the number of updates, which nobody knows, since the train loader has "
            "no length; hint: max_steps="
        )
    if total == 0:
        raise ValueError("Trainer: the train loader yields no batch")
    return total


def _rule_of(face: Face | LBFGS) -> str:
    """What a checkpoint calls the rule, without its numbers."""
    if not isinstance(face, TorchOptimizer):
        return type(face).__name__
    return f"{type(face).__name__} of {outline(face.rule(**values_of(face.param_groups[0])))}"
