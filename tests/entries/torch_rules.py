"""Rules that compute what torch.optim computes, where Optax computes something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax
from torch.optim import ASGD, SGD, Adagrad, Adam, NAdam, RAdam, Rprop

from functrain.transforms.decay import shrink_weights
from functrain.transforms.torch_adaptive import (
    scale_by_torch_adagrad,
    scale_by_torch_amsgrad,
    scale_by_torch_nadam,
    scale_by_torch_radam,
)
from functrain.transforms.torch_steps import scale_by_torch_asgd, scale_by_torch_rprop, torch_trace
from tests.entry import Entry

ENTRIES: tuple[Entry, ...] = (
    Entry("scale_by_torch_amsgrad", scale_by_torch_amsgrad, torch=lambda ps: Adam(ps, 0.1, amsgrad=True)),
    Entry(
        "scale_by_torch_amsgrad",
        lambda: scale_by_torch_amsgrad(0.8, 0.7, 1e-3),
        use="short memory",
        torch=lambda ps: Adam(ps, 0.1, (0.8, 0.7), 1e-3, amsgrad=True),
    ),
    Entry("scale_by_torch_nadam", scale_by_torch_nadam, torch=lambda ps: NAdam(ps, 0.1)),
    Entry(
        "scale_by_torch_nadam",
        lambda: scale_by_torch_nadam(0.95, 0.9, 1e-3, 0.3),
        use="fast",
        torch=lambda ps: NAdam(ps, 0.1, (0.95, 0.9), 1e-3, momentum_decay=0.3),
    ),
    Entry("scale_by_torch_radam", scale_by_torch_radam, torch=lambda ps: RAdam(ps, 0.1)),
    Entry(
        "scale_by_torch_radam",
        lambda: scale_by_torch_radam(0.8, 0.95, 1e-3),
        use="short memory",
        torch=lambda ps: RAdam(ps, 0.1, (0.8, 0.95), 1e-3),
    ),
    Entry(
        "scale_by_torch_radam",
        lambda: scale_by_torch_radam(0.8, 0.6),
        use="never trusted",
        torch=lambda ps: RAdam(ps, 0.1, (0.8, 0.6)),
    ),
    Entry("scale_by_torch_adagrad", scale_by_torch_adagrad, torch=lambda ps: Adagrad(ps, 0.1)),
    Entry(
        "scale_by_torch_adagrad",
        lambda: scale_by_torch_adagrad(0.1, 0.5, 1e-3),
        use="all arguments",
        torch=lambda ps: Adagrad(ps, 0.1, 0.1, initial_accumulator_value=0.5, eps=1e-3),
    ),
    Entry("torch_trace", lambda: torch_trace(0.9), torch=lambda ps: SGD(ps, 0.1, 0.9)),
    Entry("torch_trace", lambda: torch_trace(0.9, 0.3), use="dampened", torch=lambda ps: SGD(ps, 0.1, 0.9, 0.3)),
    Entry(
        "torch_trace",
        lambda: torch_trace(0.9, nesterov=True),
        use="nesterov",
        torch=lambda ps: SGD(ps, 0.1, 0.9, nesterov=True),
    ),
    Entry("scale_by_torch_rprop", scale_by_torch_rprop, differentiable=False, torch=lambda ps: Rprop(ps), steps=True),
    Entry(
        "scale_by_torch_rprop",
        lambda: scale_by_torch_rprop(0.1, (0.3, 1.5), (0.05, 0.4)),
        use="narrow",
        differentiable=False,
        torch=lambda ps: Rprop(ps, 0.1, (0.3, 1.5), (0.05, 0.4)),
        steps=True,
    ),
    Entry("scale_by_torch_asgd", scale_by_torch_asgd, needs_params=True, torch=lambda ps: ASGD(ps), steps=True),
    Entry(
        "scale_by_torch_asgd",
        lambda: scale_by_torch_asgd(0.1, 0.2, 0.6, 7.0),
        use="averaging",
        needs_params=True,
        torch=lambda ps: ASGD(ps, 0.1, 0.2, 0.6, 7.0),
        steps=True,
    ),
    Entry(
        "shrink_weights",
        lambda: shrink_weights(0.05),
        lambda: optax.add_decayed_weights(-0.05),
        needs_params=True,
        torch=lambda ps: SGD(ps, 1.0, weight_decay=0.05, maximize=True),
        steps=True,
    ),
)
FACTORIES: tuple[Callable[..., Any], ...] = (
    scale_by_torch_adagrad, scale_by_torch_amsgrad, scale_by_torch_asgd, scale_by_torch_nadam, scale_by_torch_radam,
    scale_by_torch_rprop, shrink_weights, torch_trace,
)  # fmt: skip
