"""A run that is stopped, or killed, and resumed is bit for bit the run that was not."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler

from functrain import checkpoint, schedules, tree
from functrain.optimizers.adaptive import adamw
from functrain.trainer import Trainer

N, BATCH = 22, 4  # six batches an epoch, the last one short


class Noisy(Dataset[tuple[Tensor, Tensor, int]]):
    """Samples that know their number, with random augmentation from all three global streams."""

    def __init__(self, served: list[int]) -> None:
        self.served = served
        self.x = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        numpy = sys.modules["numpy"]
        noise = torch.rand(3) + random.random() + numpy.random.rand()
        self.served.append(i)
        return self.x[i] + 0.1 * noise.float(), self.x[i].sum(0, keepdim=True), i


class Own(Sampler[int]):
    """A sampler that keeps its own random numbers, and draws as it goes."""

    def __init__(self) -> None:
        self.dice = random.Random(7)
        super().__init__()

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        return iter([self.dice.randrange(N) for _ in range(N)])


def own_generator(data: Noisy) -> DataLoader[object]:
    return DataLoader(data, BATCH, shuffle=True, generator=torch.Generator().manual_seed(5))


def sampler_generator(data: Noisy) -> DataLoader[object]:
    return DataLoader(data, BATCH, sampler=RandomSampler(data, generator=torch.Generator().manual_seed(5)))


LOADERS: dict[str, Callable[[Noisy], DataLoader[object]]] = {
    "shuffle": lambda data: DataLoader(data, BATCH, shuffle=True),
    "generator": own_generator,
    "sampler": lambda data: DataLoader(data, BATCH, sampler=Own()),
    "sampler's generator": sampler_generator,
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.norm(self.first(x)).relu()))


def mse(m: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return F.mse_loss(m(batch[0]), batch[1])


def make(served: list[int], loader: str = "shuffle", **kwargs: object) -> Trainer:
    torch.manual_seed(3)
    data = Noisy(served)
    rate = schedules.cosine_decay_schedule(1e-2, 20)
    validation = DataLoader(Noisy([]), 5, shuffle=True)
    settings = {"objective": mse, "max_epochs": 3, "log_interval": 1, "max_grad_norm": 1.0} | kwargs
    return Trainer(Net(), adamw(rate), LOADERS[loader](data), validation, **settings)


def seed(n: int) -> None:
    torch.manual_seed(n)
    random.seed(n)
    sys.modules["numpy"].random.seed(n)


def told(trainer: Trainer) -> list[dict[str, object]]:
    """The history without what a clock measured."""
    clocks = {"seconds", "updates_per_second", "samples_per_second", "data_wait"}
    return [{name: x for name, x in record.items() if name not in clocks} for record in trainer.history]


def assert_same(a: Trainer, b: Trainer) -> None:
    assert tree.keys(a.state) == tree.keys(b.state)
    for path, x, y in zip(tree.paths(a.state), tree.leaves(a.state), tree.leaves(b.state), strict=True):
        assert torch.equal(x, y), path
    assert told(a) == told(b)
    assert a.progress.best == b.progress.best


def stop_at(*updates: int) -> Callable[[str, Trainer], None]:
    def callback(event: str, trainer: Trainer) -> None:
        if event == "update" and trainer.updates in updates:
            signal.raise_signal(signal.SIGTERM)

    return callback


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("loader", LOADERS)
def test_stopped_after_any_update_and_resumed_is_not_stopped(tmp_path: Path, loader: str, k: int) -> None:
    served: list[int] = []
    epochs = 2 if k == 1 else 3
    whole = make(served, loader, grad_accum_steps=k, max_epochs=epochs)
    seed(11)
    whole.train()

    for stop in range(1, whole.updates):
        first: list[int] = []
        second: list[int] = []
        settings = {"grad_accum_steps": k, "max_epochs": epochs, "save_dir": tmp_path / str(stop)}
        a = make(first, loader, callbacks=[stop_at(stop)], **settings)
        seed(11)
        with pytest.raises(SystemExit):
            a.train()
        place = a.feed.place
        seed(999)
        b = make(second, loader, resume="auto", **settings)
        seed(1234)
        b.train()
        assert_same(b, whole)
        replayed = 0 if place.exhausted else min(place.consumed * BATCH, N)
        assert first + second[replayed:] == served
        assert second[:replayed] == served[len(first) - replayed : len(first)]


def test_resumed_twice_in_an_epoch_is_resumed_once(tmp_path: Path) -> None:
    whole = make([])
    seed(11)
    whole.train()
    for n in range(3):
        run = make([], save_dir=tmp_path, resume="auto", callbacks=[stop_at(2, 3, 5)])
        seed(n or 11)
        with pytest.raises(SystemExit):
            run.train()
    run = make([], save_dir=tmp_path, resume="auto")
    run.train()
    assert_same(run, whole)


@pytest.mark.parametrize("interval", [None, 1, 4])
def test_every_checkpoint_of_a_run_goes_on_to_its_end(tmp_path: Path, interval: int | None) -> None:
    whole = make([], save_dir=tmp_path, save_interval=interval, eval_interval=interval, keep=99)
    seed(11)
    whole.train()
    saved = sorted(tmp_path.glob("step-*.pt"))
    assert len(saved) >= 3
    for path in [*saved, tmp_path / "best_model.pt", tmp_path / "last.pt"]:
        again = make([], save_interval=interval, eval_interval=interval, resume=path)
        seed(5)
        again.train()
        assert_same(again, whole)


def test_load_then_save_before_training_keeps_the_place(tmp_path: Path) -> None:
    whole = make([])
    seed(11)
    whole.train()
    a = make([], save_dir=tmp_path / "a", callbacks=[stop_at(8)])
    seed(11)
    with pytest.raises(SystemExit):
        a.train()
    seed(4)
    b = make([], save_dir=tmp_path / "b", resume=tmp_path / "a" / "last.pt")
    torch.rand(7)
    path = b.save_checkpoint()
    before, after = checkpoint.read(tmp_path / "a" / "last.pt"), checkpoint.read(path)
    assert before.meta == after.meta
    assert all(torch.equal(x, after.leaves[key]) for key, x in before.leaves.items())
    c = make([])
    c.load_checkpoint(path)
    assert torch.equal(c.model.module.first.weight, a.model.module.first.weight)
    c.train()
    assert_same(c, whole)


def test_the_rows_go_on_and_those_past_the_restored_update_are_marked(tmp_path: Path) -> None:
    def die(event: str, trainer: Trainer) -> None:
        if trainer.updates == 11:
            raise RuntimeError("dead")

    a = make([], save_dir=tmp_path, save_interval=4, callbacks=[die])
    seed(11)
    with pytest.raises(RuntimeError, match="dead"):
        a.train()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "lo')  # killed within a line

    b = make([], save_dir=tmp_path, save_interval=4, resume="auto")
    assert b.updates == 8
    b.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if not row.get("stale")] == b.history
    assert [row["step"] for row in rows if row.get("stale")] == [9, 10]
    assert [row["step"] for row in b.history if "loss" in row] == list(range(1, 19))


def test_what_auto_passes_over_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make([], save_dir=tmp_path, save_interval=5, max_epochs=None, max_steps=10).train()
    bad = tmp_path / "step-00000010.pt"
    bad.write_bytes(bad.read_bytes()[:-1])
    capsys.readouterr()
    again = make([], save_dir=tmp_path, resume="auto", max_epochs=None, max_steps=10)
    assert again.updates == 6
    assert capsys.readouterr().err == (
        f"skipped: checkpoint.verify: {bad} is damaged, or no checkpoint: its bytes do not match its seal\n"
        f"resumed {tmp_path / 'step-00000006.pt'} at update 6 (epoch 2, batch 0)\n"
    )
    assert make([], save_dir=tmp_path / "new", resume="auto").updates == 0


def test_a_loader_with_too_few_batches_is_an_error(tmp_path: Path) -> None:
    a = make([], save_dir=tmp_path, callbacks=[stop_at(5)])
    with pytest.raises(SystemExit):
        a.train()
    b = make([], resume=tmp_path / "last.pt")
    b.feed.loader = list(b.feed.loader)[:3]
    message = (
        "resume: the train loader ended after 3 batches, and the run had consumed 5 of this epoch; "
        "hint: resume with the same data and batch size"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        b.train()


def test_a_random_stream_that_is_gone_is_a_warning(tmp_path: Path) -> None:
    a = make([], "generator", save_dir=tmp_path, callbacks=[stop_at(5)])
    with pytest.raises(SystemExit):
        a.train()
    b = make([], "shuffle", resume=tmp_path / "last.pt", max_steps=6)
    message = (
        "resume: the random streams loader.sampler.generator were there at one time only, when the run was saved or "
        "now; what is drawn from them will differ"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
        b.train()
    assert len(caught) == 1


# --- killed, in real processes

SCRIPT = """
import random, sys, time
import torch
from pathlib import Path
from torch import nn
from torch.utils.data import DataLoader, Dataset
from functrain.optimizers.adaptive import adamw
from functrain.trainer import Trainer

out, k, slow = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
first = not (out / "last.pt").exists()
torch.manual_seed(0 if first else int(sys.argv[4]))  # after a kill all must come from the file

class Data(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, i):
        time.sleep(slow)  # so that the run is not over before the kill
        return torch.full((3,), i / 40) + 0.1 * torch.rand(3), torch.tensor([i / 40])

net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
data = Data()
Trainer(
    net, adamw(1e-2), DataLoader(data, 4, shuffle=True), DataLoader(data, 8), loss_fn=nn.functional.mse_loss,
    max_epochs=4, grad_accum_steps=k, save_dir=out, save_interval=3, log_interval=2, resume="auto",
).train()
"""


def start(out: Path, k: int, slow: float, number: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out), str(k), str(slow), str(number)])


def final(out: Path) -> dict[str, object]:
    return checkpoint.read(out / "last.pt").leaves


def killed_and_resumed(tmp_path: Path, k: int, kills: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    undisturbed = start(whole, k, 0.0, 0)
    draw = random.Random(k)
    for number in range(1, kills + 1):
        before = checkpoint.latest(broken)
        child = start(broken, k, 0.002, number)
        try:
            deadline = time.monotonic() + 300
            while checkpoint.latest(broken) in (before, None):
                assert child.poll() is None, "the run ended before the kill"
                assert time.monotonic() < deadline, "no checkpoint came"
                time.sleep(0.005)  # between two looks
            time.sleep(draw.uniform(0, 0.03))  # at any moment of an update or a save
        finally:
            child.kill()
        assert child.wait() == -signal.SIGKILL, "the run ended before the kill"
    assert start(broken, k, 0.0, 99).wait() == 0
    assert undisturbed.wait() == 0

    total = int(final(whole)["step"])
    assert total == (40 if k == 1 else 16)
    a, b = final(whole), final(broken)
    assert list(a) == list(b)
    assert all(torch.equal(x, b[key]) for key, x in a.items())
    rows = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if not row.get("stale") and "loss" in row]
    assert steps == [
        json.loads(line)["step"] for line in (whole / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]


def test_a_run_killed_in_the_middle_and_resumed_is_not_killed(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, k=3, kills=1)


@pytest.mark.long
@pytest.mark.parametrize("k", [1, 3])
def test_a_run_killed_several_times_and_resumed_is_not_killed(tmp_path: Path, k: int) -> None:
    killed_and_resumed(tmp_path, k, kills=4)
