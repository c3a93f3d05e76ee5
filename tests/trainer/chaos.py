"""A run that is killed: `python -m tests.trainer.chaos` starts lives of it, and kills them.

torch takes seconds to import and a life is shorter than one, so a server imports once and forks for each life. It reads
a `Life` a line, as JSON, and answers with how it ended: the number of the signal, negative, or the exit status.

    {"directory": "/tmp/run", "seed": 3, "background": true, "last": null, "seconds": 0.4}

All that can be random is: the loader shuffles, samples are augmented from three global streams, and the net has
dropout. Only a life that finds no checkpoint begins with the run's own seeds; every other begins with its own, so that
what it goes on with can come from the files alone.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from functrain import checkpoint, schedules
from functrain.optimizers.adaptive import adamw
from functrain.trainer import Trainer

SAMPLES, BATCH, WINDOW = 22, 4, 2  # an epoch is 6 batches, the last one short, and 3 updates
FIRST = 11  # the seed of a run that begins


class Life(NamedTuple):
    """One process of a run."""

    directory: str
    seed: int
    background: bool = False  # save_async
    last: int | None = None  # the update that ends the run
    seconds: float | None = None  # until it is killed


class Noisy(Dataset[tuple[Tensor, Tensor, int]]):
    """Samples that know their number, with noise from all global streams."""

    def __init__(self) -> None:
        self.x = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        noise = torch.rand(8) + random.random() + float(numpy.random.rand())
        return self.x[i] + 0.1 * noise, self.x[i].sum(0, keepdim=True), i


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Linear(64, 1)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.first(x)).relu()))


class Served:
    """The samples that went into each update, a line an update, in a file that outlives a killed process."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.ids: list[int] = []

    def loss(self, m: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, y, ids = batch
        if m.training:
            self.ids += ids.tolist()
        return F.mse_loss(m(x), y)

    def __call__(self, event: str, trainer: Trainer) -> None:
        if event == "update":
            os.write(self.file, (json.dumps([trainer.updates, self.ids]) + "\n").encode())
            self.ids = []


def seed(n: int) -> None:
    torch.manual_seed(n)
    random.seed(n)
    numpy.random.seed(n)


def train(life: Life) -> None:
    directory = Path(life.directory)
    number = life.seed if checkpoint.latest(directory) else FIRST
    seed(number)
    directory.mkdir(exist_ok=True)
    data, served = Noisy(), Served(directory / "served")
    Trainer(
        Net(), adamw(schedules.cosine_decay_schedule(1e-2, 4000)), DataLoader(data, BATCH, shuffle=True),
        DataLoader(data, 5, shuffle=True), objective=served.loss, callbacks=[served], seed=number,
        max_epochs=None, max_steps=life.last or 10**6, grad_accum_steps=WINDOW, max_grad_norm=1.0, ema_decay=0.9,
        log_interval=2, eval_interval=5, save_interval=2, save_dir=directory, save_async=life.background, resume="auto",
    ).train()  # fmt: skip


def live(life: Life) -> int:
    """A life in a process of its own, and how it ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(reading)
            os.dup2(os.open(life.directory + ".stderr", os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
            train(life)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    select.select([reading], [], [], life.seconds)  # its end closes the pipe
    if life.seconds is not None:
        os.kill(pid, signal.SIGKILL)
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(live(Life(**json.loads(line))), flush=True)
