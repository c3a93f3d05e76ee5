"""A trial: parameters and some gradients, a transformation run over them, and what is said when a law breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from functrain import tree
from functrain.base import GradientTransformation, apply_updates
from functrain.testing import strategies
from functrain.testing.manners import LawBroken, update
from functrain.tree import Tree

SHOWN = 6  # numbers of a leaf that a message shows


class Trial(NamedTuple):
    """What a transformation is tried on."""

    params: Tree
    history: list[Tree]  # gradients, one tree an update


class Step(NamedTuple):
    """What one update gave."""

    updates: Tree
    state: Tree
    params: Tree  # after the update


@st.composite
def trials(draw: st.DrawFn, params: SearchStrategy[Tree] | None = None, updates: int = 3) -> Trial:
    """Parameters of moderate size, and gradients like them for up to so many updates."""
    values = st.sampled_from((1.0, 0.0, -1.0, -0.0, 4.0)) | st.floats(-8, 8)
    leaf = st.sampled_from(strategies.FLOATS).flatmap(lambda dtype: strategies.tensors(dtype, values=values))
    drawn = draw(strategies.trees(leaf=leaf, max_leaves=4) if params is None else params)
    return Trial(drawn, draw(strategies.histories(drawn, updates, values)))


def example() -> Trial:
    """A matrix and a number in float64, and three gradients: where one trial is enough."""
    draw = torch.Generator().manual_seed(0)
    first, *rest = [
        {name: torch.randn(shape, dtype=torch.float64, generator=draw) for name, shape in (("w", (3, 2)), ("s", ()))}
        for _ in range(4)
    ]
    return Trial(first, list(rest))


def for_all(law: Callable[[Trial], None], params: SearchStrategy[Tree] | None, examples: int | None) -> None:
    """The law of every trial that Hypothesis draws; the smallest one that breaks it is reported.

    Args:
        law: raises LawBroken.
        params: where parameters come from.
        examples: how many trials; a third of what the Hypothesis profile says if None.
    """
    n = max(1, settings().max_examples // 3) if examples is None else examples
    phases = [phase for phase in settings().phases if phase is not Phase.explain]  # it would name lines of functrain

    @settings(max_examples=n, deadline=None, database=None, report_multiple_bugs=False, print_blob=False, phases=phases)
    @given(trials(params))
    def run(trial: Trial) -> None:
        law(trial)

    run()


def extras(tx: GradientTransformation, params: Tree, grads: Tree) -> dict[str, object]:
    """The extra arguments that the transformation needs, of a loss ½ |p|²."""

    def value_fn(p: Tree) -> Tensor:
        return 0.5 * tree.norm(p).square()

    known: dict[str, object] = {"value": value_fn(params), "grad": grads, "value_fn": value_fn}
    return {name: known[name] for name in tx.needs}


def run(tx: GradientTransformation, params: Tree, history: Iterable[Tree], state: Tree | None = None) -> list[Step]:
    """The updates, one after another, from `state` or from the beginning."""
    at: Tree = tx.init(params) if state is None else state
    steps = []
    for grads in history:
        updates, at = update(tx, grads, at, params, extras(tx, params, grads))
        params = apply_updates(params, updates)
        steps.append(Step(updates, at, params))
    return steps


# --- comparing and showing


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape and numbers; NaN is NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b) or torch.equal(*map(_no_nan, (a, b))))


def _no_nan(x: Tensor) -> Tensor:
    return torch.stack([x.isnan().to(x.dtype), x.nan_to_num(0.0, torch.inf, -torch.inf)])


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of their dtype, through a few updates of numbers around one."""
    half = a.dtype in (torch.float16, torch.bfloat16)
    tolerance = 16 * torch.finfo(a.dtype).eps if half else None
    try:
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    except AssertionError:
        return False
    return True


def show(x: Tensor) -> str:
    """The first numbers of a tensor, and its dtype if it is not float32."""
    numbers = ", ".join(f"{n:.6g}" if isinstance(n, float) else str(n) for n in x.flatten()[:SHOWN].tolist())
    more = ", ..." if x.numel() > SHOWN else ""
    kind = "" if x.dtype == torch.float32 else f" {str(x.dtype).removeprefix('torch.')}"
    return f"[{numbers}{more}]{kind}" if x.dim() else f"{numbers}{kind}"


def leaf_name(path: str) -> str:
    """How a message calls a leaf."""
    return f"leaf {path!r}" if path else "the leaf"


def difference(one: Tree, other: Tree, equal: Callable[[Tensor, Tensor], bool]) -> tuple[str, str, str] | None:
    """The first leaf in which two trees of one structure differ: its name, and its numbers in both."""
    for path, a, b in zip(tree.paths(one), tree.leaves(one), tree.leaves(other), strict=True):
        if not equal(a, b):
            return leaf_name(path), show(a), show(b)
    return None


def compare(
    law: str,
    tx: GradientTransformation,
    this: tuple[str, Iterable[Step]],
    that: tuple[str, Iterable[Step]],
    equal: Callable[[Tensor, Tensor], bool] = same,
    hint: str = "",
) -> None:
    """Raise LawBroken where two runs give other updates, or leave other parameters."""
    for t, (a, b) in enumerate(zip(this[1], that[1], strict=True), 1):
        for what, one, other in (("update", a.updates, b.updates), ("parameter", a.params, b.params)):
            found = difference(one, other, equal)
            if found:
                leaf, mine, theirs = found
                told = f"{this[0]} gives {what} {mine} of {leaf} at step {t}; {that[0]}: {theirs}"
                raise LawBroken(law, tx, f"{told}; hint: {hint}" if hint else told)
