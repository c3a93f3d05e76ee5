"""Data and loaders that shuffle, augment and remember in many ways; what is random in them comes from a salt."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler

N, BATCH = 22, 4  # six batches an epoch, the last one short
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
X[13] = torch.inf  # the update that has it is skipped
Sample = tuple[Tensor, Tensor, int]


class Data(Dataset[Sample]):
    """Samples that know their number, augmented from the three global streams or not."""

    def __init__(self, augmented: bool = True) -> None:
        self.augmented, self.calls = augmented, 0

    def __len__(self) -> int:
        return N

    def noise(self) -> Tensor:
        return torch.rand(3) + random.random() + np.random.rand() if self.augmented else torch.zeros(3)

    def __getitem__(self, i: int) -> Sample:
        self.calls += 1
        return X[i] + 0.1 * self.noise().float(), X[i].nan_to_num(0, 0, 0).sum(0, keepdim=True), i


class OwnStreams(Data):
    """Augmented from streams of the dataset's own."""

    def __init__(self, salt: int) -> None:
        super().__init__()
        self.dice, self.bits = random.Random(salt), np.random.default_rng(salt)
        self.generator = torch.Generator().manual_seed(salt)

    def noise(self) -> Tensor:
        return torch.rand(3, generator=self.generator) + self.dice.gauss(0, 1) + self.bits.normal()


class Remembering(Data):
    """A dataset that draws by a number that nobody else finds, and keeps it in a state of its own."""

    def __init__(self, salt: int) -> None:
        super().__init__()
        self.drawn = salt

    def noise(self) -> Tensor:
        self.drawn += 1
        return torch.rand(3, generator=torch.Generator().manual_seed(self.drawn))

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]


class Streamed(IterableDataset[Sample]):
    """The same samples from their start to their end, augmented."""

    def __iter__(self) -> Iterator[Sample]:
        data = Data()
        return (data[i] for i in range(N))


class GoingOn(IterableDataset[Sample]):
    """Samples of a stream that no epoch begins anew."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[Sample]:
        data = Data(False)
        for _ in range(N - self.read % N):
            self.read += 1
            yield data[(self.read * 5 + self.read // N) % N]


class Remembered(GoingOn):
    """The same with a state."""

    def state_dict(self) -> dict[str, int]:
        return {"read": self.read}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.read = state["read"]


class Again:
    """Batches by a generator function, without a length."""

    def __init__(self, data: IterableDataset[Sample]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[object]:
        yield from DataLoader(self.data, BATCH)


class OwnLoader:
    """A loader of one's own that keeps its place."""

    def __init__(self) -> None:
        self.batches = 0

    def __iter__(self) -> Iterator[object]:
        for _ in range(6 - self.batches % 6):
            i = torch.tensor([self.batches * 3 % 7, self.batches % 5])
            self.batches += 1
            yield X[i], X[i].sum(1, keepdim=True), i

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.batches = state["batches"]


class Own(Sampler[int]):
    """A sampler that keeps its own random numbers, and draws as it goes, once more at the end."""

    def __init__(self, salt: int) -> None:
        self.dice = random.Random(salt)

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        for _ in range(N):
            yield self.dice.randrange(N)
        self.dice.random()


class OwnBatches(Sampler[list[int]]):
    """Batches of a size drawn at random."""

    def __init__(self, salt: int) -> None:
        self.bits = np.random.default_rng(salt)

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(5):
            yield self.bits.integers(0, N, size=self.bits.integers(2, 5)).tolist()


def sampled(salt: int) -> torch.Generator:
    return torch.Generator().manual_seed(salt)


def stateful(data: Dataset[Any], **kwargs: Any) -> Iterable[object]:
    from torchdata.stateful_dataloader import StatefulDataLoader  # seconds, and only some need it

    return StatefulDataLoader(data, BATCH, **kwargs)


LOADERS: dict[str, Callable[[Data, int, dict[str, Any]], Iterable[object]]] = {
    "shuffle": lambda data, salt, more: DataLoader(data, BATCH, shuffle=True, **more),
    "generator": lambda data, salt, more: DataLoader(data, BATCH, shuffle=True, generator=sampled(salt), **more),
    "sampler": lambda data, salt, more: DataLoader(data, BATCH, sampler=Own(salt), **more),
    "sampler's generator": lambda data, salt, more: DataLoader(
        data, BATCH, sampler=RandomSampler(data, generator=sampled(salt)), **more
    ),
    "batch_sampler": lambda data, salt, more: DataLoader(data, batch_sampler=OwnBatches(salt), **more),
    "drop_last": lambda data, salt, more: DataLoader(data, BATCH, shuffle=True, drop_last=True, **more),
    "own streams": lambda data, salt, more: DataLoader(OwnStreams(salt), BATCH, shuffle=True, **more),
    "list": lambda data, salt, more: list(DataLoader(Data(False), BATCH, **more)),
    "iterable": lambda data, salt, more: DataLoader(Streamed(), BATCH, **more),
    "fives": lambda data, salt, more: DataLoader(data, 5, shuffle=True, **more),
    "other list": lambda data, salt, more: [(x + 1, y, i) for x, y, i in DataLoader(Data(False), BATCH)],
    "long list": lambda data, salt, more: [*DataLoader(Data(False), BATCH), next(iter(DataLoader(Data(False), BATCH)))],
    "generator function": lambda data, salt, more: Again(Streamed()),
    "stream that goes on": lambda data, salt, more: Again(GoingOn()),
    "own stateful": lambda data, salt, more: OwnLoader(),
    "stateful iterable": lambda data, salt, more: stateful(Remembered(), **more),
    "stateful": lambda data, salt, more: stateful(data, shuffle=True, **more),
    "stateful with a stateful dataset": lambda data, salt, more: stateful(Remembering(salt), shuffle=True, **more),
}
