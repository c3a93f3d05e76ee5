"""The random streams of loaders, and how long a loader is."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from functrain.run.place import known_length
from functrain.run.streams import capture, restore, streams, to_json


@pytest.mark.parametrize(("loader", "length"), [([1, 2], 2), (iter([1]), None)])
def test_a_length_is_known_or_none(loader: object, length: int | None) -> None:
    assert known_length(loader) == length


def draw(loader: DataLoader[tuple[Tensor]], dice: random.Random, bits: np.random.Generator) -> list[object]:
    return [
        torch.rand(2).tolist(), random.gauss(0, 1), np.random.rand(), np.random.randn(), dice.random(),
        bits.normal(), [x.tolist() for (x,) in loader],
    ]  # fmt: skip


@pytest.mark.parametrize("through_json", [False, True])
def test_streams_that_were_put_back_repeat_themselves(through_json: bool) -> None:
    data = TensorDataset(torch.arange(9))
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(1))
    sampler.dice, sampler.bits = random.Random(2), np.random.default_rng(3)
    loader = DataLoader(data, 3, sampler=sampler)
    sources = streams(loader)
    assert sorted(sources) == [
        "loader.sampler.bits", "loader.sampler.dice", "loader.sampler.generator", "numpy", "python", "torch",
    ]  # fmt: skip

    random.gauss(0, 1), np.random.randn()  # each holds a second one back
    states = capture(sources)
    first = draw(loader, sampler.dice, sampler.bits)
    second = draw(loader, sampler.dice, sampler.bits)
    restore(json.loads(json.dumps(to_json(states))) if through_json else states, sources)
    assert draw(loader, sampler.dice, sampler.bits) == first != second


def test_a_stream_that_two_loaders_share_has_one_name() -> None:
    generator = torch.Generator()
    loaders = [DataLoader(TensorDataset(torch.arange(3)), shuffle=True, generator=generator) for _ in range(2)]
    assert len(streams(*loaders)) == 4


class Crop:
    """A transform with random numbers of its own, in a list of transforms."""

    def __init__(self) -> None:
        self.bits, self.chain = np.random.default_rng(0), [{"flip": random.Random(0)}]


class Images(Dataset[Tensor]):
    def __init__(self) -> None:
        self.transform = Crop()
        self.again = self  # a circle
        self.many = list(range(10**6))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor([self.transform.bits.random(), self.transform.chain[0]["flip"].random()])


class Wrapper:
    def __init__(self, inner: DataLoader[Tensor]) -> None:
        self.inner = inner


def test_the_streams_of_a_transform_and_of_a_wrapped_loader_are_found() -> None:
    sources = streams(Wrapper(DataLoader(Images())))
    assert sorted(sources.keys() - {"numpy", "python", "torch"}) == [
        "loader.inner.dataset.transform.bits",
        "loader.inner.dataset.transform.chain[0]['flip']",
    ]


def test_an_iterator_at_work_brings_no_streams_and_takes_none() -> None:
    loader = DataLoader(TensorDataset(torch.arange(8)), 2, shuffle=True, num_workers=1, persistent_workers=True)
    before = streams(loader).keys()
    iterator = iter(loader)
    next(iterator)
    assert streams(loader).keys() == before
