"""How long a batch is, whatever it is made of."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, UserList
from typing import Any

import pytest
import torch
from torch import nn

from functrain.data import length, tensors
from functrain.optimizers.momentum import sgd
from functrain.trainer import Trainer


class Rows(dict[str, object]):
    pass


class Pair(tuple[object, ...]):
    pass


@dataclasses.dataclass
class Sample:
    name: str
    x: object


X = torch.zeros(7, 3)


@pytest.mark.parametrize(
    "batch",
    [
        X,
        (X, torch.zeros(2)),
        ["text", torch.tensor(1.0), {"x": X}],
        UserDict(mask=None, x=X),
        OrderedDict(x=X),
        UserList([X]),
        Rows(x=X),
        Pair((1, X)),
        Sample("a", [X]),
        [Sample("a", Rows(x=X)), torch.zeros(2)],
        torch.zeros(7, 3).max(1),
    ],
)
def test_a_batch_is_as_long_as_its_first_tensor_that_has_a_length(batch: object) -> None:
    assert length(batch) == 7


@pytest.mark.parametrize("batch", [torch.tensor(1.0), "a text", None, 3, [], Sample("a", 1), b"bytes", Sample])
def test_a_batch_without_such_a_tensor_is_of_length_one(batch: object) -> None:
    assert length(batch) == 1


def test_tensors_come_in_order() -> None:
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    assert [x.item() for x in tensors([UserDict(x=a, y=Sample("b", (b,))), Rows(c=c)])] == [0.0, 1.0, 2.0]


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean() + self.w


def objective(module: nn.Module, batch: Any) -> torch.Tensor:
    return module(batch["x"])


@pytest.mark.parametrize("kind", [UserDict, Rows, dict])
def test_a_mean_weighs_the_batch_whatever_holds_it(kind: type[Any]) -> None:
    batches = [kind(x=torch.zeros(9, 1)), kind(x=torch.ones(1, 1))]
    assert Trainer(Mean(), sgd(0.1), batches, batches, objective=objective).evaluate() == {
        "loss": pytest.approx(0.1, rel=1e-6)
    }
