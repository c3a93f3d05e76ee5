"""The step counter, and what averages owe to it.

A counter is a 0-dim int32 tensor. It saturates at its type's greatest value instead of wrapping, so a run of any length
ends up where bias corrections are one and schedules have ended.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from functrain import tree
from functrain.tree import Tree


def first_count(params: Tree) -> Tensor:
    """Zero, on the device of the first parameter."""
    leaves = tree.leaves(params)
    return torch.zeros((), dtype=torch.int32, device=leaves[0].device if leaves else None)


def on_host(count: Tensor) -> bool:
    """True where a count can be read without waiting: a number in plain eager code on a CPU."""
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None and count.is_cpu


def increment(count: Tensor) -> Tensor:
    """count + 1, or count where that would overflow."""
    greatest = torch.iinfo(count.dtype).max
    if on_host(count) and not count.dim():
        return torch.tensor(min(int(count) + 1, greatest), dtype=count.dtype)
    return torch.where(count < greatest, count + 1, count)


def wide(device: torch.device) -> torch.dtype:
    """The widest float of a device: float64, but float32 on MPS."""
    return torch.float32 if device.type == "mps" else torch.float64


def bias_correction(decay: float | Tensor, count: Tensor) -> Tensor:
    """1 - βᵗ, the weight that an average of t terms has gathered: a 0-dim tensor in the device's widest float.

        h = tanh(t log β / 2)          1 - βᵗ = 2 h / (h - 1)

    With the logarithm of β itself this loses no digits, where 1 - β**t in float32 loses four at t = 1. It is
    -expm1(t log β) by a function that inductor computes once a graph, and not once an entry.

    Args:
        decay: β in [0, 1), memory of the average.
        count: t >= 1, terms so far.
    """
    if on_host(count) and not count.dim() and _readable(decay):
        beta = float(decay)
        half = math.tanh(int(count) * math.log(beta) / 2) if beta else -1.0
        return torch.tensor(2 * half / (half - 1), dtype=torch.float64)
    t = count.to(wide(count.device))
    log = torch.log(decay.to(t.dtype)) if isinstance(decay, Tensor) else math.log(decay) if decay else -math.inf
    h = torch.tanh(t * log / 2)
    return 2 * h / (h - 1)


def _readable(decay: float | Tensor) -> bool:
    """True for a number, or a tensor that is one and has no derivative; below zero there is no logarithm."""
    plain = not isinstance(decay, Tensor) or (decay.is_cpu and not decay.requires_grad and not decay.dim())
    return plain and bool(decay >= 0)
