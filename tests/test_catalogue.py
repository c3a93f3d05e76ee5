"""What holds for every public transform: the numbers of Optax or torch.optim, and the call that built it."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from functrain import tree
from functrain.base import apply_updates
from functrain.combinators.chain import chain
from functrain.testing.trial import extras
from functrain.transforms.scale import scale
from tests.catalogue import CATALOGUE, NAMES, Entry
from tests.oracle import assert_agrees, assert_bitwise, gradients, parameters, run

every_entry = pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.id)


def test_every_public_factory_of_transforms_is_in_the_catalogue() -> None:
    found = set()
    for folder in ("transforms", "optimizers", "combinators"):
        package = importlib.import_module(f"functrain.{folder}")
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for name, f in vars(importlib.import_module(info.name)).items():
                # `rule` wraps a factory
                if hasattr(f, "__wrapped__") and f.__annotations__.get("return") == "GradientTransformation":
                    found.add(name)
    assert found - {entry.name for entry in CATALOGUE} == set()


@pytest.mark.parametrize("entry", [e for e in CATALOGUE if e.oracle], ids=lambda entry: entry.id)
def test_25_updates_agree_with_optax(entry: Entry) -> None:
    assert entry.oracle
    assert_agrees(entry.make(), entry.oracle)


SHAPES = {"matrix": (3, 2), "number": (), "vector": (5,), "kernel": (2, 3, 2, 2), "row": (1, 4)}
GRADIENTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "any": lambda g, t: g,
    "tiny": lambda g, t: 1e-12 * g,
    "with zeros": lambda g, t: g * (t > 2) * (g.abs() > 0.5),
    "flipping": lambda g, t: g.abs() * (-1) ** t,
}


def drawn(draw: torch.Generator, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("entry", [e for e in CATALOGUE if e.torch], ids=lambda entry: entry.id)
@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)], ids=str)
def test_30_updates_agree_with_torch(entry: Entry, kind: str, dtype: torch.dtype, tolerance: float) -> None:
    """To so much of the way that a leaf has gone: where it comes back to zero, all its digits are rounding.

    Tiny gradients go to tiny parameters, which would round them away otherwise.
    """
    draw = torch.Generator().manual_seed(0)
    params: Any = tree.map(lambda p: p * (1e-12 if kind == "tiny" else 1.0), drawn(draw, dtype))
    theirs, way = tree.map(torch.clone, params), tree.map(torch.norm, params)
    assert entry.torch
    optimizer = entry.torch(tree.leaves(theirs))
    (group,) = optimizer.param_groups
    tx = entry.make() if entry.steps else chain(entry.make(), scale(-group["lr"]))
    state = tx.init(params)
    for t in range(30):
        g = tree.map(lambda x, t=t: GRADIENTS[kind](x, t), drawn(draw, dtype))
        for p, x in zip(tree.leaves(theirs), tree.leaves(g), strict=True):
            p.grad = x.clone()
        before = tree.map(torch.clone, theirs)
        optimizer.step()
        way = tree.map(lambda w, p, q: w + (p - q).norm(), way, theirs, before)
        updates, state = tx.update(g, state, params)
        params = apply_updates(params, updates)
    taken = {name for name, p in theirs.items() if any(p is q for q in group["params"])}
    assert taken
    for name in taken:
        assert (params[name] - theirs[name]).norm() <= tolerance * way[name], name


@every_entry
def test_a_transform_prints_as_the_expression_that_builds_it(entry: Entry) -> None:
    tx = entry.make()
    again = eval(repr(tx), dict(NAMES))
    assert again == tx
    assert repr(again) == repr(tx)
    assert_bitwise(run(again, gradients(3)), run(tx, gradients(3)))


@every_entry
def test_a_transform_pickles_and_its_copy_is_itself(entry: Entry) -> None:
    tx = entry.make()
    again = pickle.loads(pickle.dumps(tx))
    assert again == tx
    assert_bitwise(run(again, gradients(3)), run(tx, gradients(3)))
    assert copy.deepcopy(tx) is tx


@every_entry
def test_the_traits_are_what_the_transform_says_of_itself(entry: Entry) -> None:
    tx = entry.make()
    assert tx.local is entry.local
    assert tx.needs == entry.extras
    params = parameters()
    state = tx.init(params)
    if not entry.needs_params:
        tx.update(gradients(1)[0], state, **extras(tx, params, gradients(1)[0]))
        return
    with pytest.raises(ValueError, match="it needs the parameters and got none"):
        tx.update(gradients(1)[0], state)


@every_entry
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_keeps_its_moments_in_float32_and_its_updates_in_half(entry: Entry, dtype: torch.dtype) -> None:
    tx = entry.make()
    params = tree.cast(parameters(), dtype)
    state = tx.init(params)
    for g in gradients(2):
        half = tree.cast(g, dtype)
        updates, state = tx.update(half, state, params, **extras(tx, params, half))
        params = apply_updates(params, updates)
    assert {x.dtype for x in tree.leaves((updates, params))} == {dtype}
    assert not {torch.float16, torch.bfloat16} & {x.dtype for x in tree.leaves(state)}


def rotated(t: Any) -> Any:
    """The same numbers as parts of complex ones: x (3 + 4i) / 5, so that every absolute value is |x|."""
    return tree.map(lambda x: x * (0.6 + 0.8j), t)


@pytest.mark.parametrize("entry", [e for e in CATALOGUE if e.complex], ids=lambda entry: entry.id)
def test_turning_a_complex_gradient_turns_the_update(entry: Entry) -> None:
    tx = entry.make()
    params = rotated(parameters())
    state = tx.init(params)
    ours = run(tx, gradients(4))
    for g, expected in zip(gradients(4), ours.updates, strict=True):
        updates, state = tx.update(rotated(g), state, params, **extras(tx, params, rotated(g)))
        params = apply_updates(params, updates)
        for u, e in zip(tree.leaves(updates), tree.leaves(rotated(expected)), strict=True):
            assert u.dtype == torch.complex128
            torch.testing.assert_close(u, e.to(u.dtype), rtol=1e-9, atol=1e-15)
