"""What is resumed: a model, data, loaders that shuffle and augment in many ways, and a program for other processes.

All that is random in what is built comes from a salt, and resumed runs have another: what they have in common with the
run that was saved can only have come from the checkpoint.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from functrain import schedules, tree
from functrain.optimizers.adaptive import adamw
from functrain.trainer import Trainer
from tests.trainer.resume.data import LOADERS, Data


class Net(nn.Module):
    """With buffers, and random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.first(x)).relu()))


class Run(NamedTuple):
    """How a run is fed, and what else the Trainer is told."""

    loader: str = "shuffle"
    augmented: bool = True
    more: dict[str, Any] | None = None  # for the loader
    settings: dict[str, Any] | None = None

    def build(self, salt: int, **kwargs: Any) -> Trainer:
        """The run, with random numbers from the salt. `served` of the Trainer lists the ids of the batches."""
        seed(salt)
        served: list[list[int]] = []
        data = Data(self.augmented)

        def mse(m: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
            if m.training:
                served.append(batch[2].tolist())
            return F.mse_loss(m(batch[0]), batch[1])

        validation = DataLoader([Data(False)[i] for i in range(8)], 5, shuffle=True)
        settings = {
            "objective": mse, "max_epochs": 2, "log_interval": 1, "max_grad_norm": 1.0, "ema_decay": 0.9,
            "nonfinite": "skip",
        } | (self.settings or {}) | kwargs  # fmt: skip
        rate = schedules.cosine_decay_schedule(1e-2, 20)
        trainer = Trainer(Net(), adamw(rate), LOADERS[self.loader](data, salt, self.more or {}), validation, **settings)
        vars(trainer).update(served=served, data=data)
        return trainer


def seed(salt: int) -> None:
    """All global streams."""
    torch.manual_seed(salt)
    random.seed(salt)
    np.random.seed(salt)


# --- how a run ended

CLOCKS = {"seconds", "updates_per_second", "samples_per_second", "data_wait"}
End = dict[str, Any]


def end_of(trainer: Trainer) -> End:
    """All that two runs may differ in, clocks aside."""
    return {
        "state": dict(zip(tree.paths(trainer.state), tree.leaves(trainer.state), strict=True)),
        "module": trainer.model.module.state_dict(),
        "history": [{k: x for k, x in record.items() if k not in CLOCKS} for record in trainer.history],
        "best": trainer.progress.best,
        "served": served(trainer),
    }


def assert_same_end(a: End, b: End, served: int = 0) -> None:
    """Bit for bit; `b` began after that many batches of `a` were served."""
    for part in ("state", "module"):
        assert list(a[part]) == list(b[part])
        different = [path for path, x in a[part].items() if not same(x, b[part][path])]
        assert different == []
    assert repr(a["history"]) == repr(b["history"])  # repr: NaN is NaN
    assert repr(a["best"]) == repr(b["best"])
    assert a["served"][served:] == b["served"]


def same(x: object, y: object) -> bool:
    """Equal in every bit."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return x == y
    return x.dtype == y.dtype and torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))


# --- saved, and resumed


def save_everywhere(trainer: Trainer, out: Path) -> dict[str, int]:
    """Let it save after each update and at each epoch's end: the batches served before each file that this made.

    At the last batch of an epoch there are two: before the end of the epoch was seen to, and after.
    """
    files: dict[str, int] = {}

    def save(event: str, trainer: Trainer) -> None:
        if event == "update":
            trainer.save_checkpoint()
        elif event == "save" and (name := f"{trainer.updates:02}-{trainer.epoch}.pt") not in files:
            shutil.copyfile(out / "last.pt", out / name)
            files[name] = len(served(trainer))

    trainer.callbacks.append(save)
    return files


def served(trainer: Trainer) -> list[list[int]]:
    """The ids of the batches that updates had."""
    return cast("list[list[int]]", vars(trainer)["served"])


def whole(run: Run) -> End:
    """How the run ends that nobody disturbs."""
    trainer = run.build(3)
    trainer.train()
    return end_of(trainer)


def saving(run: Run, out: Path) -> tuple[End, dict[str, int]]:
    """How it ends if it is saved everywhere, and the files."""
    trainer = run.build(3, save_dir=out, save_interval=1, keep=999)
    files = save_everywhere(trainer, out)
    trainer.train()
    return end_of(trainer), files


def resumed(run: Run, path: Path) -> End:
    """How it ends from a checkpoint, with all that is random in its parts built otherwise."""
    trainer = run.build(77, resume=path)
    trainer.train()
    return end_of(trainer)


# --- the program

SUBJECTS: dict[str, Callable[..., object]] = {"saving": saving, "resumed": resumed}


def elsewhere(directory: Path, jobs: list[tuple[str, Run, Path]]) -> list[Any]:
    """What `saving` or `resumed` of a run and a path gives, in a new process."""
    (directory / "jobs.json").write_text(json.dumps([[what, run, str(path)] for what, run, path in jobs]))
    child = subprocess.run([sys.executable, "-m", __name__, str(directory)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return cast("list[Any]", torch.load(directory / "ends.pt", weights_only=False))


def main(directory: Path) -> None:
    """Do the jobs, all without a warning."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata calls it
    jobs = json.loads((directory / "jobs.json").read_text())
    torch.save([SUBJECTS[what](Run(*run), Path(path)) for what, run, path in jobs], directory / "ends.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
