"""The step: pure, exact where torch.optim is, and careful with numbers that are not finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import functrain as ft
from functrain import tree
from tests.networks import D, NormNet, mlp, points

P = {"w": torch.tensor([3.0, 4.0]), "b": torch.tensor(0.0)}


def linear(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Gradient x.mean(0) at w, 1 at b."""
    return (x @ p["w"] + p["b"]).mean()


def same(a: object, b: object) -> bool:
    return tree.paths(a) == tree.paths(b) and all(map(torch.equal, tree.leaves(a), tree.leaves(b)))


def started(
    tx: ft.GradientTransformation, loss: Any = linear, params: Any = P, **options: Any
) -> tuple[Any, ft.TrainState]:
    return ft.train_step(loss, tx, **options), ft.TrainState.create(params, tx)


# --- what a loop of torch.optim computes


def torch_loop(module: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Any], limit: float) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        F.mse_loss(module(x), y).backward()
        nn.utils.clip_grad_norm_(module.parameters(), limit)
        optimizer.step()


def test_adamw_with_clipping_is_torchs_loop() -> None:
    """torch adds 1e-6 to the norm it divides by, and so agrees to 1e-6; far under the limit, to rounding."""
    for limit, tolerance in ((0.1, 1e-5), (1e6, 1e-10)):
        torch.manual_seed(0)
        module = NormNet(dtype=D)
        model, batches = ft.functionalize(module), [points(9, seed, D) for seed in range(8)]
        tx = ft.adamw(1e-2, weight_decay=0.1)
        step = ft.train_step(model.loss(F.mse_loss), tx, max_grad_norm=limit)
        state = ft.TrainState.create(model, tx)
        for batch in batches:
            state, _ = step(state, batch)
        torch_loop(module, torch.optim.AdamW(module.parameters(), 1e-2, weight_decay=0.1), batches, limit)
        for name, x in [*module.named_parameters(), *module.named_buffers()]:
            ours = {**state.params, **state.buffers}[name]
            torch.testing.assert_close(ours, x.detach(), rtol=tolerance, atol=tolerance)


# --- purity


class NoWrites(TorchDispatchMode):
    """Fails if an operator writes to memory that was there before."""

    def __init__(self, *given: object) -> None:
        super().__init__()
        self.given = {x.untyped_storage().data_ptr() for x in tree.leaves(given)} - {0}
        self.mutating = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.mutating += 1
                for x in tree.leaves(value):
                    assert x.untyped_storage().data_ptr() not in self.given, f"{func} writes to an argument"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", [None, "bf16", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_no_operator_of_the_step_writes_to_an_argument(precision: Any, accumulate: int) -> None:
    model = ft.functionalize(NormNet(0.5))
    tx = ft.chain(ft.clip_by_global_norm(1.0), ft.adamw(1e-2))
    step = ft.train_step(model.loss(F.mse_loss), tx, accumulate, precision, max_grad_norm=1.0)
    state, batch = ft.TrainState.create(model, tx), points()
    state = ft.tree.set(state, scale=256.0)
    before = tree.map(torch.clone, state)
    with NoWrites(state, batch, model.params) as mode:
        new, _ = step(state, batch)
    assert mode.mutating  # BatchNorm did write: to copies
    assert same(state, before)
    assert not same(new.buffers, state.buffers)


def test_no_operator_of_update_writes_to_an_argument() -> None:
    params = {"w": torch.randn(3, 2), "b": torch.randn(2)}
    for tx in (ft.adamw(0.1), ft.sgd(0.1, momentum=0.9), ft.lion(0.1), ft.rmsprop(0.1)):
        state = tx.init(params)
        for _ in range(2):
            with NoWrites(params, state):
                updates, state = tx.update(params, state, params)
                ft.apply_updates(params, updates)


def test_the_detector_of_writes_detects_one() -> None:
    x = torch.ones(2)
    with NoWrites(x), pytest.raises(AssertionError, match="writes to an argument"):
        x.view(2).add_(1)


def test_the_step_leaves_global_generators_as_it_found_them() -> None:
    model = ft.functionalize(NormNet(0.5))
    step = ft.train_step(model.loss(F.mse_loss), ft.sgd(0.1))
    state = ft.TrainState.create(model, step.tx)
    before = torch.get_rng_state()
    step(state, points())
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_are_a_function_of_seed_and_step_alone() -> None:
    model, batch = ft.functionalize(NormNet(0.5)), points()
    step = ft.train_step(model.loss(F.mse_loss), ft.sgd(0.1))

    def after(seed: int, t: int, noise: int) -> Any:
        torch.manual_seed(noise)
        state = ft.TrainState.create(model, step.tx, seed=seed)._replace(step=torch.tensor(t))
        return step(state, batch)[0].params

    assert same(after(1, 5, noise=0), after(1, 5, noise=99))
    assert not same(after(1, 5, noise=0), after(2, 5, noise=0))
    assert not same(after(1, 5, noise=0), after(1, 6, noise=0))


# --- the state


def test_create_copies_and_cuts_from_the_module() -> None:
    module = NormNet()
    module.head.bias.requires_grad_(False)
    state = ft.TrainState.create(ft.functionalize(module), ft.adamw(0.1), seed=7)
    own = {x.data_ptr() for x in [*module.parameters(), *module.buffers()]}
    assert not own & {x.data_ptr() for x in tree.leaves(state)}
    assert not any(x.requires_grad for x in tree.leaves(state))
    assert (list(state.frozen), state.step.item(), state.seed.item()) == (["head.bias"], 0, 7)
    for x in (state.step, state.seed):
        assert (x.dtype, x.dim(), x.device.type) == (torch.int64, 0, "cpu")
    shared = ft.TrainState.create(ft.functionalize(module), ft.adamw(0.1), copy=False)
    assert shared.params["head.weight"].data_ptr() == module.head.weight.data_ptr()


def test_counters_stay_on_the_cpu_whatever_the_default_device_is() -> None:
    with torch.device("meta"):
        state = ft.TrainState.create({"w": torch.ones(2, device="cpu")}, ft.sgd(0.1))
    assert (state.step.device.type, state.seed.device.type) == ("cpu", "cpu")


def test_the_scale_is_float32_whatever_the_default_dtype_is() -> None:
    torch.set_default_dtype(D)
    try:
        assert ft.TrainState.create(P, ft.sgd(0.1)).guard.scale.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_frozen_leaves_get_no_gradient_no_state_and_no_part_in_the_norm() -> None:
    torch.manual_seed(0)
    module = mlp(3, 4, 2)
    module[0].weight.requires_grad_(False)
    model, (x, y) = ft.functionalize(module), points()
    step = ft.train_step(model.loss(F.mse_loss), ft.adamw(0.1), max_grad_norm=1e-2)
    state = ft.TrainState.create(model, step.tx)
    assert "0.weight" not in step.gradients(state, (x, y)).grads
    assert not any("0.weight" in path for path in tree.paths(state.opt_state))
    new, metrics = step(state, (x, y))
    assert same(new.frozen, state.frozen)
    F.mse_loss(module(x), y).backward()
    norm = nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], 1e9)
    assert metrics["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-6)


# --- clipping


def test_a_gradient_under_the_limit_is_untouched() -> None:
    x = torch.tensor([[3.0, 4.0]])
    found = [started(ft.sgd(1.0), max_grad_norm=limit) for limit in (None, 26.0**0.5 + 1e-3)]
    a, b = (step(state, x)[0].params for step, state in found)
    assert same(a, b)


def test_a_gradient_over_the_limit_is_scaled_down_to_it() -> None:
    step, state = started(ft.sgd(1.0), max_grad_norm=0.5)
    new, metrics = step(state, torch.tensor([[3.0, 4.0]]))
    norm = 26.0**0.5
    assert metrics["grad_norm"].item() == pytest.approx(norm)
    torch.testing.assert_close(new.params["w"], P["w"] - torch.tensor([3.0, 4.0]) * 0.5 / norm)


# --- metrics


def test_metrics_are_0_dim_tensors_with_these_names() -> None:
    step, state = started(ft.adamw(1e-3))
    _, metrics = step(state, torch.ones(3, 2))
    assert set(metrics) == {"loss", "grad_norm", "skipped", "loss_scale", "learning_rate"}
    assert all(isinstance(x, Tensor) and x.dim() == 0 for x in metrics.values())
    assert metrics["loss"].item() == 7
    assert (metrics["skipped"].item(), metrics["loss_scale"].item()) == (0, 1)


def test_sch_3_the_learning_rate_is_the_one_used() -> None:
    schedule = lambda t: 0.5 ** t.to(D)  # noqa: E731
    for tx in (ft.sgd(schedule), ft.inject_hyperparams(ft.adamw)(schedule), ft.chain(ft.clip(1.0), ft.sgd(schedule))):
        step, state = started(tx)
        for t in range(3):
            state, metrics = step(state, torch.ones(1, 2))
            assert metrics["learning_rate"].item() == pytest.approx(0.5**t)


def test_several_rates_go_by_their_labels_however_deep_each_lies() -> None:
    slow = ft.chain(ft.clip(1.0), ft.chain(ft.clip(2.0), ft.inject_hyperparams(ft.adamw)(0.01)))
    tx = ft.partition({"fast": ft.sgd(0.5), "slow": slow}, {"w": "fast", "b": "slow"})
    step, state = started(tx)
    _, metrics = step(state, torch.ones(1, 2))
    rates = {name: x.item() for name, x in metrics.items() if name.startswith("learning_rate")}
    assert rates == pytest.approx({"learning_rate/fast": 0.5, "learning_rate/slow": 0.01})


def test_a_rule_without_a_rate_has_none_in_its_metrics() -> None:
    step, state = started(ft.scale(-0.1))
    assert not any("learning_rate" in name for name in step(state, torch.ones(1, 2))[1])
