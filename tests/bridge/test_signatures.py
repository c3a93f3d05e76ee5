"""The classes of functrain.optim take what torch's take, and `compile` beyond that."""

from __future__ import annotations

import inspect

import pytest
import torch

from functrain import optim


def arguments(made: type) -> list[tuple[str, object, object]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(made).parameters.values()]


def test_there_are_the_classes_of_torch_but_those_for_sparse_gradients() -> None:
    theirs = {name for name, x in vars(torch.optim).items() if isinstance(x, type)} - {"Optimizer", "SparseAdam"}
    assert set(optim.__all__) == theirs


@pytest.mark.parametrize("name", optim.__all__)
def test_arguments_their_order_and_their_defaults_are_torchs_and_compile_is_keyword_only(name: str) -> None:
    ours, theirs = arguments(getattr(optim, name)), arguments(getattr(torch.optim, name))
    assert [a for a in ours if a[0] != "compile"] == theirs
    assert ("compile", inspect.Parameter.KEYWORD_ONLY, False) in ours
