"""A group of leaves that computes like one leaf.

A formula such as `lambda m, g: b1 * m + (1 - b1) * g` is written about one tensor. Given a `Batch`, a list of tensors
with operators, the same formula runs once for the whole list, through PyTorch's `torch._foreach_*` functions: fewer
calls, the same bits. Whatever is not plainly elementwise (`bool()`, `isinstance`, indexing, a shape, a reduction, a
larger tensor from outside the formula) raises `NotElementwise`, and the caller goes leaf by leaf instead.

One question a `Batch` cannot hear is `type(x) is Tensor`: a formula should ask `isinstance`, or better nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, Protocol

import torch
from torch import Tensor

# Tensor methods and torch functions that act on each element alone, whatever the shape.
ELEMENTWISE = frozenset(
    "abs absolute add addcdiv addcmul clamp clamp_max clamp_min copysign cos cosh div divide double eq erf erfc exp "
    "expm1 float floor ge gt hypot isfinite isinf isnan le lerp log log1p log2 logical_and logical_not logical_or lt "
    "maximum minimum mul multiply nan_to_num ne neg negative pow reciprocal round rsqrt rsub sigmoid sign sgn sin "
    "sinh sqrt square sub subtract tan tanh to true_divide trunc where __and__ __or__ __invert__ __rsub__ "
    "__rtruediv__ __rdiv__ __rpow__".split()
)


class Operation(Protocol):
    """A `torch._foreach_*` function: a list, and perhaps a second operand, to a list."""

    def __call__(self, *args: object) -> Sequence[Tensor]: ...


UNARY: dict[str, Operation] = {
    name: getattr(torch, f"_foreach_{name}") for name in ("abs", "neg", "sqrt", "sign", "exp", "log", "reciprocal")
}
BINARY: dict[str, Operation] = {
    name: getattr(torch, f"_foreach_{name}") for name in ("add", "sub", "mul", "div", "maximum", "minimum", "pow")
}
SCALAR_TENSOR = frozenset({"add", "mul", "div"})  # these take a 0-dim tensor as second operand
COMMUTE = frozenset({"add", "mul"})  # in these dtypes; in half precision a scalar is rounded first on the left alone:
WHOLE = frozenset({torch.float32, torch.float64})
# With a scalar, these round otherwise than a loop does, except on a CPU: the plain kernels multiply by the reciprocal,
# or square (pytorch issue 172273).
OWN_ROUNDING = frozenset({"div", "pow"})


class NotElementwise(Exception):
    """The formula asked something that a group of leaves cannot answer."""


def _call(func: Callable[..., Tensor], args: Sequence[object], kwargs: Mapping[str, object]) -> Batch:
    """func over the leaves: one foreach call where there is one, else a call a leaf."""
    name = func.__name__
    if not kwargs and len(args) == 1 and name in UNARY:
        (only,) = args
        if type(only) is Batch and len(only.leaves) > 1:
            return Batch(UNARY[name](only.leaves))
    elif not kwargs and len(args) == 2 and name in BINARY:
        first, other = args
        if name in COMMUTE and type(other) is Batch and other.leaves[0].dtype in WHOLE and type(first) is not Batch:
            first, other = other, first
        if type(first) is Batch and len(first.leaves) > 1:
            if type(other) is Batch:
                return Batch(BINARY[name](first.leaves, other.leaves))
            if _takes(name, first.leaves[0], other):
                return Batch(BINARY[name](first.leaves, _scalar(name, first.leaves[0], other)))
    if name not in ELEMENTWISE:
        raise NotElementwise(name)
    return _each(func, args, kwargs)


def _each(func: Callable[..., Tensor], args: Sequence[object], kwargs: Mapping[str, object]) -> Batch:
    """func once a leaf, the other operands as they are."""
    operands = [*args, *kwargs.values()]
    lists = [a.leaves if type(a) is Batch else None for a in operands]
    for a in operands:
        _is_scalar(a)
    names = next(a.names for a in operands if type(a) is Batch)
    if names is not None:
        names.add(func.__name__)
    n = next(len(x) for x in lists if x is not None)
    out = []
    for i in range(n):
        row = [a if x is None else x[i] for a, x in zip(operands, lists, strict=True)]
        value = func(*row[: len(args)], **dict(zip(kwargs, row[len(args) :], strict=True)))
        if not isinstance(value, Tensor):  # where() of a condition alone
            raise NotElementwise(func.__name__)
        out.append(value)
    return Batch(out, names)


def _takes(name: str, leaf: Tensor, other: object) -> bool:
    """True if foreach does `name` with a scalar as the loop does: of floats only, it promotes others its own way."""
    if not leaf.is_floating_point() or (name in OWN_ROUNDING and leaf.device.type != "cpu"):
        return False
    return isinstance(other, float | int) or (name in SCALAR_TENSOR and _is_scalar(other))


def _scalar(name: str, leaf: Tensor, other: object) -> object:
    """A number as a tensor of the leaf's dtype, where that rounds the same: else it is converted once a leaf."""
    if name not in SCALAR_TENSOR or leaf.dtype not in WHOLE or not leaf.is_cpu:
        return other
    return torch.tensor(other, dtype=leaf.dtype) if isinstance(other, float) else _converted(other, leaf.dtype)


def _converted(other: object, dtype: torch.dtype) -> object:
    return other.to(dtype) if isinstance(other, Tensor) and other.is_floating_point() else other


def _is_scalar(x: object) -> bool:
    """True for a real 0-dim tensor that no gradient is asked of; a larger one is not elementwise."""
    if type(x) is Batch or not isinstance(x, Tensor):
        return False
    if x.dim():
        raise NotElementwise("a larger tensor from outside the formula")
    return not x.is_complex() and not (x.requires_grad and torch.is_grad_enabled())


def names_of(f: Callable[..., object], row: Sequence[Tensor]) -> frozenset[str]:
    """The names of the operations of a formula, tried on one leaf; `not elementwise` where it is not."""
    names: set[str] = set()
    try:
        out = f(*(Batch([x], names) for x in row))
    except Exception:  # the formula will say it itself, about a tensor
        return frozenset({"not elementwise"})
    if type(out) is not Batch or out.leaves[0].requires_grad:
        return frozenset({"not elementwise"})
    return frozenset(names)


class Batch:
    """Tensors of one dtype and device, each with at least one dimension, that take part in a formula as one."""

    __slots__ = ("leaves", "names")
    leaves: Sequence[Tensor]
    names: set[str] | None  # where the names of operations are noted, if anybody asked

    def __init__(self, leaves: Sequence[Tensor], names: set[str] | None = None) -> None:
        self.leaves, self.names = leaves, names

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Tensor],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Batch:
        return _call(func, args, kwargs or {})

    def __getattribute__(self, name: str) -> object:
        if name in ("leaves", "names"):
            return object.__getattribute__(self, name)
        if name in ELEMENTWISE:
            func = getattr(Tensor, name)
            return lambda *args, **kwargs: _call(func, (self, *args), kwargs)
        if name == "dtype":  # the one question that has one answer for all
            return self.leaves[0].dtype
        if name == "__torch_function__":
            return Batch.__torch_function__
        raise NotElementwise(name)  # also __class__, which isinstance() reads

    def __add__(self, other: object) -> Batch:
        return _call(Tensor.add, (self, other), {})

    __radd__ = __add__

    def __sub__(self, other: object) -> Batch:
        return _call(Tensor.sub, (self, other), {})

    def __rsub__(self, other: object) -> Batch:
        return _each(Tensor.__rsub__, (self, other), {})

    def __mul__(self, other: object) -> Batch:
        return _call(Tensor.mul, (self, other), {})

    __rmul__ = __mul__

    def __truediv__(self, other: object) -> Batch:
        return _call(Tensor.div, (self, other), {})

    def __rtruediv__(self, other: object) -> Batch:
        return _each(Tensor.__rtruediv__, (self, other), {})

    def __pow__(self, other: object) -> Batch:
        return _call(Tensor.pow, (self, other), {})

    def __rpow__(self, other: object) -> Batch:
        return _each(Tensor.__rpow__, (self, other), {})

    def __neg__(self) -> Batch:
        return _call(Tensor.neg, (self,), {})

    def __abs__(self) -> Batch:
        return _call(Tensor.abs, (self,), {})

    def __invert__(self) -> Batch:
        return _each(Tensor.__invert__, (self,), {})

    def __and__(self, other: object) -> Batch:
        return _each(Tensor.__and__, (self, other), {})

    def __or__(self, other: object) -> Batch:
        return _each(Tensor.__or__, (self, other), {})

    def __lt__(self, other: object) -> Batch:
        return _each(Tensor.lt, (self, other), {})

    def __le__(self, other: object) -> Batch:
        return _each(Tensor.le, (self, other), {})

    def __gt__(self, other: object) -> Batch:
        return _each(Tensor.gt, (self, other), {})

    def __ge__(self, other: object) -> Batch:
        return _each(Tensor.ge, (self, other), {})

    def _refuse(self, *args: object) -> NoReturn:
        raise NotElementwise

    __eq__ = __ne__ = __hash__ = __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = _refuse
    __float__ = __int__ = __index__ = __complex__ = __repr__ = __str__ = __format__ = __reduce_ex__ = _refuse
