"""Whatever torch refuses is refused in its words, which then go on; whatever it takes is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.bridge.faces import ROWS, Row, assert_error_of_torch, every_row, outcome, parameters, pull

Params = Callable[[Row], Any]


def leaves(row: Row) -> list[Tensor]:
    return parameters(row.shapes, torch.float64)


PARAMETERS: dict[str, Params] = {
    "an empty list": lambda row: [],
    "an empty generator": lambda row: iter(()),
    "a tensor": lambda row: leaves(row)[0],
    "a list of strings": lambda row: ["weight"],
    "a set": lambda row: {"params": set(leaves(row))} and [{"params": set(leaves(row))}],
    "a group without parameters": lambda row: [{"lr": 0.1}],
    "a parameter that is computed": lambda row: [p * 2 for p in leaves(row)],
    "names for some": lambda row: [("a", leaves(row)[0]), leaves(row)[1]],
}


def twice(row: Row) -> Any:
    p = leaves(row)[0]
    return [{"params": [p]}, {"params": [p]}]


def named_in_one_group(row: Row) -> Any:
    a, b = leaves(row)[:2]
    return [{"params": [("a", a)]}, {"params": [b]}]


PARAMETERS |= {"a parameter in two groups": twice, "names in one group": named_in_one_group}


def numbers(row: Row, *values: float) -> Iterator[dict[str, Any]]:
    """These values for every argument that is a number or a tuple of numbers, one at a time."""
    for name, default in row.defaults.items():
        if isinstance(default, int | float) and not isinstance(default, bool):
            yield from ({name: type(default)(value)} for value in values)
        if isinstance(default, tuple):
            for i in range(len(default)):
                yield from ({name: (*default[:i], float(value), *default[i + 1 :])} for value in values)


def tensors(row: Row) -> Iterator[dict[str, Any]]:
    """Rates and betas that are tensors: good ones, of a wrong value, or of a wrong shape."""
    point, line = torch.tensor(0.9), torch.tensor([0.9, 0.9])
    yield from ({"lr": value} for value in (point, line[:1], line, -point))
    if row.info.supports_param_groups and "betas" in row.defaults:
        yield from ({"betas": pair} for pair in ((point, point), (0.9, point), (point, 0.9)))


def combined(row: Row) -> Iterator[dict[str, Any]]:
    """Arguments that only together are wrong."""
    every: tuple[dict[str, Any], ...] = (
        {"nesterov": True},
        {"nesterov": True, "momentum": 0.9, "dampening": 0.5},
        {"fused": True, "foreach": True},
        {"fused": True, "differentiable": True},
        {"foreach": True, "lr": torch.tensor(0.1)},
        {"foreach": True, "capturable": True, "lr": torch.tensor(0.1)},
        {"foreach": True, "betas": (torch.tensor(0.9), torch.tensor(0.99))},
        {"foreach": True, "differentiable": True},
        {"adjust_lr_fn": "mine"},
        {"line_search_fn": "mine"},
    )
    yield from (options for options in every if set(options) <= set(row.defaults))


def made(row: Row, params: Params, options: dict[str, Any]) -> tuple[BaseException | None, BaseException | None]:
    """What our class and torch's class say to this."""
    ours, torchs = (outcome(lambda m=make: m(params(row), **options)) for make in (row.ours, row.torchs))
    return ours, torchs


@every_row()
@pytest.mark.parametrize("params", PARAMETERS.values(), ids=PARAMETERS)
def test_parameters_that_torch_refuses_are_refused_in_its_words(row: Row, params: Params) -> None:
    ours, torchs = made(row, params, {})
    assert torchs is not None
    assert_error_of_torch(ours, torchs)


@every_row()
@pytest.mark.parametrize("params", [1.0, None, torch.nn.Linear(2, 2).parameters], ids=["number", "None", "method"])
def test_parameters_that_are_no_iterable_are_a_type_error_with_a_hint(row: Row, params: Any) -> None:
    assert type(outcome(lambda: row.torchs(params))) is TypeError
    with pytest.raises(TypeError, match=r"^params argument given to the optimizer should be an iterable.*; hint: "):
        row.ours(params)


@every_row()
def test_numbers_that_torch_refuses_are_refused_in_its_words(row: Row) -> None:
    outcomes = [made(row, leaves, options) for options in numbers(row, -1, 0, 1, 2)]
    refused = [(ours, torchs) for ours, torchs in outcomes if torchs is not None]
    assert refused
    for ours, torchs in refused:
        assert_error_of_torch(ours, torchs)


@every_row()
def test_zeros_and_ones_that_torch_takes_are_taken(row: Row) -> None:
    for options in numbers(row, 0, 1):
        ours, torchs = made(row, leaves, options)
        assert torchs is not None or ours is None, f"{options}: {ours!r}"


@every_row()
def test_tensors_are_refused_in_torchs_words_or_taken(row: Row) -> None:
    for options in tensors(row):
        assert_error_of_torch(*made(row, leaves, options))


@every_row()
def test_combinations_are_refused_in_torchs_words_or_taken(row: Row) -> None:
    for options in combined(row):
        assert_error_of_torch(*made(row, leaves, options))


@every_row()
def test_a_group_that_is_no_dict_is_refused_in_torchs_words(row: Row) -> None:
    ours, torchs = (outcome(lambda m=make: m(leaves(row)).add_param_group([1])) for make in (row.ours, row.torchs))
    assert type(torchs) is TypeError or not row.info.supports_param_groups
    assert_error_of_torch(ours, torchs)


SAID: dict[str, tuple[type[Exception], Params, dict[str, Any]]] = {
    "empty": (ValueError, PARAMETERS["an empty list"], {}),
    "computed": (ValueError, PARAMETERS["a parameter that is computed"], {}),
    "twice": (ValueError, twice, {}),
    "negative rate": (ValueError, leaves, {"lr": -0.1}),
    "rate of two": (ValueError, leaves, {"lr": torch.tensor([0.1, 0.1])}),
}


@every_row()
@pytest.mark.parametrize("wrong", SAID)
def test_an_error_says_more_than_torchs(row: Row, wrong: str) -> None:
    kind, params, options = SAID[wrong]
    ours, torchs = made(row, params, options)
    assert type(ours) is type(torchs) is kind
    assert len(str(ours)) > len(str(torchs)) + 10


@every_row([row for row in ROWS if "betas" in row.defaults])
def test_betas_out_of_range_are_refused_by_their_index(row: Row) -> None:
    for i, betas in enumerate(((1.0, 0.9), (0.9, 1.0))):
        with pytest.raises(ValueError, match=rf"^Invalid beta parameter at index {i}: 1.0; hint: "):
            row.ours(leaves(row), betas=betas)


@every_row([row for row in ROWS if "differentiable" in row.defaults])
def test_differentiable_names_the_pure_way(row: Row) -> None:
    params = leaves(row)
    optimizer = row.ours(params, differentiable=True)
    pull(params)
    with pytest.raises(RuntimeError, match=rf"^{row.name}: .*hint: .*as_transform\(\)"):
        optimizer.step()


@every_row()
def test_no_step_of_torchs_class_is_inherited_or_called(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("torch's own step was called")

    refuse.hooked = True  # torch wraps whatever does not say so
    theirs = [vars(torch.optim)[r.name] for r in ROWS]
    assert not set(row.ours.__mro__) & set(theirs)
    assert issubclass(row.ours, torch.optim.Optimizer)
    for cls in theirs:
        monkeypatch.setattr(cls, "step", refuse)
    params = leaves(row)
    row.ours(params).step(lambda: pull(params))
