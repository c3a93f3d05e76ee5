"""Each message about a metric that is not what it should be, word for word."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from functrain.bridge.modules import functionalize
from functrain.precision import policy
from functrain.run.evaluation import Evaluation
from tests.trainer.test_metrics import CPU, LABELS, Scale, accuracy, cross_entropy, labelled, measure, scores

FUNCTION = "return a number or a 0-dim tensor, which is a mean, or a pair of them, (sum, weight)"
OBJECT = "compute() must be a number, a 0-dim tensor or a dict of them; averaged over classes, it often is"
TWICE = MulticlassAccuracy(3)


class Computes:
    """An object that computes this."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def update(self, output: object, target: object) -> None: ...
    def reset(self) -> None: ...
    def compute(self) -> Any:
        return self.result


def logs(m: nn.Module, batch: Any) -> dict[str, Tensor]:
    loss = cross_entropy(m, batch)
    return {"loss": loss, "acc": loss, "all/a": loss}


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ([accuracy], TypeError, "metrics must be a dict of metrics by name, got list"),
        ({1: accuracy}, TypeError, "the names of metrics are strings, got 1"),
        (
            {"loss": accuracy},
            ValueError,
            "'loss' cannot be the name of a metric; hint: the loss is measured without one",
        ),
        (
            {"acc": MulticlassAccuracy},
            TypeError,
            "the metric 'acc' is the class MulticlassAccuracy; hint: MulticlassAccuracy(...)",
        ),
        (
            {"acc": "accuracy"},
            TypeError,
            "the metric 'acc' is a str; hint: a function (output, batch), or an object with update, compute and reset",
        ),
        (
            {"a": TWICE, "b": TWICE},
            ValueError,
            "one object has two names in metrics, and would see every batch twice; hint: metric.clone()",
        ),
    ],
)
def test_what_is_wrong_with_metrics_is_told_at_construction(metrics: Any, error: Any, message: str) -> None:
    loss = functionalize(Scale()).objective(cross_entropy)
    with pytest.raises(error, match=f"^{re.escape('Trainer: ' + message)}$"):
        Evaluation(loss, labelled(), CPU, policy(None), metrics)


@pytest.mark.parametrize(
    ("result", "error", "what"),
    [
        (torch.ones(4), ValueError, "a tensor of shape (4,)"),
        (torch.ones((), dtype=torch.complex64), TypeError, "a torch.complex64"),
        (None, TypeError, "a NoneType"),
        ("0.5", TypeError, "a str"),
    ],
)
def test_what_is_no_number_is_told(result: Any, error: Any, what: str) -> None:
    returned = f"Trainer: the metric 'm' returned {what}; hint: {FUNCTION}"
    computed = f"computed {what}; hint: {OBJECT}"
    for metric, message in [
        (lambda *_: result, returned),
        (lambda *_: (1.0, result), returned),
        (Computes(result), f"Trainer: the metric 'm' {computed}"),
        (Computes({"k": result}), f"Trainer: the metric 'm/k' {computed}"),
    ]:
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            measure({"m": metric})


@pytest.mark.parametrize(
    ("metrics", "arguments", "error", "message"),
    [
        (
            {"m": lambda *_: (1, 2, 3)},
            {},
            TypeError,
            f"the metric 'm' returned a tuple of 3 entries; hint: {FUNCTION}",
        ),
        (
            {"m": MulticlassAccuracy(3)},
            {
                "loader": [{"x": scores(), "y": LABELS}],
                "objective": lambda m, b: F.cross_entropy(m(b["x"]), b["y"]),
            },
            TypeError,
            "the metric 'm' takes (output, target) of batches (*inputs, target), got a batch of type dict; "
            "hint: a function (output, batch) takes any",
        ),
        (
            {"m": accuracy},
            {"objective": lambda m, batch: m.forward(batch[0]).mean()},
            ValueError,
            "the metric 'm' is of what the module returns, and the objective never calls it; hint: call it as m(x), or "
            "let the objective return {'loss': ..., 'm': ...}",
        ),
        (
            {"acc": accuracy},
            {"objective": logs},
            ValueError,
            "two numbers of a validation are called 'acc'; hint: rename the metric, or what the loss returns to log",
        ),
        (
            {"all": Computes({"a": 1})},
            {"objective": logs},
            ValueError,
            "two numbers of a validation are called 'all/a'; hint: rename the metric, or what the loss returns to log",
        ),
    ],
)
def test_each_misuse_is_told(metrics: Any, arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape('Trainer: ' + message)}$"):
        measure(metrics, **arguments)


def test_a_name_that_the_loss_logs_is_told_at_the_first_batch() -> None:
    def loader() -> Iterable[Any]:
        yield from labelled()[:1]
        raise RuntimeError("too late")

    with pytest.raises(ValueError, match=r"^Trainer: two numbers of a validation are called 'acc';"):
        measure({"acc": accuracy}, loader(), objective=logs)
