"""What of a run is on disk, and what is yet to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from functrain.checkpoint import CheckpointError
from functrain.run.progress import Progress
from functrain.run.saving import Order, Saved, Saver
from functrain.state import TrainState


class Keeper:
    """Remembers where a run was when it was saved, over a saver.

    Args:
        saver: who writes.
        progress: what the run remembers; its best is what is on disk.
        where: where the run stands, if that is on disk or not worth it; None if it is to be saved.
    """

    def __init__(self, saver: Saver, progress: Progress, where: object) -> None:
        self.saver, self.progress = saver, progress
        self.saved = where  # where the run was when it was last saved; None: it has to be
        self.better = False  # the best so far is yet to be saved as such
        self._best = self._best_before = progress.best  # of the last save, and of the one before
        self._lost: tuple[object, float] | None = None  # where a best was, and how good, that could not be written

    def wants(self, where: object, due: bool) -> bool:
        """True if there is something to save where the run stands.

        Args:
            where: that place.
            due: it is time, if the run has moved since.
        """
        if self._lost and self._lost[0] == where:  # it is still here
            self.better, self.progress.best = True, self._lost[1]
        return self.better or (due and self.saved != where)

    def save(
        self, state: TrainState, meta: Mapping[str, object], order: Order, where: object, wait: bool
    ) -> Saved | None:
        """Save a state that the run has where it stands; see `Saver.save`."""
        saved = self.saver.save(state, meta, order, wait)
        self.saved, self.better = where, self.better and not order.best
        self._best_before, self._best, self._lost = self._best, self.progress.best, None
        return saved

    def hear(self, wait: bool) -> Saved | None:
        """How the save in the background ended, told once; see `Saver.result`.

        What could not be written is still to be saved. If it was the best, and the run is not there any more, the best
        is again what is on disk.
        """
        try:
            return self.saver.result(wait)
        except Exception:
            if self._best != self._best_before:
                self._lost = self.saved, self._best
            self.saved, self._best = None, self._best_before
            self.progress.best = self._best
            raise

    def close(self, say: Callable[[str], object]) -> None:
        """Wait for the save in the background, and let its thread go; `say` hears what went wrong with it."""
        try:
            self.hear(wait=True)
        except CheckpointError as error:  # there is another error already, or it would have been heard before
            say(str(error))
        finally:
            self.saver.close()
