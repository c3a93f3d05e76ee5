"""The same optimizer in functrain and in torch, over the same gradients."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.testing._internal.common_optimizers import OptimizerInfo, optim_db

import functrain

# TORCH_FACE=torch.optim tests the tests: what then fails is what we do better than torch.
FACE = importlib.import_module(os.environ["TORCH_FACE"]) if "TORCH_FACE" in os.environ else functrain.optim

SHAPES: tuple[tuple[int, ...], ...] = ((), (5,), (4, 3), (2, 3, 2, 2))
MATRICES: tuple[tuple[int, ...], ...] = ((4, 3), (3, 5), (2, 2), (1, 6))
SCALES = {0: 1e-12, 5: 1e-12, 9: 1e-20, 13: 0.0, 14: 0.0, 16: 1e-7, 17: 1e-7, 18: 1e-7, 21: 1e-12}  # of gradients
SLOW = ("foreach", "fused", "capturable", "differentiable")  # torch's plain loop is where these are off


class Row(NamedTuple):
    """A class of torch.optim, and what a test has to know of it."""

    name: str
    options: dict[str, Any]  # with these every part of the state is there
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    float32: float = 1e-6  # how far float32 may be from torch, as a share of a leaf's norm
    float64: float = 1e-10
    compiled: float = 1e-10  # in float64; Newton-Schulz is bfloat16, and rounded elsewhere in a compiled graph

    @property
    def ours(self) -> type[Optimizer]:
        return getattr(FACE, self.name)

    @property
    def torchs(self) -> type[Optimizer]:
        return getattr(torch.optim, self.name)

    @property
    def info(self) -> OptimizerInfo:
        return next(info for info in optim_db if info.name == self.name)

    @property
    def closure(self) -> bool:
        return self.info.step_requires_closure

    @property
    def defaults(self) -> dict[str, Any]:
        """The arguments of torch's class, without the parameters."""
        return {n: p.default for n, p in inspect.signature(self.torchs).parameters.items() if n != "params"}

    def tolerance(self, dtype: torch.dtype) -> float:
        return {torch.float32: self.float32, torch.bfloat16: 2e-2}.get(dtype, self.float64)

    def reference(self, params: Any, **options: Any) -> Optimizer:
        """Torch's class, in the loop over single tensors."""
        return self.torchs(params, **options | {flag: False for flag in SLOW if flag in self.defaults})

    def grouped(self, params: Sequence[Tensor], options: dict[str, Any]) -> list[dict[str, Any]]:
        """Two groups with hyper-parameters of their own, or one where torch's class takes no more."""
        if not self.info.supports_param_groups:
            return [{"params": list(params)}]
        other = {"lr": 0.5 * options.get("lr", self.defaults["lr"]), "weight_decay": 0.03}
        other = {name: value for name, value in other.items() if name in self.defaults}
        half = len(params) // 2
        return [{"params": list(params[:half])}, {"params": list(params[half:]), **other}]


ROWS = (
    Row("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    Row("Adam", {"amsgrad": True, "weight_decay": 0.01}),
    Row("AdamW", {"amsgrad": True}),
    Row("Adamax", {"weight_decay": 0.01}),
    Row("NAdam", {"weight_decay": 0.01}),
    Row("RAdam", {"weight_decay": 0.01}),
    Row("RMSprop", {"centered": True, "momentum": 0.9, "weight_decay": 0.01}),
    Row("Adagrad", {"lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    Row("Adadelta", {"weight_decay": 0.01}),
    Row("Rprop", {}),
    Row("ASGD", {"t0": 3, "weight_decay": 0.01}),
    Row("Adafactor", {"weight_decay": 0.01}),
    Row("Muon", {}, shapes=MATRICES, float32=2e-2, compiled=2e-2),
    Row("LBFGS", {"max_iter": 4, "history_size": 3}, float32=1e-3),
)
STEPPED = tuple(row for row in ROWS if not row.closure)  # step() needs no closure
NAMES = [row.name for row in ROWS]


def parameters(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Leaves that lie away from zero, where a relative distance would mean nothing."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.float64 if not dtype.is_complex else torch.complex128
    leaves = [torch.randn(shape, generator=draw, dtype=wide) for shape in shapes]
    return [(p + p.sgn()).to(dtype).requires_grad_() for p in leaves]


def gradients(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, steps: int, seed: int = 1
) -> list[list[Tensor | None]]:
    """A gradient a leaf a step: now and then missing, zero, or tiny."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.float64 if not dtype.is_complex else torch.complex128

    def one(t: int, leaf: int) -> Tensor | None:
        g = torch.randn(shapes[leaf], generator=draw, dtype=wide)
        scale = SCALES.get(t + leaf, 1.0)
        return None if t % 7 == 5 - leaf or (leaf == 1 and t == 0) else (scale * g).to(dtype)

    return [[one(t, leaf) for leaf in range(len(shapes))] for t in range(steps)]


def pull(params: Sequence[Tensor], missing: int | None = None) -> float:
    """A loss for a class that needs one, with its gradients: a bowl around 1 that lacks one leaf."""
    loss = 0.0
    for i, p in enumerate(params):
        p.grad = None
        if i != missing:
            steep, away = torch.logspace(0, 1, p.numel(), dtype=p.dtype).view(p.shape), p.detach() - 1
            square = (away * away.conj()).real
            p.grad = steep * away * (1 + square)
            loss += float((steep.real * (square / 2 + square**2 / 4)).sum())
    return loss


def step(row: Row, optimizer: Optimizer, params: Sequence[Tensor], g: Sequence[Tensor | None]) -> None:
    """One step of the optimizer by these gradients, or by its own where the class asks a closure for them."""
    if row.closure:
        optimizer.step(lambda: pull(params, missing=1))
        return
    for p, grad in zip(params, g, strict=True):
        p.grad = None if grad is None else grad.clone()
    optimizer.step()


def trajectory(
    row: Row, optimizer: Optimizer, params: Sequence[Tensor], grads: Sequence[Sequence[Tensor | None]]
) -> list[list[Tensor]]:
    """The parameters after each step."""
    seen = []
    for g in grads:
        step(row, optimizer, params, g)
        seen.append([p.detach().clone() for p in params])
    return seen


def distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    if torch.equal(a, b):
        return 0.0
    wide = torch.complex128 if b.is_complex() else torch.float64
    a, b = a.detach().to(wide), b.detach().to(wide)
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def assert_near(ours: Sequence[Sequence[Tensor]], torchs: Sequence[Sequence[Tensor]], row: Row) -> None:
    """Two trajectories agree, leaf by leaf and step by step."""
    for t, (a, b) in enumerate(zip(ours, torchs, strict=True)):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert x.dtype == y.dtype
            far = distance(x, y)
            assert far <= row.tolerance(y.dtype), f"step {t}, leaf {i} of shape {tuple(y.shape)}: {far:.2e} apart"


def flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a state dict, each with where it lies."""
    if isinstance(node, dict | list | tuple):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from flat(value, f"{path}/{key}")
    else:
        yield path, node


def assert_states_near(ours: dict[str, Any], torchs: dict[str, Any], row: Row) -> None:
    """Two state dicts have the same tensors, and nearly the same numbers."""
    a, b = dict(flat(ours["state"])), dict(flat(torchs["state"]))
    assert set(a) == set(b)
    for path, y in b.items():
        if isinstance(y, Tensor):
            assert (a[path].dtype, a[path].shape) == (y.dtype, y.shape), path
            far = distance(a[path], y)
            assert far <= row.tolerance(y.dtype), f"{path}: {far:.2e} apart"
        else:
            assert type(a[path]) is type(y), path


def assert_bitwise(a: Any, b: Any) -> None:
    """Two nests of tensors and values are equal, bit for bit."""
    there = dict(flat(b))
    assert set(there) == set(dict(flat(a)))
    for path, x in flat(a):
        y = there[path]
        if isinstance(x, Tensor):
            assert (x.dtype, x.shape) == (y.dtype, y.shape), path
            assert torch.equal(x, y), path
        else:
            assert x == y, path


def outcome(act: Callable[[], object]) -> BaseException | None:
    """What the call raised, if it did."""
    try:
        act()
    except Exception as error:
        return error
    return None


def assert_error_of_torch(ours: BaseException | None, torchs: BaseException | None) -> None:
    """The same type, and torch's words first."""
    assert type(ours) is type(torchs), f"{ours!r} and {torchs!r}"
    assert torchs is None or "".join(map(str, ours.args)).startswith("".join(map(str, torchs.args))), (
        f"{ours!r} and {torchs!r}"
    )


def every_row(rows: Sequence[Row] = ROWS) -> Any:
    """Parametrize a test by the classes."""
    return pytest.mark.parametrize("row", rows, ids=[row.name for row in rows])
