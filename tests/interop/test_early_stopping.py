"""Lightning stops where EarlyStopping does."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from functrain.run.early import EarlyStopping

pytestmark = [
    pytest.mark.long,  # it needs the extra `interop`, whose imports take seconds
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
]

EIGHTHS = st.integers(-16, 16).map(lambda n: n / 8)  # exact in float32, in which Lightning compares


@given(
    values=st.lists(EIGHTHS | st.sampled_from([float("nan"), float("inf"), -float("inf")]), max_size=20),
    patience=st.integers(1, 5),
    min_delta=st.sampled_from([0.0, 0.125, 0.5, 2.0]),
    mode=st.sampled_from(["min", "max"]),
)
def test_after_every_validation_it_says_what_lightning_says(
    values: list[float], patience: int, min_delta: float, mode: Literal["min", "max"]
) -> None:
    from lightning.pytorch.callbacks import EarlyStopping as Theirs

    theirs = Theirs("val_loss", min_delta, patience, mode=mode, check_finite=False)
    ours = EarlyStopping(patience, min_delta, "val_loss", mode).checked()
    history: list[dict[str, object]] = []
    for step, value in enumerate(values, 1):
        history += [{"step": step, "epoch": 1, "loss": 0.0}, {"step": step, "epoch": 1, "val_loss": value}]
        expected, _ = theirs._evaluate_stopping_criteria(torch.tensor(value))
        assert (ours.reason(history) is not None) is expected
