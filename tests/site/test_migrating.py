"""docs/migrating.md claims nothing that is not so: names, arguments and numbers are looked up and run, row by row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import functrain as ft
from functrain import optim, schedules
from tests.site.tables import Row, check, mentioned, rows

VALUES = dict.fromkeys(
    "params net tx loss loader labels state opt_state grads updates mask mine f init update step module objective "
    "accuracy scheduler batch outer".split()
)
OURS = {**VALUES, "ft": ft, "optim": optim, "torch": torch, "schedules": schedules, "trainer": ft.Trainer}
TORCHS = {
    **VALUES,
    "torch": torch,
    "lr_scheduler": lr_scheduler,
    "optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))]),
}
ROWS = list(rows())


def of(section: str, measured: str = "") -> list[Row]:
    return [row for row in ROWS if row.section == section and measured in (row.measured, "")]


def by_code(row: Row) -> str:
    return f"{row.theirs} {row.ours}"


@functools.cache
def draw(seed: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=draws, dtype=torch.float64) for name, shape in (("w", (4, 3)), ("b", (3,)))
    }


GRADS = range(1, 26)  # seeds


def pure(tx: Any, **extra: Any) -> dict[str, Tensor]:
    """Parameters after 25 updates of a pure rule, ours or TorchOpt's."""
    params = {name: p.clone() for name, p in draw(0).items()}
    state = tx.init(params)
    for seed in GRADS:
        updates, state = tx.update({k: g.clone() for k, g in draw(seed).items()}, state, params=params, **extra)
        params = ft.apply_updates(params, updates)
    return params


def stateful(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> dict[str, Tensor]:
    params = {name: nn.Parameter(p.clone()) for name, p in draw(0).items()}
    optimizer = make(list(params.values()))
    for seed in GRADS:
        for name, p in params.items():
            p.grad = draw(seed)[name].clone()
        optimizer.step()
    return {name: p.detach() for name, p in params.items()}


def said(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    """What the page must say of two sets of parameters."""
    largest = max(p.abs().max() for p in theirs.values())
    difference = float(max((ours[name] - theirs[name]).abs().max() for name in theirs) / largest)
    return "equal" if difference <= 1e-12 else f"{difference:.0e}"


def first(cell: str) -> str:
    return cell.replace(";", ":").partition(":")[0]


@pytest.mark.parametrize("row", ROWS, ids=by_code)
def test_what_a_row_names_here_exists_and_takes_its_arguments(row: Row) -> None:
    check(row.ours, OURS)


@pytest.mark.parametrize("row", of("torch.optim"), ids=by_code)
def test_what_it_names_in_torch_does_too(row: Row) -> None:
    check(row.theirs, TORCHS)


@pytest.mark.parametrize("row", of("torch.optim", "numbers: torch"), ids=by_code)
def test_a_rule_and_torchs_optimizer_differ_as_told(row: Row) -> None:
    theirs = stateful(lambda params: eval(row.theirs, {"torch": torch, "params": params}))
    assert said(pure(eval(row.ours, {"ft": ft})), theirs) == first(row.differs)


@pytest.mark.parametrize("row", of("torch.optim", "rates: torch"), ids=by_code)
@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")  # SequentialLR steps its schedulers when it is made
def test_a_schedule_and_torchs_scheduler_differ_as_told(row: Row) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    scheduler = eval(row.theirs, {"lr_scheduler": lr_scheduler, "optimizer": optimizer})
    rates = []
    for _ in GRADS:
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    schedule = eval(row.ours, {"schedules": schedules})
    ours = torch.stack([schedule(t) for t in range(len(GRADS))])
    assert said({"rate": ours}, {"rate": torch.tensor(rates, dtype=torch.float64)}) == first(row.differs)


@pytest.mark.long
def test_what_the_page_says_of_optax_is_so() -> None:
    import jax
    import optax

    from tests.oracle import to_jax

    names = {**VALUES, "optax": optax, "jax": jax}
    for row in of("Optax"):
        check(row.theirs, names)
    for absent in mentioned("Optax"):
        check(absent, names)
        assert not hasattr(ft, absent.removeprefix("optax."))

    for row in of("Optax", "numbers: optax"):
        with jax.enable_x64(True):
            tx = eval(row.theirs, {"optax": optax})
            params = to_jax(draw(0))
            state = tx.init(params)
            for seed in GRADS:
                updates, state = tx.update(to_jax(draw(seed)), state, params)
                params = optax.apply_updates(params, updates)
            theirs = {name: torch.tensor(p.tolist(), dtype=torch.float64) for name, p in params.items()}
        assert said(pure(eval(row.ours, {"ft": ft})), theirs) == first(row.differs), row


@pytest.mark.long
def test_what_the_page_says_of_torchopt_is_so() -> None:
    import torchopt

    names = {**VALUES, "torchopt": torchopt}
    for row in of("TorchOpt"):
        check(row.theirs, names)
    for absent in mentioned("TorchOpt"):
        check(absent, names)
    for row in of("TorchOpt", "numbers: torchopt"):
        theirs = pure(eval(row.theirs, {"torchopt": torchopt}), inplace=False)
        assert said(pure(eval(row.ours, {"ft": ft})), theirs) == first(row.differs), row

    grads, params = draw(1)["w"].clone(), draw(0)["w"].clone()
    tx = torchopt.sgd(0.1)
    updates, _ = tx.update({"w": grads}, tx.init({"w": params}), params={"w": params})
    torchopt.apply_updates({"w": params}, updates)
    assert not torch.equal(grads, draw(1)["w"])
    assert not torch.equal(params, draw(0)["w"])


@pytest.mark.long
def test_what_the_page_names_of_lightning_exists() -> None:
    import lightning as L

    for row in of("Lightning"):
        check(row.theirs, {**VALUES, "L": L})
    for absent in mentioned("Lightning"):
        check(absent, {"L": L, "ft": ft})
