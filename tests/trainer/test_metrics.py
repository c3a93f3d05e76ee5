"""Metrics of a module's output: functions, and objects of torchmetrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score

from functrain.bridge.modules import functionalize
from functrain.optimizers.momentum import sgd
from functrain.precision import policy
from functrain.run.evaluation import Evaluation
from functrain.state import TrainState
from tests.networks import mlp

CPU = torch.device("cpu")
SIZES = [8, 1, 7, 4]
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1, 0, 0, 1, 2, 2, 0, 1, 1, 0, 2, 1, 0])


def scores() -> Tensor:
    return torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


def labelled(device: torch.device = CPU) -> list[tuple[Tensor, Tensor]]:
    """Scores of 20 samples in 3 classes, and labels, in batches of unequal length."""
    return list(zip(scores().to(device).split(SIZES), LABELS.to(device).split(SIZES), strict=True))


def cross_entropy(m: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(m(batch[0]), batch[1])


class Scale(nn.Module):
    """Multiplies by a number."""

    def __init__(self, by: float = 1.0) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


def measure(
    metrics: Mapping[Any, Any],
    loader: Any = None,
    module: nn.Module | None = None,
    objective: Any = cross_entropy,
    precision: Any = None,
    device: torch.device = CPU,
) -> dict[str, float]:
    loss = functionalize(Scale() if module is None else module).objective(objective)
    evaluation = Evaluation(loss, labelled() if loader is None else loader, device, policy(precision), metrics)
    return evaluation.measure(TrainState.create(loss.model, sgd(0.1)))


def accuracy(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (output.argmax(-1) == batch[1]).float().mean()


def by_hand() -> float:
    return float((scores().numpy().argmax(1) == LABELS.numpy()).mean())


# --- functions


@pytest.mark.parametrize(
    "metric",
    [
        accuracy,
        lambda out, batch: accuracy(out, batch).item(),
        lambda out, batch: np.float32(accuracy(out, batch).item()),
        lambda out, batch: ((out.argmax(-1) == batch[1]).sum(), len(out)),
        lambda out, batch: (int((out.argmax(-1) == batch[1]).sum()), torch.tensor(len(out))),
    ],
    ids=["tensor", "number", "NumPy's number", "pair of tensor and number", "pair of number and tensor"],
)
def test_eval_3_a_functions_mean_weighs_its_batch_and_a_pair_is_summed(metric: Any) -> None:
    means = [accuracy(*batches).item() for batches in zip(scores().split(SIZES), labelled(), strict=True)]
    assert sum(means) / len(means) != pytest.approx(by_hand(), rel=1e-3)  # the mean of means is another number
    assert measure({"accuracy": metric})["accuracy"] == pytest.approx(by_hand(), rel=1e-6)


def test_of_no_weight_at_all_there_is_no_mean() -> None:
    assert np.isnan(measure({"nothing": lambda out, batch: (0.0, 0)})["nothing"])


def test_a_mean_in_half_precision_is_weighed_in_float64() -> None:
    """50000 samples of mean 1.5 sum up to 75000, and that is more than float16 knows."""
    batches = [(torch.full((50000, 1), 1.5), torch.zeros(50000, 1))] * 2
    found = measure({"mean": lambda out, _: out.mean().half()}, batches, objective=lambda m, b: m(b[0]).mean())
    assert found["mean"] == 1.5


def test_a_metric_is_given_what_the_last_call_returned_after_the_users_own_hooks() -> None:
    returned: list[Any] = []

    def objective(m: nn.Module, batch: Any) -> Tensor:
        m(batch[0] + 1)
        returned.append(m(batch[0]))
        return F.cross_entropy(returned[-1]["scores"], batch[1])

    def metric(output: Any, batch: Any) -> float:
        assert output is returned[-1]
        assert batch[1] is given[len(returned) - 1][1]
        return 1.0

    module, given = Scale(), labelled()
    module.register_forward_hook(lambda m, args, out: {"scores": out})
    assert measure({"seen": metric}, given, module, objective)["seen"] == 1
    assert len(module._forward_hooks) == 1


def test_a_metric_sees_the_module_as_it_is_measured_and_calls_of_its_own_do_not_count() -> None:
    module = Scale(1.0)
    loss = functionalize(module).objective(lambda m, x: m(x).mean())
    seen: list[float] = []

    def first(output: Tensor, x: Tensor) -> float:
        seen.append(module(10 * x).item())
        return output.item()

    metrics = {"first": first, "second": lambda output, x: output.item()}
    state = TrainState.create(loss.model, sgd(0.1))
    averaged = state._replace(params={"by": torch.tensor(3.0)})
    found = Evaluation(loss, [torch.ones(1)], CPU, policy(None), metrics).measure(averaged)
    assert found == {"loss": 3.0, "first": 3.0, "second": 3.0}
    assert seen == [30.0]
    assert module(torch.ones(1)).item() == 1.0


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), (None, torch.float32)])
def test_outputs_are_given_in_the_dtype_that_they_have(precision: Any, dtype: torch.dtype) -> None:
    found = measure({"same": lambda out, _: out.dtype == dtype}, module=mlp(3, 3), precision=precision)
    assert found["same"] == 1.0


@pytest.mark.parametrize(
    "compiles", [lambda m: torch.compile(m, backend="eager"), lambda m: m.compile(backend="eager")]
)
def test_a_compiled_modules_output_is_seen_at_every_validation(compiles: Any) -> None:
    module = Scale()
    compiled = module if (made := compiles(module)) is None else made
    compiled(scores())
    for _ in range(2):
        assert measure({"accuracy": accuracy}, module=compiled)["accuracy"] == pytest.approx(by_hand(), rel=1e-6)
        compiled(scores())


class Reads(TorchDispatchMode):
    """Counts the times that the host asks for a number of a tensor."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


def test_no_batch_waits_for_a_number() -> None:
    counts: list[int] = []

    def loader() -> Iterator[Any]:
        counts.append(reads.count)
        yield from labelled()
        counts.append(reads.count)

    with Reads() as reads:
        measure({"mean": accuracy, "pair": lambda out, batch: (out.sum(), len(out)), "one": lambda *_: 1.0}, loader())
        assert counts[0] == counts[1]
        torch.ones(()).item()
    assert reads.count > counts[1]  # it does count


@pytest.mark.cuda
def test_eval_3_on_a_gpu_no_batch_waits_and_the_numbers_are_the_same() -> None:
    device = torch.device("cuda", 0)

    def loader() -> Iterator[Any]:
        batches = labelled(device)
        torch.cuda.set_sync_debug_mode("error")
        yield from batches
        torch.cuda.set_sync_debug_mode("default")

    metrics = {"mean": accuracy, "theirs": MulticlassAccuracy(3, average="micro", validate_args=False)}
    try:
        found = measure(metrics, loader(), Scale().to(device), device=device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found["mean"] == pytest.approx(by_hand(), rel=1e-6)
    assert found["theirs"] == pytest.approx(by_hand(), rel=1e-6)
    assert metrics["theirs"].device == device


# --- torchmetrics


def test_eval_3_torchmetrics_objects_compute_over_all_batches() -> None:
    positive = torch.sigmoid(scores()[:, 0])
    binary = list(zip(positive.split(SIZES), (LABELS > 0).long().split(SIZES), strict=True))
    found = measure({"auroc": BinaryAUROC()}, binary, objective=lambda m, batch: m(batch[0]).mean())
    p, label = positive.numpy(), LABELS.numpy() > 0
    ahead = (p[label][:, None] > p[~label]).mean()  # of a pair, one of each class, how often it is in order
    assert found["auroc"] == pytest.approx(float(ahead), rel=1e-6)


def test_a_collection_gives_a_number_for_each_of_its_own() -> None:
    collection = torchmetrics.MetricCollection(
        {"micro": MulticlassAccuracy(3, average="micro"), "f1": MulticlassF1Score(3, average="macro")}
    )
    found = measure({"classes": collection, "mine": accuracy})
    assert found.keys() == {"loss", "mine", "classes/micro", "classes/f1"}
    predicted, label = scores().numpy().argmax(1), LABELS.numpy()
    f1 = [2 * ((predicted == c) & (label == c)).sum() / ((predicted == c).sum() + (label == c).sum()) for c in range(3)]
    assert found["classes/micro"] == pytest.approx(by_hand(), rel=1e-6)
    assert found["classes/f1"] == pytest.approx(float(np.mean(f1)), rel=1e-6)


def test_what_a_metric_gathered_before_does_not_count_and_it_is_left_empty() -> None:
    metric = MulticlassAccuracy(3, average="micro")
    for _ in range(2):
        metric.update(scores(), (scores().argmax(1) + 1) % 3)  # all wrong
        assert measure({"theirs": metric})["theirs"] == pytest.approx(by_hand(), rel=1e-6)
        assert (metric.update_count, metric.tp, metric._computed) == (0, 0, None)


def test_a_metric_goes_to_the_device_of_the_batches() -> None:
    class Moves(torchmetrics.SumMetric):
        moved: Any = None

        def to(self, device: torch.device) -> Any:
            self.moved = device
            return super().to(device)

        def update(self, output: Tensor, target: Tensor) -> None:
            assert self.moved == output.device
            super().update(target)

    assert measure({"sum": Moves()})["sum"] == LABELS.sum().item()
