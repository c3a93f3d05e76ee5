"""The table of README.md beside other libraries is what they do, measured again, cell by cell."""

from __future__ import annotations

import importlib

import pytest
import torch

import functrain as ft

pytestmark = pytest.mark.long  # it needs the extra `interop`


def test_each_cell_is_measured() -> None:
    comparison = importlib.import_module("tests.interop.comparison")  # jax and TorchOpt
    inside = comparison.PAGE.read_text("utf-8").partition(comparison.BEGIN)[2].partition(comparison.END)[0]
    assert inside == comparison.table(), "hint: python -m tests.interop.comparison --write"


@pytest.mark.parametrize(
    "names",
    [
        "torch.optim.SparseAdam torch.distributed.fsdp.fully_shard",
        "torchopt.distributed.rpc torchopt.diff.implicit.custom_root",
        "jax.sharding.NamedSharding",
        "lightning.pytorch.strategies.FSDPStrategy lightning.pytorch.Trainer",
        "functrain.testing.laws.check_all functrain.Trainer",
    ],
)
def test_what_the_table_says_without_a_run_has_a_name_in_the_library(names: str) -> None:
    for name in names.split():
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name


def test_functrain_refuses_sparse_gradients() -> None:
    table = torch.nn.Embedding(3, 2, sparse=True)
    table(torch.tensor([0])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        ft.TorchOptimizer(table.parameters(), ft.adam, learning_rate=0.1).step()
