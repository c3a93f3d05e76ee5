"""The Trainer: a run is put together from what the user has.

    trainer = Trainer(module, tx, train_loader, val_loader, loss_fn=F.cross_entropy, save_dir="runs/a")
    trainer.train()

All arithmetic is the step's. The loop is `run/loop.py`, and what it goes by has modules of its own: the data and the
place in it (`feed`), when what is due (`cadence`), what updates computed (`journal`), validation, the run's directory,
signals, what a person sees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from functrain import checkpoint, tree
from functrain.base import GradientTransformation
from functrain.bridge.modules import Model, functionalize
from functrain.compile import jit
from functrain.console import Console, header
from functrain.loggers import as_logger
from functrain.logging import Logger
from functrain.precision import Precision, PrecisionLike, policy
from functrain.run.cadence import Cadence, ShortWindow
from functrain.run.directory import RunDirectory, check_path, choose_checkpoint
from functrain.run.driver import choose_driver
from functrain.run.early import EarlyStopping, early
from functrain.run.evaluation import Evaluation
from functrain.run.feed import Feed
from functrain.run.journal import Journal
from functrain.run.keeper import Keeper
from functrain.run.loop import Loop
from functrain.run.nonfinite import Policy, Rollbacks, Tolerance
from functrain.run.progress import read_progress
from functrain.run.recipe import as_config, check_list, check_loader, choose_loss, choose_precision, place_model
from functrain.run.saving import Saver
from functrain.run.telling import Teller
from functrain.state import TrainState
from functrain.step import train_step

Callback = Callable[[str, "Trainer"], object]
AnyOptimizer = GradientTransformation | Optimizer


class Trainer(Loop):
    """Drives a step over a loader.

    Args:
        model: a module, or a functionalized one. It holds the trained weights after `train()`.
        optimizer: a transformation with its own schedule; or a torch optimizer, which holds the run's state at each
            save and at the end; or a function that makes either from the number of updates in the whole run.
        train_loader, val_loader: iterables of batches, iterated once an epoch, and once a validation.
        scheduler: torch's over the torch optimizer, or a function (optimizer, updates in all) that makes it; it steps
            after each applied update, or, on a plateau, each validation.
        device: where to train; by default where the module is.
        loss_fn: a criterion: `loss_fn(module(*inputs), target)` for batches `(*inputs, target)`.
        objective: instead, objective(module, batch), returning what a loss returns (`functrain/loss.py`). With neither
            the module returns its loss, or something with the entry or attribute `loss`.
        max_epochs, max_steps, max_time: epochs, updates (skipped ones too) and seconds of `train()` that end the run.
        grad_accum_steps, short_window: batches an update, and what becomes of fewer at an epoch's end: "weighted" by
            what they are, "drop", or "carry" into the next epoch.
        max_grad_norm: gradients of a greater global norm are scaled down to it.
        precision: None or "fp32", "bf16", "fp16", or a Precision; use_amp chooses "bf16" where it is native, or "fp16".
        log_interval, eval_interval, save_interval: updates a record, a validation, a checkpoint; None is once an epoch.
        save_dir, keep, save_async: the run's directory, None writes nothing; how many checkpoints it keeps, beside the
            best; whether to write them while training goes on.
        resume: a checkpoint to go on from; "auto" is the newest in save_dir, if there is one.
        seed, compile: of all that is random in updates, not in loaders; whether to compile the step with `ft.jit`.
        callbacks: functions (event, trainer); events are "update", "eval", "epoch", "save", "end".
        loggers: things with a method `log(record)`, or "tensorboard", "wandb".
        nonfinite, max_skips: a loss or gradient that is not finite changes no parameter, and is a NonFiniteError at the
            next look ("raise"), or after more than max_skips in a row ("skip", and always with fp16), or makes the run
            go back to its last checkpoint's parameters ("rollback").
        metrics: {name: fn(output, batch)} or torchmetrics objects, measured in validations.
        ema_decay: in [0, 1): validations measure an average of the parameters, e ← decay e + (1 - decay) θ.
        early_stopping: validations in a row without a better one that end the run, or an EarlyStopping.

    Raises:
        ValueError, TypeError: an argument is not what it should be.
        CheckpointError: `resume` does not fit.
    """

    def __init__(
        self,
        model: nn.Module | Model,
        optimizer: AnyOptimizer | Callable[[int], AnyOptimizer],
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
        loggers: Sequence[Logger | str] = (),
        nonfinite: Policy = "raise",
        max_skips: int = 25,
        short_window: ShortWindow = "weighted",
        save_async: bool = False,
        max_time: float | None = None,
        metrics: Mapping[str, object] | None = None,
        ema_decay: float | None = None,
        early_stopping: EarlyStopping | int | None = None,
    ) -> None:
        self.device = place_model(model := model if isinstance(model, Model) else functionalize(model), device)
        self.precision, self.loss = (
            choose_precision(precision, use_amp, self.device),
            choose_loss(model, loss_fn, objective),
        )
        check_loader("train_loader", train_loader)
        if val_loader is not None:
            check_loader("val_loader", val_loader)
        check_list("callbacks", callbacks)
        check_list("loggers", loggers)
        self.nonfinite, self.ema_decay, self.callbacks = nonfinite, ema_decay, list(callbacks)
        chosen, feed = policy(self.precision), Feed(train_loader, self.device)
        intervals = log_interval, eval_interval, save_interval, grad_accum_steps
        cadence = Cadence(max_epochs, max_steps, *intervals, short_window, val_loader is not None)
        total = cadence.checked(feed.length, max_time, keep=keep, max_skips=max_skips).total_updates(feed.length)
        driver, self.optimizer = choose_driver(optimizer, scheduler, model.module, total, ema_decay)
        stopping = early(early_stopping)
        if stopping and stopping.monitor.startswith("val_") and val_loader is None:
            raise ValueError(
                f"Trainer: early_stopping looks at {stopping.monitor!r}, and validates nothing; hint: val_loader="
            )
        step = train_step(self.loss, driver.tx, precision=self.precision, max_grad_norm=max_grad_norm)
        state = TrainState.create(model, driver.tx, seed=seed, precision=self.precision)
        run = None if save_dir is None else RunDirectory(save_dir, keep)
        given = [as_logger(x, run.path if run else None) for x in loggers]
        super().__init__(
            model=model,
            step=jit(step) if compile else step,
            state=state,
            driver=driver,
            feed=feed,
            cadence=cadence,
            evaluation=Evaluation(self.loss, val_loader, self.device, chosen, metrics),
            journal=Journal(Tolerance.of(nonfinite, chosen.scaled, max_skips)),
            teller=Teller(Console(), [*([run.rows] if run else []), *given]),
            saver=Saver(run, save_async),
            rollbacks=Rollbacks(nonfinite, run),
            run=run,
            early_stopping=stopping,
            max_grad_norm=max_grad_norm,
            max_time=max_time,
        )
        self._introduce()
        if (path := choose_checkpoint(resume, run, self.teller.console.say)) is not None:
            self.load_checkpoint(path)

    def stop(self, reason: str = "a callback asked for it") -> None:
        """End `train()` at the next boundary, saved. A later `train()` goes on."""
        self._ending = reason

    def evaluate(self) -> dict[str, float]:
        """The mean `loss` over val_loader, metrics and logs, of the averaged parameters if there are such. No trace."""
        return self.evaluation.measure(self.averaged)

    def save_checkpoint(self, is_best: bool = False) -> Path:
        """Write a checkpoint of the last boundary to the run's directory, ./checkpoints if it has none.

        Args:
            is_best: as `best_model.pt` too. In any case it is on disk when this returns, with save_async too.

        Raises:
            CheckpointError: it, or the last one in the background, could not be written; what was there before is
                there still.
            NonFiniteError: an update since the last look was not finite.
            RuntimeError: somebody else is writing to the directory.
        """
        self.journal.check()
        self._log()
        saved = self._save(is_best, wait=True)
        assert saved is not None  # we waited
        self._tell_saved(saved)
        return saved.path

    def load_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint: `train()` then does what the saved run would have done. A failure changes nothing.

        Raises:
            CheckpointError: the file is not there, is damaged, or is of another model or optimizer.
            RuntimeError: called from within `train()`.
            TypeError: it is no path.
        """
        check_path("Trainer.load_checkpoint: path", path)
        if self._training:
            raise RuntimeError("Trainer.load_checkpoint: the run is training; hint: load before train(), or after it")
        self._tell_saved(self._keeper.hear(wait=True))
        contents = checkpoint.read(path)
        progress, place = read_progress(contents, self.driver.outline)
        self.state = self.driver.load(contents, checkpoint.rebuild(contents, self.state))
        self.progress, self.journal = progress, Journal(self.journal.tolerance, int(self.state.guard.skipped_in_row))
        self.feed.go(place)
        here = self.saver.directory.protect(contents.path) and self.run  # it is one of the run's own
        self._keeper = Keeper(self.saver, progress, self._where() if here else None)
        self._resumed = self.saver.last = contents.path
        self.model.write_back(self.state.params, self.state.buffers, self.state.frozen)
        self._introduce()

    def _introduce(self) -> None:
        """What the first line and config.json say of the run; its seed is the state's."""
        self.seed = int(self.state.seed)
        self.teller.header = header(str(self.device), self.precision, self.seed, tree.size(self.state.params))
        if self.run:
            self.run.config = as_config(vars(self) | self.cadence._asdict(), self.driver.config)

    def _emit(self, event: str) -> None:
        for callback in self.callbacks:
            callback(event, self)
