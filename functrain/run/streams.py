"""Random streams outside the training state: Python's, NumPy's and PyTorch's global ones, and a loader's own.

The step needs none of them: what is random in an update is a function of (seed, update, micro-batch). A loader does: it
shuffles and augments with whatever its author chose. A run that resumes exactly puts all of them back.
"""

from __future__ import annotations

import base64
import operator
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

States = dict[str, object]  # a stream's state by the stream's name
OWNERS = ("sampler", "batch_sampler", "dataset")  # the parts of a loader that may own a stream


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
        found |= _owned(f"loader{i or ''}", loader, seen)
    return found


def capture(sources: Mapping[str, Stream]) -> States:
    """The state of every stream."""
    return {name: stream.get() for name, stream in sources.items()}


def restore(states: States, sources: Mapping[str, Stream]) -> None:
    """Put the streams back that are there."""
    for name in states.keys() & sources.keys():
        sources[name].put(states[name])


def warn_of_changes(states: States, sources: Mapping[str, Stream]) -> None:
    """Warn of a stream that is not here any more, or is new: what it feeds will differ."""
    if odd := sorted(states.keys() ^ sources.keys()):
        warnings.warn(
            f"resume: the random streams {', '.join(odd)} were there at one time only, when the run was saved or now; "
            "what is drawn from them will differ",
            stacklevel=2,
        )


def to_json(states: States) -> dict[str, object]:
    """The states as JSON can say them; `restore` takes them as they come back."""
    return {name: _plain(state) for name, state in states.items()}


def _owned(name: str, owner: object, seen: set[int]) -> Iterator[tuple[str, Stream]]:
    """The streams among the attributes of a loader, its samplers and its dataset."""
    if id(owner) in seen or not hasattr(owner, "__dict__"):
        return
    seen.add(id(owner))
    for attribute, value in vars(owner).items():
        here = f"{name}.{attribute}"
        if attribute in OWNERS:
            yield from _owned(here, value, seen)
        elif id(value) not in seen and (stream := _stream(value)):
            seen.add(id(value))
            yield here, stream


def _stream(x: object) -> Stream | None:
    if isinstance(x, torch.Generator):
        return _torch(x)
    if isinstance(x, random.Random):
        return _python(x.getstate, x.setstate)
    if (bits := getattr(x, "bit_generator", None)) is not None:  # NumPy's Generator
        return Stream(lambda: operator.attrgetter("state")(bits), lambda state: setattr(bits, "state", state))
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
