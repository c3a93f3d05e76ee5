"""Stopping early: a function of the records."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functrain.logging import Record
from functrain.run.early import EarlyStopping, early

NAN = math.nan
WRONG: Any = "least"
EIGHTHS = st.integers(-16, 16).map(lambda n: n / 8)
VALUES = st.lists(EIGHTHS | st.sampled_from([NAN, math.inf, -math.inf]), max_size=12)


def validations(*losses: float) -> list[Record]:
    """A record of training and one of validation an epoch, as a run leaves them."""
    records: list[Record] = []
    for epoch, loss in enumerate(losses, 1):
        records.append({"step": 100 * epoch, "epoch": epoch, "loss": 9.0 - epoch, "learning_rate": 0.1})
        records.append({"step": 100 * epoch, "epoch": epoch, "val_loss": loss, "val_accuracy": -loss, "seconds": 1.5})
    return records


def stops_after(rule: EarlyStopping, losses: list[float]) -> int | None:
    """The number of validations after which the run would stop first."""
    return next((n for n in range(len(losses) + 1) if rule.reason(validations(*losses[:n]))), None)


# --- when


@pytest.mark.parametrize(
    ("rule", "losses", "after"),
    [
        (EarlyStopping(1), [3.0, 2.0, 2.5, 1.0], 3),
        (EarlyStopping(2), [3.0, 2.0, 2.5, 1.0], None),
        (EarlyStopping(2), [3.0, 2.0, 2.5, 2.25], 4),  # better than the last, and not than the best
        (EarlyStopping(2), [3.0, 2.0, 2.0, 2.0], 4),  # equal is not better
        (EarlyStopping(1, min_delta=0.5), [3.0, 2.5], 2),  # better, and not by more
        (EarlyStopping(1, min_delta=0.5), [3.0, 2.375], None),
        (EarlyStopping(2, min_delta=0.5), [3.0, 2.75, 2.25, 2.25], None),  # 2.75 was no best: 2.25 is the new one
        (EarlyStopping(2), [NAN, NAN, 1.0], 2),
        (EarlyStopping(3), [NAN, NAN, 1.0, NAN, 2.0], None),
        (EarlyStopping(3), [1.0, NAN, NAN, NAN], 4),
        (EarlyStopping(2), [math.inf, math.inf], 2),
        (EarlyStopping(1, mode="max"), [1.0, 2.0, 1.5], 3),
        (EarlyStopping(1, min_delta=0.5, mode="max"), [1.0, 1.5], 2),
        (EarlyStopping(1, min_delta=0.5, mode="max"), [1.0, 1.625], None),
        (EarlyStopping(1, monitor="val_accuracy", mode="max"), [3.0, 2.0, 2.5], 3),
        (EarlyStopping(1, monitor="loss"), [1.0, 2.0, 3.0, 4.0], None),  # the one of training falls
    ],
    ids=str,
)
def test_a_run_stops_once_nothing_was_better_for_as_long_as_the_patience(
    rule: EarlyStopping, losses: list[float], after: int | None
) -> None:
    assert stops_after(rule, losses) == after


@given(losses=VALUES, patience=st.integers(1, 4), min_delta=st.sampled_from([0.0, 0.125, 1.0]))
def test_more_patience_never_stops_before_less(losses: list[float], patience: int, min_delta: float) -> None:
    less = stops_after(EarlyStopping(patience, min_delta), losses)
    more = stops_after(EarlyStopping(patience + 1, min_delta), losses)
    assert more is None or (less is not None and more > less)


@given(losses=VALUES, min_delta=st.sampled_from([0.0, 0.125, 1.0]))
def test_the_greatest_is_the_least_of_the_negated(losses: list[float], min_delta: float) -> None:
    least = EarlyStopping(2, min_delta, "val_loss", "min")
    greatest = EarlyStopping(2, min_delta, "val_accuracy", "max")
    assert stops_after(least, losses) == stops_after(greatest, losses)


@given(losses=VALUES.filter(bool))
def test_records_without_the_number_do_not_count(losses: list[float]) -> None:
    rule, records = EarlyStopping(2), validations(*losses)
    assert rule.reason(records) == rule.reason([record for record in records if "val_loss" in record])


def test_a_run_that_has_not_begun_goes_on() -> None:
    assert EarlyStopping(1).reason([]) is None


# --- in which words


@pytest.mark.parametrize(
    ("rule", "losses", "words"),
    [
        (EarlyStopping(1), [3.0, 2.0, 2.5], "val_loss has not fallen below 2 of update 200 in 1 validation"),
        (
            EarlyStopping(2, 0.01),
            [*[3.0] * 11, 1.23456789, 2.5, 2.5],
            "val_loss has not fallen below 1.2346 of update 1,200 by more than 0.01 in 2 validations",
        ),
        (
            EarlyStopping(1, 0.5, "val_accuracy", "max"),
            [3.0, 2.75],
            "val_accuracy has not risen above -3 of update 100 by more than 0.5 in 1 validation",
        ),
        (EarlyStopping(2, monitor="seconds"), [1.0] * 3, "seconds has not fallen below 1.5 of update 100 in 2 records"),
        (EarlyStopping(2), [NAN] * 3, "val_loss was not a finite number in 3 validations"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_the_reason_names_the_best_and_how_long_it_has_been_so(
    rule: EarlyStopping, losses: list[float], words: str
) -> None:
    assert rule.reason(validations(*losses)) == words


# --- what cannot be


def test_a_number_that_no_record_has_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="no record has") as error:
        EarlyStopping(1, monitor="val_acc").reason(validations(1.0))
    assert str(error.value) == (
        "EarlyStopping: no record has 'val_acc'; "
        "hint: monitor is one of step, epoch, loss, learning_rate, val_loss, val_accuracy, seconds"
    )


@pytest.mark.parametrize(
    ("monitor", "records"),
    [
        ("val_acc", validations(1.0)[:1]),  # no validation yet
        ("accuracy", validations(1.0)[1:]),  # no record of training yet
        ("val_acc", [*validations(1.0), {"step": 200, "epoch": 2, "val_loss": 1.0, "val_acc": 0.5}]),
    ],
    ids=["before the first validation", "before the first record of training", "it came later"],
)
def test_a_number_that_may_come_or_came_is_no_error(monitor: str, records: list[Record]) -> None:
    assert EarlyStopping(1, monitor=monitor).reason(records) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0, "EarlyStopping: patience must be an integer >= 1, got 0"),
        (True, "EarlyStopping: patience must be an integer >= 1, got True"),
        (EarlyStopping(-3), "EarlyStopping: patience must be an integer >= 1, got -3"),
        (EarlyStopping(2, -0.1), "EarlyStopping: min_delta must be >= 0 and finite, got -0.1"),
        (EarlyStopping(2, NAN), "EarlyStopping: min_delta must be >= 0 and finite, got nan"),
        (EarlyStopping(2, 0.0, "val_loss", WRONG), "EarlyStopping: mode must be 'min' or 'max', got 'least'"),
    ],
    ids=str,
)
def test_a_value_out_of_its_range_is_an_error(given: EarlyStopping | int, message: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        early(given)
    assert str(error.value) == message


def test_what_is_neither_a_rule_nor_a_patience_is_an_error() -> None:
    wrong: Any = "3"
    with pytest.raises(TypeError, match="early_stopping") as error:
        early(wrong)
    assert str(error.value) == (
        "Trainer: early_stopping is a str; hint: a number of validations, or ft.EarlyStopping(...)"
    )


def test_a_number_is_the_patience_and_none_never_stops() -> None:
    assert early(3) == EarlyStopping(3, 0.0, "val_loss", "min")
    assert early(None) is None
    assert early(EarlyStopping(2, 0.5)) == EarlyStopping(2, 0.5)
