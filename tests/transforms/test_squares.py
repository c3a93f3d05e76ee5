"""Squares and roots."""

from __future__ import annotations

import pytest
import torch

from functrain import tree
from functrain.transforms.squares import abs_sq, root, squares_like

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@every_float
def test_root_is_the_square_root_bit_for_bit_above_the_least_normal_number(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.finfo(dtype).tiny, 1e-3, 0.5, 1.0, 2.0, 1e4, torch.finfo(dtype).max], dtype=dtype)
    assert torch.equal(root(x), x.sqrt())
    assert torch.equal(root(x, 0.25), (x + 0.25).sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_eps_beside_the_root_makes_the_floor_invisible(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1e-310, 1e-45, torch.finfo(dtype).tiny], dtype=dtype)
    assert torch.equal(root(x) + 1e-8, x.sqrt() + 1e-8)


@every_float
def test_root_has_a_finite_first_and_second_derivative_at_zero(dtype: torch.dtype) -> None:
    first = torch.func.grad(lambda x: root(x))
    assert first(torch.zeros((), dtype=dtype)) == 0
    assert torch.func.grad(first)(torch.zeros((), dtype=dtype)) == 0


@every_float
def test_zero_over_its_root_is_zero(dtype: torch.dtype) -> None:
    zero = torch.zeros((), dtype=dtype)
    assert zero / root(zero) == 0


def test_root_lets_a_nan_be_seen() -> None:
    assert root(torch.tensor(float("nan"))).isnan()
    assert root(torch.tensor(float("inf"))).isinf()


def test_abs_sq_is_real() -> None:
    assert torch.equal(abs_sq(torch.tensor([3.0, -2.0])), torch.tensor([9.0, 4.0]))
    assert torch.equal(abs_sq(torch.tensor([3 + 4j, -2 + 0j])), torch.tensor([25.0, 4.0]))


def test_squares_and_roots_of_many_leaves_are_those_of_each_bit_for_bit() -> None:
    leaves = [torch.randn(7), torch.randn(3, 2), torch.randn(()), torch.zeros(0)]
    together = tree.pointwise(lambda x: root(abs_sq(x)), leaves)
    for x, y in zip(leaves, together, strict=True):
        assert torch.equal(y, root(abs_sq(x)))


def test_squares_begin_real_and_in_at_least_float32() -> None:
    params = [torch.ones(2, dtype=d) for d in (torch.float16, torch.bfloat16, torch.float64, torch.complex64)]
    begun = squares_like([*params, torch.ones(())], 0.5)
    assert isinstance(begun, list)
    assert [x.dtype for x in begun] == [torch.float32] * 2 + [torch.float64] + [torch.float32] * 2
    assert all(bool((x == 0.5).all()) for x in begun)
    assert begun[-1].shape == ()
