"""The mean loss over a loader, without a trace: no leaf of the state, no random stream, no training flag changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from functrain.bridge.modules import ModelLoss
from functrain.counter import wide
from functrain.loss import run
from functrain.precision import Precision
from functrain.run.feed import known_length, to_device
from functrain.run.streams import capture, restore, streams
from functrain.state import TrainState
from functrain.window import casts


class Evaluation:
    """The mean of a loss over a loader.

    Args:
        loss: the loss that is trained with; its module is in eval mode while it is measured.
        loader: an iterable of batches; None has nothing to measure on.
        device: where the batches go.
        chosen: the precision policy.

    Raises:
        ValueError: the loader is known to be empty.
    """

    def __init__(
        self, loss: ModelLoss, loader: Iterable[object] | None, device: torch.device, chosen: Precision
    ) -> None:
        if loader is not None and known_length(loader) == 0:
            raise ValueError("Trainer: the validation loader is empty; hint: val_loader=None trains without validation")
        self.loss, self.loader, self.device, self.chosen = casts(loss.eval(), chosen), loader, device, chosen

    def measure(self, state: TrainState, stop: Callable[[], object] = lambda: False) -> dict[str, float]:
        """sum / weight of the loss over all batches as `loss`, and the same of what it logs.

        Args:
            state: whose parameters and buffers are measured.
            stop: asked before every batch; once it says yes there is no result: an empty dict.

        Raises:
            ValueError: there is no loader, or it yields nothing.
        """
        if self.loader is None:
            raise ValueError("Trainer.evaluate: there is no val_loader")
        sources = streams(self.loader)
        before = capture(sources)
        try:
            with torch.no_grad():
                sums, weight = self._sums(state, self.loader, stop)
        finally:
            restore(before, sources)
        if stop():
            return {}
        if not sums:
            raise ValueError("Trainer: the validation loader yields no batch")
        return {name: (total / weight).item() for name, total in sums.items()}

    def _sums(
        self, state: TrainState, loader: Iterable[object], stop: Callable[[], object]
    ) -> tuple[dict[str, Tensor], Tensor]:
        weight = torch.zeros((), dtype=wide(self.device), device=self.device)
        sums: dict[str, Tensor] = {}
        for batch in loader:
            if stop():
                break
            out = run(self.loss, state.params, state.frozen, state.buffers, to_device(batch, self.device))
            weight = weight + out.weight
            for name, x in {"loss": out.sum, **{name: x * out.weight for name, x in out.logs.items()}}.items():
                sums[name] = sums.get(name, 0) + x.to(weight)
        return sums, weight
