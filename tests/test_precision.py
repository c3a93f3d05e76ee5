"""Mixed precision: autocast, casts, and the loss scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functrain as ft
from functrain import tree
from functrain.precision import GROWTH_INTERVAL
from tests.networks import NormNet, Transformer, mlp, points, token_loss, tokens
from tests.test_step import P, linear, same, started

GOOD, OVERFLOW = torch.ones(1, 2), torch.full((1, 2), 3e38)


def scaled_to(state: ft.TrainState, scale: float, good_steps: int = 0) -> ft.TrainState:
    return ft.tree.set(state, scale=scale, good_steps=good_steps)


# --- autocast


@pytest.mark.parametrize(("name", "half"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_it_is_autocast_over_float32_parameters(name: Any, half: torch.dtype) -> None:
    module, (x, y) = mlp(3, 8, 2), points()
    model = ft.functionalize(module)
    seen: set[torch.dtype] = set()

    def objective(m: nn.Module, batch: Any) -> Tensor:
        out = m(batch[0])
        seen.add(out.dtype)
        return F.mse_loss(out.float(), batch[1])

    step = ft.train_step(model.objective(objective), ft.sgd(0.1), precision=name)
    state = ft.TrainState.create(model, step.tx)
    acc = step.gradients(scaled_to(state, 1.0), (x, y))
    assert seen == {half}
    assert {g.dtype for g in tree.leaves(acc.grads)} == {torch.float32}

    with torch.autocast("cpu", half):  # torch's own recipe: forward inside, backward outside
        loss = F.mse_loss(module(x).float(), y)
    theirs = torch.autograd.grad(loss, list(module.parameters()))
    for g, expected in zip(acc.grads.values(), theirs, strict=True):
        torch.testing.assert_close(g, expected, rtol=1e-6, atol=1e-8)


def test_what_a_module_computes_in_float32_has_its_gradient_in_float32() -> None:
    class Careful(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(x)

    model, batch = ft.functionalize(Careful(3, 2)), points()
    found = []
    for precision in ("fp32", "bf16"):
        step = ft.train_step(model.loss(F.mse_loss), ft.sgd(0.1), precision=precision)
        found.append(step.gradients(ft.TrainState.create(model, step.tx), batch).grads)
    assert same(*found)


def test_bf16_trains_nearly_as_float32() -> None:
    losses = []
    for precision in (None, "bf16"):
        torch.manual_seed(0)
        model, batch = ft.functionalize(Transformer()), tokens(8)
        step = ft.train_step(model.loss(token_loss), ft.adam(1e-2), precision=precision)
        state = ft.TrainState.create(model, step.tx)
        for _ in range(20):
            state, metrics = step(state, batch)
        losses.append(metrics["loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] < 2.0


def test_amp_4_bf16_and_float32_have_no_scale() -> None:
    for precision in (None, "fp32", "bf16"):
        step, state = started(ft.sgd(0.1), precision=precision)
        for x in (GOOD, OVERFLOW * 10):
            new, metrics = step(state, x)
            assert metrics["loss_scale"].item() == 1
            assert same((new.guard.scale, new.guard.good_steps), (state.guard.scale, state.guard.good_steps))


# --- the loss scale


def test_the_scale_begins_at_two_to_the_sixteen() -> None:
    step, state = started(ft.sgd(0.1), precision="fp16")
    assert step(state, GOOD)[1]["loss_scale"].item() == 65536


def test_amp_3_an_overflow_halves_the_scale_and_changes_nothing_else() -> None:
    model, (x, y) = ft.functionalize(NormNet()), points()
    step = ft.train_step(model.loss(F.mse_loss), ft.adamw(lambda t: 0.1 + t), precision="fp16")
    state = scaled_to(ft.TrainState.create(model, step.tx), 2.0**100, good_steps=5)
    new, metrics = step(state, (x, y))
    for part in ("params", "buffers", "opt_state"):
        assert same(getattr(new, part), getattr(state, part)), part
    assert metrics["loss"].isfinite()
    assert (metrics["skipped"].item(), metrics["loss_scale"].item()) == (1, 2.0**100)
    assert [x.item() for x in new.guard] == [2.0**99, 0, 1, 1]


def test_it_finds_its_scale_and_goes_on() -> None:
    torch.manual_seed(0)
    model, batch = ft.functionalize(mlp(3, 8, 2)), points()
    step = ft.train_step(model.loss(F.mse_loss), ft.sgd(0.1), precision="fp16")
    state = scaled_to(ft.TrainState.create(model, step.tx), 2.0**24)
    skipped = []
    for _ in range(20):
        state, metrics = step(state, batch)
        skipped.append(metrics["skipped"].item())
    n = sum(skipped)
    assert skipped == [1] * n + [0] * (20 - n)
    assert 0 < n < 20
    assert [x.item() for x in state.guard] == [2.0 ** (24 - n), 20 - n, n, 0]


def test_the_scale_doubles_after_the_growth_interval() -> None:
    step, state = started(ft.sgd(0.0), precision="fp16")
    state = scaled_to(state, 8.0, good_steps=GROWTH_INTERVAL - 2)
    seen = []
    for _ in range(3):
        state, _ = step(state, GOOD)
        seen.append((state.guard.scale.item(), state.guard.good_steps.item()))
    assert seen == [(8, GROWTH_INTERVAL - 1), (16, 0), (16, 1)]


def test_the_scale_never_grows_to_infinity() -> None:
    step, state = started(ft.sgd(0.0), lambda p, x: (p["w"] * 0).sum(), precision="fp16")
    new, _ = step(scaled_to(state, 2.0**127, good_steps=GROWTH_INTERVAL - 1), GOOD)
    assert new.guard.scale.item() == 2.0**127


def test_a_loss_that_is_not_finite_is_skipped_whatever_skip_nonfinite_says() -> None:
    step, state = started(ft.sgd(0.1), precision="fp16", skip_nonfinite=False)
    new, metrics = step(state, torch.full((1, 2), float("nan")))
    assert metrics["skipped"].item() == 1
    assert same(new.params, state.params)


@pytest.mark.parametrize("limit", [None, 1e-2])
def test_amp_1_norm_loss_and_update_do_not_depend_on_the_scale(limit: float | None) -> None:
    torch.manual_seed(0)
    model, batch = ft.functionalize(mlp(3, 8, 2)), points()
    step = ft.train_step(model.loss(F.mse_loss), ft.sgd(0.1), accumulate=3, precision="fp16", max_grad_norm=limit)
    state = ft.TrainState.create(model, step.tx)
    found = [step(scaled_to(state, scale), batch) for scale in (64.0, 128.0, 1024.0)]
    for new, metrics in found[1:]:
        assert torch.equal(metrics["grad_norm"], found[0][1]["grad_norm"])
        assert torch.equal(metrics["loss"], found[0][1]["loss"])
        assert same(new.params, found[0][0].params)


def test_small_gradients_survive_in_half_precision_by_the_scale() -> None:
    """Without a scale the gradient of 1e-9 would be zero in float16."""

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return p["w"].half().sum().float() * 1e-9

    step, state = started(ft.sgd(1.0), loss, precision="fp16")
    norms = [step(scaled_to(state, scale), GOOD)[1]["grad_norm"].item() for scale in (1.0, 65536.0)]
    assert norms[0] == 0
    assert norms[1] == pytest.approx(2**0.5 * 1e-9, rel=1e-3)


# --- casts


def test_precision_casts_parameters_and_floating_inputs() -> None:
    seen: dict[str, Any] = {}

    def loss(p: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        seen.update(w=p["w"].dtype, x=batch["x"].dtype, i=batch["i"].dtype, name=batch["name"])
        return (p["w"] * batch["x"]).sum()

    step, state = started(ft.sgd(0.1), loss, precision=ft.Precision(compute=torch.bfloat16))
    new, metrics = step(state, {"x": torch.ones(2), "i": torch.ones(2, dtype=torch.int64), "name": "x"})
    assert seen == {"w": torch.bfloat16, "x": torch.bfloat16, "i": torch.int64, "name": "x"}
    assert new.params["w"].dtype == metrics["loss"].dtype == torch.float32


def test_precision_output_is_the_dtype_of_the_loss_but_never_half() -> None:
    for output, found in ((torch.float64, torch.float64), (torch.float16, torch.float32)):
        step, state = started(ft.sgd(0.1), precision=ft.Precision(output=output))
        acc = step.gradients(state, torch.ones(70_000, 2))
        assert (acc.loss.dtype, acc.weight.dtype, acc.weight.item()) == (found, found, 70_000)


def test_precision_param_is_the_dtype_of_the_state() -> None:
    policy = ft.Precision(param=torch.bfloat16, compute=torch.float32)
    step = ft.train_step(linear, ft.adamw(0.1), precision=policy)
    state = ft.TrainState.create(P, step.tx, precision=policy)
    assert state.params["w"].dtype == torch.bfloat16
    new, _ = step(state, GOOD)
    assert new.params["w"].dtype == torch.bfloat16
    assert {x.dtype for x in tree.leaves(ft.tree.get(new.opt_state, "nu"))} == {torch.float32}


def test_buffers_keep_their_dtype_under_a_cast_and_constants_their_bits() -> None:
    class Shifted(NormNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.full((3,), 0.1))

        def forward(self, x: Tensor) -> Tensor:
            assert self.shift.dtype == x.dtype == torch.bfloat16
            return super().forward(x + self.shift)

    model, batch = ft.functionalize(Shifted()), points()
    step = ft.train_step(model.loss(F.mse_loss), ft.sgd(0.1), precision=ft.Precision(compute=torch.bfloat16))
    state, _ = step(ft.TrainState.create(model, step.tx), batch)
    assert state.buffers["norm.running_mean"].dtype == torch.float32
    assert state.buffers["norm.running_mean"].abs().min() > 0
    assert state.buffers["norm.num_batches_tracked"].item() == 1
    assert torch.equal(state.buffers["shift"], torch.full((3,), 0.1))
