"""What was fetched is not what was trained on: loaders that are ahead, and a look for the end of the epoch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from functrain.optimizers.adaptive import adamw
from functrain.trainer import Trainer
from tests.networks import NormNet, points
from tests.trainer.test_windows import assert_equal


class Served(Dataset[tuple[Tensor, Tensor, int]]):
    """Samples that know their number, with noise from the global stream."""

    def __init__(self) -> None:
        self.x, self.y = points(14)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        return self.x[i] + 0.1 * torch.rand(3), self.y[i], i


class Longer:
    """A loader that has more batches than it says, by some, or fewer."""

    def __init__(self, inner: DataLoader[Any], by: int) -> None:
        self.inner, self.by, self.fetched = inner, by, 0

    def __len__(self) -> int:
        return len(self.inner) - self.by

    def __iter__(self) -> Iterator[object]:
        for batch in self.inner:
            self.fetched += 1
            yield batch


def shuffled(workers: int = 0) -> DataLoader[Any]:
    return DataLoader(Served(), 2, shuffle=True, num_workers=workers)


LOADERS: dict[str, Callable[[], Any]] = {
    "exact": shuffled,
    "one longer than it says": lambda: Longer(shuffled(), 1),
    "three longer than it says": lambda: Longer(shuffled(), 3),
    "shorter than it says": lambda: Longer(shuffled(), -2),
    "two workers that prefetch": lambda: shuffled(2),
}


class Seen:
    """A loss that takes note of the samples it trains on."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, m: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        self.seen.append(tuple(batch[2].tolist()))
        return F.mse_loss(m(batch[0]), batch[1])


def seen_trainer(kind: str, objective: Seen, **settings: Any) -> Trainer:
    torch.manual_seed(3)
    net = NormNet(0.3)
    settings = {"max_epochs": 2, "log_interval": 1} | settings
    return Trainer(net, adamw(0.02), LOADERS[kind](), objective=objective, **settings)


def at(update: int) -> Callable[[str, Trainer], None]:
    def stop(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates == update:
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


@pytest.mark.parametrize("stop", [1, 4, 6, 7, 8, 13])
@pytest.mark.parametrize("kind", LOADERS)
def test_iter_3_what_was_fetched_and_not_trained_on_comes_again(kind: str, stop: int, tmp_path: Path) -> None:
    """Seven batches an epoch: stopped where a look ahead was, at the last batch, and after it."""
    whole = Seen()
    undisturbed = seen_trainer(kind, whole)
    torch.manual_seed(11)
    undisturbed.train()
    assert [sorted(i for batch in whole.seen[e : e + 7] for i in batch) for e in (0, 7)] == [[*range(14)]] * 2

    first, second = Seen(), Seen()
    trainer = seen_trainer(kind, first, callbacks=[at(stop)], save_dir=tmp_path)
    torch.manual_seed(11)
    with pytest.raises(SystemExit):
        trainer.train()
    place = trainer.feed.place
    assert 7 * place.epoch + place.consumed == stop == len(first.seen)
    again = seen_trainer(kind, second, save_dir=tmp_path, resume="auto")
    torch.manual_seed(5)
    again.train()
    assert first.seen + second.seen == whole.seen
    assert_equal(again.state, undisturbed.state)


def test_iter_3_it_looks_ahead_once_where_the_length_says_that_the_end_is() -> None:
    loader = Longer(shuffled(), 3)
    fetched: list[int] = []
    trainer = Trainer(
        NormNet(), adamw(0.02), loader, objective=Seen(), max_epochs=1,
        callbacks=[lambda event, trainer: fetched.append(loader.fetched) if event == "update" else None],
    )  # fmt: skip
    trainer.train()
    assert fetched == [1, 2, 3, 5, 5, 6, 7]  # after the fourth, the last by its length, it looked for the end
    assert loader.fetched == 7
