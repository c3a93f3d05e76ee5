"""What a run does about numbers that are not finite.

An update whose loss or gradient is not finite changes no parameter: the step sees to that. What is left to decide is
when to stop trusting the run. Under a dynamic loss scale a few such updates in a row are how the scale is found;
without one the first is a fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from functrain import checkpoint
from functrain.logging import Record
from functrain.run.directory import RunDirectory
from functrain.run.driver import Driver
from functrain.state import TrainState

Policy = Literal["raise", "skip", "rollback"]
POLICIES = ("raise", "skip", "rollback")
ROLLBACKS = 3  # how often a run goes back to one checkpoint


class NonFiniteError(FloatingPointError):
    """A loss or a gradient was not finite, and nobody expected it; or too many were."""


class Tolerance(NamedTuple):
    """How much a run puts up with."""

    policy: Policy
    in_row: int  # updates in a row that may not be finite

    @classmethod
    def of(cls, policy: Policy, scaled: bool, max_skips: int) -> Tolerance:
        """The tolerance of a policy, with a loss scale or without one.

        Raises:
            ValueError: there is no such policy.
        """
        if policy not in POLICIES:
            raise ValueError(f"Trainer: nonfinite must be 'raise', 'skip' or 'rollback', got {policy!r}")
        return cls(policy, max_skips if scaled or policy == "skip" else 0)

    def complaint(self, step: int, epoch: int, loss: float, norm: float, in_row: int) -> str:
        """What is wrong with an update that was too much."""
        what = f"Trainer: update {step} in epoch {epoch} was not finite: loss {loss}, gradient norm {norm}; "
        if self.in_row == 0 and step == 1:
            return what + (
                "no update came before it; hint: look in the first batch, and in the loss for log(0), 0/0 and the like"
            )
        if self.in_row == 0:
            return what + (
                "the parameters are as before it; hint: a smaller rate, max_grad_norm=, or nonfinite='skip' to go on"
            )
        return what + (
            f"the last {in_row} updates were not, and max_skips={self.in_row}; the parameters are as before them; "
            "hint: a smaller rate, max_grad_norm=, or precision='bf16' where float16 overflows"
        )


class Rollbacks:
    """How a run goes back to a checkpoint.

    Args:
        policy: what the run does about numbers that are not finite.
        run: its directory.

    Raises:
        ValueError: the policy asks for checkpoints, and there is no directory.
    """

    def __init__(self, policy: Policy, run: RunDirectory | None) -> None:
        self.wanted = policy == "rollback"
        if self.wanted and run is None:
            raise ValueError("Trainer: nonfinite='rollback' goes back to the last checkpoint; hint: save_dir=")

    def go_back(
        self, path: Path | None, driver: Driver, now: TrainState, error: NonFiniteError, history: Sequence[Record]
    ) -> TrainState:
        """The state to go on with: the checkpoint's parameters, optimizer and buffers, and the present's counts.

        Args:
            path: the checkpoint.
            driver: what moves beside the state, and goes back too.
            now: the state that the run is in.
            error: why.
            history: the run's records; a record of going back has the entries "rolled_back" and "applied".

        Raises:
            NonFiniteError: the one given, if there is no checkpoint, or the run was there too often.
            CheckpointError: it cannot be read.
        """
        if path is None:
            raise error
        contents = checkpoint.read(path)
        saved = checkpoint.rebuild(contents, now)
        to = applied_updates(saved)
        if sum("rolled_back" in record and record.get("applied") == to for record in history) >= ROLLBACKS:
            error.add_note(f"The run went back to {path} {ROLLBACKS} times, and came to this again.")
            raise error
        return gone_back(driver.load(contents, saved), now)


def applied_updates(state: TrainState) -> int:
    """The updates that made these parameters."""
    return int(state.step) - int(state.guard.skipped)


def gone_back(saved: TrainState, now: TrainState) -> TrainState:
    """The state of a checkpoint for a run that goes on from here.

    The run goes on with other data and other random numbers: the count of attempted updates stays, and what was undone
    counts as skipped, so that `step - skipped` are the updates that made these parameters. The loss scale stays too.
    """
    undone = (now.step - saved.step).to(now.guard.skipped)
    skipped = saved.guard.skipped + undone.to(saved.guard.skipped.device)
    zero = torch.zeros_like(now.guard.skipped)
    guard = now.guard._replace(skipped=skipped, good_steps=zero, skipped_in_row=zero.clone())
    return saved._replace(step=now.step, guard=guard)
