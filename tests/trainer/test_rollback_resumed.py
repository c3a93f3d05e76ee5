"""How often a run went back is in its records, so that a resumed run counts on."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest

import functrain as ft
from functrain.run.nonfinite import NonFiniteError
from tests.trainer.test_amp import gradients, weighted

NAN = math.nan


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_nan_2_a_run_that_is_resumed_between_two_returns_counts_on(tmp_path: Path, stop: int) -> None:
    def end(event: str, trainer: ft.Trainer) -> None:
        if event == "update" and trainer.updates == stop:
            signal.raise_signal(signal.SIGTERM)

    def run(**kwargs: object) -> ft.Trainer:
        return weighted(
            gradients(1, 2, *[NAN] * 6), nonfinite="rollback", save_dir=tmp_path, save_interval=2, log_interval=1,
            max_epochs=9, **kwargs,
        )  # fmt: skip

    with pytest.raises(SystemExit):
        run(callbacks=[end]).train()
    again = run(resume="auto")
    with pytest.raises(NonFiniteError, match=r"^Trainer: update 6 in epoch 1 was not finite: loss nan, "):
        again.train()
    assert [record["step"] for record in again.history if "rolled_back" in record] == [3, 4, 5]
