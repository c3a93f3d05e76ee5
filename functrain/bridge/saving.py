"""State dicts: what torch writes and reads, with each tensor in the dtype that it had.

torch casts what it loads to the parameter's dtype, so float32 moments over bfloat16 parameters would be lost, and finds
a state of another shape at the next step only. Here everything is looked at before anything changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor

from functrain.bridge.layout import STEP, Layout, State

StateDict: TypeAlias = dict[str, object]
Groups: TypeAlias = Sequence[Mapping[str, object]]
States: TypeAlias = Mapping[object, Mapping[str, object]]


class Expects(Protocol):
    """What states are held against: the shapes that a group's parameters want."""

    def __call__(self, group: Mapping[str, object], params: Mapping[str, Tensor]) -> dict[str, dict[str, torch.Size]]:
        """By entry, then by parameter."""
        ...


def check_state_dict(
    where: str,
    state_dict: StateDict,
    groups: Groups,
    named: Sequence[list[tuple[str, Tensor]]],
    expects: Expects,
) -> None:
    """Raise ValueError, in torch's words where it has some, if a state dict is not for these groups.

    Args:
        where: the optimizer's name.
        state_dict: what is to be loaded.
        groups: the optimizer's groups.
        named: their parameters by name.
        expects: the shapes that a group's parameters want.
    """
    saved = cast("Groups", state_dict["param_groups"])
    if len(saved) != len(groups):
        raise ValueError(
            f"loaded state dict has a different number of parameter groups: {len(saved)}, and this {where} has "
            f"{len(groups)}; hint: build it with the groups that the saved one had"
        )
    for i, (old, params) in enumerate(zip(saved, named, strict=True)):
        if len(_ids(old)) != len(params):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's group: group "
                f"{i} has {len(_ids(old))} parameters in the file, and {len(params)} here"
            )
    states = cast("States", state_dict["state"])
    for group, old, params in zip(groups, saved, named, strict=True):
        wanted = expects({**group, **{k: v for k, v in old.items() if k != "params"}}, dict(params))
        for number, (name, _) in zip(_ids(old), params, strict=True):
            for key, value in states.get(number, {}).items():
                shape = wanted.get(key, {}).get(name)
                if isinstance(value, Tensor) and shape is not None and value.shape != shape:
                    raise ValueError(
                        f"{where}: the state of parameter {name!r} does not fit: {key!r} has shape "
                        f"{tuple(value.shape)} in the state dict, and {tuple(shape)} here; hint: parameters must come "
                        "in the order in which the saved optimizer had them"
                    )


def restored(
    state_dict: StateDict, index: int, named: Sequence[tuple[str, Tensor]], layout: Layout
) -> dict[Tensor, State]:
    """The states of a group's parameters in a state dict: tensors of their own, in their dtypes, where they belong."""
    states = cast("States", state_dict["state"])
    numbers = frozenset(field.key for field in layout.fields if not field.each) | {STEP}
    ids = _ids(cast("Groups", state_dict["param_groups"])[index])
    pairs = zip(ids, named, strict=True)
    return {p: _restored(states[number], p, numbers) for number, (_, p) in pairs if number in states}


def _restored(state: Mapping[str, object], param: Tensor, numbers: frozenset[str]) -> State:
    found: State = {}
    for key, value in state.items():
        if value is None:  # torch's SGD once wrote so a buffer that is not there yet
            continue
        if not isinstance(value, Tensor):
            value = torch.tensor(float(cast("float", value)))  # older torch counted steps in Python numbers
        found[key] = value.detach().to("cpu" if key in numbers else param.device, copy=True)
    return found


def _ids(group: Mapping[str, object]) -> list[object]:
    return cast("list[object]", group["params"])
