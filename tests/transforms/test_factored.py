"""Factored mean squares: what they lose, what they keep, large leaves against Optax, missing gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from functrain import tree
from functrain.base import GradientTransformation, apply_updates
from functrain.optimizers.layerwise import adafactor
from functrain.testing import strategies
from functrain.transforms.factored import decay_rate_pow, scale_by_factored_rms
from tests.entries.layerwise import jax_adafactor, jax_factored
from tests.oracle import assert_bitwise, to_jax

POSITIVE = st.floats(0.1, 10)


def column(n: int) -> st.SearchStrategy[Tensor]:
    return st.lists(POSITIVE, min_size=n, max_size=n).map(lambda xs: torch.tensor(xs, dtype=torch.float64))


# --- by hand


def test_a_factored_mean_square_by_hand() -> None:
    """Squares 1, 4 / 9, 36 / 25, 100: the columns are 1 : 4, so nothing is lost; the longer dimension is averaged."""
    g = torch.tensor([[1.0, -2.0], [3.0, 6.0], [-5.0, 10.0]], dtype=torch.float64)
    tx = scale_by_factored_rms(min_dim_size_to_factor=2, epsilon=0.0)
    u, state = tx.update(g, tx.init(g))
    assert state.v_row.tolist() == pytest.approx([35 / 3, 140 / 3])
    assert state.v_col.tolist() == pytest.approx([2.5, 22.5, 62.5])
    assert state.v == ()
    torch.testing.assert_close(u, g.sign(), rtol=1e-14, atol=0)


def test_a_mean_square_that_is_not_factored_by_hand() -> None:
    """β = 0, then 1 - 1/2 with k = 1; ε = 3 is added to squares."""
    tx = scale_by_factored_rms(decay_rate=1.0, epsilon=3.0)
    g = torch.tensor([1.0], dtype=torch.float64)
    u, state = tx.update(g, tx.init(g))
    assert (u.item(), state.v.item()) == (0.5, 4.0)
    u, state = tx.update(3 * g, state)
    assert (u.item(), state.v.item()) == (3 / 8**0.5, 8.0)
    assert (state.v_row, state.v_col) == ((), ())


def test_the_decay_is_one_minus_a_power_of_t_in_float64() -> None:
    for i in (0, 1, 9, 10**6):
        assert decay_rate_pow(torch.tensor(i, dtype=torch.int32), 0.8).item() == 1 - (i + 1) ** -0.8


def test_the_offset_is_left_out_of_t() -> None:
    seen: list[int] = []

    def spy(i: Tensor, exponent: object) -> Tensor:
        seen.append(int(i))
        return torch.zeros(())

    tx, g = scale_by_factored_rms(step_offset=-5, decay_rate_fn=spy), torch.ones(2)
    _, state = tx.update(g, tx.init(g))
    tx.update(g, state)
    assert seen == [5, 6]


# --- what is factored, and what it costs


@pytest.mark.parametrize(
    ("shape", "row", "col"),
    [
        ((3, 2), (2,), (3,)),
        ((2, 3), (2,), (3,)),
        ((3, 3), (3,), (3,)),
        ((2, 5, 4), (2, 4), (2, 5)),
        ((4, 1, 3, 5), (4, 1, 3), (1, 3, 5)),
        ((4, 1), (), ()),
        ((9,), (), ()),
        ((), (), ()),
        ((0, 7), (), ()),
    ],
)
def test_two_numbers_short_of_a_matrix(shape: tuple[int, ...], row: tuple[int, ...], col: tuple[int, ...]) -> None:
    """The row lacks the largest dimension, the column the second largest; small leaves are kept whole."""
    state = scale_by_factored_rms(min_dim_size_to_factor=2).init(torch.ones(shape))
    if row:
        assert (state.v_row.shape, state.v_col.shape, state.v) == (row, col, ())
    else:
        assert (state.v_row, state.v_col, state.v.shape) == ((), (), shape)


def test_adafactor_remembers_n_plus_m_numbers_of_a_matrix() -> None:
    state = adafactor(0.1).init({"w": torch.ones(200, 300)})
    assert tree.size(state) == 200 + 300 + 3  # two counters and a rate


@given(column(4), column(3), st.lists(POSITIVE, min_size=1, max_size=4), st.booleans())
def test_of_squares_that_are_a_row_times_a_column_nothing_is_lost(
    rows: Tensor, columns: Tensor, sizes: list[float], turned: bool
) -> None:
    g = torch.outer(rows, columns)
    g = g.T if turned else g
    short, long = (scale_by_factored_rms(factored, min_dim_size_to_factor=2) for factored in (True, False))
    product, whole = short.init(g), long.init(g)
    for size in sizes:
        u, product = short.update(size * g, product)
        v, whole = long.update(size * g, whole)
        torch.testing.assert_close(u, v, rtol=1e-12, atol=0)


def test_a_matrix_of_zeros_without_eps_stays_where_it_is() -> None:
    tx, g = scale_by_factored_rms(min_dim_size_to_factor=1, epsilon=0.0), torch.zeros(3, 2)
    u, state = tx.update(g, tx.init(g))
    assert torch.equal(u, g)
    u, _ = tx.update(torch.ones(3, 2), state)
    assert u.isfinite().all()


# --- leaves that are large enough by default


def large(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (160, 130), "kernel": (3, 140, 2, 150), "narrow": (200, 100), "bias": (130,)}
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}


def assert_large_agree(tx: GradientTransformation, make: Callable[[], Any], rtol: float) -> None:
    params = large(0)
    state = tx.init(params)
    with jax.enable_x64(True):
        oracle, theirs = make(), to_jax(params)
        their_state, step = oracle.init(theirs), jax.jit(oracle.update)
        for t in range(1, 26):
            g = large(t)
            u, state = tx.update(g, state, params)
            params = apply_updates(params, u)
            their_u, their_state = step(to_jax(g), their_state, theirs)
            theirs = optax.apply_updates(theirs, their_u)
            for name, x in u.items():
                torch.testing.assert_close(x, torch.from_numpy(np.array(their_u[name])), rtol=rtol, atol=1e-15)


def test_large_leaves_are_factored_as_in_optax() -> None:
    tx = adafactor(0.1, momentum=0.9, dtype_momentum=torch.float64, weight_decay_rate=0.01)
    assert_large_agree(
        tx,
        lambda: jax_adafactor(
            jax_factored(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_learning_rate(0.1, flip_sign=False),
            optax.scale_by_param_block_rms(),
            optax.ema(0.9, debias=False, accumulator_dtype="float64"),
            optax.add_decayed_weights(0.01),
        ),
        rtol=1e-9,
    )
    assert {name for name, v in tx.init(large(0))[0].v.items() if v == ()} == {"matrix", "kernel"}


def test_optax_itself_is_as_near_as_its_decay_in_float32() -> None:
    assert_large_agree(adafactor(0.1), lambda: optax.adafactor(0.1), rtol=1e-6)


# --- missing gradients


@given(strategies.trees([torch.float64]).flatmap(lambda t: st.tuples(st.just(t), strategies.with_holes(t))))
def test_a_leaf_without_a_gradient_keeps_its_rows_and_columns(drawn: tuple[tree.Tree, tree.Tree]) -> None:
    params, holed = drawn
    tx = scale_by_factored_rms(min_dim_size_to_factor=1)
    _, state = tx.update(tree.map(torch.ones_like, params), tx.init(params))
    u, new = tx.update(holed, state)
    assert tree.paths(u) == tree.paths(holed)
    assert tree.paths(new) == tree.paths(state)
    whole, _ = tx.update(params, state)
    expected = dict(zip(tree.paths(whole), tree.leaves(whole), strict=True))
    for path, x in zip(tree.paths(u), tree.leaves(u), strict=True):
        assert torch.equal(x, expected[path])
    seen = set(tree.paths(holed))
    for field in ("v_row", "v_col", "v"):
        old_field, new_field = tree.get(state, field), tree.get(new, field)
        for path, a, b in zip(tree.paths(old_field), tree.leaves(old_field), tree.leaves(new_field), strict=True):
            assert path in seen or a is b


def test_a_chain_with_a_missing_gradient_leaves_that_parameter_alone() -> None:
    params = {"w": torch.ones(3, 2), "b": torch.ones(3)}
    tx = adafactor(0.1, 2, momentum=0.9, weight_decay_rate=0.1)
    state = tx.init(params)
    u, new = tx.update({"w": None, "b": torch.ones(3)}, state, params)
    after = apply_updates(params, u)
    assert after["w"] is params["w"]
    assert not torch.equal(after["b"], params["b"])
    assert_bitwise(tree.get(new, "v_row"), tree.get(state, "v_row"))


# --- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: scale_by_factored_rms(decay_rate=-1.0),
            "scale_by_factored_rms: decay_rate must be >= 0 and finite, got -1.0",
        ),
        (
            lambda: scale_by_factored_rms(epsilon=-1.0),
            "scale_by_factored_rms: epsilon must be >= 0 and finite, got -1.0",
        ),
        (
            lambda: scale_by_factored_rms(min_dim_size_to_factor=0),
            "scale_by_factored_rms: min_dim_size_to_factor must be an integer >= 1, got 0",
        ),
    ],
)
def test_a_value_outside_its_range_is_an_error(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        call()
    assert str(error.value) == message
