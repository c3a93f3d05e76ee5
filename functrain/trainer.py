"""The loop: iterate, update, look now and then, save, stop cleanly.

    trainer = Trainer(module, tx, train_loader, val_loader, loss_fn=F.cross_entropy, save_dir="runs/a")
    trainer.train()

All arithmetic is the step's. The rest has modules of its own: the data and the place in it (`feed`), when what is due
(`cadence`), what updates computed (`journal`), validation, the run's directory, signals, what a person sees.

Between two updates the run stands at a **boundary**. There alone it logs, validates, saves and stops, and what is saved
is all that the rest depends on: k updates, and the others in a new process, give the same bits as all in one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from functrain import checkpoint, tree
from functrain.base import GradientTransformation
from functrain.bridge.modules import Model, functionalize
from functrain.compile import jit
from functrain.donation import check
from functrain.logging import Console, Logger, Record, header
from functrain.precision import Precision, PrecisionLike, policy
from functrain.run.cadence import Cadence
from functrain.run.directory import RunDirectory, choose_checkpoint
from functrain.run.driver import choose_driver
from functrain.run.evaluation import Evaluation
from functrain.run.feed import Feed
from functrain.run.journal import Journal
from functrain.run.progress import Progress, read_progress
from functrain.run.recipe import as_config, check_supported, choose_loss, choose_precision, place_model, update_from
from functrain.run.stopping import Stop, stop_on_signals
from functrain.state import TrainState
from functrain.step import train_step

Callback = Callable[[str, "Trainer"], object]


class Trainer:
    """Drives a step over a loader.

    Args:
        model: a module, or a functionalized one. It holds the trained weights after `train()`.
        optimizer: a transformation with its own schedule, or a torch optimizer, such as `configure_optimizer` makes,
            which holds the run's state at each save and at the end.
        train_loader, val_loader: iterables of batches, iterated once an epoch, and once a validation.
        scheduler: torch's, over a torch optimizer; it steps after each applied update, or, on a plateau, validation.
        device: where to train; by default where the module is.
        loss_fn: a criterion: loss_fn(module(*inputs), target) for batches (*inputs, target).
        objective: instead, objective(module, batch), returning what a loss returns (`functrain/loss.py`). With neither
            the module returns its loss, or something with the entry or attribute `loss`.
        max_epochs, max_steps: epochs and updates, skipped ones too, that end the run; None is no limit.
        grad_accum_steps: batches an update. The last update of an epoch has what is left, by its weight.
        max_grad_norm: gradients of a greater global norm are scaled down to it.
        precision: None or "fp32", "bf16", "fp16", or a Precision; use_amp chooses "bf16" where it is native, or "fp16".
        log_interval, eval_interval, save_interval: updates a record, a validation, a checkpoint; None is once an epoch.
        save_dir, keep: the run's directory, None writes nothing; how many checkpoints it keeps, beside the best.
        resume: a checkpoint to go on from; "auto" is the newest in save_dir, if there is one.
        seed, compile: of all that is random in updates, not in loaders; whether to compile the step with `ft.jit`.
        callbacks: functions (event, trainer); events are "update", "eval", "epoch", "save", "end".
        loggers: things with a method `log(record)`.
        nonfinite: an update that is not finite changes no parameter. Where no loss scale expects it, "raise" is a
            NonFiniteError at the next look, and "skip" goes on.
        max_time, short_window, save_async, metrics: seconds after which `train()` ends; for what there is not yet.

    Raises:
        ValueError, TypeError, NotImplementedError: an argument is not what it should be, or not what there is yet.
        CheckpointError: `resume` does not fit.
    """

    def __init__(
        self,
        model: nn.Module | Model,
        optimizer: GradientTransformation | Optimizer,
        train_loader: Iterable[object],
        val_loader: Iterable[object] | None = None,
        scheduler: object = None,
        device: torch.device | str | None = None,
        *,
        loss_fn: Callable[..., object] | None = None,
        objective: Callable[[nn.Module, object], object] | None = None,
        max_epochs: int | None = 10,
        max_steps: int | None = None,
        grad_accum_steps: int = 1,
        max_grad_norm: float | None = None,
        use_amp: bool = False,
        precision: PrecisionLike | Precision = None,
        log_interval: int = 100,
        eval_interval: int | None = None,
        save_dir: str | os.PathLike[str] | None = None,
        save_interval: int | None = None,
        keep: int = 3,
        resume: str | os.PathLike[str] | None = None,
        seed: int = 0,
        compile: bool = False,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        nonfinite: Literal["raise", "skip"] = "raise",
        short_window: Literal["weighted"] = "weighted",
        save_async: bool = False,
        max_time: float | None = None,
        metrics: object = None,
    ) -> None:
        check_supported(nonfinite, short_window, save_async, metrics)
        intervals = log_interval, eval_interval, save_interval, grad_accum_steps
        self.cadence = Cadence(max_epochs, max_steps, *intervals, val_loader is not None).checked(max_time, keep)
        self.model = model if isinstance(model, Model) else functionalize(model)
        self.device = place_model(self.model, device)
        self.precision = choose_precision(precision, use_amp, self.device)
        self.loss = choose_loss(self.model, loss_fn, objective)
        self.driver = choose_driver(optimizer, scheduler, self.model.module)
        self.optimizer, self.seed, self.max_grad_norm, self.max_time = optimizer, seed, max_grad_norm, max_time
        step = train_step(self.loss, self.driver.tx, precision=self.precision, max_grad_norm=max_grad_norm)
        self.step = jit(step) if compile else step
        self.state = TrainState.create(self.model, self.driver.tx, seed=seed, precision=self.precision)

        self.feed = Feed(train_loader, self.device)
        self.evaluation = Evaluation(self.loss, val_loader, self.device, policy(self.precision))
        self.journal = Journal(strict=nonfinite == "raise" and not policy(self.precision).scaled)
        self.progress, self.console, self.callbacks = Progress(), Console(), list(callbacks)
        self.history = self.progress.history  # the records so far
        self.run = None if save_dir is None else RunDirectory(save_dir, keep)
        self.loggers = [*([self.run.rows] if self.run else []), *loggers]
        self._stop, self._deadline = Stop(), math.inf
        self._better, self._saved = False, self._where()  # the best is yet to be saved; where the run was when saved
        if (path := choose_checkpoint(resume, self.run, self.console.say)) is not None:
            self.load_checkpoint(path)

    @property
    def updates(self) -> int:
        """Updates so far, skipped ones too."""
        return int(self.state.step)

    @property
    def epoch(self) -> int:
        """The current epoch, from 1."""
        return self.feed.place.epoch + 1

    # --- the loop

    def train(self) -> None:
        """Train to the limits, from wherever the run stands.

        SIGINT, SIGTERM and SIGUSR1 end it at the next boundary: it is saved, and the process exits with 130 after
        Ctrl-C and 143 after the others. A second Ctrl-C aborts.

        Raises:
            SystemExit, NonFiniteError: a signal came; an update was not finite.
        """
        self._deadline = math.inf if self.max_time is None else time.monotonic() + self.max_time
        with ExitStack() as stack:
            self._stop = stack.enter_context(stop_on_signals())
            stack.callback(self.console.close)
            stack.callback(self._write_back)
            if self.run:
                stack.enter_context(self.run.locked())
            self._announce()
            stack.callback(self.feed.close)
            self.feed.open(replay=not self._over())
            self._begin_epoch()
            while not self._at_boundary():
                self._update()
            if self.run and self._saved != self._where():
                self.save_checkpoint(is_best=self._better)
            self._emit("end")
        if self._stop:
            self.console.stopped(self.updates, saved=self.run is not None)
        self._stop.exit()

    def _update(self) -> None:
        """One window of batches, one update."""
        k = self.cadence.grad_accum_steps
        before, state = self.updates, self.driver.before(self.state)
        self.state, metrics = update_from(self.step, state, self.feed.window(k), whole=k == 1)
        self.feed.mark()
        if self.updates > before:
            self.journal.add(self.updates, self.epoch, self.driver.after(metrics))
            self.console.advance()
            self._emit("update")

    def _at_boundary(self) -> bool:
        """Do what is due between two updates. True if the run ends here."""
        if self.journal.pending and (self.cadence.log_due(self.updates, self.feed.place) or self._over()):
            self.console.log(self._record(self.journal.read(self.feed, self.state.guard, self.max_grad_norm)))
        if not self._stop and self.cadence.validation_due(self.updates, self.feed.place, self.progress.validated):
            self._validate()
        if not self._stop and self.feed.place.exhausted:
            self._emit("epoch")
            self.feed.finish_epoch()
            self._begin_epoch()
        due = self._better or self.cadence.save_due(self.updates, self.feed.place)
        if self.run and due and not self._stop and self._saved != self._where():
            self.save_checkpoint(is_best=self._better)
        return self._over()

    def _over(self) -> bool:
        limit = self.cadence.over(self.updates, self.feed.place)
        return bool(self._stop) or limit or time.monotonic() >= self._deadline

    def _begin_epoch(self) -> None:
        if not self._over():
            updates = self.cadence.updates_in_epoch(self.updates, self.feed.place, self.feed.length)
            self.console.epoch(self.epoch, self.cadence.max_epochs, *updates)

    def _emit(self, event: str) -> None:
        for callback in self.callbacks:
            callback(event, self)

    # --- looking

    def evaluate(self) -> dict[str, float]:
        """The mean loss over val_loader as `loss`, and the means of what else the loss logs. Changes nothing."""
        return self.evaluation.measure(self.state)

    def _validate(self) -> None:
        self.journal.check()
        began = time.perf_counter()
        result = self.evaluation.measure(self.state, lambda: self._stop)
        if not self._stop:
            self.driver.validated(result["loss"])
            self._better |= (better := self.progress.validation(self.updates, result["loss"]))
            numbers = {f"val_{name}": x for name, x in result.items()}
            record = self._record({**numbers, "seconds": time.perf_counter() - began})
            self.console.validation(record, self.progress.best, better)
            self._emit("eval")

    def _record(self, numbers: Record) -> Record:
        record = {"step": self.updates, "epoch": self.epoch, **numbers}
        self.history.append(record)
        for logger in self.loggers:
            logger.log(record)
        self.journal.restart(self.feed)
        return record

    def _announce(self) -> None:
        self.console.say(header(str(self.device), self.precision, self.seed, tree.size(self.state.params)))
        if self._over():
            self.console.say(f"nothing to do: the run ends at update {self.updates:,}, and that is where it stands")
        if self.run:
            self.run.begin(as_config(vars(self) | self.cadence._asdict(), self.driver.config), self.history)

    # --- saving

    def save_checkpoint(self, is_best: bool = False) -> Path:
        """Write a checkpoint of the last boundary to the run's directory, ./checkpoints if it has none.

        Args:
            is_best: as `best_model.pt` too.

        Raises:
            CheckpointError: it could not be written; what was there before is there still.
            NonFiniteError: an update since the last look was not finite.
        """
        check("Trainer.save_checkpoint", self.state.step)
        self.journal.check()
        meta = self.progress.to_meta(self.feed.here(), self.driver.outline) | self.driver.to_meta()
        self.driver.write_back(self.state)
        path = (self.run or RunDirectory("checkpoints")).save(self.updates, self.state, meta, is_best)
        self._saved, self._better = self._where(), False
        self.console.saved(self.epoch, self.updates, path, is_best)
        self.journal.restart(self.feed)
        self._emit("save")
        return path

    def load_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint: `train()` then does what the saved run would have done. A failure changes nothing.

        Raises:
            CheckpointError: the file is not there, is damaged, or is of another model or optimizer.
        """
        contents = checkpoint.read(path)
        progress, place = read_progress(contents, self.driver.outline)
        self.state = self.driver.load(contents, checkpoint.rebuild(contents, self.state))
        self.progress, self.history, self.journal = progress, progress.history, Journal(self.journal.strict)
        self.feed.go(place)
        resumed = self.run and self.run.protect(contents.path)  # it is one of the run's own
        self._better, self._saved = False, self._where() if resumed else None
        self.model.write_back(self.state.params, self.state.buffers, self.state.frozen)
        self.console.resumed(contents.path, self.updates, self.epoch, place.consumed)

    def _write_back(self) -> None:
        with suppress(RuntimeError):  # a compiled call that failed has consumed the state
            check("Trainer.train", self.state.step)
            self.model.write_back(self.state.params, self.state.buffers)
            self.driver.write_back(self.state)

    def _where(self) -> object:
        place = self.feed.place
        return self.updates, place.epoch, place.consumed, place.exhausted, len(self.history)
