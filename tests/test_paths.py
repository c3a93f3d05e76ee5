"""Paths that people read, keys that files use, fields by name."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from functrain import paths, tree
from functrain.testing import strategies


class State(NamedTuple):
    count: object
    learning_rate: object


class Outer(NamedTuple):
    inner: object
    count: object


NAMES = st.text(st.sampled_from("a.\\0i7er²é"), max_size=4) | st.integers(-12, 12) | st.booleans() | st.none()
STEPS = st.builds(paths.Entry, st.just("key"), NAMES) | st.builds(paths.Entry, st.just("index"), st.integers(0, 20))


def nest(path: tuple[paths.Entry, ...]) -> object:
    """A tree with one leaf, at this path."""
    node: object = torch.ones(())
    for entry in reversed(path):
        node = {entry.name: node} if entry.kind == "key" else [*[()] * entry.name, node]
    return node


@given(st.lists(STEPS, max_size=3).map(tuple), st.lists(STEPS, max_size=3).map(tuple))
@example((paths.Entry("key", ""),), (paths.Entry("key", "\\e"),))
@example((paths.Entry("key", "7"),), (paths.Entry("key", "\\7"),))
@example((paths.Entry("key", "a"), paths.Entry("key", "b")), (paths.Entry("key", "a.b"),))
@example((paths.Entry("key", 7),), (paths.Entry("key", "i7"),))
@example((paths.Entry("index", 1),), (paths.Entry("key", "1"),))
def test_distinct_paths_have_distinct_keys(one: paths.Path, other: paths.Path) -> None:
    (a,), (b,) = tree.keys(nest(one)), tree.keys(nest(other))
    same = [(e.kind, type(e.name), e.name) for e in one] == [(e.kind, type(e.name), e.name) for e in other]
    assert (a == b) == same


@given(strategies.trees())
def test_the_leaves_of_a_tree_have_distinct_keys_in_the_order_of_leaves(t: tree.Tree) -> None:
    keys = tree.keys(t)
    assert len(set(keys)) == len(keys) == len(tree.leaves(t)) == len(tree.paths(t))
    assert all(a is b for (_, a), b in zip(paths.walk(t), tree.leaves(t), strict=True))


@pytest.mark.parametrize(
    ("t", "key"),
    [
        (torch.ones(()), ""),
        ({"blocks": [{"w": torch.ones(())}]}, "blocks.0.w"),
        ({"a.b": torch.ones(())}, r"a\.b"),
        ({"a": {"b": torch.ones(())}}, "a.b"),
        ({"": torch.ones(())}, r"\e"),
        ({"7": torch.ones(())}, r"\7"),
        ({7: torch.ones(())}, r"\i7"),
        ({"\\": torch.ones(())}, r"\\"),
        ({True: torch.ones(())}, r"\rTrue"),
        ({(1, 0.5): torch.ones(())}, r"\r(1, 0\.5)"),
        (State((), torch.ones(())), "learning_rate"),
    ],
)
def test_keys_are_written_so(t: object, key: str) -> None:
    assert tree.keys(t) == [key]


# --- get and set

STATE = (
    State(torch.tensor(3, dtype=torch.int32), torch.tensor(0.1)),
    {"deep": Outer(State(torch.tensor(5), torch.tensor(0.2)), torch.tensor(6))},
)


def test_get_finds_the_shallowest_field() -> None:
    assert tree.get(STATE, "learning_rate") is STATE[0].learning_rate
    assert tree.get(STATE, "count") is STATE[0].count
    assert tree.get(STATE, "inner") is STATE[1]["deep"].inner
    assert tree.get({"w": 1, "a": {"w": 2}}, "w") == 1


def test_get_of_a_name_that_is_nowhere_is_an_error() -> None:
    with pytest.raises(KeyError) as error:
        tree.get(STATE, "momentum")
    assert error.value.args == ("tree.get: no field 'momentum' in the tree",)


def test_get_of_a_name_that_lies_twice_equally_deep_is_an_error() -> None:
    with pytest.raises(KeyError) as error:
        tree.get((STATE[0], STATE[0]), "count")
    assert error.value.args == ("tree.get: 'count' is found 2 times equally deep: 0.count, 1.count",)


def test_positions_have_no_name() -> None:
    with pytest.raises(KeyError, match=re.escape("tree.get: no field '0' in the tree")):
        tree.get(STATE, "0")


def test_set_changes_all_and_nothing_else() -> None:
    new = tree.set(STATE, learning_rate=0.5)
    assert new[0].learning_rate == 0.5
    assert new[1]["deep"].inner.learning_rate == 0.5
    assert new[0].count is STATE[0].count
    assert new[1]["deep"].count is STATE[1]["deep"].count
    assert STATE[0].learning_rate == torch.tensor(0.1)  # the tree that was given is as it was


def test_set_keeps_dtype_device_and_shape_of_what_it_replaces() -> None:
    t = {"count": torch.tensor(3, dtype=torch.int32), "rate": torch.zeros(2, dtype=torch.float64)}
    new = tree.set(t, count=7, rate=torch.tensor(0.5))
    assert torch.equal(new["count"], torch.tensor(7, dtype=torch.int32))
    assert torch.equal(new["rate"], torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert new["rate"].is_contiguous()


def test_set_shares_no_memory_with_the_value() -> None:
    value = torch.tensor(1.0)
    new = tree.set({"rate": torch.tensor(0.0)}, rate=value)
    value.add_(1)
    assert new["rate"] == 1


def test_set_replaces_a_subtree() -> None:
    assert tree.set({"a": {"b": 1}, "c": 2}, a=[3]) == {"a": [3], "c": 2}


@given(strategies.trees(), st.floats(-10, 10))
def test_what_is_set_is_what_get_gives(t: tree.Tree, value: float) -> None:
    t = {"here": torch.zeros((), dtype=torch.float64), "rest": t}
    assert tree.get(tree.set(t, here=value), "here") == value


def test_set_of_a_name_that_is_nowhere_is_an_error() -> None:
    with pytest.raises(KeyError) as error:
        tree.set(STATE, learning_rate=1.0, momentum=0.9)
    assert error.value.args == ("tree.set: no field 'momentum' in the tree",)
