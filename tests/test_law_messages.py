"""What the laws say of rules that people write first: a memory in a closure, an update that returns one thing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from functrain import tree
from functrain.base import GradientTransformation, rule, stateless
from functrain.testing import laws, strategies
from functrain.tree import Tree

REMEMBERS = "hint: it remembers something outside its state, or draws noise without a seed in it"


def returning(update: Callable[[Tree], object]) -> GradientTransformation:
    return GradientTransformation(lambda params: (), lambda updates, state, params=None: update(updates))


@rule
def hidden_momentum(signed: bool) -> GradientTransformation:
    memory: dict[str, Tree] = {}

    def f(g: Tree, params: Tree) -> Tree:
        memory["m"] = tree.pointwise(lambda m, g: m / 2 + g, memory["m"], g) if memory else g
        return tree.map(torch.sign, memory["m"]) if signed else memory["m"]

    return stateless(f)


@rule
def counts_in_secret() -> GradientTransformation:
    calls: list[int] = []

    def f(g: Tree, params: Tree) -> Tree:
        calls.append(0)
        return tree.map(lambda g: g * len(calls), g)

    return stateless(f)


@rule
def counts_later_steps_in_secret() -> GradientTransformation:
    calls: list[int] = []

    def update(g: Tree, count: Tensor, params: Tree | None = None) -> tuple[Tree, Tensor]:
        calls.extend([0] if count else [])
        return tree.map(lambda g: g + len(calls) * (count > 0), g), count + 1

    return GradientTransformation(lambda params: torch.zeros((), dtype=torch.int32), update)


@rule
def forgets_the_state() -> GradientTransformation:
    return returning(lambda updates: {"w": updates, "b": updates})


@rule
def returns_a_tensor_of_two() -> GradientTransformation:
    return returning(lambda updates: torch.zeros(2))


@rule
def returns_nothing() -> GradientTransformation:
    return returning(lambda updates: None)


@rule
def returns_three() -> GradientTransformation:
    return returning(lambda updates: (updates, (), ()))


@rule
def asks_for_a_number(learning_rate: float) -> GradientTransformation:
    def f(g: Tensor) -> Tensor:
        return g * (learning_rate if g.numel() == 0 else learning_rate / (1 + abs(g.flatten()[0].item())))

    return stateless(lambda updates, params: tree.map(f, updates), local=True)


@rule
def goes_through_numpy() -> GradientTransformation:
    return stateless(lambda updates, params: tree.map(lambda g: torch.as_tensor(2 * g.numpy()), updates))


@rule
def raises() -> GradientTransformation:
    def f(updates: Tree, params: Tree) -> Tree:
        raise KeyError("lr")

    return stateless(f)


def told(call: Callable[[], object]) -> str:
    with pytest.raises(laws.LawBroken) as broken:
        call()
    return str(broken.value)


def test_a_momentum_in_a_closure_is_called_a_memory_and_not_a_wrong_tree() -> None:
    """By hand: 1, 1.5, 1.75; three gradients of -8 make it -7.125, -11.5625, -13.78125; then -13.78125 / 2 + 1."""
    assert told(lambda: laws.check_pure(hidden_momentum(False))) == (
        "pure: hidden_momentum(False) update gives update [1, 1] of the leaf at step 1; "
        f"the same update again: [-5.89062, -5.89062]; {REMEMBERS}"
    )


def test_a_memory_that_shows_only_in_a_sign_is_seen() -> None:
    assert told(lambda: laws.check_pure(hidden_momentum(True))) == (
        "pure: hidden_momentum(True) update gives update [1, 1] of the leaf at step 1; "
        f"the same update again: [-1, -1]; {REMEMBERS}"
    )


def test_a_hidden_counter_is_seen_in_parameters_of_ones_own_strategy() -> None:
    matrices = strategies.tensors(torch.float64, (3, 2))
    assert told(lambda: laws.check_pure(counts_in_secret(), matrices)) == (
        "pure: counts_in_secret() update gives update [1, 1, 1, 1, 1, 1] float64 of the leaf at step 1; "
        f"the same update again: [7, 7, 7, 7, 7, 7] float64; {REMEMBERS}"
    )


def test_the_step_that_differs_is_named() -> None:
    assert told(lambda: laws.check_pure(counts_later_steps_in_secret())) == (
        "pure: counts_later_steps_in_secret() update gives update [2, 2] of the leaf at step 2; "
        f"the same update again: [6, 6]; {REMEMBERS}"
    )


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (forgets_the_state, "a dict"),
        (returns_a_tensor_of_two, "a Tensor"),
        (returns_nothing, "None"),
        (returns_three, "a tuple of 3"),
    ],
)
@pytest.mark.parametrize("law", ["pure", "stable", "finite", "vmap", "saved"])
def test_an_update_that_returns_no_pair_is_told_what_it_returned(
    made: Callable[[], GradientTransformation], what: str, law: str
) -> None:
    with pytest.raises(TypeError) as error:
        laws.LAWS[law](made())
    assert str(error.value) == (
        f"{made.__name__}(): update returned {what}, not (updates, state); "
        "hint: a rule without memory returns (updates, ())"
    )


@pytest.mark.parametrize("name", ["check_all", *(f"check_{law}" for law in laws.LAWS)])
def test_a_factory_that_was_not_called_is_no_rule(name: str) -> None:
    with pytest.raises(TypeError) as error:
        getattr(laws, name)(hidden_momentum)
    assert str(error.value) == (
        f"{name}: tx is a function, not a GradientTransformation; hint: call the factory, as in adamw(0.001)"
    )


def test_an_article_goes_with_its_vowel() -> None:
    with pytest.raises(TypeError) as error:
        laws.check_all(1)
    assert str(error.value) == (
        "check_all: tx is an int, not a GradientTransformation; hint: GradientTransformation(init, update) makes one"
    )


def test_a_rule_that_asks_for_a_number_cannot_be_mapped_and_torchs_first_line_says_why() -> None:
    assert told(lambda: laws.check_vmap(asks_for_a_number(0.1))) == (
        "vmap: asks_for_a_number(0.1) cannot be mapped: It looks like you're calling .item() on a Tensor. We don't "
        "support vmap over calling .item() on a Tensor, please try to rewrite what you're doing with other operations. "
        "If error is occurring somewhere inside PyTorch internals, please file a bug report."
    )


def test_a_rule_that_goes_through_numpy_has_no_derivative() -> None:
    assert told(lambda: laws.check_differentiable(goes_through_numpy())) == (
        "differentiable: goes_through_numpy() cannot be differentiated: "
        "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
    )


@pytest.mark.parametrize("law", ["pure", "vmap", "differentiable", "compiled"])
def test_an_error_of_the_rules_own_stays_what_it_is(law: str) -> None:
    with pytest.raises(KeyError, match="lr"):
        laws.LAWS[law](raises())


def test_a_failure_names_its_example_and_no_lines_of_functrain() -> None:
    with pytest.raises(laws.LawBroken) as broken:
        laws.check_vmap(asks_for_a_number(0.1))
    assert broken.value.__notes__ == [
        "Failing test case: run(\n    trial=Trial(params=tensor([1., 1.]), history=[tensor([1., 1.])]),\n)"
    ]
