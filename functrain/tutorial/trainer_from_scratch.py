"""A training loop from nothing but tensors and loops.

    for each epoch:                                       `train`
        for each window of N micro-batches:
            one update                                    `update`, in nine steps
        validate                                          `evaluate`
        save                                              `save_checkpoint`

Everything that a loop for real networks does is here once, where it happens, with the reason, and with what breaks when
it is left out. Most of these mistakes raise no error. The loss falls anyway, less than it could, and nobody is told;
that is why they are worth knowing. `tests/tutorial/` makes them one by one, and shows the damage in numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = Sequence[Tensor]  # inputs and targets, of the same length

FIRST_SCALE = 2.0**16  # a power of two: multiplying by it, and dividing, changes the exponent and rounds nothing
GROWTH_INTERVAL = 2000  # updates without overflow after which the scale is doubled


class OptimizerLike(Protocol):
    """What the loop asks of an optimizer: those of `optimizer_from_scratch.py` have it, and one of yours may."""

    params: list[Tensor]
    lr: float

    def step(self) -> None: ...
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, list[Tensor]]: ...
    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None: ...


def warmup_cosine(peak: float, warmup: int, total: int) -> Callable[[int], float]:
    """A schedule: from the number of updates so far to the rate of the next. Up in a line, down as half a cosine.

        peak u / warmup                                         for u < warmup
        peak ½ (1 + cos(π (u - warmup) / (total - warmup)))     then, until it is 0 at `total`

    Up, because at first the averages of the optimizer know little, and gradients are large and change quickly. Down,
    because a rate that is right for the way is too large for the end: the noise of batches keeps the parameters at a
    distance from the minimum that grows with the rate.

    >>> schedule = warmup_cosine(0.1, warmup=2, total=10)
    >>> [round(schedule(u), 3) for u in (0, 1, 2, 6, 10)]
    [0.0, 0.05, 0.1, 0.05, 0.0]
    """

    def schedule(u: int) -> float:
        if u < warmup:
            return peak * u / warmup
        done = min((u - warmup) / (total - warmup), 1.0)
        return peak * 0.5 * (1 + math.cos(math.pi * done))

    return schedule


def windows(loader: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """The batches, `size` at a time; the last window of an epoch holds what is left.

    Without that last one the gradients of up to N - 1 batches would be lost at each epoch's end, or, if nobody clears
    them, leak into the next epoch's first update.
    """
    window = []
    for batch in loader:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


class TrainerFromScratch:
    """A loop over a loader.

    Args:
        model, optimizer: the module, and the optimizer of its parameters, made when the module is on its device.
        train_loader, val_loader: iterables of (inputs, targets), read once an epoch. val_loader may be None.
        device: where to compute.
        max_epochs: passes over train_loader.
        loss_fn: loss_fn(outputs, targets), a mean over the batch's rows.
        grad_accum_steps: N >= 1, micro-batches an update.
        max_grad_norm: gradients of a greater global norm are scaled down to it. None leaves them.
        use_amp: matrix products in amp_dtype, everything else in float32.
        amp_dtype: bfloat16, or float16 with a loss scale.
        scheduler: a function from updates so far to the learning rate of the next; None leaves optimizer.lr.
        save_dir: where `last.pt` and `best_model.pt` are written after each epoch. None writes nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerLike,
        train_loader: Iterable[Batch],
        val_loader: Iterable[Batch] | None = None,
        device: torch.device | str = "cpu",
        max_epochs: int = 10,
        *,
        loss_fn: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        grad_accum_steps: int = 1,
        max_grad_norm: float | None = None,
        use_amp: bool = False,
        amp_dtype: torch.dtype = torch.bfloat16,
        scheduler: Callable[[int], float] | None = None,
        save_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model, self.optimizer = model.to(self.device), optimizer
        self.train_loader, self.val_loader, self.loss_fn = train_loader, val_loader, loss_fn
        self.max_epochs, self.grad_accum_steps, self.max_grad_norm = max_epochs, grad_accum_steps, max_grad_norm
        self.use_amp, self.amp_dtype, self.scheduler = use_amp, amp_dtype, scheduler
        self.save_dir = None if save_dir is None else Path(save_dir)

        # Everything that changes during training, beside the model and the optimizer. A checkpoint holds all of it.
        self.epoch, self.updates, self.best = 0, 0, math.inf  # epochs done, updates applied, least validation loss
        self.scaled = use_amp and amp_dtype == torch.float16
        self.scale = FIRST_SCALE if self.scaled else 1.0
        self.good_updates = 0  # since the scale last changed
        self.history: list[dict[str, float]] = []

    def train(self) -> None:
        """Train to max_epochs, from wherever the run stands."""
        while self.epoch < self.max_epochs:
            # Dropout drops and BatchNorm measures its batch only in training mode, and `evaluate` may be anybody's.
            self.model.train()
            for window in windows(self.train_loader, self.grad_accum_steps):
                self.history.append({"epoch": self.epoch + 1, **self.update(window)})
            self.epoch += 1

            better = False
            if self.val_loader is not None:
                val_loss = self.evaluate()
                self.history.append({"epoch": self.epoch, "step": self.updates, "val_loss": val_loss})
                better = val_loss < self.best
                self.best = min(val_loss, self.best)

            # After the epoch is counted and the best is noted: saved before, a run that goes on from the file would
            # train this epoch twice, and take a worse model for the best.
            if self.save_dir is not None:
                self.save_checkpoint(self.save_dir / "last.pt")
                if better:
                    self.save_checkpoint(self.save_dir / "best_model.pt")

    def update(self, window: Sequence[Batch]) -> dict[str, float]:
        """One update from a window of micro-batches. Returns what it was like."""
        # 1. Forget the last update's gradients. `backward` adds to `p.grad`: without this line every update steps along
        #    the sum of all gradients since the run began.
        self.optimizer.zero_grad()

        # 2. Accumulation. A batch of 512 that does not fit is eight micro-batches of 64 whose gradients are added up,
        #    since the gradient of a mean is the mean of the gradients. But the mean of means is the mean only if all
        #    parts are of one size. So each part counts by its share of the rows. The usual `loss / N` gives a ragged
        #    last batch the weight of a full one, and a last window of 2 batches instead of 4 half the gradient.
        #    (Where the loss is a mean over tokens, the shares are those of tokens.)
        rows = sum(len(x) for x, _ in window)
        total = torch.zeros((), device=self.device)
        for x, y in window:
            share = len(x) / rows
            loss = self.loss(x, y)

            # 3. The loss scale. float16 has no number between 0 and 6e-8: smaller gradients become zero on the way back
            #    through the network, layer by layer. A loss times 65536 has gradients times 65536, and they survive.
            #    bfloat16 has the exponents of float32 and needs none of this: here `scale` is 1.
            # 4. Backward, outside of autocast: each operation goes back in the dtype in which it went forward.
            (loss * share * self.scale).backward()
            total = total + share * loss.detach()  # to be read, and not differentiated once more

        # 5. Unscale, before anybody looks at the gradient. To clipping, a scaled gradient of norm 1 is one of 65536: it
        #    is cut down to the limit, and then divided by the scale. What is left is a step of nearly nothing.
        grads = [p.grad for p in self.optimizer.params if p.grad is not None]
        for g in grads:
            g /= self.scale
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
        record = {"step": self.updates + 1, "loss": float(total), "grad_norm": float(norm), "scale": self.scale}

        # 6. Is it finite? A step along an infinity or a NaN makes every parameter NaN, and m and v, for good. With a
        #    loss scale an overflow is no accident but how the right scale is found: skip the update, halve the scale.
        #    Without one it is a fault of the data, the rate or the model, and going on would hide it. (The forward pass
        #    has moved BatchNorm's averages all the same. `ft.train_step` puts them back.)
        if not math.isfinite(record["loss"] + record["grad_norm"]):
            if not self.scaled:
                raise FloatingPointError(
                    f"TrainerFromScratch: update {self.updates + 1} has loss {record['loss']} and a gradient of norm "
                    f"{record['grad_norm']}; no parameter was changed; hint: a smaller lr, max_grad_norm, or look at "
                    "the data"
                )
            self.scale, self.good_updates = self.scale / 2, 0
            return record | {"learning_rate": self.optimizer.lr, "skipped": 1}

        # 7. Clip: one factor for all parameters together, so that the direction stays. A single odd batch then costs
        #    one step of bounded length. Without it plain descent throws the parameters far away, and Adam's v remembers
        #    the square of the outlier for a thousand updates, which are too small all that time.
        #    Once an update and not once a micro-batch: a sum of clipped gradients is not the gradient of the window.
        if self.max_grad_norm is not None and norm > self.max_grad_norm:
            for g in grads:
                g *= self.max_grad_norm / norm

        # 8. The rate of this update, by the number of updates before it. Counted up before the first step, the schedule
        #    would never use its first value; counted in batches, it would end N times too early; and an update that was
        #    skipped does not count.
        if self.scheduler is not None:
            self.optimizer.lr = self.scheduler(self.updates)

        # 9. Step.
        self.optimizer.step()
        self.updates += 1
        self.good_updates += 1
        if self.scaled and self.good_updates == GROWTH_INTERVAL:  # try whether a larger scale has become possible
            self.scale, self.good_updates = self.scale * 2, 0
        return record | {"learning_rate": self.optimizer.lr, "skipped": 0}

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Forward. Under autocast matrix products run in half precision, at twice the speed and more where the hardware
        has units for them; sums, normalisation and the loss stay in float32, and so do the parameters: most updates
        are smaller than the distance between two half-precision numbers, and a half-precision parameter would not move.
        """
        x, y = x.to(self.device), y.to(self.device)
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.use_amp):
            return self.loss_fn(self.model(x), y)

    # Without `no_grad` every operation keeps its inputs for a backward pass that never comes.
    @torch.no_grad()
    def evaluate(self) -> float:
        """The mean loss over val_loader. Nothing that training depends on changes."""
        if self.val_loader is None:
            raise ValueError("TrainerFromScratch.evaluate: there is no val_loader")
        was_training = self.model.training
        # Without `eval` dropout blurs the measure, and BatchNorm learns the validation data: its averages are buffers
        # and not parameters, so `no_grad` does not protect them.
        self.model.eval()
        total, rows = 0.0, 0
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed, and training would see other samples
            for x, y in self.val_loader:
                total += float(self.loss(x, y)) * len(x)  # by rows again: the last batch may be short
                rows += len(x)
        # Back, for a call between two updates: left so, training would go on without dropout, and with BatchNorm's
        # averages frozen.
        self.model.train(was_training)
        return total / rows

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write everything that the rest of the run depends on. What is left out begins anew, without a word."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = {
            "model": self.model.state_dict(),  # parameters, and buffers: validation needs BatchNorm's averages
            "optimizer": self.optimizer.state_dict(),  # without m and v the first updates go elsewhere
            "lr": self.optimizer.lr,
            "updates": self.updates,  # without it the schedule warms up again
            "epoch": self.epoch,  # without it the run trains all max_epochs once more
            "best": self.best,  # without it any model is the best, and overwrites the one that was
            "scale": self.scale,  # without it the first updates overflow until it is found again
            "good_updates": self.good_updates,
            "history": self.history,
            "random": torch.get_rng_state(),  # without it the samples come in another order, and dropout drops others
            "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        # Never over the file that is there: a process that is killed while it writes would leave half a checkpoint, and
        # no other. `os.replace` puts the new file in the old one's place in one step.
        temporary = path.with_suffix(".tmp")
        torch.save(checkpoint, temporary)
        os.replace(temporary, path)

    def load_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint: `train()` then does what the saved run would have done.

        It was written between two epochs. From the middle of one, a run would have to know which samples are left;
        `ft.Trainer` does.
        """
        # weights_only: a pickle may hold any code, and would run it here.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        for name in ("updates", "epoch", "best", "scale", "good_updates", "history"):
            setattr(self, name, checkpoint[name])
        self.optimizer.lr = checkpoint["lr"]
        torch.set_rng_state(checkpoint["random"])
        if checkpoint["random_cuda"]:
            torch.cuda.set_rng_state_all(checkpoint["random_cuda"])
