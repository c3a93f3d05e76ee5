"""The example of an optimizer as an expression: it computes what a loop by hand does, and is what it prints."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

import functrain as ft
from functrain.testing import laws
from tests.example import load
from tests.oracle import assert_bitwise

pytestmark = pytest.mark.long  # it needs the extra `examples`

UPDATES = 20  # of the optimizer; two gradients each
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("compose_transforms")


def drawn(seed: int) -> Weights:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (5, 4), "0.bias": (5,), "4.weight": (3, 5), "4.bias": (3,)}
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}


def composed(tx: ft.GradientTransformation, history: list[Weights], head_rate: float | None = None) -> Weights:
    """The weights after these gradients; halfway Lion's rate is set, if one is given."""
    params = drawn(0)
    state = tx.init(params)
    for i, grads in enumerate(history):
        if head_rate and i == len(history) // 2:
            state = ft.tree.set(state, learning_rate=head_rate)
        updates, state = tx.update(grads, state, params)
        params = ft.apply_updates(params, updates)
    return params


def by_hand(history: list[Weights], head_rate: float) -> Weights:
    """The same in one loop."""
    p = drawn(0)
    m, v = ({name: torch.zeros_like(x) for name, x in p.items()} for _ in range(2))
    for t in range(1, len(history) // 2 + 1):
        first, second = history[2 * t - 2 : 2 * t]
        g = {name: (first[name] + second[name]) / 2 for name in p}
        norm = math.sqrt(sum(x.square().sum().item() for name, x in g.items() if name[0] == "0"))
        warm = UPDATES // 10
        done = t - 1
        rate = 0.04 * (done / warm if done < warm else (1 + math.cos(math.pi * (done - warm) / (UPDATES - warm))) / 2)
        new = {}
        for name, x in g.items():
            if name[0] == "4":  # Lion
                moving = torch.sign(0.9 * m[name] + 0.1 * x) + 1e-3 * p[name]
                m[name] = 0.99 * m[name] + 0.01 * x
                new[name] = p[name] - (head_rate if 2 * (t - 1) >= len(history) // 2 else 1e-3) * moving
                continue
            x = x * min(1.0, 0.2 / norm)
            if x.ndim == 2:
                x = x - x.mean(1, keepdim=True)
            m[name], v[name] = 0.9 * m[name] + 0.1 * x, 0.99 * v[name] + 0.01 * x * x
            u = m[name] / (1 - 0.9**t) / ((v[name] / (1 - 0.99**t)).sqrt() + 1e-8)
            agree = u * x > 0
            u = torch.where(agree, u, 0.0) / agree.double().mean()
            if x.ndim == 2:
                u = u * p[name].norm() / u.norm() + 0.1 * p[name]
            new[name] = p[name] - rate * u
        p = new
    return p


def test_the_composed_optimizer_is_the_loop_by_hand(example: ModuleType) -> None:
    history = [drawn(seed) for seed in range(1, 2 * UPDATES + 1)]
    ours = composed(example.compose(example.parts(UPDATES)), history, head_rate=1e-4)
    torch.testing.assert_close(ours, by_hand(history, 1e-4), rtol=1e-10, atol=1e-12)


def test_a_rate_that_is_set_changes_the_head_and_nothing_else(example: ModuleType) -> None:
    tx, history = example.compose(example.parts(UPDATES)), [drawn(seed) for seed in range(1, 2 * UPDATES + 1)]
    set_, not_set = composed(tx, history, head_rate=1e-4), composed(tx, history)
    for name in set_:
        assert torch.equal(set_[name], not_set[name]) == name.startswith("0.")


def test_the_optimizer_is_the_expression_that_it_prints(example: ModuleType) -> None:
    tx = example.compose(example.parts(UPDATES))
    again = eval(repr(tx), {**vars(ft), **vars(example)})
    assert again == tx
    history = [drawn(seed) for seed in range(1, 5)]
    assert_bitwise(composed(again, history), composed(tx, history))


def test_what_is_cautious_never_moves_against_the_gradient_it_is_given(example: ModuleType) -> None:
    tx = example.cautious(ft.scale_by_adam())
    params = drawn(0)
    state = tx.init(params)
    opposed = 0
    for seed in range(1, 20):
        g = drawn(seed)
        u, state = tx.update(g, state, params)
        plain, _ = ft.scale_by_adam().update(g, state._replace(count=state.count - 1), params)
        for name in g:
            assert (u[name] * g[name] >= 0).all()
            opposed += int((plain[name] * g[name] < 0).sum())
    assert opposed  # there was something to leave out


def test_the_rows_of_a_centralized_gradient_sum_to_zero(example: ModuleType) -> None:
    g = drawn(1)
    u, _ = example.centralize().update(g, (), None)
    torch.testing.assert_close(u["0.weight"].sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(u["0.bias"], g["0.bias"])


def test_the_parts_of_the_examples_own_keep_the_laws(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, example.__name__, example)  # torch.compile imports what it traces, by name
    laws.check_all(example.centralize())
    laws.check_all(example.cautious(ft.scale_by_adam()))
