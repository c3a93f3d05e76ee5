"""A module as a pure function of its tensors.

    model = functionalize(module)
    out, buffers = model.apply(model.params, model.buffers, x)

The module keeps its own tensors: for the length of a call ours stand in their places, in every place that holds the
same tensor (a tied weight, a submodule that is reached by two paths), and then its own come back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from functrain.bridge.modes import in_eval
from functrain.gradient import functional
from functrain.loss import Evaluate, LossOut, read, run
from functrain.tree import Tree

Tensors = dict[str, Tensor]


def functionalize(module: nn.Module) -> Model:
    """The module as trees of tensors and pure calls. Copies nothing and never changes the module.

    Raises:
        TypeError: it is no module.
    """
    given: object = module  # users are not all type-checked
    if not isinstance(given, nn.Module):
        came = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        hint = "; hint: make one of it" if isinstance(given, type) else ""
        if isinstance(given, Model | Iterator | dict | list):
            hint = "; hint: it is functionalized already" if isinstance(given, Model) else "; hint: the module itself"
        raise TypeError(f"functionalize: expected a torch.nn.Module, got {came}{hint}")
    return Model(module)


class Model:
    """A module seen as a function.

    `params` are the parameters that train, `frozen` those with requires_grad False, `buffers` the rest: flat dicts
    under the module's own names, read from the module whenever they are asked for. They share the module's memory, and
    are cut from autograd: gradients come from `value_and_grad`. A tensor that has several names goes by the first.
    """

    def __init__(self, module: nn.Module, training: bool | None = None) -> None:
        self.module = module
        self._training = training

    @property
    def params(self) -> Tensors:
        """The parameters that train."""
        return {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}

    @property
    def frozen(self) -> Tensors:
        """The parameters that do not."""
        return {name: p.detach() for name, p in self.module.named_parameters() if not p.requires_grad}

    @property
    def buffers(self) -> Tensors:
        """The buffers, persistent or not."""
        return dict(self.module.named_buffers())

    def eval(self) -> Model:
        """This model with the module in eval mode during calls; every training flag is restored after each."""
        return Model(self.module, training=False)

    def apply(
        self, params: Tree, buffers: Tree, *args: object, frozen: Tree | None = None, **kwargs: object
    ) -> tuple[object, Tensors]:
        """`module(*args, **kwargs)` with these tensors: its output, and the buffers as the call left them.

        Args:
            params: like `self.params`.
            buffers: like `self.buffers`; not written to.
            *args: the module's own arguments.
            frozen: like `self.frozen`, which is the default.
            **kwargs: the module's own.
        """
        with self.swap(params, self.frozen if frozen is None else frozen, buffers) as after:
            out = self.module(*args, **kwargs)
            return out, after()

    def loss(self, criterion: Callable[..., object]) -> ModelLoss:
        """The loss of batches `(*inputs, target)`: criterion(module(*inputs), target).

        Raises:
            TypeError: the criterion is no function; later, a batch is no such tuple.
        """
        _check_function("model.loss: the criterion", criterion)

        def supervised(module: nn.Module, batch: Tree) -> object:
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                short = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, tuple | list) else ""
                more = "; a loader of one batch is a list: [(x, y)]" if isinstance(batch, Tensor) else ""
                raise TypeError(
                    f"model.loss: a batch is a tuple (*inputs, target), got {short or _describe(batch)}; "
                    f"hint: model.objective(lambda m, batch: ...) takes any{more}"
                )
            *inputs, target = batch
            return criterion(module(*inputs), target)

        return ModelLoss(self, supervised)

    def objective(self, function: Callable[[nn.Module, Tree], object]) -> ModelLoss:
        """Any other loss: function(module, batch), returning what a loss returns (see functrain.loss).

        Raises:
            TypeError: it is no function.
        """
        _check_function("model.objective: the objective", function)
        return ModelLoss(self, function)

    def write_back(self, params: Tree, buffers: Tree | None = None, frozen: Tree | None = None) -> None:
        """Copy these values into the module's own tensors."""
        own: Tensors = {}
        values: Tensors = {}
        for mine, new in ((self.params, params), (self.buffers, buffers), (self.frozen, frozen)):
            if new is not None:
                own, values = own | mine, values | _flat(new)
        _check_names(values, own)
        for name, x in own.items():
            if values[name].shape != x.shape:
                raise ValueError(
                    f"model.write_back: {name!r} has shape {tuple(x.shape)}, the value {tuple(values[name].shape)}"
                )
        with torch.no_grad():
            for name, x in own.items():
                x.copy_(values[name])

    @contextmanager
    def swap(self, params: Tree, frozen: Tree, buffers: Tree) -> Iterator[Callable[[], Tensors]]:
        """The module with these tensors in place of its own; what is yielded reads the buffers as they are now.

        Buffers are cloned on their way in, so the caller's are not written to.
        """
        places = self._places()
        given = {**_flat(frozen), **_flat(params), **{name: x.clone() for name, x in _flat(buffers).items()}}
        _check_names(given, places)
        buffer_names = list(_flat(buffers))
        own = {name: here[0].get() for name, here in places.items()}
        flags = [] if self._training is None else [(m, m.training) for m in self.module.modules()]

        def after() -> Tensors:
            now = {name: places[name][0].get() for name in buffer_names}
            return now if functional() else {name: x.detach() for name, x in now.items()}

        try:
            for m, _ in flags:
                m.training = bool(self._training)
            for name, here in places.items():
                for place in here:
                    place.put(given[name])
            yield after
        finally:
            for name, here in places.items():
                for place in here:
                    place.put(own[name])
            for m, flag in flags:
                m.training = flag

    @property
    def fixed(self) -> bool:
        """True for a view that sets the mode itself."""
        return self._training is not None

    def training(self, m: nn.Module) -> bool:
        """The flag that a submodule has during calls."""
        return m.training if self._training is None else self._training

    def _places(self) -> dict[str, list[Place]]:
        """Where each tensor stands, under its first name."""
        names: dict[int, str] = {}
        places: dict[str, list[Place]] = {}
        for prefix, m in self.module.named_modules():
            for table in ("_parameters", "_buffers"):
                for local, x in getattr(m, table).items():
                    if x is not None:
                        name = names.setdefault(id(x), f"{prefix}.{local}" if prefix else local)
                        places.setdefault(name, []).append(Place(m, table, local))
        return places


class Place(NamedTuple):
    """A name in a module's table of parameters or buffers."""

    module: nn.Module
    table: str
    name: str

    def get(self) -> Tensor:
        """The tensor that stands there."""
        return cast("Tensor", getattr(self.module, self.table)[self.name])  # places are made where tensors are

    def put(self, x: Tensor) -> None:
        """Set another there, as it is: setattr would want a Parameter."""
        getattr(self.module, self.table)[self.name] = x


class ModelLoss:
    """A loss that a module computes: `function(module, batch)`. Called as `(params, batch)` it gives the mean."""

    def __init__(self, model: Model, function: Callable[[nn.Module, Tree], object]) -> None:
        self.model, self.function = model, function
        self._asked = self._warned = False

    def check_training(self) -> None:
        """Warn, once, if the whole module is in eval mode and has a part that trains otherwise.

        A module that is partly in eval mode, or is seen through `model.eval()`, is meant so.
        """
        if self.model.module.training or self.model.fixed or torch.compiler.is_compiling():
            self._asked = False
            return
        if self._asked or self._warned:  # once for each stay in eval mode: looking at every part takes time
            return
        self._asked = True
        if wrong := in_eval(self.model.module):
            self._warned = True
            warnings.warn(wrong, stacklevel=5)  # where the step is called

    @property
    def frozen(self) -> Tree:
        """The module's frozen parameters."""
        return self.model.frozen

    @property
    def buffers(self) -> Tree:
        """The module's buffers."""
        return self.model.buffers

    @property
    def mixes_examples(self) -> bool:
        """True if a BatchNorm of the module would run on the batch's own statistics."""
        return any(
            isinstance(m, _BatchNorm) and (self.model.training(m) or m.running_mean is None)
            for m in self.model.module.modules()
        )

    @property
    def opaque(self) -> bool:
        """False: the weights that it swaps in stay until the block ends."""
        return False

    @contextmanager
    def hold(self, params: Tree, frozen: Tree, buffers: Tree) -> Iterator[Evaluate]:
        """A block in which the module has these tensors."""
        with self.model.swap(params, frozen, buffers) as after:

            def evaluate(batch: Tree) -> LossOut:
                out = read(self.function(self.model.module, batch), batch, ())
                return out._replace(buffers=after())

            yield evaluate

    def __call__(self, params: Tree, batch: Tree) -> Tensor:
        """The mean loss; what the call did to the buffers is dropped."""
        return run(self, params, self.frozen, self.buffers, batch).mean

    def eval(self) -> ModelLoss:
        """This loss with the module in eval mode."""
        return ModelLoss(self.model.eval(), self.function)


def _check_function(what: str, function: object) -> None:
    if isinstance(function, type) and issubclass(function, nn.Module):
        raise TypeError(f"{what} is the class {function.__name__}; hint: {function.__name__}() makes one")
    if not callable(function):
        raise TypeError(f"{what} is a {type(function).__name__}, not a function; hint: such as F.cross_entropy")


def _flat(tensors: Tree) -> Tensors:
    if not isinstance(tensors, dict):
        raise TypeError(
            f"model: expected a flat dict of tensors by name, got {_describe(tensors)}; hint: such as model.params"
        )
    return tensors


def _check_names(given: Tensors, places: Mapping[str, object]) -> None:
    for name in places:
        if name not in given:
            raise ValueError(f"model: no tensor given for {name!r}; hint: pass model.params and model.buffers' names")
    for name in given:
        if name not in places:
            raise ValueError(f"model: the module has no {name!r}; hint: pass model.params and model.buffers' names")


def _describe(x: object) -> str:
    return f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
