"""Schedule-free optimizers: what they are made of, and what they are for."""

from __future__ import annotations

import pytest
import torch

from functrain import schedules, tree
from functrain.base import GradientTransformation, apply_updates
from functrain.combinators.average import schedule_free, schedule_free_eval_params
from functrain.combinators.chain import chain
from functrain.optimizers.averaged import schedule_free_adamw, schedule_free_sgd
from functrain.optimizers.momentum import sgd
from functrain.transforms.adaptive import scale_by_rms
from functrain.transforms.decay import add_decayed_weights
from functrain.transforms.scale import scale_by_learning_rate
from tests.oracle import assert_bitwise, gradients, run

RATE = schedules.warmup_constant_schedule(0.0, 0.1, 3)

SPELLED: dict[str, tuple[GradientTransformation, GradientTransformation]] = {
    "adamw": (
        schedule_free_adamw(0.1, 3, 0.8, 0.95, 1e-3, 0.5, 1.0, torch.float32),
        schedule_free(
            chain(
                scale_by_rms(0.95, 1e-3, eps_in_sqrt=False, bias_correction=True),
                add_decayed_weights(0.5),
                scale_by_learning_rate(RATE),
            ),
            RATE, 0.8, 1.0, torch.float32,
        ),
    ),
    "sgd": (
        schedule_free_sgd(0.1, 3, 0.8, 0.5, 1.0, torch.float32),
        schedule_free(chain(add_decayed_weights(0.5), sgd(RATE)), RATE, 0.8, 1.0, torch.float32),
    ),
    "sgd without decay": (schedule_free_sgd(0.1), schedule_free(sgd(0.1), 0.1)),
}  # fmt: skip


@pytest.mark.parametrize(("alias", "spelled"), SPELLED.values(), ids=SPELLED)
def test_an_alias_is_the_transformation_that_it_names_bit_for_bit(
    alias: GradientTransformation, spelled: GradientTransformation
) -> None:
    a, b = run(alias, gradients(5)), run(spelled, gradients(5))
    assert_bitwise(a.updates, b.updates)
    assert_bitwise(a.params, b.params)


def test_the_average_is_nearer_to_the_minimum_than_the_newest_point_under_noise() -> None:
    """½ |p - 1|² with noise of deviation one in each gradient."""
    draw = torch.Generator().manual_seed(0)
    tx, params = schedule_free_sgd(0.5), {"w": torch.zeros(100, dtype=torch.float64)}
    state = tx.init(params)
    for _ in range(200):
        noise = torch.randn(100, generator=draw, dtype=torch.float64)
        u, state = tx.update(tree.map(lambda p, n=noise: p - 1 + n, params), state, params)
        params = apply_updates(params, u)
    average = schedule_free_eval_params(state, params)["w"]
    assert 3 * (average - 1).norm() < (tree.get(state, "z")["w"] - 1).norm()


def test_the_first_update_of_a_warmup_goes_nowhere_but_weighs_something() -> None:
    ran = run(schedule_free_adamw(0.1, 4), gradients(1))
    assert not any(u.any() for u in tree.leaves(ran.updates))
    assert float(tree.get(ran.states[0], "weight_sum")) == pytest.approx(0.025**2)
