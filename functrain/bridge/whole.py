"""Rules that are not local: they see all parameters of all groups at once, and have one state for them.

Such a rule may also want to know more than gradients: the loss (`value`), the gradients before anything was done to
them (`grad`), or the loss at other parameters (`value_fn`). All three come from the closure given to `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from functrain import tree
from functrain.base import GradientTransformation
from functrain.bridge.blocks import add_
from functrain.bridge.layout import name_of
from functrain.holes import is_hole
from functrain.state import unshared
from functrain.tree import Tree

Closure = Callable[[], object]
Flat = dict[str, Tensor]
Evaluate = Callable[[Sequence[Tensor]], tuple[Tensor, list[Tensor]]]
Compiled = Callable[[Tree, Tree, Flat, Mapping[str, object]], Tree]


class Whole:
    """The state of a rule over all parameters, and its step."""

    def __init__(self) -> None:
        self.state: Tree | None = None  # before the first step there is none
        self._loaded: Flat = {}  # read from a file, and not yet taken up
        self._names: list[str] = []  # the parameters that the state is for

    def step(
        self,
        where: str,
        rules: Sequence[GradientTransformation],
        params: dict[str, Tensor],
        loss: object,
        closure: Closure | None,
        compiled: Compiled | None,
    ) -> None:
        """One update of all of them, in place.

        Args:
            where: the optimizer's name.
            rules: that of each group.
            params: all parameters by name.
            loss: what the closure returned.
            closure: evaluates it again.
            compiled: updates in place by a compiled graph, and returns the state. Not while gradients are missing, nor
                for a rule that evaluates the loss for itself.

        Raises:
            ValueError: the groups' values make different rules; the rule needs the loss, and there is no closure.
        """
        rule = rules[0]
        check_equal(where, rules)
        if rule.needs and closure is None:
            raise ValueError(
                f"{where}: {name_of(rule)} needs {', '.join(sorted(rule.needs))}, which come from a closure; "
                "hint: step(closure), where closure() computes the loss, calls backward and returns the loss"
            )
        values = {name: p.detach() for name, p in params.items()}
        grads = {name: () if p.grad is None else p.grad for name, p in params.items()}
        state = self._state(rule, values)
        extras: dict[str, object] = {}
        if rule.needs:
            assert closure is not None  # asked above
            value = _loss(loss)
            at = _value_at(params, closure)
            extras = {"value": value, "grad": grads, "value_fn": at}
        given = {name: extras[name] for name in rule.needs}
        if compiled is not None and "value_fn" not in given and not any(is_hole(g) for g in grads.values()):
            self.state = compiled(grads, state, values, given)
            return
        updates, self.state = rule.update(grads, state, values, **given)
        moved = [(values[name], u) for name, u in cast("dict[str, Tensor]", updates).items() if not is_hole(u)]
        add_([p for p, _ in moved], [u for _, u in moved])

    def _state(self, rule: GradientTransformation, params: dict[str, Tensor]) -> Tree:
        if self.state is None or self._names != list(params):
            self.state = self.state_for(rule, params)
            self._names, self._loaded = list(params), {}
        return self.state

    def state_for(self, rule: GradientTransformation, params: dict[str, Tensor]) -> Tree:
        """The rule's state for these parameters: copies of what there is, and a beginning for those that are new."""
        kept = self.flat()
        first = unshared(rule.init(params), params)
        leaves = zip(tree.keys(first), tree.leaves(first), strict=True)
        return tree.unflatten(first, [_taken(kept.get(key), x) for key, x in leaves])

    def load(self, flat: Flat) -> None:
        """Go on from what `flat` gave."""
        self.state, self._loaded = None, flat

    def flat(self) -> Flat:
        """The state by key, for a file."""
        if self.state is None:
            return self._loaded
        return dict(zip(tree.keys(self.state), tree.leaves(self.state), strict=True))


def _taken(found: Tensor | None, first: Tensor) -> Tensor:
    """What was kept, where it fits."""
    return first if found is None or found.shape != first.shape else found.to(first.device, copy=True)


def _loss(returned: object) -> Tensor:
    """What a closure returned, as a rule wants it; a Python number has 53 bits."""
    if isinstance(returned, Tensor):
        return returned.detach()
    return torch.tensor(float(cast("float", returned)), dtype=torch.float64)


def check_equal(where: str, rules: Sequence[GradientTransformation]) -> None:
    """Raise ValueError if the groups' values make different rules."""
    rule = rules[0]
    for i, other in enumerate(rules):
        if other != rule:
            raise ValueError(
                f"{where}: {name_of(rule)} sees all parameters at once, so its groups must have equal values: "
                f"group 0 makes {rule}, group {i} {other}; hint: ft.partition gives each set of parameters a rule"
            )


class _Saved(Protocol):
    saved_tensors: tuple[Tensor, ...]


class _Evaluate(torch.autograd.Function):
    """A closure as a function of the parameters: its derivative is the gradient that its own backward pass found."""

    @staticmethod
    def forward(evaluate: Evaluate, *params: Tensor) -> tuple[Tensor, ...]:
        """The loss, and the gradients."""
        loss, grads = evaluate(params)
        return loss, *grads

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the gradients."""
        ctx.save_for_backward(*output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: FunctionCtx, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """The chain rule."""
        grads = cast("_Saved", ctx).saved_tensors  # torch's annotation has only what setup_context writes
        return None, *(outer[0] * g for g in grads)


def _value_at(params: dict[str, Tensor], closure: Closure) -> Callable[[Tree], Tensor]:
    """The loss at other parameters, differentiable once.

    They take the parameters' places for the length of a closure; then values and gradients are as they were.
    """

    def evaluate(given: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        own = [(p, p.detach().clone(), p.grad) for p in params.values()]
        try:
            with torch.no_grad():
                for (p, _, _), x in zip(own, given, strict=True):
                    p.copy_(x)
            for p, _, _ in own:
                p.grad = None
            with torch.enable_grad():
                loss = closure()
            return _loss(loss).clone(), [torch.zeros_like(p) if p.grad is None else p.grad for p, _, _ in own]
        finally:
            with torch.no_grad():
                for p, x, g in own:
                    p.copy_(x)
                    p.grad = g

    def value_fn(other: Tree) -> Tensor:
        given = cast("dict[str, Tensor]", other)
        apply = cast("Callable[..., tuple[Tensor, ...]]", _Evaluate.apply)
        loss, *_ = apply(evaluate, *(given.get(name, p.detach()) for name, p in params.items()))
        return loss

    return value_fn
