"""The example of the one import: a plain loop of PyTorch's."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from functrain import optim

Load = Callable[[str], ModuleType]


def test_the_loop_ends_at_the_weights_of_torch(load: Load) -> None:
    train = load("drop_in_torch").train
    theirs, expected, expected_losses = train(torch.optim)
    ours, weights, losses = train(optim)
    assert type(ours).__module__.startswith("functrain.")
    torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-10, atol=0)
    torch.testing.assert_close(ours.state_dict()["state"], theirs.state_dict()["state"], rtol=1e-8, atol=1e-12)


def test_the_loop_trains_in_float16_as_with_torch(load: Load) -> None:
    train = load("drop_in_torch").train
    expected, losses = (train(module, mixed=True)[2] for module in (torch.optim, optim))
    assert losses[-20:].mean() < 0.6 * losses[:20].mean()
    torch.testing.assert_close(losses[-20:].mean(), expected[-20:].mean(), rtol=0.01, atol=0)


def test_the_program_prints_what_it_shows(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load("drop_in_torch").main()
    shown = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(shown) == ["float64", "float16", "from_torch", "create_optimizer", "as_transform"]
    assert float(shown["float64"].split("weights ")[1].split()[0]) < 1e-10
    assert shown["from_torch"] == "AdamW after 200 updates"
    assert "3 decay by 0.1, 4 decay by 0.0" in shown["create_optimizer"]
    smallest, *_, greatest = losses = json.loads(shown["as_transform"].removeprefix("loss after an update "))
    assert min(losses) < smallest < greatest
