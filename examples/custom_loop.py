"""A loop of one's own around the pure step: a state is a value, which one keeps, goes back to, and branches from.

    python examples/custom_loop.py   # seconds on a CPU, --jit: half a minute; draws runs/custom_loop/custom_loop.png

The loop raises the learning rate until the loss explodes, goes back ten updates, and goes on with half the rate. It
chooses its own data: each epoch has all digits, and those twice that the network finds hardest. An update is made of
micro-batches. From the last state two runs go on, one with the rate as it is and one that lets it sink to zero.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft

TRAIN, WINDOW, MICRO, BACK = 1200, 60, 20, 10  # digits to learn from, in an update, at once; updates to go back
Log = list[tuple[int, float, float]]  # update, loss, learning rate


class Run:
    """The network, the step and the data: what does not change. What changes is in the states it takes and gives."""

    def __init__(self, jit: bool = False) -> None:
        torch.manual_seed(0)
        self.model = ft.functionalize(nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10)))
        tx = ft.inject_hyperparams(ft.sgd)(learning_rate=0.05, momentum=0.9)
        step = ft.train_step(self.model.loss(F.cross_entropy), tx)
        self.step = ft.jit(step, donate=False) if jit else step  # donated, a state could not be gone back to
        self.start = ft.TrainState.create(self.model, tx)
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(labels))
        self.x, self.y = torch.tensor(images / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]

    def epoch(self, state: ft.TrainState, seed: int) -> tuple[Tensor, ...]:
        """Which digits make an update: all, and once more the fifth that this state finds hardest, mixed."""
        hardest = F.cross_entropy(self.logits(state)[:TRAIN], self.y[:TRAIN], reduction="none").topk(TRAIN // 5).indices
        mixed = torch.randperm(TRAIN + len(hardest), generator=torch.Generator().manual_seed(seed))
        return torch.cat([torch.arange(TRAIN), hardest])[mixed].split(WINDOW)

    def update(self, state: ft.TrainState, chosen: Tensor, log: Log) -> ft.TrainState:
        """One update, of the mean gradient of a window that is taken in micro-batches."""
        window = None
        for micro in chosen.split(MICRO):
            window = self.step.gradients(state, (self.x[micro], self.y[micro]), window)
        state, metrics = self.step.apply(state, window)
        log.append((int(state.step), metrics["loss"].item(), metrics["learning_rate"].item()))
        return state

    def climb(self, epochs: int, log: Log) -> ft.TrainState:
        """Raise the rate; where the loss is far above what it was of late, go back, and take half."""
        state, kept, usual = self.start, [self.start], 3.0
        for epoch in range(epochs):
            for chosen in self.epoch(state, epoch):
                state = self.update(state, chosen, log)
                update, loss, rate = log[-1]
                if loss < usual + 0.5:  # NaN is not
                    usual += 0.1 * (loss - usual)
                    kept = [*kept[1 - BACK :], state]  # no copies: nothing writes to an old state
                    state = ft.tree.set(state, learning_rate=1.05 * rate)
                else:
                    kept, state = kept[:1], ft.tree.set(kept[0], learning_rate=rate / 2)
                    print(f"update {update:3}: loss {loss:.2f} at rate {rate:.2f}; back to {int(state.step)}")
        return state

    def branch(self, state: ft.TrainState, epochs: int, cool: bool, log: Log) -> ft.TrainState:
        """Go on from a state, with its rate or with one that sinks to zero."""
        rate = ft.tree.get(state.opt_state, "learning_rate").item()
        for i, chosen in enumerate(windows := [*self.epoch(state, 0)] * epochs):
            state = ft.tree.set(state, learning_rate=rate * (1 - i / len(windows)) if cool else rate)
            state = self.update(state, chosen, log)
        return state

    def logits(self, state: ft.TrainState) -> Tensor:
        return self.model.apply(state.params, state.buffers, self.x)[0]

    def accuracy(self, state: ft.TrainState) -> float:
        return (self.logits(state).argmax(1) == self.y)[TRAIN:].float().mean().item()


def draw(logs: dict[str, Log], path: Path) -> None:
    """Loss and rate over updates; in grey what was gone back from."""
    panels = (figure := Figure(figsize=(8, 4.5), layout="constrained")).subplots(2, 1, height_ratios=(2, 1))
    for name, log in logs.items():
        kept = {row[0]: row for row in log if row[0] <= log[-1][0]}.values()  # of one number the last
        for i, what in enumerate(("loss of an update", "learning rate")):
            for rows, style in ((log, {"color": "0.8"}), (kept, {"label": name})):
                panels[i].plot([row[0] for row in rows], [row[1 + i] for row in rows], linewidth=1, **style)
            panels[i].set(yscale="log", ylabel=what, xlabel="update" if i else "")
    panels[0].legend()
    figure.savefig(path)


def main(epochs: int = 12, jit: bool = False, out: Path = Path("runs/custom_loop")) -> None:
    """The trunk, its file, and two branches."""
    out.mkdir(parents=True, exist_ok=True)
    run, logs = Run(jit), {"trunk": Log(), "held": Log(), "cooled": Log()}
    trunk = run.climb(epochs, logs["trunk"])
    ft.checkpoint.save(out / "trunk.pt", trunk)
    held, cooled = (run.branch(trunk, 3, name == "cooled", logs[name]) for name in ("held", "cooled"))
    saved = ft.checkpoint.load(out / "trunk.pt", like=run.start)
    as_saved = all(map(torch.equal, ft.tree.leaves(trunk), ft.tree.leaves(saved)))
    draw(logs, out / "custom_loop.png")
    print(f"trunk: {run.accuracy(trunk):.1%} of the test digits; after both branches it is as it was saved: {as_saved}")
    print(f"branches: {run.accuracy(held):.1%} with the rate held, {run.accuracy(cooled):.1%} with the rate cooled")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="few epochs")
    parser.add_argument("--jit", action="store_true", help="compile the step")
    torch.set_num_threads(1)  # a second one costs networks of this size more than it brings
    main(3 if (args := parser.parse_args()).short else 12, args.jit)
