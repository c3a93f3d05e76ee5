"""A rule of one's own, tested by properties: functrain's laws, and what its own mathematics promises.

    python examples/property_test_my_rule.py              # seconds on a CPU; also shows two faults being found
    python -m pytest examples/property_test_my_rule.py    # the same properties, as tests

The rule follows a weighted mean of the gradients so far. A mean lies between the least and the greatest of what it is a
mean of: that is the rule's own property. Two variants have a fault each. One forgets the correction that makes it a
mean, which the property finds; the other writes into its state, which a law finds. What is found is the smallest that
Hypothesis can make of it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import functrain as ft
from functrain.testing import laws, strategies


class MomentumState(NamedTuple):
    """The running mean of the gradient."""

    count: Tensor  # (), int32: updates so far
    mean: object  # like params


@ft.rule
def momentum(learning_rate: float, decay: float = 0.9) -> ft.GradientTransformation:
    """Follow the mean of the gradients so far, with rate η > 0 and decay β in [0, 1).

        m ← β m + (1 - β) g
        u = -η m / (1 - βᵗ)

    The update divided by -η lies between the least and the greatest gradient so far, entry by entry.
    """

    def init(params: object) -> MomentumState:
        return MomentumState(torch.zeros((), dtype=torch.int32), ft.tree.zeros_like(params))

    def update(g: object, state: MomentumState, params: object = None) -> tuple[object, MomentumState]:
        t = state.count + 1
        m = ft.tree.pointwise(lambda m, g: decay * m + (1 - decay) * g, state.mean, g)
        correction = -torch.expm1(t.double() * math.log(decay)) if decay else 1.0  # 1 - βᵗ
        return ft.tree.pointwise(lambda m: -learning_rate * (m / correction), m), MomentumState(t, m)

    return ft.GradientTransformation(init, update, local=True)


@ft.rule
def uncorrected(learning_rate: float, decay: float = 0.9) -> ft.GradientTransformation:
    """Without the division by 1 - βᵗ: the first steps are too small."""
    return ft.chain(ft.ema(decay, debias=False), ft.scale_by_learning_rate(learning_rate))


@ft.rule
def overwriting(learning_rate: float, decay: float = 0.9) -> ft.GradientTransformation:
    """With the new mean written over the old: right, as long as nobody looks at an old state."""
    right = momentum(learning_rate, decay)

    def update(g: object, state: MomentumState, params: object = None) -> tuple[object, MomentumState]:
        updates, new = right.update(g, state)
        return updates, MomentumState(new.count, ft.tree.map(Tensor.copy_, state.mean, new.mean))

    return ft.GradientTransformation(right.init, update, local=True)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(-8, 8), min_size=1, max_size=5), strategies.decays())
def check_mean(rule: Callable[..., ft.GradientTransformation], gradients: list[float], decay: float) -> None:
    """The rule's own property, of gradients and decays that Hypothesis draws."""
    tx, sequence = rule(1.0, decay), torch.tensor(gradients, dtype=torch.float64)
    updates, state = (), tx.init(sequence[0])
    for g in sequence:
        updates, state = tx.update(g, state)
    rounding = 1e-9 * sequence.abs().max() + torch.finfo(torch.float64).tiny  # a tenth of 5e-324 is zero
    between = sequence.min() - rounding <= -updates <= sequence.max() + rounding
    assert between, f"{tx}: the mean of {gradients} cannot be {-updates:.3g}"


def found(check: Callable[..., object], *args: object) -> str:
    """The smallest counterexample; empty if there is none."""
    try:
        check(*args)
    except AssertionError as error:
        return str(error).splitlines()[0]
    return ""


def test_the_rule_keeps_the_laws() -> None:
    laws.check_all(momentum(0.1))


def test_the_update_is_a_mean_of_the_gradients() -> None:
    check_mean(momentum)


def main(examples: int = 100) -> None:
    """The properties of the rule, and what is found of the variants."""
    slow = [HealthCheck.too_slow]  # a busy machine is no fault of a rule's
    settings.register_profile("program", max_examples=examples, derandomize=True, suppress_health_check=slow)
    settings.load_profile("program")
    test_the_rule_keeps_the_laws()
    test_the_update_is_a_mean_of_the_gradients()
    print(f"{momentum(0.1)} is a mean, and keeps the laws {', '.join(laws.LAWS)}")
    print(f"found: {found(check_mean, uncorrected)}\nfound: {found(laws.check_pure, overwriting(0.1))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer draws")
    main(*((15,) if parser.parse_args().short else ()))
