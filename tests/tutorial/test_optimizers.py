"""The optimizers from scratch against torch.optim's and functrain's own: the same numbers, update for update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import functrain as ft
from functrain.tutorial import AdamWFromScratch, SGDFromScratch

D = torch.float64
UPDATES = 50
Gradient = Callable[[int, str], Tensor | None]

SGD: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.1},
    "momentum": {"lr": 0.03, "momentum": 0.9},
    "little momentum": {"lr": 0.1, "momentum": 0.3},
    "nesterov": {"lr": 0.03, "momentum": 0.95, "nesterov": True},
    "decay": {"lr": 0.1, "weight_decay": 0.2},
    "all": {"lr": 0.03, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
}
ADAMW: dict[str, dict[str, Any]] = {
    "defaults": {},
    "fast": {"lr": 0.1},
    "no decay": {"lr": 0.01, "weight_decay": 0.0},
    "decay": {"lr": 0.01, "weight_decay": 0.5},
    "betas": {"lr": 0.01, "betas": (0.8, 0.95)},
    "no memory": {"lr": 0.01, "betas": (0.0, 0.0)},
    "eps": {"lr": 0.01, "eps": 0.1},
}


def start(dtype: torch.dtype = D) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"w": (4, 3), "b": (3,), "scalar": (), "still": (2,)}
    return {k: nn.Parameter(torch.randn(s, generator=draw, dtype=D).to(dtype)) for k, s in shapes.items()}


def gradient(n: int, name: str, dtype: torch.dtype = D) -> Tensor | None:
    """That of update n: of sizes from layer to layer a thousand apart; none at all for one parameter."""
    if name == "still":
        return None
    draw = torch.Generator().manual_seed(7 * n + len(name))
    size = {"w": 1.0, "b": 1e-3, "scalar": 30.0}[name]
    return (size * torch.randn(start()[name].shape, generator=draw, dtype=D)).to(dtype)


def sometimes(n: int, name: str) -> Tensor | None:
    """The same, but the bias has one at every third update only, first at the second."""
    return None if name == "b" and n % 3 != 1 else gradient(n, name)


def run(make: Callable[[list[nn.Parameter]], Any], given: Gradient = gradient, updates: int = UPDATES) -> Any:
    """The parameters after each update."""
    params, path = start(), []
    optimizer = make(list(params.values()))
    for n in range(updates):
        for name, p in params.items():
            p.grad = given(n, name)
        optimizer.step()
        path.append({name: p.detach().clone() for name, p in params.items()})
    return path


def run_rule(tx: ft.GradientTransformation) -> Any:
    """The same with a pure rule; a missing gradient is a hole."""
    params: Any = {name: p.detach() for name, p in start().items()}
    state, path = tx.init(params), []
    for n in range(UPDATES):
        updates, state = tx.update({name: gradient(n, name) for name in params}, state, params)
        path.append(params := ft.apply_updates(params, updates))
    return path


def assert_same(mine: Any, theirs: Any) -> None:
    assert len(mine) == len(theirs) == UPDATES
    for n, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=1e-12, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize("given", [gradient, sometimes])
@pytest.mark.parametrize("setting", SGD)
def test_sgd_is_torchs_for_50_updates(setting: str, given: Gradient) -> None:
    arguments = SGD[setting]
    theirs = run(lambda params: torch.optim.SGD(params, **arguments), given)
    assert_same(run(lambda params: SGDFromScratch(params, **arguments), given), theirs)


@pytest.mark.parametrize("given", [gradient, sometimes])
@pytest.mark.parametrize("setting", ADAMW)
def test_adamw_is_torchs_for_50_updates(setting: str, given: Gradient) -> None:
    arguments = ADAMW[setting]
    theirs = run(lambda params: torch.optim.AdamW(params, **arguments), given)
    assert_same(run(lambda params: AdamWFromScratch(params, **arguments), given), theirs)


@pytest.mark.parametrize("setting", SGD)
def test_sgd_is_the_pure_rule_for_50_updates(setting: str) -> None:
    lr, decay, rest = (arguments := dict(SGD[setting])).pop("lr"), arguments.pop("weight_decay", 0.0), arguments
    tx = ft.chain(ft.add_decayed_weights(decay), ft.sgd(lr, **rest))
    assert_same(run(lambda params: SGDFromScratch(params, **SGD[setting])), run_rule(tx))


@pytest.mark.parametrize("setting", ADAMW)
def test_adamw_is_the_pure_rule_for_50_updates(setting: str) -> None:
    arguments = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01} | ADAMW[setting]
    lr, (b1, b2) = arguments["lr"], arguments["betas"]
    tx = ft.adamw(lr, b1, b2, arguments["eps"], weight_decay=arguments["weight_decay"])
    assert_same(run(lambda params: AdamWFromScratch(params, **ADAMW[setting])), run_rule(tx))


@pytest.mark.parametrize("given", [gradient, sometimes])
def test_they_are_functrains_torch_face_for_50_updates(given: Gradient) -> None:
    for mine, face, settings in ((SGDFromScratch, ft.optim.SGD, SGD), (AdamWFromScratch, ft.optim.AdamW, ADAMW)):
        arguments = settings["all" if "all" in settings else "decay"]
        theirs = run(lambda params, face=face, a=arguments: face(params, **a), given)
        assert_same(run(lambda params, mine=mine, a=arguments: mine(params, **a), given), theirs)


def test_the_defaults_are_torchs() -> None:
    mine = AdamWFromScratch([torch.zeros(1)])
    theirs = torch.optim.AdamW([torch.zeros(1)]).defaults
    assert (mine.lr, mine.betas, mine.eps, mine.weight_decay) == tuple(
        theirs[name] for name in ("lr", "betas", "eps", "weight_decay")
    )
    sgd = SGDFromScratch([torch.zeros(1)], 0.1)
    theirs = torch.optim.SGD([torch.zeros(1)], 0.1).defaults
    assert (sgd.momentum, sgd.nesterov, sgd.weight_decay) == tuple(
        theirs[name] for name in ("momentum", "nesterov", "weight_decay")
    )


@pytest.mark.parametrize("make", [lambda p: SGDFromScratch(p, 0.1, 0.9), lambda p: AdamWFromScratch(p, 0.01)])
def test_a_saved_memory_goes_on_as_if_nothing_had_been(make: Callable[[Any], Any]) -> None:
    whole = run(make)
    params = start()
    first = make(list(params.values()))
    for n in range(UPDATES):
        if n == 20:  # another optimizer takes over
            memory = {name: [x.clone() for x in xs] for name, xs in first.state_dict().items()}
            first = make(list(params.values()))
            first.load_state_dict(memory)
        for name, p in params.items():
            p.grad = gradient(n, name)
        first.step()
    for name, p in params.items():
        assert torch.equal(p.detach(), whole[-1][name])


@pytest.mark.parametrize("make", [lambda p: SGDFromScratch(p, 0.1, weight_decay=0.1), AdamWFromScratch])
def test_a_step_leaves_the_gradients_and_zero_grad_removes_them(make: Callable[[Any], Any]) -> None:
    params = start()
    for name, p in params.items():
        p.grad = gradient(0, name)
    before = {name: None if p.grad is None else p.grad.clone() for name, p in params.items()}
    optimizer = make(list(params.values()))
    optimizer.step()
    for name, p in params.items():
        assert p.grad is None if before[name] is None else torch.equal(p.grad, before[name])
    optimizer.zero_grad()
    assert all(p.grad is None for p in params.values())


@pytest.mark.parametrize("name", ["SGDFromScratch", "AdamWFromScratch"])
def test_a_generator_that_was_read_is_an_error(name: str) -> None:
    used = nn.Linear(1, 1).parameters()
    list(used)
    with pytest.raises(ValueError, match="no parameters") as error:
        getattr(ft.tutorial, name)(used, 0.1)
    assert str(error.value) == (
        f"{name}: there are no parameters; hint: a generator gives them once, call parameters() anew"
    )
