"""Batches on their way to the device, and the random streams of loaders."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import OrderedDict, defaultdict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from functrain.run.feed import known_length, to_device
from functrain.run.streams import capture, restore, streams, to_json

META = torch.device("meta")  # another device, that every machine has


class Point(NamedTuple):
    x: object
    y: object


@dataclasses.dataclass(frozen=True)
class Record:
    x: object
    name: str = "a"
    extra: object = dataclasses.field(default=None, init=False)


class MyDict(dict[str, object]):
    pass


class MyList(list[object]):
    pass


class Moves:
    def __init__(self) -> None:
        self.moved: object = None

    def to(self, device: torch.device) -> Moves:
        other = Moves()
        other.moved = device
        return other


def test_containers_keep_their_types_and_tensors_move() -> None:
    x = torch.ones(2)
    factory: defaultdict[str, object] = defaultdict(list)
    factory["x"] = x
    batch = {
        "plain": [x, (x, None, "text", 3)],
        "point": Point(x, Record(x)),
        "ordered": OrderedDict(b=x, a=x),
        "factory": factory,
        "dict": MyDict(x=x),
        "list": MyList([x]),
        "object": Moves(),
    }
    moved = to_device(batch, META)
    assert moved["plain"][0].device == moved["plain"][1][0].device == META
    assert moved["plain"][1][1:] == (None, "text", 3)
    assert type(moved["point"]) is Point
    assert type(moved["point"].y) is Record
    assert (moved["point"].y.x.device, moved["point"].y.name) == (META, "a")
    assert list(moved["ordered"]) == ["b", "a"]
    assert type(moved["factory"]) is defaultdict
    assert moved["factory"]["new"] == []
    assert type(moved["dict"]) is MyDict
    assert moved["dict"]["x"].device == META
    assert type(moved["list"]) is MyList
    assert moved["list"][0].device == META
    assert moved["object"].moved == META
    assert x.device.type == "cpu"
    assert batch["object"].moved is None
    assert batch["dict"]["x"] is x
    assert batch["point"].y.x is x


def test_a_tensor_that_is_there_already_is_not_copied() -> None:
    x = torch.ones(2)
    assert to_device(x, torch.device("cpu")) is x


def test_a_packed_sequence_moves_by_its_own_means() -> None:
    packed = pack_sequence([torch.ones(2), torch.ones(1)])
    assert to_device(packed, META).data.device == META


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
