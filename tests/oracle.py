"""The same optimizer in functrain and in Optax, over the same 25 gradients in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import Tensor

from functrain import tree
from functrain.base import GradientTransformation, apply_updates
from functrain.testing.trial import extras

STEPS = 25


def parameters(seed: int = 0) -> dict[str, Any]:
    """A nested tree: matrices, vectors and a 0-dim leaf in dicts and a list."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    return {
        "layers": [{"w": normal(3, 2), "b": normal(3)}, {"w": normal(2, 3), "b": normal(2)}],
        "head": {"w": normal(2), "scale": normal()},
    }


def gradients(steps: int = STEPS) -> list[dict[str, Any]]:
    return [parameters(seed) for seed in range(100, 100 + steps)]


def to_jax(t: Any) -> Any:
    """The same tree with jax arrays as leaves."""
    return tree.map(lambda x: jnp.asarray(x.numpy()), t)


class Run(NamedTuple):
    """What an optimizer did."""

    updates: list[Any]  # one tree a step
    states: list[Any]  # one a step
    params: Any  # at the end


def run(tx: GradientTransformation, grads: Sequence[Any], **extra: Any) -> Run:
    """`extra` goes to the rule; what else it needs is made up, of a loss ½ |p|²."""
    params = parameters()
    state = tx.init(params)
    all_updates, states = [], []
    for g in grads:
        updates, state = tx.update(g, state, params, **{**extras(tx, params, g), **extra})
        params = apply_updates(params, updates)
        all_updates.append(updates)
        states.append(state)
    return Run(all_updates, states, params)


def run_optax(make: Callable[[], Any], grads: Sequence[Any]) -> Run:
    """`make` is called where jax computes in float64."""
    with jax.enable_x64(True):
        tx = make()
        params = to_jax(parameters())
        state = tx.init(params)
        update = jax.jit(tx.update)
        all_updates, states = [], []
        for g in grads:
            updates, state = update(to_jax(g), state, params)
            params = optax.apply_updates(params, updates)
            all_updates.append(updates)
            states.append(state)
        return Run(all_updates, states, params)


def assert_same(ours: Any, theirs: Any, rtol: float = 1e-9) -> None:
    """Corresponding leaves of a tree of ours and one of Optax are equal to 1e-9."""
    there = dict(zip(tree.paths(theirs), tree.leaves(theirs), strict=True))  # jax sorts the keys of dicts
    assert set(tree.paths(ours)) == set(there)
    for path, a in zip(tree.paths(ours), tree.leaves(ours), strict=True):
        b = torch.from_numpy(np.array(there[path]))
        assert a.dtype == b.dtype, path
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-15, equal_nan=True, msg=lambda m, p=path: f"{p}: {m}")


def assert_agrees(tx: GradientTransformation, make: Callable[[], Any], grads: Sequence[Any] | None = None) -> None:
    """Updates and final parameters are those of Optax."""
    grads = gradients() if grads is None else grads
    ours, theirs = run(tx, grads), run_optax(make, grads)
    for a, b in zip(ours.updates, theirs.updates, strict=True):
        assert_same(a, b)
    assert_same(ours.params, theirs.params)


def assert_bitwise(a: Any, b: Any) -> None:
    """Two trees of ours are equal, bit for bit."""
    assert tree.paths(a) == tree.paths(b)
    for path, x, y in zip(tree.paths(a), tree.leaves(a), tree.leaves(b), strict=True):
        assert x.dtype == y.dtype, path
        assert torch.equal(x, y) or bool(((x == y) | (x.isnan() & y.isnan())).all()), path
