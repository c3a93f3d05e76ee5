"""A run over an optimizer and a scheduler of torch's kind: what a checkpoint brings back, and what it refuses."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from functrain import checkpoint, optim, tree
from functrain.base import identity
from functrain.bridge.torch_optimizer import TorchOptimizer
from functrain.checkpoint import CheckpointError
from functrain.combinators.chain import chain
from functrain.optimizers.adaptive import adam, adamw
from functrain.optimizers.beliefs import adabelief
from functrain.trainer import Trainer
from functrain.transforms.clip import clip_by_global_norm
from tests.bridge.faces import assert_bitwise
from tests.bridge.test_schedulers import SCHEDULERS, STEPS
from tests.torch_loops import batches, by_hand, decayed, everything, network, spoiled, trainer_of, values

CUT = 9
CLOCKS = {"seconds", "updates_per_second", "samples_per_second", "data_wait"}


def edit(update: int, optimizer: Optimizer) -> None:
    """What somebody does by hand in the middle of a run."""
    if update == 5:
        optimizer.param_groups[0]["lr"] *= 0.5
        optimizer.param_groups[0]["weight_decay"] = 0.7


def run(kind: Any, name: str, lr: Any = 0.1, **settings: Any) -> tuple[Trainer, Any]:
    """A run with dropout and two updates that are skipped."""
    module = network(dropout=0.3)
    optimizer = kind(decayed(module), lr=lr)
    scheduler = SCHEDULERS[name](optimizer)
    settings = {
        "val_loader": batches(2, seed=3), "eval_interval": 2, "max_epochs": None, "nonfinite": "skip",
        "callbacks": [by_hand(edit)],
    } | settings  # fmt: skip
    return trainer_of(module, optimizer, scheduler, spoiled(batches(STEPS // 2), 2, 7), **settings), scheduler


def told(trainer: Trainer) -> list[dict[str, Any]]:
    return [{name: repr(x) for name, x in r.items() if name not in CLOCKS} for r in trainer.history]


def assert_same(a: Trainer, b: Trainer, schedulers: tuple[Any, Any]) -> None:
    assert tree.keys(a.state) == tree.keys(b.state)
    assert_bitwise(tree.leaves(a.state), tree.leaves(b.state))
    assert_bitwise(everything(a, schedulers[0]), everything(b, schedulers[1]))
    assert told(a) == told(b)


# --- what comes back


EACH = [
    *((name, optim.AdamW, 0.1) for name in SCHEDULERS),
    *((name, torch.optim.AdamW, 0.1) for name in ("ExponentialLR", "OneCycleLR", "SequentialLR", "ReduceLROnPlateau")),
    *((name, optim.AdamW, torch.tensor(0.1)) for name in ("CosineAnnealingWarmRestarts", "CyclicLR", "ExponentialLR")),
]


@pytest.mark.parametrize(("name", "kind", "lr"), EACH)
def test_sch_1_a_run_that_is_resumed_is_bit_for_bit_the_run_that_went_on(
    name: str, kind: Any, lr: Any, tmp_path: Path
) -> None:
    whole, scheduler = run(kind, name, copy.deepcopy(lr), max_steps=30)
    whole.train()
    first, _ = run(kind, name, copy.deepcopy(lr), max_steps=CUT, save_dir=tmp_path)
    first.train()
    second, again = run(kind, name, copy.deepcopy(lr), max_steps=30, save_dir=tmp_path, resume="auto")
    assert second.updates == CUT
    assert values(second.optimizer) == values(first.optimizer)
    assert values(second.optimizer)[0]["weight_decay"] == 0.7
    assert_bitwise(second.optimizer.state_dict(), first.optimizer.state_dict())
    second.train()
    assert_same(second, whole, (again, scheduler))


def test_types_and_infinities_of_a_schedulers_state_survive(tmp_path: Path) -> None:
    trainer, scheduler = run(optim.AdamW, "MultiStepLR", max_steps=3, save_dir=tmp_path)
    trainer.train()
    _, again = run(optim.AdamW, "MultiStepLR", resume=tmp_path / "last.pt", max_steps=4)
    assert type(again.milestones) is Counter
    assert again.milestones == scheduler.milestones == Counter({5: 1, 6: 1, 20: 1})

    never = {"max_steps": 3, "val_loader": None, "save_dir": tmp_path / "plateau"}
    run(optim.AdamW, "ReduceLROnPlateau", **never)[0].train()
    _, again = run(optim.AdamW, "ReduceLROnPlateau", resume=tmp_path / "plateau" / "last.pt", max_steps=4)
    assert again.best == float("inf")
    assert again.state_dict()["mode_worse"] == float("inf")


@pytest.mark.parametrize("kind", [optim.AdamW, torch.optim.AdamW])
def test_loading_an_earlier_checkpoint_takes_back_the_state_too(kind: Any, tmp_path: Path) -> None:
    module = network()
    trainer = trainer_of(module, kind(module.parameters(), lr=0.1), save_dir=tmp_path)
    before = everything(trainer)
    path = trainer.save_checkpoint()
    trainer.train()
    trainer.load_checkpoint(path)
    assert_bitwise(everything(trainer), before)


def test_an_optimizer_of_torchs_goes_on_from_a_run_of_ours(tmp_path: Path) -> None:
    whole, scheduler = run(optim.AdamW, "OneCycleLR", max_steps=30)
    whole.train()
    run(optim.AdamW, "OneCycleLR", max_steps=CUT, save_dir=tmp_path)[0].train()
    second, again = run(torch.optim.AdamW, "OneCycleLR", max_steps=30, save_dir=tmp_path, resume="auto")
    second.train()
    assert_bitwise(second.model.module.state_dict(), whole.model.module.state_dict())
    assert again.state_dict() == scheduler.state_dict()


SCRIPT = """
import sys
from tests.test_trainer_torch_resume import run, torch, optim
kind = {"ours": optim, "torchs": torch.optim}[sys.argv[1]].AdamW
run(kind, sys.argv[2], max_steps=int(sys.argv[3]), save_dir=sys.argv[4], resume="auto")[0].train()
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ours", "torchs"])
@pytest.mark.parametrize("name", ["OneCycleLR", "MultiStepLR", "ReduceLROnPlateau"])
def test_a_run_resumed_in_a_new_process_is_the_run_that_went_on(name: str, kind: str, tmp_path: Path) -> None:
    for folder, ends in (("whole", (30,)), ("parts", (CUT, 17, 30))):
        for end in ends:
            command = [sys.executable, "-W", "error", "-c", SCRIPT, kind, name, str(end), str(tmp_path / folder)]
            subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    a, b = (checkpoint.read(tmp_path / folder / "last.pt") for folder in ("whole", "parts"))
    assert int(a.leaves["step"]) == 30
    assert_bitwise(a.leaves, b.leaves)
    assert repr(a.meta["torch"]) == repr(b.meta["torch"])


# --- what is refused


def kinds(optimizer: Any) -> Any:
    return lambda module: optimizer(decayed(module))


ADAMW = kinds(lambda groups: optim.AdamW(groups, lr=0.1))
SAVED = "its optimizer is torch.AdamW under StepLR, and this run's is "
OTHERS: dict[str, tuple[Any, Any, str]] = {
    "another class": (kinds(optim.Adam), StepLR, SAVED + "torch.Adam under StepLR"),
    "a transformation": (lambda module: adamw(0.1), None, SAVED + "adamw"),
    "no scheduler": (ADAMW, None, SAVED + "torch.AdamW"),
    "another scheduler": (ADAMW, CosineAnnealingLR, SAVED + "torch.AdamW under CosineAnnealingLR"),
    "a plateau": (ADAMW, lambda o, _: ReduceLROnPlateau(o), SAVED + "torch.AdamW under ReduceLROnPlateau"),
    "ascent": (
        kinds(lambda groups: optim.AdamW(groups, lr=0.1, maximize=True)), StepLR,
        "its optimizer has maximize=False, maximize=False, which makes another rule than this run's",
    ),
    "torch's, ascending": (
        kinds(lambda groups: torch.optim.AdamW(groups, lr=0.1, maximize=True)), StepLR,
        "its optimizer has maximize=False, maximize=False, which makes another rule than this run's",
    ),
}  # fmt: skip


def refuses(trainer: Trainer, scheduler: Any, path: Path, message: str) -> None:
    """Loading is a CheckpointError, and leaves everything as it was."""
    before, state, place = everything(trainer, scheduler), trainer.state, trainer.feed.place
    leaves = [x.clone() for x in tree.leaves(state)]
    with pytest.raises(CheckpointError) as caught:
        trainer.load_checkpoint(path)
    assert str(caught.value) == f"checkpoint.load: {path}: {message}"
    assert trainer.state is state
    assert trainer.feed.place is place
    assert trainer.history == []
    assert_bitwise(tree.leaves(state), leaves)
    assert_bitwise(everything(trainer, scheduler), before)


def built(make: Any, schedule: Any, **settings: Any) -> tuple[Trainer, Any]:
    module = network()
    optimizer = make(module)
    scheduler = None if schedule is None else schedule(optimizer, 4)
    return trainer_of(module, optimizer, scheduler, **settings), scheduler


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_optimizer_or_scheduler_changes_nothing(other: str, tmp_path: Path) -> None:
    built(ADAMW, StepLR, save_dir=tmp_path)[0].train()
    make, schedule, message = OTHERS[other]
    refuses(*built(make, schedule), tmp_path / "last.pt", message)


def test_a_scheduler_or_a_transformation_does_not_go_on_from_a_run_without(tmp_path: Path) -> None:
    built(ADAMW, None, save_dir=tmp_path / "a")[0].train()
    message = "its optimizer is torch.AdamW, and this run's is torch.AdamW under StepLR"
    refuses(*built(ADAMW, StepLR), tmp_path / "a" / "last.pt", message)
    built(lambda module: identity(), None, save_dir=tmp_path / "b")[0].train()
    message = "its optimizer is identity, and this run's is torch.AdamW under StepLR"
    refuses(*built(ADAMW, StepLR), tmp_path / "b" / "last.pt", message)


@pytest.mark.parametrize(
    ("one", "other", "same", "names"),
    [
        (adam(0.1), adabelief(0.1), adam(0.3), ("adam", "adabelief")),
        (
            chain(clip_by_global_norm(1.0), adam(0.1)),
            chain(adam(0.1)),
            chain(clip_by_global_norm(2.0), adam(0.3)),
            ("chain(chain(clip_by_global_norm, adam), scale)", "chain(chain(adam), scale)"),
        ),
    ],
    ids=["adabelief", "chain"],
)
def test_a_rule_as_an_optimizer_goes_on_from_its_own_kind_alone(
    one: Any, other: Any, same: Any, names: tuple[str, str], tmp_path: Path
) -> None:
    """Though the state of one has the other's names and shapes."""
    made = [lambda module, tx=tx: TorchOptimizer(module.parameters(), tx) for tx in (one, other, same)]
    built(made[0], None, save_dir=tmp_path)[0].train()
    a, b = (f"torch.TorchOptimizer of {name}" for name in names)
    refuses(*built(made[1], None), tmp_path / "last.pt", f"its optimizer is {a}, and this run's is {b}")
    built(made[2], None)[0].load_checkpoint(tmp_path / "last.pt")


class Factor:
    """A factor that is an object: its attributes are in the scheduler's state."""

    def __init__(self, base: float) -> None:
        self.base = base

    def __call__(self, t: int) -> float:
        return self.base**t


class Careful(StepLR):
    """A scheduler of one's own, which takes up no state with another size, and finds out when it has."""

    size = 4

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.step_size != self.size:
            raise ValueError(self.step_size)


class Larger(Careful):
    size = 5


Larger.__name__ = "Careful"  # the same name in another version of a program


def sequence(n: int) -> Any:
    def make(optimizer: Optimizer, _: int) -> SequentialLR:
        parts = [LinearLR(optimizer), *(ExponentialLR(optimizer, 0.9) for _ in range(n))]
        return SequentialLR(optimizer, parts, [*range(3, 3 + n)])

    return make


def test_a_factor_that_is_an_object_is_taken_up(tmp_path: Path) -> None:
    built(ADAMW, lambda o, _: LambdaLR(o, [Factor(0.5), Factor(0.7)]), save_dir=tmp_path)[0].train()
    _, again = built(ADAMW, lambda o, _: LambdaLR(o, [Factor(1.0), Factor(1.0)]), resume=tmp_path / "last.pt")
    assert [f.base for f in again.lr_lambdas] == [0.5, 0.7]


def test_what_a_scheduler_cannot_take_up_changes_nothing(tmp_path: Path) -> None:
    built(ADAMW, sequence(2), save_dir=tmp_path / "a")[0].train()
    a, b = (f"torch.AdamW under SequentialLR(LinearLR, {x})" for x in ("ExponentialLR, ExponentialLR", "ExponentialLR"))
    refuses(*built(ADAMW, sequence(1)), tmp_path / "a" / "last.pt", f"its optimizer is {a}, and this run's is {b}")

    built(ADAMW, Careful, save_dir=tmp_path / "b")[0].train()
    other = built(ADAMW, lambda o, _: Larger(o, 5))
    refuses(*other, tmp_path / "b" / "last.pt", "its Careful is not like this run's")
