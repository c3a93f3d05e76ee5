"""Parameters forgotten, modules for trees, numbers for tensors, integers, devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import functrain as ft
from functrain import optim
from tests.mistakes import ADAMW, BATCH, LOSS, META, MODEL, MODULE, SGD, Door, P, X, Y, said, squares, state, step

NEEDS = "it needs the parameters and got none; hint: update(updates, state, params)"
TREE = "no tree of tensors; hint:"
GRADS = f"{TREE} ft.value_and_grad(loss)(params, batch) gives gradients"
PARAMS = f"{TREE} ft.functionalize(module).params"
LOSS_IS = "a loss is a function (params, batch) or model.loss(criterion), got"
TORCHS = "optimizer can only optimize Tensors, but one of the params is"
ONE = "not a tensor; hint: torch.tensor makes one"
ITSELF = "hint: return the tensor itself, without .item() or .numpy(); torch.tensor makes one of a number"
NO_GRADIENT = "which has no gradient; hint:"
CPU = "hint: .to('cpu') moves it"


def moved(x: object) -> Any:
    return ft.tree.map(lambda leaf: leaf.to(META), x)


def forgotten(tx: ft.GradientTransformation) -> Any:
    return lambda: tx.update(P, tx.init(P))


DOORS: dict[str, Door] = {
    # 1. the parameters
    "adamw": Door(forgotten(ADAMW), ValueError, f"add_decayed_weights: {NEEDS}"),
    "lamb": Door(forgotten(ft.lamb(0.1)), ValueError, f"scale_by_trust_ratio: {NEEDS}"),
    "schedule_free": Door(forgotten(ft.schedule_free_sgd(0.1)), ValueError, f"schedule_free_sgd: {NEEDS}"),
    "masked": Door(
        forgotten(ft.masked(SGD, ft.mask_by(lambda path, p: True))), ValueError, f"masked: {NEEDS}"
    ),
    # 2. a module
    "init": Door(lambda: SGD.init(MODULE), TypeError, f"sgd: parameters are a Sequential, {PARAMS}"),
    "init of a part": Door(
        lambda: SGD.init({"a": MODULE}), TypeError,
        "sgd: parameter 'a' is a Sequential, not a tensor; hint: ft.functionalize(module).params",
    ),
    "init of a generator": Door(
        lambda: SGD.init(MODULE.parameters()), TypeError,
        f"sgd: parameters are a generator, {TREE} dict(module.named_parameters()), which can be read twice",
    ),
    "init of a model": Door(
        lambda: SGD.init(MODEL), TypeError, f"sgd: parameters are a Model, {TREE} its params: model.params"
    ),
    "init of an optimizer": Door(
        lambda: SGD.init(optim.SGD(MODULE.parameters())), TypeError,
        f"sgd: parameters are a SGD, {TREE} an optimizer of torch has no place here; "
        "dict(module.named_parameters()) is a tree of what it trains",
    ),
    "init of a dict's values": Door(
        lambda: SGD.init(P.values()), TypeError, f"sgd: parameters are a dict_values, {TREE} the dict itself"
    ),
    "create": Door(
        lambda: ft.TrainState.create(MODULE, SGD), TypeError, f"sgd: parameters are a Sequential, {PARAMS}"
    ),
    "value_and_grad": Door(
        lambda: ft.value_and_grad(LOSS)(MODULE, BATCH), TypeError,
        f"value_and_grad: the argument is a Sequential, {PARAMS}",
    ),
    "update": Door(
        lambda: ADAMW.update(MODULE, ADAMW.init(P), P), TypeError, f"scale_by_adam: updates are a Sequential, {GRADS}"
    ),
    "update, as parameters": Door(
        lambda: ADAMW.update(P, ADAMW.init(P), MODULE), TypeError,
        f"add_decayed_weights: parameters are a Sequential, {PARAMS}",
    ),
    "apply_updates": Door(
        lambda: ft.apply_updates(MODULE, P), TypeError, f"apply_updates: parameters are a Sequential, {PARAMS}"
    ),
    "apply_updates, as updates": Door(
        lambda: ft.apply_updates(P, MODULE), TypeError, f"apply_updates: updates are a Sequential, {GRADS}"
    ),
    "train_step": Door(
        lambda: ft.train_step(MODULE, SGD), TypeError,
        f"train_step: {LOSS_IS} the module Sequential; hint: ft.functionalize(module).loss(criterion)",
    ),
    "train_step with a criterion": Door(
        lambda: ft.train_step(F.cross_entropy, SGD), TypeError,
        f"train_step: {LOSS_IS} the criterion cross_entropy; hint: ft.functionalize(module).loss(F.cross_entropy)",
    ),
    "apply": Door(
        lambda: MODEL.apply(MODULE, {}, X), TypeError,
        "model: expected a flat dict of tensors by name, got Sequential; hint: such as model.params",
    ),
    "functionalize": Door(
        lambda: ft.functionalize(MODULE.parameters()), TypeError,
        "functionalize: expected a torch.nn.Module, got generator; hint: the module itself",
    ),
    "functionalize a model": Door(
        lambda: ft.functionalize(MODEL), TypeError,
        "functionalize: expected a torch.nn.Module, got Model; hint: it is functionalized already",
    ),
    "functionalize a class": Door(
        lambda: ft.functionalize(torch.nn.Linear), TypeError,
        "functionalize: expected a torch.nn.Module, got the class Linear; hint: make one of it",
    ),
    "a torch optimizer": Door(
        lambda: optim.SGD(MODULE), TypeError,
        f"{TORCHS} torch.nn.modules.linear.Linear; it is parameter 0 of group 0; hint: module.parameters()",
    ),
    "create_optimizer": Door(
        lambda: ft.create_optimizer("lion", MODULE.state_dict(), lr=0.1), TypeError,
        f"{TORCHS} str; it is parameter 0 of group 0; hint: .values() or .items() of a dict",
    ),
    "configure_optimizer": Door(
        lambda: ft.configure_optimizer(MODULE.parameters()), TypeError,
        "configure_optimizer: model must be a torch.nn.Module, got generator; "
        "hint: the module itself, whose parameters it sorts",
    ),
    # 3. a number
    "init of a float": Door(lambda: SGD.init({**P, "b": 0.0}), TypeError, f"sgd: parameter 'b' is a float, {ONE}"),
    "init of an array": Door(
        lambda: SGD.init({"w": np.zeros(3)}), TypeError,
        "sgd: parameter 'w' is a ndarray, not a tensor; hint: torch.as_tensor makes one",
    ),
    "create of a float": Door(
        lambda: ft.TrainState.create({**P, "b": 0.0}, SGD), TypeError, f"sgd: parameter 'b' is a float, {ONE}"
    ),
    "gradient at a float": Door(
        lambda: ft.value_and_grad(squares)({**P, "b": 0.0}, X), TypeError, f"value_and_grad: leaf 'b' is a float, {ONE}"
    ),
    "update of a float": Door(
        lambda: ADAMW.update({**P, "b": 0.0}, ADAMW.init(P), P), TypeError,
        f"scale_by_adam: update 'b' is a float, {ONE}",
    ),
    "apply a float": Door(
        lambda: ft.apply_updates(P, {**P, "b": 0.0}), TypeError, f"apply_updates: update 'b' is a float, {ONE}"
    ),
    "apply to a float": Door(
        lambda: ft.apply_updates({**P, "b": 0.0}, P), TypeError, f"apply_updates: parameter 'b' is a float, {ONE}"
    ),
    "the loss's result": Door(
        lambda: ft.value_and_grad(lambda p, x: squares(p, x).item())(P, X), TypeError,
        f"loss: the result must be a 0-dim tensor, got float; {ITSELF}",
    ),
    "the criterion's result": Door(
        lambda: step(MODEL.loss(lambda out, y: F.cross_entropy(out, y).item()))(state(), BATCH), TypeError,
        f"loss: the result must be a 0-dim tensor, got float; {ITSELF}",
    ),
    "a rate": Door(
        lambda: ft.adamw("1e-3"), TypeError,
        "scale_by_learning_rate: learning_rate must be a number, a 0-dim tensor or a schedule, got str",
    ),
    "parameters as a rate": Door(
        lambda: ft.adamw(MODEL.params), TypeError,
        "scale_by_learning_rate: learning_rate must be a number, a 0-dim tensor or a schedule, got dict",
    ),
    # 8. an integer
    "argnums": Door(
        lambda: ft.value_and_grad(lambda w, x, y: F.cross_entropy(x @ w, y), argnums=2)(torch.ones(4, 3), X, Y),
        TypeError,
        f"value_and_grad: the argument is of dtype torch.int64, {NO_GRADIENT} keep it out of the parameters, or "
        "choose other argnums",
    ),
    "an integer leaf": Door(
        lambda: ft.value_and_grad(squares)({**P, "b": torch.tensor(1)}, X), TypeError,
        f"value_and_grad: leaf 'b' is of dtype torch.int64, {NO_GRADIENT} keep it out of the parameters, or choose "
        "other argnums",
    ),
    "init of an integer": Door(
        lambda: SGD.init({**P, "b": torch.tensor(1)}), TypeError,
        f"sgd: parameter 'b' has dtype torch.int64, {NO_GRADIENT} optimize floating or complex tensors, and keep the "
        "others apart",
    ),
    "argnums out of range": Door(
        lambda: ft.value_and_grad(squares, argnums=2)(P, X), ValueError,
        "value_and_grad: argnums=2, and the call has 2 arguments by position; hint: give what is differentiated by "
        "position, and count from 0",
    ),
    "argnums by keyword": Door(
        lambda: ft.value_and_grad(squares)(params=P, x=X), ValueError,
        "value_and_grad: argnums=0, and the call has 0 arguments by position; hint: give what is differentiated by "
        "position, and count from 0",
    ),
    "argnums by name": Door(
        lambda: ft.value_and_grad(squares, argnums="params"), TypeError,
        "value_and_grad: argnums must be an integer or several, got 'params'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_a_tree_that_is_none_is_told_word_for_word(door: str) -> None:
    call, kind, message = DOORS[door]
    assert said(call) == (kind, message)


# --- 7. devices: PyTorch's own error, and a line more

PLACES: dict[str, tuple[Any, str]] = {
    "value_and_grad, the batch": (
        lambda: ft.value_and_grad(LOSS)(MODEL.params, (X.to(META), Y)),
        "value_and_grad: parameter '0.weight' is on cpu, and entry '0' of the batch on meta",
    ),
    "value_and_grad, an argument": (
        lambda: ft.value_and_grad(lambda w, x, y: F.cross_entropy(x @ w, y))(torch.ones(4, 3), X, Y.to(META)),
        "value_and_grad: argument '0' is on cpu, and argument '2' on meta",
    ),
    "step, the inputs": (
        lambda: step()(state(), (X.to(META), Y)),
        "step: parameter '0.weight' is on cpu, and entry '0' of the batch on meta",
    ),
    "step, the target": (
        lambda: step()(state(), (X, Y.to(META))),
        "step: parameter '0.weight' is on cpu, and entry '1' of the batch on meta",
    ),
    "step, a batch that is one tensor": (
        lambda: step(squares)(ft.TrainState.create(P, SGD), X.to(META)),
        "step: parameter 'w' is on cpu, and the batch on meta",
    ),
    "step, compiled": (
        lambda: ft.jit(step(), backend="aot_eager")(state(), (X.to(META), Y)),
        "step: parameter '0.weight' is on cpu, and entry '0' of the batch on meta",
    ),
    "update, the gradient": (
        lambda: ADAMW.update(moved(P), ADAMW.init(P), P),
        "scale_by_adam: parameter 'w' is on cpu, and update 'w' on meta",
    ),
    "update, the state": (
        lambda: ADAMW.update(P, moved(ADAMW.init(P)), P),
        "scale_by_adam: parameter 'w' is on cpu, and leaf 'count' of the state on meta",
    ),
    "apply_updates": (
        lambda: ft.apply_updates(P, moved(P)),
        "apply_updates: parameter 'w' is on cpu, and update 'w' on meta",
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_two_devices_are_named_with_what_is_there(place: str) -> None:
    call, message = PLACES[place]
    kind, text = said(call)
    assert issubclass(kind or type(None), RuntimeError)
    assert text.splitlines()[-1] == f"{message}; {CPU}"


@pytest.mark.cuda
def test_two_devices_are_named_on_an_accelerator() -> None:
    kind, text = said(lambda: step()(state(), (X.cuda(), Y)))
    assert kind is RuntimeError
    assert text.splitlines()[-1] == (
        f"step: parameter '0.weight' is on cpu, and entry '0' of the batch on cuda:0; {CPU}"
    )


class Mine(RuntimeError):
    """An error of the user's."""


def raising(error: Exception) -> Any:
    def loss(params: dict[str, Tensor], batch: object) -> Tensor:
        raise error

    return loss


def test_an_error_of_the_users_comes_out_as_it_is() -> None:
    """A note is added where functrain knows something of it, and to no other."""
    for error in (Mine("device"), TypeError("Tensor"), KeyError("x"), AttributeError("'Tensor' object")):
        for call in (lambda e=error: ft.value_and_grad(raising(e))(P, X), lambda e=error: step(raising(e))(state(), X)):
            with pytest.raises(type(error)) as caught:
                call()
            assert caught.value is error
            assert not hasattr(error, "__notes__")


def test_a_number_on_the_cpu_goes_with_every_device() -> None:
    """A 0-dim tensor of the CPU is no culprit: PyTorch takes it as a number."""
    error = Mine()
    assert said(lambda: step(raising(error))(ft.TrainState.create(P, SGD), {"x": X, "rate": torch.ones(())})) == (
        Mine,
        "",
    )
    params = {"b": torch.zeros(()), "w": torch.ones(4)}
    text = said(lambda: step(squares)(ft.TrainState.create(params, SGD), X.to(META)))[1]
    assert text.endswith(f"step: parameter 'w' is on cpu, and the batch on meta; {CPU}")
