"""Callbacks are functions (event, trainer): here are three that look at a run, and do not touch it.

    python examples/callbacks.py        # seconds on a CPU; writes runs/callbacks/norms.jsonl

`norms` logs how large each layer's weights are, and by which part of that an update moves them. `dry_run` makes an
update and validates a batch, before an epoch goes by in vain. `find_rate` raises the rate until the loss explodes. The
two leave no trace: the step is pure, so they walk from a copy of the state and forget it.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import functrain as ft
from functrain.data import to_device
from functrain.logging import JsonLines, Logger
from functrain.run.streams import capture, restore, streams


def norms(logger: Logger, every: int = 100) -> Callable[[str, ft.Trainer], object]:
    """Log the norm of each layer's weights, and that of the update over it, once in so many updates."""
    kept = dict[int, dict[str, Tensor]]()  # by update, the parameters after it

    def callback(event: str, trainer: ft.Trainer) -> None:
        now, params = trainer.updates, dict(trainer.state.params)
        if event == "update" and now % every == 0 and (old := kept.pop(now - 1, {})):
            record: dict[str, object] = {"step": now, "epoch": trainer.epoch}
            for layer in dict.fromkeys(name.rpartition(".")[0] for name in params):
                own = [k for k in params if k.rpartition(".")[0] == layer]
                norm, moved = ft.tree.norm([params[k] for k in own]), ft.tree.norm([params[k] - old[k] for k in own])
                record |= {f"norm/{layer}": norm.item(), f"ratio/{layer}": (moved / norm).item()}
            logger.log(record)
        if event == "update" and (now + 1) % every == 0:
            kept[now] = ft.tree.map(torch.clone, params)  # a compiled update writes the next ones over these

    return callback


def once(look: Callable[[ft.Trainer], object]) -> Callable[[str, ft.Trainer], object]:
    """The callback that looks at the first event, which is the first update, and prints what it sees."""
    pending = [look]
    return lambda event, trainer: print(f"{look.__name__}: {pending.pop()(trainer)}") if pending else None


def peek(loader: Iterable[object], n: int, device: torch.device) -> list[object]:
    """The first n batches of an epoch, fewer if it ends; whatever feeds the loader's draws is put back."""
    if isinstance(loader, Iterator) or getattr(loader, "persistent_workers", False) or hasattr(loader, "state_dict"):
        raise ValueError(f"peek: a {type(loader).__name__} like this one remembers that somebody looked")
    before = capture(sources := streams(loader))
    try:
        return [to_device(batch, device) for _, batch in zip(range(n), loader, strict=False)]
    finally:
        restore(before, sources)


def dry_run(trainer: ft.Trainer) -> str:
    """One update, one validation batch: shapes, losses, memory and time."""
    (batch,), began = peek(trainer.feed.loader, 1, trainer.device), time.perf_counter()
    state, metrics = trainer.step(ft.tree.map(torch.clone, trainer.state), batch)
    told = f"batch {[tuple(x.shape) for x in ft.tree.leaves(batch)]}, loss {metrics['loss']:.3f}"
    small = copy.copy(trainer.evaluation)
    small.loader = peek(small.loader or [], 1, trainer.device)
    told += f", validation loss {small.measure(trainer.averaged)['loss'] if small.loader else math.nan:.3f}"
    size, seconds = sum(x.nbytes for x in ft.tree.leaves(state)), time.perf_counter() - began
    return f"{told}, state {size:,} bytes, at most {torch.cuda.max_memory_allocated():,} on a GPU, {seconds:.2f} s"


def find_rate(trainer: ft.Trainer, n: int = 100) -> float:
    """A tenth of the learning rate at which the loss was least, while it rose from 1e-5 to 10 over n batches."""
    batches, state, curve = peek(trainer.feed.loader, n, trainer.device), ft.tree.map(torch.clone, trainer.state), []
    for rate, batch in zip(torch.logspace(-5, 1, len(batches)).tolist(), batches, strict=True):
        state, metrics = trainer.step(state._replace(opt_state=ft.tree.set(state.opt_state, learning_rate=rate)), batch)
        if not all(math.isclose(x, rate, rel_tol=1e-5) for name, x in metrics.items() if "learning_rate" in name):
            raise ValueError("find_rate: the rate obeys nobody; hint: ft.inject_hyperparams(ft.adamw)(learning_rate=1)")
        if not (loss := metrics["loss"].item()) < 4 * min(curve, default=(math.inf,))[0]:  # NaN is not below either
            break
        curve.append((loss, rate))
    return min(curve, default=(math.inf, math.nan))[1] / 10


def moons(n: int, seed: int) -> TensorDataset:
    """Points of two half circles that reach into each other, (n, 2), and which one each is of, (n,)."""
    draw = torch.Generator().manual_seed(seed)
    t, y = math.pi * torch.rand(n, generator=draw), torch.randint(2, (n,), generator=draw)
    arcs = torch.stack([torch.stack([t.cos(), t.sin()], 1), torch.stack([1 - t.cos(), 0.5 - t.sin()], 1)])
    return TensorDataset(arcs[y, torch.arange(n)] + 0.1 * torch.randn(n, 2, generator=draw), y)


def main(epochs: int, file: Path = Path("runs/callbacks/norms.jsonl")) -> None:
    """Find a rate, train with it, and show the last norms."""
    torch.manual_seed(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    trainer = ft.Trainer(
        nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)),
        ft.inject_hyperparams(ft.adamw)(learning_rate=1e-3),
        *(DataLoader(moons(n, seed=n), batch_size=20, shuffle=True) for n in (2000, 500)),
        loss_fn=nn.CrossEntropyLoss(),
        max_epochs=epochs,
        callbacks=[once(dry_run), norms(JsonLines(file))],
    )
    print(f"find_rate: {(rate := find_rate(trainer)):.1e}")
    trainer.state = trainer.state._replace(opt_state=ft.tree.set(trainer.state.opt_state, learning_rate=rate))
    trainer.train()
    print(f"{file.read_text().splitlines()[-1]}\nvalidation loss {trainer.evaluate()['loss']:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="two epochs")
    main(epochs=2 if parser.parse_args().short else 20)
