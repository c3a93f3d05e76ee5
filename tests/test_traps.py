"""PyTorch's traps for functional training, each shown with PyTorch alone and then avoided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import functrain as ft
from functrain import tree
from tests.networks import NormNet, Transformer, mlp, points, token_loss, tokens

OPAQUE = (
    "value_and_grad: saved-tensor hooks (activation checkpointing) inside a plain function may recompute with other "
    "weights; hint: give the module's loss as model.objective(lambda m, batch: ...)"
)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


def poison(module: nn.Module) -> None:
    """Make the module's own weights unusable, so that whoever reads them is found out."""
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(float("nan"))


def checkpointed_case() -> tuple[Checkpointed, dict[str, Tensor], Any, dict[str, Tensor]]:
    """A poisoned module, parameters for it, a batch, and the gradient that a module without checkpointing has."""
    plain = mlp(3, 4, 2)
    module = Checkpointed(plain)
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    x, y = points()
    grads = torch.autograd.grad(F.mse_loss(plain(x), y), list(plain.parameters()))
    poison(module)
    return module, params, (x, y), dict(zip(params, grads, strict=True))


# --- activation checkpointing


def test_torch_func_cannot_differentiate_a_checkpointed_module() -> None:
    module, params, (x, y), _ = checkpointed_case()
    with pytest.raises(RuntimeError, match="saved tensor hooks"):
        torch.func.grad(lambda p: F.mse_loss(functional_call(module, p, (x,)), y))(params)


def test_autograd_after_functional_call_returned_recomputes_with_the_wrong_weights() -> None:
    module, params, (x, y), truth = checkpointed_case()
    needy = {name: p.requires_grad_() for name, p in params.items()}
    loss = F.mse_loss(functional_call(module, needy, (x,)), y)
    wrong = torch.autograd.grad(loss, list(needy.values()))
    assert torch.isfinite(loss)
    assert not all(torch.equal(a, b) for a, b in zip(wrong, truth.values(), strict=True))


def test_a_modules_loss_is_exact_under_checkpointing() -> None:
    module, params, batch, truth = checkpointed_case()
    model = ft.functionalize(module)
    _, grads = ft.value_and_grad(model.loss(F.mse_loss))(params, batch)
    assert all(torch.equal(grads[name], truth[name]) for name in truth)


@pytest.mark.parametrize("precision", [None, "bf16", ft.Precision(compute=torch.float64)], ids=str)
def test_a_step_with_checkpointing_is_a_step_without(precision: Any) -> None:
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = ft.functionalize(Transformer(checkpointed=checkpointed))
        step = ft.train_step(model.loss(token_loss), ft.adamw(0.01), accumulate=2, precision=precision)
        state = ft.TrainState.create(model, step.tx)
        poison(model.module)
        for _ in range(2):
            state, _ = step(state, tokens())
        found.append(state.params)
    assert all(map(torch.equal, *map(tree.leaves, found)))
    assert all(x.isfinite().all() for x in tree.leaves(found))


def test_dropout_is_recomputed_with_the_masks_it_had() -> None:
    found = []
    for wrap in (lambda m: nn.Sequential(m), Checkpointed):
        torch.manual_seed(0)
        model = ft.functionalize(wrap(nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 2))))
        step = ft.train_step(model.loss(F.mse_loss), ft.sgd(0.1))
        found.append(step.gradients(ft.TrainState.create(model, step.tx), points()).grads)
    assert all(map(torch.equal, *map(tree.leaves, found)))


@pytest.mark.parametrize("precision", [None, "bf16", ft.Precision(compute=torch.bfloat16)], ids=str)
def test_checkpointing_inside_a_plain_function_is_refused(precision: Any) -> None:
    module, params, batch, _ = checkpointed_case()

    def loss(params: dict[str, Tensor], batch: Any) -> Tensor:
        return F.mse_loss(functional_call(module, params, (batch[0],)), batch[1])

    step = ft.train_step(loss, ft.sgd(0.1), precision=precision)
    for call in (
        lambda: ft.value_and_grad(loss)(params, batch),
        lambda: step(ft.TrainState.create(params, step.tx), batch),
    ):
        with pytest.raises(RuntimeError) as error:
            call()
        assert str(error.value) == OPAQUE
    checkpoint(nn.Linear(3, 2), batch[0], use_reentrant=False).sum().backward()  # hooks work again


class OldStyle(torch.autograd.Function):
    """As modules had them before torch.func: forward takes the context."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * x.exp()


def test_old_style_autograd_functions_work_where_torch_func_raises() -> None:
    x = torch.tensor([1.0, 2.0])
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda p: OldStyle.apply(p).sum())(x)
    assert torch.equal(ft.value_and_grad(lambda p: OldStyle.apply(p).sum())(x)[1], x.exp())


# --- a failed compilation


def test_torch_leaves_hooks_disabled_when_a_compilation_fails() -> None:
    module, params, (x, _), _ = checkpointed_case()
    message = torch._C._autograd._saved_tensors_hooks_get_disabled_error_message
    try:
        with pytest.raises(Exception, match="saved tensor hooks"):
            torch.compile(
                torch.func.grad(lambda p: functional_call(module, p, (x,)).sum()), fullgraph=True, backend="eager"
            )(params)
        assert message() is not None
    finally:
        torch._C._autograd._saved_tensors_hooks_enable()


def test_jit_of_a_checkpointed_step_is_a_worded_error_and_leaves_hooks_as_they_were() -> None:
    module, params, batch, _ = checkpointed_case()
    model = ft.functionalize(module)
    step = ft.train_step(model.loss(F.mse_loss), ft.sgd(0.1))
    state = ft.TrainState.create(model, step.tx)._replace(params=params)
    with pytest.raises(RuntimeError) as error:
        ft.jit(step, backend="aot_eager")(state, batch)
    assert str(error.value) == (
        "jit: the loss uses saved-tensor hooks (activation checkpointing), which torch.func cannot differentiate; "
        "hint: train this module without ft.jit, or without checkpointing"
    )
    checkpoint(nn.Linear(3, 2), batch[0], use_reentrant=False).sum().backward()


# --- shared and tied


class TwoPaths(nn.Module):
    """One submodule under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_functional_call_writes_over_a_submodule_that_has_two_paths() -> None:
    module = TwoPaths()
    before = module.a.weight
    given = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    functional_call(module, given, (torch.ones(1, 2),))
    assert module.a.weight is not before


def test_apply_leaves_a_submodule_that_has_two_paths_as_it_was() -> None:
    module = TwoPaths()
    before, values = dict(module.a.named_parameters()), [p.clone() for p in module.parameters()]
    model = ft.functionalize(module)
    assert list(model.params) == ["a.weight", "a.bias"]
    ones = {name: torch.ones_like(p) for name, p in model.params.items()}
    out, _ = model.apply(ones, {}, torch.ones(1, 2))
    assert out.tolist() == [[7.0, 7.0]]  # 1 + 1 + 1 = 3, then 3 + 3 + 1
    assert all(p is before[name] for name, p in module.b.named_parameters())
    assert all(map(torch.equal, module.parameters(), values))


def test_a_tied_weight_is_one_parameter_whose_gradient_is_the_sum() -> None:
    module = Transformer()
    model, batch = ft.functionalize(module), tokens()
    assert "embedding.weight" in model.params
    assert "head.weight" not in model.params
    _, grads = ft.value_and_grad(model.loss(token_loss))(model.params, batch)

    embedding, head = (module.embedding.weight.detach().clone().requires_grad_() for _ in range(2))
    untied = {"embedding.weight": embedding, "head.weight": head}
    logits = functional_call(module, untied, (batch[0],), tie_weights=False)
    parts = torch.autograd.grad(token_loss(logits, batch[1]), [embedding, head])
    torch.testing.assert_close(grads["embedding.weight"], parts[0] + parts[1], rtol=1e-5, atol=1e-7)
    assert all(part.abs().max() > 0 for part in parts)


# --- buffers, and modules with a life of their own


def test_batchnorm_under_vmap_keeps_statistics_for_each() -> None:
    model = ft.functionalize(NormNet())
    xs = torch.stack([points(seed=i)[0] for i in range(3)])
    with pytest.raises(RuntimeError, match="vmap"):  # torch: one set of buffers cannot be written by three
        torch.func.vmap(lambda x: functional_call(model.module, model.params, (x,)))(xs)

    stacked = ft.tree.stack([model.buffers] * 3)
    out, buffers = torch.func.vmap(lambda b, x: model.apply(model.params, b, x))(stacked, xs)
    for i in range(3):
        one, its = model.apply(model.params, model.buffers, xs[i])
        torch.testing.assert_close(out[i], one)
        torch.testing.assert_close({name: x[i] for name, x in buffers.items()}, its)


def test_functional_call_writes_to_the_buffers_it_is_given_and_apply_does_not() -> None:
    module = NormNet()
    model, given = ft.functionalize(module), {name: x.clone() for name, x in module.named_buffers()}
    before = {name: x.clone() for name, x in given.items()}
    _, after = model.apply(model.params, given, points()[0])
    assert all(torch.equal(given[name], before[name]) for name in given)
    assert not torch.equal(after["norm.running_mean"], before["norm.running_mean"])
    functional_call(module, (model.params, given), (points()[0],))
    assert torch.equal(given["norm.running_mean"], after["norm.running_mean"])


def test_an_lstm_runs_with_the_weights_it_is_given() -> None:
    module = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    other = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    model, x = ft.functionalize(module), torch.randn(2, 5, 3)
    params = {name: p.detach().clone() for name, p in other.named_parameters()}
    poison(module)
    (out, _), _ = model.apply(params, {}, x)
    assert torch.equal(out, other(x)[0])
    loss = model.objective(lambda m, x: m(x)[0].square().sum())
    _, grads = ft.value_and_grad(loss)(params, x)
    truth = torch.autograd.grad(other(x)[0].square().sum(), list(other.parameters()))
    for g, t in zip(grads.values(), truth, strict=True):
        torch.testing.assert_close(g, t)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights_are_computed_from_the_tensors_that_are_given(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    torch.manual_seed(0)
    module = wrap(nn.Linear(3, 2))
    model = ft.functionalize(module)
    params, buffers = ({name: x.clone() for name, x in part.items()} for part in (model.params, model.buffers))
    x, y = points()
    truth = torch.autograd.grad(F.mse_loss(module(x), y), list(module.parameters()))
    poison(module)
    loss = model.loss(F.mse_loss)
    with loss.hold(params, {}, buffers) as evaluate:
        assert torch.isfinite(evaluate((x, y)).mean)
    step = ft.train_step(loss, ft.sgd(0.1))
    state = ft.TrainState.create(model, step.tx)._replace(params=params, buffers=buffers)
    found = step.gradients(state, (x, y)).grads
    for g, t in zip(found.values(), truth, strict=True):
        torch.testing.assert_close(g, t)
