"""What loops rely on: closures, hooks, groups that change, gradients that come and go, GradScaler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tests.bridge.faces import (
    ROWS,
    STEPPED,
    Row,
    assert_bitwise,
    assert_near,
    assert_states_near,
    every_row,
    gradients,
    parameters,
    pull,
    step,
    trajectory,
)

Between = Callable[[int, Optimizer, list[Tensor]], None]
STEPS = 12


def nothing(t: int, optimizer: Optimizer, params: Sequence[Tensor]) -> None: ...


def interrupted(row: Row, make: Callable[..., Optimizer], between: Between, **options: Any) -> tuple[Any, Any]:
    """The parameters after each of some steps, with something done before each, and the state at the end."""
    params = parameters(row.shapes, torch.float64)
    options = row.options | options
    optimizer = make(row.grouped(params, options), **options)
    seen = []
    for t, g in enumerate(gradients(row.shapes, torch.float64, STEPS)):
        between(t, optimizer, params)
        step(row, optimizer, params, g)
        seen.append([p.detach().clone() for p in params])
    return seen, optimizer.state_dict()


def assert_as_torch(row: Row, between: Between, **options: Any) -> None:
    (ours, mine), (torchs, its) = (interrupted(row, make, between, **options) for make in (row.ours, row.reference))
    assert_near(ours, torchs, row)
    assert_states_near(mine, its, row)


# --- the step


@every_row()
def test_a_closure_runs_with_gradients_on_and_its_loss_is_returned(row: Row) -> None:
    params = parameters(row.shapes, torch.float64)
    optimizer = row.ours(params)
    losses: list[Tensor] = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = torch.stack([(p**2).sum() for p in params]).sum()
        loss.backward()
        losses.append(loss)
        return loss

    with torch.no_grad():
        returned = optimizer.step(closure)
        assert not torch.is_grad_enabled()
    assert returned is losses[0]
    assert optimizer.step(closure=closure) is not losses[0]
    assert losses[-1] < losses[0]


@every_row(STEPPED)
def test_a_step_without_a_closure_returns_none(row: Row) -> None:
    params = parameters(row.shapes, torch.float64)
    assert row.ours(params).step() is None


@every_row()
@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad_empties_or_zeroes(row: Row, to_none: bool) -> None:
    params = parameters(row.shapes, torch.float64)
    optimizer = row.ours(params)
    pull(params)
    grads = [p.grad for p in params]
    optimizer.zero_grad(set_to_none=to_none)
    assert [p.grad is None for p in params] == [to_none] * len(params)
    assert all(bool((g == 0).all()) != to_none for g in grads if g is not None)


@every_row(STEPPED)
def test_gradients_are_left_as_they_were(row: Row) -> None:
    params = parameters(row.shapes, torch.float64)
    optimizer = row.ours(params, **row.options)
    pull(params)
    before = [(p.grad, p.grad.clone()) for p in params if p.grad is not None]
    optimizer.step()
    assert all(p.grad is g for p, (g, _) in zip(params, before, strict=True))
    assert all(torch.equal(g, copied) for g, copied in before)


@contextmanager
def hooks(optimizer: Optimizer, calls: list[Any]) -> Iterator[None]:
    """Four hooks that note when they ran, on which optimizer and with what."""

    def note(name: str) -> Callable[..., None]:
        return lambda o, args, kwargs: calls.append((name, o is optimizer, len(args), sorted(kwargs)))

    handles = [
        register_optimizer_step_pre_hook(note("every pre")),
        register_optimizer_step_post_hook(note("every post")),
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_post_hook(note("post")),
    ]
    yield
    for handle in handles:
        handle.remove()


@every_row()
def test_step_hooks_run_as_torchs(row: Row) -> None:
    calls: list[list[Any]] = [[], []]
    for make, mine in zip((row.ours, row.torchs), calls, strict=True):
        params = parameters(row.shapes, torch.float64)
        optimizer = make(params)
        with hooks(optimizer, mine):
            optimizer.step(lambda p=params: pull(p))
            optimizer.step(closure=lambda p=params: pull(p))
        optimizer.step(lambda p=params: pull(p))
    assert calls[0] == calls[1]
    assert len(calls[0]) == 8


@every_row()
def test_a_pre_hook_may_change_the_arguments(row: Row) -> None:
    params = parameters(row.shapes, torch.float64)
    optimizer = row.ours(params)
    asked: list[str] = []

    def closure() -> float:
        asked.append("the hook's")
        return pull(params)

    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, closure), {}))
    optimizer.step(lambda: asked.append("the caller's"))
    assert set(asked) == {"the hook's"}


# --- groups


def halve(t: int, optimizer: Optimizer, params: Sequence[Tensor]) -> None:
    """Edit hyper-parameters by hand at the fourth step."""
    if t == 4:
        for group in optimizer.param_groups:
            for name in {"lr", "weight_decay", "eps", "momentum"} & set(group):
                group[name] = group[name] if isinstance(group[name], tuple) else 0.5 * group[name]


def as_tensors(t: int, optimizer: Optimizer, params: Sequence[Tensor]) -> None:
    """Make 0-dim tensors of the numbers of a group."""

    def tensor(x: Any) -> Any:
        return torch.tensor(x, dtype=torch.float64) if isinstance(x, int | float) else x

    for group in optimizer.param_groups:
        for name in {"lr", "weight_decay", "eps", "betas"} & set(group):
            group[name] = (
                tuple(tensor(x) for x in group[name]) if isinstance(group[name], tuple) else tensor(group[name])
            )


def add_a_group(t: int, optimizer: Optimizer, params: list[Tensor]) -> None:
    """At the fourth step take the last parameter out, and at the sixth add it in a group of its own."""
    if t == 0:
        optimizer.param_groups[-1]["params"].pop()
    if t == 5:
        optimizer.add_param_group({"params": params[-1], "lr": 0.02})


def edit(t: int, optimizer: Optimizer, params: list[Tensor]) -> None:
    """Write to a parameter, and give one new data."""
    if t == 4:
        with torch.no_grad():
            params[0].mul_(0.5)
        params[1].data = params[1].data + 1


def freeze(t: int, optimizer: Optimizer, params: list[Tensor]) -> None:
    """Freeze a parameter; its stale gradient still counts, as in torch."""
    if t == 4:
        params[1].requires_grad_(False)


@every_row()
@pytest.mark.parametrize("between", [halve, edit, freeze])
def test_what_is_done_by_hand_between_steps_counts_as_in_torch(row: Row, between: Between) -> None:
    assert_as_torch(row, between)


@every_row([row for row in ROWS if row.info.supports_param_groups])
def test_a_group_added_late_counts_as_in_torch(row: Row) -> None:
    assert_as_torch(row, add_a_group)


@every_row()
def test_hyper_parameters_may_be_0_dim_tensors(row: Row) -> None:
    (ours, mine), (torchs, _) = interrupted(row, row.ours, as_tensors), interrupted(row, row.reference, nothing)
    assert_near(ours, torchs, row)
    assert isinstance(mine["param_groups"][0]["lr"], Tensor)


@every_row(STEPPED)
def test_a_parameter_without_a_gradient_is_left_alone_and_its_steps_are_not_counted(row: Row) -> None:
    params = parameters(row.shapes, torch.float64)
    optimizer = row.ours(params, **row.options)
    grads = gradients(row.shapes, torch.float64, 3, seed=5)
    before = params[-1].detach().clone()
    trajectory(row, optimizer, params, [[*g[:-1], None] for g in grads])
    assert torch.equal(params[-1], before)
    alone = parameters(row.shapes, torch.float64)
    fresh = row.ours(alone, **row.options)
    trajectory(row, optimizer, params, grads)
    trajectory(row, fresh, alone, grads)
    assert torch.equal(params[-1], alone[-1])


@every_row([row for row in STEPPED if "maximize" in row.defaults])
def test_maximize_is_minimize_against_the_gradient(row: Row) -> None:
    grads = gradients(row.shapes, torch.float64, 10)
    runs = []
    for sign, maximize in ((1, True), (-1, False)):
        params = parameters(row.shapes, torch.float64)
        optimizer = row.ours(params, **row.options, maximize=maximize)
        runs.append(trajectory(row, optimizer, params, [[None if x is None else sign * x for x in g] for g in grads]))
    assert_bitwise(*runs)


def test_arguments_are_torchs_and_compile() -> None:
    for row in ROWS:
        ours, torchs = inspect.signature(row.ours), inspect.signature(row.torchs)
        *mine, last = ours.parameters.values()
        assert [(p.name, p.kind, p.default) for p in mine] == [
            (p.name, p.kind, p.default) for p in torchs.parameters.values()
        ]
        assert (last.name, last.kind, last.default) == ("compile", inspect.Parameter.KEYWORD_ONLY, False)


@every_row()
def test_compile_is_in_no_group_default_repr_or_state_dict(row: Row) -> None:
    plain, compiled = (row.ours(parameters(row.shapes, torch.float64), compile=on) for on in (False, True))
    assert repr(compiled) == repr(plain)
    assert compiled.defaults == plain.defaults
    assert_bitwise(compiled.state_dict(), plain.state_dict())


@every_row()
def test_an_optimizer_prints_as_torchs(row: Row) -> None:
    printed = []
    for make in (row.ours, row.torchs):
        params = parameters(row.shapes, torch.float64)
        printed.append((repr(make(row.grouped(params, row.options), **row.options)), make(params).__class__.__name__))
    assert printed[0] == printed[1]


@every_row()
def test_names_of_parameters_are_kept(row: Row) -> None:
    params = parameters(row.shapes, torch.float64)
    named = {f"block.{i}": p for i, p in enumerate(params)}
    optimizer = row.ours(named.items())
    assert optimizer.param_groups[0]["params"] == params
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == list(named)
    step(row, optimizer, params, gradients(row.shapes, torch.float64, 2)[1])
