"""The gradient of a loss, by one of two engines.

`torch.func` composes: it differentiates under vmap, inside another gradient, in compiled code. `torch.autograd` is
what modules are written for: activation checkpointing, old-style `autograd.Function`s, half the peak memory. Where both
are right they agree bit for bit. Each is silently wrong where the other is needed:

- autograd inside autograd, or inside a functorch transform, cuts the outer derivative at the detached leaves;
- autograd after a module's weights were swapped back recomputes checkpointed activations with the wrong weights.

So the engine is chosen by `composes`, and autograd's backward pass runs while the loss is held open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Literal, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks

from functrain import tree
from functrain.loss import Loss, LossOut, PlainLoss, read, run, scalar
from functrain.tree import Tree

T = TypeVar("T")
Engine = Literal["auto", "func", "autograd"]

_inside: ContextVar[bool] = ContextVar("functrain_inside_value_and_grad", default=False)


def functional() -> bool:
    """True under a functorch transform, forward-mode AD or compilation."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def composes(*arguments: Tree) -> bool:
    """True where the gradient may itself be differentiated, mapped or compiled."""
    if functional() or _inside.get():
        return True
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tree.leaves(arguments))


@overload
def value_and_grad(
    loss: Callable[..., object] | Loss,
    argnums: int | Sequence[int] = 0,
    has_aux: Literal[False] = False,
    engine: Engine = "auto",
) -> Callable[..., tuple[Tensor, Tree]]: ...
@overload
def value_and_grad(
    loss: Callable[..., object], argnums: int | Sequence[int] = 0, *, has_aux: Literal[True], engine: Engine = "auto"
) -> Callable[..., tuple[tuple[Tensor, Tree], Tree]]: ...
def value_and_grad(
    loss: Callable[..., object] | Loss,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    engine: Engine = "auto",
) -> Callable[..., tuple[object, Tree]]:
    """The function that gives a loss and its gradient: `(*args) -> (value, grads)`.

        value, grads = ft.value_and_grad(loss)(params, batch)

    Means what `torch.func.grad_and_value` means (there the order is grads, value), and composes as it does: with
    itself, vmap, jvp, compile. In plain eager code it is computed by autograd: the same bits, less memory. An argument
    that the loss does not use has gradient zero.

    Args:
        loss: a function of trees, or `model.loss(...)`, which is called as (params, batch). It returns what a loss
            returns (see functrain.loss); with has_aux, a pair (0-dim tensor, anything).
        argnums: which argument to differentiate, or several: then grads is a tuple.
        has_aux: value is then the pair (value, aux).
        engine: "func" for torch.func, "autograd" for torch.autograd, "auto" for the one that is right.

    Raises:
        ValueError, TypeError: the loss is not a 0-dim tensor.
    """
    if engine not in ("auto", "func", "autograd"):
        raise ValueError(f"value_and_grad: engine must be 'auto', 'func' or 'autograd', got {engine!r}")

    def evaluate(*args: Tree) -> tuple[Tensor, Tree]:
        with _open(loss, args) as thunk:
            return _value(thunk(), args, has_aux)

    def by_autograd(*args: Tree) -> tuple[tuple[Tensor, Tree], Tree]:
        numbers = [argnums] if isinstance(argnums, int) else list(argnums)
        mine = list(args)
        for i in numbers:
            mine[i] = _fresh(args[i])
        with _autograd(loss), _open(loss, mine) as thunk:
            value, aux = _value(thunk(), mine, has_aux)
            grads = _backward(value, [mine[i] for i in numbers])
        return (value.detach(), detach(aux)), grads[0] if isinstance(argnums, int) else tuple(grads)

    def call(*args: Tree) -> tuple[object, Tree]:
        if engine == "func" or (engine == "auto" and composes(args)):
            numbers = argnums if isinstance(argnums, int) else tuple(argnums)
            grads, out = torch.func.grad_and_value(evaluate, argnums=numbers, has_aux=True)(*args)
        else:
            out, grads = by_autograd(*args)
        return (out if has_aux else out[0]), grads

    return call


def loss_and_grad(
    loss: Loss, params: T, frozen: Tree, buffers: Tree, batch: Tree, scale: Tensor | None = None
) -> tuple[LossOut, T]:
    """A loss taken apart, detached unless the gradient composes, and the gradient of `scale` times its mean."""
    if composes(params, frozen, buffers, batch):

        def objective(params: Tree) -> tuple[Tensor, LossOut]:
            out = run(loss, params, frozen, buffers, batch)
            return _scaled(out.mean, scale), out

        found, (_, out) = torch.func.grad_and_value(objective, has_aux=True)(params)
        return out, cast("T", found)  # a gradient has the structure of its argument
    fresh = _fresh(params)
    with _autograd(loss), loss.hold(fresh, frozen, buffers) as evaluate:
        out = evaluate(batch)
        (grads,) = _backward(_scaled(out.mean, scale), [fresh])
    return detach(out), cast("T", grads)  # a gradient has the structure of its argument


def detach(tree_: T) -> T:
    """The tree cut from the graph that made it."""
    return tree.map(lambda x: x.detach() if isinstance(x, Tensor) else x, tree_)


def _scaled(mean: Tensor, scale: Tensor | None) -> Tensor:
    return mean if scale is None else mean * scale


@contextmanager
def _autograd(loss: object) -> Iterator[None]:
    """Autograd at work. Nested gradients see it; activation checkpointing in an opaque function is refused."""
    token = _inside.set(True)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if isinstance(loss, PlainLoss) or not isinstance(loss, Loss):
                stack.enter_context(disable_saved_tensors_hooks(_NO_CHECKPOINTING))
            yield
    finally:
        _inside.reset(token)


_NO_CHECKPOINTING = (
    "value_and_grad: saved-tensor hooks (activation checkpointing) inside a plain function may recompute with other "
    "weights; hint: give the module's loss as model.objective(lambda m, batch: ...)"
)


@contextmanager
def _open(loss: object, args: Sequence[Tree]) -> Iterator[Callable[[], object]]:
    """The loss ready to be evaluated at these arguments."""
    if isinstance(loss, Loss):
        params, batch = args
        with loss.hold(params, loss.frozen, loss.buffers) as evaluate:
            yield lambda: evaluate(batch)
    else:
        function = cast("Callable[..., object]", loss)  # what is not a Loss is a function
        yield lambda: function(*args)


def _value(out: object, args: Sequence[Tree], has_aux: bool) -> tuple[Tensor, Tree]:
    if isinstance(out, LossOut):
        return out.mean, ()
    if has_aux:
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"value_and_grad: with has_aux the loss returns (value, aux), got {type(out).__name__}")
        return scalar("value_and_grad: the value", out[0]), out[1]
    if isinstance(out, tuple | dict):
        return read(out, args[1:], ()).mean, ()
    return scalar("loss: the result", out), ()


def _fresh(params: T) -> T:
    """The same tensors as leaves of a new graph."""
    for path, x in zip(tree.paths(params), tree.leaves(params), strict=True):
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"value_and_grad: {path!r} is {kind}, which has no gradient; hint: choose other argnums")
    return tree.map(lambda x: x.detach().requires_grad_(), params)


def _backward(value: Tensor, arguments: Sequence[Tree]) -> list[Tree]:
    """The gradient of a value at each of the trees it was computed from."""
    leaves = tree.leaves(arguments)
    if value.requires_grad and leaves:
        grads: Sequence[Tensor] = torch.autograd.grad(value, leaves, materialize_grads=True)
    else:
        grads = [torch.zeros_like(x, requires_grad=False) for x in leaves]
    return tree.unflatten(list(arguments), grads)
