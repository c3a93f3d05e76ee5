"""The mean loss and metrics over a loader, without a trace: no leaf of the state, no random stream, no training flag
changes, whatever is raised on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from functrain.bridge.modules import ModelLoss
from functrain.data import to_device
from functrain.precision import Precision
from functrain.run.metrics import Means, Metrics, distinct
from functrain.run.place import known_length
from functrain.run.streams import capture, restore, streams
from functrain.state import TrainState
from functrain.window import casts


class Evaluation:
    """The mean of a loss over a loader, and metrics of the module's output.

    Args:
        loss: the loss that is trained with; its module is in eval mode while it is measured.
        loader: an iterable of batches; None has nothing to measure on.
        device: where the batches go.
        chosen: the precision policy.
        metrics: by name, functions (output, batch) of what the module's last call on a batch returned, or objects with
            update(output, target), compute() and reset(). A function returns a mean, a number or a 0-dim tensor, which
            weighs the batch's length, or (sum, weight).

    Raises:
        ValueError: the loader is known to be empty, or there are metrics and no loader.
        TypeError, ValueError: a metric or its name is not what it should be.
    """

    def __init__(
        self,
        loss: ModelLoss,
        loader: Iterable[object] | None,
        device: torch.device,
        chosen: Precision,
        metrics: Mapping[str, object] | None = None,
    ) -> None:
        if loader is not None and known_length(loader) == 0:
            raise ValueError("Trainer: the validation loader is empty; hint: val_loader=None trains without validation")
        if loader is None and metrics:
            raise ValueError("Trainer: metrics are measured in validations; hint: val_loader=")
        self.module, self.loss = loss.model.module, casts(loss.eval(), chosen)
        self.loader, self.device = loader, device
        self.metrics = Metrics({} if metrics is None else metrics, device)

    def measure(self, state: TrainState, stop: Callable[[], object] = lambda: False) -> dict[str, float]:
        """sum / weight over all batches: of the loss as `loss`, of each metric, and of what the loss logs.

        Metrics see the module as the loss does: with the state's tensors, in eval mode.

        Args:
            state: whose parameters and buffers are measured.
            stop: asked before every batch; once it says yes there is no result: an empty dict.

        Raises:
            ValueError: there is no loader, or it yields nothing.
            TypeError, ValueError: a metric is not what it should be.
        """
        if self.loader is None:
            raise ValueError("Trainer.evaluate: there is no val_loader")
        sources = streams(self.loader)
        before = capture(sources)
        losses, means = Means(self.device), Means(self.device)
        try:
            with torch.no_grad(), self.metrics.gathering():
                for batch in self.loader:
                    if stop():
                        break
                    self._add(state, to_device(batch, self.device), losses, means)
                if stop():
                    return {}
                found = losses.read()
                if not found:
                    raise ValueError("Trainer: the validation loader yields no batch")
                numbers = distinct(means.read(), self.metrics.compute())
        finally:
            restore(before, sources)
        return {"loss": found.pop("loss"), **distinct(numbers, found)}

    def _add(self, state: TrainState, batch: object, losses: Means, means: Means) -> None:
        names = self.metrics.names
        with self.loss.hold(state.params, state.frozen, state.buffers) as evaluate:
            with self.metrics.watching(self.module) as outputs:
                out = evaluate(batch)
            distinct(dict.fromkeys(names), dict.fromkeys(out.logs))  # a clash is told at the first batch, not the last
            self.metrics.add(means, outputs, batch)
        losses.add("loss", out.sum, out.weight)
        for name, x in out.logs.items():
            losses.add_mean(name, x, out.weight)
