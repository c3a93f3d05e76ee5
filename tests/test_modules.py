"""functionalize: a module as trees and pure calls, itself never changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functrain as ft
from tests.networks import NormNet, Transformer, mlp, points, tokens


def snapshot(module: nn.Module) -> tuple[Any, ...]:
    """What a call must leave: the very tensors, their values, what hangs on them, every flag."""
    tensors = {
        f"{prefix}.{table}.{name}": x
        for prefix, m in module.named_modules()
        for table in ("_parameters", "_buffers")
        for name, x in getattr(m, table).items()
    }
    return (
        {name: id(x) for name, x in tensors.items()},
        {name: x.tolist() for name, x in tensors.items() if x is not None},
        {name: (x.requires_grad, x.grad) for name, x in tensors.items() if x is not None},
        [m.training for m in module.modules()],
    )


class Odd(nn.Module):
    """A frozen parameter, a buffer that is not saved, one that is absent, one that is replaced and not written to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.fixed = nn.Parameter(torch.full((2,), 3.0), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("absent", None)
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.sum(0)
        return x * self.weight + self.fixed


# --- the trees


def test_trees_have_the_modules_own_names_in_its_order() -> None:
    model = ft.functionalize(NormNet())
    assert list(model.params) == [name for name, _ in model.module.named_parameters()]
    assert list(model.buffers) == [name for name, _ in model.module.named_buffers()]
    assert model.frozen == {}


def test_frozen_is_what_requires_no_grad() -> None:
    model = ft.functionalize(Odd())
    assert list(model.params) == ["weight"]
    assert list(model.frozen) == ["fixed"]
    assert list(model.buffers) == ["calls", "last"]


def test_nothing_is_copied_and_nothing_requires_grad() -> None:
    module = NormNet()
    model = ft.functionalize(module)
    for name, p in module.named_parameters():
        assert model.params[name].data_ptr() == p.data_ptr()
        assert not model.params[name].requires_grad
    assert all(model.buffers[name] is b for name, b in module.named_buffers())


def test_a_loop_from_the_modules_own_parameters_grows_no_graph() -> None:
    model, batch = ft.functionalize(mlp(3, 2)), points()
    params = model.params
    for _ in range(2):
        _, grads = ft.value_and_grad(model.loss(F.mse_loss))(params, batch)
        params = ft.apply_updates(params, {name: -0.1 * g for name, g in grads.items()})
    assert not any(p.requires_grad for p in params.values())


# --- calls


def test_apply_is_the_module_with_other_tensors() -> None:
    module, other = mlp(3, 4, 2), mlp(3, 4, 2)
    x, _ = points()
    out, buffers = ft.functionalize(module).apply(dict(other.named_parameters()), {}, x)
    assert torch.equal(out, other(x))
    assert buffers == {}


def test_apply_changes_neither_the_module_nor_its_arguments() -> None:
    module = Odd()
    before, model = snapshot(module), ft.functionalize(module)
    params, buffers = {"weight": torch.full((2,), 2.0)}, {name: x.clone() for name, x in model.buffers.items()}
    out, after = model.apply(params, buffers, torch.ones(4, 2))
    assert snapshot(module) == before
    assert out.tolist() == [[5.0, 5.0]] * 4
    assert (buffers["calls"].item(), after["calls"].item()) == (0, 1)
    assert (buffers["last"].tolist(), after["last"].tolist()) == ([0.0, 0.0], [4.0, 4.0])
    assert after["calls"].dtype == torch.int64


def test_frozen_may_be_given_and_keywords_go_to_the_module() -> None:
    model = ft.functionalize(Odd())
    out, _ = model.apply(model.params, model.buffers, x=torch.ones(1, 2), frozen={"fixed": torch.zeros(2)})
    assert out.tolist() == [[1.0, 1.0]]


def test_calls_may_be_nested_on_one_module() -> None:
    """The inner call gets what it is given, and the outer call its own back."""
    model = ft.functionalize(nn.Linear(1, 1, bias=False))
    weight = lambda w: {"weight": torch.tensor([[w]])}  # noqa: E731
    x = torch.ones(1, 1)

    def outer(m: nn.Module, batch: Tensor) -> Tensor:
        inner = model.objective(lambda m, batch: m(batch).sum())(weight(5.0), batch)
        return inner * m(batch).sum()

    assert model.objective(outer)(weight(3.0), x).item() == 15
    assert ft.value_and_grad(model.objective(outer))(weight(3.0), x)[1]["weight"].item() == 5


class Failing(NormNet):
    """Fails after it has moved its buffers."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        self.norm.num_batches_tracked = torch.tensor(7)
        raise KeyError("mine")


def test_an_exception_inside_restores_every_tensor_and_flag() -> None:
    module = Failing()
    module.norm.eval()
    before, model = snapshot(module), ft.functionalize(module)
    loss = model.eval().loss(F.mse_loss)
    step = ft.train_step(loss, ft.sgd(0.1))
    state = ft.TrainState.create(model, step.tx)
    for call in (
        lambda: model.eval().apply(state.params, state.buffers, points()[0]),
        lambda: ft.value_and_grad(loss)(state.params, points()),
        lambda: step(state, points()),
    ):
        with pytest.raises(KeyError, match="mine"):
            call()
        assert snapshot(module) == before


# --- training flags


def test_training_flags_are_the_modules_at_the_time_of_the_call() -> None:
    module, (x, _) = NormNet(), points()
    model = ft.functionalize(module)
    module.eval()
    _, after = model.apply(model.params, model.buffers, x)
    assert after["norm.num_batches_tracked"].item() == 0
    module.train()
    _, after = model.apply(model.params, model.buffers, x)
    assert after["norm.num_batches_tracked"].item() == 1


def test_a_batchnorm_that_is_frozen_in_eval_stays_so() -> None:
    module, (x, _) = NormNet(0.5), points()
    module.norm.eval()
    flags, model = [m.training for m in module.modules()], ft.functionalize(module)
    out, after = model.apply(model.params, model.buffers, x)
    assert after["norm.num_batches_tracked"].item() == 0
    assert not torch.equal(out, model.apply(model.params, model.buffers, x)[0])  # dropout beside it is on
    model.eval().apply(model.params, model.buffers, x)
    assert [m.training for m in module.modules()] == flags


def test_eval_is_a_view_in_eval_mode() -> None:
    module, (x, y) = NormNet(0.5), points()
    model = ft.functionalize(module)
    out, after = model.eval().apply(model.params, model.buffers, x)
    value = model.loss(F.mse_loss).eval()(model.params, (x, y))
    assert all(m.training for m in module.modules())
    module.eval()
    assert torch.equal(out, module(x))
    assert all(torch.equal(after[name], b) for name, b in model.buffers.items())
    assert value.item() == pytest.approx(F.mse_loss(out, y).item())


# --- write_back


def test_write_back_fills_the_modules_own_tensors() -> None:
    module = Odd()
    ids, model = snapshot(module)[0], ft.functionalize(module)
    model.write_back({"weight": torch.tensor([7.0, 8.0])}, {"calls": torch.tensor(5), "last": torch.ones(2)})
    assert snapshot(module)[0] == ids
    assert (module.weight.tolist(), module.calls.item(), module.last.tolist()) == ([7.0, 8.0], 5, [1.0, 1.0])
    assert module.fixed.tolist() == [3.0, 3.0]
    model.write_back(model.params, frozen={"fixed": torch.zeros(2)})
    assert module.fixed.tolist() == [0.0, 0.0]


def test_trained_weights_written_back_are_the_modules_outputs() -> None:
    module, batch = Transformer(), tokens()
    model = ft.functionalize(module)
    step = ft.train_step(model.objective(lambda m, b: m(b[0]).square().mean()), ft.sgd(0.1))
    state, _ = step(ft.TrainState.create(model, step.tx), batch)
    model.write_back(state.params, state.buffers)
    assert module.head.weight is module.embedding.weight
    assert torch.equal(module(batch[0]), model.apply(state.params, {}, batch[0])[0])


@pytest.mark.parametrize(
    ("params", "buffers", "message"),
    [
        (
            {},
            None,
            "model: no tensor given for 'weight'; hint: pass model.params and model.buffers' names",
        ),
        (
            {"weight": torch.zeros(2)},
            {"calls": torch.tensor(1), "last": torch.ones(2), "more": torch.ones(2)},
            "model: the module has no 'more'; hint: pass model.params and model.buffers' names",
        ),
        (
            {"weight": torch.zeros(())},
            None,
            "model.write_back: 'weight' has shape (2,), the value ()",
        ),
    ],
)
def test_a_write_back_that_fails_writes_nothing(params: Any, buffers: Any, message: str) -> None:
    module = Odd()
    before = snapshot(module)
    with pytest.raises(ValueError, match="model") as error:
        ft.functionalize(module).write_back(params, buffers)
    assert str(error.value) == message
    assert snapshot(module) == before


# --- errors, word for word

FLAT = "model: expected a flat dict of tensors by name,"


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError) as error:
        ft.functionalize(lambda x: x)
    assert str(error.value) == "functionalize: expected a torch.nn.Module, got function"


@pytest.mark.parametrize(
    ("params", "buffers", "kind", "message"),
    [
        ({}, {}, ValueError, "model: no tensor given for 'weight'; hint: pass model.params and model.buffers' names"),
        (
            {"weight": torch.ones(1, 2), "bias": torch.ones(1), "bais": torch.ones(1)},
            {},
            ValueError,
            "model: the module has no 'bais'; hint: pass model.params and model.buffers' names",
        ),
        ([torch.ones(1, 2)], {}, TypeError, f"{FLAT} got list; hint: such as model.params"),
        (torch.ones(2), {}, TypeError, f"{FLAT} got shape (2,); hint: such as model.params"),
    ],
)
def test_tensors_that_are_not_the_modules_are_named(
    params: Any, buffers: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        ft.functionalize(nn.Linear(2, 1)).apply(params, buffers, torch.ones(1, 2))
    assert str(error.value) == message
