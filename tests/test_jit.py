"""`ft.jit`: one compiled graph that writes its results into the state it was given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

import functrain as ft
from functrain import tree
from tests.networks import NormNet, points
from tests.test_step import P, linear, same, started


@pytest.fixture(autouse=True)
def graphs_of_this_test_alone() -> None:
    torch._dynamo.reset()
    counters.clear()


def jit(fn: Any, **options: Any) -> Any:
    return ft.jit(fn, backend="aot_eager", **options)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def run(step: Any, state: ft.TrainState, updates: int = 4, rows: int = 12) -> tuple[ft.TrainState, list[Any]]:
    seen = []
    for seed in range(updates):
        state, metrics = step(state, points(rows, seed))
        seen.append(metrics)
    return state, seen


def network(dropout: float = 0.0, **options: Any) -> tuple[Any, Any]:
    """A step over a module with BatchNorm, and a function that makes its first state."""
    torch.manual_seed(0)
    model = ft.functionalize(NormNet(dropout))
    tx = ft.sgd(lambda t: 1e-2 / (1 + t), momentum=0.9)
    step = ft.train_step(model.loss(F.mse_loss), tx, **options)
    return step, lambda seed=0: ft.TrainState.create(model, tx, seed=seed)


# --- compiled is eager


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 3, "max_grad_norm": 0.1, "precision": "bf16"}],
    ids=["plain", "accumulated, clipped, in bf16"],
)
def test_compiled_is_eager_over_several_steps(options: Any) -> None:
    step, first = network(**options)
    (eager, seen), (compiled, seen_compiled) = run(step, first()), run(jit(step), first())
    assert tree.paths(eager) == tree.paths(compiled)
    for a, b in zip(tree.leaves((compiled, seen_compiled)), tree.leaves((eager, seen)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_dropout_is_reproducible_by_the_seed() -> None:
    step, first = network(0.5)
    fast = jit(step)
    found = []
    for seed, noise in ((1, 0), (1, 99), (2, 0)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        found.append(run(fast, first(seed))[0].params)
        assert torch.equal(torch.get_rng_state(), before)
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_a_stream_of_micro_batches_is_the_window() -> None:
    x, y = points(12)
    step, state = (made := network())[0], made[1]()
    whole, _ = network(accumulate=3)[0](made[1](), (x, y))
    fast, acc = jit(step), None
    for piece in zip(x.chunk(3), y.chunk(3), strict=True):
        acc = fast.gradients(state, piece, acc)
    new, metrics = fast.apply(state, acc)
    for a, b in zip(tree.leaves(new), tree.leaves(whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert metrics["skipped"].item() == 0


def test_a_skip_leaves_parameters_and_state_as_they_were() -> None:
    step, state = started(ft.sgd(0.1, momentum=0.9), precision="fp16")
    fast = jit(step)
    state, _ = fast(ft.tree.set(state, scale=2.0**10), torch.ones(1, 2))
    before = tree.map(torch.clone, state)
    new, metrics = fast(state, torch.full((1, 2), float("nan")))
    assert same((new.params, new.opt_state), (before.params, before.opt_state))
    assert (metrics["skipped"].item(), metrics["loss_scale"].item(), new.guard.scale.item()) == (1, 2.0**10, 2.0**9)


# --- graphs


def test_nothing_is_compiled_again_as_step_rate_and_scale_change() -> None:
    tx = ft.inject_hyperparams(ft.sgd)(learning_rate=0.1)
    step, state = started(tx, precision="fp16", accumulate=2)
    fast = jit(step)
    state, _ = fast(state, torch.ones(4, 2))
    once = graphs()
    assert once == 3  # the first micro-step, the folding one, the update
    for i in range(3):
        state = ft.tree.set(state, learning_rate=0.1 / (i + 2), scale=2.0**i)
        state, metrics = fast(state, torch.ones(4, 2))
        assert metrics["learning_rate"].item() == pytest.approx(0.1 / (i + 2))
    assert (state.step.item(), graphs()) == (4, once)


def test_a_plain_function_is_compiled_whole() -> None:
    f = jit(ft.value_and_grad(linear))
    x = torch.ones(3, 2)
    assert same(f(P, x), ft.value_and_grad(linear)(P, x))
    assert graphs() == 1


def test_ten_compiled_functions_live_in_one_process() -> None:
    """Dynamo gives up at the ninth graph of one code object."""
    found = [ft.jit(lambda x, n=n: x * n, backend="eager")(torch.ones(2)) for n in range(10)]
    assert [x[0].item() for x in found] == list(range(10))


# --- errors, and inductor


def test_a_rule_that_needs_value_fn_is_refused() -> None:
    tx = ft.GradientTransformation(lambda p: (), lambda u, s, p=None, *, value_fn=None: (u, s), needs=("value_fn",))
    with pytest.raises(NotImplementedError, match="value_fn") as error:
        ft.jit(ft.train_step(linear, tx))
    assert str(error.value) == (
        f"jit: {tx} needs value_fn, which a compiled step cannot call; hint: ft.jit the loss, not the step"
    )


@pytest.mark.inductor
def test_inductor_is_eager_reproducible_and_says_that_it_compiles(capsys: pytest.CaptureFixture[str]) -> None:
    step, first = network(accumulate=2)
    fast = ft.jit(step)
    eager, _ = run(step, first(), updates=2)
    compiled, _ = run(fast, first(), updates=2)
    again, _ = run(fast, first(), updates=2)
    assert same(compiled, again)
    for a, b in zip(tree.leaves(compiled), tree.leaves(eager), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in said] == [
        "functrain: compiling the micro-step",
        "functrain: compiling the folding micro-step",
        "functrain: compiling the update",
    ]


@pytest.mark.long
def test_with_dropout_too_batches_may_differ_in_length() -> None:
    """Of dropout that drops nothing the numbers are those of eager; what drops is another draw in a graph."""
    step, first = network(dropout=1e-12)
    eager, compiled, compiled_step = first(), first(), jit(step)
    for seed, rows in enumerate((12, 12, 7, 12, 3, 7)):
        eager, seen = step(eager, points(rows, seed))
        compiled, seen_compiled = compiled_step(compiled, points(rows, seed))
        assert seen_compiled["loss"].item() == pytest.approx(seen["loss"].item(), rel=1e-9)
    for x, y in zip(tree.leaves(compiled.params), tree.leaves(eager.params), strict=True):
        torch.testing.assert_close(x, y)
    assert graphs() == 4  # 12, a variable that dropout cannot take, and then a graph a size: 7, 12, 3


def test_without_dropout_there_is_a_graph_for_one_length_and_one_for_all_others() -> None:
    step, first = network()
    compiled, compiled_step = first(), jit(step)
    for seed, rows in enumerate((12, 7, 12, 3, 9)):
        compiled, _ = compiled_step(compiled, points(rows, seed))
    assert graphs() == 2
