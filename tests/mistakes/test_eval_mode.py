"""Who is warned of training in eval mode, and who is not; and a loss that depends on a parameter now and then."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft
from tests.mistakes import BATCH, SGD, X, said, step, train

WARNING = (
    "train_step: Sequential is in eval mode, where '1', a {}, does not do what training wants; hint: module.train(), "
    "or, where this is meant, ft.functionalize(module).eval()"
)


def around(part: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), part, nn.Linear(4, 3))


def heard(call: Callable[[], object]) -> list[str]:
    """The warnings, of any kind."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(w.category is UserWarning for w in caught)
    return [str(w.message) for w in caught]


def pure(model: ft.Model) -> Callable[[], object]:
    return lambda: step(model.loss(F.cross_entropy))(ft.TrainState.create(model, SGD), BATCH)


DIFFERENT = {
    "Dropout": nn.Dropout(0.1),
    "BatchNorm1d": nn.BatchNorm1d(4),
    "AlphaDropout": nn.AlphaDropout(0.1),
}
ALIKE = {
    "LayerNorm": nn.LayerNorm(4),
    "no dropout": nn.Dropout(0.0),
    "no statistics": nn.BatchNorm1d(4, track_running_stats=False),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_module_in_eval_mode_is_warned_of_if_it_trains_otherwise(kind: str) -> None:
    module = around(DIFFERENT[kind]).eval()
    for call in (pure(ft.functionalize(module)), lambda: train(module=module)):
        assert heard(call) == [WARNING.format(kind)]
        module.train()
        assert heard(call) == []
        module.eval()


@pytest.mark.parametrize("kind", ALIKE)
def test_a_module_that_is_the_same_in_both_modes_is_not(kind: str) -> None:
    module = around(ALIKE[kind]).eval()
    assert heard(pure(ft.functionalize(module))) == []


def test_recurrent_modules_and_attention_drop_too() -> None:
    for part in (nn.LSTM(4, 4, num_layers=2, dropout=0.1), nn.MultiheadAttention(4, 2, dropout=0.1)):
        module = nn.ModuleDict({"a": part, "b": nn.Linear(4, 3)}).eval()
        model = ft.functionalize(module)
        loss = model.objective(lambda m, batch: F.cross_entropy(m["b"](batch[0]), batch[1]))
        told = heard(lambda loss=loss, model=model: step(loss)(ft.TrainState.create(model, SGD), BATCH))
        assert [f"'a', a {type(part).__name__}," in message for message in told] == [True]


def test_it_is_said_once_a_step_and_at_the_call_that_it_is_true_of() -> None:
    module = around(nn.Dropout(0.5))
    model = ft.functionalize(module)
    run = step(model.loss(F.cross_entropy))
    state = ft.TrainState.create(model, SGD)
    assert heard(lambda: run(state, BATCH)) == []
    module.eval()  # a validation that forgets to go back
    assert heard(lambda: [run(state, BATCH) for _ in range(3)]) == [WARNING.format("Dropout")]
    for mode in (True, False):
        module.train(mode)
        assert heard(lambda: run(state, BATCH)) == []


def test_a_part_that_leaves_training_mode_later_is_seen_when_the_module_has_been_back() -> None:
    module = around(nn.Dropout(0.5)).eval()
    module[2].train()
    model = ft.functionalize(module)
    run, state = step(model.loss(F.cross_entropy)), ft.TrainState.create(model, SGD)
    assert heard(lambda: run(state, BATCH)) == []
    module.train()
    assert heard(lambda: run(state, BATCH)) == []
    module.eval()
    assert heard(lambda: run(state, BATCH)) == [WARNING.format("Dropout")]


def test_a_compiled_step_warns_too() -> None:
    model = ft.functionalize(around(nn.Dropout(0.5)).eval())
    run = ft.jit(step(model.loss(F.cross_entropy)), backend="aot_eager", donate=False)
    state = ft.TrainState.create(model, SGD)
    assert heard(lambda: run(state, BATCH)) == [WARNING.format("Dropout")]
    assert heard(lambda: run(state, BATCH)) == []


def test_a_warning_points_at_the_call_of_the_step() -> None:
    model = ft.functionalize(around(nn.Dropout(0.5)).eval())
    run, state = step(model.loss(F.cross_entropy)), ft.TrainState.create(model, SGD)
    with pytest.warns(UserWarning, match="eval mode") as caught:
        run(state, BATCH)
    assert caught[0].filename == __file__


def test_what_is_meant_is_not_warned_of() -> None:
    """One part in training mode; the view in eval mode, pure and in a Trainer; per-example gradients; a loss alone."""
    module = around(nn.BatchNorm1d(4)).eval()
    model = ft.functionalize(module)
    assert heard(pure(model.eval())) == []
    assert heard(lambda: train(module=model.eval())) == []
    each = step(model.loss(F.cross_entropy), gradients="per_example")
    assert heard(lambda: each.gradients(ft.TrainState.create(model, SGD), BATCH)) == []
    assert heard(lambda: ft.value_and_grad(model.loss(F.cross_entropy))(model.params, BATCH)) == []
    module[2].train()
    assert heard(pure(model)) == []


def test_an_eval_view_trains_in_eval_mode_and_leaves_every_flag() -> None:
    module = around(nn.BatchNorm1d(4))
    before = [x.clone() for x in module.buffers()]
    trainer = train(module=ft.functionalize(module).eval())
    assert all(map(torch.equal, before, module.buffers()))
    assert all(m.training for m in module.modules())
    assert trainer.updates == 1


# --- a loss that no parameter is in, where that is right


def sometimes(params: dict[str, Tensor], batch: Tensor) -> tuple[Tensor, Tensor]:
    """A sum over what a mask leaves, which may be nothing."""
    kept = batch[batch[:, 0] > 0]
    if not len(kept):
        return torch.zeros(()), torch.zeros(())
    return (kept @ params["w"]).square().sum(), torch.tensor(float(len(kept)))


def test_a_micro_batch_that_weighs_nothing_may_depend_on_nothing() -> None:
    params = {"w": torch.ones(4)}
    state = ft.TrainState.create(params, SGD)
    both, _ = step(sometimes, accumulate=2)(state, torch.cat([X, -X]))
    alone, _ = step(sometimes)(state, X)
    assert torch.equal(both.params["w"], alone.params["w"])
    new, metrics = step(sometimes)(state, -X)
    assert metrics["skipped"].item() == 1
    assert torch.equal(new.params["w"], params["w"])


def test_some_parameters_may_take_no_part() -> None:
    params = {"w": torch.ones(4), "idle": torch.ones(2)}
    acc = step(lambda p, x: (x @ p["w"]).mean()).gradients(ft.TrainState.create(params, SGD), X)
    assert acc.grads["idle"].tolist() == [0, 0]


def test_value_and_grad_gives_zeros_where_a_step_refuses() -> None:
    value, grads = ft.value_and_grad(lambda p, x: x.mean())({"w": torch.ones(4)}, X)
    assert value.item() == 1
    assert grads["w"].tolist() == [0, 0, 0, 0]
    assert said(lambda: step(lambda p, x: x.mean())(ft.TrainState.create({"w": X}, SGD), X))[0] is ValueError
