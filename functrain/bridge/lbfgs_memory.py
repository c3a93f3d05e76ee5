"""What L-BFGS remembers, under torch's keys in the state of the first parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from functrain.transforms.torch_lbfgs import flatten
from functrain.transforms.torch_quasi_newton import Memory, first_memory

StateDict: TypeAlias = dict[str, object]
HISTORY = ("old_dirs", "old_stps", "ro")  # lists, as torch has them


def state_in(state_dict: StateDict, params: Sequence[Tensor]) -> dict[str, object]:
    """The state in a state dict, which is that of the first parameter.

    Raises:
        ValueError: it is of other groups, or of another number of entries.
    """
    groups = cast("list[dict[str, list[object]]]", state_dict["param_groups"])
    if len(groups) != 1:
        raise ValueError(
            f"loaded state dict has a different number of parameter groups: {len(groups)}, and LBFGS has one"
        )
    (group,) = groups
    if len(group["params"]) != len(params):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of optimizer's group: it has "
            f"{len(group['params'])} parameters in the file, and {len(params)} here"
        )
    state = cast("dict[object, dict[str, object]]", state_dict["state"]).get(group["params"][0], {})
    d, n = state.get("d"), flatten(params).numel()
    if isinstance(d, Tensor) and d.numel() != n:
        raise ValueError(
            f"LBFGS: the state is of {d.numel()} entries in all parameters together, and here are {n}; "
            "hint: the parameters must be those that the saved optimizer had"
        )
    return state


def own(x: object, device: torch.device) -> object:
    """A copy of an entry of a state."""
    if isinstance(x, list):
        return [own(y, device) for y in x]
    return x.detach().to(device, copy=True) if isinstance(x, Tensor) else x


def recall(state: Mapping[str, object], x: Tensor) -> Memory:
    """The memory that a state holds."""
    kept = cast("dict[str, Any]", {name: x for name, x in state.items() if name in Memory._fields})  # as keep left it
    for name in (*HISTORY, "al"):
        kept[name] = tuple(x for x in kept.get(name, ()) if x is not None)
    return first_memory(x)._replace(**kept)


def keep(state: dict[str, object], memory: Memory, history_size: int) -> None:
    """Write a memory into a state. Before the first iteration there are only counters; before the second, no al."""
    state.update(func_evals=memory.func_evals, n_iter=memory.n_iter)
    if memory.n_iter:
        kept = memory._replace(al=())._asdict() | {name: list(getattr(memory, name)) for name in HISTORY}
        del kept["al"]
        state.update(kept)
    if memory.n_iter > 1:
        state["al"] = [*memory.al, *[None] * (history_size - len(memory.al))]
