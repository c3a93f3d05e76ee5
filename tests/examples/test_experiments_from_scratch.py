"""The comparison of optimizers: what it says lies on each other does, and an optimizer with a fault does not."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from functrain.tutorial import AdamWFromScratch
from tests.example import load

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load("experiments/from_scratch_vs_torch_vs_functrain")


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-14), (torch.float32, 1e-5)])
def test_all_four_walk_the_same_way_but_for_rounding(
    program: ModuleType, kind: str, dtype: torch.dtype, rounding: float
) -> None:
    data = program.batches(50, dtype)
    walks = {whose: program.with_optimizer(kind, whose, data, dtype) for whose in program.CLASSES[kind]}
    walks["ft.train_step"] = program.with_pure_step(kind, data, dtype)
    assert len(walks) == 4
    for losses, weights in walks.values():
        torch.testing.assert_close(weights, walks["torch.optim"][1], rtol=rounding, atol=rounding)
        assert losses == pytest.approx(walks["torch.optim"][0], rel=10 * rounding)
        assert losses[-1] < losses[0] / 2


def test_torchs_walk_is_torchs(program: ModuleType) -> None:
    data = program.batches(20, torch.float64)
    model = program.network(torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    _, weights = program.with_optimizer("AdamW", "torch.optim", data, torch.float64)
    assert torch.equal(weights[-1], nn.utils.parameters_to_vector(model.parameters()))


@pytest.mark.parametrize("fault", [dict(eps=1e-7), dict(weight_decay=0.09), dict(betas=(0.9, 0.9991))])
def test_a_hyper_parameter_that_is_a_little_off_is_seen(
    program: ModuleType, fault: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(params: object, **numbers: object) -> AdamWFromScratch:
        return AdamWFromScratch(params, **numbers | fault)

    monkeypatch.setitem(program.CLASSES["AdamW"], "from scratch", off)
    data = program.batches(20, torch.float64)
    walks = [program.with_optimizer("AdamW", whose, data, torch.float64) for whose in ("from scratch", "torch.optim")]
    assert program.apart(*walks)[-1] > 1e-7  # with the right numbers it is 7e-16


def test_equal_weights_are_a_gap_on_the_log_axis(program: ModuleType) -> None:
    v = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    w = torch.tensor([[3.0, 4.0], [3.0, 4.5]])
    gap, distance = program.apart(([], w), ([], v)).tolist()
    assert math.isnan(gap)
    assert distance == pytest.approx(0.1)
