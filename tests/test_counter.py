"""The counter never wraps, and the correction is right to the last digits. Averages: test_bias_correction.py."""

from __future__ import annotations

import pytest
import torch

from functrain.counter import bias_correction, first_count, increment, wide


def test_the_first_count_is_an_int32_zero_of_no_dimensions() -> None:
    for params in ({"w": torch.ones(2)}, torch.ones(()), {}, ()):
        count = first_count(params)
        assert (count.dtype, count.shape, int(count)) == (torch.int32, (), 0)


def test_the_first_count_is_where_the_first_parameter_is() -> None:
    assert first_count({"w": torch.empty(2, device="meta")}).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int8])
def test_the_counter_saturates_instead_of_wrapping(dtype: torch.dtype) -> None:
    greatest = torch.iinfo(dtype).max
    count = torch.tensor(greatest - 2, dtype=dtype)
    seen = []
    for _ in range(4):
        count = increment(count)
        seen.append(int(count))
    assert seen == [greatest - 1, greatest, greatest, greatest]
    assert count.dtype == dtype


def test_increment_writes_to_no_argument() -> None:
    count = torch.tensor(3, dtype=torch.int32)
    assert increment(count) is not count
    assert int(count) == 3


def test_counters_advance_under_vmap() -> None:
    counts = torch.tensor([0, 5, 2**31 - 1], dtype=torch.int32)
    assert torch.func.vmap(increment)(counts).tolist() == [1, 6, 2**31 - 1]


def test_at_the_greatest_count_the_correction_is_one() -> None:
    for decay in (0.0, 0.9, 0.9999, torch.tensor(0.999, dtype=torch.float64)):
        assert bias_correction(decay, torch.tensor(2**31 - 1, dtype=torch.int32)) == 1


def test_without_memory_the_correction_is_one() -> None:
    for count in (1, 2, 1000):
        for none in (0.0, 0, torch.tensor(0.0)):
            assert bias_correction(none, torch.tensor(count, dtype=torch.int32)) == 1


def test_the_correction_is_a_float64_of_no_dimensions_whether_the_decay_is_a_number_or_a_tensor() -> None:
    count = torch.tensor(3, dtype=torch.int32)
    for decay in (0.9, torch.tensor(0.9, dtype=torch.float64)):
        c = bias_correction(decay, count)
        assert (c.dtype, c.shape) == (torch.float64, ())
        assert float(c) == pytest.approx(1 - 0.9**3, rel=1e-15)


def test_the_correction_has_a_derivative_in_the_decay() -> None:
    count = torch.tensor(3, dtype=torch.int32)
    slope = torch.func.grad(lambda b: bias_correction(b, count))(torch.tensor(0.9, dtype=torch.float64))
    assert float(slope) == pytest.approx(-3 * 0.9**2, rel=1e-14)


def test_the_widest_float_is_float64_where_there_is_one() -> None:
    assert wide(torch.device("cpu")) == wide(torch.device("cuda")) == torch.float64
    assert wide(torch.device("mps")) == torch.float32
