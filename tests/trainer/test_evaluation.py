"""Validation: it leaves no trace, and what it measures does not depend on how the samples are cut into batches."""

from __future__ import annotations

import copy
import math
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchmetrics import MeanSquaredError

from functrain import tree
from functrain.bridge.modules import functionalize
from functrain.optimizers.adaptive import adamw
from functrain.precision import policy
from functrain.run.evaluation import Evaluation
from functrain.state import TrainState
from functrain.trainer import Trainer
from tests.networks import NormNet, points

CPU = torch.device("cpu")
D = torch.float64


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Points that are moved a little by whatever can draw: augmentation."""

    def __init__(self, rows: int) -> None:
        self.x, self.y = points(rows)
        self.dice, self.bits = random.Random(1), np.random.default_rng(2)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        noise = random.gauss(0, 1) + np.random.randn() + self.dice.random() + self.bits.normal()
        return self.x[i] + 0.1 * torch.rand(3) + 0.1 * float(noise), self.y[i]


def noisy(rows: int = 10, seed: int | None = 3, workers: int = 0) -> DataLoader[tuple[Tensor, Tensor]]:
    """A loader that shuffles, by a generator of its own unless the seed is None."""
    own = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(Noisy(rows), 4, shuffle=True, num_workers=workers, generator=own)


def noisy_mse(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output + 0.01 * torch.rand_like(output) * random.random() * np.random.rand(), target)


def make_trainer(train: Any = None, val: Any = None, loss: Any = noisy_mse, **kwargs: Any) -> Trainer:
    torch.manual_seed(5)
    return Trainer(NormNet(0.3), adamw(1e-2), train or noisy(), val, loss_fn=loss, **kwargs)


def measures(trainer: Trainer, loader: Any, **metrics: Any) -> Evaluation:
    """The trainer's evaluation, over another loader and with metrics."""
    trainer.evaluation = Evaluation(trainer.loss, loader, CPU, policy(trainer.precision), metrics)
    return trainer.evaluation


# --- it leaves no trace


class Raises(DataLoader[Any]):
    """The loader breaks after two batches."""

    def __iter__(self) -> Any:
        batches = super().__iter__()
        yield next(batches)
        yield next(batches)
        raise RuntimeError("broken")


class Third:
    """Raises at the third call, having drawn; draws at each."""

    def __init__(self, result: Any) -> None:
        self.calls, self.result = 0, result

    def __call__(self, output: Tensor, target: Any) -> Any:
        torch.rand(1), np.random.rand(), random.random()
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("broken")
        return self.result(output, target)


class Gathers:
    """Its own metric: draws, and breaks where it is told to."""

    def __init__(self, breaks: str = "") -> None:
        self.breaks, self.batches = breaks, 7

    def at(self, place: str) -> None:
        torch.rand(1), np.random.rand(), random.random()
        if place == self.breaks:
            raise RuntimeError("broken")

    def update(self, output: Tensor, target: Tensor) -> None:
        self.batches += 1
        self.at("update")

    def compute(self) -> float:
        self.at("compute")
        return float(self.batches)

    def reset(self) -> None:
        self.batches = 0


def generators(loader: Any) -> list[Any]:
    """The states of all that draws, as Python, NumPy and PyTorch tell them."""
    data = loader.dataset
    torchs = [torch.get_rng_state(), loader.generator.get_state(), loader.sampler.generator.get_state()]
    numpys = [*np.random.get_state(), data.bits.bit_generator.state]
    return [random.getstate(), data.dice.getstate(), [x.tolist() for x in torchs], repr(numpys)]


@pytest.mark.parametrize("breaks", ["", "loader", "loss", "metric", "update", "compute", "stop"])
def test_eval_1_no_leaf_no_stream_no_flag_and_no_hook_changes(breaks: str) -> None:
    loader = Raises(Noisy(10), 4, shuffle=True, generator=torch.Generator()) if breaks == "loader" else noisy()
    trainer = make_trainer(loss=Third(noisy_mse) if breaks == "loss" else noisy_mse)
    metric = Third(lambda output, _: output.sum()) if breaks == "metric" else lambda output, _: torch.rand(())
    gathers, theirs = Gathers(breaks), MeanSquaredError()
    evaluation = measures(trainer, loader, mean=metric, gathers=gathers, theirs=theirs)
    theirs.train(False)
    theirs.update(torch.ones(2), torch.zeros(2))
    net = trainer.model.module
    net.norm.eval()  # frozen, in a module that trains
    flags = {name: m.training for name, m in net.named_modules()}
    state, own = tree.map(torch.clone, trainer.state), copy.deepcopy(net.state_dict())
    places = {name: id(x) for name, x in net.state_dict(keep_vars=True).items()}
    before = generators(loader)

    if breaks == "stop":
        asked: list[int] = []
        assert evaluation.measure(trainer.state, lambda: asked.append(1) or len(asked) > 2) == {}
    elif breaks:
        with pytest.raises(RuntimeError, match=r"^broken$"):
            trainer.evaluate()
    else:
        assert trainer.evaluate().keys() == {"loss", "mean", "gathers", "theirs"}

    assert generators(loader) == before
    assert {name: m.training for name, m in net.named_modules()} == flags
    assert all(torch.equal(x, y) for x, y in zip(tree.leaves(trainer.state), tree.leaves(state), strict=True))
    assert all(torch.equal(x, own[name]) for name, x in net.state_dict().items())
    assert {name: id(x) for name, x in net.state_dict(keep_vars=True).items()} == places
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert (theirs.training, theirs.total.item(), theirs.update_count, gathers.batches) == (False, 0, 0, 0)
    assert torch.is_grad_enabled()


def test_eval_1_every_submodule_is_in_eval_mode_while_it_is_measured_and_only_then() -> None:
    seen: list[set[bool]] = []
    net = NormNet(dropout=0.5)

    def flags() -> set[bool]:
        return {m.training for m in net.modules()}

    def objective(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(flags())
        return F.mse_loss(m(batch[0]), batch[1])

    def metric(output: Tensor, batch: object) -> float:
        seen.append(flags())
        return 0.0

    class Loader(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                seen.append(flags())
                yield batch

    trainer = Trainer(net, adamw(1e-2), [points()], objective=objective)
    measures(trainer, Loader([points(), points()]), metric=metric)
    trainer.evaluate()
    assert seen == [{True}, {False}, {False}] * 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("own", [True, False], ids=["own generator", "global generator"])
@pytest.mark.parametrize("k", [1, 3])
def test_eval_2_training_with_validation_is_training_without(k: int, own: bool, workers: int) -> None:
    """With dropout, BatchNorm, shuffling, augmentation, metrics that draw, inside and at the ends of epochs."""
    trainers = []
    for validates in (False, True):
        train, val = noisy(22, seed=None, workers=workers), noisy(9, seed=8 if own else None, workers=workers)
        options = {"grad_accum_steps": k, "eval_interval": 2 if k == 1 else 1, "max_epochs": 2}
        trainer = make_trainer(train, val if validates else None, **options)
        if validates:
            measures(trainer, val, drawn=lambda *_: torch.rand(()), gathers=Gathers(), theirs=MeanSquaredError())
        torch.manual_seed(4), np.random.seed(4), random.seed(4)
        trainer.train()
        trainers.append(trainer)
    plain, busy = (trainer.state for trainer in trainers)
    assert sum("val_loss" in record for record in trainers[1].history) >= 4
    assert tree.keys(plain) == tree.keys(busy)
    assert all(torch.equal(x, y) for x, y in zip(tree.leaves(plain), tree.leaves(busy), strict=True))


# --- what it measures


def in_batches(batch_size: int, rows: int = 10) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*points(rows, dtype=D)), batch_size)


def used_net() -> NormNet:
    """A net whose BatchNorm has seen data."""
    torch.manual_seed(0)
    net = NormNet(dropout=0.4, dtype=D)
    net(points(20, seed=6, dtype=D)[0])
    return net


def evaluate(net: nn.Module, loader: Any, objective: Any, **metrics: Any) -> dict[str, float]:
    loss = functionalize(net).objective(objective)
    return Evaluation(loss, loader, CPU, policy(None), metrics).measure(TrainState.create(loss.model, adamw(1e-2)))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 10, 11])
def test_eval_3_the_loss_is_that_of_all_samples_at_once_whatever_the_batch_size(batch_size: int) -> None:
    net = used_net()
    found = evaluate(net, in_batches(batch_size), lambda m, batch: F.mse_loss(m(batch[0]), batch[1]))
    x, y = points(10, dtype=D)
    with torch.no_grad():
        expected = F.mse_loss(net.eval()(x), y).item()
        halves = [F.mse_loss(net(x[i : i + 4]), y[i : i + 4]).item() for i in (0, 4, 8)]
    assert found["loss"] == pytest.approx(expected, rel=1e-12, abs=0)
    assert sum(halves) / 3 != pytest.approx(expected, rel=1e-3)  # the mean of means is another number


@pytest.mark.parametrize("sizes", [[20], [5] * 4, [1, 7, 0, 12], [19, 1]])
def test_eval_3_a_sum_and_its_weight_are_each_summed_over_all_batches(sizes: list[int]) -> None:
    """Tokens that count are 0, 1 or 2 of 3 in a row, so batches of one length differ in weight, and some have none."""
    x, y = points(20, dtype=D)
    counts = torch.arange(20)[:, None] % 5 > torch.tensor([[2, 3, 4]])
    batches = list(zip(x.split(sizes), y.split(sizes), counts.split(sizes), strict=True))
    net = used_net()

    def error(output: Tensor, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        squares = (output - batch[1]).square().sum(1, keepdim=True)
        return (squares * batch[2]).sum(), batch[2].sum()

    found = evaluate(net, batches, lambda m, batch: error(m(batch[0]), batch), error=error)
    total, weight = error(net.eval()(x).detach(), (x, y, counts))
    assert found["loss"] == pytest.approx((total / weight).item(), rel=1e-12, abs=0)
    assert found["error"] == pytest.approx((total / weight).item(), rel=1e-12, abs=0)


def test_eval_3_a_log_is_averaged_by_weight_over_the_batches_that_have_it() -> None:
    def objective(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {"loss": m(x).mean(), "largest": x.max()} | ({"rare": x.min()} if len(x) > 1 else {})

    batches = [torch.full((3, 1), 2.0), torch.full((1, 1), 6.0), torch.full((2, 1), 9.0)]
    found = evaluate(nn.Linear(1, 1), batches, objective)
    assert found["largest"] == (3 * 2 + 1 * 6 + 2 * 9) / 6
    assert found["rare"] == pytest.approx((3 * 2 + 2 * 9) / 5, rel=1e-15)


def test_eval_3_many_small_batches_add_up_in_float64() -> None:
    x = points(1000)[0].reshape(-1, 1) + 1000
    metrics = {"mean": lambda out, _: out.mean(), "number": lambda out, _: math.pi}
    found = evaluate(nn.Identity(), x.split(1), lambda m, x: m(x).mean(), **metrics)
    expected = x.double().mean().item()
    assert found["loss"] == pytest.approx(expected, rel=1e-13)
    assert found["mean"] == pytest.approx(expected, rel=1e-13)
    assert found["number"] == pytest.approx(math.pi, rel=1e-13)


# --- empty loaders


class Nothing(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(())


def test_eval_4_a_loader_known_to_be_empty_is_an_error_at_construction() -> None:
    message = "Trainer: the validation loader is empty; hint: val_loader=None trains without validation"
    for empty in ([], DataLoader(TensorDataset(torch.ones(3)), 4, drop_last=True)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            make_trainer(val=empty)


def test_eval_4_a_loader_that_yields_nothing_is_an_error_when_it_is_measured() -> None:
    for empty in (iter([]), DataLoader(Nothing())):
        with pytest.raises(ValueError, match=r"^Trainer: the validation loader yields no batch$"):
            make_trainer(val=empty).evaluate()
    with pytest.raises(ValueError, match=r"^Trainer.evaluate: there is no val_loader$"):
        make_trainer().evaluate()
