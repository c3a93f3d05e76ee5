"""Random streams outside the training state: Python's, NumPy's and PyTorch's global ones, and a loader's own.

The step needs none of them: what is random in an update is a function of (seed, update, micro-batch). A loader does: it
shuffles and augments with whatever its author chose. A run that resumes exactly puts all of them back.
"""

from __future__ import annotations

import base64
import operator
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, ModuleType
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from functrain.run.encoding import decode, encode

States = dict[str, object]  # a stream's state by the stream's name
ALWAYS = ("python", "torch")  # the streams that every program has
DEEP = 6  # how far from the loader a stream may lie
FEW, MANY = 100, 10_000  # entries of a list, and objects in all, that are looked through


@runtime_checkable
class Stateful(Protocol):
    """What keeps its own place, as torchdata's StatefulDataLoader does, and datasets in it."""

    def state_dict(self) -> dict[str, object]:
        """Where it is."""
        ...

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """The next `iter` begins there."""
        ...


class Stream(NamedTuple):
    """A source of random numbers."""

    get: Callable[[], object]  # its state
    put: Callable[[object], None]  # back to a state: as `get` gave it, or as it came back from JSON


def streams(*loaders: object) -> dict[str, Stream]:
    """The global streams, and those that the loaders own, by name. A stream has one name."""
    found = {"python": _python(random.getstate, random.setstate), "torch": _torch(torch.default_generator)}
    if "numpy" in sys.modules:  # who has not imported it draws nothing from it
        legacy = sys.modules["numpy"].random
        found["numpy"] = Stream(legacy.get_state, lambda state: legacy.set_state(_tuple(state)))
    if cast("Callable[[], bool]", torch.cuda.is_initialized)():  # torch gives it no types
        for i, generator in enumerate(torch.cuda.default_generators):
            found[f"cuda:{i}"] = _torch(generator)
    seen: set[int] = set()
    for i, loader in enumerate(loaders):
        name, data = f"loader{i or ''}", getattr(loader, "dataset", None)
        found |= _owned(name, loader, seen)
        # The loader's state has this within an epoch alone, and of workers; the state of an iterable is a place.
        if isinstance(loader, Stateful) and isinstance(data, Stateful) and not isinstance(data, IterableDataset):
            found[f"{name}.dataset"] = _stateful(data)
    return found


def own_streams(module: torch.nn.Module) -> list[str]:
    """The names of the random streams that a module's forward pass may draw from, beside torch's own."""
    parts = module.named_modules()
    return [f"{path}.{name}".lstrip(".") for path, part in parts for name, x in vars(part).items() if _stream(x)]


def capture(sources: Mapping[str, Stream]) -> States:
    """The state of every stream."""
    return {name: stream.get() for name, stream in sources.items()}


def restore(states: States, sources: Mapping[str, Stream]) -> None:
    """Put the streams back that are there."""
    for name in states.keys() & sources.keys():
        sources[name].put(states[name])


def to_json(states: States) -> dict[str, object]:
    """The states as JSON can say them; `restore` takes them as they come back."""
    return {name: _plain(state) for name, state in states.items()}


def _owned(name: str, owner: object, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Stream]]:
    """The streams that can be reached from a loader: its samplers' and its dataset's, a transform's of the dataset."""
    if id(owner) in seen or depth > DEEP or len(seen) > MANY:
        return
    seen.add(id(owner))
    for part, value in _parts(owner):
        if id(value) not in seen and (stream := _stream(value)):
            seen.add(id(value))
            yield name + part, stream
        else:
            yield from _owned(name + part, value, seen, depth + 1)


def _parts(owner: object) -> list[tuple[str, object]]:
    """Attributes and entries. Of torch's own objects the public ones: the private ones come and go with iterators."""
    if isinstance(owner, torch.nn.Module | Tensor | type | ModuleType | FunctionType | Iterator):
        return []
    if isinstance(owner, partial):
        return [(".args", owner.args), (".keywords", owner.keywords)]
    if isinstance(owner, list | tuple):
        return [(f"[{i}]", x) for i, x in enumerate(owner[:FEW])]
    if isinstance(owner, dict):
        return [(f"[{k!r}]", x) for k, x in list(owner.items())[:FEW]]
    theirs = type(owner).__module__.partition(".")[0] in ("torch", "torchdata")
    return [(f".{name}", x) for name, x in getattr(owner, "__dict__", {}).items() if not (theirs and name[0] == "_")]


def _stream(x: object) -> Stream | None:
    if isinstance(x, torch.Generator):
        return _torch(x)
    if isinstance(x, random.SystemRandom):  # has no state
        return None
    if isinstance(x, random.Random):
        return _python(x.getstate, x.setstate)
    if (bits := getattr(x, "bit_generator", None)) is not None:  # NumPy's Generator
        return Stream(lambda: operator.attrgetter("state")(bits), lambda state: setattr(bits, "state", state))
    if type(x).__module__.startswith("numpy.random") and hasattr(x, "get_state") and hasattr(x, "set_state"):
        return Stream(x.get_state, lambda state: x.set_state(_tuple(state)))  # the older RandomState
    return None


def _python(get: Callable[[], tuple[object, ...]], set_to: Callable[[tuple[object, ...]], None]) -> Stream:
    def put(state: object) -> None:
        version, words, gauss = _tuple(state)
        set_to((version, _tuple(words), gauss))

    return Stream(get, put)


def _torch(generator: torch.Generator) -> Stream:
    def put(state: object) -> None:
        if isinstance(state, str):
            state = torch.tensor(list(base64.b64decode(state)), dtype=torch.uint8)
        generator.set_state(cast("Tensor", state))  # what get gave

    return Stream(generator.get_state, put)


def _stateful(x: Stateful) -> Stream:
    def put(state: object) -> None:
        x.load_state_dict(cast("dict[str, object]", decode(state)))  # what get gave

    return Stream(lambda: encode(x.state_dict(), "the dataset's state"), put)


def _tuple(state: object) -> tuple[object, ...]:
    return tuple(cast("Sequence[object]", state))  # JSON makes lists of tuples


def _plain(state: object) -> object:
    if isinstance(state, Tensor):
        return base64.b64encode(bytes(state.tolist())).decode()
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, tuple):
        return [_plain(value) for value in state]
    return state.tolist() if hasattr(state, "tolist") else state  # NumPy's arrays
