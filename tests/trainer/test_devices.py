"""Batches on their way to the device: what moves, what is kept, and that nothing of the loader's is written to."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict, UserDict, defaultdict, deque
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from functrain.data import to_device
from functrain.optimizers.momentum import sgd
from functrain.precision import Precision
from functrain.trainer import Trainer
from tests.networks import points

META = torch.device("meta")  # another device, that every machine has
DEVICES = [
    pytest.param(META, id="meta"),
    pytest.param(torch.device("cuda", 0), id="cuda", marks=pytest.mark.cuda),
]


class Point(NamedTuple):
    x: object
    y: object


@dataclasses.dataclass
class Plain:
    x: object
    name: str = "a"


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: object
    extra: object = dataclasses.field(default=None, init=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    x: object


class MyDict(dict[str, object]):
    pass


class MyList(list[object]):
    pass


class MyTuple(tuple[object, ...]):
    pass


class Encoding(UserDict[str, Any]):
    """Has `to`, as the encodings of tokenizers do: tensors move, the rest stays."""

    def to(self, device: torch.device) -> Encoding:
        return Encoding({k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.items()})


class MovesItself(UserDict[str, Any]):
    """Its `to` works in place, as that of tokenizers' encodings does."""

    def to(self, device: torch.device) -> MovesItself:
        self.data = {k: v.to(device) for k, v in self.items()}
        return self


class Graph:
    """Something with tensors that only it knows of, and `to`."""

    def __init__(self, nodes: Tensor) -> None:
        self.nodes = nodes

    def to(self, device: torch.device) -> Graph:
        return Graph(self.nodes.to(device))


def factory(x: object) -> defaultdict[str, object]:
    made: defaultdict[str, object] = defaultdict(list)
    made["x"] = x
    return made


CONTAINERS: dict[str, tuple[Any, Any]] = {  # made around an object; the object in it
    "dict": (lambda x: {"x": x, 3: "text"}, lambda b: b["x"]),
    "OrderedDict": (lambda x: OrderedDict(b=1, x=x, a=2), lambda b: b["x"]),
    "defaultdict": (factory, lambda b: b["x"]),
    "dict subclass": (lambda x: MyDict(x=x), lambda b: b["x"]),
    "list": (lambda x: [None, x], lambda b: b[1]),
    "list subclass": (lambda x: MyList([x]), lambda b: b[0]),
    "tuple": (lambda x: ("text", x, 1.5), lambda b: b[1]),
    "namedtuple": (lambda x: Point(x, None), lambda b: b.x),
    "dataclass": (lambda x: Plain(x, "b"), lambda b: b.x),
    "frozen dataclass": (lambda x: Frozen(x), lambda b: b.x),
    "dataclass with slots": (lambda x: Slots(x), lambda b: b.x),
    "UserDict": (lambda x: UserDict(x=x), lambda b: b["x"]),
    "deque": (lambda x: deque([x], maxlen=3), lambda b: b[0]),
    "tuple subclass": (lambda x: MyTuple((x, 1)), lambda b: b[0]),
}
WITH_TO: dict[str, tuple[Any, Any]] = {
    "tensor": (lambda x: x, lambda b: b),
    "encoding": (lambda x: Encoding(x=x, text=["a", "b"]), lambda b: b["x"]),
    "object with to": (Graph, lambda b: b.nodes),
    "packed sequence": (lambda x: pack_sequence([x, x[:1]]), lambda b: b.data),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("inner", WITH_TO)
@pytest.mark.parametrize("outer", CONTAINERS)
def test_dev_1_what_has_tensors_moves_inside_any_container_of_the_same_type(
    outer: str, inner: str, device: torch.device
) -> None:
    (make, get), (make_inner, get_tensor) = CONTAINERS[outer], WITH_TO[inner]
    x = make_inner(torch.arange(2.0))
    batch = make(x)
    moved = to_device(batch, device)
    assert type(moved) is type(batch)
    assert type(get(moved)) is type(x)
    assert get_tensor(get(moved)).device == device
    assert get_tensor(get(moved)).shape == get_tensor(x).shape
    # what came in is as it was
    assert get(batch) is x
    assert get_tensor(x).device.type == "cpu"


def test_dev_1_what_is_no_tensor_is_the_same_object() -> None:
    array, text, thing = np.arange(3), "text", object()
    batch = [array, text, None, 3, 2.5, True, thing, b"bytes", {1, 2}, np.float32(1), Plain, torch.float32]
    moved = to_device(batch, META)
    assert all(x is y for x, y in zip(moved, batch, strict=True))


def test_dev_1_order_keys_and_what_else_a_container_has_are_kept() -> None:
    x = torch.ones(2)
    ordered = to_device(OrderedDict(b=x, a=x), META)
    assert list(ordered) == ["b", "a"]
    assert to_device(factory(x), META)["new"] == []
    assert to_device({3: x, "k": "v"}, META) | {3: 0} == {3: 0, "k": "v"}
    plain = Plain(x, "b")
    plain.note = "set later"
    assert vars(to_device(plain, META)) | {"x": 0} == {"x": 0, "name": "b", "note": "set later"}
    mine = MyDict(x=x)
    mine.note = "set later"
    assert to_device(mine, META).note == "set later"
    frozen = Frozen(x)
    object.__setattr__(frozen, "extra", [x])
    assert to_device(frozen, META).extra[0].device == META
    assert frozen.extra[0] is x


def test_dev_1_a_nested_mix_keeps_every_type() -> None:
    def mix(x: Tensor) -> Any:
        return {"a": [Point(x, Frozen((x, None))), MyList([OrderedDict(k=Plain(x))])], "b": (factory([x]), "text", 7)}

    moved = to_device(mix(torch.ones(2)), META)
    same = mix(torch.ones(2, device=META))
    point, other = moved["a"][0], same["a"][0]
    assert (type(point), type(point.y), type(point.y.x)) == (type(other), type(other.y), type(other.y.x))
    assert {point.x.device, point.y.x[0].device} == {META}
    assert type(moved["a"][1]) is MyList
    assert type(moved["a"][1][0]) is OrderedDict
    assert moved["a"][1][0]["k"].x.device == META
    assert (type(moved["b"][0]), moved["b"][1:]) == (defaultdict, ("text", 7))
    assert moved["b"][0]["x"][0].device == META


def test_dev_1_a_packed_sequence_stays_one() -> None:
    packed = pack_sequence([torch.ones(3), torch.ones(1)])
    moved = to_device(packed, META)
    assert type(moved) is PackedSequence
    assert moved.batch_sizes.tolist() == [2, 1, 1]  # belongs on the CPU


def test_dev_1_a_tensor_that_is_there_already_is_not_copied() -> None:
    x = torch.ones(2)
    assert to_device({"x": [x]}, torch.device("cpu"))["x"][0] is x


@pytest.mark.cuda
def test_dev_1_pinned_memory_arrives_whole_while_the_loader_goes_on() -> None:
    device = torch.device("cuda", 0)
    for i in range(20):
        pinned = torch.full((1 << 20,), float(i)).pin_memory()
        moved = to_device([pinned], device)
        del pinned  # its memory is free for the next
        assert (moved[0] == i).all()


# --- nothing of the loader's is written to


class InPlace(nn.Module):
    """Works on its input itself, if told to."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place, self.relu, self.last = in_place, nn.ReLU(inplace=in_place), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.last(x.mul_(0.5) if self.in_place else x * 0.5)


def batches() -> list[tuple[Tensor, Tensor]]:
    return [points(n, seed=n) for n in (4, 4, 3, 5)]


def written(data: list[tuple[Tensor, Tensor]]) -> list[int]:
    """How often each tensor was written to, as PyTorch counts."""
    return [x._version for batch in data for x in batch]


def train(train_data: Any, val_data: Any, in_place: bool, device: str | None = None, **kwargs: Any) -> None:
    torch.manual_seed(0)
    options = {"max_epochs": 3, "loss_fn": F.mse_loss, "eval_interval": 1, "device": device}
    Trainer(InPlace(in_place), sgd(0.1), train_data, val_data, **options, **kwargs).train()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("precision", [None, "bf16", Precision(compute=torch.bfloat16)])
def test_dev_2_the_loaders_tensors_are_never_written_to(k: int, precision: Any) -> None:
    data, val = batches(), batches()
    before = copy.deepcopy((data, val))
    train(data, val, in_place=False, grad_accum_steps=k, precision=precision, max_grad_norm=1.0)
    assert set(written(data) + written(val)) == {0}
    for now, then in zip(data + val, [*before[0], *before[1]], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(now, then, strict=True))


def test_dev_2_a_module_that_works_in_place_on_its_input_does_what_it_does_in_plain_pytorch() -> None:
    """On the device that the batch comes on it writes to the loader's tensors, once a call, as it would in any loop."""
    data, mine = batches(), batches()
    train(data, None, in_place=True)

    torch.manual_seed(0)
    net = InPlace(True)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        for x, y in mine:
            optimizer.zero_grad()
            F.mse_loss(net(x), y).backward()
            optimizer.step()
    assert written(data) == written(mine) == [6, 0] * 4
    assert all(torch.equal(x, y) for a, b in zip(data, mine, strict=True) for x, y in zip(a, b, strict=True))


def test_dev_2_what_moves_itself_in_place_stays_where_it_is_in_the_loader() -> None:
    batch = MovesItself(x=torch.ones(2))
    moved = to_device([batch], META)[0]
    assert type(moved) is MovesItself
    assert moved["x"].device == META
    assert batch["x"].device.type == "cpu"


@pytest.mark.cuda
def test_dev_2_on_another_device_even_that_leaves_the_loaders_tensors_alone() -> None:
    data, val = batches(), batches()
    train(data, val, in_place=True, device="cuda")
    assert set(written(data) + written(val)) == {0}


@pytest.mark.long
@pytest.mark.inductor
def test_dev_2_a_compiled_step_writes_to_no_batch() -> None:
    data, val = batches(), batches()
    before = copy.deepcopy(data + val)
    train(data, val, in_place=False, compile=True)
    assert set(written(data) + written(val)) == {0}
    assert all(torch.equal(x, y) for a, b in zip(data + val, before, strict=True) for x, y in zip(a, b, strict=True))
