"""L-BFGS as a `torch.optim.Optimizer`: what torch.optim.LBFGS computes, without what it hides.

A step collects the parameters into one vector, runs the pure core on it, and writes the result in place. All that is
remembered is in the state of the first parameter, under torch's keys, so a copy or a pickle can go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from functrain.base import GradientTransformation
from functrain.bridge.given import check_group, check_params, check_values
from functrain.bridge.lbfgs_memory import StateDict, keep, own, recall, state_in
from functrain.bridge.pure import FaceState
from functrain.bridge.traits import Traits
from functrain.bridge.values import numbers_of, values_of
from functrain.holes import is_hole
from functrain.transforms.torch_lbfgs import TorchLbfgsState, flatten, pack, torch_lbfgs, unpack
from functrain.transforms.torch_line_search import Evaluation
from functrain.transforms.torch_quasi_newton import Settings, minimise

Tensors: TypeAlias = dict[str, Tensor]
T = TypeVar("T")
_HOLE = cast("Tensor", ())  # stands where a parameter has no update


class LBFGS(Optimizer):
    """Limited-memory BFGS, with or without a line search.

        optimizer.step(closure)

    A step evaluates the closure about `max_eval` times at most and makes up to `max_iter` iterations. It remembers
    `history_size` pairs of vectors as long as all parameters together. All parameters are in one group, on one device.
    A closure may change the parameters, into a box for example: the step goes on from there.

    Args:
        params: the parameters; complex ones count as pairs of real ones.
        lr: η >= 0, the step length, or the first one that the line search tries. Step lengths have the dtype of a rate
            that is a tensor, as in torch.
        max_iter: iterations in a step.
        max_eval: evaluations in a step; None is 5/4 `max_iter`.
        tolerance_grad: the largest entry of a gradient that counts as zero.
        tolerance_change: the largest change of an entry, or of the loss, that counts as none.
        history_size: pairs (change of x, change of the gradient) that are remembered.
        line_search_fn: "strong_wolfe" seeks a length that satisfies the strong Wolfe conditions.
        compile: changes nothing. How a step goes on depends on numbers, so there is no graph to compile; it is taken
            because every optimizer here takes it.

    Raises:
        ValueError: a value is out of its range, or there are several groups.

    Reference:
        Nocedal & Wright, Numerical Optimization, 2nd edition, 2006, algorithm 7.5.
    """

    traits = Traits(static=frozenset({"max_eval", *Settings._fields}) - {"lr"})

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, object]] | Iterable[tuple[str, Tensor]],
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        compile: bool = False,
    ) -> None:
        check_values(lr=lr)
        check_values(lr=float(lr))  # a step reads it anyway
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        super().__init__(cast("list[Tensor]", check_params("LBFGS", params)), defaults)

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Add the only group; torch calls this from the constructor."""
        check_group("LBFGS", param_group, self.param_groups)
        super().add_param_group(param_group)
        if len(self.param_groups) > 1:
            self.param_groups.pop()
            raise ValueError(
                "LBFGS doesn't support per-parameter options (parameter groups); hint: all parameters in one list"
            )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], T]) -> T: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], object] | None = None) -> object:
        """One step: several evaluations, several iterations.

        Args:
            closure: clears the gradients, evaluates the loss, calls backward and returns the loss.

        Returns:
            What the closure returned first: the loss before the step.

        Raises:
            TypeError: there is no closure, or it returns no loss.
            RuntimeError: a gradient is sparse, or there is no line search of this name.
        """
        if closure is None:
            raise TypeError(
                "LBFGS.step: it evaluates the loss several times and needs a closure for it; hint: "
                "optimizer.step(closure), where closure clears the gradients, calls backward and returns the loss"
            )
        (group,) = self.param_groups
        params = cast("list[Tensor]", group["params"])
        settings = _settings(group)

        def here() -> tuple[object, Evaluation]:
            with torch.enable_grad():
                loss = closure()
            return loss, Evaluation(flatten(params), _number(loss), flatten(_gradients(params)))

        def evaluate(x: Tensor) -> Evaluation:
            _write(params, x)
            return here()[1]

        (loss, at), state = here(), self.state[params[0]]
        x, memory = minimise(evaluate, at, recall(state, at.x), settings)
        _write(params, x)
        keep(state, memory, settings.history_size)
        return loss

    # --- the pure form, as Face has it

    def named(self, index: int) -> list[tuple[str, Tensor]]:
        """The parameters by their names, or by their numbers."""
        params = cast("list[Tensor]", self.param_groups[index]["params"])
        names = cast("list[str]", self.param_groups[index].get("param_names", [str(i) for i in range(len(params))]))
        return list(zip(names, params, strict=True))

    def numbers(self) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        """The values of the group: the learning rate as the pure form has it in its state, and the others."""
        numbers, others = numbers_of(values_of(self.param_groups[0]), self.traits.static)
        return [numbers], [others]

    def as_transform(self, names: Mapping[str, Tensor] | None = None) -> GradientTransformation:
        """This optimizer as a pure transformation over a dict of its parameters, which goes on from its state.

        It needs `value_fn`, and works in plain eager code. Its state has fixed shapes, so room for the whole history.

        Args:
            names: what the parameters are called: `dict(module.named_parameters())`. None is the group's own names.
        """
        order, group = self._called(names), self.param_groups[0]
        values = {name: group[name] for name in Settings._fields if name not in ("lr", "line_search")}

        def init(params: Tensors) -> FaceState:
            memory = recall(self.state[group["params"][0]], flatten({name: params[name] for name in order}))
            return FaceState(self.numbers()[0], {}, pack(memory, int(group["history_size"])))

        def update(
            grads: Tensors, state: FaceState, params: Tensors, *, value_fn: Callable[[Tensors], Tensor]
        ) -> tuple[Tensors, FaceState]:
            lr = state.groups[0]["learning_rate"]
            rule = torch_lbfgs(cast("Tensor", lr), line_search_fn=group["line_search_fn"], **values)
            given = {name: torch.zeros_like(params[name]) if is_hole(grads[name]) else grads[name] for name in order}
            mine = {name: params[name] for name in order}
            u, whole = rule.update(given, state.whole, mine, value_fn=lambda some: value_fn({**params, **some}))
            return {**dict.fromkeys(grads, _HOLE), **u}, state._replace(whole=whole)

        return GradientTransformation(init, update, needs={"value_fn"})

    def take_back(self, state: FaceState, names: Mapping[str, Tensor] | None = None) -> None:
        """Set this optimizer's state to what the pure form has made of it."""
        group = self.param_groups[0]
        memory = unpack(cast("TorchLbfgsState", state.whole))
        if memory.n_iter or memory.func_evals:
            keep(self.state[group["params"][0]], memory, int(group["history_size"]))

    def _called(self, names: Mapping[str, Tensor] | None) -> list[str]:
        called = {id(p): name for name, p in (names or {}).items()}
        return [own if names is None else called.get(id(p), f"({own})") for own, p in self.named(0)]

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Go on from a state dict, torch's or ours. Tensors are copied, and keep their dtypes.

        Raises:
            ValueError: it is of other groups, or of another number of entries. Nothing has changed then.
        """
        params = cast("list[Tensor]", self.param_groups[0]["params"])
        states: list[dict[str, object]] = []

        def look(_: Optimizer, seen: StateDict) -> None:  # the last hook sees what the others made of it
            states.append(state_in(seen, params))

        handle = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        self.state[params[0]] = {key: own(x, params[0].device) for key, x in states[-1].items()}


def _settings(group: Mapping[str, object]) -> Settings:
    """The values of the group as they are now."""
    search = group["line_search_fn"]
    if search not in ("strong_wolfe", None):
        raise RuntimeError(f"only 'strong_wolfe' is supported, got {search!r}; hint: line_search_fn=None has no search")
    values = {name: group[name] for name in Settings._fields if name != "line_search"}
    settings = Settings(**cast("dict[str, Any]", values), line_search=search is not None)  # as __init__ took them
    return settings._replace(lr=settings.lr.reshape(())) if isinstance(settings.lr, Tensor) else settings


def _number(loss: object) -> float:
    try:
        return float(cast("float", loss))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"LBFGS.step: the closure must return the loss, a number, got {type(loss).__name__}; hint: end it with "
            "`return loss`"
        ) from error


def _gradients(params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients; zeros where there is none."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    for i, g in enumerate(grads):
        if g.layout != torch.strided:
            raise RuntimeError(
                f"LBFGS does not support sparse gradients, and parameter {i} has one; hint: sparse=False in the module "
                "that makes it"
            )
    return grads


def _write(params: Sequence[Tensor], x: Tensor) -> None:
    """The entries of a vector into the parameters, in place."""
    views = [torch.view_as_real(p) if p.is_complex() else p for p in params]
    for view, piece in zip(views, x.split([v.numel() for v in views]), strict=True):
        view.copy_(piece.view_as(view))
