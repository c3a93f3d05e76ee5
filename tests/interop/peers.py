"""What trainers do in the cases that functrain's guarantees are about: `python -m tests.interop.peers NAME FOLDER`.

NAME is one of `RUNNERS`. The same nets, data and optimizers go through each, with its own settings as its manual
has them. The program imports the library once and forks for every run, so that each run is a process of its own with
nothing of the others in it but files. It prints what it found as JSON; `peer_table.py` makes cells of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.interop.runners import MODULES, RUNNERS, WAYS, Job

UPDATES_AN_EPOCH, MIDDLE, END, EPOCHS = 8, 11, 8, 2  # a checkpoint in the second epoch, one at the end of the first
FLIPS = 30


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of tensors under names, with noise from torch's global stream on x if they are augmented."""

    def __init__(self, augmented: bool = False, **columns: Tensor) -> None:
        self.augmented, self.columns = augmented, columns

    def __len__(self) -> int:
        return len(self.columns["x"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        row = {name: column[i] for name, column in self.columns.items()}
        return row | {"x": row["x"] + 0.1 * torch.randn(row["x"].shape)} if self.augmented else row


class Slope(nn.Module):
    """One weight w, and for each token that is not masked the loss -w x: a step of one moves w by the mean of x."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def terms(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        real = labels != -100
        return -(self.w * x)[real].sum(), real.sum()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        total, count = self.terms(x, labels)
        return {"loss": total / count}


class Counted(Slope):
    """The same, for a trainer that tells how many tokens its window has."""

    accepts_loss_kwargs = True  # how Transformers knows of it, where forward has no **kwargs

    def forward(self, x: Tensor, labels: Tensor, num_items_in_batch: Tensor | None = None) -> dict[str, Tensor]:
        total, count = self.terms(x, labels)
        return {"loss": total / (count if num_items_in_batch is None else num_items_in_batch)}


class Net(nn.Module):
    """A net that notes which rows it was trained on; at `stop_at` batches its process gets a SIGTERM."""

    def __init__(self, stop_at: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.seen: list[list[int]] = []
        self.stop_at = stop_at

    def forward(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        self.seen.append(index.tolist())
        if len(self.seen) == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": (self.body(x) - x.sum(1, keepdim=True)).square().mean()}


class Frozen(nn.Module):
    """A net whose BatchNorm is put into eval mode when it is made; it notes the mode in which it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4).eval(), nn.Linear(4, 1)
        self.modes: list[bool] = []

    def forward(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        if self.training:
            self.modes.append(self.norm.training)
        return {"loss": self.head(self.norm(x)).square().mean()}


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=1.0)


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=1e-2)


def rows(augmented: bool = False) -> Rows:
    x = torch.randn(4 * UPDATES_AN_EPOCH, 4, generator=torch.Generator().manual_seed(1))
    return Rows(augmented, x=x, index=torch.arange(len(x)))


# --- each run is one of these; it returns what it found


def window(name: str, folder: Path) -> float:
    """WIN-1: ten batches of gradient -1, four an update."""
    net = Slope()
    RUNNERS[name](Job(net, Rows(x=torch.ones(10, 1), labels=torch.zeros(10, 1)), 1, folder, sgd, accumulate=4))
    return net.w.item()


def samples(name: str, folder: Path, way: str) -> float:
    """ACC-2: batches of three samples and of one, an update; the mean of x over all is 1, that of the means is 2."""
    net = Counted() if way == "num_items_in_batch" else Slope()
    x = torch.tensor([[0.0], [0.0], [0.0], [4.0]])
    RUNNERS[name](Job(net, Rows(x=x, labels=torch.zeros(4, 1)), 3, folder, sgd, way, accumulate=2))
    return net.w.item()


def tokens(name: str, folder: Path, way: str) -> float:
    """The same of tokens: batches of one row of three, of which the second has two masked."""
    net = Counted() if way == "num_items_in_batch" else Slope()
    data = Rows(x=torch.tensor([[0.0, 0, 0], [4, 9, 9]]), labels=torch.tensor([[0, 0, 0], [0, -100, -100]]))
    RUNNERS[name](Job(net, data, 1, folder, sgd, way, accumulate=2))
    return net.w.item()


def resumable(name: str, folder: Path, way: str, case: str, resume: bool) -> dict[str, Any]:
    """RES-1: a whole run with its checkpoints, or what follows one of them in another process."""
    at = END if case == "end" else MIDDLE
    torch.manual_seed(0)
    net = Net()
    every = None if case == "end" else 1
    job = Job(net, rows(case != "shuffled"), 4, folder, adam, way, epochs=EPOCHS, shuffle=True, every=every)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        RUNNERS[name](job._replace(resume=at) if resume else job)
    weights = {key: x.tolist() for key, x in net.body.state_dict().items()}
    return {"seen": net.seen, "weights": weights, "told": any("resuming" in str(w.message) for w in told)}


def nan(name: str, folder: Path, way: str) -> dict[str, Any]:
    """NAN-1: the second of four batches is NaN."""
    data = rows()
    data.columns["x"][5] = torch.nan
    torch.manual_seed(0)
    net, error = Net(), None
    losses: list[float] = []
    try:
        losses = RUNNERS[name](Job(net, data, 4, folder, adam, way))
    except Exception as raised:
        error = type(raised).__name__
    finite = all(bool(p.isfinite().all()) for p in net.parameters())
    return {"error": error, "finite": finite, "log": bool(losses) and bool(torch.tensor(losses).isfinite().all())}


def flips(name: str, folder: Path) -> dict[str, int]:
    """CKPT-4: a bit of a weight is another one in the file; the file is loaded."""
    torch.manual_seed(0)
    job = Job(Net(), rows(), 4, folder, adam, epochs=1)
    RUNNERS[name](job)
    last = job._replace(resume=UPDATES_AN_EPOCH)
    (file,) = (p for p in last.weights_files() if p.is_file())
    true, weights = file.read_bytes(), job.net.state_dict()["body.0.weight"].numpy().tobytes()
    assert true.count(weights) == 1
    begin, draw = true.index(weights), random.Random(0)

    def load() -> str:
        net = Net()
        try:
            RUNNERS[name](last._replace(net=net))
        except Exception as error:
            return type(error).__name__
        return "right" if net.state_dict()["body.0.weight"].numpy().tobytes() == weights else "wrong"

    assert load() == "right"  # the undamaged one, after which nothing is left to train
    found: Counter[str] = Counter()
    for _ in range(FLIPS):
        damaged = bytearray(true)
        damaged[begin + draw.randrange(len(weights))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        found[load()] += 1
    return found


def modes(name: str, folder: Path) -> list[bool]:
    """EVAL-1: whether the frozen norm was in training mode, in the first epoch, and after a validation."""
    net = Frozen()
    RUNNERS[name](Job(net, rows(), 4, folder, adam, epochs=2, validation=rows()))
    assert len(net.modes) == 2 * UPDATES_AN_EPOCH
    return [any(net.modes[:UPDATES_AN_EPOCH]), any(net.modes[UPDATES_AN_EPOCH:])]


def stopped(name: str, folder: Path, way: str) -> None:
    """SIG-1: SIGTERM in the fifth batch of a run without an end."""
    RUNNERS[name](Job(Net(stop_at=5), rows(), 4, folder, adam, way, epochs=10**6, stops=True))


# --- a process for each run


def alone(folder: Path, run: Callable[..., object], *arguments: object) -> tuple[int, Any]:
    """Run it in a child, with a folder for its files; the exit status, a signal negative, and what it returned."""
    folder.mkdir(exist_ok=True, parents=True)
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    if not (child := os.fork()):
        status = 1
        try:
            answer.write_text(json.dumps(run(*arguments)))
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), json.loads(answer.read_text() or "null") if answer.exists() else None


def resumes(name: str, folder: Path) -> Iterator[tuple[str, dict[str, dict[str, bool]]]]:
    for case in ("shuffled", "augmented", "end"):
        ways = {}
        for way in WAYS["resume"][name]:
            here = folder / case / (way or "default")
            whole, rest = (alone(here, resumable, name, here, way, case, resume)[1] for resume in (False, True))
            done = END if case == "end" else MIDDLE
            ways[way] = {
                "samples": rest["seen"] == whole["seen"][done:],
                "weights": rest["weights"] == whole["weights"],
                "told": rest["told"],
            }
        yield case, ways


def stops(name: str, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for way in WAYS["stop"][name]:
        here = folder / "stop" / (way or "default")
        status, _ = alone(here, stopped, name, here, way)
        saved = [p for p in here.rglob("*") if p.is_file() and p.suffix in {".pt", ".ckpt", ".safetensors", ".bin"}]
        yield way, {"status": status, "saved": bool(saved)}


def found(name: str, folder: Path) -> dict[str, Any]:
    def one(run: Callable[..., object], *more: object) -> Any:
        here = folder / run.__name__ / "-".join(map(str, more))
        status, answer = alone(here, run, name, here, *more)
        assert status == 0, f"{name}: {run.__name__} {more} ended with {status}"
        return answer

    def ways(run: Callable[..., object]) -> dict[str, Any]:
        return {way: one(run, way) for way in WAYS[run.__name__][name]}

    return {run.__name__: one(run) for run in (window, flips)} | {
        "samples": {way: one(samples, way) for way in WAYS["tokens"][name]},
        "tokens": ways(tokens),
        "nan": ways(nan),
        "resume": dict(resumes(name, folder / "resume")),
        "modes": one(modes) if name != "accelerate" else None,
        "stop": dict(stops(name, folder)),
    }


def offline(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        raise AssertionError(f"a connection to {arguments[1]!r}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.addaudithook(offline)
    out, folder = os.dup(1), Path(sys.argv[2])
    os.dup2(2, 1)  # what libraries print is not the answer
    (here := folder / "here").mkdir()
    os.chdir(here)
    for module in MODULES[sys.argv[1]]:
        import_module(module)
    answer = json.dumps(found(sys.argv[1], folder))
    assert list(here.iterdir()) == []  # nothing lies about
    with os.fdopen(out, "w") as file:
        file.write(answer)
