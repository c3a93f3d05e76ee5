"""What a loss may return, what it weighs, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functrain as ft
from functrain.loss import LossOut, PlainLoss, lift, read, run

P = {"w": torch.tensor([1.0, 2.0])}
ITSELF = "hint: return the tensor itself, without .item() or .numpy(); torch.tensor makes one of a number"


def out_of(returned: object, batch: object = ()) -> LossOut:
    return read(returned, batch, {"seen": torch.zeros(())})


# --- weights


def test_a_mean_weighs_the_leading_size_of_the_first_tensor() -> None:
    batch = {"scale": torch.tensor(3.0), "x": [torch.ones(7, 2), torch.ones(5)]}
    out = out_of(torch.tensor(0.5), batch)
    assert (out.sum.item(), out.weight.item(), out.mean.item()) == (3.5, 7.0, 0.5)


@pytest.mark.parametrize("batch", [(), {"scale": torch.tensor(3.0)}, ["a name", None, 4]])
def test_a_mean_of_a_batch_without_rows_weighs_one(batch: object) -> None:
    assert out_of(torch.tensor(0.5), batch).weight.item() == 1


def test_a_pair_is_sum_and_weight_whatever_the_batch_is() -> None:
    out = out_of((torch.tensor(6.0), torch.tensor(4)), torch.ones(9))
    assert (out.sum.item(), out.weight.item(), out.mean.item()) == (6.0, 4.0, 1.5)
    assert out.weight.dtype == out.sum.dtype


def test_the_mean_of_nothing_is_zero() -> None:
    assert out_of((torch.tensor(0.0), torch.tensor(0))).mean.item() == 0


def test_the_weight_is_detached_and_the_sum_is_not() -> None:
    w = torch.ones((), requires_grad=True)
    out = out_of((w * 2, w * 3))
    assert out.sum.requires_grad
    assert not out.weight.requires_grad


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_half_precision_loss_is_summed_in_float32(half: torch.dtype) -> None:
    out = out_of(torch.tensor(3.0, dtype=half), torch.ones(30_000))
    assert (out.sum.dtype, out.weight.dtype) == (torch.float32, torch.float32)
    assert out.sum.item() == 90_000  # more than float16 has


# --- dicts


def test_a_dict_logs_all_but_the_loss() -> None:
    w = torch.ones((), requires_grad=True)
    out = out_of({"loss": w * 2, "accuracy": w * 0.25, "correct": torch.tensor(3)}, torch.ones(4))
    assert (out.sum.item(), out.weight.item()) == (8.0, 4.0)
    assert {k: v.item() for k, v in out.logs.items()} == {"accuracy": 0.25, "correct": 3.0}
    assert not out.logs["accuracy"].requires_grad
    assert out.logs["correct"].is_floating_point()  # a window logs its mean


def test_a_dict_may_hold_sum_and_weight() -> None:
    out = out_of({"loss": (torch.tensor(6.0), torch.tensor(4.0))})
    assert (out.sum.item(), out.weight.item(), out.logs) == (6.0, 4.0, {})


def test_logs_reach_the_metrics_as_the_weighted_mean_of_the_window() -> None:
    def loss(params: dict[str, Tensor], batch: Tensor) -> dict[str, object]:
        return {
            "loss": ((params["w"].sum() * batch).sum(), batch.sum()),
            "largest": batch.max(),
            "rows": torch.tensor(2),
        }

    step = ft.train_step(loss, ft.sgd(0.1), accumulate=2)
    state = ft.TrainState.create(P, step.tx)
    _, metrics = step(state, torch.tensor([1.0, 2.0, 4.0, 5.0]))
    assert metrics["largest"].item() == pytest.approx((3 * 2 + 9 * 5) / 12)
    assert metrics["rows"].item() == 2
    assert metrics["loss"].item() == pytest.approx(3.0)


# --- plain functions and modules


def test_a_plain_function_is_lifted_and_gives_back_the_buffers_it_was_given() -> None:
    buffers = {"n": torch.ones(())}
    lifted = lift(lambda params, batch: (params["w"] * batch).sum())
    assert isinstance(lifted, PlainLoss)
    out = run(lifted, P, {}, buffers, torch.tensor([1.0, 1.0]))
    assert out.buffers is buffers
    assert out.mean.item() == 3


def test_a_modules_loss_is_called_with_params_and_batch() -> None:
    module = nn.Linear(3, 2)
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    model = ft.functionalize(module)
    value = model.loss(F.mse_loss)(model.params, (x, y))
    assert value.item() == pytest.approx(F.mse_loss(module(x), y).item())


def test_a_modules_loss_takes_several_inputs() -> None:
    model = ft.functionalize(nn.Bilinear(2, 3, 1))
    a, b, y = torch.randn(4, 2), torch.randn(4, 3), torch.randn(4, 1)
    assert model.loss(F.mse_loss)(model.params, [a, b, y]).item() == pytest.approx(
        F.mse_loss(model.module(a, b), y).item()
    )


def test_an_objective_takes_any_batch_and_sees_the_module() -> None:
    model = ft.functionalize(nn.Linear(3, 2))
    loss = model.objective(lambda m, batch: {"loss": m(batch["x"]).square().mean(), "bias": m.bias.sum()})
    out = run(loss, model.params, model.frozen, model.buffers, {"x": torch.ones(5, 3)})
    assert out.weight.item() == 5
    assert set(out.logs) == {"bias"}


# --- errors, word for word


@pytest.mark.parametrize(
    ("returned", "kind", "message"),
    [
        (1.5, TypeError, f"loss: the result must be a 0-dim tensor, got float; {ITSELF}"),
        (None, TypeError, "loss: the result must be a 0-dim tensor, got NoneType; hint: return the loss"),
        (
            [torch.ones(())],
            TypeError,
            "loss: the result must be a 0-dim tensor, got list; "
            'hint: return a mean, (sum, weight), or a dict with the entry "loss"',
        ),
        (
            torch.ones(3, 2),
            ValueError,
            "loss: the result must be a 0-dim tensor, got shape (3, 2); hint: take the mean, or return (sum, weight)",
        ),
        (
            torch.tensor(3),
            TypeError,
            "loss: the result has dtype torch.int64, which has no gradient; hint: return a floating tensor",
        ),
        ((torch.ones(()),), ValueError, "loss: a tuple is (sum, weight), got one of 1 entries"),
        ((torch.ones(()),) * 3, ValueError, "loss: a tuple is (sum, weight), got one of 3 entries"),
        ((torch.ones(()), 4), TypeError, f"loss: the weight must be a 0-dim tensor, got int; {ITSELF}"),
        (
            (torch.ones(()), torch.ones(2)),
            ValueError,
            "loss: the weight must be a 0-dim tensor, got shape (2,); "
            "hint: a pair is (sum, weight), and what is to be logged goes into a dict",
        ),
        (
            (torch.ones(2), torch.ones(())),
            ValueError,
            "loss: the sum must be a 0-dim tensor, got shape (2,); hint: take the mean, or return (sum, weight)",
        ),
        ({"value": torch.ones(())}, ValueError, "loss: a dict needs the entry \"loss\", got the entries ['value']"),
        (
            {"loss": torch.ones(()), "lr": 0.1},
            TypeError,
            f"loss: the entry 'lr' must be a 0-dim tensor, got float; {ITSELF}",
        ),
        (
            {"loss": torch.ones(()), "x": torch.ones(2)},
            ValueError,
            "loss: the entry 'x' must be a 0-dim tensor, got shape (2,); hint: take the mean, or return (sum, weight)",
        ),
    ],
)
def test_a_loss_that_returns_something_else_is_told_so(returned: object, kind: type[Exception], message: str) -> None:
    step = ft.train_step(lambda params, batch: returned, ft.sgd(0.1))
    with pytest.raises(kind) as error:
        step(ft.TrainState.create(P, step.tx), torch.ones(2))
    assert str(error.value) == message


def test_what_is_no_function_is_no_loss() -> None:
    with pytest.raises(TypeError) as error:
        ft.train_step(3, ft.sgd(0.1))
    assert str(error.value) == "train_step: a loss is a function (params, batch) or model.loss(criterion), got int"


@pytest.mark.parametrize(
    ("batch", "came"),
    [({"x": torch.ones(2, 3)}, "dict"), ((torch.ones(2, 3),), "tuple of 1"), ([], "list of 0")],
)
def test_model_loss_wants_inputs_and_target(batch: object, came: str) -> None:
    model = ft.functionalize(nn.Linear(3, 2))
    with pytest.raises(TypeError) as error:
        model.loss(F.mse_loss)(model.params, batch)
    assert str(error.value) == (
        f"model.loss: a batch is a tuple (*inputs, target), got {came}; hint: model.objective(lambda m, batch: ...) "
        "takes any"
    )
