"""The loop: iterate, update, look now and then, save, stop cleanly.

Between two updates a run stands at a **boundary**. There alone it logs, validates, saves and stops, and what is saved
is all that the rest depends on: k updates, and the others in a new process, give the same bits as all in one.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from functrain.bridge.modules import Model
from functrain.checkpoint import CheckpointError
from functrain.donation import check
from functrain.logging import Record
from functrain.run.cadence import Cadence
from functrain.run.directory import RunDirectory
from functrain.run.driver import Driver
from functrain.run.early import EarlyStopping
from functrain.run.evaluation import Evaluation
from functrain.run.feed import Feed
from functrain.run.journal import Journal
from functrain.run.keeper import Keeper
from functrain.run.nonfinite import NonFiniteError, Rollbacks, applied_updates
from functrain.run.progress import Progress
from functrain.run.recipe import update_from
from functrain.run.saving import Order, Saved, Saver
from functrain.run.stopping import Stop, stop_on_signals
from functrain.run.streams import own_streams
from functrain.run.telling import Teller
from functrain.state import TrainState
from functrain.step import Step


@dataclass(kw_only=True, eq=False, repr=False)
class Loop(ABC):
    """A run: what it is made of, and where it stands.

    The parts are a Trainer's arguments, taken apart; `functrain/trainer.py` puts them together.
    """

    model: Model
    step: Step
    state: TrainState
    driver: Driver
    feed: Feed
    cadence: Cadence
    evaluation: Evaluation
    journal: Journal
    teller: Teller
    saver: Saver
    rollbacks: Rollbacks
    run: RunDirectory | None
    early_stopping: EarlyStopping | None
    max_grad_norm: float | None
    max_time: float | None

    def __post_init__(self) -> None:
        self.progress = Progress()
        self._stop, self._deadline, self._ending = Stop(), math.inf, ""
        self._keeper = Keeper(self.saver, self.progress, self._where())
        self._resumed: Path | None = None
        self._training = False

    @property
    def updates(self) -> int:
        """Updates so far, skipped ones too."""
        return int(self.state.step)

    @property
    def epoch(self) -> int:
        """The current epoch, from 1."""
        return self.feed.place.epoch + 1

    @property
    def history(self) -> list[Record]:
        """The records so far."""
        return self.progress.history

    @property
    def averaged(self) -> TrainState:
        """The state with the average of the parameters in their place, where there is one: what is validated."""
        return self.driver.averaged(self.state)

    # --- the loop

    def train(self) -> None:
        """Train to the limits, from wherever the run stands.

        SIGINT, SIGTERM and SIGUSR1 end it at the next boundary: it is saved, and the process exits with 130 after
        Ctrl-C and 143 after the others. A second Ctrl-C aborts.

        Raises:
            RuntimeError: it is called from within; somebody else is writing to the directory.
            SystemExit: a signal came.
            NonFiniteError: an update was not finite; see `nonfinite`.
            CheckpointError: a checkpoint could not be written, by now in the background, too.
        """
        if self._training:
            raise RuntimeError("Trainer.train: the run is training; hint: a callback ends it with stop()")
        self._deadline = math.inf if self.max_time is None else time.monotonic() + self.max_time
        self._ending = self._early()
        with ExitStack() as stack:
            if self.run:
                stack.enter_context(self.run.locked())
            self._stop = stack.enter_context(stop_on_signals())
            stop_saving = partial(self._keeper.close, self.teller.console.say)
            for leave in (self.teller.close, self._leave, stop_saving, self.feed.close):
                stack.callback(leave)
            self._training = True
            self._begin()
            began = self.updates
            while not self._at_boundary():
                self._update()
            self._finish(began)
        if self._stop:
            self.teller.console.stopped(self.updates, saved=self.run is not None)
        self._stop.exit()

    def _finish(self, began: int) -> None:
        """Save what is not saved yet, also if the save before it failed, and bring the weights home."""
        failed = None
        try:
            self._tell_saved(self._keeper.hear(wait=True))
        except CheckpointError as error:
            failed = error
        self._finite()
        if self.run and self._keeper.wants(self._where(), due=True):
            self._tell_saved(self._save(self._keeper.better, self.progress.best, wait=True))
        if failed:
            raise failed
        self._write_back()
        self._training = False  # what a callback does to the module now stays
        if self.updates > began:
            self.teller.ended(self.updates, self._ending)
        self._emit("end")

    def _leave(self) -> None:
        if self._training:
            self._training = False
            self._write_back()

    def _update(self) -> None:
        """One window of batches, one update."""
        k, drop = self.cadence.grad_accum_steps, self.cadence.short_window == "drop"
        before, state = self.updates, self.driver.before(self.state)
        window = self.feed.window(k, self.cadence.carried_until)
        self.state, metrics = update_from(self.step, state, window, k, drop)
        self.feed.mark()
        if updated := (now := self.updates) > before:
            self.journal.add(now, self.epoch, self.driver.after(metrics))
        self.feed.look()
        if updated:
            self.teller.console.advance()
            self._emit("update")
        elif drop and self.feed.place.exhausted:
            self.cadence.check_window(self.feed.place.consumed)

    def _at_boundary(self) -> bool:
        """Do what is due between two updates. True if the run ends here."""
        now, place, validated = self.updates, self.feed.place, None
        self._tell_saved(self._keeper.hear(wait=False))
        self._log()
        if not self._stop and self.cadence.validation_due(now, place, self.progress.validated):
            validated = self._validate()
        if not self._stop and place.ended:
            self._emit("epoch")
            self.feed.finish_epoch()
            self._begin_epoch()
        saved, due = None, self.cadence.save_due(now, place.ended)
        if self.run and self._keeper.wants(self._where(), due) and not self._stop and self._finite():
            saved = self._save(self._keeper.better, self.progress.best)
        if validated:
            self.teller.console.validation(*validated, saved.names if saved else ())
        self._tell_saved(saved, aloud=not validated)
        return self._over()

    def _over(self) -> bool:
        limit = self.cadence.over(self.updates, self.feed.place)
        return bool(self._stop) or limit or bool(self._ending) or time.monotonic() >= self._deadline

    def _early(self) -> str:
        return (self.early_stopping and self.early_stopping.reason(self.history)) or ""

    def _begin_epoch(self) -> None:
        if not self._over():
            updates = self.cadence.updates_in_epoch(self.updates, self.feed.place, self.feed.length)
            self.teller.console.epoch(self.epoch, self.cadence.max_epochs, *updates)

    @abstractmethod
    def _emit(self, event: str) -> None:
        """Tell those who listen."""

    def _validate(self) -> tuple[Record, float, bool] | None:
        self._finite()
        began = time.perf_counter()
        result = self.evaluation.measure(self.averaged, lambda: self._stop)
        if self._stop:
            return None
        self.driver.validated(result["loss"])
        self._keeper.better |= (better := self.progress.validation(self.updates, result["loss"]))
        numbers = {f"val_{name}": x for name, x in result.items()}
        record = self._record({**numbers, "seconds": time.perf_counter() - began})
        self._ending = self._ending or self._early()
        self._emit("eval")
        return record, self.progress.best, better

    def _log(self) -> None:
        """The record of the last update, if one is due."""
        due = self.journal.pending and self.cadence.log_due(self.updates, self.feed.place)
        if (due or self.journal.full) and self._finite() and due:
            numbers = self.journal.read(self.feed, self.state.guard, self.max_grad_norm)
            self.teller.console.log(self._record(numbers))

    def _finite(self) -> bool:
        """Look at the updates since the last look. False if the run had to go back to a checkpoint."""
        try:
            self.journal.check()
        except NonFiniteError as error:
            if not self.rollbacks.wanted:
                raise
            self._tell_saved(self._keeper.hear(wait=True))
            self.state = self.rollbacks.go_back(self.saver.last, self.driver, self.state, error, self.history)
            self.journal = Journal(self.journal.tolerance)
            self._record(self.teller.gone_back(error, self.saver.last, applied_updates(self.state)))
            return False
        return True

    def _record(self, numbers: Record) -> Record:
        record = {"step": self.updates, "epoch": self.epoch, **numbers}
        self.history.append(record)
        self.teller.record(record)
        self.journal.restart(self.feed)
        return record

    def _begin(self) -> None:
        """Take up the place, and say so."""
        done = self._over() or self.cadence.without_batches(self.updates, self.feed.place)
        own = ", ".join(own_streams(self.model.module)) if self._resumed else ""
        more = [f"the module draws from {own}, which no checkpoint has"] if own else []
        different = self.feed.open(replay=not done, more=more)
        self.journal.restart(self.feed)
        new = self._resumed or not self.updates  # and not a further train() of the same run
        path, resumed, self._resumed = self.run.path if self.run and new else None, self._resumed, None
        self.teller.begin(self.history, path, resumed, self.epoch, self.feed.place.consumed, different)
        if self._over():
            self.teller.nothing_to_do(self.updates, self._ending)
        if self.rollbacks.wanted and self.saver.last is None:
            self._tell_saved(self._save(wait=True))
        self._begin_epoch()

    def _save(self, best: bool = False, least: float = -math.inf, wait: bool = False) -> Saved | None:
        """The checkpoint, or None while it is being written."""
        check("Trainer.save_checkpoint", self.state.step)
        self._tell_saved(self._keeper.hear(wait=True))
        meta = self.progress.to_meta(self.feed.here(), self.driver.outline) | self.driver.to_meta()
        self.driver.write_back(self.state)
        order = Order(self.updates, self.feed.last_epoch, best, least)
        saved = self._keeper.save(self.state, meta, order, self._where(), wait)
        if saved:
            self.journal.restart(self.feed)
        return saved

    def _tell_saved(self, saved: Saved | None, aloud: bool = True) -> None:
        """Let everybody know of a checkpoint that is on disk."""
        if saved and aloud:
            self.teller.console.saved(saved.order.epoch, saved.order.step, saved.path, saved.order.best)
        if saved:
            self._emit("save")

    def _write_back(self) -> None:
        try:
            check("Trainer.train", self.state.step)
        except RuntimeError:  # a compiled call that failed has consumed the state
            return
        self.model.write_back(self.state.params, self.state.buffers)
        self.driver.write_back(self.state)

    def _where(self) -> object:
        place = self.feed.place
        return self.updates, place.epoch, place.consumed, place.exhausted, len(self.history)
