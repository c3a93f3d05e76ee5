"""LBFGS as an optimizer: torch's numbers, torch's state dict, and what torch's own cannot do."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from functrain.bridge.lbfgs import LBFGS
from tests.bridge.runs import Loss, Run, assert_together, logarithm, network, rosenbrock

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "slow": {"lr": 0.1},
    "short history": {"lr": 0.5, "history_size": 2},
    "one iteration": {"lr": 0.5, "max_iter": 1},
    "few evaluations": {"max_eval": 3},
    "tolerance of the gradient": {"tolerance_grad": 0.3},
    "tolerance of change": {"tolerance_change": 1e-2},
    "no progress": {"lr": 1e-9},
    "rate in a tensor": {"lr": torch.tensor([0.25])},
}
SEARCH = {"line_search_fn": "strong_wolfe"}


@pytest.mark.parametrize("search", [{}, SEARCH], ids=["fixed length", "line search"])
@pytest.mark.parametrize("kwargs", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("problem", [rosenbrock, network, logarithm])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)], ids=str)
def test_25_steps_are_torchs(problem: Any, kwargs: Any, search: Any, dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = (Run(cls, problem(dtype), **kwargs, **search) for cls in (LBFGS, torch.optim.LBFGS))
    assert_together(ours, theirs, 25, tolerance)


@pytest.mark.parametrize("search", [{}, SEARCH], ids=["fixed length", "line search"])
def test_a_loss_that_becomes_nan_goes_the_way_it_goes_in_torch(search: Any) -> None:
    def problem() -> tuple[list[Parameter], Loss]:
        return [Parameter(torch.tensor([0.5, 3.0], dtype=torch.float64))], lambda params: params[0].sqrt().sum()

    ours, theirs = (Run(cls, problem(), lr=10.0, **search) for cls in (LBFGS, torch.optim.LBFGS))
    assert_together(ours, theirs, 3, 1e-10)
    assert ours.step().isnan()


@pytest.mark.parametrize("search", [{}, SEARCH], ids=["fixed length", "line search"])
def test_at_rate_zero_nothing_moves(search: Any) -> None:
    run = Run(LBFGS, network(), lr=0.0, **search)
    before = copy.deepcopy(run.params)
    assert run.step() == run.step() == run.step()
    assert all(torch.equal(p, q) for p, q in zip(run.params, before, strict=True))


@pytest.mark.parametrize("search", [{}, SEARCH], ids=["fixed length", "line search"])
def test_a_closure_may_move_the_parameters_into_a_box(search: Any) -> None:
    runs = [Run(cls, network(), lr=0.5, **search) for cls in (LBFGS, torch.optim.LBFGS)]
    for run in runs:
        inner = run.loss

        def boxed(params: list[Parameter], inner: Loss = inner) -> Tensor:
            with torch.no_grad():
                params[1].clamp_(-0.2, 0.2)
            return inner(params)

        run.loss = boxed
    assert_together(*runs, 10, 1e-10)


def test_complex_and_missing_gradients_count_as_in_torch() -> None:
    def problem() -> tuple[list[Parameter], Loss]:
        z = Parameter(torch.tensor([1 + 1j, 2 - 1j], dtype=torch.complex128))
        params = [z, Parameter(torch.ones(3, dtype=torch.float64)), Parameter(torch.ones((), dtype=torch.float64))]
        return params, lambda p: (p[0] * p[0] - 2j).abs().square().sum() + p[2] ** 4

    ours, theirs = (Run(cls, problem(), lr=0.1) for cls in (LBFGS, torch.optim.LBFGS))
    assert_together(ours, theirs, 10, 1e-10)
    assert ours.params[1].tolist() == [1, 1, 1]


# --- the state


@pytest.mark.parametrize("search", [{}, SEARCH], ids=["fixed length", "line search"])
@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize(("giver", "taker"), [(LBFGS, torch.optim.LBFGS), (torch.optim.LBFGS, LBFGS)])
def test_a_state_dict_goes_on_in_the_other_library(giver: Any, taker: Any, before: int, search: Any) -> None:
    first = Run(giver, network(), lr=0.3, max_iter=3, history_size=5, **search)
    for _ in range(before):
        first.step()
    second = Run(taker, network(), lr=7.0)
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(second.params, first.params, strict=True):
            p.copy_(q)
    assert_together(first, second, 20, 1e-10)


def test_the_state_is_torchs_key_for_key_and_number_for_number() -> None:
    ours, theirs = (Run(cls, network(), max_iter=3, history_size=4) for cls in (LBFGS, torch.optim.LBFGS))
    for _ in range(4):
        ours.step()
        theirs.step()
        assert ours.kept.keys() == theirs.kept.keys()
        for key, x in theirs.kept.items():
            assert type(ours.kept[key]) is type(x)
            torch.testing.assert_close(ours.kept[key], x, rtol=1e-10, atol=1e-10)


def test_a_state_keeps_its_dtypes_where_those_of_parameters_are_mixed() -> None:
    """torch casts all of it to the first parameter's, and cannot step afterwards."""

    def problem() -> tuple[list[Parameter], Loss]:
        return [Parameter(torch.ones(2)), Parameter(torch.ones(2, dtype=torch.float64))], lambda params: sum(
            ((p.double() - 3) ** 4).sum() for p in params
        )

    run = Run(LBFGS, problem(), lr=0.1, max_iter=3)
    run.step()
    other = Run(LBFGS, problem())
    other.optimizer.load_state_dict(run.optimizer.state_dict())
    assert other.kept["d"].dtype == torch.float64
    assert other.kept["d"] is not run.kept["d"]
    with torch.no_grad():
        for p, q in zip(other.params, run.params, strict=True):
            p.copy_(q)
    assert other.step() == run.step()


def test_a_state_of_other_parameters_is_refused_and_changes_nothing() -> None:
    run = Run(LBFGS, network())
    other = Run(LBFGS, ([Parameter(torch.ones(1)) for _ in run.params], run.loss))
    run.step()
    text = (
        "LBFGS: the state is of 36 entries in all parameters together, and here are 3; hint: the parameters must be "
        "those that the saved optimizer had"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        other.optimizer.load_state_dict(run.optimizer.state_dict())
    assert not other.kept


def copied(run: Run) -> Run:
    return copy.deepcopy(run)


def pickled(run: Run) -> Run:
    again = copy.copy(run)
    again.params, again.optimizer = pickle.loads(pickle.dumps((run.params, run.optimizer)))
    return again


def saved(run: Run) -> Run:
    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in run.params], "optimizer": run.optimizer.state_dict()}, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    again = Run(LBFGS, ([Parameter(p) for p in read["params"]], run.loss))
    again.optimizer.load_state_dict(read["optimizer"])
    return again


@pytest.mark.parametrize("again", [copied, pickled, saved])
@pytest.mark.parametrize("before", [0, 3])
def test_a_copy_a_pickle_and_a_file_go_on_bit_for_bit(again: Callable[[Run], Run], before: int) -> None:
    run = Run(LBFGS, network(), lr=0.3, max_iter=3)
    for _ in range(before):
        run.step()
    other = again(run)
    for _ in range(3):
        assert other.step() == run.step()
    assert all(torch.equal(p, q) for p, q in zip(run.params, other.params, strict=True))


def test_a_step_changes_no_tensor_that_an_earlier_state_dict_holds() -> None:
    run = Run(LBFGS, network(), max_iter=3)
    run.step()
    held = run.optimizer.state_dict()
    before = copy.deepcopy(held)
    kept = held["state"][0]["old_dirs"]
    run.step()
    assert held["state"][0]["old_dirs"] is not kept
    for x, y in zip(kept, before["state"][0]["old_dirs"], strict=True):
        assert torch.equal(x, y)


def test_a_closure_that_fails_leaves_the_memory_as_it_was() -> None:
    run = Run(LBFGS, network(), max_iter=3)
    run.step()
    before, calls = dict(run.kept), []

    def closure() -> Tensor:
        calls.append(0)
        if len(calls) == 3:
            raise KeyError("batch")
        return run.closure()

    with pytest.raises(KeyError):
        run.optimizer.step(closure)
    assert all(run.kept[key] is x for key, x in before.items())


# --- an optimizer among torch's


def test_the_signature_is_torchs_and_compile_which_leaves_no_trace() -> None:
    ours, theirs = (inspect.signature(cls).parameters for cls in (LBFGS, torch.optim.LBFGS))
    assert [(p.name, p.default) for p in ours.values()][:-1] == [(p.name, p.default) for p in theirs.values()]
    assert ours["compile"].kind is inspect.Parameter.KEYWORD_ONLY
    a, b = LBFGS(rosenbrock()[0], compile=True), torch.optim.LBFGS(rosenbrock()[0])
    assert repr(a) == repr(b)
    assert a.defaults == b.defaults
    assert a.state_dict() == b.state_dict()
    assert not isinstance(a, torch.optim.LBFGS)


def test_hooks_and_schedulers_work() -> None:
    run, seen = Run(LBFGS, network(), lr=0.5, max_iter=2), []
    run.optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    run.optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    run.step()
    scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 1, 0.5)
    for rate in (0.5, 0.25):
        run.step()
        assert run.kept["t"] == rate
        scheduler.step()
    assert seen == ["before", "after"] * 3


def test_the_closure_runs_with_gradients_whatever_is_around_it() -> None:
    run = Run(LBFGS, network())
    with torch.no_grad():
        first = run.step()
    assert run.step() < first


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda p: LBFGS(p, lr=-1.0), ValueError, "Invalid learning rate: -1.0; hint: it is at least 0"),
        (
            lambda p: LBFGS(p, lr=torch.ones(2)),
            ValueError,
            "Tensor lr must be 1-element; it has shape (2,)",
        ),
        (
            lambda p: LBFGS([{"params": p[:1]}, {"params": p[1:]}]),
            ValueError,
            "LBFGS doesn't support per-parameter options (parameter groups); hint: all parameters in one list",
        ),
        (
            lambda p: LBFGS(p).step(),
            TypeError,
            "LBFGS.step: it evaluates the loss several times and needs a closure for it; hint: "
            "optimizer.step(closure), where closure clears the gradients, calls backward and returns the loss",
        ),
        (
            lambda p: LBFGS(p).step(lambda: None),
            TypeError,
            "LBFGS.step: the closure must return the loss, a number, got NoneType; hint: end it with `return loss`",
        ),
        (
            lambda p: LBFGS(p, line_search_fn="wolfe").step(lambda: 0.0),
            RuntimeError,
            "only 'strong_wolfe' is supported, got 'wolfe'; hint: line_search_fn=None has no search",
        ),
    ],
)
def test_what_is_refused_is_said_in_torchs_words_with_a_hint(call: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        call(rosenbrock()[0])


def test_sparse_gradients_are_refused() -> None:
    table = torch.nn.Embedding(3, 2, sparse=True)
    optimizer = LBFGS([torch.nn.Parameter(torch.ones(1)), table.weight])

    def closure() -> Tensor:
        loss = table(torch.tensor([1])).sum()
        loss.backward()
        return loss

    text = "LBFGS does not support sparse gradients, and parameter 1 has one; hint: sparse=False in the module that "
    with pytest.raises(RuntimeError, match=f"^{text}makes it$"):
        optimizer.step(closure)
