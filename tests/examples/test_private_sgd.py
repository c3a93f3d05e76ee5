"""The example of private SGD: clipping against a loop, the noise by its moments, the account against its definition."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functrain as ft
from tests.example import load
from tests.networks import D, mlp, points

pytestmark = pytest.mark.long  # it needs the extras `examples` and `plot`


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("private_sgd")


def trained(module: nn.Module, tx: ft.GradientTransformation, updates: int) -> dict[str, Tensor]:
    """The parameters after some updates on one batch of 6."""
    model = ft.functionalize(module)
    step = ft.train_step(model.loss(F.mse_loss), tx, gradients="per_example")
    state = ft.TrainState.create(model, tx)
    for _ in range(updates):
        state, _ = step(state, points(6, dtype=D))
    return state.params


def test_without_noise_an_update_is_a_loop_over_clipped_examples(example: ModuleType) -> None:
    torch.manual_seed(0)
    module, (x, y) = mlp(3, 5, 2, dtype=D), points(6, dtype=D)
    new = trained(module, example.private_sgd(0.1, noise=0.0, clip=1.0, length=8, seed=0), 1)
    total, clipped = [torch.zeros_like(p) for p in module.parameters()], 0
    for i in range(6):
        grads = torch.autograd.grad(F.mse_loss(module(x[i]), y[i]), list(module.parameters()))
        norm = torch.cat([g.flatten() for g in grads]).norm().item()
        clipped += norm > 1
        for t, g in zip(total, grads, strict=True):
            t += g * min(1, 1 / norm)
    assert 0 < clipped < 6
    for p, after, t in zip(module.parameters(), new.values(), total, strict=True):
        torch.testing.assert_close(after, (p - 0.1 * t / 8).detach(), rtol=1e-12, atol=1e-14)


def test_one_example_moves_the_sum_by_the_clip_at_most(example: ModuleType) -> None:
    """The sensitivity that the account stands on."""
    add = example.add_each(ft.clip_by_global_norm(0.5))
    g = {"a": 100 * torch.randn(7, 4, 3, dtype=D), "b": torch.randn(7, 2, dtype=D)}
    whole, _ = add.update(g, ())
    for i in range(7):
        rest, _ = add.update(ft.tree.map(lambda x, i=i: torch.cat([x[:i], x[i + 1 :]]), g), ())
        assert ft.tree.norm(ft.tree.map(torch.sub, whole, rest)).item() <= 0.5 + 1e-12


def test_without_noise_and_with_a_clip_that_never_bites_it_is_torchs_sgd(example: ModuleType) -> None:
    torch.manual_seed(0)
    module, (x, y) = mlp(3, 5, 2, dtype=D), points(6, dtype=D)
    new = trained(module, example.private_sgd(0.1, noise=0.0, clip=1e9, length=6, seed=0), 20)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(module(x), y).backward()
        optimizer.step()
    for p, after in zip(module.parameters(), new.values(), strict=True):
        torch.testing.assert_close(after, p.detach(), rtol=1e-10, atol=1e-12)


def test_the_noise_has_the_deviation_told_and_no_memory(example: ModuleType) -> None:
    tx, g = example.add_noise(3.0, seed=1), {"a": torch.full((200, 500), 7.0), "b": torch.zeros(100_000)}
    first, state = tx.update(g, tx.init(g))
    second, _ = tx.update(g, state)
    draws = [x.flatten() - mean for u in (first, second) for x, mean in ((u["a"], 7.0), (u["b"], 0.0))]
    n = len(draws[0])
    for z in draws:  # five standard errors each
        assert abs(z.mean().item()) < 5 * 3 / math.sqrt(n)
        assert abs(z.std().item() / 3 - 1) < 5 / math.sqrt(2 * n)
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlations.abs().max().item() < 5 / math.sqrt(n)


def test_the_noise_is_scaled_by_the_clip_and_divided_by_the_length(example: ModuleType) -> None:
    g = {"a": torch.zeros(5, 100_000)}
    tx = example.private_sgd(1.0, noise=3.0, clip=0.5, length=10, seed=0)
    u, _ = tx.update(g, tx.init({"a": torch.zeros(100_000)}))
    assert u["a"].std().item() == pytest.approx(3 * 0.5 / 10, rel=5 / math.sqrt(200_000))


def test_the_noise_is_a_function_of_seed_and_count(example: ModuleType) -> None:
    g = torch.zeros(5)
    draw = lambda seed: example.add_noise(1.0, seed).update(g, example.add_noise(1.0, seed).init(g))[0]  # noqa: E731
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def converted(rho: float, alpha: float, delta: float) -> float:
    """Balle et al. 2020, theorem 21."""
    return rho + math.log((alpha - 1) / alpha) - (math.log(delta) + math.log(alpha)) / (alpha - 1)


@pytest.mark.parametrize(("noise", "updates"), [(1.0, 1), (4.0, 10), (20.0, 500)])
def test_without_sampling_epsilon_is_the_closed_form(example: ModuleType, noise: float, updates: int) -> None:
    closed = min(converted(updates * a / (2 * noise**2), a, 1e-5) for a in example.ORDERS)
    assert example.epsilon(1.0, noise, updates, 1e-5) == pytest.approx(closed, rel=1e-12)


def test_the_bound_holds_for_the_exact_epsilon_of_the_gaussian_mechanism(example: ModuleType) -> None:
    """δ(ε) = Φ(1/2σ - εσ) - e^ε Φ(-1/2σ - εσ): Balle & Wang 2018, theorem 8. T updates are one of noise σ / √T."""
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=D), 1.0)
    for noise, updates in ((1.0, 1), (4.0, 10), (20.0, 500)):
        sigma, eps = noise / math.sqrt(updates), example.epsilon(1.0, noise, updates, 1e-5)
        a, b = (normal.cdf(torch.tensor(s / (2 * sigma) - eps * sigma, dtype=D)).item() for s in (1, -1))
        assert 1e-7 < a - math.exp(eps) * b < 1e-5


@pytest.mark.parametrize("noise", [2.0, 4.0, 8.0])
def test_with_sampling_epsilon_is_what_the_docstrings_formula_says(
    example: ModuleType, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, updates, delta = example.L / example.N, 300, example.DELTA

    def term(k: int, a: int) -> float:
        return math.comb(a, k) * (1 - q) ** (a - k) * q**k * math.exp((k * k - k) / (2 * noise**2))

    def rho(a: int) -> float:
        return math.log(math.fsum(term(k, a) for k in range(a + 1))) / (a - 1)

    whole = min(converted(updates * rho(a), a, delta) for a in range(2, 64))
    assert example.epsilon(q, noise, updates, delta) <= whole * (1 + 1e-9)  # fractions only find less
    monkeypatch.setattr(example, "ORDERS", list(range(2, 64)))
    assert example.epsilon(q, noise, updates, delta) == pytest.approx(whole, rel=1e-9)


def test_the_divergence_is_the_integral_that_defines_it(example: ModuleType) -> None:
    """ρ(α) = log E[((1 - q) + q exp((2z - 1) / 2σ²))^α] / (α - 1), z ~ N(0, σ²), fractions too."""
    q, noise = example.L / example.N, 1.0
    z = torch.linspace(-20, 60, 400_001, dtype=D)
    density = (-z.square() / (2 * noise**2)).exp() / (noise * math.sqrt(2 * math.pi))
    ratio = (1 - q) + q * ((2 * z - 1) / (2 * noise**2)).exp()
    for alpha in (1.5, 2.0, 3.7, 10.0):
        integral = torch.trapezoid(density * ratio**alpha, z).item()
        (found,) = example.compute_rdp(q=q, noise_multiplier=noise, steps=1, orders=[alpha])
        assert found == pytest.approx(math.log(integral) / (alpha - 1), rel=1e-9)
