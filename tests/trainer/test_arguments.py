"""What the Trainer says to arguments that are not what they should be, and what the run asks of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from functrain import checkpoint, tree
from functrain.base import identity
from functrain.bridge.factories import configure_optimizer
from functrain.checkpoint import CheckpointError
from functrain.optimizers.adaptive import adam
from functrain.optimizers.momentum import sgd
from functrain.run.early import EarlyStopping
from functrain.trainer import Trainer
from tests.networks import Weight, ones, product

UNKNOWN = (
    "is a function of the number of updates, which nobody knows, since the train loader has no length; hint: max_steps="
)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"max_epochs": None},
            ValueError,
            "Trainer: max_epochs and max_steps are both None; hint: one of them must end the run",
        ),
        ({"max_epochs": 0}, ValueError, "Trainer: max_epochs must be an integer >= 1, got 0"),
        ({"grad_accum_steps": 0}, ValueError, "Trainer: grad_accum_steps must be an integer >= 1, got 0"),
        ({"log_interval": 2.5}, ValueError, "Trainer: log_interval must be an integer >= 1, got 2.5"),
        ({"keep": 0}, ValueError, "Trainer: keep must be an integer >= 1, got 0"),
        ({"max_skips": 0}, ValueError, "Trainer: max_skips must be an integer >= 1, got 0"),
        ({"max_time": -1}, ValueError, "Trainer: max_time must be > 0 and finite, got -1"),
        ({"max_grad_norm": 0}, ValueError, "train_step: max_grad_norm must be > 0 and finite, got 0"),
        (
            {"loss_fn": F.mse_loss},
            ValueError,
            "Trainer: loss_fn and objective are both given; hint: one of them is the loss",
        ),
        (
            {"use_amp": True, "precision": "fp16"},
            ValueError,
            "Trainer: use_amp and precision='fp16' are both given; hint: precision alone says all",
        ),
        (
            {"resume": "auto"},
            ValueError,
            "Trainer: resume='auto' looks for checkpoints in save_dir, which is None",
        ),
        (
            {"optimizer": torch.optim.SGD([torch.ones(1)], lr=1.0)},
            ValueError,
            "Trainer: parameter '0' of the optimizer's group 0 is none of the model's; "
            "hint: build the optimizer from this model's parameters()",
        ),
        (
            {"optimizer": 3},
            TypeError,
            "Trainer: optimizer must be a GradientTransformation or a torch optimizer, got int; "
            "hint: ft.adamw(0.001), or ft.configure_optimizer(module)",
        ),
        (
            {"scheduler": 3},
            TypeError,
            "Trainer: int sets the rate of a torch optimizer, and sgd is a transformation; hint: give it a schedule, "
            "such as ft.adamw(ft.schedules.cosine_decay_schedule(...)), or train with ft.configure_optimizer(...)",
        ),
        (
            {"optimizer": lambda updates: sgd(1.0), "train_loader": iter(ones(1))},
            ValueError,
            f"Trainer: optimizer {UNKNOWN}",
        ),
        (
            {"optimizer": lambda updates: sgd(1.0), "train_loader": []},
            ValueError,
            "Trainer: the train loader yields no batch",
        ),
        (
            {"nonfinite": "ignore"},
            ValueError,
            "Trainer: nonfinite must be 'raise', 'skip' or 'rollback', got 'ignore'",
        ),
        (
            {"nonfinite": "rollback"},
            ValueError,
            "Trainer: nonfinite='rollback' goes back to the last checkpoint; hint: save_dir=",
        ),
        (
            {"short_window": "keep"},
            ValueError,
            "Trainer: short_window must be 'weighted', 'drop' or 'carry', got 'keep'",
        ),
        (
            {"short_window": "drop", "grad_accum_steps": 2},
            ValueError,
            "Trainer: an epoch has 1 batches, fewer than grad_accum_steps=2, and short_window='drop' leaves none; "
            "hint: 'carry', or fewer accumulation steps",
        ),
        ({"ema_decay": 1.0}, ValueError, "params_ema: decay must be in [0, 1), got 1.0"),
        (
            {"metrics": {"a": product}},
            ValueError,
            "Trainer: metrics are measured in validations; hint: val_loader=",
        ),
        ({"early_stopping": 0}, ValueError, "EarlyStopping: patience must be an integer >= 1, got 0"),
        (
            {"early_stopping": EarlyStopping(1, mode="up")},
            ValueError,
            "EarlyStopping: mode must be 'min' or 'max', got 'up'",
        ),
        (
            {"early_stopping": 2},
            ValueError,
            "Trainer: early_stopping looks at 'val_loss', and validates nothing; hint: val_loader=",
        ),
        (
            {"early_stopping": "soon"},
            TypeError,
            "Trainer: early_stopping is a str; hint: a number of validations, or ft.EarlyStopping(...)",
        ),
    ],
)
def test_each_wrong_argument_is_told_in_words(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    given = {"optimizer": sgd(1.0), "objective": product, "train_loader": ones(1)} | arguments
    with pytest.raises(error) as caught:
        Trainer(Weight(), **given)
    assert str(caught.value) == message


def test_a_scheduler_of_unknown_length_is_told_in_words() -> None:
    module = Weight()
    with pytest.raises(ValueError, match="nobody knows") as caught:
        Trainer(
            module, configure_optimizer(module), iter(ones(1)), objective=product,
            scheduler=lambda optimizer, updates: None,
        )  # fmt: skip
    assert str(caught.value) == f"Trainer: scheduler {UNKNOWN}"


def test_a_checkpoint_of_another_model_or_optimizer_changes_nothing(tmp_path: Path) -> None:
    def scalar(**kwargs: object) -> Trainer:
        return Trainer(Weight(torch.float64), sgd(1.0), ones(1, 1), objective=product, max_epochs=1, **kwargs)

    scalar(save_dir=tmp_path).train()
    path = tmp_path / "last.pt"

    def refuses(trainer: Trainer, message: str, path: Path = path) -> None:
        before, place, rng = trainer.state, trainer.feed.place, torch.get_rng_state()
        values = [x.clone() for x in tree.leaves(before)]
        with pytest.raises(CheckpointError) as caught:
            trainer.load_checkpoint(path)
        assert str(caught.value) == message
        assert trainer.state is before
        assert trainer.feed.place is place
        assert trainer.history == []
        assert torch.equal(torch.get_rng_state(), rng)
        assert all(torch.equal(x, y) for x, y in zip(values, tree.leaves(trainer.state), strict=True))

    hint = "hint: this is the checkpoint of another model or optimizer"
    other = Trainer(nn.Linear(1, 1), sgd(1.0), ones(1), objective=product)
    refuses(
        other,
        f"checkpoint.load: {path}: leaf 'params.weight', float32 of shape (1, 1), is not in the file; {hint}",
    )
    other = Trainer(Weight(torch.float64), adam(1.0), ones(1), objective=product)
    refuses(other, f"checkpoint.load: {path}: its optimizer is sgd, and this run's is adam")
    other = Trainer(Weight(torch.float64), identity(), ones(1), objective=product)
    refuses(other, f"checkpoint.load: {path}: its optimizer is sgd, and this run's is identity")
    refuses(
        scalar(ema_decay=0.9),
        f"checkpoint.load: {path}: its optimizer is sgd, and this run's is chain(sgd, params_ema)",
    )

    same = scalar()
    missing = tmp_path / "missing.pt"
    refuses(same, f"checkpoint.load: {missing}: No such file or directory", missing)
    plain = tmp_path / "plain.pt"
    checkpoint.save(plain, same.state)
    refuses(
        same,
        f"checkpoint.load: {plain}: 'optimizer' is missing; hint: this is not the checkpoint of a Trainer's run",
        plain,
    )
