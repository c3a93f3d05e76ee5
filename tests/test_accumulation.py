"""A window of micro-batches is one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import functrain as ft
from functrain import tree
from functrain.window import Gradients, split
from tests.networks import D, NormNet, mlp, points

RULES = {"sgd": ft.sgd(0.1, momentum=0.9), "adamw": ft.adamw(0.01, weight_decay=0.1)}


def close(a: object, b: object, rtol: float = 1e-12) -> None:
    assert tree.paths(a) == tree.paths(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=1e-15)


def parameters(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=D) for name, shape in (("w", (3, 4)), ("v", (4, 2)))}


def errors(p: dict[str, Tensor], batch: Any) -> Tensor:
    x, y = batch[:2]
    return (torch.tanh(x @ p["w"]) @ p["v"] - y).square().sum(-1)


def mean_loss(p: dict[str, Tensor], batch: Any) -> Tensor:
    return errors(p, batch).mean()


def masked_loss(p: dict[str, Tensor], batch: Any) -> tuple[Tensor, Tensor]:
    mask = batch[2]
    return (errors(p, batch) * mask).sum(), mask.sum()


def train(loss: Any, tx: ft.GradientTransformation, batch: Any, k: int, updates: int = 3, **options: Any) -> Any:
    step = ft.train_step(loss, tx, accumulate=k, **options)
    state = ft.TrainState.create(parameters(), tx)
    metrics = {}
    for _ in range(updates):
        state, metrics = step(state, batch)
    return state, metrics


# --- K is one


@pytest.mark.parametrize("rule", RULES)
@given(rows=st.integers(1, 13), k=st.integers(1, 13), seed=st.integers(0, 99))
def test_acc_1_k_micro_batches_are_one_batch(rule: str, rows: int, k: int, seed: int) -> None:
    batch = points(max(rows, k), seed, D)
    one, one_metrics = train(mean_loss, RULES[rule], batch, 1)
    many, many_metrics = train(mean_loss, RULES[rule], batch, k)
    close(many.params, one.params)
    close(many.opt_state, one.opt_state)
    close(many_metrics, one_metrics)


def chop(batch: tuple[Tensor, ...], sizes: list[int]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(x.split(sizes) for x in batch), strict=True))


@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_acc_3_the_update_does_not_depend_on_where_a_stream_is_cut(sizes: list[int], seed: int) -> None:
    batch = points(sum(sizes), seed, D)
    step = ft.train_step(mean_loss, RULES["adamw"])
    state = ft.TrainState.create(parameters(), step.tx)
    acc = None
    for piece in chop(batch, sizes):
        acc = step.gradients(state, piece, acc)
    assert acc is not None
    assert (acc.pieces.item(), acc.weight.item()) == (len(sizes), sum(sizes))
    streamed, whole = step.apply(state, acc), step(state, batch)
    close(streamed, whole)


def weighted(seed: int = 0) -> tuple[tuple[Tensor, ...], list[tuple[Tensor, ...]]]:
    """28 rows, of which 7, 1, 3 and 0 count in the four pieces of 7; and the pieces."""
    x, y = points(28, seed, D)
    mask = torch.zeros(28, dtype=D)
    for start, weight in ((0, 7), (7, 1), (14, 3)):
        mask[start : start + weight] = 1
    batch = (x, y, mask)
    return batch, chop(batch, [7, 7, 7, 7])


@pytest.mark.parametrize("rule", RULES)
def test_acc_2_weights_7_1_3_0_are_one_batch_of_11(rule: str) -> None:
    batch, pieces = weighted()
    assert [int(piece[2].sum()) for piece in pieces] == [7, 1, 3, 0]
    one, metrics = train(masked_loss, RULES[rule], batch, 1)
    many, many_metrics = train(masked_loss, RULES[rule], batch, 4)
    close(many.params, one.params)
    close(many_metrics, metrics)

    kept = batch[2].bool()
    eleven, _ = train(mean_loss, RULES[rule], (batch[0][kept], batch[1][kept]), 1)
    close(many.params, eleven.params)


def test_acc_2_the_mean_of_means_is_something_else() -> None:
    """The negative control: losses that hide their weights are not one batch."""
    batch, _ = weighted()

    def mean_of_means(p: dict[str, Tensor], batch: Any) -> tuple[Tensor, Tensor]:
        total, weight = masked_loss(p, batch)
        return total / weight.clamp(min=1), torch.ones(())

    right, _ = train(masked_loss, RULES["sgd"], batch, 4)
    wrong, _ = train(mean_of_means, RULES["sgd"], batch, 4)
    with pytest.raises(AssertionError, match="not close"):
        close(wrong.params, right.params, rtol=1e-3)


def test_replicas_are_merged_by_adding() -> None:
    batch = points(12, dtype=D)
    step = ft.train_step(mean_loss, RULES["adamw"])
    state = ft.TrainState.create(parameters(), step.tx)
    a, b = (step.gradients(state, piece) for piece in chop(batch, [5, 7]))
    both, whole = a + b, step.gradients(state, batch)
    close((both.grads, both.loss, both.weight), (whole.grads, whole.loss, whole.weight))
    with pytest.raises(TypeError) as error:
        a + 1
    assert str(error.value) == "Gradients: only Gradients can be added, got int"


def test_acc_7_gradients_accumulate_in_float32_at_least() -> None:
    """In bfloat16, adding 1 to 256 would change nothing."""
    p = {"w": torch.ones((), dtype=torch.bfloat16)}
    step = ft.train_step(lambda p, b: ((p["w"] * b).sum(), torch.ones(())), ft.sgd(0.1))
    state = ft.TrainState.create(p, step.tx)
    acc = step.gradients(state, torch.tensor([256.0]))
    for _ in range(3):
        acc = step.gradients(state, torch.tensor([1.0]), acc)
    assert acc.grads["w"].dtype == torch.float32
    assert acc.grads["w"].item() == 259 / 4


# --- once a window


def test_acc_6_clipping_acts_once_on_the_gradient_of_the_window() -> None:
    batch = points(12, dtype=D)
    limit = 0.05
    (one, metrics), (many, many_metrics) = (
        train(mean_loss, ft.sgd(1.0), batch, k, updates=1, max_grad_norm=limit) for k in (1, 4)
    )
    close(many.params, one.params)
    assert metrics["grad_norm"].item() == pytest.approx(many_metrics["grad_norm"].item(), rel=1e-12)
    assert metrics["grad_norm"].item() > limit
    moved = tree.norm(tree.map(torch.sub, one.params, parameters()))
    assert moved.item() == pytest.approx(limit, rel=1e-12)


def test_acc_4_the_loss_is_that_of_the_window_before_the_update() -> None:
    batch = points(12, dtype=D)
    for k in (1, 3, 4):
        _, metrics = train(mean_loss, ft.sgd(0.1), batch, k, updates=1)
        assert metrics["loss"].item() == pytest.approx(mean_loss(parameters(), batch).item(), rel=1e-12)


def test_buffers_chain_through_the_micro_batches() -> None:
    x, y = points(12)
    module = NormNet()
    model = ft.functionalize(module)
    step = ft.train_step(model.loss(F.mse_loss), ft.sgd(0.0), accumulate=3)
    state, _ = step(ft.TrainState.create(model, step.tx), (x, y))
    for piece in x.chunk(3):
        module(piece)
    assert state.buffers["norm.num_batches_tracked"].item() == 3
    assert all(torch.equal(state.buffers[name], b) for name, b in module.named_buffers())


def test_each_micro_batch_draws_its_own_masks_and_the_same_every_time() -> None:
    seen: list[Tensor] = []

    def loss(p: dict[str, Tensor], batch: Tensor) -> Tensor:
        seen.append(torch.rand(4))
        return (p["w"].sum() * batch).mean()

    step = ft.train_step(loss, ft.sgd(0.1), accumulate=3)
    state = ft.TrainState.create(parameters(), step.tx, seed=5)
    before = torch.get_rng_state()
    state, _ = step(state, torch.ones(6))
    acc = None
    start = state._replace(step=state.step - 1)
    for _ in range(3):
        acc = step.gradients(start, torch.ones(2), acc)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = seen[:3], seen[3:]
    assert all(map(torch.equal, first, second))
    assert len({tuple(x.tolist()) for x in first}) == 3


def test_value_grad_and_value_fn_are_the_windows() -> None:
    """A rule that needs them sees the unscaled mean loss, the unclipped mean gradient, and the same masks."""
    seen: dict[str, Any] = {}

    def update(u: Any, s: Any, p: Any, *, value: Tensor, grad: Any, value_fn: Any) -> Any:
        slope = ft.value_and_grad(value_fn)(p)[1]
        by_func = torch.func.grad(value_fn)(p)
        seen.update(value=value, grad=grad, again=value_fn(p), slope=slope, by_func=by_func, clipped=u)
        return u, s

    tx = ft.GradientTransformation(lambda p: (), update, needs=("value", "grad", "value_fn"))
    torch.manual_seed(0)
    model = ft.functionalize(NormNet(0.5, D))
    step = ft.train_step(model.loss(F.mse_loss), tx, accumulate=3, max_grad_norm=1e-3)
    state = ft.TrainState.create(model, tx)
    _, metrics = step(state, points(12, dtype=D))
    close(seen["again"], seen["value"])
    close(seen["value"], metrics["loss"])
    close(tree.norm(seen["grad"]), metrics["grad_norm"])
    assert tree.norm(seen["clipped"]).item() == pytest.approx(1e-3)
    close(seen["slope"], seen["grad"])
    close(seen["by_func"], seen["grad"])


def test_value_fn_is_computed_in_the_steps_precision() -> None:
    seen: dict[str, Any] = {}

    def update(u: Any, s: Any, p: Any, *, value: Tensor, value_fn: Any) -> Any:
        seen.update(value=value, again=value_fn(p))
        return u, s

    tx = ft.GradientTransformation(lambda p: (), update, needs=("value", "value_fn"))
    model = ft.functionalize(mlp(3, 16, 2))
    for precision in ("bf16", "fp16", ft.Precision(compute=torch.bfloat16)):
        step = ft.train_step(model.loss(F.mse_loss), tx, precision=precision)
        step(ft.TrainState.create(model, tx), points())
        assert torch.equal(seen["again"], seen["value"])


# --- how a batch splits


def test_a_batch_splits_as_tensor_split_does_and_what_is_no_tensor_goes_everywhere() -> None:
    batch = {"x": torch.arange(5), "name": "a", "n": 3, "none": None, "pair": (torch.arange(5), 1.5)}
    first, second = split(batch, 2)
    assert first["x"].tolist() == [0, 1, 2]
    assert second["pair"][0].tolist() == [3, 4]
    assert (first["name"], first["n"], first["none"], first["pair"][1]) == ("a", 3, None, 1.5)


@pytest.mark.parametrize(
    ("batch", "kind", "message"),
    [
        (
            (torch.ones(3, 1), torch.ones(3)),
            ValueError,
            "accumulate=4: the batch has 3 rows, fewer than 4; hint: a larger batch or smaller k",
        ),
        (
            {"x": torch.ones(8), "t": {"scale": torch.ones(())}},
            ValueError,
            "accumulate=4: entry 't.scale' of the batch is a 0-dim tensor and does not split; hint: give it an axis",
        ),
        (
            torch.ones(()),
            ValueError,
            "accumulate=4: the batch is a 0-dim tensor and does not split; hint: give it an axis",
        ),
        (
            {"x": torch.ones(8), "y": torch.ones(6)},
            ValueError,
            "accumulate=4: the tensors of the batch differ in leading size: entry 'x' of the batch has 8, "
            "entry 'y' of the batch has 6",
        ),
        (
            {"x": torch.ones(8), "y": {1, 2}},
            TypeError,
            "accumulate=4: entry 'y' of the batch is a set, which does not split; "
            "hint: batches are dicts, lists and tuples of tensors",
        ),
    ],
)
def test_a_batch_that_does_not_split_is_told_so(batch: Any, kind: type[Exception], message: str) -> None:
    step = ft.train_step(mean_loss, ft.sgd(0.1), accumulate=4)
    with pytest.raises(kind) as error:
        step(ft.TrainState.create(parameters(), step.tx), batch)
    assert str(error.value) == message


def test_a_window_of_one_is_its_gradient_bit_for_bit() -> None:
    batch = points(7, dtype=D)
    step = ft.train_step(mean_loss, ft.sgd(0.1))
    acc = step.gradients(ft.TrainState.create(parameters(), step.tx), batch)
    assert isinstance(acc, Gradients)
    assert all(map(torch.equal, tree.leaves((acc + acc).grads), tree.leaves(acc.grads)))
