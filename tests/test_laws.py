"""Every public transform keeps every law; and every law is broken by a rule that was made to break it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import run

import pytest
import torch
from torch import Tensor

from functrain import tree
from functrain.base import GradientTransformation, rule, stateless
from functrain.counter import first_count
from functrain.optimizers.adaptive import adamw
from functrain.optimizers.momentum import sgd
from functrain.testing import laws, strategies
from functrain.transforms.clip import clip_by_global_norm
from tests.catalogue import CATALOGUE, Entry

ROOT = Path(__file__).parent.parent
EXEMPT: dict[str, Callable[[Entry], bool]] = {
    "finite": lambda entry: entry.overflows,
    "vmap": lambda entry: entry.rounds or entry.eager,
    "differentiable": lambda entry: entry.rounds or entry.eager,
}


@pytest.mark.parametrize("law", [name for name in laws.LAWS if name != "compiled"])
@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.id)
def test_every_transform_keeps_the_law(entry: Entry, law: str) -> None:
    if not EXEMPT.get(law, lambda _: False)(entry):
        laws.LAWS[law](entry.make())


# The first setting of each rule in `make test`, the further ones, "rule/setting", in `make test-long`.
COMPILED = [
    pytest.param(entry, marks=[pytest.mark.long] if "/" in entry.id else [], id=entry.id)
    for entry in CATALOGUE
    if not entry.eager
]


@pytest.mark.parametrize("entry", COMPILED)
def test_every_transform_is_compiled_once_and_computes_the_same(entry: Entry) -> None:
    laws.check_compiled(entry.make())


@pytest.mark.inductor
@pytest.mark.parametrize("tx", [adamw(0.1), sgd(0.1, momentum=0.9)], ids=repr)
def test_inductor_computes_the_same(tx: GradientTransformation) -> None:
    laws.check_compiled(tx, backend="inductor")


def test_the_differentiable_ones_have_a_slope() -> None:
    g = {"w": torch.tensor([0.3, -0.7], dtype=torch.float64)}
    for entry in CATALOGUE:
        if entry.eager:
            continue
        tx = entry.make()
        slope = torch.func.grad(lambda g, tx=tx: total(tx, g))(g)
        assert bool(slope["w"].any()) is entry.differentiable, entry.id


def total(tx: GradientTransformation, g: dict[str, Tensor]) -> Tensor:
    """A sum over three updates that depends on every entry in another way."""
    params = {"w": torch.tensor([0.5, 2.0], dtype=torch.float64)}
    state, out = tx.init(params), torch.zeros((), dtype=torch.float64)
    for i in range(1, 4):
        updates, state = tx.update(tree.map(lambda x, i=i: x * i, g), state, params)
        out = out + (updates["w"] * torch.tensor([1.0, 2.0], dtype=torch.float64)).sum()
    return out


# --- rules that were made to break a law


def counting(update: Callable[..., object]) -> GradientTransformation:
    return GradientTransformation(lambda params: {"m": tree.zeros_like(params)}, update)


def elementwise(f: Callable[[Tensor], object]) -> GradientTransformation:
    return stateless(lambda updates, params: tree.map(f, updates), local=True)


@rule
def writes_to_gradients() -> GradientTransformation:
    return elementwise(lambda g: g.mul_(0.5))


@rule
def writes_to_a_view_of_state() -> GradientTransformation:
    def update(g: tree.Tree, state: dict[str, tree.Tree], params: tree.Tree | None = None) -> object:
        return tree.map(lambda m, g: m.view(-1).add_(g.reshape(-1)).view(g.shape), state["m"], g), state

    return counting(update)


@rule
def writes_to_many_at_once() -> GradientTransformation:
    def update(g: tree.Tree, params: tree.Tree) -> tree.Tree:
        if tree.leaves(params):
            torch._foreach_mul_(tree.leaves(params), 0.5)
        return g

    return stateless(update)


@rule
def writes_with_out() -> GradientTransformation:
    return elementwise(lambda g: torch.neg(g, out=g))


@rule
def changes_the_dict_of_its_state() -> GradientTransformation:
    def update(g: tree.Tree, state: dict[str, tree.Tree], params: tree.Tree | None = None) -> object:
        state["m"] = tree.map(lambda m, g: m + g, state["m"], g)
        return g, state

    return counting(update)


@rule
def writes_through_numpy() -> GradientTransformation:
    def f(g: Tensor) -> Tensor:
        g.detach().view(torch.uint8 if g.dtype == torch.bfloat16 else g.dtype).numpy()[...] = 1
        return g * 1

    return elementwise(f)


@rule
def remembers_in_secret() -> GradientTransformation:
    calls: list[int] = []

    def f(g: Tensor) -> Tensor:
        calls.append(0)
        return g + len(calls)

    return elementwise(f)


@rule
def draws_in_secret() -> GradientTransformation:
    return elementwise(lambda g: g + torch.rand(()).to(g.dtype))


@rule
def widens() -> GradientTransformation:
    return elementwise(lambda g: g.double())


@rule
def drops_a_dimension() -> GradientTransformation:
    return elementwise(lambda g: g.sum(0) if g.dim() else g)


@rule
def turns_its_counter_into_a_float() -> GradientTransformation:
    return GradientTransformation(first_count, lambda g, count, params=None: (g, count + 1.0))


@rule
def grows() -> GradientTransformation:
    return GradientTransformation(lambda params: [], lambda g, s, params=None: (g, [*s, torch.zeros(())]))


@rule
def keeps_a_number() -> GradientTransformation:
    return GradientTransformation(lambda params: {"count": 0}, lambda g, s, params=None: (g, s))


@rule
def keeps_none() -> GradientTransformation:
    return GradientTransformation(lambda params: {"mu": None}, lambda g, s, params=None: (g, s))


@rule
def says_it_is_local() -> GradientTransformation:
    return GradientTransformation(*clip_by_global_norm(1.0).raw, local=True)


@rule
def divides_by_zero() -> GradientTransformation:
    return elementwise(lambda g: g / g.abs())


@rule
def underflows() -> GradientTransformation:
    return elementwise(lambda g: g / (g.abs() + 1e-8))  # ε is zero in float16


@rule
def overflows() -> GradientTransformation:
    return elementwise(lambda g: g * g * g)


@rule
def branches_on_numbers() -> GradientTransformation:
    return elementwise(lambda g: g if g.sum() > 0 else -g)


@rule
def knows_its_rank() -> GradientTransformation:
    return elementwise(lambda g: g * torch._C._functorch.is_batchedtensor(g))


@rule
def knows_that_it_is_compiled() -> GradientTransformation:
    return elementwise(lambda g: -g if torch.compiler.is_compiling() else g)


@rule
def counts_in_python() -> GradientTransformation:
    calls: list[int] = []

    def f(g: Tensor) -> Tensor:
        calls.append(0)
        return g * len(calls)

    return elementwise(f)


@rule
def sees_its_own_name() -> GradientTransformation:
    def update(g: tree.Tree, state: tuple[()], params: tree.Tree | None = None) -> object:
        inside = any(frame.f_code.co_filename.endswith("chain.py") for frame in frames())
        return tree.map(lambda x: x * (2 if inside else 1), g), state

    return GradientTransformation(lambda params: (), update)


def frames() -> list[object]:
    frame, found = sys._getframe(), []
    while frame:
        found.append(frame)
        frame = frame.f_back
    return found


@rule
def sees_how_deep_it_is() -> GradientTransformation:
    def update(g: tree.Tree, state: tuple[()], params: tree.Tree | None = None) -> object:
        depth = sum(frame.f_code.co_filename.endswith("chain.py") for frame in frames())
        return tree.map(lambda x: x * depth, g), state

    return GradientTransformation(lambda params: (), update)


@rule
def knows_its_tensors_by_identity() -> GradientTransformation:
    """Its memory is not in the numbers of its state, so a file does not have it."""
    ages: dict[int, tuple[Tensor, int]] = {}

    def init(params: tree.Tree) -> dict[str, Tensor]:
        return {"m": torch.zeros(())}

    def update(g: tree.Tree, state: dict[str, Tensor], params: tree.Tree | None = None) -> object:
        m, age = torch.zeros(()), ages.get(id(state["m"]), (None, 0))[1] + 1
        ages[id(m)] = m, age
        return tree.map(lambda x: x * age, g), {"m": m}

    return GradientTransformation(init, update)


@rule
def has_no_slope_at_zero() -> GradientTransformation:
    return elementwise(lambda g: g.square().sqrt())


@rule
def cuts_its_gradient() -> GradientTransformation:
    return elementwise(lambda g: g * g.detach())


@pytest.mark.parametrize(
    ("law", "made", "text"),
    [
        (
            "pure",
            writes_to_gradients,
            r"pure: writes_to_gradients\(\) writes to the leaf of updates with aten.mul_.Tensor",
        ),
        (
            "pure",
            writes_to_a_view_of_state,
            r"pure: writes_to_a_view_of_state\(\) writes to leaf 'm' of state with aten.add_.Tensor",
        ),
        (
            "pure",
            writes_to_many_at_once,
            r"pure: writes_to_many_at_once\(\) writes to the leaf of params with aten._foreach_mul_.Scalar",
        ),
        ("pure", writes_with_out, r"pure: writes_with_out\(\) writes to the leaf of updates with aten.neg.out"),
        (
            "pure",
            changes_the_dict_of_its_state,
            r"pure: changes_the_dict_of_its_state\(\) changes a container of state",
        ),
        (
            "pure",
            writes_through_numpy,
            r"pure: writes_through_numpy\(\) writes to the leaf of updates: it was \[0, 0\]( \w+)?, is \[1, 1\]( \w+)?",
        ),
        (
            "pure",
            remembers_in_secret,
            r"pure: remembers_in_secret\(\) update gives update \[.*\] of the leaf at step 1; "
            r"the same update again: \[.*\]; hint: it remembers something outside its state, or draws noise without a "
            r"seed in it",
        ),
        (
            "pure",
            draws_in_secret,
            r"pure: draws_in_secret\(\) update gives update .* of the leaf at step 1; the same update again: .*; "
            r"hint: it remembers something outside its state, or draws noise without a seed in it",
        ),
        (
            "stable",
            widens,
            r"stable: widens\(\) changes the leaf: in the updates of step 1 it is torch.float64 \(\d*,?\) on cpu, "
            r"not torch.(float32|float16|bfloat16) \(\d*,?\) on cpu as in the gradients",
        ),
        (
            "stable",
            drops_a_dimension,
            r"stable: drops_a_dimension\(\) changes the leaf: in the updates of step 1 it is "
            r"torch.float32 \(\) on cpu, not torch.float32 \(2,\) on cpu as in the gradients",
        ),
        (
            "stable",
            turns_its_counter_into_a_float,
            r"stable: turns_its_counter_into_a_float\(\) changes the leaf: in the state after step 1 it is "
            r"torch.float32 \(\) on cpu, not torch.int32 \(\) on cpu as in that of init",
        ),
        (
            "stable",
            grows,
            r"stable: grows\(\) changes structure: the state after step 1 and that of init differ in \['0'\]",
        ),
        (
            "stable",
            keeps_a_number,
            r"stable: keeps_a_number\(\) has an int in its state; hint: every leaf is a tensor",
        ),
        ("stable", keeps_none, r"stable: keeps_none\(\) has None in its state; hint: an empty place is \(\)"),
        (
            "local",
            says_it_is_local,
            r"local: says_it_is_local\(\) alone, it gives update .* of leaf '.*' at step 1; in the tree: .*",
        ),
        (
            "finite",
            divides_by_zero,
            r"finite: divides_by_zero\(\) gives \[nan, nan, nan, nan\] float16 for leaf 'w' at step 1, "
            r"under gradients of 0 in torch.float16",
        ),
        (
            "finite",
            underflows,
            r"finite: underflows\(\) gives \[nan, nan, nan, nan\] float16 for leaf 'w' at step 1, "
            r"under gradients of 0 in torch.float16",
        ),
        (
            "finite",
            overflows,
            r"finite: overflows\(\) gives \[inf, -inf, -inf, inf\] bfloat16 for leaf 'w' at step 1, "
            r"under gradients of 2.3e\+18 in torch.bfloat16",
        ),
        ("vmap", knows_its_rank, r"vmap: knows_its_rank\(\) mapped, it gives update .*; in a loop: .*"),
        (
            "neutral",
            sees_its_own_name,
            r"neutral: sees_its_own_name\(\) after identity\(\), it gives update .*; without it: .*",
        ),
        (
            "associative",
            sees_how_deep_it_is,
            r"associative: sees_how_deep_it_is\(\) as chain\(chain\(a, it\), b\) gives update .*; "
            r"as chain\(a, it, b\): .*",
        ),
        (
            "saved",
            knows_its_tensors_by_identity,
            r"saved: knows_its_tensors_by_identity\(\) read back, it gives update .* at step 1; untouched: .*",
        ),
        (
            "differentiable",
            has_no_slope_at_zero,
            r"differentiable: has_no_slope_at_zero\(\) has derivative \[nan, .*\] float64 in the gradient of leaf 'w', "
            r"under zero gradients",
        ),
        (
            "differentiable",
            cuts_its_gradient,
            r"differentiable: cuts_its_gradient\(\) has slope .* float64 along its derivative; "
            r"finite differences: .* float64",
        ),
        (
            "compiled",
            knows_that_it_is_compiled,
            r"compiled: knows_that_it_is_compiled\(\) compiled, it gives parameter .* of leaf 'w' at step 1; "
            r"in eager mode: .*",
        ),
    ],
)  # fmt: skip
def test_a_rule_that_breaks_a_law_is_told_which(
    law: str, made: Callable[[], GradientTransformation], text: str
) -> None:
    with pytest.raises(laws.LawBroken) as broken:
        laws.LAWS[law](made())
    assert re.fullmatch(text, str(broken.value)), str(broken.value)


def test_a_rule_that_changes_as_it_is_called_is_compiled_again() -> None:
    text = r"compiled: counts_in_python\(\) (is compiled \d times in 3 updates, not once|compiled, it gives .*)"
    with pytest.raises(laws.LawBroken) as broken:
        laws.check_compiled(counts_in_python())
    assert re.fullmatch(text, str(broken.value)), str(broken.value)


def test_a_rule_that_branches_on_numbers_can_be_neither_mapped_nor_compiled() -> None:
    text = r"^vmap: branches_on_numbers\(\) cannot be mapped: .*data-dependent control flow"
    with pytest.raises(laws.LawBroken, match=text):
        laws.check_vmap(branches_on_numbers(), strategies.trees(max_leaves=1).filter(tree.leaves))
    text = r"^compiled: branches_on_numbers\(\) cannot be compiled: Data-dependent branching$"
    with pytest.raises(laws.LawBroken, match=text):
        laws.check_compiled(branches_on_numbers())


# --- check_all


def test_one_line_tests_a_rule_of_ones_own() -> None:
    laws.check_all(sgd(0.1, momentum=0.9))
    with pytest.raises(laws.LawBroken, match=r"^pure: "):
        laws.check_all(writes_to_gradients())


def test_exempt_laws_are_not_asked() -> None:
    with pytest.raises(laws.LawBroken, match=r"^finite: "):
        laws.check_all(divides_by_zero(), exempt={"compiled"})
    laws.check_all(divides_by_zero(), exempt=("finite", "compiled", "differentiable"))


def test_an_exemption_from_no_law_is_an_error() -> None:
    text = (
        "check_all: there is no law 'speed'; hint: there is pure, stable, local, finite, vmap, neutral, associative, "
        "saved, differentiable, compiled"
    )
    with pytest.raises(ValueError, match=f"^{text}$"):
        laws.check_all(sgd(0.1), exempt=("finite", "speed"))


def test_parameters_may_come_from_a_strategy_of_ones_own() -> None:
    matrices = strategies.tensors(torch.float64, (3, 2))
    only_matrices = elementwise(lambda g: g @ torch.eye(2, dtype=g.dtype))
    laws.check_all(only_matrices, exempt=("finite", "differentiable", "compiled"), params=matrices)


def test_outside_pytest_the_smallest_counterexample_is_printed() -> None:
    code = """
from functrain import tree
from functrain.base import rule, stateless
from functrain.testing import laws

@rule
def halve():
    return stateless(lambda updates, params: tree.map(lambda g: g.div_(2), updates))

laws.check_all(halve())
"""
    out = run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert out.returncode == 1
    assert "LawBroken: pure: halve() writes to the leaf of updates with aten.div_.Tensor" in out.stderr
    assert "trial=Trial(params=tensor([1., 1.]), history=[tensor([1., 1.])])" in out.stderr.replace("\n", "")


def test_without_hypothesis_the_import_says_what_is_missing() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; import functrain.testing"
    out = run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    last = out.stderr.strip().splitlines()[-1]
    assert last == (
        "ImportError: functrain.testing needs hypothesis; "
        "hint: python -m pip install 'functrain[testing]', or hypothesis alone"
    )
