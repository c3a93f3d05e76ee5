"""Going back to the last checkpoint: to its bits, with other data and other random numbers from there."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import functrain as ft
from functrain import tree
from functrain.run.nonfinite import NonFiniteError
from tests.networks import NormNet, points
from tests.trainer.test_amp import gradients, guard_of, same, weighted

NAN = math.nan
PARTS = ("params", "frozen", "buffers", "opt_state")


class Snapshots:
    """A logger that keeps the state at each return to a checkpoint."""

    def __init__(self) -> None:
        self.states: list[ft.TrainState] = []
        self.records: list[dict[str, Any]] = []
        self.trainer: ft.Trainer | None = None

    def log(self, record: dict[str, Any]) -> None:
        if "rolled_back" in record:
            assert self.trainer is not None
            self.records.append(record)
            self.states.append(tree.map(torch.clone, self.trainer.state))


def watched(*args: Any, **kwargs: Any) -> tuple[ft.Trainer, Snapshots]:
    seen = Snapshots()
    trainer = ft.Trainer(*args, loggers=[seen], nonfinite="rollback", **kwargs)
    seen.trainer = trainer
    return trainer, seen


def batches(n: int, *bad: int) -> list[tuple[Tensor, Tensor]]:
    """So many, numbered from 1; the bad ones are not finite."""
    found = [points(seed=i) for i in range(1, n + 1)]
    return [(x * NAN if i in bad else x, y) for i, (x, y) in enumerate(found, 1)]


# --- where it goes


@pytest.mark.parametrize("background", [False, True])
def test_nan_2_a_run_goes_back_to_the_last_checkpoints_bits_and_keeps_its_counts(
    background: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    trainer, seen = watched(
        NormNet(), ft.adamw(lambda t: 0.1 / (1 + t)), batches(12, 7), loss_fn=F.mse_loss, max_epochs=1, ema_decay=0.9,
        save_dir=tmp_path, save_interval=3, log_interval=8, save_async=background, keep=9,
    )  # fmt: skip
    trainer.train()
    path = tmp_path / "step-00000006.pt"
    ((state,), (record,)) = seen.states, seen.records
    saved = ft.checkpoint.load(path, like=state)
    for part in PARTS:
        assert same(getattr(state, part), getattr(saved, part)), part
    assert (record["step"], record["epoch"], record["rolled_back"]) == (8, 1, str(path))
    assert [x.item() for x in state.guard] == [2.0**16, 0, 2, 0]  # updates 7 and 8
    assert state.step.item() == 8
    assert trainer.updates - trainer.state.guard.skipped.item() == 10
    what = f"Trainer: update 7 in epoch 1 was not finite: loss nan, gradient norm nan; gone back to {path}\n"
    assert what in capsys.readouterr().err
    assert record in trainer.history


KINDS: dict[str, Any] = {
    "adamw": lambda params: ft.adamw(lambda t: 0.1 / (1 + t)),
    "schedule_free": lambda params: ft.schedule_free_adamw(0.1),
    "ours": lambda params: ft.optim.AdamW(params, lr=0.1),
    "torchs": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("precision", [None, "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_2_what_was_undone_was_never_trained_on(kind: str, precision: Any, tmp_path: Path) -> None:
    """A run over the other batches ends in the same bits: schedules and torch's schedulers go back, too."""

    def run(data: list[Any], **kwargs: Any) -> tuple[ft.Trainer, Any, Any]:
        torch.manual_seed(0)
        module = NormNet()
        optimizer = KINDS[kind](module.parameters())
        given = isinstance(optimizer, torch.optim.Optimizer)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20) if given else None
        trainer = ft.Trainer(
            module, optimizer, data, scheduler=scheduler, loss_fn=F.mse_loss, max_epochs=1, precision=precision,
            ema_decay=0.5, max_skips=1, **kwargs,
        )  # fmt: skip
        trainer.train()
        return trainer, optimizer, scheduler

    data = batches(12, 5, 6)  # with fp16 one alone is borne
    back, optimizer, scheduler = run(data, nonfinite="rollback", save_dir=tmp_path, save_interval=3)
    plain, optimizer2, scheduler2 = run(data[:3] + data[6:])
    for part in PARTS:
        assert same(getattr(back.state, part), getattr(plain.state, part)), part
    assert guard_of(back)[2:] == [3, 0]
    assert guard_of(plain)[2:] == [0, 0]
    if scheduler is not None:
        assert scheduler.state_dict() == scheduler2.state_dict()
        assert same(optimizer.state_dict()["state"], optimizer2.state_dict()["state"])
        assert optimizer.state_dict()["param_groups"] == optimizer2.state_dict()["param_groups"]


def test_nan_2_the_loss_scale_stays_as_it_is_and_grows_from_nothing(tmp_path: Path) -> None:
    trainer = weighted(
        gradients(1, 1, *[NAN] * 3, 1), precision="fp16", nonfinite="rollback", max_skips=2, save_dir=tmp_path,
        save_interval=2, log_interval=5,
    )  # fmt: skip
    trainer.train()
    assert guard_of(trainer) == [2.0**13, 1, 3, 0]
    assert trainer.state.params["w"][0].item() == -3


class Served(list[Any]):
    """A loader that remembers what it gave."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__(batches)
        self.ids: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        for i, batch in enumerate(super().__iter__(), 1):
            self.ids.append(i)
            yield batch


def test_nan_2_the_data_goes_on_with_the_next_batch(tmp_path: Path) -> None:
    loader = Served(gradients(1, 2, NAN, 8, 16, 32))
    trainer = weighted(loader, nonfinite="rollback", save_dir=tmp_path, save_interval=2, log_interval=4, max_epochs=2)
    trainer.train()
    assert loader.ids == [1, 2, 3, 4, 5, 6] * 2
    # The second epoch has updates 7 to 12; the save at 10 finds what update 9 was.
    returns = [(record["step"], record["rolled_back"]) for record in trainer.history if "rolled_back" in record]
    assert returns == [(4, str(tmp_path / "step-00000002.pt")), (10, str(tmp_path / "step-00000008.pt"))]
    assert trainer.state.params["w"][0].item() == -2 * (1 + 2 + 16 + 32)
    assert trainer.updates - trainer.state.guard.skipped.item() == 8


def test_nan_2_random_numbers_go_on_too(tmp_path: Path) -> None:
    """Noise is of the attempt: the updates after a return have not the noise of those that were undone."""
    torch.manual_seed(0)
    data = batches(9, 5)
    trainer, seen = watched(
        NormNet(dropout=0.5), ft.adamw(0.1), data, loss_fn=F.mse_loss, max_epochs=1, save_dir=tmp_path,
        save_interval=3, log_interval=6,
    )  # fmt: skip
    trainer.train()
    state = seen.states[0]._replace(step=torch.tensor(6))
    other = state._replace(step=torch.tensor(3))  # with the noise of updates 4 to 6
    for batch in data[6:]:
        state, _ = trainer.step(state, batch)
        other, _ = trainer.step(other, batch)
    assert same(state, trainer.state)
    assert not same(other.params, trainer.state.params)


def test_nan_2_without_a_checkpoint_yet_it_goes_back_to_update_0(tmp_path: Path) -> None:
    trainer = weighted(gradients(1, NAN, 4, 8), nonfinite="rollback", save_dir=tmp_path, log_interval=3)
    trainer.train()
    assert trainer.history[0]["rolled_back"] == str(tmp_path / "step-00000000.pt")
    assert trainer.state.params["w"][0].item() == -8
    assert guard_of(trainer)[2:] == [3, 0]


def test_nan_2_the_checkpoint_resumed_from_is_one_to_go_back_to(tmp_path: Path) -> None:
    data = gradients(1, 2, 4, NAN, 16)
    first = weighted(data, max_steps=2, save_dir=tmp_path / "a")
    first.train()
    path = tmp_path / "a" / "last.pt"
    trainer = weighted(data, nonfinite="rollback", save_dir=tmp_path / "b", resume=path, log_interval=4)
    trainer.train()
    assert trainer.history[-2]["rolled_back"] == str(path)
    assert trainer.state.params["w"][0].item() == -(1 + 2 + 16)


# --- and when it does not


def test_nan_2_after_three_returns_to_one_checkpoint_the_fourth_is_the_error(tmp_path: Path) -> None:
    trainer = weighted(
        gradients(1, 2, *[NAN] * 6),
        nonfinite="rollback",
        save_dir=tmp_path,
        save_interval=2,
        log_interval=1,
        max_epochs=9,
    )
    with pytest.raises(NonFiniteError, match=r"^Trainer: update 6 in epoch 1 was not finite: loss nan, ") as caught:
        trainer.train()
    # At update 4 the run was saved anew; that is the same place.
    path = tmp_path / "step-00000004.pt"
    assert caught.value.__notes__ == [f"The run went back to {path} 3 times, and came to this again."]
    assert trainer.state.params["w"][0].item() == -3
    assert [record["step"] for record in trainer.history if "rolled_back" in record] == [3, 4, 5]


def test_nan_2_returns_are_counted_anew_once_the_run_got_further(tmp_path: Path) -> None:
    data = gradients(1, NAN, NAN, NAN, 2, NAN, NAN, NAN, 4)
    trainer = weighted(data, nonfinite="rollback", save_dir=tmp_path, save_interval=1, log_interval=1)
    trainer.train()
    assert sum("rolled_back" in record for record in trainer.history) == 6
    assert trainer.state.params["w"][0].item() == -7


def test_nan_2_a_checkpoint_that_was_damaged_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "step-00000002.pt"

    def damage(event: str, trainer: ft.Trainer) -> None:
        if event == "update" and trainer.updates == 3:
            path.write_bytes(path.read_bytes()[:-1])

    trainer = weighted(
        gradients(1, 2, NAN, 4), nonfinite="rollback", save_dir=tmp_path, save_interval=2, callbacks=[damage]
    )
    with pytest.raises(ft.CheckpointError, match=re.escape(str(path))):
        trainer.train()


def test_nan_2_without_a_directory_there_is_nothing_to_go_back_to() -> None:
    message = "Trainer: nonfinite='rollback' goes back to the last checkpoint; hint: save_dir="
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}$"):
        weighted([], nonfinite="rollback")


# --- and is resumed exactly

PROGRAM = textwrap.dedent("""
    import os, signal, sys
    from tests.trainer.test_rollback import rolling

    directory, last = sys.argv[1], int(sys.argv[2])

    def die(event, trainer):
        if event == "update" and trainer.updates == last:
            trainer.saver.result(wait=True)
            os.kill(os.getpid(), signal.SIGKILL)

    rolling(directory, callbacks=[die]).train()
""")


def rolling(directory: str | Path, **kwargs: Any) -> ft.Trainer:
    """A run of shuffled data and noise that goes back at update 8, and in every epoch."""
    torch.manual_seed(7)
    x, y = points(40)
    x[3] = NAN
    net: nn.Module = NormNet(dropout=0.3)
    return ft.Trainer(
        net, ft.adamw(0.05), DataLoader(TensorDataset(x, y), 4, shuffle=True), loss_fn=F.mse_loss, max_epochs=3,
        nonfinite="rollback", save_dir=directory, save_interval=5, log_interval=4, **kwargs,
    )  # fmt: skip


def plain(history: list[dict[str, Any]], directory: Path) -> str:
    """The records without speeds and places."""
    names = ("step", "epoch", "loss", "grad_norm", "skipped", "rolled_back")
    return str([{n: r[n] for n in names if n in r} for r in history]).replace(str(directory), "")


@pytest.mark.parametrize("last", [9, 13, 17, 26])
def test_nan_2_a_run_that_went_back_is_killed_and_resumed_as_if_it_were_not(last: int, tmp_path: Path) -> None:
    whole = rolling(tmp_path / "whole")
    whole.train()
    returns = [record["step"] for record in whole.history if "rolled_back" in record]
    assert len(returns) == 3
    assert returns[0] < 13

    program = [sys.executable, "-c", PROGRAM, str(tmp_path / "killed"), str(last)]
    done = subprocess.run(
        program, env={**os.environ, "PYTHONPATH": os.getcwd()}, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    torch.rand(5)
    resumed = rolling(tmp_path / "killed", resume="auto")
    assert 0 < resumed.updates <= last
    resumed.train()
    assert same(resumed.state, whole.state)
    assert plain(resumed.history, tmp_path / "killed") == plain(whole.history, tmp_path / "whole")
