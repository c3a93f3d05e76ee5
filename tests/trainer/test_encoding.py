"""What a checkpoint says of groups, schedulers and loaders: values with types that JSON does not know."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from functrain.run.encoding import decode, encode

keys = st.text() | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False)
ranges = st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 4))
leaves = keys | st.binary() | ranges | st.just(float("nan"))
DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    counts = st.dictionaries(st.integers(), st.integers()).map(Counter)
    return st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner) | counts


def typed(x: Any) -> Any:
    """A value in which 1, 1.0 and True differ, and a list, a tuple, a dict and a Counter."""
    if isinstance(x, dict):
        return type(x), [(typed(k), typed(v)) for k, v in x.items()]
    return type(x), [typed(y) for y in x] if isinstance(x, list | tuple) else repr(x)


def through_json(x: object) -> Any:
    return decode(json.loads(json.dumps(encode(x, "a group"))))


@given(st.recursive(leaves, containers))
def test_what_json_cannot_say_comes_back_from_json(x: Any) -> None:
    assert typed(through_json(x)) == typed(x)


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 99))
def test_a_tensor_of_any_size_and_dtype_comes_back_with_its_bits(dtype: torch.dtype, shape: list[int], n: int) -> None:
    bits = torch.randint(0, 2 if dtype is torch.bool else 256, [*shape, dtype.itemsize], dtype=torch.uint8)
    x = bits.view(dtype).reshape(shape)
    back = through_json({n: [x]})[n][0]
    assert isinstance(back, Tensor)
    assert (back.dtype, back.shape) == (x.dtype, x.shape)
    assert bits.reshape(-1).tolist() == back.reshape(-1).view(torch.uint8).tolist() if x.numel() else True


def test_a_view_that_is_not_contiguous_comes_back_as_its_elements() -> None:
    x = torch.arange(12.0).reshape(3, 4).T[1:]
    assert torch.equal(through_json(x), x)
    assert torch.equal(through_json(x.conj()), x)


def test_what_came_back_can_be_written_to() -> None:
    back = through_json(torch.ones(3))
    back += 1
    assert back.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("x", [object(), {1: {2}}, [1j], (lambda: 0,)])
def test_what_no_file_can_hold_is_told_in_words(x: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^Trainer: a (object|set|complex|function) among the values of a group cannot be saved$"
    ):
        encode(x, "a group")


@pytest.mark.parametrize(
    "x",
    [["set", []], ["dict", 3], ["dict", [[1]]], [], ["tensor", ["torch.load", [1], ""]], ["bytes", []],
     ["tensor", ["torch.float32", [3], "AAAAAA=="]], ["list"], [["list"], []], ["range", [0, 1, 0]]],
)  # fmt: skip
def test_what_was_not_encoded_here_is_told_in_words(x: Any) -> None:
    with pytest.raises(ValueError, match=r"^values that were not encoded here$"):
        decode(x)
