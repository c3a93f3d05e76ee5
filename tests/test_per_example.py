"""gradients="per_example": the optimizer sees the gradient of every example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import functrain as ft
from functrain import tree
from functrain.tree import Tree
from tests.networks import D, NormNet, Transformer, mlp, points, token_loss, tokens
from tests.test_step import P, linear, same, started


def clipped_mean(limit: float, rate: float) -> ft.GradientTransformation:
    """Each example's gradient clipped, then their mean: DP-SGD (Abadi et al., 2016) without its noise."""

    def update(g: Tree, state: Tree, params: Tree | None = None) -> tuple[Tree, Tree]:
        norms = torch.stack([x.flatten(1).norm(dim=1) for x in tree.leaves(g)]).norm(dim=0)
        factor = (limit / norms).clamp(max=1)
        each = tree.map(lambda x: x * factor.reshape(-1, *[1] * (x.dim() - 1)), g)
        return tree.map(lambda x: -rate * x.mean(0), each), state

    return ft.GradientTransformation(lambda params: (), update)


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_they_are_a_loop_of_single_gradients(name: str) -> None:
    module, criterion, batch = {
        "mlp": lambda: (mlp(3, 5, 2), F.mse_loss, points(6)),
        "transformer": lambda: (Transformer(), token_loss, tokens(4)),
    }[name]()
    model = ft.functionalize(module)
    loss = model.loss(criterion)
    step = ft.train_step(loss, clipped_mean(1.0, 0.1), gradients="per_example")
    state = ft.TrainState.create(model, step.tx)
    acc = step.gradients(state, batch)
    x, y = batch
    for i in range(len(x)):
        _, grads = ft.value_and_grad(loss)(state.params, (x[i : i + 1], y[i : i + 1]))
        torch.testing.assert_close(tree.map(lambda g, i=i: g[i], acc.grads), grads, rtol=1e-5, atol=1e-7)
    assert acc.weight.item() == len(x)
    assert acc.loss.item() == pytest.approx(loss(state.params, batch).item(), rel=1e-5)


def test_a_rule_that_clips_each_and_takes_the_mean_is_its_loop() -> None:
    torch.manual_seed(0)
    module, (x, y) = mlp(3, 5, 2, dtype=D), points(6, dtype=D)
    model = ft.functionalize(module)
    step = ft.train_step(model.loss(F.mse_loss), clipped_mean(0.2, 0.1), gradients="per_example")
    state, metrics = step(ft.TrainState.create(model, step.tx), (x, y))

    total, mean = ([torch.zeros_like(p) for p in module.parameters()] for _ in range(2))
    for i in range(6):
        grads = torch.autograd.grad(F.mse_loss(module(x[i]), y[i]), list(module.parameters()))
        norm = torch.stack([g.norm() for g in grads]).norm()
        assert norm > 0.2 or i  # at least the first is clipped
        for t, m, g in zip(total, mean, grads, strict=True):
            t += g * min(1.0, 0.2 / norm.item()) / 6
            m += g / 6
    for p, new, t in zip(module.parameters(), state.params.values(), total, strict=True):
        torch.testing.assert_close(new, (p - 0.1 * t).detach(), rtol=1e-10, atol=1e-12)
    expected = torch.stack([m.norm() for m in mean]).norm()
    assert metrics["grad_norm"].item() == pytest.approx(expected.item(), rel=1e-10)  # of the mean gradient
    assert metrics["loss"].item() == pytest.approx(F.mse_loss(module(x), y).item(), rel=1e-10)


def test_the_mean_of_them_is_the_gradient_of_the_mean() -> None:
    average = ft.GradientTransformation(lambda p: (), lambda g, s, p=None: (tree.map(lambda x: -x.mean(0), g), s))
    (each, state), (mean, _) = started(average, gradients="per_example"), started(ft.sgd(1.0))
    x = torch.arange(10.0).reshape(5, 2)
    torch.testing.assert_close(each(state, x)[0].params, mean(ft.TrainState.create(P, mean.tx), x)[0].params)


def test_an_example_that_is_not_finite_is_a_skip() -> None:
    step, state = started(clipped_mean(1.0, 0.1), gradients="per_example")
    new, metrics = step(state, torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]))
    assert same(new.params, state.params)
    assert metrics["skipped"].item() == 1


def test_bf16_and_dropout_go_with_them() -> None:
    model = ft.functionalize(torch.nn.Sequential(torch.nn.Dropout(0.5), *mlp(3, 5, 2)))
    step = ft.train_step(model.loss(F.mse_loss), clipped_mean(1.0, 0.1), precision="bf16", gradients="per_example")
    state, batch = ft.TrainState.create(model, step.tx), (torch.ones(50, 3), torch.zeros(50, 2))
    acc = step.gradients(state, batch)
    assert same(acc.grads, step.gradients(state, batch).grads)
    assert len({tuple(g.flatten().tolist()) for g in acc.grads["1.weight"]}) > 1  # a mask for each example


def test_a_batchnorm_in_eval_goes_with_them() -> None:
    module = NormNet().eval()
    model, batch = ft.functionalize(module), points()
    step = ft.train_step(model.loss(F.mse_loss), clipped_mean(1.0, 0.1), gradients="per_example")
    state = ft.TrainState.create(model, step.tx)
    new, _ = step(state, batch)
    assert same(new.buffers, state.buffers)
    module.train()  # asked again at every call
    with pytest.raises(ValueError, match="BatchNorm") as error:
        step(state, batch)
    assert str(error.value) == (
        "step.gradients: gradients='per_example' does not go with training BatchNorm, which needs the batch"
    )


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"accumulate": 2}, "accumulation"),
        ({"precision": "fp16"}, "precision='fp16'"),
        ({"max_grad_norm": 1.0}, "max_grad_norm"),
        ({"loss": ft.functionalize(NormNet()).loss(F.mse_loss)}, "training BatchNorm"),
        ({"loss": ft.functionalize(torch.nn.BatchNorm1d(3, track_running_stats=False).eval()).loss(F.mse_loss)},
         "training BatchNorm"),
    ],
)  # fmt: skip
def test_what_needs_the_batch_is_refused(options: Any, what: str) -> None:
    with pytest.raises(ValueError, match="per_example") as error:
        ft.train_step(**{"loss": linear, "tx": clipped_mean(1.0, 0.1), "gradients": "per_example", **options})
    assert str(error.value) == (f"train_step: gradients='per_example' does not go with {what}, which needs the batch")


def test_a_window_of_them_that_streams_is_refused() -> None:
    step, state = started(clipped_mean(1.0, 0.1), gradients="per_example")
    acc = step.gradients(state, torch.ones(3, 2))
    with pytest.raises(ValueError, match="per_example") as error:
        step.gradients(state, torch.ones(3, 2), acc)
    assert str(error.value) == (
        "step.gradients: gradients='per_example' does not go with accumulation, which needs the batch"
    )


def test_they_are_made_of_whatever_pair_a_loss_returns() -> None:
    def loss(p: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, mask = batch
        return (x @ p["w"] * mask).sum(), mask.sum()

    step, state = started(clipped_mean(1e9, 1.0), loss, gradients="per_example")
    mask = torch.tensor([1.0, 0.0, 1.0])
    acc = step.gradients(state, (torch.ones(3, 2), mask))
    assert acc.grads["w"].tolist() == [[1, 1], [0, 0], [1, 1]]
    assert (acc.weight.item(), acc.loss.item()) == (2, 7)
