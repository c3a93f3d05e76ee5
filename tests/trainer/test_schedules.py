"""The rate of an applied update is the schedule's at the number of applied updates before it, whatever else goes on."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.data import DataLoader, IterableDataset

import functrain as ft
from functrain import optim
from functrain.optimizers.momentum import sgd
from functrain.schedules import linear_schedule
from functrain.trainer import Trainer
from tests.trainer.test_windows import POLICIES, Moves, Unsized, Weight, numbers, weight_trainer, windows


def rate(t: Any) -> Any:
    """Up and down, and exact in any float: 1, 1/2, 1/16, 1/4, ... of a count that is a number or a tensor."""
    return 2.0 ** -(t * t % 7)


def transformation(module: nn.Module) -> tuple[Any, Any]:
    return sgd(rate), None


def under_lambda_lr(module: nn.Module, kind: Any = torch.optim.SGD) -> tuple[Any, Any]:
    optimizer = kind(module.parameters(), lr=1.0)
    return optimizer, LambdaLR(optimizer, rate)


KINDS: dict[str, Callable[[nn.Module], tuple[Any, Any]]] = {
    "transformation": transformation,
    "torch.optim": under_lambda_lr,
    "functrain.optim": lambda module: under_lambda_lr(module, optim.SGD),
}


def trainer_of(kind: str, loader: Any, **settings: Any) -> Trainer:
    """The weight's gradient is 1, so each update moves it by the rate that was used."""
    module = Weight()
    optimizer, scheduler = KINDS[kind](module)
    settings = {"objective": lambda m, x: m(x).mean(), "log_interval": 1} | settings
    return Trainer(module, optimizer, loader, scheduler=scheduler, **settings)


def records(trainer: Trainer) -> list[dict[str, Any]]:
    return [record for record in trainer.history if "loss" in record]


class Case(NamedTuple):
    """What a rate must not depend on."""

    length: int
    size: int  # of a batch
    epochs: int
    k: int
    policy: str
    spoiled: set[int]  # batches of an epoch that are not finite
    stop: int  # the run is stopped at this update, and resumed
    interval: int | None  # of validations; 0: there are none
    half: bool  # with a dynamic loss scale


CASES = st.builds(
    Case, st.integers(4, 9), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.sampled_from(POLICIES),
    st.sets(st.integers(0, 8), max_size=3), st.integers(1, 9), st.none() | st.integers(0, 3), st.booleans(),
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(case=CASES)
def test_sch_1_the_rate_at_update_u_is_schedule_u_whatever_else_goes_on(
    kind: str, case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    batches = [
        torch.full((case.size,), math.inf if i in case.spoiled else 1.0, dtype=torch.float64)
        for i in range(case.length)
    ]
    moves = Moves()

    def stop(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates == case.stop:
            signal.raise_signal(signal.SIGTERM)

    settings: dict[str, Any] = dict(
        grad_accum_steps=case.k, max_epochs=case.epochs, short_window=case.policy, nonfinite="skip",
        precision="fp16" if case.half else None, save_dir=tmp_path_factory.mktemp("run"), callbacks=[moves, stop],
    )  # fmt: skip
    if case.interval != 0:
        settings |= {"val_loader": numbers(1), "eval_interval": case.interval}
    trainer = trainer_of(kind, batches, **settings)
    try:
        trainer.train()
    except SystemExit:
        trainer = trainer_of(kind, batches, resume="auto", **settings)
        trainer.train()

    applied = [
        not any(i in case.spoiled for _, i in window)
        for window in windows([case.length] * case.epochs, case.k, case.policy)
    ]
    before = [sum(applied[:i]) for i in range(len(applied))]
    assert moves.moves == [rate(u) if yes else 0.0 for u, yes in zip(before, applied, strict=True)]
    used = [record["learning_rate"] for record in records(trainer)]
    assert [x for x, yes in zip(used, applied, strict=True) if yes] == [rate(u) for u in range(sum(applied))]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sch_2_skipped_updates_do_not_advance_the_schedule(kind: str, half: bool) -> None:
    """The first, two in the middle, and the last; those of fp16 are overflows of its loss scale."""
    big = 1e305 if half else math.inf  # times 2^16 it is infinite in float64 too
    moves = Moves()
    loader = numbers(big, 1, 1, big, big, 1, 1, big)
    trainer = trainer_of(
        kind, loader, max_epochs=1, nonfinite="skip", precision="fp16" if half else None, callbacks=[moves]
    )
    trainer.train()
    assert moves.moves == [0, rate(0), rate(1), 0, 0, rate(2), rate(3), 0]
    assert [r["skipped"] for r in records(trainer)] == [1, 1, 1, 2, 3, 3, 3, 4]
    if half:
        assert records(trainer)[-1]["loss_scale"] == 2.0**13  # three times halved before it


@pytest.mark.parametrize("kind", KINDS)
def test_sch_3_the_logged_rate_is_the_one_that_was_used(kind: str) -> None:
    moves = Moves()
    trainer = trainer_of(kind, numbers(*[1.0] * 6), max_epochs=2, callbacks=[moves])
    trainer.train()
    assert [r["learning_rate"] for r in records(trainer)] == moves.moves == [rate(u) for u in range(12)]


# --- schedules over the whole run

LENGTHS = [
    # batches, k, policy, max_epochs, max_steps: updates
    (10, 4, "weighted", 3, None, 9),
    (10, 4, "drop", 3, None, 6),
    (10, 4, "carry", 3, None, 8),
    (10, 4, "weighted", 3, 5, 5),
    (10, 4, "weighted", 3, 12, 9),
    (10, 1, "weighted", 2, None, 20),
    (10, 4, "carry", None, 7, 7),
    (None, 4, "weighted", None, 7, 7),
    (None, 4, "weighted", 5, 7, 7),
]


def ones(length: int | None) -> Any:
    return Unsized(numbers(*[1.0] * 10)) if length is None else numbers(*[1.0] * length)


@pytest.mark.parametrize(("length", "k", "policy", "epochs", "steps", "total"), LENGTHS)
def test_sch_4_a_schedule_over_the_whole_run_comes_to_its_end_with_the_run(
    length: int | None, k: int, policy: str, epochs: int | None, steps: int | None, total: int
) -> None:
    limits: dict[str, Any] = dict(grad_accum_steps=k, short_window=policy, max_epochs=epochs, max_steps=steps)
    moves = Moves()
    trainer = weight_trainer(ones(length), lambda n: sgd(linear_schedule(1.0, 0.0, n)), callbacks=[moves], **limits)
    trainer.train()
    assert moves.moves == pytest.approx([1 - u / total for u in range(total)], rel=1e-6)

    told: list[int] = []
    module = Weight()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)

    def one_cycle(given_: Optimizer, n: int) -> OneCycleLR:
        assert given_ is optimizer
        told.append(n)
        return OneCycleLR(given_, max_lr=1.0, total_steps=n + 1)  # it sets one rate more than there are updates

    trainer = Trainer(
        module, optimizer, ones(length), scheduler=one_cycle, objective=lambda m, x: m(x).mean(), **limits
    )
    trainer.train()
    assert told == [total]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1 / 25 / 1e4)  # OneCycleLR's last


def test_sch_4_the_numbers_of_a_cosine_over_two_epochs_of_ten_in_windows_of_four() -> None:
    loader = numbers(*[1.0] * 10)
    cosine = ft.schedules.cosine_decay_schedule
    trainer = ft.Trainer(
        Weight(), lambda n: ft.adamw(cosine(3e-4, n)), loader, objective=lambda m, x: m(x).mean(), max_epochs=2,
        grad_accum_steps=4, log_interval=1,
    )  # fmt: skip
    trainer.train()
    half = 3**0.5 / 2  # the cosine of 30 degrees
    expected = [1.5e-4 * (1 + c) for c in (1, half, 0.5, 0, -0.5, -half)]
    assert [record["learning_rate"] for record in records(trainer)] == pytest.approx(expected, rel=1e-6)


def test_sch_4_both_may_be_functions() -> None:
    module = Weight()
    moves = Moves()
    trainer = Trainer(
        module, lambda n: torch.optim.SGD(module.parameters(), lr=float(n)), numbers(1, 1, 1),
        scheduler=lambda optimizer, n: LambdaLR(optimizer, lambda u: 1 - u / n), objective=lambda m, x: m(x).mean(),
        max_epochs=2, callbacks=[moves],
    )  # fmt: skip
    trainer.train()
    assert moves.moves == [6, 5, 4, 3, 2, 1]
    assert isinstance(trainer.optimizer, torch.optim.SGD)


def test_sch_4_a_resumed_run_has_the_same_schedule(tmp_path: Path) -> None:
    moves = Moves()
    settings: dict[str, Any] = dict(max_epochs=2, grad_accum_steps=2, callbacks=[moves], save_dir=tmp_path)
    make = lambda n: sgd(linear_schedule(1.0, 0.0, n))  # noqa: E731
    first = weight_trainer(numbers(1, 1, 1), make, **settings)
    first.callbacks.append(lambda event, trainer: trainer.updates == 3 and trainer.stop())
    first.train()
    assert first.updates == 3
    weight_trainer(numbers(1, 1, 1), make, resume="auto", **settings).train()
    assert moves.moves == [1.0, 0.75, 0.5, 0.25]


class Endless(IterableDataset[Tensor]):
    """It has no length."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(numbers(1, 1))


@pytest.mark.parametrize("loader", [Unsized(numbers(1)), DataLoader(Endless(), batch_size=None), iter(numbers(1))])
@pytest.mark.parametrize("what", ["optimizer", "scheduler"])
def test_sch_4_without_a_length_and_max_steps_it_is_an_error_at_construction(what: str, loader: Any) -> None:
    module, called = Weight(), []
    optimizer: Any = torch.optim.SGD(module.parameters(), lr=1.0)
    functions: dict[str, Any] = {
        "optimizer": {"optimizer": called.append},
        "scheduler": {"optimizer": optimizer, "scheduler": lambda optimizer, n: called.append(n)},
    }
    message = (
        f"Trainer: {what} is a function of the number of updates, which nobody knows, since the train loader has no "
        "length; hint: max_steps="
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Trainer(module, train_loader=loader, objective=lambda m, x: m(x).mean(), **functions[what])
    assert called == []


def test_sch_4_what_a_function_makes_must_be_an_optimizer_and_a_scheduler() -> None:
    message = (
        "Trainer: optimizer must be a GradientTransformation or a torch optimizer, got int; "
        "hint: ft.adamw(0.001), or ft.configure_optimizer(module)"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        weight_trainer(numbers(1), lambda n: n)
    module = Weight()
    message = (
        "Trainer: scheduler is a int, and not one of torch.optim.lr_scheduler; "
        "hint: OneCycleLR(optimizer, max_lr=..., total_steps=...)"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        Trainer(module, torch.optim.SGD(module.parameters(), lr=1.0), numbers(1), scheduler=lambda optimizer, n: n)
