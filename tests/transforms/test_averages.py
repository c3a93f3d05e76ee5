"""The average of the parameters: params_ema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import functrain as ft
from functrain import tree
from functrain.testing import strategies
from functrain.transforms.averages import params_ema
from tests.networks import mlp, points
from tests.oracle import assert_bitwise

DECAYS = strategies.decays()
SEEDS = st.integers(0, 10_000)
HALF = torch.bfloat16


def averages(tx: ft.GradientTransformation, params: Any, updates: list[Any]) -> list[Any]:
    """The average after each update."""
    state, means = tx.init(params), []
    for u in updates:
        u, state = tx.update(u, state, params)
        params = ft.apply_updates(params, u)
        means.append(tree.get(state, "ema"))
    return means


def test_the_first_averages_by_hand() -> None:
    means = averages(params_ema(0.5), torch.tensor(8.0), [torch.tensor(u) for u in (-4.0, 2.0, 4.0)])
    assert [e.item() for e in means] == [6.0, 6.0, 8.0]  # of 8, then 4, 6, 10


def any_numbers(seed: int) -> dict[str, Tensor]:
    """Leaves of several dtypes, whose sums and products all round."""
    draw = torch.Generator().manual_seed(seed)
    dtypes = {"w": torch.float32, "wide": torch.float64, "half": HALF, "turning": torch.complex64}
    return {name: torch.randn(20, generator=draw, dtype=torch.float64).to(dtype) for name, dtype in dtypes.items()}


@given(seed=SEEDS, decay=DECAYS)
def test_the_average_of_constant_parameters_is_exactly_those_parameters(seed: int, decay: float) -> None:
    params = any_numbers(seed)
    means = averages(params_ema(decay), params, [tree.zeros_like(params)] * 3)
    for e in means:
        assert_bitwise(e, tree.upcast(params))


@given(seed=SEEDS)
def test_without_memory_the_average_is_exactly_the_parameters_after_each_update(seed: int) -> None:
    """Whatever it was before, as with a schedule for the memory."""
    params, tx = any_numbers(seed), params_ema(0.0)
    state = tx.init(tree.map(lambda x: 1000 * x, any_numbers(seed + 1)))
    for i in (2, 3):
        updates, state = tx.update(any_numbers(seed + i), state, params)
        params = ft.apply_updates(params, updates)
        assert_bitwise(state.ema, tree.upcast(params))


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
def test_updates_pass_as_they_are(dtype: torch.dtype) -> None:
    params = {"w": torch.ones(3, dtype=dtype)}
    updates = {"w": torch.tensor([0.1, -0.1, 0.0], dtype=dtype)}
    tx = params_ema(0.9)
    passed, _ = tx.update(updates, tx.init(params), params)
    assert passed["w"] is updates["w"]


# --- against torch's own


def torch_run(module: nn.Module, averaged: AveragedModel) -> None:
    """30 updates of torch's loop, each of them averaged."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for i in range(30):
        x, y = points(seed=i, dtype=torch.float64)
        optimizer.zero_grad()
        F.mse_loss(module(x), y).backward()
        optimizer.step()
        averaged.update_parameters(module)


def our_run(module: nn.Module, average: ft.GradientTransformation) -> ft.TrainState:
    model = ft.functionalize(module)
    step = ft.train_step(model.loss(F.mse_loss), ft.chain(ft.sgd(0.1, momentum=0.9), average))
    state = ft.TrainState.create(model, step.tx)
    for i in range(30):
        state, _ = step(state, points(seed=i, dtype=torch.float64))
    return state


def zero_then(decay: float) -> Callable[[Tensor], Tensor]:
    return lambda count: (count > 0).double() * decay


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("first", ["from the first parameters", "from those after the first update"])
def test_30_updates_average_to_what_torch_averages(first: str, decay: float) -> None:
    """torch's first call copies: before the first update it does what we do, after it the memory is none at first."""
    torch.manual_seed(0)
    module = mlp(3, 8, 2, dtype=torch.float64)
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average = params_ema(decay)
    if first == "from the first parameters":
        averaged.update_parameters(module)
    else:
        average = ft.inject_hyperparams(params_ema)(zero_then(decay))
    state = our_run(module, average)
    torch_run(module, averaged)
    expected = dict(averaged.module.named_parameters())
    torch.testing.assert_close(tree.get(state.opt_state, "ema"), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(state.params, dict(module.named_parameters()), rtol=1e-12, atol=1e-14)


# --- its memory


def test_an_average_in_half_precision_does_not_lose_small_steps() -> None:
    """Kept in bfloat16, 1 - 0.001 (1 - 0.5) would be 1 again at every update."""
    params, stay = torch.tensor(1.0, dtype=HALF), torch.tensor(0.0, dtype=HALF)
    means = averages(params_ema(0.999), params, [torch.tensor(-0.5, dtype=HALF)] + [stay] * 9)
    assert means[-1].dtype == torch.float32
    assert means[-1].item() == pytest.approx(0.5 + 0.5 * 0.999**10, rel=1e-6)


def test_the_parameters_are_averaged_as_they_are_rounded() -> None:
    """256 + 1 is 256 in bfloat16."""
    params, one = torch.tensor(256.0, dtype=HALF), torch.tensor(1.0, dtype=torch.float32)
    means = averages(params_ema(0.5), params, [one])
    assert means[0].item() == 256.0


def test_the_average_has_memory_of_its_own() -> None:
    params = {"w": torch.ones(3), "half": torch.ones(3, dtype=HALF)}
    state = params_ema(0.9).init(params)
    for p in params.values():
        p.zero_()
    assert all(e.tolist() == [1.0, 1.0, 1.0] for e in tree.leaves(state))


def test_a_leaf_without_gradient_keeps_its_average() -> None:
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    tx = params_ema(0.5)
    _, state = tx.update({"a": torch.ones(2), "b": torch.ones(2)}, tx.init(params), params)
    _, new = tx.update({"a": torch.ones(2), "b": ()}, state, params)
    assert new.ema["b"] is state.ema["b"]
    assert new.ema["a"].tolist() == [1.75, 1.75]


@pytest.mark.parametrize("how", ["eager", "mapped", "compiled"])
@pytest.mark.parametrize("precision", [None, "fp16"])
def test_amp_3_a_skipped_update_leaves_the_average_bitwise(precision: Any, how: str) -> None:
    torch.manual_seed(0)
    model, (x, y) = ft.functionalize(mlp(3, 4, 2)), points()
    tx = ft.chain(ft.adamw(0.1), params_ema(0.9))
    step: Any = ft.train_step(model.loss(F.mse_loss), tx, precision=precision)
    state, _ = step(ft.TrainState.create(model, tx, precision=precision), (x, y))
    assert not torch.equal(tree.get(state.opt_state, "ema")["0.weight"], state.params["0.weight"])  # it has a memory
    bad = x.clone()
    bad[2, 0] = float("inf")
    if how == "mapped":
        both, _ = torch.func.vmap(step, in_dims=(0, None))(tree.stack([state, state]), (bad, y))
        new = tree.unstack(both)[1]
    else:
        new, _ = (ft.jit(step, backend="aot_eager", donate=False) if how == "compiled" else step)(state, (bad, y))
    assert new.guard.skipped == 1
    assert_bitwise(new.opt_state, state.opt_state)
    assert_bitwise(new.params, state.params)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_memory_outside_its_range_is_an_error(decay: float) -> None:
    with pytest.raises(ValueError, match="decay") as error:
        params_ema(decay)
    assert str(error.value) == f"params_ema: decay must be in [0, 1), got {decay}"
