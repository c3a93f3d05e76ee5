"""The state of training: everything that an update changes, and the seed."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter

from functrain import tree
from functrain.base import GradientTransformation
from functrain.combinators.parts import check_part
from functrain.donation import check
from functrain.gradient import functional
from functrain.precision import Guard, Precision, PrecisionLike, first_guard, policy
from functrain.tree import Tree
from functrain.window import first_device

T = TypeVar("T")


@runtime_checkable
class Parametrised(Protocol):
    """What has parameters, frozen parameters and buffers: a functionalized module."""

    @property
    def params(self) -> dict[str, Tensor]:
        """The parameters that train."""
        ...

    @property
    def frozen(self) -> dict[str, Tensor]:
        """The parameters that do not."""
        ...

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The rest of the state."""
        ...


class TrainState(NamedTuple):
    """Everything that training changes, and the seed."""

    params: Tree  # what is trained
    frozen: Tree  # parameters that are not
    buffers: Tree  # BatchNorm's statistics and their like
    opt_state: Tree  # what tx.init made
    guard: Guard  # loss scale, and counts of skipped updates
    step: Tensor  # (), int64 on the CPU: updates attempted so far
    seed: Tensor  # (), int64 on the CPU

    @classmethod
    def create(
        cls,
        model_or_params: Parametrised | Tree,
        tx: GradientTransformation,
        seed: int = 0,
        copy: bool = True,
        precision: PrecisionLike | Precision = None,
    ) -> TrainState:
        """The state before the first update.

        Outside functorch transforms the tensors are cut from whatever made them.

        Args:
            model_or_params: a functionalized module, or a tree of parameters.
            tx: the optimizer.
            seed: of everything random in training.
            copy: False shares memory with what is given; a donating step then writes into it.
            precision: parameters are cast to its `param` dtype.

        Raises:
            TypeError: tx is no transformation; a leaf of the parameters is no floating or complex tensor.
        """
        if isinstance(model_or_params, GradientTransformation):
            raise TypeError("TrainState.create: the transformation came first; hint: TrainState.create(model, tx)")
        check_part("TrainState.create: tx", tx)
        if isinstance(model_or_params, Parametrised):
            parts: list[Tree] = [model_or_params.params, model_or_params.frozen, model_or_params.buffers]
        else:
            parts = [model_or_params, {}, {}]
        parts = [tree.map(lambda x: _own(x, copy), part) for part in parts]
        params, frozen, buffers = parts
        wanted = policy(precision).param
        if wanted is not None:
            params = tree.cast(params, wanted)
        opt_state = tx.init(params)
        if copy and not functional():
            opt_state = unshared(opt_state, params)
        counters = [torch.tensor(n, dtype=torch.int64, device="cpu") for n in (0, seed)]
        return cls(params, frozen, buffers, opt_state, first_guard(first_device(params)), *counters)


def check_state(where: str, state: object) -> None:
    """Refuse what is no state, and a state that was given away.

    Raises:
        TypeError, RuntimeError: it is that.
    """
    if not isinstance(state, TrainState):
        pair = isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], TrainState)
        hint = (
            "a step returns a pair: state, metrics = step(state, batch)" if pair else "ft.TrainState.create(model, tx)"
        )
        raise TypeError(f"{where}: state must be a TrainState, got {type(state).__name__}; hint: {hint}")
    check(where, state.step)


def _own(x: Tensor, copy: bool) -> Tensor:
    """x for a state: outside functorch without history, and a copy if asked for."""
    if isinstance(x, Tensor) and not functional():
        x = x.detach()
    return x.clone() if isinstance(x, Tensor) and copy else x


def unshared(state: T, params: Tree = ()) -> T:
    """The state with memory of its own where it has a parameter's, or one tensor's twice: donation writes into all.

    Under torch.func nothing is written to, and the state is left as it is.
    """
    if functional():
        return state
    seen = {_memory(x) for x in tree.leaves(params)}

    def own(x: Tensor) -> Tensor:
        place = _memory(x)
        if place in seen:
            return x.clone()
        seen.add(place)
        return x

    return tree.map(own, state)


def _memory(x: Tensor) -> object:
    """Where a tensor lies; a tensor of another kind (sharded, say) has no one place, and stands for itself."""
    return x.untyped_storage().data_ptr() if type(x) in (Tensor, Parameter) else ("object", id(x))
