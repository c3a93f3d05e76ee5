"""Rules that divide by the size of gradients: first steps by hand, guards, dtypes, derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax
import pytest
import torch
from torch import Tensor

from functrain import tree
from functrain.base import GradientTransformation
from functrain.transforms.adaptive import (
    scale_by_adam,
    scale_by_lion,
    scale_by_rms,
    scale_by_sign,
    scale_by_stddev,
)
from tests.oracle import assert_agrees, gradients

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)

RULES: dict[str, Callable[[], GradientTransformation]] = {
    "adam": scale_by_adam,
    "adam without eps": lambda: scale_by_adam(eps=0.0),
    "nadam": lambda: scale_by_adam(nesterov=True),
    "rms": scale_by_rms,
    "rms without eps": lambda: scale_by_rms(eps=0.0),
    "rms, eps outside": lambda: scale_by_rms(eps_in_sqrt=False),
    "rms, corrected": lambda: scale_by_rms(eps_in_sqrt=False, bias_correction=True),
    "stddev": scale_by_stddev,
    "stddev, eps outside": lambda: scale_by_stddev(eps_in_sqrt=False),
}
every_rule = pytest.mark.parametrize("make", RULES.values(), ids=RULES)


def updates_of(tx: GradientTransformation, gs: list[float]) -> list[float]:
    state, seen = tx.init(torch.zeros(1, dtype=torch.float64)), []
    for g in gs:
        u, state = tx.update(torch.tensor([g], dtype=torch.float64), state)
        seen.append(u.item())
    return seen


# --- by hand


def test_adam_by_hand() -> None:
    """b1 = b2 = 1/2, gradients 1 and 3: mu/c = 1, (3/2 + 1/4) / (3/4); nu/c = 1, (9/2 + 1/4) / (3/4)."""
    u = updates_of(scale_by_adam(0.5, 0.5, eps=0.0), [1.0, 3.0])
    assert u == pytest.approx([1.0, (7 / 3) / (19 / 3) ** 0.5], rel=1e-14)


def test_nesterov_adam_by_hand() -> None:
    """At t = 1: (1/2) (1/2) / (3/4) + (1/2) 1 / (1/2)."""
    assert updates_of(scale_by_adam(0.5, 0.5, eps=0.0, nesterov=True), [1.0]) == pytest.approx([4 / 3], rel=1e-14)


def test_eps_is_beside_the_root_and_eps_root_under_it() -> None:
    assert updates_of(scale_by_adam(0.0, 0.0, eps=1.0), [3.0]) == pytest.approx([3 / 4], rel=1e-14)
    assert updates_of(scale_by_adam(0.0, 0.0, eps=0.0, eps_root=16.0), [3.0]) == pytest.approx([3 / 5], rel=1e-14)


def test_rms_by_hand() -> None:
    assert updates_of(scale_by_rms(0.5, eps=16.0 - 4.5), [3.0]) == pytest.approx([3 / 4], rel=1e-14)
    outside = scale_by_rms(0.5, eps=1.0, initial_scale=1.0, eps_in_sqrt=False)
    assert updates_of(outside, [1.0, 1.0]) == pytest.approx([1 / 2, 1 / 2], rel=1e-14)


def test_stddev_by_hand() -> None:
    """b = 1/2, gradient 2: nu - mu² = 2 - 1."""
    assert updates_of(scale_by_stddev(0.5, eps=0.0), [2.0]) == pytest.approx([2.0], rel=1e-14)
    assert updates_of(scale_by_stddev(0.5, eps=3.0, eps_in_sqrt=False), [2.0]) == pytest.approx([2 / 4], rel=1e-14)


def test_lion_by_hand() -> None:
    """The update looks at b1, the memory at b2: mu = 1/2 after the first gradient of 1."""
    assert updates_of(scale_by_lion(0.9, 0.5), [1.0, -4.0, -5.0, 0.0]) == [1.0, 1.0, -1.0, -1.0]
    assert updates_of(scale_by_lion(0.9, 0.5), [0.0]) == [0.0]
    smooth = scale_by_lion(0.5, 0.5, mode="smooth", smooth_beta=2.0)
    assert updates_of(smooth, [1.0]) == pytest.approx([torch.tanh(torch.tensor(1.0, dtype=torch.float64)).item()])
    assert updates_of(scale_by_lion(0.5, 0.5, mode="refined"), [1.0, 8.0]) == [0.5, 1.0]


def test_sign_by_hand() -> None:
    u, _ = scale_by_sign().update(torch.tensor([-2.0, 0.0, 3.0]), ())
    assert u.tolist() == [-1.0, 0.0, 1.0]
    u, _ = scale_by_sign().update(torch.tensor([3 + 4j, 0j]), ())
    torch.testing.assert_close(u, torch.tensor([0.6 + 0.8j, 0j]))


def test_rms_with_correction_is_adam_without_a_mean() -> None:
    gs = [1.0, -3.0, 0.5, 2.0]
    rms = scale_by_rms(0.99, eps_in_sqrt=False, bias_correction=True)
    assert updates_of(rms, gs) == pytest.approx(updates_of(scale_by_adam(0.0, 0.99), gs), rel=1e-14)


# --- guards


@every_rule
@every_float
def test_zero_tiny_and_huge_gradients_give_finite_updates(
    make: Callable[[], GradientTransformation], dtype: torch.dtype
) -> None:
    tx, info = make(), torch.finfo(dtype)
    for size in (0.0, info.smallest_normal * info.eps, info.tiny, info.max**0.5 / 8):
        params = {"w": torch.ones(3, dtype=dtype), "b": torch.ones((), dtype=dtype)}
        state = tx.init(params)
        for _ in range(3):
            u, state = tx.update(tree.map(lambda p, x=size: torch.full_like(p, x), params), state)
            assert all(x.isfinite().all() and x.dtype == dtype for x in tree.leaves(u))


def test_a_variance_that_rounding_makes_negative_is_zero() -> None:
    tx = scale_by_stddev(0.9, eps=1e-8, eps_in_sqrt=False)
    g = torch.tensor([0.1, 0.3, 1.7, 1234.567])
    state = tx.init(g)
    for _ in range(300):
        u, state = tx.update(g, state)
        assert u.isfinite().all()


@every_rule
def test_the_derivative_of_an_update_is_finite_where_no_gradient_has_ever_been(
    make: Callable[[], GradientTransformation],
) -> None:
    tx = make()

    def after_three(g: Tensor) -> Tensor:
        state = tx.init(torch.zeros(3, dtype=torch.float64))
        for _ in range(3):
            u, state = tx.update(g * g, state)
        return u.sum()

    at = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    assert torch.func.grad(after_three)(at).isfinite().all()
    assert torch.func.grad(lambda g: torch.func.grad(after_three)(g).sum())(at).isfinite().all()


def test_the_derivative_of_adam_at_a_zero_gradient_is_the_limit_of_its_slope() -> None:
    """With b1 = b2 = 0 the update is g / (|g| + eps), whose slope at zero is 1 / eps."""

    def update(g: Tensor) -> Tensor:
        tx = scale_by_adam(0.0, 0.0, eps=0.25)
        return tx.update(g, tx.init(g))[0]

    assert torch.func.grad(update)(torch.zeros((), dtype=torch.float64)) == 4.0


# --- dtypes


@pytest.mark.parametrize("make", [scale_by_adam, scale_by_lion], ids=lambda f: f.__name__)
def test_mu_dtype_is_the_dtype_of_the_mean_alone(make: Callable[..., GradientTransformation]) -> None:
    tx = make(mu_dtype=torch.bfloat16)
    g = {"w": torch.ones(3), "b": torch.ones(())}
    state = tx.init(g)
    for _ in range(2):
        u, state = tx.update(g, state)
    assert {x.dtype for x in tree.leaves(u)} == {torch.float32}
    assert {x.dtype for x in tree.leaves(tree.get(state, "mu"))} == {torch.bfloat16}
    if make is scale_by_adam:
        assert {x.dtype for x in tree.leaves(tree.get(state, "nu"))} == {torch.float32}


def test_a_mean_kept_in_float32_agrees_with_optax_in_float64() -> None:
    assert_agrees(scale_by_adam(mu_dtype=torch.float32), lambda: optax.scale_by_adam(mu_dtype="float32"))


def test_a_mean_kept_in_bfloat16_is_rounded_once_an_update() -> None:
    tx = scale_by_adam(0.9, mu_dtype=torch.bfloat16)
    state, mu = tx.init(torch.zeros(())), torch.zeros(())
    for g in gradients(5):
        _, state = tx.update(g["head"]["scale"].float(), state)
        mu = (0.9 * mu + (1 - 0.9) * g["head"]["scale"].float()).bfloat16().float()
        assert torch.equal(state.mu.float(), mu)


def test_the_state_keeps_its_dtype_under_gradients_of_another() -> None:
    tx, p = scale_by_adam(), torch.zeros(2)
    u, state = tx.update(torch.ones(2, dtype=torch.float64), tx.init(p))
    assert (u.dtype, state.mu.dtype, state.nu.dtype) == (torch.float64, torch.float32, torch.float32)


def test_hyper_parameters_may_be_tensors_and_mapped() -> None:
    g = torch.tensor([1.0, -2.0])

    def update(b1: Tensor, b2: Tensor) -> Tensor:
        tx = scale_by_adam(b1, b2)
        state = tx.init(g)
        for _ in range(2):
            u, state = tx.update(g * g, state)
        return u

    b1, b2 = torch.tensor([0.5, 0.9]), torch.tensor([0.9, 0.99])
    mapped = torch.func.vmap(update)(b1, b2)
    torch.testing.assert_close(mapped, torch.stack([update(b1[0], b2[0]), update(b1[1], b2[1])]))


# --- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_by_adam(b1=1.0), "scale_by_adam: b1 must be in [0, 1), got 1.0"),
        (lambda: scale_by_adam(b2=-0.1), "scale_by_adam: b2 must be in [0, 1), got -0.1"),
        (lambda: scale_by_adam(eps=-1e-8), "scale_by_adam: eps must be >= 0 and finite, got -1e-08"),
        (lambda: scale_by_adam(eps_root=-1.0), "scale_by_adam: eps_root must be >= 0 and finite, got -1.0"),
        (lambda: scale_by_rms(decay=1.5), "scale_by_rms: decay must be in [0, 1), got 1.5"),
        (lambda: scale_by_rms(eps=-1.0), "scale_by_rms: eps must be >= 0 and finite, got -1.0"),
        (lambda: scale_by_rms(initial_scale=-1.0), "scale_by_rms: initial_scale must be >= 0 and finite, got -1.0"),
        (lambda: scale_by_stddev(decay=1.5), "scale_by_stddev: decay must be in [0, 1), got 1.5"),
        (lambda: scale_by_stddev(eps=-1.0), "scale_by_stddev: eps must be >= 0 and finite, got -1.0"),
        (lambda: scale_by_lion(b1=2.0), "scale_by_lion: b1 must be in [0, 1), got 2.0"),
        (lambda: scale_by_lion(b2=1.0), "scale_by_lion: b2 must be in [0, 1), got 1.0"),
        (
            lambda: scale_by_lion(mode="soft"),
            "scale_by_lion: mode must be 'hard', 'smooth' or 'refined', got 'soft'",
        ),
    ],
)
def test_a_value_outside_its_range_is_an_error(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        call()
    assert str(error.value) == message
