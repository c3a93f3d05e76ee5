"""Every configuration that PyTorch tests its own optimizers with: the same numbers, and the same refusals."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import settings
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    optim_db,
)

from tests.bridge.faces import (
    NAMES,
    ROWS,
    STEPPED,
    Row,
    assert_error_of_torch,
    assert_near,
    assert_states_near,
    every_row,
    gradients,
    outcome,
    parameters,
    step,
    trajectory,
)

STEPS = 30


class Configuration(NamedTuple):
    row: Row
    options: dict[str, Any]
    what: str


def plain() -> Iterator[Configuration]:
    """What the database has for a CPU, in torch's plain loop."""
    for row in ROWS:
        for given in row.info.optim_inputs_func(device="cpu"):
            yield Configuration(row, given.kwargs, f"{row.name}, {given.desc}")


def flagged(flag: str) -> Iterator[Configuration]:
    """The same with foreach, fused or differentiable, wherever torch's class takes it together with the rest."""
    for row, options, what in plain():
        more = {**options, flag: True}
        if (
            flag in row.info.supported_impls
            and outcome(lambda r=row, o=more: r.torchs(parameters(r.shapes, torch.float64), **o)) is None
        ):
            yield Configuration(row, more, f"{what}, {flag}")


def capturable() -> Iterator[Configuration]:
    """What the database keeps for CUDA; torch makes these on a CPU too, and refuses to step."""
    for row in ROWS:
        for given in row.info.optim_inputs_func(device="cuda"):
            if given.kwargs.get("capturable"):
                yield Configuration(row, given.kwargs, f"{row.name}, {given.desc}")


def refused() -> Iterator[tuple[Row, ErrorOptimizerInput]]:
    for row in ROWS:
        for given in row.info.optim_error_inputs_func("cpu", torch.float64):
            yield row, given


def configurations(given: Iterator[Configuration]) -> Any:
    every = list(given)
    return pytest.mark.parametrize(("row", "options"), [c[:2] for c in every], ids=[c.what for c in every])


def assert_agrees(row: Row, options: dict[str, Any], dtype: torch.dtype, **mine: Any) -> None:
    """Thirty steps in two groups end where torch's do, and so does the state."""
    grads = gradients(row.shapes, dtype, STEPS)
    runs, states = [], []
    for make in (partial(row.ours, **mine), row.reference):
        params = parameters(row.shapes, dtype)
        optimizer = make(row.grouped(params, options), **deepcopy(options))
        runs.append(trajectory(row, optimizer, params, grads))
        states.append(optimizer.state_dict())
    assert_near(*runs, row)
    if dtype == torch.float64:
        assert_states_near(*states, row)


def test_the_database_knows_the_same_classes() -> None:
    assert {info.name for info in optim_db} - {"SparseAdam"} == set(NAMES)


@configurations(plain())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_30_updates_agree_with_torch(row: Row, options: dict[str, Any], dtype: torch.dtype) -> None:
    assert_agrees(row, options, dtype)


@configurations(flagged("foreach"))
def test_30_updates_with_foreach_agree_with_torch(row: Row, options: dict[str, Any]) -> None:
    assert_agrees(row, options, torch.float64)


@configurations(capturable())
def test_30_updates_with_capturable_agree_with_torchs_loop(row: Row, options: dict[str, Any]) -> None:
    if isinstance(options.get("betas", (0.0,))[0], torch.Tensor):  # torch's 1 - β**t is float32 then, and ours float64
        row = row._replace(float64=1e-9)
    assert_agrees(row, options, torch.float64)


@pytest.mark.inductor
@pytest.mark.long
@configurations(flagged("fused"))
def test_30_updates_with_fused_agree_with_torchs_loop(row: Row, options: dict[str, Any]) -> None:
    assert_agrees(row, options, torch.float64)


@pytest.mark.inductor
@pytest.mark.long
@every_row(STEPPED)
def test_30_compiled_updates_agree_with_torchs_loop(row: Row) -> None:
    row = row._replace(float64=max(row.float64, row.compiled))
    assert_agrees(row, row.options, torch.float64, compile=True)


@configurations(flagged("differentiable"))
def test_a_differentiable_optimizer_is_made_and_refuses_to_step(row: Row, options: dict[str, Any]) -> None:
    params = parameters(row.shapes, torch.float64)
    optimizer = row.ours(row.grouped(params, options), **options)
    assert all(group["differentiable"] for group in optimizer.param_groups)
    with pytest.raises(RuntimeError, match="as_transform"):
        step(row, optimizer, params, gradients(row.shapes, torch.float64, 2)[1])


EVERY_REFUSAL = [*refused()]


@pytest.mark.parametrize(
    ("row", "given"), EVERY_REFUSAL, ids=[f"{row.name}, {e.optimizer_error_input.desc}" for row, e in EVERY_REFUSAL]
)
def test_what_torch_refuses_is_refused_in_its_words(row: Row, given: ErrorOptimizerInput) -> None:
    def act(make: Callable[..., torch.optim.Optimizer]) -> Callable[[], object]:
        arguments = deepcopy(given.optimizer_error_input)  # torch's classes write to the dicts of the groups
        params = arguments.params
        if params is None:
            params = parameters(row.shapes, torch.float64)

        def run() -> None:
            optimizer = make(params, **arguments.kwargs)
            if given.error_on == OptimizerErrorEnum.STEP_ERROR:
                for p in params:
                    p.grad = torch.rand_like(p)
                optimizer.step()

        return run

    ours, torchs = outcome(act(row.ours)), outcome(act(row.torchs))
    assert type(torchs) is given.error_type
    assert re.search(given.error_regex, str(ours))
    assert_error_of_torch(ours, torchs)


def test_the_import_of_pytorchs_list_leaves_the_profile_of_the_draws() -> None:
    assert settings.get_current_profile_name() in ("ci", "long", "mutants")
