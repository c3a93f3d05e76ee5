"""A checkpoint that lacks a part, and a load that fails: told by name, and without a trace."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from functrain import checkpoint, optim
from functrain.checkpoint import CheckpointError
from functrain.checkpoint.contents import FORMAT
from functrain.checkpoint.durable import Sealing, replacing
from functrain.trainer import Trainer
from tests.trainer.resume.subjects import Run, saving, served

HINT = "hint: this is not the checkpoint of a Trainer's run"


def saved_at(tmp_path: Path) -> Path:
    """A checkpoint in the middle of the second epoch."""
    saving(Run(), tmp_path)
    return tmp_path / "09-2.pt"


def everything(trainer: Trainer, directory: Path) -> object:
    """All that a load could change, as text and bytes."""
    optimizer, scheduler = trainer.optimizer, getattr(trainer.driver, "scheduler", None)
    return repr(
        [
            [x.tolist() for x in trainer.state.params.values()], str(trainer.state.opt_state), trainer.state.guard,
            trainer.state.step, trainer.history, trainer.feed.place, trainer.progress, trainer.updates, trainer.epoch,
            {k: x.tolist() for k, x in trainer.model.module.state_dict().items()},
            optimizer.state_dict() if isinstance(optimizer, torch.optim.Optimizer) else None,
            scheduler.state_dict() if scheduler else None,
            torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(legacy=False),
            {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(directory.rglob("*")) if p.is_file()},
        ]
    )  # fmt: skip


def with_torch(tmp_path: Path, kind: str, step_size: int = 2) -> Trainer:
    """A run over a torch optimizer and its scheduler."""
    make: dict[str, Callable[[Any], Any]] = {
        "adamw": lambda module: optim.AdamW(module.parameters(), 1e-2),
        "torch": lambda module: torch.optim.AdamW(module.parameters(), 1e-2),
    }
    base = Run().build(3)
    optimizer = make[kind](base.model.module)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size)
    return Trainer(
        base.model.module, optimizer, base.feed.loader, base.evaluation.loader, scheduler,
        objective=lambda m, batch: ((m(batch[0]) - batch[1]) ** 2).mean(), max_epochs=2, nonfinite="skip",
        save_dir=tmp_path,
    )  # fmt: skip


def dropped(path: Path, to: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Path:
    """A sealed file of what remains."""
    contents = checkpoint.read(path)
    leaves, meta = dict(contents.leaves), contents.meta
    change(leaves, meta)
    with replacing(to) as file:
        sealing = Sealing(file)
        torch.save({"format": FORMAT, "leaves": leaves, "meta": json.dumps(meta)}, sealing)
        sealing.seal()
    checkpoint.verify(to)
    return to


PLACE = "epoch consumed exhausted crossed begun now loader last batch_size length workers".split()
META = "optimizer place best validated history".split()


def test_these_are_all_parts(tmp_path: Path) -> None:
    meta = checkpoint.read(saved_at(tmp_path)).meta
    assert list(meta) == META
    assert list(meta["place"]) == PLACE


@pytest.mark.parametrize("name", [*META, *(f"place.{name}" for name in PLACE)])
def test_res_6_a_part_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    def drop(leaves: dict[str, Any], meta: dict[str, Any]) -> None:
        *above, last = name.split(".")
        del (meta[above[0]] if above else meta)[last]

    path = dropped(saved_at(tmp_path), tmp_path / "less.pt", drop)
    trainer = Run().build(77)
    message = f"checkpoint.load: {path}: {name.split('.')[-1]!r} is missing; {HINT}"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        trainer.load_checkpoint(path)


@pytest.mark.parametrize("name", ["begun", "now.torch", "now.python", "begun.torch", "begun.python"])
def test_res_6_streams_that_are_missing_are_named(tmp_path: Path, name: str) -> None:
    def drop(leaves: dict[str, Any], meta: dict[str, Any]) -> None:
        which, _, stream = name.partition(".")
        if stream:
            del meta["place"][which][stream]
        else:
            meta["place"][which] = None

    path = dropped(saved_at(tmp_path), tmp_path / "less.pt", drop)
    message = f"checkpoint.load: {path}: {name!r} is missing; {HINT}"
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        Run().build(77).load_checkpoint(path)


def test_res_6_each_leaf_that_is_missing_is_named(tmp_path: Path) -> None:
    path, trainer = saved_at(tmp_path), Run().build(77)
    leaves = list(checkpoint.read(path).leaves)
    assert len(leaves) > 30
    for key in leaves:
        less = dropped(path, tmp_path / "less.pt", lambda leaves, meta, key=key: leaves.pop(key))
        with pytest.raises(CheckpointError) as caught:
            trainer.load_checkpoint(less)
        found = re.fullmatch(
            f"checkpoint.load: {re.escape(str(less))}: leaf '(.+)', (.+), is not in the file; "
            "hint: this is the checkpoint of another model or optimizer",
            str(caught.value),
        )
        assert found, str(caught.value)
        assert found[1].split(".")[-1].strip("[]'") in key


@pytest.mark.parametrize("part", ["torch", "groups", "scheduler"])
def test_res_6_a_part_of_a_torch_optimizer_that_is_missing_is_an_error(tmp_path: Path, part: str) -> None:
    trainer = with_torch(tmp_path / "run", "adamw")
    trainer.train()

    def drop(leaves: dict[str, Any], meta: dict[str, Any]) -> None:
        del (meta if part == "torch" else meta["torch"])[part]

    less = dropped(tmp_path / "run" / "last.pt", tmp_path / "less.pt", drop)
    says = {
        "torch": "it has no groups of a torch optimizer; hint: this is of another run",
        "groups": "the torch optimizer's 'groups' is missing; hint: this is of another run",
        "scheduler": "the torch optimizer's 'scheduler' is missing; hint: this is of another run",
    }
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'checkpoint.load: {less}: {says[part]}')}$"):
        trainer.load_checkpoint(less)


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("kind", ["functions", "adamw", "torch"])
def test_res_5_a_load_that_fails_changes_nothing(tmp_path: Path, kind: str) -> None:
    def make(directory: Path, step_size: int = 2) -> Trainer:
        return Run().build(3, save_dir=directory) if kind == "functions" else with_torch(directory, kind, step_size)

    other = make(tmp_path / "other")
    other.train()
    good = tmp_path / "other" / "last.pt"
    bad = {
        "absent": tmp_path / "absent.pt",
        "damaged": tmp_path / "damaged.pt",
        "less": dropped(good, tmp_path / "less.pt", lambda leaves, meta: leaves.pop("step")),
        "nowhere": dropped(good, tmp_path / "nowhere.pt", lambda leaves, meta: meta.pop("place")),
        "another": dropped(good, tmp_path / "another.pt", lambda leaves, meta: meta.update(optimizer="sgd")),
        "reshaped": dropped(
            good, tmp_path / "reshaped.pt", lambda leaves, meta: leaves.update(step=torch.zeros(2, dtype=torch.int64))
        ),
    }
    if kind != "functions":
        bad["groups"] = dropped(good, tmp_path / "groups.pt", lambda leaves, meta: meta["torch"].pop("scheduler"))
    bad["damaged"].write_bytes(good.read_bytes())
    flipped(bad["damaged"])

    trainer = make(tmp_path / "run")
    trainer.cadence = trainer.cadence._replace(max_steps=8)
    trainer.train()
    before = everything(trainer, tmp_path / "run")
    for path in bad.values():
        with pytest.raises(CheckpointError):
            trainer.load_checkpoint(path)
        assert everything(trainer, tmp_path / "run") == before
    trainer.cadence = trainer.cadence._replace(max_steps=None)
    trainer.train()
    assert str(trainer.state.params) == str(other.state.params)


def test_res_5_a_replay_that_fails_leaves_the_streams_as_they_were(tmp_path: Path) -> None:
    path = saved_at(tmp_path)  # three batches into the epoch
    trainer = Run("generator").build(77, resume=path)
    data = trainer.feed.loader
    trainer.feed.loader = Short(data)
    before = everything(trainer, tmp_path / "none")
    message = (
        "resume: the train loader ended after 2 batches, and the run had consumed 3 of this epoch; "
        "hint: resume with the same data and batch size"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trainer.train()
    assert everything(trainer, tmp_path / "none") == before
    assert served(trainer) == []
    trainer.feed.loader = Run().build(77).feed.loader
    trainer.train()
    assert trainer.updates == 12


class Short:
    """The first two batches of a loader."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        for batch, _ in zip(self.loader, range(2), strict=False):
            yield batch
