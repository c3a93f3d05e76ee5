"""value_and_grad: what it means, and that both engines agree bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import functrain as ft
from functrain import tree
from functrain.gradient import composes
from tests.networks import D, NormNet, Transformer, mlp, points, token_loss, tokens

ENGINES = ("func", "autograd")
INTEGER = "of dtype torch.int64, which has no gradient; hint: keep it out of the parameters, or choose other argnums"


def equal(a: object, b: object) -> bool:
    return tree.paths(a) == tree.paths(b) and all(map(torch.equal, tree.leaves(a), tree.leaves(b)))


def poly(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return (p["a"] * x + p["b"] * x.square()).sum()


A, B, X = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])


# --- meaning


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_value_and_gradient_of_a_polynomial(engine: Any) -> None:
    value, grads = ft.value_and_grad(poly, engine=engine)({"a": A, "b": B}, X)
    assert value.item() == 5 + 12 + 3 * 25 + 4 * 36
    assert torch.equal(grads["a"], X)
    assert torch.equal(grads["b"], X.square())
    assert not any(x.requires_grad for x in (value, *grads.values()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("argnums", [1, -1, (1,), (0, 1), [1, 0]])
def test_argnums_choose_as_in_torch_func(engine: Any, argnums: Any) -> None:
    f = lambda p, x: (p["a"] * x).sum()  # noqa: E731
    value, grads = ft.value_and_grad(f, argnums=argnums, engine=engine)({"a": A}, X)
    theirs, their_value = torch.func.grad_and_value(f, argnums=argnums if isinstance(argnums, int) else tuple(argnums))(
        {"a": A}, X
    )
    assert torch.equal(value, their_value)
    assert type(grads) is type(theirs)
    assert equal(grads, theirs)


@pytest.mark.parametrize("engine", ENGINES)
def test_aux_comes_back_beside_the_value_without_history(engine: Any) -> None:
    f = lambda p, x: ((p * x).sum(), {"twice": p * 2})  # noqa: E731
    (value, aux), grads = ft.value_and_grad(f, has_aux=True, engine=engine)(A, X)
    assert value.item() == 17
    assert torch.equal(aux["twice"], A * 2)
    assert not aux["twice"].requires_grad
    assert torch.equal(grads, X)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_aux_of_a_modules_loss_has_its_new_buffers(engine: Any) -> None:
    module = NormNet()
    model, batch = ft.functionalize(module), points()
    (value, aux), _ = ft.value_and_grad(model.loss(F.mse_loss), has_aux=True, engine=engine)(model.params, batch)
    assert value.item() == pytest.approx(F.mse_loss(module(batch[0]), batch[1]).item())
    assert equal(aux.buffers, dict(module.named_buffers()))  # the module's own call has moved them now


@pytest.mark.parametrize("engine", ENGINES)
def test_keyword_arguments_go_through(engine: Any) -> None:
    _, grads = ft.value_and_grad(lambda p, *, k: (p * k).sum(), engine=engine)(A, k=X)
    assert torch.equal(grads, X)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_loss_does_not_use_has_gradient_zero(engine: Any) -> None:
    _, grads = ft.value_and_grad(lambda p: p["a"].sum(), engine=engine)({"a": A, "b": B})
    assert torch.equal(grads["b"], torch.zeros(2))
    _, grads = ft.value_and_grad(lambda p: torch.ones(()), engine=engine)({"a": A})
    assert torch.equal(grads["a"], torch.zeros(2))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_hole_stays_a_hole(engine: Any) -> None:
    _, grads = ft.value_and_grad(lambda p: p["a"].sum(), engine=engine)({"a": A, "b": (), "c": [()]})
    assert grads["b"] == ()
    assert grads["c"] == [()]


def test_an_empty_tree_has_an_empty_gradient() -> None:
    assert ft.value_and_grad(lambda p, x: x.sum())({}, X)[1] == {}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("engine", ["auto", "func"])
def test_the_grad_mode_of_the_caller_does_not_matter(mode: Callable[[], Any], engine: Any) -> None:
    with mode():
        p, x = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0])
        assert torch.equal(ft.value_and_grad(lambda p, x: (p * x).sum(), engine=engine)(p, x)[1], x)


def test_sum_and_weight_is_their_quotient() -> None:
    value, grads = ft.value_and_grad(lambda p, x: ((p * x).sum(), torch.tensor(4.0)))(A, X)
    assert (value.item(), grads.tolist()) == (17 / 4, [5 / 4, 6 / 4])


def test_complex_parameters_have_autograds_gradient() -> None:
    z = torch.tensor([1 + 2j, 3 - 1j])
    (theirs,) = torch.autograd.grad((w := z.clone().requires_grad_()).abs().square().sum(), w)
    for engine in ENGINES:
        assert torch.equal(ft.value_and_grad(lambda z: z.abs().square().sum(), engine=engine)(z)[1], theirs)


# --- the two engines are one function


def cases() -> dict[str, tuple[nn.Module, Any, Any, bool]]:
    return {
        "mlp": (mlp(3, 8, 8, 2), F.mse_loss, points(), False),
        "transformer with a tied head": (Transformer(), token_loss, tokens(), False),
        "batchnorm": (NormNet(), F.mse_loss, points(), False),
        "mlp in autocast": (mlp(3, 8, 8, 2), F.mse_loss, points(), True),
        "transformer in autocast": (Transformer(), token_loss, tokens(), True),
    }


@pytest.mark.parametrize("name", cases())
def test_both_engines_give_the_same_bits(name: str) -> None:
    module, criterion, batch, autocast = cases()[name]
    model = ft.functionalize(module)
    found = []
    for engine in ENGINES:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=engine == "autograd"):
            found.append(ft.value_and_grad(model.loss(criterion), engine=engine)(model.params, batch))
    assert equal(*found)


def test_a_step_gives_the_same_bits_by_both_engines() -> None:
    model, batch = ft.functionalize(Transformer()), tokens()
    step = ft.train_step(model.loss(token_loss), ft.sgd(0.1), precision="bf16")
    state = ft.TrainState.create(model, step.tx)
    by_autograd = step.gradients(state, batch)
    needy = state._replace(params=tree.map(lambda x: x.clone().requires_grad_(), state.params))
    by_func = step.gradients(needy, batch)
    assert all(g.requires_grad for g in tree.leaves(by_func.grads))
    assert equal(by_autograd.grads, ft.tree.map(torch.Tensor.detach, by_func.grads))


# --- which engine "auto" is


def chosen(call: Callable[[Callable[[Tensor], Tensor]], object]) -> set[str]:
    """The engines at work when `call` evaluates the loss that it is given."""
    seen: set[str] = set()

    def loss(p: Tensor) -> Tensor:
        seen.add("func" if torch._C._functorch.is_gradtrackingtensor(p) else "autograd")
        return p.square().sum()

    call(loss)
    return seen


def test_auto_is_autograd_in_plain_eager_code() -> None:
    assert chosen(lambda loss: ft.value_and_grad(loss)(A)) == {"autograd"}
    assert chosen(lambda loss: ft.value_and_grad(lambda p, m: loss(p))(A, NormNet())) == {"autograd"}


def test_auto_is_autograd_at_a_modules_own_parameters() -> None:
    model = ft.functionalize(nn.Linear(2, 1))
    assert not composes(model.params, model.frozen)
    _, grads = ft.value_and_grad(model.objective(lambda m, batch: m(batch).sum()))(model.params, X)
    assert not any(g.requires_grad for g in grads.values())


def test_auto_is_torch_func_where_an_argument_requires_grad() -> None:
    needy = A.clone().requires_grad_()
    assert chosen(lambda loss: ft.value_and_grad(loss)(needy)) == {"func"}
    assert chosen(lambda loss: ft.value_and_grad(lambda p, x: loss(p))(A, {"x": [needy]})) == {"func"}
    with torch.no_grad():
        assert chosen(lambda loss: ft.value_and_grad(loss)(needy)) == {"autograd"}


def test_auto_is_torch_func_under_vmap_grad_and_jvp() -> None:
    stacked = torch.stack([A, B])
    assert chosen(lambda loss: torch.func.vmap(ft.value_and_grad(loss))(stacked)) == {"func"}
    assert chosen(lambda loss: torch.func.grad(lambda p: ft.value_and_grad(loss)(p)[1].sum())(A)) == {"func"}
    assert chosen(lambda loss: torch.func.jvp(ft.value_and_grad(loss), (A,), (B,))) == {"func"}


def test_auto_is_torch_func_inside_itself() -> None:
    inner: set[str] = set()

    def outer(p: Tensor) -> Tensor:
        inner.update(chosen(lambda loss: ft.value_and_grad(loss)(torch.ones(2))))
        return p.sum()

    ft.value_and_grad(outer)(A)
    assert inner == {"func"}


def test_autograd_outside_sees_through_value_and_grad() -> None:
    p = A.clone().requires_grad_()
    _, g = ft.value_and_grad(lambda p: (p**3).sum())(p)
    (second,) = torch.autograd.grad(g.sum(), p)
    assert torch.equal(second, 6 * A)


def test_value_and_grad_of_itself_is_the_second_derivative() -> None:
    f = ft.value_and_grad(lambda p: ft.value_and_grad(lambda q: (q**3).sum())(p)[1].sum())
    assert torch.equal(f(A)[1], 6 * A)


def test_forward_over_reverse_is_the_hessian_times_a_vector() -> None:
    _, tangent = torch.func.jvp(lambda p: ft.value_and_grad(lambda q: (q**3).sum())(p)[1], (A,), (B,))
    assert torch.equal(tangent, 6 * A * B)


def test_vmap_of_value_and_grad_is_a_loop() -> None:
    f = ft.value_and_grad(lambda p, x: (p * x).square().sum())
    stacked = torch.randn(4, 2, dtype=D)
    values, grads = torch.func.vmap(f, in_dims=(0, None))(stacked, X.double())
    for i, p in enumerate(stacked):
        assert equal((values[i], grads[i]), f(p, X.double()))


def test_it_compiles_in_one_graph() -> None:
    f = ft.value_and_grad(poly)
    args = {"a": A, "b": B}, X
    assert equal(torch.compile(f, fullgraph=True, backend="aot_eager")(*args), f(*args))


# --- errors, word for word


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="engine") as error:
        ft.value_and_grad(poly, engine="jax")
    assert str(error.value) == "value_and_grad: engine must be 'auto', 'func' or 'autograd', got 'jax'"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("argument", "came"),
    [
        ({"w": A, "n": {"count": torch.tensor(3)}}, f"leaf 'n.count' is {INTEGER}"),
        (torch.tensor([1, 2]), f"the argument is {INTEGER}"),
        ({"name": "x"}, "leaf 'name' is a str, not a tensor; hint: torch.tensor makes one"),
    ],
)
def test_what_has_no_gradient_is_named(engine: Any, argument: object, came: str) -> None:
    with pytest.raises(TypeError) as error:
        ft.value_and_grad(lambda p: torch.ones(()), engine=engine)(argument)
    assert str(error.value) == f"value_and_grad: {came}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("returned", "has_aux", "kind", "message"),
    [
        (
            torch.ones(2),
            False,
            ValueError,
            "loss: the result must be a 0-dim tensor, got shape (2,); hint: take the mean, or return (sum, weight)",
        ),
        (
            torch.tensor(2),
            False,
            TypeError,
            "loss: the result has dtype torch.int64, which has no gradient; hint: return a floating tensor",
        ),
        (
            torch.ones(()),
            True,
            TypeError,
            "value_and_grad: with has_aux the loss returns (value, aux), got Tensor",
        ),
        (
            (torch.ones(2), 0),
            True,
            ValueError,
            "value_and_grad: the value must be a 0-dim tensor, got shape (2,); "
            "hint: take the mean, or return (sum, weight)",
        ),
    ],
)
def test_a_value_that_is_no_scalar_is_told_so(
    engine: Any, returned: object, has_aux: bool, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as error:
        ft.value_and_grad(lambda p: returned, has_aux=has_aux, engine=engine)(A)
    assert str(error.value) == message
