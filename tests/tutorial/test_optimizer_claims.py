"""What `optimizer_from_scratch.py` says in its text, in numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from functrain.tutorial import AdamWFromScratch, SGDFromScratch
from tests.tutorial.sources import without

D = torch.float64


def parameter(*numbers: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(numbers, dtype=D))


def feed(optimizer: Any, gradients: Any) -> Tensor:
    """How far each update moves the first parameter."""
    (p, *_), moved = optimizer.params, []
    for g in gradients:
        before = p.detach().clone()
        p.grad = torch.as_tensor(g, dtype=D).expand(p.shape).clone()
        optimizer.step()
        moved.append(p.detach() - before)
    return torch.stack(moved)


def descend(optimizer: Any, curvature: Tensor, updates: int) -> None:
    """Updates in the valley ½ Σ h p²."""
    for _ in range(updates):
        (p,) = optimizer.params
        p.grad = curvature * p.detach()
        optimizer.step()


# --- descent


@pytest.mark.parametrize("h", [0.5, 4.0, 50.0])
def test_descent_shrinks_below_2_over_h_and_grows_above(h: float) -> None:
    for times, shrinks in ((0.01, True), (1.99, True), (2.01, False)):
        descend(SGDFromScratch([p := parameter(1.0)], lr=times / h), torch.tensor(h, dtype=D), 100)
        assert (p.abs().item() < 1) == shrinks
        assert p.item() == pytest.approx((1 - times) ** 100, rel=1e-9)


def test_at_condition_number_1000_a_factor_e_takes_500_steps_and_one_direction_alone_takes_one() -> None:
    curvature = torch.tensor([1.0, 1000.0], dtype=D)
    descend(SGDFromScratch([p := parameter(1.0, 0.0)], lr=2 / 1000), curvature, 500)
    assert p[0].item() == pytest.approx(1 / math.e, rel=0.01)
    descend(SGDFromScratch([p := parameter(1.0, 0.0)], lr=1.0), curvature, 1)
    assert p[0].item() == 0.0


# --- momentum


def test_gradients_that_agree_step_ten_times_as_far() -> None:
    steps = feed(SGDFromScratch([parameter(0.0)], lr=0.1, momentum=0.9), [1.0] * 200)
    assert steps[0].item() == pytest.approx(-0.1)
    assert steps[-1].item() == pytest.approx(-1.0)


def test_gradients_that_alternate_cancel_to_about_half_a_step() -> None:
    steps = feed(SGDFromScratch([parameter(0.0)], lr=0.1, momentum=0.9), [1.0, -1.0] * 100)
    assert steps[-1].item() == pytest.approx(0.1 / 1.9)


def test_momentum_averages_noise_as_nineteen_batches_would() -> None:
    optimizer = SGDFromScratch([nn.Parameter(torch.zeros(20_000))], lr=1.0, momentum=0.9)
    draw = torch.Generator().manual_seed(0)
    for _ in range(100):
        optimizer.params[0].grad = torch.randn(20_000, generator=draw)
        optimizer.step()
    average = (1 - 0.9) * optimizer.m[0]
    assert average.var().item() == pytest.approx(1 / 19, rel=0.05)


def test_nesterov_takes_the_gradient_where_momentum_is_about_to_carry_the_parameters() -> None:
    """The first form in the text, written out: θ, and a gradient at θ - η β m."""
    h, lr, b = torch.tensor([1.0, 30.0], dtype=D), 0.02, 0.9
    theta, m = torch.tensor([1.0, -2.0], dtype=D), torch.zeros(2, dtype=D)
    optimizer = SGDFromScratch([p := parameter(1.0, -2.0)], lr, b, nesterov=True)
    for _ in range(50):
        m = b * m + h * (theta - lr * b * m)
        theta = theta - lr * m
        descend(optimizer, h, 1)
        torch.testing.assert_close(p.detach(), theta - lr * b * m, rtol=1e-12, atol=1e-14)


# --- Adam


def test_no_update_of_adam_depends_on_the_scale_of_the_loss() -> None:
    gradients = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=D)
    once, times = (
        feed(AdamWFromScratch([parameter(1, 2, 3, 4)], 0.1, eps=0.0, weight_decay=0.0), scale * gradients)
        for scale in (1, 1000)
    )
    torch.testing.assert_close(once, times, rtol=1e-9, atol=0)


def test_adam_moves_by_lr_where_gradients_agree_and_by_little_where_they_are_noise() -> None:
    draw = torch.Generator().manual_seed(0)
    agree, noise = (
        feed(AdamWFromScratch([parameter(0.0)], lr=0.1, weight_decay=0.0), gradients).abs()
        for gradients in ([3.0] * 500, torch.randn(500, generator=draw, dtype=D))
    )
    assert agree.min().item() == pytest.approx(0.1, rel=1e-6)
    assert noise[-100:].mean().item() < 0.03


NO_CORRECTION = ("m / (1 - b1**t)", "m"), ("v / (1 - b2**t)", "v")


def test_without_bias_correction_the_first_update_is_3_times_lr_and_the_tenth_6_times() -> None:
    """Of a gradient that stays, every update is lr; uncorrected, lr (1 - β₁ᵗ) / √(1 - β₂ᵗ)."""
    right = feed(AdamWFromScratch([parameter(0.0)], lr=1.0, weight_decay=0.0), [0.3] * 3000)
    torch.testing.assert_close(right, -torch.ones_like(right), rtol=0, atol=1e-5)
    adamw = without("optimizer_from_scratch", *NO_CORRECTION).AdamWFromScratch
    wrong = feed(adamw([parameter(0.0)], lr=1.0, weight_decay=0.0), [0.3] * 3000)
    assert wrong[[0, 9]].flatten().tolist() == pytest.approx([-3.16, -6.53], abs=0.01)
    assert wrong[999].item() < -1.2
    assert wrong[2999].item() > -1.03


def test_the_expectation_of_the_average_is_the_mean_times_1_minus_beta_to_the_t() -> None:
    draw = torch.Generator().manual_seed(0)
    optimizer = AdamWFromScratch([nn.Parameter(torch.zeros(50_000))], lr=0.0)
    for t in range(1, 21):
        optimizer.params[0].grad = 2.0 + torch.randn(50_000, generator=draw)
        optimizer.step()
        assert optimizer.m[0].mean().item() == pytest.approx(2.0 * (1 - 0.9**t), abs=0.01)
        assert optimizer.v[0].mean().item() == pytest.approx(5.0 * (1 - 0.999**t), abs=0.01)


def test_gradients_the_size_of_eps_make_half_the_step() -> None:
    (step,) = feed(AdamWFromScratch([parameter(0.0)], lr=1.0, eps=1e-8, weight_decay=0.0), [1e-8])
    assert step.item() == pytest.approx(-0.5)


def test_without_t_a_memory_that_was_saved_is_corrected_twice() -> None:
    optimizer = AdamWFromScratch([parameter(0.0)], lr=1.0, weight_decay=0.0)
    feed(optimizer, [1.0] * 3000)
    optimizer.t = [0]
    (step,) = feed(optimizer, [1.0])
    assert step.item() == pytest.approx(-0.32, abs=0.01)  # 10 m over √(1000 v)


# --- weight decay

NOISE = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0), dtype=D) * torch.tensor([1.0, 100.0])
L2 = (
    ("g = p.grad\n            self.t[i]", "g = p.grad + self.weight_decay * p\n            self.t[i]"),
    (
        "+ self.eps) + self.weight_decay * p)",
        "+ self.eps))",
    ),
)


def pulled(adamw: Any) -> list[float]:
    """What decay has made of two parameters that began at 1, whose gradients are noise of sizes 1 and 100."""
    optimizer = adamw([p := parameter(1.0, 1.0)], lr=1e-3, weight_decay=0.1)
    other = adamw([q := parameter(1.0, 1.0)], lr=1e-3, weight_decay=0.0)
    feed(optimizer, NOISE)
    feed(other, NOISE)
    return (p - q).tolist()


def test_decoupled_decay_pulls_both_alike_and_l2_the_one_with_large_gradients_a_hundred_times_less() -> None:
    alike = pulled(AdamWFromScratch)
    assert alike == pytest.approx([(1 - 1e-4) ** 2000 - 1] * 2, rel=0.05)
    l2 = pulled(without("optimizer_from_scratch", *L2).AdamWFromScratch)
    assert l2[0] / l2[1] == pytest.approx(100, rel=0.1)


def test_in_plain_descent_a_penalty_and_a_shrinkage_are_the_same() -> None:
    lr, decay = 0.1, 0.2
    gradients = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=D)
    feed(SGDFromScratch([p := parameter(1, 2, 3)], lr, weight_decay=decay), gradients)
    q = torch.tensor([1.0, 2, 3], dtype=D)
    for g in gradients:
        q = (1 - lr * decay) * q - lr * g
    torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=1e-14)


# --- in place


def test_without_no_grad_autograd_refuses_the_step() -> None:
    head = (
        '    def step(self) -> None:\n        """One update, from the gradients that are there."""\n        for p, m in'
    )
    sgd = without("optimizer_from_scratch", (f"    @torch.no_grad()\n{head}", head)).SGDFromScratch
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad is being used in an in-place operation"):
        feed(sgd([parameter(1.0)], lr=0.1), [1.0])


def test_a_gradient_of_zero_moves_a_parameter_and_none_does_not() -> None:
    for make in (lambda p: SGDFromScratch(p, 0.1, 0.9), lambda p: AdamWFromScratch(p, 0.1)):
        zero, none = parameter(1.0), parameter(1.0)
        optimizer = make([zero, none])
        zero.grad, none.grad = (torch.ones(1, dtype=D) for _ in range(2))
        optimizer.step()
        before = zero.item()
        zero.grad, none.grad = torch.zeros(1, dtype=D), None
        optimizer.step()
        assert zero.item() != before
        assert none.item() == before
