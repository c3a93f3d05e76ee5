"""The gradient of a loss, by one of two engines.

`torch.func` composes: it differentiates under vmap, inside another gradient, in compiled code. `torch.autograd` is
what modules are written for: activation checkpointing, old-style `autograd.Function`s, half the peak memory. Where both
are right they agree bit for bit. Each is silently wrong where the other is needed:

- autograd inside autograd, or inside a functorch transform, cuts the outer derivative at the detached leaves;
- autograd after a module's weights were swapped back recomputes checkpointed activations with the wrong weights.

So the engine is chosen by `composes`, and autograd's backward pass runs while the loss is held open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Literal, TypeVar, cast, overload

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks

from functrain import tree
from functrain.hints import Part, batch_of, instead, note, parameters
from functrain.loss import Loss, LossOut, differentiable, read, run
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


def mapped() -> bool:
    """True under vmap, or compilation: where a number cannot be read on the host."""
    if torch.compiler.is_compiling():
        return True
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any([t.key() == torch._C._functorch.TransformType.Vmap for t in stack])


def composes(*arguments: Tree) -> bool:
    """True where the gradient may itself be differentiated, mapped or compiled."""
    if functional() or _inside.get() or torch.is_inference_mode_enabled():  # there autograd records nothing
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
    that the loss does not use has gradient zero. Keyword arguments go through to the loss.

    Args:
        loss: a function of trees, or `model.loss(...)`, which is called as (params, batch). It returns what a loss
            returns (see functrain.loss); with has_aux, a pair (0-dim tensor, anything).
        argnums: which argument to differentiate, or several: then grads is a tuple.
        has_aux: value is then the pair (value, aux); the aux of a module's loss is its LossOut: new buffers, logs.
        engine: "func" for torch.func, "autograd" for torch.autograd, "auto" for the one that is right.

    Raises:
        ValueError, TypeError: the loss is not a 0-dim floating tensor, an argument has no gradient or is not there.
    """
    if engine not in ("auto", "func", "autograd"):
        raise ValueError(f"value_and_grad: engine must be 'auto', 'func' or 'autograd', got {engine!r}")
    if not (callable(loss) or isinstance(loss, Loss)):
        raise TypeError(
            f"value_and_grad: a loss is a function of trees or model.loss(criterion), got {type(loss).__name__}"
        )

    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not all(isinstance(i, int) for i in numbers):
        raise TypeError(f"value_and_grad: argnums must be an integer or several, got {argnums!r}")
    held = loss if isinstance(loss, Loss) else None

    def evaluate(*args: Tree, **kwargs: Tree) -> tuple[Tensor, Tree]:
        with _open(loss, held, args, kwargs) as thunk:
            return _value(thunk(), args, has_aux)

    def by_autograd(*args: Tree, **kwargs: Tree) -> tuple[tuple[Tensor, Tree], tuple[Tree, ...]]:
        mine = list(args)
        for i in numbers:
            mine[i] = _fresh(args[i])
        with _autograd(held is None or held.opaque), _open(loss, held, mine, kwargs) as thunk:
            value, aux = _value(thunk(), mine, has_aux)
            grads = _backward(value, [mine[i] for i in numbers])
        return (value.detach(), detach(aux)), tuple(grads)

    def call(*args: Tree, **kwargs: Tree) -> tuple[object, Tree]:
        for i in numbers:
            if not -len(args) <= i < len(args):
                raise ValueError(
                    f"value_and_grad: argnums={argnums}, and the call has {len(args)} arguments by position; "
                    "hint: give what is differentiated by position, and count from 0"
                )
            _check_differentiable(args[i])
        if held is not None and (len(args) != 2 or kwargs):
            raise TypeError(
                f"value_and_grad: a model's loss is called as (params, batch), got {len(args) + len(kwargs)} "
                "arguments; hint: (params, (x, y))"
            )
        try:
            if engine == "func" or (engine == "auto" and composes(args, kwargs)):
                grads, out = torch.func.grad_and_value(evaluate, argnums=numbers, has_aux=True)(*args, **kwargs)
            else:
                out, grads = by_autograd(*args, **kwargs)
        except Exception as error:
            note(error, "value_and_grad", *_called(args))
            raise
        return (out if has_aux else out[0]), (grads[0] if isinstance(argnums, int) else grads)

    return call


def loss_and_grad(
    loss: Loss, params: T, frozen: Tree, buffers: Tree, batch: Tree, scale: Tensor | None = None
) -> tuple[LossOut, T]:
    """A loss taken apart, detached unless the gradient composes, and the gradient of `scale` times its mean.

    Raises:
        ValueError: by autograd, the loss weighs something and was computed from no parameter: nothing would be trained.
    """
    if composes(params, frozen, buffers, batch):

        def objective(params: Tree) -> tuple[Tensor, LossOut]:
            out = run(loss, params, frozen, buffers, batch)
            return _scaled(out.mean, scale), out

        derived, (_, out) = torch.func.grad_and_value(objective, has_aux=True)(params)
        return out, cast("T", derived)  # a gradient has the structure of its argument
    fresh = _fresh(params)
    with _autograd(loss.opaque), loss.hold(fresh, frozen, buffers) as evaluate:
        out = evaluate(batch)
        found = _derivatives(_scaled(out.mean, scale), tree.leaves(fresh))
        if all(g is None for g in found) and bool(out.weight != 0):
            raise ValueError(
                "train_step: the loss does not depend on any parameter that trains; hint: compute it from those that "
                "it is given (a model's, with the module m), without .detach(), .item() or torch.no_grad()"
            )
        grads = tree.unflatten(fresh, _zeros_for(found, tree.leaves(fresh)))
    return detach(out), grads


def detach(tree_: T) -> T:
    """The tree cut from the graph that made it."""
    return tree.map(lambda x: x.detach() if isinstance(x, Tensor) else x, tree_)


def _scaled(mean: Tensor, scale: Tensor | None) -> Tensor:
    return mean if scale is None else mean * scale


@contextmanager
def _autograd(opaque: bool) -> Iterator[None]:
    """Autograd at work. Nested gradients see it; activation checkpointing in an opaque function is refused."""
    token = _inside.set(True)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            if opaque:
                stack.enter_context(disable_saved_tensors_hooks(_NO_CHECKPOINTING))
            yield
    finally:
        _inside.reset(token)


_NO_CHECKPOINTING = (
    "value_and_grad: saved-tensor hooks (activation checkpointing) inside a plain function may recompute with other "
    "weights; hint: give the module's loss as model.objective(lambda m, batch: ...)"
)


@contextmanager
def _open(
    loss: object, held: Loss | None, args: Sequence[Tree], kwargs: Mapping[str, Tree]
) -> Iterator[Callable[[], object]]:
    """The loss ready to be evaluated at these arguments; `held` is the same where it can be held open."""
    if held is not None:
        params, batch = args
        with held.hold(params, held.frozen, held.buffers) as evaluate:
            yield lambda: evaluate(batch)
    else:
        function = cast("Callable[..., object]", loss)  # what is not a Loss is a function
        yield lambda: function(*args, **kwargs)


def _value(out: object, args: Sequence[Tree], has_aux: bool) -> tuple[Tensor, Tree]:
    if isinstance(out, LossOut):
        return out.mean, out
    if has_aux:
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"value_and_grad: with has_aux the loss returns (value, aux), got {type(out).__name__}")
        return differentiable("value_and_grad: the value", out[0]), out[1]
    if isinstance(out, tuple | dict):
        return read(out, args[1:], ()).mean, ()
    return differentiable("loss: the result", out), ()


def _check_differentiable(params: Tree) -> None:
    """Raise TypeError if a leaf has no gradient."""
    for i, x in enumerate(tree.leaves(params)):
        if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
            path = tree.paths(params)[i]
            place = f"leaf {path!r}" if path else "the argument"
            if not isinstance(x, Tensor):
                kind = f"{type(x).__name__}, {'not a tensor' if path else 'no tree of tensors'}"
                raise TypeError(f"value_and_grad: {place} is a {kind}; hint: {instead(x)}")
            raise TypeError(
                f"value_and_grad: {place} is of dtype {x.dtype}, which has no gradient; "
                "hint: keep it out of the parameters, or choose other argnums"
            )


def _called(args: Sequence[Tree]) -> list[Part]:
    """The arguments of a loss, by the names of their leaves."""
    if len(args) == 2:
        return [parameters(args[0]), batch_of(args[1])]
    return [Part("argument {}", "the argument", list(args))]


def _fresh(params: T) -> T:
    """The same tensors as leaves of a new graph."""
    return tree.map(lambda x: x.detach().requires_grad_(), params)


def _backward(value: Tensor, arguments: Sequence[Tree]) -> list[Tree]:
    """The gradient of a value at each of the trees it was computed from."""
    leaves = tree.leaves(arguments)
    return tree.unflatten(list(arguments), _zeros_for(_derivatives(value, leaves), leaves))


def _derivatives(value: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradient at each leaf, None where the value was not computed from it."""
    if value.requires_grad and leaves:
        found: Sequence[Tensor | None] = torch.autograd.grad(value, leaves, allow_unused=True)
        return found
    return [None] * len(leaves)


def _zeros_for(found: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, with a zero for what the value was not computed from."""
    return [torch.zeros_like(x, requires_grad=False) if g is None else g for g, x in zip(found, leaves, strict=True)]
