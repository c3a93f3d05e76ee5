"""`jit`: a step or a rule as one compiled graph that writes its results into the state it was given.

In the graph's last lines every new tensor is copied into the old one's memory, and inductor fuses the copies with the
arithmetic that made the values: nothing is allocated that outlives the call. The old state is thereby gone, and its
tensors go on as the new one's. One tensor of a state (`step`; of a rule's state, the first) is a new object after each
call, so that whoever comes with the old state can be told.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import Tensor

from functrain import tree
from functrain.base import UpdateAndApply
from functrain.donation import check, check_tree, consume
from functrain.gradient import functional
from functrain.state import TrainState, check_state, unshared
from functrain.step import Metrics, Step
from functrain.tree import Tree
from functrain.window import Gradients, fold, split

F = TypeVar("F", bound=Callable[..., object])

_HOLE = cast("Tensor", ())  # stands where a compiled graph takes no tensor


def jit(fn: F, *, donate: bool = True, backend: str = "inductor") -> F:
    """Compile a training step, `update_and_apply(tx)`, or a pure function.

    A step then donates the state it is given, and `update_and_apply(tx)` its state and parameters (never gradients):
    their memory holds the result, and using them again is an error. A call that fails midway has consumed them too.
    Any other function is compiled whole and donates nothing. The first call compiles, for half a minute or so, and says
    it on stderr; later ones only for other shapes, once for all of them, or, with dropout, once for each. Compiled
    numbers differ from eager ones in the last bits, and dropout draws other masks than in eager, as reproducibly.

    Args:
        fn: what to compile.
        donate: False leaves arguments as they are, at the price of a second copy of the state.
        backend: of `torch.compile`.

    Raises:
        RuntimeError: a state that was donated is used again; a module uses activation checkpointing, which torch.func
            cannot differentiate.
        NotImplementedError: a step whose rule needs `value_fn`.
    """
    if isinstance(fn, Step):
        made: object = CompiledStep(fn, donate, backend)
    elif isinstance(fn, UpdateAndApply):
        made = CompiledUpdate(fn, donate, backend)
    else:
        made = _Graph(fn, backend, getattr(fn, "__name__", "function"))
    return cast("F", made)  # called like fn


class _Graph:
    """A function compiled whole, with what can go wrong put right."""

    def __init__(self, fn: Callable[..., object], backend: str, name: str) -> None:
        def unboxed(boxed: Tree, given: tuple[tuple[object, ...], dict[str, object]]) -> object:
            args, kwargs = tree.map(lambda x, b: x.view(()) if b else x, given, boxed)
            return fn(*args, **kwargs)

        self.name, self.backend, self.calls, self.unboxed = name, backend, 0, unboxed
        self.compile(dynamic=None)

    def compile(self, dynamic: bool | None) -> None:
        """Compile anew. None makes the second size of an axis a variable, False makes a graph for each size."""
        # A code object of its own: dynamo counts graphs a code object, and gives up at the ninth.
        self.unboxed.__code__ = self.unboxed.__code__.replace(co_name=self.name)
        self.call = torch.compile(self.unboxed, fullgraph=True, backend=self.backend, dynamic=dynamic)

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        # A graph takes a 0-dim float64 tensor on the CPU for a Python number: torch 2.13 traces twice for one, and
        # drops what is written to it. So each goes in as a view of one dimension.
        boxed = tree.map(_is_boxed, (args, kwargs))
        given = tree.map(lambda x, b: x.view(1) if b else x, (args, kwargs), boxed)
        with _hooks_as_found(), announced(self.name, self.backend, self.calls == 1):
            try:
                return self.call(boxed, given)
            except RuntimeError as error:  # while it was traced: nothing was computed yet
                if "with symbolic sizes" not in str(error):
                    raise
            # torch.func cannot take a size as a variable through some operators: dropout asks for its number.
            self.compile(dynamic=False)
            return self.call(boxed, given)


def _is_boxed(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float64 and not x.dim() and x.is_cpu


class CompiledStep(Step):
    """A step whose pure parts are compiled. The host splits the batch, seeds and counts."""

    def __init__(self, step: Step, donate: bool, backend: str) -> None:
        if "value_fn" in step.tx.needs:
            raise NotImplementedError(
                f"jit: {step.tx} needs value_fn, which a compiled step cannot call; hint: ft.jit the loss, not the step"
            )
        self.__dict__.update(vars(step))
        self.donate = donate
        self._whole = _Graph(self._all, backend, "the step")
        self._first = _Graph(self._micro, backend, "the micro-step")
        self._next = _Graph(self._fold, backend, "the folding micro-step")
        self._last = _Graph(self._finish, backend, "the update")
        self._known: Tensor | None = None  # the count of the last state that was returned

    def __call__(self, state: TrainState, batch: Tree, **extra: object) -> tuple[TrainState, Metrics]:
        """One update from a whole batch."""
        if functional():
            return super().__call__(state, batch, **extra)
        check_state("step", state)
        if self.accumulate > 1:
            acc = None
            for piece in split(batch, self.accumulate):
                acc = self.gradients(state, piece, acc)
            assert acc is not None  # accumulate > 1
            return self.apply(state, acc, **extra)
        self.look()
        with self.randomness(state, 0), self._explained(state, batch):
            return self._run(self._whole, state, batch, **extra)

    def gradients(self, state: TrainState, batch: Tree, acc: Gradients | None = None) -> Gradients:
        """The gradient of a micro-batch, folded into `acc`, which is donated."""
        if functional():
            return super().gradients(state, batch, acc)
        check_state("step.gradients", state)
        self.look()
        piece = 0 if acc is None else int(acc.pieces)
        pieces = torch.tensor(piece + 1, dtype=torch.int64)
        with self.randomness(state, piece), torch.no_grad(), self._explained(state, batch):
            if acc is None:
                fresh = cast("Gradients", self._first(_bare(state), batch, state.buffers))  # what micro returns
                return fresh._replace(pieces=pieces)
            check("step.gradients", acc.pieces)
            if self.donate:
                consume(acc.pieces)
            new = self._next(_bare(state), batch, acc._replace(pieces=_HOLE))
            return (acc if self.donate else cast("Gradients", new))._replace(pieces=pieces)  # what _fold returns

    def apply(self, state: TrainState, acc: Gradients, **extra: object) -> tuple[TrainState, Metrics]:
        """The update that this window's gradient makes."""
        if functional():
            return super().apply(state, acc, **extra)
        check_state("step.apply", state)
        check("step.apply", acc.pieces)
        return self._run(self._last, state, acc._replace(pieces=_HOLE), **extra)

    def _run(self, graph: _Graph, state: TrainState, *args: object, **extra: object) -> tuple[TrainState, Metrics]:
        if self.donate:
            consume(state.step)
            if state.step is not self._known:
                state = unshared(state)  # a state of the caller's own may have one tensor in two places
        with torch.no_grad():
            result = cast("tuple[TrainState, Metrics]", graph(_bare(state), *args, **extra))  # what _all returns
        new = state if self.donate else result[0]
        self._known = state.step + 1
        return new._replace(step=self._known, seed=state.seed), result[1]

    @contextmanager
    def _explained(self, state: TrainState, batch: Tree) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, torch._dynamo.exc.Unsupported):
                error.add_note("jit: the step raised while it was traced; hint: without ft.jit it raises its own error")
            self.explain(error, state, batch)
            raise

    # --- the graphs

    def _all(self, state: TrainState, batch: Tree, **extra: object) -> tuple[Tree, Metrics]:
        return self._finish(state, self.micro(state, batch, state.buffers), **extra)

    def _micro(self, state: TrainState, batch: Tree, buffers: Tree) -> Gradients:
        # In memory of its own, to be written to: a weight may be the batch's tensor, a gradient one number expanded.
        return tree.map(lambda x: x.clone(), self.micro(state, batch, buffers))

    def _fold(self, state: TrainState, batch: Tree, acc: Gradients) -> Tree:
        new = fold(acc, self.micro(state, batch, acc.buffers)._replace(pieces=_HOLE))
        return _given(acc, new, self.donate)

    def _finish(self, state: TrainState, acc: Gradients, **extra: object) -> tuple[Tree, Metrics]:
        new, metrics = self.finish(state, acc, **extra)
        metrics = {name: x.clone() for name, x in metrics.items()}  # some are the state's own, about to be overwritten
        return _given(state, new, self.donate), metrics


class CompiledUpdate(UpdateAndApply):
    """A rule's update and its application as one graph."""

    def __init__(self, fn: UpdateAndApply, donate: bool, backend: str) -> None:
        super().__init__(fn.tx)
        self.donate = donate
        self._graph = _Graph(self._update, backend, f"{fn.tx.spec.name if fn.tx.spec else 'the rule'}")
        self._known: Tensor | None = None

    def __call__(self, grads: Tree, state: Tree, params: Tree, **extra: object) -> tuple[Tree, Tree]:
        """`(grads, state, params) -> (params, state)`; state and params are donated."""
        if functional():
            return super().__call__(grads, state, params, **extra)
        check_tree("update_and_apply", state)
        first = next(iter(tree.leaves(state)), None)
        if self.donate and first is not self._known:
            state = unshared(state, params)  # a rule may start from the parameters themselves, or use zeros twice
        with torch.no_grad():
            if not self.donate:
                return cast("tuple[Tree, Tree]", self._graph(grads, state, params, **extra))  # what _update returns
            if first is not None:
                consume(first)
            self._graph(grads, state, params, **extra)
        state = _renamed(state)
        self._known = next(iter(tree.leaves(state)), None)
        return params, state

    def _update(self, grads: Tree, state: Tree, params: Tree, **extra: object) -> Tree:
        new_params, new_state = super().__call__(grads, state, params, **extra)
        # A rule may keep an old parameter in its state, where it would be overwritten before it is read. It is copied,
        # but not by `clone`: inductor takes that out again (pytorch issue 198131).
        kept = tree.map(lambda a, b: b if b is a else torch.where(b == b, b, b), state, new_state)
        return _given((params, state), (new_params, kept), self.donate)


def _given(old: Tree, new: Tree, donate: bool) -> Tree:
    """The result: written into the old tensors and so nothing, or the new ones."""
    if not donate:
        return new
    for a, b in zip(tree.leaves(old), tree.leaves(new), strict=True):
        if a is not b:
            a.copy_(b)
    return ()


def _bare(state: TrainState) -> TrainState:
    """The state without its counters, which stay on the host."""
    return state._replace(step=_HOLE, seed=_HOLE)


def _renamed(state: Tree) -> Tree:
    """The state with its first tensor as a new object over the same memory."""
    leaves: list[Tensor] = tree.leaves(state)
    return tree.unflatten(state, [x.detach() if i == 0 else x for i, x in enumerate(leaves)])


@contextmanager
def _hooks_as_found() -> Iterator[None]:
    """A compilation that fails inside torch.func leaves saved-tensor hooks disabled for the process; put them back."""
    message = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message
    enabled = message() is None
    try:
        yield
    except Exception as error:
        if "saved tensor hooks" in str(error):
            raise RuntimeError(
                "jit: the loss uses saved-tensor hooks (activation checkpointing), which torch.func cannot "
                "differentiate; hint: train this module without ft.jit, or without checkpointing"
            ) from error
        raise
    finally:
        if enabled and message() is not None:
            torch._C._autograd._saved_tensors_hooks_enable()


@contextmanager
def announced(name: str, backend: str, first: bool, time_it_takes: str = "about half a minute, once") -> Iterator[None]:
    """Say on stderr that something is being compiled, and how long it took."""
    if not first or backend != "inductor":
        yield
        return
    print(f"functrain: compiling {name} ({time_it_takes}) ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    try:
        yield
    finally:
        print(f" {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
