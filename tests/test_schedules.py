"""Schedules: Optax's numbers at every count, one graph, no branches."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from torch import Tensor

from functrain import schedules
from functrain.schedules import as_schedule, value_at

COUNTS = [*range(31), 49, 50, 51, 99, 100, 101, 149, 150, 151, 1000, 10**6, 2**31 - 1]


class Case(NamedTuple):
    """A factory of schedules with arguments that Optax takes too."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012

    @property
    def id(self) -> str:
        return f"{self.name}{self.args}{self.kwargs or ''}"

    def ours(self) -> Callable[[Any], Tensor]:
        return getattr(schedules, self.name)(*self.args, **self.kwargs)

    def optax(self) -> Callable[[Any], Any]:
        return getattr(optax.schedules, self.name)(*self.args, **self.kwargs)


CASES = [
    Case("constant_schedule", (0.3,)),
    Case("constant_schedule", (5,)),
    Case("linear_schedule", (0.0, 0.1, 10)),
    Case("linear_schedule", (0.1, 0.0, 100, 50)),
    Case("linear_schedule", (0.1, 0.0, 0)),
    Case("linear_schedule", (0.1, 0.0, -3)),
    Case("linear_schedule", (0.1, 0.0, 10, -5)),
    Case("polynomial_schedule", (1.0, 0.01, 2, 100)),
    Case("polynomial_schedule", (1.0, 0.01, 0.5, 10, 5)),
    Case("polynomial_schedule", (0.01, 1.0, 3.0, 100), {"transition_begin": 50}),
    Case("cosine_decay_schedule", (3e-4, 100)),
    Case("cosine_decay_schedule", (3e-4, 1, 0.5)),
    Case("cosine_decay_schedule", (3e-4, 50, 0.1, 2.0)),
    Case("exponential_decay", (0.1, 10, 0.5)),
    Case("exponential_decay", (0.1, 10, 0.5, 5, True)),
    Case("exponential_decay", (0.1, 10, 0.5), {"end_value": 0.01}),
    Case("exponential_decay", (0.1, 1000, 1.5), {"end_value": 0.15, "staircase": True, "transition_begin": 50}),
    Case("exponential_decay", (0.1, 10, 0.5, -5)),
    Case("exponential_decay", (0.1, 10, 0.0)),
    Case("exponential_decay", (0.1, 0, 0.5)),
    Case("piecewise_constant_schedule", (1.0,)),
    Case("piecewise_constant_schedule", (1.0, {100: 0.1, 10: 0.5, 50: 2.0})),
    Case("piecewise_constant_schedule", (1.0, {0: 0.1, 10: 0.0})),
    Case("piecewise_interpolate_schedule", ("linear", 1.0)),
    Case("piecewise_interpolate_schedule", ("linear", 1.0, {100: 0.1, 10: 0.5, 50: 2.0})),
    Case("piecewise_interpolate_schedule", ("cosine", 1.0, {100: 0.1, 10: 0.5, 50: 2.0})),
    Case("piecewise_interpolate_schedule", ("cosine", 1.0, {0: 0.1, 10: 0.5})),
    Case("linear_onecycle_schedule", (100, 0.1)),
    Case("linear_onecycle_schedule", (10, 0.1, 0.25, 0.8, 10.0, 100.0)),
    Case("cosine_onecycle_schedule", (100, 0.1)),
    Case("cosine_onecycle_schedule", (10, 0.1, 0.25, 10.0, 100.0)),
    Case("warmup_constant_schedule", (0.0, 0.1, 10)),
    Case("warmup_cosine_decay_schedule", (0.0, 3e-4, 10, 100)),
    Case("warmup_cosine_decay_schedule", (0.1, 0.0, 10, 100, 0.5)),
    Case("warmup_cosine_decay_schedule", (0.0, 3e-4, 0, 100, 3e-5, 2.0)),
    Case("warmup_exponential_decay_schedule", (0.0, 0.1, 10, 50, 0.9)),
    Case("warmup_exponential_decay_schedule", (0.0, 0.1, 10, 50, 0.9, 20, True, 0.05)),
    Case(
        "sgdr_schedule",
        (
            [
                {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 50},
                {"init_value": 0.1, "peak_value": 0.5, "warmup_steps": 10, "decay_steps": 100, "end_value": 0.1},
            ],
        ),
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def at(schedule: Callable[[Any], Tensor], counts: list[int]) -> Tensor:
    return torch.stack([schedule(torch.tensor(c, dtype=torch.int32)) for c in counts])


def test_every_schedule_has_a_case() -> None:
    factories = {name for name in schedules.__all__ if name.endswith(("_schedule", "_decay")) and name != "as_schedule"}
    assert factories == {case.name for case in CASES}  # join_schedules has its own test


@every_case
def test_a_schedule_agrees_with_optax_at_every_count(case: Case) -> None:
    ours = at(case.ours(), COUNTS)
    with jax.enable_x64(True):
        schedule = case.optax()
        theirs = [float(schedule(jnp.asarray(c, jnp.float64))) for c in COUNTS]
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-12, atol=1e-15)


@every_case
def test_a_value_is_a_scalar_in_float64_whatever_the_count_is(case: Case) -> None:
    schedule = case.ours()
    for count in (7, torch.tensor(7), torch.tensor(7, dtype=torch.int32)):
        value = schedule(count)
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert value == schedule(7)


@every_case
def test_a_schedule_prints_as_its_call_and_pickles(case: Case) -> None:
    schedule = case.ours()
    for copied in (eval(repr(schedule), {"schedules": schedules}), pickle.loads(pickle.dumps(schedule))):
        assert copied == schedule
        assert torch.equal(at(copied, COUNTS), at(schedule, COUNTS))
    assert copy.deepcopy(schedule) is schedule


def test_a_schedule_prints_where_it_lives() -> None:
    assert repr(schedules.cosine_decay_schedule(0.0003, 10000)) == "schedules.cosine_decay_schedule(0.0003, 10000)"
    joined = schedules.join_schedules([schedules.constant_schedule(1.0), schedules.constant_schedule(2.0)], [3])
    assert repr(joined) == (
        "schedules.join_schedules([schedules.constant_schedule(1.0), schedules.constant_schedule(2.0)], [3])"
    )


@every_case
def test_a_schedule_compiles_once_for_all_counts(case: Case) -> None:
    schedule, graphs = case.ours(), []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()  # graphs of other schedules count against the limit of this lambda
    compiled = torch.compile(lambda t: schedule(t), backend=backend, fullgraph=True)
    assert torch.equal(at(compiled, COUNTS), at(schedule, COUNTS))
    assert len(graphs) == 1


@every_case
def test_a_schedule_of_many_counts_at_once_is_the_loop(case: Case) -> None:
    schedule = case.ours()
    mapped = torch.func.vmap(schedule)(torch.tensor(COUNTS))
    torch.testing.assert_close(mapped, at(schedule, COUNTS), rtol=1e-15, atol=0)


def test_joined_schedules_agree_with_optax() -> None:
    def make(of: Any) -> Any:
        pieces = [of.linear_schedule(0.0, 1.0, 10), of.exponential_decay(1.0, 10, 0.5), of.constant_schedule(0.25)]
        return of.join_schedules(pieces, [10, 50])

    with jax.enable_x64(True):
        theirs = [float(make(optax.schedules)(jnp.asarray(c, jnp.float64))) for c in COUNTS]
    torch.testing.assert_close(
        at(make(schedules), COUNTS), torch.tensor(theirs, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_a_joined_schedule_never_sees_a_negative_count() -> None:
    seen = []

    def watch(count: Tensor) -> Tensor:
        seen.append(int(count))
        return count

    schedule = schedules.join_schedules([watch, watch], [10])
    assert [int(schedule(c)) for c in (9, 10, 12)] == [9, 0, 2]
    assert min(seen) == 0


def test_warmup_cosine_by_hand() -> None:
    schedule = schedules.warmup_cosine_decay_schedule(0.0, 1.0, 2, 6, 0.2)
    assert [round(float(schedule(t)), 15) for t in (0, 1, 2, 4, 6, 7)] == [0.0, 0.5, 1.0, 0.6, 0.2, 0.2]


def test_the_value_of_a_schedule_has_a_derivative_in_its_arguments() -> None:
    peak = torch.tensor(2.0, dtype=torch.float64)
    slope = torch.func.grad(lambda p: schedules.warmup_cosine_decay_schedule(0.0, p, 10, 20)(15))(peak)
    torch.testing.assert_close(slope, torch.tensor(0.5, dtype=torch.float64))


def test_as_schedule_takes_numbers_tensors_and_functions() -> None:
    for value in (0.5, torch.tensor(0.5), lambda count: 0.5, schedules.constant_schedule(0.5)):
        out = as_schedule(value)(torch.tensor(3))
        assert out.dtype == torch.float64
        assert out == 0.5


# --- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: schedules.cosine_decay_schedule(0.1, 0),
            "cosine_decay_schedule: decay_steps must be > 0 and finite, got 0",
        ),
        (
            lambda: schedules.warmup_cosine_decay_schedule(0.0, 0.1, 100, 100),
            "warmup_cosine_decay_schedule: decay_steps must be > warmup_steps = 100, got 100; "
            "hint: decay_steps is the length of the whole, warmup included",
        ),
        (
            lambda: schedules.join_schedules([schedules.constant_schedule(0.1)], [1, 2]),
            "join_schedules: 1 schedules meet at 0 boundaries, got 2",
        ),
        (
            lambda: schedules.piecewise_constant_schedule(0.1, {10: -1.0}),
            "piecewise_constant_schedule: the factor at 10 must be >= 0 and finite, got -1.0",
        ),
        (
            lambda: schedules.piecewise_interpolate_schedule("cubic", 0.1),
            "piecewise_interpolate_schedule: interpolate_type must be 'linear' or 'cosine', got 'cubic'",
        ),
        (
            lambda: schedules.linear_onecycle_schedule(0, 0.1),
            "linear_onecycle_schedule: transition_steps must be > 0 and finite, got 0",
        ),
        (
            lambda: schedules.cosine_onecycle_schedule(0, 0.1),
            "cosine_onecycle_schedule: transition_steps must be > 0 and finite, got 0",
        ),
        (
            lambda: value_at("here", as_schedule(lambda count: float("nan")), torch.tensor(3)),
            "here: a schedule must return finite values, got nan at count 3",
        ),
        (
            lambda: value_at("here", as_schedule(lambda count: torch.ones(2)), torch.tensor(3)),
            "here: a schedule must return a number or a 0-dim tensor, got shape (2,)",
        ),
    ],
)
def test_a_bad_schedule_is_an_error_that_says_why(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value) == message
