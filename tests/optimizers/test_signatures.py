"""A factory that Optax has is called as there: names, order, kinds and defaults of its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
import optax.contrib
import pytest
import torch

import functrain

SHARED = {
    name: (getattr(functrain, name), there)
    for name in functrain.__all__
    for there in [getattr(optax, name, getattr(optax.contrib, name, None))]
    if inspect.isfunction(there)
}
SAME = {jnp.float32: torch.float32}


def arguments(factory: Callable[..., Any]) -> list[tuple[object, ...]]:
    return [
        (p.kind,) if p.kind is p.VAR_POSITIONAL else (p.kind, name, plain(p.default))  # nobody writes the name of *args
        for name, p in inspect.signature(factory).parameters.items()
    ]


def plain(default: object) -> object:
    """The default, as something that the two libraries have in common."""
    return default.__name__.strip("_") if inspect.isfunction(default) else SAME.get(default, default)


@pytest.mark.parametrize(("ours", "theirs"), SHARED.values(), ids=SHARED)
def test_a_factory_has_the_arguments_of_optax(ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    expected = arguments(theirs)
    assert arguments(ours)[: len(expected)] == expected  # what is ours alone comes after
