"""The example of a loop of one's own: its update against torch.optim's, what it goes back to, what a branch leaves."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import functrain as ft
from tests.example import load
from tests.oracle import assert_bitwise

pytestmark = pytest.mark.long  # it needs the extras `examples` and `plot`


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("custom_loop")


@pytest.fixture(scope="module")
def climbed(example: ModuleType) -> tuple[Any, Any, Any]:
    """A run, its trunk, and the trunk's log."""
    run, log = example.Run(), []
    return run, run.climb(6, log), log


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.inductor)])
def test_an_update_of_micro_batches_is_that_of_the_whole_window_by_torch(example: ModuleType, jit: bool) -> None:
    run, module = example.Run(jit), network()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    state = run.start
    for chosen in run.epoch(state, 0)[:5]:
        state = run.update(state, chosen, [])
        optimizer.zero_grad()
        F.cross_entropy(module(run.x[chosen]), run.y[chosen]).backward()
        optimizer.step()
    torch.testing.assert_close(state.params, {k: p.detach() for k, p in module.named_parameters()})


def test_an_epoch_has_every_digit_and_the_hardest_twice(example: ModuleType) -> None:
    run = example.Run()
    times = torch.cat(run.epoch(run.start, 3)).bincount()
    assert len(times) == example.TRAIN
    assert set(times.tolist()) == {1, 2}
    losses = F.cross_entropy(network()(run.x[: example.TRAIN]), run.y[: example.TRAIN], reduction="none")
    assert (times == 2).sum() == example.TRAIN // 5
    assert losses[times == 2].min() >= losses[times == 1].max()


def test_where_the_loss_explodes_the_loop_goes_back_and_takes_half_the_rate(climbed: Any) -> None:
    _, _, log = climbed
    back = [(before, after) for before, after in pairwise(log) if after[0] <= before[0]]
    assert back
    assert back[0][1][0] == back[0][0][0] - 10 + 1  # the update after the tenth before
    for (_, exploded, rate), (_, _, after) in back:
        assert exploded > 0.5
        assert after == pytest.approx(rate / 2)
    for before, after in pairwise(log):
        if after[0] > before[0]:
            assert after[2] == pytest.approx(1.05 * before[2])


def test_the_trunk_is_as_if_what_was_gone_back_from_had_never_been(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The updates of the trunk's ancestors, made again from the start, end in the same bits."""
    run, update = example.Run(), example.Run.update
    parents: dict[Any, tuple[Any, ...]] = {}  # by the weight after an update: that before it, the rate, the digits
    back = []

    def ancestors(weight: Any) -> list[Any]:
        return [*ancestors(parents[weight][0]), weight] if weight in parents else [weight]

    def recorded(self: Any, state: Any, chosen: Any, log: Any) -> Any:
        before = state.params["0.weight"]
        if parents and before is not (last := list(parents)[-1]):
            back.append(any(before is weight for weight in ancestors(last)))
        new = update(self, state, chosen, log)
        parents[new.params["0.weight"]] = before, ft.tree.get(state.opt_state, "learning_rate"), chosen
        return new

    monkeypatch.setattr(example.Run, "update", recorded)
    trunk = run.climb(6, [])
    assert back
    assert all(back)  # to a state that led to the one that exploded
    again = run.start
    for weight in ancestors(trunk.params["0.weight"])[1:]:
        _, rate, chosen = parents[weight]
        again = update(run, ft.tree.set(again, learning_rate=rate), chosen, [])
    assert_bitwise(again.params, trunk.params)
    assert_bitwise(*(ft.tree.set(state.opt_state, learning_rate=0.0) for state in (again, trunk)))


def test_a_branch_does_not_touch_the_trunk_and_can_be_taken_again(climbed: Any, tmp_path: Path) -> None:
    run, trunk, _ = climbed
    before = ft.tree.map(torch.clone, trunk)
    ft.checkpoint.save(tmp_path / "trunk.pt", trunk)
    held, cooled = run.branch(trunk, 1, False, []), run.branch(trunk, 1, True, [])
    assert_bitwise(trunk, before)
    assert not torch.equal(held.params["0.weight"], cooled.params["0.weight"])
    loaded = ft.checkpoint.load(tmp_path / "trunk.pt", like=run.start)
    assert_bitwise(run.branch(loaded, 1, True, []), cooled)


def test_the_rate_of_a_branch_is_held_or_sinks_to_zero(climbed: Any) -> None:
    run, trunk, _ = climbed
    rate = ft.tree.get(trunk.opt_state, "learning_rate").item()
    for cool in (False, True):
        log: list[Any] = []
        run.branch(trunk, 1, cool, log)
        n = len(log)
        assert [row[2] for row in log] == pytest.approx([rate * (1 - i / n) if cool else rate for i in range(n)])
