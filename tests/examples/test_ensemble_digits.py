"""The example of 64 networks in one step: each is the network that torch.optim trains alone."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch

from tests.example import load

pytestmark = pytest.mark.long  # it needs the extras `examples` and `plot`


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("ensemble_digits")


def test_each_of_64_networks_is_the_one_that_torch_trains_alone(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: the network and the digits are turned into it, and nothing else."""
    network = example.network
    monkeypatch.setattr(example, "network", lambda: network().double())
    rates, (batches, _, _) = torch.logspace(-4, 0, 64, dtype=torch.float64), example.digits(30)
    batches = [(x.double(), y) for x, y in batches]
    states, losses = example.together(rates, batches)
    assert losses.shape == (30, 64)
    for i, rate in enumerate(rates):
        alone = example.alone(rate.item(), batches)
        torch.testing.assert_close({k: p[i] for k, p in states.params.items()}, alone, rtol=1e-8, atol=1e-10)


def test_networks_begin_alike_and_part_by_their_rates(example: ModuleType) -> None:
    batches, *_ = example.digits(2)
    states, losses = example.together(torch.tensor([0.1, 0.1, 0.2]), batches)
    assert losses[0, 0] == losses[0, 1] == losses[0, 2]
    weight = states.params["0.weight"]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])


def test_losses_and_accuracies_are_those_of_scikit_learn(example: ModuleType) -> None:
    scores = importlib.import_module("sklearn.metrics")  # of the extra
    rates, (batches, choose, _) = torch.tensor([0.01, 0.3]), example.digits(50)
    states, _ = example.together(rates, batches)
    losses, right = example.measure(states, choose)
    for i, rate in enumerate(rates):
        module = example.network()
        module.load_state_dict(example.alone(rate.item(), batches))
        p = module(choose[0]).detach().double().softmax(-1).numpy()
        assert right[i].item() == pytest.approx(scores.accuracy_score(choose[1], p.argmax(-1)), abs=1e-6)
        assert losses[i].item() == pytest.approx(scores.log_loss(choose[1], p, labels=range(10)), rel=1e-3)


def test_no_digit_that_is_learned_from_is_chosen_or_tested_with(example: ModuleType) -> None:
    batches, choose, test = example.digits(200)
    learned, chosen, tested = (
        {x.numpy().tobytes() for x in xs}
        for xs in (
            torch.cat([x for x, _ in batches]),
            choose[0],
            test[0],
        )
    )
    assert len(learned) > 900
    assert not learned & chosen
    assert not (learned | chosen) & tested
