"""Which batches make an update: whole windows, short ones, and those that go on into the next epoch."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from functrain import tree
from functrain.base import GradientTransformation
from functrain.optimizers.adaptive import adamw
from functrain.optimizers.momentum import sgd
from functrain.trainer import Trainer
from tests.networks import NormNet, points

POLICIES = ("weighted", "drop", "carry")
Window = list[tuple[int, int]]  # (epoch, number) of its batches


class Weight(nn.Module):
    """One number; a batch multiplies it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def product(m: nn.Module, x: Tensor) -> Tensor:
    """The mean of w * x: its gradient is the mean of x."""
    return m(x).mean()


def numbers(*values: float) -> list[Tensor]:
    """A batch of one sample for each."""
    return [torch.tensor([x], dtype=torch.float64) for x in values]


def weight_trainer(loader: Any, optimizer: Any = None, **settings: Any) -> Trainer:
    """With a rate of 1 unless an optimizer is given."""
    return Trainer(Weight(), optimizer or sgd(1.0), loader, **{"objective": product, "max_epochs": 1} | settings)


def weight(trainer: Trainer) -> float:
    return trainer.state.params["w"].item()


class Moves:
    """A callback that takes note of how far each update moved the weight."""

    def __init__(self) -> None:
        self.moves: list[float] = []
        self.last = 0.0

    def __call__(self, event: str, trainer: Trainer) -> None:
        if event == "update":
            self.moves.append(self.last - weight(trainer))
            self.last = weight(trainer)


class Unsized:
    """A loader that does not know how long its epochs are; they may differ."""

    def __init__(self, *epochs: Sequence[object]) -> None:
        self.epochs, self.begun = epochs, 0

    def __iter__(self) -> Iterator[object]:
        self.begun += 1
        yield from self.epochs[(self.begun - 1) % len(self.epochs)]


class Known(Unsized):
    """Its epochs have one length, and it says which."""

    def __len__(self) -> int:
        return len(self.epochs[0])


def windows(lengths: Sequence[int], k: int, policy: str, most: int | None = None) -> list[Window]:
    """The windows of a run over epochs of these lengths, in words: cut each epoch, or all that there is, in pieces."""
    epochs = [[(epoch, i) for i in range(n)] for epoch, n in enumerate(lengths)]
    streams = [list(itertools.chain(*epochs))] if policy == "carry" else epochs
    cut = [stream[i : i + k] for stream in streams for i in range(0, len(stream), k)]
    return [window for window in cut if policy != "drop" or len(window) == k][:most]


def assert_equal(a: Any, b: Any) -> None:
    assert tree.keys(a) == tree.keys(b)
    for path, x, y in zip(tree.paths(a), tree.leaves(a), tree.leaves(b), strict=True):
        assert torch.equal(x, y), path


# --- a short window


@pytest.mark.parametrize(("policy", "moved", "updates"), [("weighted", 6.0, 6), ("drop", 4.0, 4), ("carry", 5.0, 5)])
def test_win_1_ten_batches_twice_in_windows_of_four_move_the_weight_by(policy: str, moved: float, updates: int) -> None:
    trainer = weight_trainer(numbers(*[1.0] * 10), grad_accum_steps=4, short_window=policy, max_epochs=2)
    trainer.train()
    assert (weight(trainer), trainer.updates) == (-moved, updates)


@pytest.mark.parametrize(("policy", "moved"), [(None, 3.0), ("weighted", 3.0), ("drop", 2.0), ("carry", 3.0)])
def test_win_1_ten_batches_in_windows_of_four_move_the_weight_by(policy: str | None, moved: float) -> None:
    """The default is "weighted". Carried, the rest of the last epoch has nowhere to go, and is one update."""
    settings = {} if policy is None else {"short_window": policy}
    trainer = weight_trainer(numbers(*[1.0] * 10), grad_accum_steps=4, **settings)
    trainer.train()
    assert weight(trainer) == -moved


@pytest.mark.parametrize(
    ("policy", "means"),
    [
        ("weighted", [2.0, 4.5, 2.0, 4.5]),
        ("drop", [2.0, 2.0]),
        ("carry", [2.0, (4 + 5 + 1) / 3, 3.0, 5.0]),
    ],
)
def test_win_1_1_to_5_twice_in_windows_of_three_move_the_weight_by_these_means(policy: str, means: list[float]) -> None:
    moves = Moves()
    trainer = weight_trainer(
        numbers(1, 2, 3, 4, 5), grad_accum_steps=3, short_window=policy, max_epochs=2, callbacks=[moves]
    )
    trainer.train()
    assert moves.moves == pytest.approx(means, rel=1e-14)


def test_win_1_a_short_window_weighs_its_samples_and_not_its_batches() -> None:
    batches = [torch.tensor(x, dtype=torch.float64) for x in ([1.0], [1.0], [1.0, 2.0, 3.0], [10.0])]
    moves = Moves()
    weight_trainer(batches, grad_accum_steps=2, callbacks=[moves]).train()
    assert moves.moves == [1.0, 4.0]  # (1 + 2 + 3 + 10) / 4; the mean of means is 6


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_win_1_carried_through_epochs_that_are_shorter_than_it_a_window_has_all_its_batches(epochs: int) -> None:
    moves = Moves()
    trainer = weight_trainer(
        numbers(1, 2), grad_accum_steps=5, short_window="carry", max_epochs=epochs, callbacks=[moves]
    )
    trainer.train()
    expected = {1: [1.5], 2: [1.5], 5: [7 / 5, 8 / 5]}  # 1 2 | 1 2 | 1, then 2 | 1 2 | 1 2
    assert moves.moves == pytest.approx(expected[epochs], rel=1e-14)
    assert trainer.epoch == epochs + 1


@pytest.mark.parametrize("unknown", [False, True])
def test_win_1_carried_without_a_last_epoch_it_is_max_steps_that_ends(unknown: bool) -> None:
    moves, loader = Moves(), numbers(1, 2, 3)
    trainer = weight_trainer(
        Unsized(loader) if unknown else loader, grad_accum_steps=4, short_window="carry", max_epochs=None, max_steps=3,
        callbacks=[moves],
    )  # fmt: skip
    trainer.train()
    assert moves.moves == [(6 + 1) / 4, (2 + 3 + 1 + 2) / 4, (3 + 6) / 4]


@pytest.mark.parametrize("policy", ["", None, 3, "Drop"])
def test_win_1_another_policy_is_an_error(policy: object) -> None:
    message = f"Trainer: short_window must be 'weighted', 'drop' or 'carry', got {policy!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        weight_trainer(numbers(1), short_window=policy)


@pytest.mark.parametrize("unknown", [False, True])
def test_win_1_an_epoch_of_which_drop_leaves_nothing_is_an_error(unknown: bool) -> None:
    loader = numbers(1, 2, 3)
    message = (
        "Trainer: an epoch has 3 batches, fewer than grad_accum_steps=4, and short_window='drop' leaves none; "
        "hint: 'carry', or fewer accumulation steps"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        weight_trainer(Unsized(loader) if unknown else loader, grad_accum_steps=4, short_window="drop").train()


def test_win_1_a_dropped_window_leaves_the_buffers_too() -> None:
    batches = [points(4, seed) for seed in range(5)]
    nets = []
    for given_, policy in ((batches, "drop"), (batches[:4], "weighted")):
        torch.manual_seed(0)
        trainer = Trainer(
            NormNet(0.3), adamw(0.1), given_, loss_fn=F.mse_loss, grad_accum_steps=2, short_window=policy, max_epochs=2
        )
        trainer.train()
        nets.append(trainer.state)
    assert_equal(*nets)


# --- an epoch's end


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_win_2_a_gradient_crosses_an_epochs_end_if_it_is_carried_and_only_then(policy: str, unknown: bool) -> None:
    """In the first epoch all gradients are 1, in the second 100: a mean between them has crossed."""
    epochs = [numbers(*[x] * 5) for x in (1.0, 100.0)]
    moves = Moves()
    loader = Unsized(*epochs) if unknown else Known(*epochs)
    weight_trainer(loader, grad_accum_steps=2, short_window=policy, max_epochs=2, callbacks=[moves]).train()
    crossed = [x for x in moves.moves if x not in (1.0, 100.0)]
    assert crossed == ([50.5] if policy == "carry" else [])


# --- any policy, any length


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, str, int | None, bool]:
    """Lengths of epochs, k, policy, max_steps, and whether max_epochs is given."""
    k, policy = draw(st.integers(1, 5)), draw(st.sampled_from(POLICIES))
    least = k if policy == "drop" else 1
    lengths = draw(st.lists(st.integers(least, 11), min_size=1, max_size=4))
    most = draw(st.none() | st.integers(1, 12))
    return lengths, k, policy, most, most is None or draw(st.booleans())


def value(epoch: int, i: int) -> float:
    """Of a batch: no two sums of a few of them are equal."""
    return float((1 + 13 * epoch + i) ** 0.5)


def data(lengths: Sequence[int]) -> list[list[Tensor]]:
    """Batches of one, two and three samples, in turn."""
    return [
        [torch.full((1 + i % 3,), value(epoch, i), dtype=torch.float64) for i in range(n)]
        for epoch, n in enumerate(lengths)
    ]


def means(found: Sequence[Window]) -> list[float]:
    """Of the samples in each window."""
    sizes = [[1 + i % 3 for _, i in window] for window in found]
    sums = [sum((1 + i % 3) * value(*batch) for batch in window for i in batch[1:]) for window in found]
    return [total / sum(n) for total, n in zip(sums, sizes, strict=True)]


@given(case=cases())
def test_win_1_of_epochs_that_differ_in_length_each_update_has_the_batches_that_the_policy_says(
    case: tuple[list[int], int, str, int | None, bool],
) -> None:
    lengths, k, policy, most, _ = case
    moves = Moves()
    trainer = weight_trainer(
        Unsized(*data(lengths)), grad_accum_steps=k, short_window=policy, max_epochs=len(lengths), max_steps=most,
        callbacks=[moves],
    )  # fmt: skip
    trainer.train()
    expected = windows(lengths, k, policy, most)
    assert moves.moves == pytest.approx(means(expected), rel=1e-12)
    assert trainer.updates == len(expected)


LINE = re.compile(r"^epoch +(\d+)(?:/\d+)?  updates +(\d+)/(\d+)  ", re.MULTILINE)


@given(case=cases(), epochs=st.integers(1, 4))
def test_win_3_the_updates_the_bar_and_the_schedule_have_one_number(
    case: tuple[list[int], int, str, int | None, bool], epochs: int
) -> None:
    (length, *_), k, policy, most, limited = case
    if not limited:
        epochs = 5 * (most or 1)  # enough
    told: list[int] = []

    def make(total: int) -> GradientTransformation:
        told.append(total)
        return sgd(1.0)

    moves = Moves()
    with redirect_stderr(io.StringIO()) as screen:
        trainer = weight_trainer(
            Known(*data([length] * epochs)), make, grad_accum_steps=k, short_window=policy,
            max_epochs=epochs if limited else None, max_steps=most, log_interval=1, callbacks=[moves],
        )  # fmt: skip
        trainer.train()
    expected = windows([length] * epochs, k, policy, most)
    assert moves.moves == pytest.approx(means(expected), rel=1e-12)
    assert told == [trainer.updates] == [len(expected)]

    begins = [window[0][0] for window in expected]  # an update is of the epoch in which its window begins
    bars = [(e + 1, begins[: i + 1].count(e), begins.count(e)) for i, e in enumerate(begins)]
    assert [tuple(map(int, found)) for found in LINE.findall(screen.getvalue())] == bars
    if policy == "weighted" and most is None:
        assert {total for _, _, total in bars} == {-(-length // k)}  # ceil(len / K)
