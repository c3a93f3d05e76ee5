"""Updates that are not applied, and input that is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import functrain as ft
from tests.networks import NormNet, points
from tests.test_step import P, linear, same, started

BAD = [float("nan"), float("inf"), -float("inf")]


# --- numbers that are not finite


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_nan_1_a_gradient_that_is_not_finite_changes_nothing_but_the_guard(bad: float, accumulate: int) -> None:
    model, (x, y) = ft.functionalize(NormNet()), points()
    step = ft.train_step(model.loss(F.mse_loss), ft.adamw(0.1), accumulate)
    state, _ = step(ft.TrainState.create(model, step.tx), (x, y))
    x = x.clone()
    x[5, 0] = bad
    new, metrics = step(state, (x, y))
    for part in ("params", "frozen", "buffers", "opt_state", "seed"):
        assert same(getattr(new, part), getattr(state, part)), part
    assert (new.step.item(), new.guard.skipped.item(), new.guard.skipped_in_row.item()) == (2, 1, 1)
    assert metrics["skipped"].item() == 1
    assert not metrics["loss"].isfinite()  # said as it is


def test_nan_1_a_loss_that_is_not_finite_is_a_skip_though_its_gradient_is() -> None:
    step, state = started(ft.sgd(0.1), lambda p, x: p["w"].sum() + x.sum())
    new, metrics = step(state, torch.tensor([float("inf")]))
    assert metrics["grad_norm"].isfinite()
    assert same(new.params, state.params)


def test_sch_2_schedules_count_applied_updates_and_the_step_counts_attempts() -> None:
    step, state = started(ft.sgd(lambda t: 1.0 + t))
    good, bad = torch.ones(1, 2), torch.full((1, 2), float("nan"))
    rates, in_row = [], []
    for x in (good, bad, bad, good, bad):
        state, metrics = step(state, x)
        rates.append(metrics["learning_rate"].item())
        in_row.append(state.guard.skipped_in_row.item())
    assert rates == [1, 1, 1, 2, 2]  # of a skipped update: the last one used
    assert in_row == [0, 1, 2, 0, 1]
    assert (state.step.item(), state.guard.skipped.item()) == (5, 3)


def test_skip_nonfinite_false_lets_them_through() -> None:
    step, state = started(ft.sgd(0.1), skip_nonfinite=False)
    new, metrics = step(state, torch.full((1, 2), float("nan")))
    assert new.params["w"].isnan().all()
    assert metrics["skipped"].item() == new.guard.skipped.item() == 0


def test_a_window_of_no_weight_is_a_skip() -> None:
    loss = lambda p, x: ((p["w"] * x).sum() * 0, x.sum() * 0)  # noqa: E731
    for skip in (True, False):
        step, state = started(ft.adamw(0.1), loss, skip_nonfinite=skip)
        new, metrics = step(state, torch.ones(2))
        assert same(new.params, state.params)
        assert same(new.opt_state, state.opt_state)
        assert (metrics["skipped"].item(), metrics["loss"].item()) == (1, 0)


def test_a_skip_under_torch_func_is_a_skip() -> None:
    step, state = started(ft.adamw(0.1))
    both = ft.tree.stack([state, state])
    x = torch.tensor([[[1.0, 1.0]], [[float("nan"), 1.0]]])
    new, metrics = torch.func.vmap(step)(both, x)
    one, two = ft.tree.unstack(new)
    assert metrics["skipped"].tolist() == [0, 1]
    assert not same(one.params, state.params)
    assert same(two.params, state.params)
    assert same(two.opt_state, state.opt_state)


# --- input that is refused, word for word


def refused(kind: type[Exception], call: Any) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


CORRESPOND = "; hint: updates, state and params must come from one tree of parameters"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": torch.ones(2)}, "scale_by_adam: leaf 'b' of one tree is missing in the other"),
        ({**P, "more": torch.ones(2)}, "scale_by_adam: leaf 'more' of one tree is missing in the other"),
        (
            {"w": torch.ones(2), "b": torch.ones(3)},
            "scale_by_adam: leaf 'b' has shape () in one tree, (3,) in the other",
        ),
    ],
)
def test_a_state_of_other_parameters_is_refused(params: Any, message: str) -> None:
    step, state = started(ft.adamw(0.1), lambda p, x: (p["w"] * x).sum())
    mixed = state._replace(params=params)
    assert refused(ValueError, lambda: step(mixed, torch.ones(2))) == message + CORRESPOND


def test_per_example_gradients_are_refused_by_a_rule_that_wants_their_mean() -> None:
    step, state = started(ft.adamw(0.1), gradients="per_example")
    assert refused(ValueError, lambda: step(state, torch.ones(5, 2))) == (
        "scale_by_adam: leaf 'w' has shape (2,) in one tree, (5, 2) in the other" + CORRESPOND
    )


def test_integer_parameters_are_refused() -> None:
    assert refused(TypeError, lambda: ft.TrainState.create({**P, "n": torch.tensor([1])}, ft.adamw(0.1))) == (
        "adamw: parameter 'n' has dtype torch.int64, which has no gradient; "
        "hint: optimize floating or complex tensors, and keep the others apart"
    )


def test_a_schedule_that_returns_nan_is_refused() -> None:
    later = lambda t: torch.where(t < 1, 0.1, float("nan"))  # noqa: E731
    step, state = started(ft.sgd(later))
    state, _ = step(state, torch.ones(1, 2))
    assert refused(ValueError, lambda: step(state, torch.ones(1, 2))) == (
        "scale_by_learning_rate: a schedule must return finite values, got nan at count 1"
    )


def test_an_extra_that_nobody_gave_is_named() -> None:
    def update(u: Any, s: Any, p: Any, *, value_fn: Any) -> Any:
        return u, s

    tx = ft.GradientTransformation(lambda p: (), update, needs=("value_fn",))
    step, state = started(tx)
    acc = step.gradients(state, torch.ones(1, 2))
    assert refused(ValueError, lambda: step.apply(state, acc)) == (
        "transformation: it needs value_fn= and did not get it; hint: update(updates, state, params, value_fn=...)"
    )
    step.apply(state, acc, value_fn=lambda p: torch.ones(()))


def test_extras_of_the_users_own_go_through_by_keyword() -> None:
    def update(u: Any, s: Any, p: Any, *, temperature: float) -> Any:
        return ft.tree.map(lambda g: -temperature * g, u), s

    step, state = started(ft.GradientTransformation(lambda p: (), update, needs=("temperature",)))
    new, _ = step(state, torch.tensor([[1.0, 2.0]]), temperature=2.0)
    assert new.params["w"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"accumulate": 0}, ValueError, "train_step: accumulate must be an integer >= 1, got 0"),
        ({"accumulate": 2.0}, ValueError, "train_step: accumulate must be an integer >= 1, got 2.0"),
        ({"max_grad_norm": -1.0}, ValueError, "train_step: max_grad_norm must be > 0 and finite, got -1.0"),
        (
            {"gradients": "sum"},
            ValueError,
            "train_step: gradients must be 'mean' or 'per_example', got 'sum'",
        ),
        (
            {"precision": "bf17"},
            ValueError,
            "train_step: precision must be None, 'fp32', 'bf16', 'fp16' or ft.Precision(...), got 'bf17'",
        ),
        (
            {"tx": (lambda p: (), lambda u, s, p: (u, s))},
            TypeError,
            "train_step: tx is a tuple, not a GradientTransformation; "
            "hint: GradientTransformation(init, update) makes one",
        ),
    ],
)
def test_arguments_out_of_range_are_named(options: Any, kind: type[Exception], message: str) -> None:
    assert refused(kind, lambda: ft.train_step(linear, **{"tx": ft.sgd(0.1), **options})) == message


def test_a_negative_rate_is_refused() -> None:
    assert refused(ValueError, lambda: ft.train_step(linear, ft.sgd(-0.1))) == (
        "scale_by_learning_rate: learning_rate must be >= 0 and finite, got -0.1"
    )


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return x @ p["w"]

    step, state = started(ft.sgd(0.1), loss)
    assert refused(ValueError, lambda: step(state, torch.ones(5, 2))) == (
        "loss: the result must be a 0-dim tensor, got shape (5,); hint: take the mean, or return (sum, weight)"
    )
