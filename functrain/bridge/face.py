"""A rule as a `torch.optim.Optimizer`.

    optimizer.step()

is, for each group: build the pure rule from the group's values, whoever changed them; join the states of its
parameters into the rule's; update; write parameters and states in place. A local rule runs so on the parameters that
have a gradient, those with equal counters together, since torch counts the steps of each parameter apart. Any other
rule runs on all parameters of all groups at once, and has one state for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeAlias, TypeVar, cast, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # the one of torch.compiler imports dynamo
from torch.optim import Optimizer

from functrain.base import GradientTransformation, UpdateAndApply, update_and_apply
from functrain.bridge.blocks import Row
from functrain.bridge.compiled import CompiledLeaf
from functrain.bridge.given import check_group, check_params
from functrain.bridge.layout import layout_of
from functrain.bridge.pure import FaceState, Part, pure_form, put_back
from functrain.bridge.saving import StateDict, check_state_dict, restored
from functrain.bridge.stepping import Built, check_kind, complete, first_states, step_group
from functrain.bridge.traits import Traits
from functrain.bridge.values import has_tensor, numbers_of, values_of
from functrain.bridge.whole import Whole
from functrain.compile import jit
from functrain.tree import Tree

Group: TypeAlias = dict[str, object]
Params: TypeAlias = Iterable[Tensor] | Iterable[Group] | Iterable[tuple[str, Tensor]]
T = TypeVar("T")


class Face(Optimizer):
    """The base of every optimizer here: what a subclass adds is its defaults, its traits and its `rule`.

    Args:
        params: as in torch: parameters, pairs (name, parameter), or groups.
        defaults: the values of a group.
        compile: run the update compiled. The first step then takes seconds.
    """

    traits: Traits = Traits()
    rule: Callable[..., GradientTransformation]  # the pure rule that the values of a group make

    def __init__(self, params: Params, defaults: Group, compile: bool = False) -> None:
        self._begin(compile)
        super().__init__(cast("list[Tensor]", check_params(type(self).__name__, params)), defaults)

    def _begin(self, compile: bool) -> None:
        self._compile, self._leaf, self.whole = compile, CompiledLeaf(), Whole()
        self._built: dict[int, Built] = {}
        self._graph: tuple[object, UpdateAndApply] | None = None  # the fixed values, and what is compiled for them
        self._loading: StateDict | None = None

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as torch does."""
        check_group(type(self).__name__, param_group, self.param_groups)
        super().add_param_group(param_group)
        self._built.clear()
        try:
            self.rule(**values_of(self.param_groups[-1]))  # says what is wrong now, and not at the first step
        except Exception:
            self.param_groups.pop()
            raise

    def named(self, index: int) -> list[tuple[str, Tensor]]:
        """The parameters of a group, by their names, or by their numbers in the state dict where they have none."""
        group = self.param_groups[index]
        before = sum(len(g["params"]) for g in self.param_groups[:index])
        names = group.get("param_names") or [str(before + i) for i in range(len(group["params"]))]
        return list(zip(names, group["params"], strict=True))

    # --- the step

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], T]) -> T: ...
    @_disable_dynamo  # eager in compiled code too: `compile=True` is how it is compiled
    @torch.no_grad()
    def step(self, closure: Callable[[], object] | None = None) -> object:
        """One update.

        Args:
            closure: evaluates the loss, calls backward and returns the loss, which `step` returns.

        Raises:
            RuntimeError: a gradient is sparse; a parameter is complex where that has no meaning; a group has
                differentiable=True.
            ValueError: the rule needs the loss, and there is no closure.
        """
        if any(group.get("differentiable") for group in self.param_groups):
            raise RuntimeError(
                f"{type(self).__name__}: step() writes in place, which cannot be differentiated; hint: "
                "optimizer.as_transform() is the same optimizer as a pure function, and torch.func goes through it"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._overflowed():
            return loss
        built = [self._build(i) for i in range(len(self.param_groups))]
        where = type(self).__name__
        if all(b.rule.local and not b.rule.needs for b in built):
            for i, (b, group) in enumerate(zip(built, self.param_groups, strict=True)):
                by_name = self.traits.by_name and "param_names" in group
                compiled = partial(self._compiled, by_name) if self._compile or group.get("fused") else None
                step_group(where, b, self.traits, self.named(i), self.state, compiled)
        else:
            params = dict(pair for i in range(len(built)) for pair in self.named(i))
            self.whole.step(
                where, [b.rule for b in built], params, loss, closure, self._compiled_whole if self._compile else None
            )
        return loss

    def _build(self, index: int) -> Built:
        """The rule of a group, and where its state lies."""
        values, old = values_of(self.param_groups[index]), self._built.get(index)
        if old and not has_tensor(values) and values == old.values:
            return old
        rule, named = self.rule(**values), self.named(index)
        check_kind(type(self).__name__, self.traits, named)
        layout = layout_of(rule, dict(named[:1]), self.traits.torch_names, self.traits.hidden)
        built = Built(values, rule, layout)
        if old is None or layout.fields != old.layout.fields:
            complete(built, self.traits, named, self.state)
        self._built[index] = built
        return built

    def start(self, index: int) -> None:
        """Make the states of a group's parameters before their first step."""
        named = self.named(index)
        seen = {name: p.detach() for name, p in named}
        for (_, p), state in zip(named, first_states(self._build(index), self.traits, seen), strict=True):
            self.state[p] = state

    def _compiled(
        self, by_name: bool, built: Built, shared: Mapping[str, Tensor], keys: Sequence[str], rows: Sequence[Row]
    ) -> None:
        values = numbers_of(built.values, self.traits.static)
        self._leaf.step(self.rule, values, self.traits._replace(by_name=by_name), built.layout, shared, keys, rows)

    def _compiled_whole(
        self, grads: Tree, state: Tree, params: dict[str, Tensor], extras: Mapping[str, object]
    ) -> Tree:
        numbers, fixed = self.numbers()
        if self._graph is None or self._graph[0] != fixed:
            self._graph = fixed, jit(update_and_apply(self.as_transform()))
        _, after = self._graph[1](grads, FaceState(numbers, {}, state), params, **extras)
        return cast("FaceState", after).whole  # as_transform made it

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler leaves the unscaling to `step`, as it does with torch's fused classes."""
        return any(bool(group.get("fused")) for group in self.param_groups)

    def _overflowed(self) -> bool:
        """What GradScaler then asks of `step`: unscale, and do nothing where a gradient was not finite."""
        found, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found is not None and bool(found):
            return True
        if scale is not None:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.div_(scale)
        return False

    # --- the pure form

    def as_transform(self, names: Mapping[str, Tensor] | None = None) -> GradientTransformation:
        """This optimizer as a pure transformation over a dict of its parameters, which goes on from its state.

        Its state has the numbers of the groups as tensors, in `groups`, the learning rate as `learning_rate`; a
        parameter that no group has stays as it is.

        Args:
            names: what the parameters are called: `dict(module.named_parameters())`. None is the groups' own names, or
                numbers in the order of the groups.
        """
        return pure_form(self._parts(names), self.state, self.whole)

    def take_back(self, state: FaceState, names: Mapping[str, Tensor] | None = None) -> None:
        """Set this optimizer's state to what the pure form has made of it. The parameters are the caller's affair."""
        put_back(self._parts(names), self.state, self.whole, state)

    def numbers(self) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        """The values of the groups: their numbers, as the pure form has them in its state, and the others."""
        both = [numbers_of(values_of(group), self.traits.static) for group in self.param_groups]
        return [numbers for numbers, _ in both], [others for _, others in both]

    def _parts(self, names: Mapping[str, Tensor] | None) -> list[Part]:
        called = {id(p): name for name, p in (names or {}).items()}
        parts = []
        for i, group in enumerate(self.param_groups):
            params = {(own if names is None else called.get(id(p), f"({own})")): p for own, p in self.named(i)}
            parts.append(Part(params, group, self.rule, self.traits))
        return parts

    # --- state dicts and pickles

    def state_dict(self) -> StateDict:
        """As torch's; the state of a rule that sees all parameters at once is its entry `functrain`."""
        state_dict = super().state_dict()
        whole = self.whole.flat()
        return {**state_dict, "functrain": whole} if whole else state_dict

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Go on from a state dict, torch's or ours. Tensors are copied, and keep their dtypes.

        Raises:
            ValueError: it is of other groups, or of parameters of other shapes. Nothing has changed then.
        """

        def look(_: Optimizer, found: StateDict) -> None:  # the last hook sees what the others made of it
            named = [self.named(i) for i in range(len(self.param_groups))]
            check_state_dict(type(self).__name__, found, self.param_groups, named, self._shapes)
            self._loading = found

        handle = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self._loading = None

    def _shapes(self, group: Mapping[str, object], params: Mapping[str, Tensor]) -> dict[str, dict[str, torch.Size]]:
        """What the states of these parameters must have."""
        meta = {name: torch.empty(p.shape, dtype=p.dtype, device="meta") for name, p in params.items()}
        rule = self.rule(**values_of(group))
        layout = layout_of(rule, meta, self.traits.torch_names, self.traits.hidden)
        each = layout.split(rule.init({name: self.traits.seen(x) for name, x in meta.items()})).each
        return {
            key: {n: self.traits.shown(x, meta[n]).shape for n, x in column.items()} for key, column in each.items()
        }

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "compile": self._compile, "functrain": self.whole.flat()}

    def __setstate__(self, state: dict[str, object]) -> None:
        if "compile" in state:  # unpickled; torch calls this when it has loaded a state dict too
            self._begin(bool(state.pop("compile")))
            self.whole.load(cast("dict[str, Tensor]", state.pop("functrain")))
        super().__setstate__(state)
        self._built.clear()
        for group in self.param_groups:
            for name, default in self.defaults.items():
                if name != "differentiable":  # torch's base adds it to the defaults of classes that have none
                    group.setdefault(name, default)
        if self._loading is not None:
            found, self._loading = self._loading, None
            for i in range(len(self.param_groups)):
                layout = layout_of(self.rule(**values_of(self.param_groups[i])), {}, self.traits.torch_names, ())
                self.state.update(restored(found, i, self.named(i), layout))
            self.whole.load(cast("dict[str, Tensor]", found.get("functrain", {})))
