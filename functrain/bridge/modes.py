"""Training mode and eval mode, where a module is trained in the wrong one.

A module that somebody has put into eval mode and not back trains on without a word: dropout drops nothing, BatchNorm
keeps to the statistics it has. It may be meant, as with a BatchNorm that is frozen in a module that trains. So what is
told is the case that is hardly ever meant: every part is in eval mode, and one of them cares.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd


def in_eval(module: nn.Module) -> str:
    """What is wrong with training this module as it is; nothing, if a part is in training mode, or none cares."""
    parts = dict(module.named_modules())
    if any(m.training for m in parts.values()):
        return ""
    for path, m in parts.items():
        if _cares(m):
            part = f"{path!r}, a {type(m).__name__}," if path else "it"
            return (
                f"train_step: {type(module).__name__} is in eval mode, where {part} does not do what training wants; "
                "hint: module.train(), or, where this is meant, ft.functionalize(module).eval()"
            )
    return ""


def _cares(m: nn.Module) -> bool:
    """True for a part that does one thing in training mode and another in eval mode."""
    if isinstance(m, _DropoutNd):
        return m.p > 0
    if isinstance(m, nn.RNNBase | nn.MultiheadAttention):
        return m.dropout > 0
    return isinstance(m, _NormBase) and m.track_running_stats  # BatchNorm and InstanceNorm
