"""Clipping: what is bounded, what is untouched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from functrain import tree
from functrain.base import GradientTransformation
from functrain.transforms.clip import clip, clip_by_block_rms, clip_by_global_norm

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
CLIPS = [clip, clip_by_block_rms, clip_by_global_norm]
every_clip = pytest.mark.parametrize("factory", CLIPS, ids=lambda f: f.__name__)


def update(tx: GradientTransformation, g: object) -> object:
    return tx.update(g, tx.init(g))[0]


def test_clip_by_hand() -> None:
    assert update(clip(1.0), {"w": torch.tensor([-3.0, 0.5, 2.0])}) == {"w": pytest.approx([-1.0, 0.5, 1.0])}


def test_clip_by_global_norm_by_hand() -> None:
    u = update(clip_by_global_norm(1.0), [torch.tensor([3.0]), torch.tensor(4.0)])
    assert [x.tolist() for x in tree.leaves(u)] == [[pytest.approx(0.6)], pytest.approx(0.8)]


def test_clip_by_block_rms_by_hand() -> None:
    u = update(clip_by_block_rms(1.0), [torch.tensor([3.0, 4.0]), torch.tensor([0.1])])
    assert tree.leaves(u)[0].tolist() == pytest.approx([3 / 12.5**0.5, 4 / 12.5**0.5])
    assert tree.leaves(u)[1].tolist() == [torch.tensor(0.1).item()]


@every_clip
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_is_small_is_untouched_bit_for_bit(
    factory: Callable[..., GradientTransformation], dtype: torch.dtype
) -> None:
    g = {"w": torch.linspace(-0.1, 0.1, 7).to(dtype), "b": torch.tensor(1e-7).to(dtype)}
    u = update(factory(1.0), g)
    for x, y in zip(tree.leaves(u), tree.leaves(g), strict=True):
        assert x.dtype == dtype
        assert torch.equal(x, y)


@every_clip
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_bound_beyond_the_dtype_bounds_nothing(
    factory: Callable[..., GradientTransformation], dtype: torch.dtype
) -> None:
    g = torch.full((3,), 3e4, dtype=dtype)
    assert torch.equal(update(factory(1e6), g), g)


def test_the_clipped_norm_is_the_bound_and_the_direction_stays() -> None:
    g = {"w": torch.randn(5, 3, dtype=torch.float64), "b": torch.randn(3, dtype=torch.float64)}
    u = update(clip_by_global_norm(0.01), g)
    assert tree.norm(u).item() == pytest.approx(0.01, rel=1e-14)
    for x, y in zip(tree.leaves(u), tree.leaves(g), strict=True):
        torch.testing.assert_close(x / x.norm(), y / y.norm(), rtol=1e-13, atol=0)


def test_the_norm_of_half_precision_gradients_does_not_overflow() -> None:
    u = update(clip_by_global_norm(1.0), torch.full((4,), 3e4, dtype=torch.float16))
    assert u.tolist() == [0.5] * 4


@pytest.mark.parametrize("factory", [clip_by_block_rms, clip_by_global_norm], ids=lambda f: f.__name__)
def test_zeros_stay_zeros_and_have_a_finite_derivative(factory: Callable[..., GradientTransformation]) -> None:
    tx = factory(1.0)

    def total(g: Tensor) -> Tensor:
        return sum(x.sum() for x in tree.leaves(update(tx, {"a": g, "b": 2 * g})))

    zeros = torch.zeros(3, dtype=torch.float64)
    assert total(zeros) == 0
    assert torch.func.grad(total)(zeros).tolist() == [3.0] * 3


def test_a_gradient_that_is_not_finite_is_not_hidden() -> None:
    u = tree.leaves(update(clip_by_global_norm(1.0), {"a": torch.tensor([float("nan")]), "b": torch.ones(2)}))
    assert all(x.isnan().all() for x in u)


@every_clip
def test_an_empty_tree_and_an_empty_leaf_are_nothing_to_clip(factory: Callable[..., GradientTransformation]) -> None:
    assert update(factory(1.0), {}) == {}
    assert update(factory(1.0), torch.zeros(0, 3)).shape == (0, 3)


def test_complex_entries_have_no_order() -> None:
    with pytest.raises(RuntimeError, match="complex"):
        update(clip(1.0), torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("factory", "argument"),
    [(clip, "max_delta"), (clip_by_block_rms, "threshold"), (clip_by_global_norm, "max_norm")],
)
@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf")])
def test_a_bound_that_is_not_positive_is_an_error(factory: Callable[..., object], argument: str, bad: float) -> None:
    with pytest.raises(ValueError, match=argument) as error:
        factory(bad)
    assert str(error.value) == f"{factory.__name__}: {argument} must be > 0 and finite, got {bad}"
