"""Memory is flat however long a run is, and however many runs a process makes.

`python -m tests.trainer.test_memory DIRECTORY` makes the runs, and prints after each what it holds.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from functrain.optimizers.adaptive import adamw
from functrain.trainer import Trainer

RUNS = (2000, 10_000, 2000, 2000, 2000, 2000)  # updates


def make(directory: Path, steps: int) -> Trainer:
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.Linear(16, 1))
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x.sum(1, keepdim=True))
    return Trainer(
        net, adamw(1e-3), DataLoader(data, 4, shuffle=True), DataLoader(data, 50), loss_fn=F.mse_loss,
        max_epochs=None, max_steps=steps, max_grad_norm=1.0, ema_decay=0.99, log_interval=100, eval_interval=500,
        save_interval=100, save_dir=directory, save_async=True, resume="auto",
    )  # fmt: skip


def held() -> tuple[int, int, int]:
    """The most memory that the process had so far; its tensors; and what else it has, in objects."""
    gc.collect()
    objects = gc.get_objects()
    tensors = sum(issubclass(type(x), Tensor) for x in objects)  # isinstance would ask some that are gone
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, tensors, len(objects)


@pytest.mark.long
def test_twenty_thousand_updates_in_six_runs_take_no_more_memory_than_the_first_two_thousand(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.trainer.test_memory", str(tmp_path)]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    found = [json.loads(line) for line in told.splitlines()]
    print(found)
    memory, tensors, objects = zip(*found, strict=True)
    assert len(memory) == len(RUNS)
    assert memory[-1] <= 1.02 * memory[0]
    assert set(tensors) == {0}  # the trainer is gone, and all that it had
    assert objects[-1] - objects[1] < 5  # nothing stays of a run


if __name__ == "__main__":
    done = 0
    for updates in RUNS:
        done += updates
        trainer = make(Path(sys.argv[1]), done)
        trainer.train()
        assert trainer.updates == done
        del trainer
        print(json.dumps(held()), flush=True)
