"""Numbers beside the loss: what is measured of a module's output.

A function `(output, batch)` gives a mean, which weighs its batch's length, or (sum, weight), as losses do. Its sums
stay on the device, so that no batch waits for a number. An object with `update`, `compute` and `reset`, such as
torchmetrics has, gathers what it needs itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from numbers import Real
from typing import Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from functrain.counter import wide
from functrain.data import length

T = TypeVar("T")
Number = Tensor | float  # 0-dim, real


@runtime_checkable
class Gatherer(Protocol):
    """What gathers over batches, and computes at the end."""

    def update(self, output: object, target: object, /) -> object:
        """A batch more."""
        ...

    def compute(self) -> object:
        """The number, or a dict of numbers."""
        ...

    def reset(self) -> object:
        """Forget all batches."""
        ...


class Means:
    """Weighted means by name, in the widest float of the device.

    Args:
        device: where the sums are.
    """

    def __init__(self, device: torch.device) -> None:
        self._like = torch.zeros((), dtype=wide(device), device=device)
        self._sums: dict[str, tuple[Number, Number]] = {}

    def add(self, name: str, total: Number, weight: Number) -> None:
        """Add to the sum and to the weight of a name."""
        old_total, old_weight = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = old_total + self._wide(total), old_weight + self._wide(weight)

    def add_mean(self, name: str, mean: Number, weight: Number) -> None:
        """The same for the mean of what weighs this much."""
        self.add(name, self._wide(mean) * self._wide(weight), weight)

    def read(self) -> dict[str, float]:
        """sum / weight of every name, NaN where nothing has weight. The one place that waits for the device."""
        if not self._sums:
            return {}
        sums, weights = (self._stack(column) for column in zip(*self._sums.values(), strict=True))
        return dict(zip(self._sums, (sums / weights).tolist(), strict=True))

    def _stack(self, numbers: Iterable[Number]) -> Tensor:
        dtype, device = self._like.dtype, self._like.device
        return torch.stack([torch.as_tensor(x, dtype=dtype, device=device) for x in numbers])

    def _wide(self, x: Number) -> Number:
        return x.detach().to(self._like) if isinstance(x, Tensor) else x


class Metrics:
    """Metrics by name.

    Args:
        metrics: functions (output, batch) and objects with update(output, target), compute() and reset().
        device: where the batches are; an object with `to` is moved there.

    Raises:
        TypeError, ValueError: a name or a metric is not what it should be.
    """

    def __init__(self, metrics: Mapping[str, object], device: torch.device) -> None:
        if not isinstance(metrics, Mapping):
            raise TypeError(f"Trainer: metrics must be a dict of metrics by name, got {type(metrics).__name__}")
        for name, metric in metrics.items():
            _check(name, metric)
        self.names, self.device = list(metrics), device
        self._gatherers = {name: x for name, x in metrics.items() if isinstance(x, Gatherer)}
        others = {name: x for name, x in metrics.items() if name not in self._gatherers}
        self._functions = cast("dict[str, Callable[[object, object], object]]", others)  # _check asked callable()
        if len({id(x) for x in self._gatherers.values()}) < len(self._gatherers):
            raise ValueError(
                "Trainer: one object has two names in metrics, and would see every batch twice; hint: metric.clone()"
            )

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """A block that starts with empty gatherers and leaves them empty."""
        try:
            for gatherer in self._gatherers.values():
                if callable(to := getattr(gatherer, "to", None)):
                    to(self.device)
                gatherer.reset()
            yield
        finally:
            for gatherer in self._gatherers.values():
                gatherer.reset()

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[list[object]]:
        """A block in which the list has what the module's last call returned, and nothing before the first."""
        outputs: list[object] = []

        def remember(module: nn.Module, args: object, output: object) -> None:
            outputs[:] = [output]

        with ExitStack() as stack:
            if self.names:
                stack.enter_context(module.register_forward_hook(remember))
            yield outputs

    def add(self, means: Means, outputs: list[object], batch: object) -> None:
        """A batch more: means of functions are in `means`, gatherers have their own.

        Args:
            means: what functions add to.
            outputs: what the module returned; without an entry if it was not called.
            batch: the batch.

        Raises:
            TypeError, ValueError: there is no output, or no target; a function returned no number.
        """
        if self.names and not outputs:
            raise ValueError(
                f"Trainer: the metric {self.names[0]!r} is of what the module returns, and the objective never calls "
                "it; hint: call it as m(x), or let the objective return {'loss': ..., " + f"{self.names[0]!r}: ...}}"
            )
        for name, function in self._functions.items():
            out = function(outputs[-1], batch)
            if not isinstance(out, tuple):
                means.add_mean(name, _number(name, "returned", RETURNS, out), length(batch))
            elif len(out) == 2:
                means.add(name, *(_number(name, "returned", RETURNS, x) for x in out))
            else:
                raise TypeError(f"Trainer: the metric {name!r} returned a tuple of {len(out)} entries; hint: {RETURNS}")
        for name, gatherer in self._gatherers.items():
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                raise TypeError(
                    f"Trainer: the metric {name!r} takes (output, target) of batches (*inputs, target), got a batch "
                    f"of type {type(batch).__name__}; hint: a function (output, batch) takes any"
                )
            gatherer.update(outputs[-1], batch[-1])

    def compute(self) -> dict[str, float]:
        """What the gatherers make of all batches; the entries of a dict by name/key.

        Raises:
            TypeError, ValueError: one computed no number; two have one name.
        """
        found: dict[str, float] = {}
        for name, gatherer in self._gatherers.items():
            out = gatherer.compute()
            entries = {f"{name}/{key}": x for key, x in out.items()} if isinstance(out, dict) else {name: out}
            numbers = {key: float(_number(key, "computed", COMPUTES, x)) for key, x in entries.items()}
            found = distinct(found, numbers)
        return found


def distinct(numbers: Mapping[str, T], more: Mapping[str, T]) -> dict[str, T]:
    """Both together.

    Raises:
        ValueError: they share a name.
    """
    if both := [name for name in numbers if name in more]:
        raise ValueError(
            f"Trainer: two numbers of a validation are called {both[0]!r}; "
            "hint: rename the metric, or what the loss returns to log"
        )
    return {**numbers, **more}


RETURNS = "return a number or a 0-dim tensor, which is a mean, or a pair of them, (sum, weight)"
COMPUTES = "compute() must be a number, a 0-dim tensor or a dict of them; averaged over classes, it often is"


def _check(name: object, metric: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"Trainer: the names of metrics are strings, got {name!r}")
    if name == "loss":
        raise ValueError("Trainer: 'loss' cannot be the name of a metric; hint: the loss is measured without one")
    if isinstance(metric, type):
        raise TypeError(f"Trainer: the metric {name!r} is the class {metric.__name__}; hint: {metric.__name__}(...)")
    if not callable(metric) and not isinstance(metric, Gatherer):
        raise TypeError(
            f"Trainer: the metric {name!r} is a {type(metric).__name__}; "
            "hint: a function (output, batch), or an object with update, compute and reset"
        )


def _number(name: str, did: str, hint: str, x: object) -> Number:
    """x as a 0-dim real tensor or a number."""
    if isinstance(x, Tensor):
        if x.dim():
            raise ValueError(f"Trainer: the metric {name!r} {did} a tensor of shape {tuple(x.shape)}; hint: {hint}")
        if not x.is_complex():
            return x
    elif isinstance(x, Real):  # NumPy's too
        return float(x)
    kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
    raise TypeError(f"Trainer: the metric {name!r} {did} a {kind}; hint: {hint}")
