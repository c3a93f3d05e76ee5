"""L-BFGS as a rule: the algorithm of torch.optim.LBFGS over a tree of parameters, with a state of fixed shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from functrain import ranges, tree
from functrain.base import GradientTransformation, rule
from functrain.counter import wide
from functrain.schedules import Scalar
from functrain.transforms.torch_line_search import Evaluation
from functrain.transforms.torch_quasi_newton import Memory, Settings, first_memory, minimise
from functrain.tree import Tree


class TorchLbfgsState(NamedTuple):
    """The memory in tensors whose shapes never change: n is the number of all entries, a complex one counting twice."""

    n_iter: Tensor  # (), int32: iterations so far
    func_evals: Tensor  # (), int32: evaluations so far
    pairs: Tensor  # (), int32: rows of the history that are in use, the first ones
    d: Tensor  # (n,): the last direction
    t: Tensor  # (), widest float: the last step length
    old_dirs: Tensor  # (history_size, n): y, oldest first
    old_stps: Tensor  # (history_size, n): s
    ro: Tensor  # (history_size,): 1 / yᵀs
    H_diag: Tensor  # (): yᵀs / yᵀy of the newest pair
    prev_flat_grad: Tensor  # (n,): the gradient from which the last direction was made
    prev_loss: Tensor  # (), widest float: the loss there


@rule
def torch_lbfgs(
    learning_rate: Scalar = 1,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
    history_size: int = 100,
    line_search_fn: Literal["strong_wolfe"] | None = None,
) -> GradientTransformation:
    """The step of torch.optim.LBFGS: up to `max_iter` iterations of a quasi-Newton method.

        updates, state = tx.update(grads, state, params, value_fn=loss)

    The update is the whole way from the parameters to where the step ended, to be added: no learning rate comes after
    it. On a quadratic bowl in n dimensions, n iterations with exact lengths would reach the bottom. `grads` has to be
    the gradient of `value_fn` at `params`; at all other points `torch.func` differentiates `value_fn`.

    For plain eager code only, and without a derivative: how many iterations there are depends on the numbers. The
    history has all its 2 `history_size` rows of n numbers from the beginning, at least in float32.

    Args:
        learning_rate: η >= 0, the step length, or the first one that a line search tries.
        max_iter: iterations in an update, >= 1.
        max_eval: evaluations of the loss in an update; None is 5/4 `max_iter`.
        tolerance_grad: >= 0, the largest entry of a gradient that counts as zero.
        tolerance_change: >= 0, the largest change of an entry, or of the loss, that counts as none.
        history_size: pairs (change of x, change of the gradient) that are remembered, >= 1.
        line_search_fn: "strong_wolfe" seeks a length that satisfies the strong Wolfe conditions.

    Raises:
        RuntimeError: called in compiled, mapped or differentiated code.
        ValueError: the gradient of a parameter is missing.

    Reference:
        Nocedal & Wright, Numerical Optimization, 2nd edition, 2006, algorithm 7.5.
    """
    where = "torch_lbfgs"
    ranges.non_negative(
        where, learning_rate=learning_rate, tolerance_grad=tolerance_grad, tolerance_change=tolerance_change
    )
    evals = max_iter * 5 // 4 if max_eval is None else max_eval
    ranges.positive_int(where, max_iter=max_iter, max_eval=evals, history_size=history_size)
    if line_search_fn not in ("strong_wolfe", None):
        raise ValueError(f"{where}: line_search_fn must be 'strong_wolfe' or None, got {line_search_fn!r}")

    def init(params: Tree) -> TorchLbfgsState:
        return pack(first_memory(flatten(tree.upcast(params))), history_size)

    def update(
        updates: Tree, state: TorchLbfgsState, params: Tree, *, value_fn: Callable[[Tree], Tensor]
    ) -> tuple[Tree, TorchLbfgsState]:
        if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
            raise RuntimeError(
                f"{where}: how it goes on depends on numbers, which compiled, mapped and differentiated code does not "
                "have; hint: call update in plain eager code"
            )

        def evaluate(x: Tensor) -> Evaluation:
            grads, loss = torch.func.grad_and_value(value_fn)(unflatten(x, params))
            return Evaluation(x, float(loss), flatten(tree.upcast(grads)))

        with torch.no_grad():
            x, g = flatten(tree.upcast(params)), flatten(tree.upcast(tree.cast_like(updates, params)))
            if x.numel() != state.d.numel():
                raise ValueError(
                    f"{where}: the gradient has {x.numel()} entries and the state {state.d.numel()}; "
                    "hint: it needs the gradient of every parameter"
                )
            settings = Settings(
                float(learning_rate), max_iter, evals, tolerance_grad, tolerance_change, history_size,
                line_search_fn is not None,
            )  # fmt: skip
            at = Evaluation(x, float(value_fn(params)), g)
            end, memory = minimise(evaluate, at, unpack(state), settings)
            return unflatten(end - x, updates), pack(memory, history_size)

    return GradientTransformation(init, update, needs={"value_fn"})


def pack(memory: Memory, history_size: int) -> TorchLbfgsState:
    """The memory in tensors."""
    x = memory.d
    kind = wide(x.device)

    def rows(history: Sequence[Tensor], *shape: int) -> Tensor:
        return torch.stack([*history, *(history_size - len(history)) * [x.new_zeros(shape)]])

    return TorchLbfgsState(
        x.new_tensor(memory.n_iter, dtype=torch.int32),
        x.new_tensor(memory.func_evals, dtype=torch.int32),
        x.new_tensor(len(memory.ro), dtype=torch.int32),
        x,
        torch.as_tensor(memory.t, dtype=kind, device=x.device),
        rows(memory.old_dirs, *x.shape),
        rows(memory.old_stps, *x.shape),
        rows(memory.ro),
        torch.as_tensor(memory.H_diag, dtype=x.dtype, device=x.device),
        memory.prev_flat_grad,
        x.new_tensor(memory.prev_loss, dtype=kind),
    )


def unpack(state: TorchLbfgsState) -> Memory:
    """The memory that tensors stand for."""
    n = int(state.pairs)
    old_dirs, old_stps, ro = (tuple(history[:n]) for history in (state.old_dirs, state.old_stps, state.ro))
    return Memory(
        int(state.n_iter), int(state.func_evals), state.d, float(state.t), old_dirs, old_stps, ro, state.H_diag,
        state.prev_flat_grad, float(state.prev_loss), (),
    )  # fmt: skip


def flatten(params: Tree) -> Tensor:
    """All entries in one vector, in the widest dtype among them. A complex one is two."""
    leaves = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in tree.leaves(params)]
    return torch.cat([x.reshape(-1) for x in leaves]) if leaves else torch.zeros(0)


def unflatten(x: Tensor, like: Tree) -> Tree:
    """The entries of a vector in the place, shape and dtype of those of a tree."""
    leaves = tree.leaves(like)
    pieces = x.split([p.numel() * (2 if p.is_complex() else 1) for p in leaves])

    def shaped(piece: Tensor, p: Tensor) -> Tensor:
        part = piece.to(p.dtype.to_real(), copy=True)
        return torch.view_as_complex(part.view(*p.shape, 2)) if p.is_complex() else part.view(p.shape)

    return tree.unflatten(like, [shaped(piece, p) for piece, p in zip(pieces, leaves, strict=True)])
