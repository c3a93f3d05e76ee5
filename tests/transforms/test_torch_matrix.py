"""Adafactor and Muon as torch.optim has them: first steps by hand, PyTorch's numbers, missing gradients, messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from functrain import tree
from functrain.base import apply_updates
from functrain.combinators.wrap import inject_hyperparams
from functrain.transforms.torch_matrix import newton_schulz, scale_by_torch_adafactor, scale_by_torch_muon

SHAPES = {"matrix": (3, 2), "vector": (4,), "number": (), "kernel": (2, 3, 2, 4), "empty": (2, 0), "column": (5, 1)}


def drawn(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()}


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def first_update(tx: Any, g: Any, p: Any) -> Any:
    return tx.update(g, tx.init(p), p)[0]


# --- Adafactor


def test_the_first_adafactor_step_is_minus_rho_rms_of_p_along_the_sign() -> None:
    """At t = 1 the memory is empty, V = g²: u = ±1, of rms 1. rms(3, 4) = √12.5."""
    u = first_update(scale_by_torch_adafactor(0.1), vector(2.0, -1e-3), vector(3.0, 4.0))
    torch.testing.assert_close(u, 0.1 * 12.5**0.5 * vector(-1.0, 1.0))


def test_the_second_adafactor_step_by_hand() -> None:
    """1 - β = 2^-0.5, V = 4 + 2^-0.5 (1 - 4), ρ = min(0.9, 1/√2) times 5; û is under 1 / d and not shrunk."""
    tx, p = scale_by_torch_adafactor(0.9, -0.5, d=2.0), vector(5.0, 5.0)
    _, state = tx.update(vector(2.0, 2.0), tx.init(p), p)
    u, state = tx.update(vector(1.0, -1.0), state, p)
    v = 4 - 3 * 2**-0.5
    torch.testing.assert_close(state.variance, vector(v, v))
    torch.testing.assert_close(u, 5 * 2**-0.5 * vector(-1.0, 1.0) / v**0.5)


def test_a_parameter_that_is_still_zero_counts_as_eps2() -> None:
    u = first_update(scale_by_torch_adafactor(0.1, eps=(None, 1e-2)), vector(3.0), vector(0.0))
    torch.testing.assert_close(u, vector(-1e-3))


def test_the_factors_of_a_gradient_of_rank_one_are_exact() -> None:
    g = torch.outer(vector(1.0, 2.0, 4.0), vector(3.0, -1.0))
    u = first_update(scale_by_torch_adafactor(1.0), g, torch.ones_like(g))
    torch.testing.assert_close(u, -torch.sign(g))


def test_an_update_has_at_most_the_rms_that_d_allows() -> None:
    """The memory holds a gradient a thousand times smaller: û would be 44, and is d."""
    tx, p = scale_by_torch_adafactor(1e-2, d=1.5), torch.ones(6, dtype=torch.float64)
    _, state = tx.update(p * 1e-3, tx.init(p), p)
    for _ in range(100):
        _, state = tx.update(p * 1e-3, state, p)
    u, _ = tx.update(p, state, p)
    torch.testing.assert_close(u, -1.5e-2 * p)


def test_adafactor_keeps_rows_and_columns_in_torchs_shapes_and_nothing_else() -> None:
    params = drawn(0)
    state = scale_by_torch_adafactor().init(params)
    theirs = [p.clone().requires_grad_() for p in params.values()]
    optimizer = torch.optim.Adafactor(theirs)
    for p in theirs:
        p.grad = torch.zeros_like(p)
    theirs[4].grad = None  # torch divides by its number of entries
    optimizer.step()
    for (name, _), p in zip(SHAPES.items(), theirs, strict=True):
        for field in ("row_var", "col_var", "variance"):
            ours = getattr(state, field)[name]
            if name == "empty":
                assert [x.shape for x in (state.row_var[name], state.col_var[name])] == [(2, 1), (1, 0)]
            elif field in optimizer.state[p]:
                assert ours.shape == optimizer.state[p][field].shape
            else:
                assert ours == ()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weight_decay_behind_adafactor_is_torchs(dtype: torch.dtype, tolerance: float, decay: float) -> None:
    lr = 0.05
    params: Any = {name: p for name, p in drawn(0, dtype).items() if p.numel()}
    theirs = [p.clone().requires_grad_() for p in params.values()]
    optimizer = torch.optim.Adafactor(theirs, lr, weight_decay=decay)
    tx = scale_by_torch_adafactor(lr)
    state = tx.init(params)
    for seed in range(1, 40):
        g: Any = {name: drawn(seed, dtype)[name] for name in params}
        for p, x in zip(theirs, g.values(), strict=True):
            p.grad = x.clone()
        optimizer.step()
        u, state = tx.update(g, state, params)
        params = apply_updates(params, tree.map(lambda u, p: u - lr * decay * p, u, params))
    for ours, p in zip(params.values(), theirs, strict=True):
        assert (ours - p).norm() <= tolerance * p.norm()


def test_eps1_of_none_is_the_epsilon_of_each_leafs_own_dtype() -> None:
    """A gradient far under ε₁ gives g / ε₁, before d = 1 bounds it."""
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        g = torch.full((2,), 1e-3 * torch.finfo(dtype).eps, dtype=dtype)
        both = {"other": torch.ones(2, dtype=torch.float16), "this": g}
        u = first_update(scale_by_torch_adafactor(1.0), both, tree.map(torch.ones_like, both))
        torch.testing.assert_close(u["this"].double(), vector(-1e-3, -1e-3), rtol=1e-2, atol=0.0)


# --- Muon


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (30, 30)])
def test_muon_keeps_the_singular_vectors_and_brings_the_values_near_one(shape: tuple[int, int]) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = newton_schulz(g, (3.4445, -4.7750, 2.0315), 1e-7, 5).double()
    left, values, right = torch.linalg.svd(g, full_matrices=False)
    turned = left.T @ u @ right.T
    kept = values > 0.1 * values[0]  # the others would need more steps
    assert bool(((turned.diagonal()[kept] > 0.6) & (turned.diagonal()[kept] < 1.3)).all())
    assert (turned - turned.diagonal().diag()).abs().max() < 0.05


def test_a_one_by_one_matrix_goes_through_the_polynomial() -> None:
    """x / |x| = 1 goes to a + b + c and so on."""
    a, b, c = 2.0, -1.5, 0.25
    sigma = 1.0
    for _ in range(3):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    u = newton_schulz(torch.tensor([[-7.0]]), (a, b, c), 1e-7, 3)
    assert u.item() == pytest.approx(-sigma, rel=0.02)
    assert u.dtype == torch.bfloat16


def test_the_shape_factors_by_hand() -> None:
    for shape, original, rms in [((8, 2), 2.0, 0.2 * 8**0.5), ((2, 8), 1.0, 0.2 * 8**0.5), ((3, 3), 1.0, 0.2 * 3**0.5)]:
        g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = newton_schulz(g, (3.4445, -4.7750, 2.0315), 1e-7, 5).double()
        for factor, name in [(original, None), (original, "original"), (rms, "match_rms_adamw")]:
            tx = scale_by_torch_muon(momentum=0.0, adjust_lr_fn=name)
            torch.testing.assert_close(first_update(tx, g, g), factor * x)


def test_the_momentum_buffer_by_hand() -> None:
    """μ = 3/4: m = g/4, then 3/4 m + g/4; a 1 x 1 direction has the sign of g + 3/4 (m - g)."""
    tx, p = scale_by_torch_muon(0.75), torch.zeros(1, 1, dtype=torch.float64)
    u, state = tx.update(p + 4.0, tx.init(p), p)
    assert state.momentum_buffer.item() == 1.0
    assert u.item() > 0
    u, state = tx.update(p - 2.0, state, p)
    assert state.momentum_buffer.item() == 0.25
    assert u.item() < 0  # -2 + 3/4 (1/4 + 2)
    plain = scale_by_torch_muon(0.75, nesterov=False)
    assert plain.update(p - 2.0, (state._replace(momentum_buffer=p + 1.0)), p)[0].item() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_zero_and_tiny_gradients_give_finite_directions(dtype: torch.dtype) -> None:
    tx = scale_by_torch_muon()
    for size in (0.0, torch.finfo(dtype).smallest_normal, torch.finfo(dtype).eps):
        g = size * torch.tensor([[1.0, -1.0], [0.0, 1.0]], dtype=dtype)
        u = first_update(tx, g, g)
        assert u.dtype == dtype
        assert u.isfinite().all()
        assert bool(u.any()) <= bool(size)


def exactly(x: Tensor, a: float, b: float, c: float, steps: int) -> Tensor:
    """The formula of a wide matrix in its own dtype."""
    x = x / x.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_a_matrix_and_a_mapped_stack_of_them_are_the_formula_within_a_few_percent_of_rounding() -> None:
    g = torch.randn(100, 30, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b, c = 3.4445, -4.7750, 2.0315
    exact = torch.stack([exactly(x, a, b, c, 5) for x in g])
    looped = torch.stack([newton_schulz(x, (a, b, c), 1e-7, 5) for x in g])
    mapped = torch.func.vmap(lambda x: newton_schulz(x, (a, b, c), 1e-7, 5))(g)
    tall = torch.func.vmap(lambda x: newton_schulz(x.T, (a, b, c), 1e-7, 5).T)(g)
    for rounded, error in [(looped, 0.02), (mapped, 0.04), (tall, 0.04)]:
        assert (rounded - exact).norm() < error * exact.norm()


# --- both


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (scale_by_torch_adafactor, {"learning_rate": 0.25, "beta2_decay": -0.5, "d": 2.0}),
        (scale_by_torch_muon, {"momentum": 0.75, "eps": 2.0**-20}),
    ],
)
def test_numbers_may_be_tensors_that_a_state_holds(make: Callable[..., Any], numbers: dict[str, float]) -> None:
    params = {"w": drawn(0)["matrix"]}
    fixed, injected = make(**numbers), inject_hyperparams(make)(**numbers)
    one, other = fixed.init(params), injected.init(params)
    for seed in range(1, 4):
        g = {"w": drawn(seed)["matrix"]}
        u, one = fixed.update(g, one, params)
        v, other = injected.update(g, other, params)
        torch.testing.assert_close(u, v, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("make", [scale_by_torch_adafactor, scale_by_torch_muon])
@pytest.mark.parametrize("hole", [(), None])
def test_a_leaf_without_gradient_keeps_its_state_and_the_others_do_not_notice(make: Any, hole: object) -> None:
    tx = make()
    names = ["matrix", "column"] if make is scale_by_torch_muon else ["matrix", "vector", "kernel", "number"]
    params = {name: drawn(0)[name] for name in names}
    state = tx.init(params)
    for missing in names:
        g: Any = {name: hole if name == missing else drawn(1)[name] for name in names}
        u, new = tx.update(g, state, params)
        there = {name: p for name, p in params.items() if name != missing}
        v, alone = tx.update({name: g[name] for name in there}, tx.init(there), there)
        assert u[missing] == ()
        for field in new._fields:
            now, was, other = (getattr(s, field) for s in (new, state, alone))
            if isinstance(now, dict):
                assert now[missing] is was[missing] or now[missing] == was[missing] == ()
                assert all(
                    torch.equal(x, y) for x, y in zip(*map(tree.leaves, ({**now, missing: ()}, other)), strict=True)
                )
        assert all(torch.equal(u[name], v[name]) for name in there)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: scale_by_torch_adafactor(-1.0),
            "scale_by_torch_adafactor: learning_rate must be >= 0 and finite, got -1.0",
        ),
        (
            lambda: scale_by_torch_adafactor(eps=(None, -1.0)),
            "scale_by_torch_adafactor: eps2 must be >= 0 and finite, got -1.0",
        ),
        (
            lambda: scale_by_torch_adafactor(beta2_decay=0.8),
            "scale_by_torch_adafactor: beta2_decay must be <= 0, got 0.8",
        ),
        (lambda: scale_by_torch_adafactor(d=0.5), "scale_by_torch_adafactor: d must be >= 1, got 0.5"),
        (
            lambda: scale_by_torch_adafactor().init({"z": torch.zeros(2, dtype=torch.complex64)}),
            "scale_by_torch_adafactor: parameter 'z' is complex, which this rule does not support; hint: give its real "
            "and imaginary parts as leaves of their own",
        ),
        (
            lambda: scale_by_torch_muon(momentum=-0.1),
            "scale_by_torch_muon: momentum must be >= 0 and finite, got -0.1",
        ),
        (
            lambda: scale_by_torch_muon(ns_coefficients=(1.0, 2.0)),
            "scale_by_torch_muon: ns_coefficients must be three numbers, got (1.0, 2.0)",
        ),
        (
            lambda: scale_by_torch_muon(ns_steps=100),
            "scale_by_torch_muon: ns_steps must be an integer in [0, 100), got 100",
        ),
        (
            lambda: scale_by_torch_muon(adjust_lr_fn="rms"),
            "scale_by_torch_muon: adjust_lr_fn must be 'original', 'match_rms_adamw' or None, got 'rms'",
        ),
        (
            lambda: scale_by_torch_muon().init({"a": {"b": torch.zeros(3)}}),
            "scale_by_torch_muon: parameter 'a.b' has shape (3,), and only matrices have an orthogonal one; hint: "
            "masked gives it some of the leaves, partition gives the others to another rule",
        ),
        (
            lambda: scale_by_torch_muon().init(torch.zeros(2, 2, dtype=torch.complex64)),
            "scale_by_torch_muon: parameter '' is complex, which this rule does not support; hint: give its real "
            "and imaginary parts as leaves of their own",
        ),
    ],
)
def test_what_is_refused_says_what_to_do(call: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        call()
