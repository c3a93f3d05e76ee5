"""The laws that every transformation keeps, each a function that raises `LawBroken`.

    laws.check_all(my_rule(0.9))

tries all of them on trees, gradients and dtypes that Hypothesis draws, and reports the smallest counterexample it
finds: the law, the leaf, the numbers. They work in and out of pytest.

Arguments that mean the same everywhere:
    tx: the transformation.
    params: a Hypothesis strategy for the parameters, where a rule takes only some (matrices, say); None is any tree.
    examples: how many trials; a third of what the Hypothesis profile says if None.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Collection

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from functrain import tree
from functrain.base import GradientTransformation, apply_updates, identity, update_and_apply
from functrain.combinators.chain import chain
from functrain.holes import punch
from functrain.paths import children
from functrain.testing.manners import LawBroken, a_kind, check_rule, possible, update
from functrain.testing.memory import check_memory, same_again
from functrain.testing.trial import Step, Trial, close, compare, example, extras, for_all, leaf_name, run, show
from functrain.testing.writes import watched
from functrain.transforms.momentum import trace
from functrain.transforms.scale import scale
from functrain.tree import Tree

__all__ = [
    "LAWS", "LawBroken", "check_all", "check_associative", "check_compiled", "check_differentiable", "check_finite",
    "check_local", "check_neutral", "check_pure", "check_saved", "check_stable", "check_vmap",
]  # fmt: skip

Params = SearchStrategy[Tree]


def check_pure(tx: GradientTransformation, params: Params | None = None, examples: int | None = None) -> None:
    """`update` writes to none of its arguments, and equal arguments give equal results, bit for bit."""
    check_rule("check_pure", tx)

    def law(trial: Trial) -> None:
        p, state = trial.params, tx.init(trial.params)
        one: list[Step] = []
        two: list[Step] = []
        for grads in trial.history:
            extra = extras(tx, p, grads)
            call = functools.partial(update, tx, grads, state, p, extra)
            (updates, new), complaint = watched(call, updates=grads, state=state, params=p, extra=extra)
            if complaint:
                raise LawBroken("pure", tx, complaint)
            again, other = call()
            one.append(Step(updates, new, apply_updates(p, updates)))
            two.append(Step(again, other, apply_updates(p, again)))
            same_again(tx, one, two)
            p, state = one[-1].params, new

    check_memory(tx, params)
    for_all(law, params, examples)


def check_stable(tx: GradientTransformation, params: Params | None = None, examples: int | None = None) -> None:
    """Updates are like the gradients, and the state stays what `init` made: structure, shapes, dtypes and devices.

    Every leaf of a state is a tensor, and its containers are dict, list, tuple and NamedTuple.
    """
    check_rule("check_stable", tx)

    def law(trial: Trial) -> None:
        p, state = trial.params, tx.init(trial.params)
        first = state
        _check_state(tx, first)
        for t, grads in enumerate(trial.history, 1):
            updates, state = update(tx, grads, state, p, extras(tx, p, grads))
            _check_like(tx, f"the updates of step {t}", updates, "the gradients", grads)
            _check_like(tx, f"the state after step {t}", state, "that of init", first)
            p = apply_updates(p, updates)

    for_all(law, params, examples)


def _check_state(tx: GradientTransformation, state: Tree) -> None:
    below = children(state)
    if state is None:
        raise LawBroken("stable", tx, "has None in its state; hint: an empty place is ()")
    if below is None and not isinstance(state, Tensor):
        raise LawBroken("stable", tx, f"has {a_kind(state)} in its state; hint: every leaf is a tensor")
    for _, child in below or ():
        _check_state(tx, child)


def _check_like(tx: GradientTransformation, what: str, new: Tree, than: str, old: Tree) -> None:
    if tree.keys(new) != tree.keys(old):
        missing = sorted(set(tree.keys(new)) ^ set(tree.keys(old)))
        raise LawBroken("stable", tx, f"changes structure: {what} and {than} differ in {missing or 'their order'}")
    for path, a, b in zip(tree.paths(new), tree.leaves(new), tree.leaves(old), strict=True):
        here, there = ((x.dtype, tuple(x.shape), x.device.type) for x in (a, b))
        if here != there:
            kinds = ", not ".join(f"{dtype} {shape} on {device}" for dtype, shape, device in (here, there))
            raise LawBroken("stable", tx, f"changes {leaf_name(path)}: in {what} it is {kinds} as in {than}")


def check_local(tx: GradientTransformation, params: Params | None = None, examples: int | None = None) -> None:
    """A leaf alone gives what it gives in the tree, bit for bit. Asked only of those that say they are `local`."""
    check_rule("check_local", tx)

    def law(trial: Trial) -> None:
        together = run(tx, trial.params, trial.history)
        n = len(tree.leaves(trial.params))
        for i in range(n if n > 1 else 0):
            only = tree.unflatten(trial.params, [True if j == i else () for j in range(n)])
            alone = run(tx, punch(trial.params, only), [punch(g, only) for g in trial.history])
            among = [Step(punch(s.updates, only), (), punch(s.params, only)) for s in together]
            compare("local", tx, ("alone, it", alone), ("in the tree", among))

    if tx.local:
        for_all(law, params, examples)


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_finite(tx: GradientTransformation) -> None:
    """Gradients of zero, of the dtype's smallest numbers and of √max / 8 give finite updates, in every float dtype."""
    check_rule("check_finite", tx)
    for dtype in FLOATS:
        info = torch.finfo(dtype)
        params: Tree = {"w": torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=dtype), "b": torch.ones((), dtype=dtype)}
        for size in (0.0, info.smallest_normal, info.eps * info.smallest_normal, info.max**0.5 / 8):
            grads = tree.map(lambda p, size=size: (2 * (p > 0) - 1) * torch.full_like(p, size), params)
            for t, step in enumerate(run(tx, params, [grads, grads, tree.zeros_like(grads)]), 1):
                for path, u in zip(tree.paths(step.updates), tree.leaves(step.updates), strict=True):
                    if not u.isfinite().all():
                        what = f"gives {show(u)} for {leaf_name(path)} at step {t}, under gradients of {size:.3g}"
                        raise LawBroken("finite", tx, f"{what} in {dtype}")


def check_compiled(tx: GradientTransformation, backend: str = "aot_eager") -> None:
    """Compiled into one graph, without a break, it computes the same, and one graph serves all updates.

    Clears torch.compile's caches: all rules are the same code to it, with other guards.

    Args:
        backend: of torch.compile.
    """
    check_rule("check_compiled", tx)
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    params, history = example()
    expected = [s._replace(updates=()) for s in run(tx, params, history)]
    step = torch.compile(update_and_apply(tx), backend=backend, fullgraph=True)
    p, state, steps = params, tx.init(params), []
    for grads in history:
        with possible("compiled", tx, "compiled"):
            p, state = step(grads, state, p, **extras(tx, p, grads))
        steps.append(Step((), state, p))
    compare("compiled", tx, ("compiled, it", steps), ("in eager mode", expected), close)
    times = graphs["unique_graphs"] - before
    if times != 1:
        raise LawBroken("compiled", tx, f"is compiled {times} times in {len(history)} updates, not once")


def check_vmap(tx: GradientTransformation, params: Params | None = None, examples: int | None = None) -> None:
    """Under `torch.func.vmap` it computes what a loop does, up to rounding."""
    check_rule("check_vmap", tx)

    def step(grads: Tree, state: Tree, p: Tree) -> Step:
        updates, state = update(tx, grads, state, p, extras(tx, p, grads))
        return Step(updates, state, apply_updates(p, updates))

    def law(trial: Trial) -> None:
        if not tree.leaves(trial.params):
            return
        members = [trial, Trial(trial.params, trial.history[::-1])]
        loops = [run(tx, *member) for member in members]
        p, state = (tree.stack([f(m.params) for m in members]) for f in (lambda p: p, tx.init))
        mapped = []
        for grads in zip(*(m.history for m in members), strict=True):
            with possible("vmap", tx, "mapped"):
                at = torch.func.vmap(step)(tree.stack(grads), state, p)
            mapped.append(at)
            state, p = at.state, at.params
        for i, loop in enumerate(loops):
            ours = [tree.map(lambda x, i=i: x[i], s) for s in mapped]
            compare("vmap", tx, ("mapped, it", ours), ("in a loop", loop), close)

    for_all(law, params, examples)


def check_neutral(tx: GradientTransformation, params: Params | None = None, examples: int | None = None) -> None:
    """`identity()` before or after it in a chain changes nothing, bit for bit."""
    check_rule("check_neutral", tx)

    def law(trial: Trial) -> None:
        expected = ("without it", run(tx, *trial))
        compare("neutral", tx, ("after identity(), it", run(chain(identity(), tx), *trial)), expected)
        compare("neutral", tx, ("before identity(), it", run(chain(tx, identity()), *trial)), expected)

    for_all(law, params, examples)


def check_associative(tx: GradientTransformation, params: Params | None = None, examples: int | None = None) -> None:
    """How a chain is bracketed does not matter, bit for bit."""
    check_rule("check_associative", tx)
    before, after = trace(0.5), scale(-0.5)

    def law(trial: Trial) -> None:
        flat = ("as chain(a, it, b)", run(chain(before, tx, after), *trial))
        compare("associative", tx, ("as chain(chain(a, it), b)", run(chain(chain(before, tx), after), *trial)), flat)
        compare("associative", tx, ("as chain(a, chain(it, b))", run(chain(before, chain(tx, after)), *trial)), flat)

    for_all(law, params, examples)


def check_saved(tx: GradientTransformation, params: Params | None = None, examples: int | None = None) -> None:
    """A state that was written, and read with `weights_only=True`, goes on as if nothing had happened, bit for bit."""
    check_rule("check_saved", tx)

    def law(trial: Trial) -> None:
        again = trial.history * 2  # at least two updates
        steps = run(tx, trial.params, again)
        file = io.BytesIO()
        torch.save(dict(zip(tree.keys(steps[0].state), tree.leaves(steps[0].state), strict=True)), file)
        file.seek(0)
        leaves = torch.load(file, weights_only=True)
        state = tree.unflatten(tx.init(trial.params), [leaves[key] for key in tree.keys(steps[0].state)])
        later = run(tx, steps[0].params, again[1:], state)
        compare("saved", tx, ("read back, it", later), ("untouched", steps[1:]))

    for_all(law, params, examples)


def check_differentiable(tx: GradientTransformation) -> None:
    """Its derivative through three updates is that of finite differences, and finite where gradients are zero."""
    check_rule("check_differentiable", tx)
    params, history = example()
    weights = tree.map(lambda p: torch.linspace(1, 2, p.numel(), dtype=p.dtype).view(p.shape), params)

    def f(history: list[Tree]) -> Tensor:
        ends = [s.updates for s in run(tx, params, history)]
        products = [(u * w).sum() for end in ends for u, w in zip(*map(tree.leaves, (end, weights)), strict=True)]
        return torch.stack(products).sum()

    run(tx, params, history)  # an error of its own is raised as it is
    with possible("differentiable", tx, "differentiated"):
        slope, at_zero = (torch.func.grad(f)(at) for at in (history, tree.zeros_like(history)))
    for where, slopes in (("ordinary", slope), ("zero", at_zero)):
        for path, d in zip(tree.paths(slopes[0]) * len(slopes), tree.leaves(slopes), strict=True):
            if not d.isfinite().all():
                what = f"has derivative {show(d)} in the gradient of {leaf_name(path)}, under {where} gradients"
                raise LawBroken("differentiable", tx, what)

    h = 1e-6
    ahead, behind = (tree.map(lambda g, d, h=h: g + h * d, history, slope) for h in (h, -h))
    measured, squared = (f(ahead) - f(behind)) / (2 * h), tree.norm(slope).square()
    if not torch.isclose(measured, squared, rtol=1e-4, atol=1e-8):
        what = f"has slope {show(squared)} along its derivative; finite differences: {show(measured)}"
        raise LawBroken("differentiable", tx, what)


LAWS: dict[str, Callable[..., None]] = {
    name: globals()[f"check_{name}"]
    for name in "pure stable local finite vmap neutral associative saved differentiable compiled".split()
}


def check_all(tx: GradientTransformation, exempt: Collection[str] = (), params: Params | None = None) -> None:
    """Every law: a rule that passes takes part in all that functrain does.

    Args:
        exempt: names of laws that do not hold by definition: `"finite"` for a rule that divides by a variance.

    Raises:
        LawBroken: a law is broken; the message names it.
        TypeError: tx is no transformation, or its update does not return a pair.
        ValueError: there is no law of a name in `exempt`.
    """
    check_rule("check_all", tx)
    unknown = sorted(set(exempt) - set(LAWS))
    if unknown:
        raise ValueError(f"check_all: there is no law {unknown[0]!r}; hint: there is {', '.join(LAWS)}")
    for name, check in LAWS.items():
        if name not in exempt:
            check(tx) if name in ("finite", "differentiable", "compiled") else check(tx, params)
