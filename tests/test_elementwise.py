"""A large leaf in pieces is the leaf in one piece, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from functrain import elementwise, tree
from functrain.testing import strategies
from tests.test_batch import OUTER, assert_same, formulas, loop, outcome


@pytest.fixture(autouse=True, scope="module")
def pieces_of_sixty_four_bytes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elementwise, "PIECE_BYTES", 64)
        yield


@st.composite
def large(draw: st.DrawFn) -> list[tree.Tree]:
    """Two trees of a leaf that is cut, between small ones."""
    dtype, other = draw(st.sampled_from(strategies.FLOATS)), draw(st.sampled_from(strategies.FLOATS))
    shape = draw(st.sampled_from(((45,), (7, 11), (97,), (3, 5, 9))))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return [
        [torch.ones(3, dtype=kind), 3 * torch.randn(shape, dtype=torch.float64, generator=generator).to(kind)]
        for kind in (dtype, other)
    ]


@given(formulas(), large())
@example("torch.add(x, y, alpha=0.1)", [[torch.linspace(0, 3, 97)], [torch.linspace(-1, 2, 97)]])
@example("torch.sub(x, y, alpha=0.1)", [[torch.linspace(0, 3, 97)], [torch.linspace(-1, 2, 97)]])
@example("x * s64 + y / 3", [[torch.linspace(0, 3, 97)], [torch.linspace(-1, 2, 97)]])
def test_a_formula_of_pieces_is_bitwise_the_formula_of_the_leaf(source: str, trees: list[tree.Tree]) -> None:
    f = eval(f"lambda x, y: {source}", {"torch": torch, **OUTER})
    got, expected = outcome(lambda: tree.pointwise(f, *trees)), outcome(lambda: loop(f, *trees))
    if isinstance(expected, type):
        assert got == expected
    else:
        assert_same(got, expected)


@pytest.mark.parametrize(
    ("f", "pieces"),
    [
        (lambda x: 0.9 * x + (1 - 0.9) * x * x, True),
        (lambda x: (x / OUTER["s64"]).sqrt().clamp(min=1e-3), True),
        (lambda x: x.exp(), False),
        (lambda x: x**1.5, False),
        (lambda x: torch.lerp(x, 2 * x, 0.1), False),
        (lambda x: x - x.mean(), False),
        (lambda x: x if isinstance(x, Tensor) else None, False),
    ],
)
def test_pieces_are_for_exact_formulas(f: Callable[..., object], pieces: bool) -> None:
    (out,) = tree.pointwise(f, [torch.linspace(1, 2, 100)])
    assert_same(out, f(torch.linspace(1, 2, 100)))
    assert elementwise._exact(f, [torch.ones(100)]) is pieces


@pytest.mark.parametrize("layout", ["transposed", "stepped", "offset"])
def test_a_large_leaf_of_any_layout_is_the_loop(layout: str) -> None:
    leaf = strategies.lay(torch.linspace(1, 2, 96).reshape(12, 8), layout)
    f = lambda x: 2 * x + 1  # noqa: E731
    assert_same(tree.pointwise(f, [leaf]), [f(leaf)])


def test_a_gradient_reaches_a_scalar_outside_a_large_leaf() -> None:
    s = torch.tensor(2.0, requires_grad=True)
    (out,) = tree.pointwise(lambda x: x * s, [torch.ones(100)])
    assert torch.autograd.grad(out.sum(), s)[0] == 100
