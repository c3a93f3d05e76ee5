"""A run that is asked to stop, from another process: it finishes its update, saves, and says why it ended.

`python -m tests.trainer.test_signals PLACE DIRECTORY` is such a run: it stops in a place, says so, and goes on when a
pipe of that directory is opened. The signal comes in between.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from functrain import checkpoint
from functrain.optimizers.adaptive import adamw
from functrain.trainer import Trainer

LAST = 9  # updates; 3 an epoch
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOPPED_AT = {  # the update that a run ends with, if the signal comes there
    "begin": {0}, "fetch": {5}, "worker": {1, 2}, "update": {5}, "validation": {6}, "save": {6}, "saved": {6},
    "end": {LAST},
}  # fmt: skip


class Places:
    """Where a run can be when a signal comes."""

    def __init__(self, place: str, wait: Callable[[], object]) -> None:
        self.place, self.wait, self.seen = place, wait, 0

    def at(self, place: str, nth: int) -> None:
        """A run is there; wait if it is the place, at the nth time."""
        if place == self.place:
            self.seen += 1
            if self.seen == nth:
                self.wait()

    def loss(self, m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.at(*(("update", 5) if m.training else ("validation", 4)))  # the second batch of the validation at 6
        return (m(batch[0]) - batch[1]).square().mean()

    def go_on_from(self, history: object) -> None:
        self.at("begin", 1)

    def log(self, record: object) -> None:
        pass

    def __call__(self, event: str, trainer: Trainer) -> None:
        if event == "save" and trainer.updates == 6:
            self.at("saved", 1)
        if event == "end":
            self.at("end", 1)


class Data(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, places: Places, training: bool, worker: bool = False) -> None:
        self.places, self.training, self.worker = places, training, worker

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        if self.training:
            # Of the second batch, while the run waits for it or makes the first update; and of the fifth.
            self.places.at(*(("worker", 3) if self.worker else ("fetch", 9)))
        return torch.tensor([float(i)]) + torch.rand(1), torch.tensor([1.0])


def make(directory: Path, place: str, wait: Callable[[], object], **kwargs: object) -> Trainer:
    places = Places(place, wait)
    worker = place == "worker"
    workers = {"num_workers": 1, "prefetch_factor": 1, "multiprocessing_context": "fork"} if worker else {}
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))
    loader = DataLoader(Data(places, True, worker), 2, shuffle=True, **workers)
    return Trainer(
        net, adamw(1e-2), loader, DataLoader(Data(places, False), 3), objective=places.loss,
        max_epochs=None, max_steps=LAST, eval_interval=3, save_interval=3, save_dir=directory,
        loggers=[places], callbacks=[places], **kwargs,
    )  # fmt: skip


def main(place: str, directory: Path) -> None:
    def wait() -> None:
        os.write(1, b"here\n")
        with open(directory / "pipe") as pipe:  # until somebody opens the other end; a signal does not end it
            pipe.read()

    if place == "save":  # within the save after update 6, before the file is on disk
        fsync = os.fsync
        places = Places("save", wait)

        def slow(file: int) -> None:
            if os.fstat(file).st_size > 4096 and any(directory.glob(".step-00000006.pt.*")):
                places.at("save", 1)
            fsync(file)

        os.fsync = slow
    make(directory, place, wait).train()


def run(place: str, directory: Path, *numbers: signal.Signals) -> int:
    """The exit status of a run that gets these signals in a place."""
    os.mkfifo(directory / "pipe")
    command = [sys.executable, "-m", "tests.trainer.test_signals", place, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, restore_signals=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        for number in numbers:
            process.send_signal(number)
        with open(directory / "pipe", "w"):
            pass
        return process.wait(60)


def step_of(path: Path) -> int:
    return int(checkpoint.read(path).leaves["step"])


def validations(directory: Path) -> list[tuple[object, object]]:
    history = checkpoint.read(directory / "last.pt").meta["history"]
    return [(record["step"], record["val_loss"]) for record in history if "val_loss" in record]


def assert_stopped(directory: Path, whole: Path, place: str) -> None:
    """The run is saved where it was to stop, and what is resumed is what was not stopped."""
    last = directory / "last.pt"
    assert (step_of(last) if last.exists() else 0) in STOPPED_AT[place]
    assert not list(directory.glob(".*.tmp"))
    make(whole, place, lambda: None).train()
    make(directory, place, lambda: None, resume="auto").train()
    leaves, others = (checkpoint.read(path / "last.pt").leaves for path in (directory, whole))
    assert leaves.keys() == others.keys()
    assert all(torch.equal(x, others[key]) for key, x in leaves.items())
    assert validations(directory) == validations(whole)


SOME = [pytest.param(place, id=place) for place in ("update", "validation")]
REST = [pytest.param(place, id=place, marks=pytest.mark.long) for place in STOPPED_AT if place not in str(SOME)]


@pytest.mark.parametrize("place", [*SOME, *REST])
def test_sig_1_sigterm_finishes_the_update_saves_and_exits_with_143(tmp_path: Path, place: str) -> None:
    (tmp_path / "run").mkdir()
    assert run(place, tmp_path / "run", signal.SIGTERM) == 143
    assert_stopped(tmp_path / "run", tmp_path / "whole", place)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_sig_1_ctrl_c_exits_with_130_and_sigusr1_with_143(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "run").mkdir()
    assert run("update", tmp_path / "run", number) == code
    assert_stopped(tmp_path / "run", tmp_path / "whole", "update")


def test_sig_1_a_validation_is_left_at_its_next_batch_and_made_up_for(tmp_path: Path) -> None:
    seen: list[int] = []

    class Kills(list[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for i, batch in enumerate(super().__iter__()):
                seen.append(i)
                yield batch
                if len(seen) == 3:
                    signal.raise_signal(signal.SIGTERM)

    batches = Kills([(torch.ones(1, 1), torch.ones(1, 1))] * 9)
    trainer = make(tmp_path, "", lambda: None)
    trainer.evaluation.loader = batches
    with pytest.raises(SystemExit):
        trainer.train()
    assert seen == [0, 1, 2, 3]  # the fourth was fetched already
    assert step_of(tmp_path / "last.pt") == 3
    again = make(tmp_path, "", lambda: None, resume="auto")
    again.evaluation.loader = batches
    again.train()
    assert [record["step"] for record in again.history if "val_loss" in record] == [3, 6, 9]


def test_sig_1_signals_that_come_again_while_it_saves_do_not_abort_the_save(tmp_path: Path) -> None:
    """As a scheduler sends them: to the whole process group, and its launcher once more."""
    heard: list[int] = []
    found = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in SIGNALS[1:]}

    def send(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates == 2:
            for number in (*SIGNALS[1:], *SIGNALS[1:]):
                signal.raise_signal(number)

    try:
        trainer = make(tmp_path, "", lambda: None)
        trainer.callbacks.append(send)
        with pytest.raises(SystemExit) as caught:
            trainer.train()
        assert heard == []  # by whoever listened before
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]  # and listens again
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)
    assert caught.value.code == 143
    assert step_of(tmp_path / "last.pt") == 2


@pytest.fixture
def default_ctrl_c() -> Iterator[None]:
    """A shell's background jobs ignore it."""
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, found)


@pytest.mark.usefixtures("default_ctrl_c")
def test_sig_1_a_second_ctrl_c_aborts_where_the_run_is(tmp_path: Path) -> None:
    after = []

    def send(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates == 2:
            signal.raise_signal(signal.SIGINT)
            after.append("first")
            signal.raise_signal(signal.SIGINT)
            after.append("second")

    trainer = make(tmp_path, "", lambda: None)
    trainer.callbacks.append(send)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert after == ["first"]
    assert not list(tmp_path.glob("*.pt"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("default_ctrl_c")
def test_sig_1_the_status_is_that_of_the_first_signal(tmp_path: Path) -> None:
    codes = []
    for numbers in ((signal.SIGINT, signal.SIGTERM), (signal.SIGUSR1, signal.SIGINT)):

        def send(event: str, trainer: Trainer, numbers: tuple[signal.Signals, ...] = numbers) -> None:
            if event == "update" and trainer.updates == 2:
                for number in numbers:
                    signal.raise_signal(number)

        trainer = make(tmp_path / numbers[0].name, "", lambda: None)
        trainer.callbacks.append(send)
        with pytest.raises(SystemExit) as caught:
            trainer.train()
        codes.append(caught.value.code)
    assert codes == [130, 143]


@pytest.mark.parametrize("ends", ["by itself", "by an error", "by a signal"])
def test_sig_1_handlers_are_ours_in_a_run_and_theirs_after_it(tmp_path: Path, ends: str) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    within = []

    def end(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates == 2:
            within.extend(signal.getsignal(number) for number in SIGNALS)
            if ends == "by an error":
                raise KeyError("mine")
            if ends == "by a signal":
                signal.raise_signal(signal.SIGTERM)

    trainer = make(tmp_path, "", lambda: None)
    trainer.callbacks.append(end)
    with pytest.raises((KeyError, SystemExit)) if ends != "by itself" else nullcontext():
        trainer.train()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert not set(within) & set(before)


def test_sig_1_off_the_main_thread_a_run_leaves_signals_alone(tmp_path: Path) -> None:
    before, within = [signal.getsignal(number) for number in SIGNALS], []
    trainer = make(tmp_path, "", lambda: None)
    trainer.callbacks.append(lambda event, t: within.append([signal.getsignal(number) for number in SIGNALS]))
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join(60)
    assert trainer.updates == LAST
    assert step_of(tmp_path / "last.pt") == LAST
    assert within
    assert all(handlers == before for handlers in within)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
