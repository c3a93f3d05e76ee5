"""What a compiled call writes into, what it leaves alone, and who is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import functrain as ft
from functrain import tree
from functrain.tree import Tree
from tests.networks import points
from tests.test_jit import jit, network
from tests.test_step import P, same, started

AGAIN = (
    "{}: this state was donated to a compiled call, which wrote the next state into its memory; "
    "hint: go on with the state that call returned, or compile with ft.jit(step, donate=False)"
)


# --- a step


def test_the_new_state_is_in_the_memory_of_the_old() -> None:
    step, first = network()
    state = first()
    places = [x.data_ptr() for x in tree.leaves((state.params, state.opt_state, state.buffers))]
    new, _ = jit(step)(state, points())
    assert [x.data_ptr() for x in tree.leaves((new.params, new.opt_state, new.buffers))] == places


def test_a_donated_state_is_refused_at_every_entry() -> None:
    step, state = started(ft.sgd(0.1))
    fast, x = jit(step), torch.ones(3, 2)
    acc = step.gradients(state, x)
    new, _ = fast(state, x)
    for where, call in {
        "step": [lambda: fast(state, x), lambda: step(state, x)],
        "step.gradients": [lambda: fast.gradients(state, x), lambda: step.gradients(state, x)],
        "step.apply": [lambda: fast.apply(state, acc), lambda: step.apply(state, acc)],
    }.items():
        for c in call:
            with pytest.raises(RuntimeError, match="donated") as error:
                c()
            assert str(error.value) == AGAIN.format(where)
    fast(new, x)


def test_a_donated_window_is_refused() -> None:
    step, state = started(ft.sgd(0.1))
    fast, x = jit(step), torch.ones(3, 2)
    first = fast.gradients(state, x)
    fast.gradients(state, x, first)
    with pytest.raises(RuntimeError) as error:
        fast.gradients(state, x, first)
    assert str(error.value) == AGAIN.format("step.gradients")


def test_without_donation_the_old_state_is_bitwise_as_it_was() -> None:
    for accumulate in (1, 2):
        step, state = started(ft.sgd(0.1, momentum=0.9), accumulate=accumulate)
        before, fast = tree.map(torch.clone, state), jit(step, donate=False)
        once, again = fast(state, torch.ones(4, 2)), fast(state, torch.ones(4, 2))
        assert same(state, before)
        assert same(once, again)
        assert not same(once[0].params, before.params)


def test_a_call_that_fails_has_consumed_its_state() -> None:
    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return (x @ p["w"]).mean()

    step, state = started(ft.sgd(0.1), loss)
    fast = jit(step)
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError):
        fast(state, torch.ones(3, 5))
    with pytest.raises(RuntimeError) as error:
        fast(state, torch.ones(3, 2))
    assert str(error.value) == AGAIN.format("step")


def test_a_stream_writes_to_no_batch_and_to_no_state() -> None:
    """A weight that is the batch's own tensor, a log that is a parameter, a gradient that is one number expanded."""

    def loss(p: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Any]:
        return {"loss": (p["w"].sum() + p["b"] * 0, batch["n"]), "b": p["b"]}

    step, state = started(ft.sgd(0.1), loss)
    batches = [{"n": torch.tensor(3.0)}, {"n": torch.tensor(5.0)}]
    fast, acc = jit(step), None
    before = tree.map(torch.clone, (state, batches))
    for batch in batches:
        acc = fast.gradients(state, batch, acc)
    assert same((state, batches), before)
    assert acc.weight.item() == 8
    assert acc.grads["w"].tolist() == [0.25, 0.25]


def test_metrics_and_state_have_the_rate_that_was_used_and_metrics_outlive_the_next_call() -> None:
    """torch 2.13 drops, silently, what a graph writes to a 0-dim float64 tensor it was given: such as a rate."""
    step, state = started(ft.sgd(lambda t: 1.0 + t))
    fast, seen = jit(step), []
    for t in range(3):
        state, metrics = fast(state, torch.ones(1, 2))
        assert ft.tree.get(state.opt_state, "learning_rate").item() == t + 1
        seen.append(metrics)
    assert [m["learning_rate"].item() for m in seen] == [1, 2, 3]


def test_a_0_dim_float64_parameter_is_trained() -> None:
    step, state = started(ft.sgd(0.5), lambda p, x: (p["w"] * x).sum(), {"w": torch.tensor(3.0, dtype=torch.float64)})
    new, _ = jit(step)(state, torch.tensor([2.0]))
    assert new.params["w"].item() == 2


def test_a_state_with_one_tensor_in_two_places_is_parted_before_it_is_written_to() -> None:
    step, state = started(ft.sgd(0.1, momentum=0.9), lambda p, x: (p["w"] * x).sum(), {"w": torch.zeros(2)})
    shared = state.params["w"]
    new, _ = jit(step)(ft.tree.set(state, trace={"w": shared}), torch.ones(2))
    assert new.params["w"].tolist() == pytest.approx([-0.1, -0.1])
    assert ft.tree.get(new.opt_state, "trace")["w"].tolist() == [1, 1]


# --- update_and_apply


def last_parameters() -> ft.GradientTransformation:
    """Its state is the parameters before the update: old tensors in other places."""

    def update(g: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return tree.map(lambda x: -x, g), {"last": params}

    return ft.GradientTransformation(lambda params: {"last": params}, update)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_a_rule_alone_is_its_eager_self_and_donates_all_but_the_gradients(backend: str) -> None:
    for tx in (last_parameters(), *([ft.adamw(0.1)] if backend == "aot_eager" else [])):
        eager, fast = ft.update_and_apply(tx), ft.jit(ft.update_and_apply(tx), backend=backend)
        grads = {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor(0.5)}
        kept = tree.map(torch.clone, grads)
        params, mine = tree.map(torch.clone, P), tree.map(torch.clone, P)
        state, my_state = tx.init(params), tx.init(mine)
        place = mine["w"].data_ptr()
        for _ in range(3):
            params, state = eager(grads, state, params)
            mine, my_state = fast(grads, my_state, mine)
        assert mine["w"].data_ptr() == place
        assert same(grads, kept)
        for a, b in zip(tree.leaves((mine, my_state)), tree.leaves((params, state)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_donated_state_of_a_rule_is_refused() -> None:
    tx = ft.sgd(0.1)
    fast = jit(ft.update_and_apply(tx))
    params = tree.map(torch.clone, P)
    state = tx.init(params)
    fast(P, state, params)
    for call in (fast, ft.update_and_apply(tx)):
        with pytest.raises(RuntimeError) as error:
            call(P, state, params)
        assert str(error.value) == AGAIN.format("update_and_apply")


def test_a_rule_without_donation_leaves_its_arguments() -> None:
    tx = ft.sgd(0.1, momentum=0.9)
    state = tx.init(P)
    before = tree.map(torch.clone, (P, state))
    jit(ft.update_and_apply(tx), donate=False)(P, state, P)
    assert same((P, state), before)
