"""Rules of torch.optim that look at a leaf as a matrix, Adafactor and Muon; and L-BFGS, that looks at all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Adafactor, Muon

from functrain.combinators.select import mask_by, masked
from functrain.transforms.torch_lbfgs import torch_lbfgs
from functrain.transforms.torch_matrix import scale_by_torch_adafactor, scale_by_torch_muon
from tests.entry import Entry


def is_plane(path: str, p: Tensor) -> bool:
    return p.ndim == 2


PLANES = mask_by(is_plane)


def planes(params: list[Tensor]) -> list[Tensor]:
    return [p for p in params if p.ndim == 2]


ENTRIES: tuple[Entry, ...] = (
    Entry(
        "scale_by_torch_adafactor",
        scale_by_torch_adafactor,
        needs_params=True,
        complex=False,
        torch=lambda params: Adafactor(params),
        steps=True,
    ),
    Entry(
        "scale_by_torch_adafactor",
        lambda: scale_by_torch_adafactor(0.3, -0.5, (1e-4, 1e-2), 2.0),
        use="all arguments",
        needs_params=True,
        complex=False,
        torch=lambda params: Adafactor(params, 0.3, -0.5, (1e-4, 1e-2), 2.0),
        steps=True,
    ),
    Entry(
        "scale_by_torch_muon",
        lambda: masked(scale_by_torch_muon(), PLANES),
        needs_params=True,
        complex=False,
        rounds=True,
        overflows=True,  # what is beyond bfloat16 is infinite in it
        torch=lambda params: Muon(planes(params), 0.1, weight_decay=0.0),
    ),
    Entry(
        "scale_by_torch_muon",
        lambda: masked(scale_by_torch_muon(0.8, False, (2.0, -1.5, 0.5), 1e-3, 3, "match_rms_adamw"), PLANES),
        use="all arguments",
        needs_params=True,
        complex=False,
        rounds=True,
        overflows=True,  # what is beyond bfloat16 is infinite in it
        torch=lambda params: Muon(
            planes(params), 0.1, 0.0, 0.8, False, (2.0, -1.5, 0.5), 1e-3, 3, adjust_lr_fn="match_rms_adamw"
        ),
    ),
    Entry(
        "torch_lbfgs",
        lambda: torch_lbfgs(0.5, max_iter=3, history_size=4),
        needs_params=True,
        extras=frozenset({"value_fn"}),
        local=False,
        complex=False,  # the first length is of a 1-norm of real and imaginary parts
        eager=True,
    ),
    Entry(
        "torch_lbfgs",
        lambda: torch_lbfgs(max_iter=4, history_size=2, line_search_fn="strong_wolfe"),
        use="line search",
        needs_params=True,
        overflows=True,  # the cubic squares its slopes, and they are squares of gradients
        extras=frozenset({"value_fn"}),
        local=False,
        complex=False,  # the first length is of a 1-norm of real and imaginary parts
        eager=True,
    ),
)
FACTORIES: tuple[Callable[..., Any], ...] = (scale_by_torch_adafactor, scale_by_torch_muon, torch_lbfgs, is_plane)
