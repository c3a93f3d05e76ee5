"""What an optimizer is: a pair of pure functions, and the call that built it.

    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    params = apply_updates(params, updates)

`update` writes to none of its arguments and hides nothing: whatever changes is in the state it returns. A
`GradientTransformation` is such a pair, with what a combinator has to know about it: which extra arguments it needs,
and whether it treats each leaf alone. `rule`, the decorator of every factory, adds the call itself: `repr(tx)` is the
expression that built it, and pickling is calling again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import NamedTuple, ParamSpec, Protocol, TypeVar, cast

import torch

from functrain import tree
from functrain.donation import check_tree
from functrain.hints import check_tensors, explain_update, instead_of_rule
from functrain.holes import fill, has_holes, normalise, punch, punch_inside
from functrain.record import Call, Recorded, check_picklable, replay, show
from functrain.tree import Mismatch, Tree

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


class Init(Protocol):
    """The first half: a state for these parameters."""

    def __call__(self, params: Tree) -> Tree: ...


class Update(Protocol):
    """The second half: updates and state to new updates and new state."""

    def __call__(self, updates: T, state: S, params: Tree | None = None, **extra: object) -> tuple[T, S]: ...


class _Halves(NamedTuple):
    init: Init
    update: Update


class GradientTransformation(_Halves):
    """A pair `(init, update)` of pure functions, and what is known about it.

    `init(params) -> state`; `update(updates, state, params=None, **extra) -> (updates, state)`. The two it is made of
    may be plainer: an update without a default for `params` cannot do without them, and one that declares `needs`
    receives those extras by keyword and no others.

    What is called is that pair with its manners: integer parameters, missing parameters or extras, leaves that are no
    tensors, and trees that do not correspond are errors that name the rule and the leaf; a gradient that is missing (a
    hole, `()` or None) leaves its parameter and its part of the state as they are.

    Args:
        init: from parameters to a state, a tree of tensors in dict, list, tuple and NamedTuple.
        update: from (updates, state, params) to (updates, state).
        needs: the names among `value`, `grad` and `value_fn` that update takes by keyword.
        local: True if each leaf's update depends on that leaf alone.
    """

    needs: frozenset[str]
    local: bool
    spec: Call | None
    raw: tuple[Callable[..., Tree], Callable[..., tuple[Tree, Tree]]]

    def __new__(
        cls,
        init: Callable[..., Tree],
        update: Callable[..., tuple[Tree, Tree]],
        needs: Iterable[str] = (),
        local: bool = False,
        spec: Call | None = None,
    ) -> GradientTransformation:
        name = spec.name if spec else "transformation"
        wanted = frozenset(needs)
        self = super().__new__(cls, _mannered_init(name, init), _mannered_update(name, update, wanted))
        self.needs, self.local, self.spec, self.raw = wanted, local, spec, (init, update)
        return self

    def __repr__(self) -> str:
        if self.spec:
            return repr(self.spec)
        return f"GradientTransformation({show(self.raw[0])}, {show(self.raw[1])})"

    def __eq__(self, other: object) -> bool:
        """Built by equal calls; where no call is remembered, made of the same functions."""
        if not isinstance(other, GradientTransformation):
            return NotImplemented
        return (self.spec or self.raw) == (other.spec or other.raw)

    def __ne__(self, other: object) -> bool:
        return not self == other  # a tuple has its own

    def __hash__(self) -> int:
        return hash(self.spec.name if self.spec else self.raw)  # not of the arguments: 1 == 1.0, and lists have no hash

    def __copy__(self) -> GradientTransformation:
        return self

    def __deepcopy__(self, memo: object) -> GradientTransformation:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        if self.spec:
            return replay(self.spec)
        for half in self.raw:
            check_picklable("GradientTransformation", half)
        return GradientTransformation, (*self.raw, tuple(self.needs), self.local)


def rule(factory: Callable[P, R]) -> Callable[P, R]:
    """Make a factory of transformations (or of schedules, or of masks) remember its calls.

        @ft.rule
        def halve_every_step() -> ft.GradientTransformation: ...

    What it returns then has the call as its `repr`, is equal to what an equal call returns, and pickles by being called
    again: the factory and its arguments must be found by name, so a lambda among them makes pickling an error.
    """

    @functools.wraps(factory)
    def build(*args: P.args, **kwargs: P.kwargs) -> R:
        made = factory(*args, **kwargs)
        spec = Call(cast("Callable[..., object]", build), args, kwargs)  # ParamSpec is narrower than ...
        if isinstance(made, GradientTransformation):
            named: object = GradientTransformation(*made.raw, made.needs, made.local, spec)
        else:
            named = Recorded(cast("Callable[..., object]", made), spec)  # a factory makes one or the other
        return cast("R", named)  # the same kind of thing, with a name

    return build


# --- manners: what every transformation does the same way


def _mannered_init(name: str, init: Callable[..., Tree]) -> Init:
    def mannered(params: Tree) -> Tree:
        params = normalise(params)
        check_tensors(name, "parameter", params)
        for path, leaf in zip(tree.paths(params), tree.leaves(params), strict=True):
            if not (leaf.is_floating_point() or leaf.is_complex()):
                raise TypeError(
                    f"{name}: parameter {path!r} has dtype {leaf.dtype}, which has no gradient; "
                    "hint: optimize floating or complex tensors, and keep the others apart"
                )
        return init(params)

    return mannered


def _mannered_update(name: str, update: Callable[..., tuple[Tree, Tree]], needs: frozenset[str]) -> Update:
    requires_params = _requires_params(update)

    def mannered(updates: T, state: S, params: Tree | None = None, **extra: object) -> tuple[T, S]:
        if params is None and requires_params:
            raise ValueError(f"{name}: it needs the parameters and got none; hint: update(updates, state, params)")
        for needed in needs:
            if needed not in extra:
                raise ValueError(
                    f"{name}: it needs {needed}= and did not get it; hint: update(updates, state, params, {needed}=...)"
                )
        given = {needed: extra[needed] for needed in needs}
        try:
            new: object = update(updates, state, params, **given)
        except Mismatch as mismatch:
            new = around_holes(functools.partial(update, **given), updates, state, params, name, mismatch)
        except (TypeError, AttributeError, RuntimeError) as error:
            explain_update(error, name, updates, state, params)
            raise
        return cast("tuple[T, S]", new)  # a rule keeps both structures: the law `stable`

    return mannered


def around_holes(
    update: Callable[..., tuple[Tree, Tree]],
    updates: Tree,
    state: Tree,
    params: Tree | None,
    name: str,
    mismatch: Mismatch,
) -> tuple[Tree, Tree]:
    """The update of the leaves that have a gradient; the state of the others stays as it was.

    Raises:
        ValueError, TypeError: holes do not explain the mismatch; a leaf is no tensor.
    """
    try:
        if not has_holes(updates):
            raise mismatch
        updates = normalise(updates)
        if not tree.leaves(updates):
            return updates, state
        whole = updates if params is None else normalise(params)
        smaller = None if params is None else punch(params, updates)
        new_updates, new_state = update(updates, punch_inside(state, updates, whole), smaller)
        return new_updates, fill(new_state, state)
    except Mismatch as found:
        check_tensors(name, "update", updates)
        check_tensors(name, "parameter", params)
        raise ValueError(
            f"{name}: {found}; hint: updates, state and params must come from one tree of parameters"
        ) from None


def _requires_params(update: Callable[..., object]) -> bool:
    if torch.compiler.is_compiling():
        return False  # a trace cannot look into a function that it made (inject_hyperparams makes them there)
    positional = [p for p in inspect.signature(update).parameters.values() if p.kind <= p.POSITIONAL_OR_KEYWORD]
    return len(positional) > 2 and positional[2].default is inspect.Parameter.empty


# --- the smallest transformations, and what is done with updates


@rule
def identity() -> GradientTransformation:
    """Leave the updates as they are. The neutral element of `chain`."""
    return GradientTransformation(lambda params: (), lambda updates, state, params=None: (updates, state), local=True)


@rule
def set_to_zero() -> GradientTransformation:
    """Replace every update by zero, so that the parameters stay as they are.

    A gradient that is not finite becomes zero too.
    """
    return stateless(lambda updates, params: tree.zeros_like(updates), local=True)


def stateless(f: Callable[..., Tree], local: bool = False) -> GradientTransformation:
    """The transformation without memory that maps updates to `f(updates, params)`; params may be None."""
    return GradientTransformation(
        lambda params: (), lambda updates, state, params=None: (f(updates, params), state), local=local
    )


def apply_updates(params: T, updates: Tree) -> T:
    """The parameters after the updates: p + u, in the dtype of p.

    A parameter whose update is a hole stays the tensor that it was.

    Raises:
        ValueError, TypeError: the trees do not correspond, or a leaf is no tensor; the message names it.
    """

    def add(updates: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return tree.pointwise(lambda p, u: p + u, params, tree.cast_like(updates, params)), ()

    try:
        return cast("T", add(updates, (), params)[0])  # p + u has the shape and dtype of p
    except Mismatch as mismatch:
        return fill(cast("T", around_holes(add, updates, (), params, "apply_updates", mismatch)[0]), params)
    except (TypeError, AttributeError, RuntimeError) as error:
        explain_update(error, "apply_updates", updates, (), params)
        raise


class UpdateAndApply:
    """`(grads, state, params) -> (params, state)`: one step of a rule, as one pure function."""

    def __init__(self, tx: GradientTransformation) -> None:
        self.tx = tx

    def __repr__(self) -> str:
        return f"update_and_apply({self.tx})"

    def __call__(self, grads: Tree, state: Tree, params: Tree, **extra: object) -> tuple[Tree, Tree]:
        """Update, then apply. Extras go through by keyword."""
        check_tree("update_and_apply", state)
        updates, state = self.tx.update(grads, state, params, **extra)
        return apply_updates(params, updates), state


def update_and_apply(tx: GradientTransformation) -> UpdateAndApply:
    """One step of a rule as one pure function: `(grads, state, params) -> (params, state)`.

    Compile it with `ft.jit(ft.update_and_apply(tx))` for a loop of your own.

    Raises:
        TypeError: it is no transformation.
    """
    if not isinstance(tx, GradientTransformation):
        raise TypeError(f"update_and_apply: tx is a {instead_of_rule(tx)}")
    return UpdateAndApply(tx)
