"""What `trainer_from_scratch.py` says breaks when a step of an update is left out, broken in its own text."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft
from functrain.tutorial import AdamWFromScratch, SGDFromScratch, TrainerFromScratch
from tests.networks import NormNet, mlp
from tests.tutorial.sources import trainer_without, without

D = torch.float64
INF = math.inf


class Dot(nn.Module):
    """w · x: a batch's mean is its gradient."""

    def __init__(self, n: int, dtype: torch.dtype = D) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.w).sum(-1)


def mean(out: Tensor, target: Tensor) -> Tensor:
    return out.mean()


def gradients(*rows: Any, sizes: Any = None) -> list[tuple[Tensor, Tensor]]:
    """Batches whose gradients at Dot these are."""
    made = [torch.tensor([row] * n, dtype=D) for row, n in zip(rows, sizes or [1] * len(rows), strict=True)]
    return [(x, x) for x in made]


def run(given: Any, trainer: Any = TrainerFromScratch, make: Any = None, **settings: Any) -> tuple[Any, list[float]]:
    """A run over the batches, with rate 1 from zero, and where it ends."""
    model = Dot(given[0][0].shape[-1], given[0][0].dtype)
    optimizer = (make or (lambda p: SGDFromScratch(p, lr=1.0)))(model.parameters())
    found = trainer(model, optimizer, given, max_epochs=1, **{"loss_fn": mean} | settings)
    found.train()
    return found, model.w.tolist()


def test_without_zero_grad_every_update_steps_along_the_sum_of_all_gradients() -> None:
    given = gradients([1.0], [1.0], [1.0])
    assert run(given)[1] == [-3.0]
    assert run(given, trainer_without(("self.optimizer.zero_grad()", "pass")))[1] == [-1.0 - 2.0 - 3.0]


# --- accumulation

MEAN_OF_MEANS = ("share = len(x) / rows", "share = 1 / len(window)")
OVER_N = ("share = len(x) / rows", "share = 1 / self.grad_accum_steps")


def test_a_window_of_unequal_batches_is_the_one_batch_and_the_mean_of_means_is_not() -> None:
    given = gradients([1.0], [1.0], [1.0], [9.0], sizes=[5, 5, 5, 1])
    one = [(x := torch.cat([x for x, _ in given]), x)]
    assert run(one)[1] == [-1.5]
    assert run(given, grad_accum_steps=4)[1] == pytest.approx([-1.5])
    assert run(given, trainer_without(MEAN_OF_MEANS), grad_accum_steps=4)[1] == pytest.approx([-3.0])


def test_divided_by_n_a_last_window_of_2_of_4_has_half_the_gradient() -> None:
    given = gradients(*[[1.0]] * 10)
    assert run(given, grad_accum_steps=4)[1] == [-3.0]
    assert run(given, trainer_without(OVER_N), grad_accum_steps=4)[1] == [-2.5]


def test_without_the_last_window_its_gradients_are_lost() -> None:
    given = gradients(*[[1.0]] * 10)
    dropping = trainer_without(("    if window:\n        yield window\n", ""))
    assert run(given, dropping, grad_accum_steps=4)[1] == [-2.0]


def test_a_sum_of_clipped_gradients_is_not_the_gradient_of_the_window() -> None:
    given = gradients([100.0, 0.0], [0.0, 1.0])
    _, (x, y) = run(given, grad_accum_steps=2, max_grad_norm=1.0)
    assert x / y == pytest.approx(100.0)
    each = "            (loss * share * self.scale).backward()\n"
    clipped = each + (
        "            for p in self.optimizer.params:\n"
        "                p.grad = p.grad / max(1.0, float(p.grad.norm()))\n"
    )
    _, (x, y) = run(given, trainer_without((each, clipped)), grad_accum_steps=2)
    assert x / y < 2.1


# --- half precision

FP16: dict[str, Any] = {"use_amp": True, "amp_dtype": torch.float16}


def small(trainer: Any, **settings: Any) -> Any:
    """A network whose loss is tiny: the gradients that its first update had."""
    torch.manual_seed(0)
    model = mlp(3, 16, 16, 2)
    found = trainer(
        model, SGDFromScratch(model.parameters(), lr=0.0), [], loss_fn=lambda out, y: 1e-7 * F.mse_loss(out, y),
        **settings,
    )  # fmt: skip
    found.update([(torch.randn(64, 3), torch.randn(64, 2))])
    return torch.cat([p.grad.flatten() for p in found.optimizer.params])


def test_without_the_scale_small_gradients_are_zero_in_float16() -> None:
    exact, scaled = small(TrainerFromScratch), small(TrainerFromScratch, **FP16)
    lost = small(trainer_without(("FIRST_SCALE if self.scaled else 1.0", "1.0")), **FP16)
    assert exact.count_nonzero() == scaled.count_nonzero() == exact.numel()
    assert (scaled - exact).norm() < 0.01 * exact.norm()
    assert lost.count_nonzero() < 0.2 * exact.numel()
    assert small(TrainerFromScratch, use_amp=True).count_nonzero() == exact.numel()  # bfloat16, whose scale is 1


def test_float16_has_no_number_between_0_and_6e_8() -> None:
    assert torch.tensor([6.0e-8, 2.9e-8]).half().tolist() == [2.0**-24, 0.0]


def test_multiplying_by_the_scale_and_dividing_rounds_nothing() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x * 2.0**16 / 2.0**16, x)


CLIPPED_FIRST = (
    ("            g /= self.scale\n", "            pass\n"),
    ("        # 8. The rate", "        for g in grads:\n            g /= self.scale\n        # 8. The rate"),
)


def test_clipped_while_scaled_an_update_is_shorter_by_the_scale() -> None:
    given = [(x.float(), y.float()) for x, y in gradients([3.0, 4.0])]
    assert run(given, max_grad_norm=1.0, **FP16)[1] == pytest.approx([-0.6, -0.8])
    wrong = run(given, trainer_without(*CLIPPED_FIRST), max_grad_norm=1.0, **FP16)[1]
    assert wrong == pytest.approx([-0.6 / 2**16, -0.8 / 2**16])


def test_a_half_precision_parameter_does_not_move_by_less_than_the_distance_to_the_next() -> None:
    for dtype, moves in ((torch.float32, True), (torch.bfloat16, False), (torch.float16, False)):
        p = nn.Parameter(torch.ones(1, dtype=dtype))
        optimizer = SGDFromScratch([p], lr=1e-4)
        for _ in range(100):
            p.grad = torch.ones(1, dtype=dtype)
            optimizer.step()
        assert (p.item() != 1.0) == moves


# --- what is not finite

STEPS_ANYWAY = ('if not math.isfinite(record["loss"] + record["grad_norm"]):', "if False:")


@pytest.mark.parametrize("bad", [INF, math.nan])
def test_one_step_along_what_is_not_finite_makes_every_parameter_nan_for_good(bad: float) -> None:
    given = gradients([1.0, 1.0], [bad, bad], [1.0, 1.0], [1.0, 1.0])
    found, w = run(given, trainer_without(STEPS_ANYWAY), lambda p: AdamWFromScratch(p, 0.1))
    assert all(map(math.isnan, w))
    assert not found.optimizer.m[0].isfinite().any()


def test_without_a_scale_it_is_an_error_and_nothing_has_changed() -> None:
    given = gradients([1.0], [INF], [1.0])
    model = Dot(1)
    trainer = TrainerFromScratch(model, SGDFromScratch(model.parameters(), 1.0), given, loss_fn=mean)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert str(error.value) == (
        "TrainerFromScratch: update 2 has loss -inf and a gradient of norm inf; no parameter was changed; "
        "hint: a smaller lr, max_grad_norm, or look at the data"
    )
    assert model.w.tolist() == [-1.0]


def test_a_skipped_update_moves_batchnorms_averages_here_and_not_in_ft_trainer() -> None:
    torch.manual_seed(0)
    given = [(torch.randn(8, 3), 1e4 * torch.randn(8, 2))]
    mine, theirs = NormNet(), NormNet()
    trainer = TrainerFromScratch(
        mine, SGDFromScratch(mine.parameters(), 0.0), given, max_epochs=1, loss_fn=F.mse_loss, **FP16
    )
    trainer.train()
    ft.Trainer(theirs, ft.sgd(0.0), given, max_epochs=1, loss_fn=F.mse_loss, precision="fp16").train()
    assert trainer.history[0]["skipped"] == 1
    assert mine.norm.running_mean.count_nonzero() == 5
    assert theirs.norm.running_mean.count_nonzero() == 0


# --- clipping

ODD = gradients(*[[1.0]] * 5, [1e6], *[[1.0]] * 200)


def test_without_clipping_one_odd_batch_throws_descent_far_away() -> None:
    def descend(p: Any) -> SGDFromScratch:
        return SGDFromScratch(p, lr=0.01)

    assert run(ODD, make=descend)[1][0] < -1e4
    assert run(ODD, make=descend, max_grad_norm=1.0)[1] == pytest.approx([-206 * 0.01])


def test_and_makes_adams_updates_too_small_for_long_after() -> None:
    """Of a gradient that stays, an update is lr; 100 updates after the odd one it is a thousandth of that."""

    def adam(p: Any) -> AdamWFromScratch:
        return AdamWFromScratch(p, 0.01, weight_decay=0.0)

    def last_update(**settings: Any) -> float:
        before, after = (run(ODD[:n], make=adam, **settings)[1][0] for n in (105, 106))
        return before - after

    assert last_update() < 0.01 / 1000
    assert last_update(max_grad_norm=1.0) == pytest.approx(0.01)


# --- the schedule


def rates(trainer: Any, given: Any, **settings: Any) -> list[float]:
    """The rates of updates that were applied, by a schedule that is the number of updates before."""
    found, _ = run(given, trainer, scheduler=lambda u: float(u), **settings)
    return [row["learning_rate"] for row in found.history if not row["skipped"]]


def test_counted_up_before_the_step_the_schedule_never_uses_its_first_value() -> None:
    given = gradients(*[[1.0]] * 4)
    assert rates(TrainerFromScratch, given) == [0.0, 1.0, 2.0, 3.0]
    assert rates(trainer_without(("self.scheduler(self.updates)", "self.scheduler(self.updates + 1)")), given)[0] == 1.0


def test_counted_in_batches_the_schedule_ends_n_times_too_early() -> None:
    given = gradients(*[[1.0]] * 8)
    assert rates(TrainerFromScratch, given, grad_accum_steps=4) == [0.0, 1.0]
    batches = ("self.scheduler(self.updates)", "self.scheduler(self.updates * self.grad_accum_steps)")
    assert rates(trainer_without(batches), given, grad_accum_steps=4) == [0.0, 4.0]


def test_an_update_that_was_skipped_does_not_count() -> None:
    given = [(x.float(), y.float()) for x, y in gradients([1.0], [INF], [1.0], [INF], [1.0])]
    assert rates(TrainerFromScratch, given, **FP16) == [0.0, 1.0, 2.0]


def test_a_warm_up_that_goes_up_in_a_line_and_down_as_half_a_cosine() -> None:
    schedule = without("trainer_from_scratch").warmup_cosine(1.0, warmup=4, total=12)
    assert [schedule(u) for u in (0, 1, 2, 3, 4)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert schedule(8) == pytest.approx(0.5)
    assert schedule(12) == schedule(99) == 0.0
