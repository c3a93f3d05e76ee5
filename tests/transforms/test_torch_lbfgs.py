"""L-BFGS: its parts by the book, the rule by torch.optim.LBFGS."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from functrain import tree
from functrain.base import apply_updates
from functrain.combinators.wrap import inject_hyperparams
from functrain.transforms.torch_lbfgs import torch_lbfgs
from functrain.transforms.torch_quasi_newton import Memory, first_length, first_memory, remember, turn, two_loops

N = 5


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- the direction


def with_pairs(count: int) -> Memory:
    """A memory of pairs (s, y = A s) of a positive definite A."""
    root = drawn(0, N, N)
    memory = first_memory(torch.zeros(N, dtype=torch.float64))
    for i in range(1, count + 1):
        s = drawn(i, N)
        y = (root @ root.T + torch.eye(N, dtype=torch.float64)) @ s
        memory = memory._replace(
            old_dirs=(*memory.old_dirs, y),
            old_stps=(*memory.old_stps, s),
            ro=(*memory.ro, 1 / y.dot(s)),
            H_diag=y.dot(s) / y.dot(y),
        )
    return memory


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_two_loops_multiply_by_the_matrix_that_the_bfgs_formula_builds(count: int) -> None:
    """Equation 7.16: H ← (I - ρ s yᵀ) H (I - ρ y sᵀ) + ρ s sᵀ, from γ I."""
    memory, g, eye = with_pairs(count), drawn(9, N), torch.eye(N, dtype=torch.float64)
    H = memory.H_diag * eye
    for y, s, rho in zip(memory.old_dirs, memory.old_stps, memory.ro, strict=True):
        V = eye - rho * torch.outer(y, s)
        H = V.T @ H @ V + rho * torch.outer(s, s)
    d, al = two_loops(memory, g)
    torch.testing.assert_close(d, -H @ g)
    assert len(al) == count


def test_the_newest_pair_is_met_exactly() -> None:
    """The secant equation: H y = s."""
    memory = with_pairs(3)
    torch.testing.assert_close(-two_loops(memory, memory.old_dirs[-1])[0], memory.old_stps[-1])


def test_the_history_by_hand() -> None:
    """From gradient (1, 0) along d = (-2, 1), half way, to gradient (-1, 3): y = (-2, 3), s = (-1, 1/2)."""
    before = first_memory(numbers(0, 0))._replace(n_iter=1, d=numbers(-2, 1), t=0.5, prev_flat_grad=numbers(1, 0))
    memory = remember(before, numbers(-1, 3), 10)
    assert [x.tolist() for x in (*memory.old_dirs, *memory.old_stps, *memory.ro)] == [[-2, 3], [-1, 0.5], 1 / 3.5]
    assert memory.H_diag == pytest.approx(3.5 / 13)
    assert before.old_dirs == ()


def test_a_pair_without_curvature_is_not_remembered() -> None:
    before = first_memory(numbers(0, 0))._replace(n_iter=1, d=numbers(1, 0), t=1.0, prev_flat_grad=numbers(0, 0))
    for y in (-1.0, 0.0, 1e-10, math.nan):
        assert remember(before, numbers(y, 5), 10) is before
    assert len(remember(before, numbers(2e-10, 5), 10).ro) == 1


def test_a_full_history_forgets_the_oldest_pair() -> None:
    memory = with_pairs(3)
    memory = memory._replace(n_iter=3, d=numbers(*range(1, 6)), t=1.0)
    for size in (3, 2, 1):
        new = remember(memory, memory.d, size)
        kept = memory.old_stps[3 - (size - 1) :] if size > 1 else ()
        assert all(a is b for a, b in zip(new.old_stps[:-1], kept, strict=True))
        assert len(new.old_dirs) == len(new.ro) == size
        assert torch.equal(new.old_stps[-1], memory.d)


def test_the_first_direction_is_minus_the_gradient_with_a_one_norm_of_at_most_the_rate() -> None:
    g = numbers(3, -4, 1)
    assert torch.equal(turn(first_memory(g), g, 10).d, -g)
    assert float(first_length(g, 0.5)) == 0.5 / 8
    assert first_length(g / 100, 0.5) == 0.5


# --- the rule


def rosenbrock(p: Any) -> Tensor:
    x = torch.cat([x.reshape(-1) for x in tree.leaves(p)])
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def corner(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "a": [torch.tensor([[-1.2, 1.0]], dtype=dtype), torch.tensor(0.5, dtype=dtype)],
        "b": torch.zeros(2, 1, dtype=dtype),
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "fixed": {"lr": 0.02},
    "short history": {"lr": 0.05, "history_size": 2},
    "one iteration": {"lr": 0.01, "max_iter": 1},
    "line search": {"line_search_fn": "strong_wolfe"},
    "few evaluations": {"max_eval": 3, "line_search_fn": "strong_wolfe", "history_size": 3},
    "tolerance of the gradient": {"tolerance_grad": 5.0, "line_search_fn": "strong_wolfe"},
    "tolerance of change": {"tolerance_change": 1e-2, "line_search_fn": "strong_wolfe"},
    "tiny rate": {"lr": 1e-4, "max_iter": 4, "line_search_fn": "strong_wolfe"},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)], ids=str)
def test_fifteen_updates_are_fifteen_steps_of_torchs(name: str, dtype: torch.dtype, tolerance: float) -> None:
    kwargs = dict(SETTINGS[name])
    params = corner(dtype)
    theirs = tree.map(lambda p: p.clone().requires_grad_(), params)
    optimizer = torch.optim.LBFGS(tree.leaves(theirs), **kwargs)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = rosenbrock(theirs)
        loss.backward()
        return loss

    tx = torch_lbfgs(kwargs.pop("lr", 1), **kwargs)
    state = tx.init(params)
    for _ in range(15):
        before = optimizer.step(closure)
        grads, loss = torch.func.grad_and_value(rosenbrock)(params)
        torch.testing.assert_close(loss, before.detach(), rtol=tolerance, atol=tolerance)
        updates, state = tx.update(grads, state, params, value_fn=rosenbrock)
        params = apply_updates(params, updates)
        for ours, p in zip(tree.leaves(params), tree.leaves(theirs), strict=True):
            assert (ours - p).norm() <= tolerance * p.norm()
    (kept,) = [s for s in optimizer.state.values() if s]
    assert (int(state.n_iter), int(state.func_evals)) == (kept["n_iter"], kept["func_evals"])


def test_a_complex_parameter_goes_as_torchs_goes() -> None:
    target = torch.tensor([1 + 2j, -3 + 0.5j, 2j], dtype=torch.complex128)

    def loss(z: Tensor) -> Tensor:
        return (z - target).abs().square().square().sum()

    params = torch.zeros(3, dtype=torch.complex128)
    theirs = params.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([theirs], lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(theirs)
        value.backward()
        return value

    tx = torch_lbfgs(0.5)
    state = tx.init(params)
    for _ in range(4):
        optimizer.step(closure)
        updates, state = tx.update(torch.func.grad(loss)(params), state, params, value_fn=loss)
        params = apply_updates(params, updates)
    torch.testing.assert_close(params, theirs.detach(), rtol=1e-10, atol=1e-10)


def test_one_update_reaches_the_bottom_of_a_bowl() -> None:
    root = drawn(3, 6, 6)

    def bowl(p: Tensor) -> Tensor:
        return 0.5 * (root @ p - root.sum(1)).square().sum()

    params = torch.zeros(6, dtype=torch.float64)
    tx = torch_lbfgs(max_iter=60, line_search_fn="strong_wolfe")
    updates, _ = tx.update(torch.func.grad(bowl)(params), tx.init(params), params, value_fn=bowl)
    torch.testing.assert_close(updates, torch.ones_like(params), rtol=1e-4, atol=1e-4)


def test_parameters_that_want_gradients_are_left_alone() -> None:
    params = torch.ones(2, requires_grad=True)
    tx = torch_lbfgs(line_search_fn="strong_wolfe")
    updates, state = tx.update(torch.ones(2), tx.init(params), params, value_fn=lambda p: p.square().sum())
    assert params.grad is None
    assert not any(x.requires_grad for x in (updates, *state))


def test_the_rate_may_be_a_tensor_that_a_state_holds() -> None:
    params = corner(torch.float64)
    grads = torch.func.grad(rosenbrock)(params)
    fixed, injected = torch_lbfgs(0.01), inject_hyperparams(torch_lbfgs)(learning_rate=0.01)
    u, _ = fixed.update(grads, fixed.init(params), params, value_fn=rosenbrock)
    v, _ = injected.update(grads, injected.init(params), params, value_fn=rosenbrock)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(u), tree.leaves(v), strict=True))


# --- what is refused

HOST = (
    "torch_lbfgs: how it goes on depends on numbers, which compiled, mapped and differentiated code does not have; "
    "hint: call update in plain eager code"
)


def one_update(g: Tensor) -> Tensor:
    tx = torch_lbfgs()
    return tx.update(g, tx.init(torch.ones(2)), torch.ones(2), value_fn=lambda p: p.square().sum())[0]


@pytest.mark.parametrize(
    "elsewhere",
    [
        lambda: torch.func.vmap(one_update)(torch.ones(3, 2)),
        lambda: torch.func.grad(lambda g: one_update(g).sum())(torch.ones(2)),
        lambda: torch.compile(one_update, backend="eager", fullgraph=True)(torch.ones(2)),
    ],
    ids=["vmap", "grad", "compile"],
)
def test_outside_plain_eager_code_it_says_why_it_cannot(elsewhere: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match=re.escape(HOST)):
        elsewhere()


def test_a_missing_gradient_is_an_error() -> None:
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    tx = torch_lbfgs()
    text = "torch_lbfgs: the gradient has 2 entries and the state 5; hint: it needs the gradient of every parameter"
    with pytest.raises(ValueError, match=f"^{text}$"):
        tx.update({"a": torch.ones(2), "b": ()}, tx.init(params), params, value_fn=rosenbrock)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be >= 0 and finite, got -1.0"),
        ({"max_iter": 0}, "max_iter must be an integer >= 1, got 0"),
        ({"max_eval": 0}, "max_eval must be an integer >= 1, got 0"),
        ({"history_size": 0}, "history_size must be an integer >= 1, got 0"),
        ({"line_search_fn": "wolfe"}, "line_search_fn must be 'strong_wolfe' or None, got 'wolfe'"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^torch_lbfgs: {re.escape(text)}$"):
        torch_lbfgs(**kwargs)
