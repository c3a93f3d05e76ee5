"""Torch's schedulers drive our optimizers as they drive torch's: the same rates, the same parameters."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from tests.bridge.faces import ROWS, Row, assert_bitwise, assert_near, flat, gradients, parameters, step

STEPS = 40
DRIVEN = {
    row.name: row._replace(options=options)
    for row, options in zip(ROWS, ({"lr": 0.1, "momentum": 0.9}, {"lr": 0.1}), strict=False)
}

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda t: 0.95**t, lambda t: 1 / (1 + t)]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=7, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[5, 6, 20], gamma=0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.2, total_iters=9),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=12),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.93),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=8), lr_scheduler.ExponentialLR(o, gamma=0.9)], milestones=[8]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=15, eta_min=1e-3),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, factor=0.1, total_iters=5), lr_scheduler.ExponentialLR(o, gamma=0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=2, cooldown=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, base_lr=0.01, max_lr=0.1, step_size_up=6, base_momentum=0.7, max_momentum=0.95
    ),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=6, T_mult=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=[0.1, 0.2], total_steps=STEPS + 1),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=25, power=2.0),
}
CYCLED = {"momentum", "betas"}  # what a cycle moves beside the rate


def advance(scheduler: Any, t: int) -> None:
    """One step of the scheduler; a plateau is shown a metric that falls for ten steps and then stays."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0 / min(t + 1, 10))
    else:
        scheduler.step()


class Driven:
    """An optimizer and its scheduler, and what became of them."""

    def __init__(self, row: Row, make: Callable[..., Optimizer], schedule: Callable[[Optimizer], Any], lr: Any) -> None:
        self.row, self.params = row, parameters(row.shapes, torch.float64)
        options = row.options | {"lr": copy.deepcopy(lr)}
        half = len(self.params) // 2
        self.optimizer = make(
            [{"params": self.params[:half]}, {"params": self.params[half:], "weight_decay": 0.1}], **options
        )
        self.scheduler = schedule(self.optimizer)
        self.rates: list[Any] = []
        self.seen: list[list[Tensor]] = []

    def run(self, steps: range) -> Driven:
        grads = gradients(self.row.shapes, torch.float64, STEPS)
        for t in steps:
            step(self.row, self.optimizer, self.params, grads[t])
            advance(self.scheduler, t)
            self.seen.append([p.detach().clone() for p in self.params])
            groups = self.optimizer.param_groups
            self.rates.append([{k: copy.deepcopy(v) for k, v in g.items() if k in CYCLED | {"lr"}} for g in groups])
        return self


def test_every_scheduler_of_torch_is_in_the_table() -> None:
    assert set(SCHEDULERS) == set(lr_scheduler.__all__) - {"LRScheduler"}


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)], ids=["float", "tensor"])
@pytest.mark.parametrize("optimizer", DRIVEN)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_40_steps_under_a_scheduler_agree_with_torch(scheduler: str, optimizer: str, lr: Any) -> None:
    row, schedule = DRIVEN[optimizer], SCHEDULERS[scheduler]
    ours, torchs = (Driven(row, make, schedule, lr).run(range(STEPS)) for make in (row.ours, row.reference))
    assert_bitwise(ours.rates, torchs.rates)
    assert len({str(rates) for rates in ours.rates}) > 1, "the scheduler did nothing"
    assert_near(ours.seen, torchs.seen, row)


@pytest.mark.parametrize("optimizer", DRIVEN)
@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_a_cycle_moves_momentum_or_the_first_beta(scheduler: str, optimizer: str) -> None:
    row = DRIVEN[optimizer]
    driven = Driven(row, row.ours, SCHEDULERS[scheduler], 0.1).run(range(STEPS))
    assert all(len({str(rates[0][key]) for rates in driven.rates}) > 10 for key in CYCLED & set(driven.rates[0][0]))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduled_run_goes_on_from_its_state_dicts(scheduler: str) -> None:
    row, schedule, cut = DRIVEN["Adam"], SCHEDULERS[scheduler], 17
    whole = Driven(row, row.ours, schedule, 0.1).run(range(STEPS))
    first = Driven(row, row.ours, schedule, 0.1).run(range(cut))
    second = Driven(row, row.ours, schedule, 0.1)
    with torch.no_grad():
        for p, q in zip(second.params, first.params, strict=True):
            p.copy_(q)
    second.scheduler.load_state_dict(copy.deepcopy(first.scheduler.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.optimizer.step()  # without gradients it does nothing, and the scheduler does not warn
    second.run(range(cut, STEPS))
    assert_bitwise(first.rates + second.rates, whole.rates)
    assert_bitwise(first.seen + second.seen, whole.seen)


def test_a_scheduler_that_steps_before_the_optimizer_warns_as_with_torch() -> None:
    row = DRIVEN["Adam"]
    said = []
    for make in (row.ours, row.reference):
        driven = Driven(row, make, SCHEDULERS["StepLR"], 0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            driven.scheduler.step()
            driven.run(range(2))
        said.append([str(w.message) for w in caught])
    assert said[0] == said[1]
    assert len(said[0]) == 1


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()


@pytest.mark.parametrize("optimizer", DRIVEN)
@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["mean", "moving average"])
def test_averaged_weights_under_swalr_agree_with_torch(optimizer: str, average: Any) -> None:
    row = DRIVEN[optimizer]
    draw = torch.Generator().manual_seed(3)
    batches = [torch.randn(8, 3, generator=draw, dtype=torch.float64) for _ in range(12)]
    weights, rates = [], []
    for make in (row.ours, row.reference):
        model = network()
        averaged = AveragedModel(model, multi_avg_fn=average)
        o = make(model.parameters(), **row.options)
        scheduler = SWALR(o, swa_lr=0.01, anneal_epochs=6)
        for batch in batches:
            o.zero_grad()
            (model(batch) - batch.sum(1, keepdim=True)).square().mean().backward()
            o.step()
            averaged.update_parameters(model)
            scheduler.step()
            rates.append(o.param_groups[0]["lr"])
        update_bn(batches, averaged)
        weights.append([x for _, x in flat(averaged.state_dict())])
    assert rates[:12] == rates[12:]
    assert rates[0] != rates[11] == 0.01
    assert_near(weights[:1], weights[1:], row)
    assert not torch.equal(weights[0][0], model[0].weight), "nothing was averaged"
