"""Schedulers, losses, batches and loaders that are not what they should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import functrain as ft
from functrain import optim
from tests.mistakes import BATCH, LOSS, MODEL, MODULE, SGD, Door, P, X, Y, net, said, state, step, train

SCALAR = "must be a 0-dim tensor, got"
MEAN = "hint: take the mean, or return (sum, weight)"
PAIR = "model.loss: a batch is a tuple (*inputs, target), got"
ANY = "hint: model.objective(lambda m, batch: ...) takes any"
RULE = (
    "sets the rate of a torch optimizer, and sgd is a transformation; hint: give it a schedule, such as "
    "ft.adamw(ft.schedules.cosine_decay_schedule(...)), or train with ft.configure_optimizer(...)"
)
NO_PARAMETER = (
    "train_step: the loss does not depend on any parameter that trains; hint: compute it from those that it is given "
    "(a model's, with the module m), without .detach(), .item() or torch.no_grad()"
)
OWN = (
    "Trainer: without loss_fn= and objective= the module is called with all entries of the batch, and returns its "
    "loss; hint: loss_fn=F.cross_entropy, say, is given its output and the batch's last entry"
)
INPUT = "linear(): argument 'input' (position 1) must be Tensor, not"
TENSORS = "not a tensor; hint: torch.as_tensor in the dataset, or in the loader's collate_fn"
WORDS = "is a str, not a tensor; hint: make numbers of strings in the dataset, or in the loader's collate_fn"
NONE_REDUCED = nn.CrossEntropyLoss(reduction="none")


def scheduled(scheduler: Any, torchs: bool = True) -> Any:
    """Training with a scheduler that is made from the optimizer."""

    def call() -> None:
        module = net()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        train(optimizer if torchs else SGD, module=module, scheduler=scheduler(optimizer))

    return call


def converted() -> None:
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    train(ft.from_torch(optimizer), module=module, scheduler=StepLR(optimizer, 1))


DOORS: dict[str, Door] = {
    # 5. a scheduler
    "a scheduler of what was converted": Door(
        converted, ValueError,
        "Trainer: StepLR sets the rates of another optimizer than the one given; hint: build it over the optimizer "
        "that the Trainer has",
    ),
    "beside a rule": Door(scheduled(lambda o: StepLR(o, 1), False), TypeError, f"Trainer: StepLR {RULE}"),
    "a class beside a rule": Door(scheduled(lambda o: StepLR, False), TypeError, f"Trainer: StepLR {RULE}"),
    "a function beside a rule": Door(scheduled(lambda o: scheduled, False), TypeError, f"Trainer: scheduled {RULE}"),
    "a class": Door(
        scheduled(lambda o: StepLR), TypeError,
        "Trainer: scheduler is the class StepLR; hint: StepLR(optimizer, ...), or a function that makes it from the "
        "updates in all: lambda optimizer, updates: ...",
    ),
    "a schedule": Door(
        scheduled(lambda o: ft.schedules.constant_schedule(0.1)), TypeError,
        "Trainer: scheduler is the schedule schedules.constant_schedule(0.1), which a rule takes; "
        "hint: ft.adamw(schedule) as optimizer",
    ),
    "for a validation loader": Door(
        lambda: train(val_loader=StepLR(optim.SGD(MODULE.parameters()), 1)), TypeError,
        "Trainer: val_loader is a StepLR, which yields no batches; hint: scheduler=",
    ),
    # 6. a loss
    "no mean": Door(
        lambda: ft.value_and_grad(MODEL.loss(NONE_REDUCED))(MODEL.params, BATCH), ValueError,
        f"loss: the result {SCALAR} shape (6,); {MEAN}",
    ),
    "no mean, in a step": Door(
        lambda: step(lambda p, x: x @ p["w"])(ft.TrainState.create(P, SGD), X), ValueError,
        f"loss: the result {SCALAR} shape (6,); {MEAN}",
    ),
    "no mean, in a Trainer": Door(
        lambda: train(loss_fn=NONE_REDUCED), ValueError, f"loss: the result {SCALAR} shape (6,); {MEAN}"
    ),
    "loss and output": Door(
        lambda: step(MODEL.objective(lambda m, b: (F.cross_entropy(m(b[0]), b[1]), m(b[0]))))(state(), BATCH),
        ValueError,
        f"loss: the weight {SCALAR} shape (6, 3); hint: a pair is (sum, weight), and what is to be logged goes into a "
        "dict",
    ),
    "nothing": Door(
        lambda: train(loss_fn=None, objective=lambda m, b: None), TypeError,
        f"loss: the result {SCALAR} NoneType; hint: return the loss",
    ),
    "a class of criterion": Door(
        lambda: train(loss_fn=nn.CrossEntropyLoss), TypeError,
        "model.loss: the criterion is the class CrossEntropyLoss; hint: CrossEntropyLoss() makes one",
    ),
    "a name": Door(
        lambda: train(loss_fn="cross_entropy"), TypeError,
        "model.loss: the criterion is a str, not a function; hint: such as F.cross_entropy",
    ),
    "an objective that is none": Door(
        lambda: MODEL.objective(LOSS(MODEL.params, BATCH)), TypeError,
        "model.objective: the objective is a Tensor, not a function; hint: such as F.cross_entropy",
    ),
    "value_and_grad of no function": Door(
        lambda: ft.value_and_grad(MODEL), TypeError,
        "value_and_grad: a loss is a function of trees or model.loss(criterion), got Model",
    ),
    "three arguments": Door(
        lambda: ft.value_and_grad(LOSS)(MODEL.params, X, Y), TypeError,
        "value_and_grad: a model's loss is called as (params, batch), got 3 arguments; hint: (params, (x, y))",
    ),
    "a module without a loss": Door(
        lambda: train(loss_fn=None), TypeError,
        f"Sequential.forward() takes 2 positional arguments but 3 were given\n{OWN}",
    ),
    "a module that returns its output": Door(
        lambda: train(loader=[X], loss_fn=None), TypeError,
        "Trainer: the module returned a tensor of shape (6, 3), not a loss; hint: give loss_fn= or objective=",
    ),
    # 9. a batch
    "a tuple of one": Door(lambda: LOSS(MODEL.params, (X,)), TypeError, f"{PAIR} tuple of 1; {ANY}"),
    "a dataset of one tensor": Door(
        lambda: train(loader=DataLoader(TensorDataset(X), 3)), TypeError, f"{PAIR} list of 1; {ANY}"
    ),
    "a tensor": Door(
        lambda: train(loader=[X]), TypeError,
        f"{PAIR} shape (6, 4); {ANY}; a loader of one batch is a list: [(x, y)]",
    ),
    "one batch for a loader": Door(
        lambda: train(loader=(X, Y)), TypeError,
        f"{PAIR} shape (6, 4); {ANY}; a loader of one batch is a list: [(x, y)]",
    ),
    "a tuple of one, whole": Door(
        lambda: train(loader=[(X,)], loss_fn=None, objective=lambda m, b: m(b).mean()), TypeError,
        f"{INPUT} tuple\nstep: the batch is a tuple of 1; hint: give the module its entries: m(batch[0])",
    ),
    "a dict, whole": Door(
        lambda: train(loader=[{"x": X}], loss_fn=None, objective=lambda m, b: m(b).mean()), TypeError,
        f"{INPUT} dict\nstep: the batch is a dict of 1; hint: give the module its entries: m(batch['x'])",
    ),
    "strings": Door(
        lambda: train(loader=[("a", "b")]), TypeError, f"{INPUT} str\nstep: entry '0' of the batch {WORDS}"
    ),
    "a list of strings": Door(
        lambda: ft.value_and_grad(LOSS)(MODEL.params, (["a"], Y)), TypeError,
        f"{INPUT} list\nvalue_and_grad: entry '0.0' of the batch {WORDS}",
    ),
    "arrays": Door(
        lambda: train(loader=[(np.ones((6, 4)), Y)]), TypeError,
        f"{INPUT} numpy.ndarray\nstep: entry '0' of the batch is a ndarray, {TENSORS}",
    ),
    "an attribute of an array": Door(
        lambda: step(lambda p, x: x.float())(ft.TrainState.create(P, SGD), np.ones(4)), AttributeError,
        f"'numpy.ndarray' object has no attribute 'float'\nstep: the batch is a ndarray, {TENSORS}",
    ),
    "a loader that is a dataset": Door(
        lambda: train(loader=TensorDataset(X, Y)), TypeError,
        "Trainer: train_loader is a TensorDataset, which yields samples, not batches; "
        "hint: DataLoader(dataset, batch_size=32, shuffle=True)",
    ),
    "a loader that is a tensor": Door(
        lambda: train(val_loader=X), TypeError,
        "Trainer: val_loader is a tensor, which is one batch at most; hint: a list of batches: [batch]",
    ),
    "no loader": Door(
        lambda: train(loader=None), TypeError,
        "Trainer: train_loader is a NoneType, which yields no batches; hint: a DataLoader, or a list of batches",
    ),
    # no parameter in the loss
    "a constant": Door(lambda: train(loss_fn=lambda out, y: torch.ones(())), ValueError, NO_PARAMETER),
    "cut off": Door(lambda: train(loss_fn=lambda out, y: F.cross_entropy(out.detach(), y)), ValueError, NO_PARAMETER),
    "another module": Door(
        lambda: step(lambda p, b: F.cross_entropy(MODULE(b[0]), b[1]))(state(), BATCH), ValueError, NO_PARAMETER
    ),
    "no parameters": Door(
        lambda: step(lambda p, x: x.mean())(ft.TrainState.create({}, SGD), X), ValueError, NO_PARAMETER
    ),
    "a frozen module": Door(
        lambda: train(module=net().requires_grad_(False)), ValueError,
        "Trainer: Sequential has no parameter with requires_grad; hint: unfreeze what is to be trained: "
        "module.requires_grad_()",
    ),
    "not a number": Door(
        lambda: train(loader=[(X / 0, Y)]), ft.NonFiniteError,
        "Trainer: update 1 in epoch 1 was not finite: loss nan, gradient norm nan; no update came before it; "
        "hint: look in the first batch, and in the loss for log(0), 0/0 and the like",
    ),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_a_run_that_cannot_be_is_told_word_for_word(door: str) -> None:
    call, kind, message = DOORS[door]
    assert said(call) == (kind, message)
