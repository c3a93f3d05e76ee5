"""Optimizers, states and paths that are none, arguments in the wrong order, and a state that was given away."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

import functrain as ft
from functrain import optim
from tests.mistakes import BATCH, LOSS, MODEL, MODULE, SGD, Door, P, X, said, squares, state, step, train

CALL = "not a GradientTransformation; hint: call the factory, as in adamw(0.001)"

DOORS: dict[str, Door] = {
    # an optimizer
    "a factory": Door(
        lambda: train(ft.adamw), TypeError,
        "Trainer: optimizer is the factory adamw, and not an optimizer; hint: adamw(0.001)",
    ),
    "half a factory": Door(
        lambda: train(partial(ft.adamw, weight_decay=0.1)), TypeError,
        "Trainer: optimizer is the factory adamw, and not an optimizer; hint: adamw(0.001)",
    ),
    "a class of optimizer": Door(
        lambda: train(torch.optim.AdamW), TypeError,
        "Trainer: optimizer is the class AdamW, and not an optimizer; hint: AdamW(module.parameters(), lr=0.001)",
    ),
    "a module": Door(
        lambda: train(MODULE), TypeError,
        "Trainer: optimizer is the module Sequential, and not an optimizer; "
        "hint: Trainer(module, ft.adamw(0.001), loader)",
    ),
    "a factory in a step": Door(
        lambda: ft.train_step(LOSS, ft.adamw), TypeError, f"train_step: tx is a function, {CALL}"
    ),
    "a factory in a state": Door(
        lambda: ft.TrainState.create(MODEL, ft.adamw), TypeError, f"TrainState.create: tx is a function, {CALL}"
    ),
    "a factory in update_and_apply": Door(
        lambda: ft.update_and_apply(ft.adamw), TypeError, f"update_and_apply: tx is a function, {CALL}"
    ),
    "torch's in a step": Door(
        lambda: ft.train_step(LOSS, optim.SGD(MODULE.parameters())), TypeError,
        "train_step: tx is a SGD, not a GradientTransformation; "
        "hint: ft.from_torch(optimizer).as_transform(dict(module.named_parameters()))",
    ),
    "a name in a step": Door(
        lambda: ft.train_step(LOSS, "adamw"), TypeError,
        "train_step: tx is a str, not a GradientTransformation; hint: ft.adamw(0.001)",
    ),
    # the order of arguments
    "the transformation first, in a step": Door(
        lambda: ft.train_step(SGD, LOSS), TypeError,
        "train_step: the transformation came first; hint: train_step(loss, tx)",
    ),
    "the transformation first, in a state": Door(
        lambda: ft.TrainState.create(SGD, MODEL), TypeError,
        "TrainState.create: the transformation came first; hint: TrainState.create(model, tx)",
    ),
    "parameters for a state": Door(
        lambda: step()(MODEL.params, BATCH), TypeError,
        "step: state must be a TrainState, got dict; hint: ft.TrainState.create(model, tx)",
    ),
    "a pair for a state": Door(
        lambda: step().gradients(step()(state(), BATCH), BATCH), TypeError,
        "step.gradients: state must be a TrainState, got tuple; "
        "hint: a step returns a pair: state, metrics = step(state, batch)",
    ),
    "nothing for a state, compiled": Door(
        lambda: ft.jit(step())(None, BATCH), TypeError,
        "step: state must be a TrainState, got NoneType; hint: ft.TrainState.create(model, tx)",
    ),
    # what is listed, and paths
    "one callback": Door(
        lambda: train(callbacks=print), TypeError,
        "Trainer: callbacks is a builtin_function_or_method, not a list; hint: callbacks=[...]",
    ),
    "one logger": Door(
        lambda: train(loggers="tensorboard"), TypeError, "Trainer: loggers is a str, not a list; hint: loggers=[...]"
    ),
    "a state dict to resume from": Door(
        lambda: train(resume=MODULE.state_dict()), TypeError,
        "Trainer: resume is a OrderedDict; hint: the path of a checkpoint that a Trainer has saved",
    ),
    "a state dict to load": Door(
        lambda: train().load_checkpoint(MODULE.state_dict()), TypeError,
        "Trainer.load_checkpoint: path is a OrderedDict; hint: the path of a checkpoint that a Trainer has saved",
    ),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_an_argument_that_cannot_be_is_told_word_for_word(door: str) -> None:
    call, kind, message = DOORS[door]
    assert said(call) == (kind, message)


def test_a_directory_that_is_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    path.write_text("x")
    message = f"Trainer: save_dir={str(path)!r} is a file; hint: the path of a folder"
    assert said(lambda: train(save_dir=path)) == (ft.CheckpointError, message)


# --- 10. a state that was given away


def test_a_donated_state_is_refused_where_it_is_used_again(tmp_path: Path) -> None:
    first = ft.TrainState.create(P, SGD)
    after, _ = ft.jit(step(squares), backend="aot_eager")(first, X)
    told = (
        "this state was donated to a compiled call, which wrote the next state into its memory; hint: go on with the "
        "state that call returned, or compile with ft.jit(step, donate=False)"
    )
    assert said(lambda: step(squares)(first, X)) == (RuntimeError, f"step: {told}")
    for tree in (first, {"state": [first]}):
        assert said(lambda t=tree: ft.checkpoint.save(tmp_path / "a.pt", t)) == (
            RuntimeError,
            f"checkpoint.save: {told}",
        )
    assert not list(tmp_path.iterdir())
    ft.checkpoint.save(tmp_path / "a.pt", after)


def test_a_compiled_step_that_raises_while_it_is_traced_says_how_to_hear_its_own_error() -> None:
    _, text = said(lambda: ft.jit(step(lambda p, x: x @ p["w"]), backend="aot_eager")(ft.TrainState.create(P, SGD), X))
    assert text.splitlines()[-1] == (
        "jit: the step raised while it was traced; hint: without ft.jit it raises its own error"
    )
