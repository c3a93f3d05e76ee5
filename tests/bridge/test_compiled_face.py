"""compile=True: one graph for all sizes and all numbers, written in place, with the numbers of the eager step."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import functrain as ft
from functrain import TorchOptimizer
from tests.bridge.faces import distance

SIZES: tuple[tuple[int, ...], ...] = ((3, 2), (17,), (40, 50), (1000,), (6, 7))


def is_matrix(path: str, p: Tensor) -> bool:
    return p.ndim >= 2


def ends_with_bias(path: str, p: Tensor) -> bool:
    return path.endswith("bias")


MAKES: dict[str, Callable[[Any, bool], Any]] = {
    "AdamW": lambda p, compile: ft.optim.AdamW(p, lr=0.01, weight_decay=0.1, compile=compile),
    "adamw, masked": lambda p, compile: TorchOptimizer(
        p, ft.adamw, lr=0.01, weight_decay=0.1, mask=ft.mask_by(is_matrix), compile=compile
    ),
}


def every(*names: str) -> Any:
    return pytest.mark.parametrize("make", [MAKES[name] for name in names or MAKES], ids=names or MAKES)


def parameters(sizes: tuple[tuple[int, ...], ...] = SIZES) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [(1 + torch.rand(size, generator=draw)).requires_grad_() for size in sizes]


def backward(params: list[Tensor], t: int) -> None:
    draw = torch.Generator().manual_seed(100 + t)
    for p in params:
        p.grad = torch.randn(p.shape, generator=draw)


def runs(optimizer: Any, params: list[Tensor], times: range) -> list[Tensor]:
    for t in times:
        backward(params, t)
        optimizer.step()
    return [p.detach().clone() for p in params]


def assert_near(a: list[Tensor], b: list[Tensor]) -> None:
    assert all(distance(x, y) <= 1e-6 for x, y in zip(a, b, strict=True))


class Counting:
    """A compiler that runs what dynamo gives it, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """torch.compile with a counting backend in place of inductor: a graph is compiled whenever dynamo makes one."""
    counting, compile = Counting(), torch.compile

    def plain(f: Any, **options: Any) -> Any:
        options.pop("options", None)  # inductor's
        return compile(f, backend=counting, **options)

    monkeypatch.setattr(torch, "compile", plain)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield counting
    torch._dynamo.reset()


# --- how often


def test_one_graph_serves_all_sizes(counted: Counting) -> None:
    """An elementwise rule sees every parameter as a line."""
    params = parameters((*SIZES, (2, 3, 4, 2), *reversed(SIZES), (2, 2, 2), *SIZES, (9,)))
    runs(ft.optim.AdamW(params, compile=True), params, range(3))
    assert counted.graphs == 1


def test_a_rule_that_may_look_at_shapes_has_a_graph_for_each_number_of_dimensions(counted: Counting) -> None:
    params = parameters((*SIZES, (2, 3, 4, 2)))
    runs(TorchOptimizer(params, ft.lion, lr=0.01, compile=True), params, range(3))
    assert counted.graphs == len({p.dim() for p in params}) == 3


@pytest.mark.long
def test_a_mask_by_path_sees_the_name_of_each_parameter(counted: Counting) -> None:
    mask = ft.mask_by(ends_with_bias)
    names = ("a.weight", "a.bias", "b.weight", "b.bias", "c.weight")
    params, others = parameters(), parameters()
    for p, compile in ((params, True), (others, False)):
        named = zip(names, p, strict=True)
        runs(TorchOptimizer(named, ft.adamw, lr=0.01, weight_decay=1.0, mask=mask, compile=compile), p, range(4))
    assert_near(params, others)


def test_small_and_large_parameters_have_a_graph_each(counted: Counting) -> None:
    """One thread is faster for the small ones."""
    params = parameters(((3, 2), (300, 300), (400, 300), (5,)))
    runs(ft.optim.AdamW(params, compile=True), params, range(2))
    assert counted.graphs == 2


CHANGES: dict[str, Callable[[int], dict[str, Any]]] = {
    "numbers": lambda t: {"lr": 0.01 * (1 + t), "betas": (0.5, 0.9 + 0.01 * t), "weight_decay": 0.1 * (t + 1)},
    "eps, a tensor": lambda t: {"lr": torch.tensor(0.01 * (1 + t)), "eps": 0.1 * (1 + t)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_numbers_that_change_compile_nothing_and_are_obeyed(
    change: Callable[[int], dict[str, Any]], counted: Counting
) -> None:
    params, others = parameters(), parameters()
    compiled, eager = (MAKES["AdamW"](p, c) for p, c in ((params, True), (others, False)))
    for t in range(10):
        for optimizer, p in ((compiled, params), (eager, others)):
            optimizer.param_groups[0].update(change(t))
            runs(optimizer, p, range(t, t + 1))
    assert counted.graphs == 1
    assert_near(params, others)
    assert distance(runs(MAKES["AdamW"](q := parameters(), False), q, range(10))[0], others[0]) > 1e-4


def test_numbers_of_any_rule_that_change_compile_nothing_and_are_obeyed(counted: Counting) -> None:
    params, others = parameters(), parameters()
    compiled, eager = (MAKES["adamw, masked"](p, c) for p, c in ((params, True), (others, False)))
    for t in range(10):
        for optimizer, p in ((compiled, params), (eager, others)):
            optimizer.param_groups[0].update(
                {"lr": 0.01 / (1 + t), "b1": 0.9 - 0.01 * t, "weight_decay": 0.1 * (1 + t)}
            )
            runs(optimizer, p, range(t, t + 1))
    assert counted.graphs == 2
    assert_near(params, others)


def test_parameters_with_counters_of_their_own_share_the_graph(counted: Counting) -> None:
    params, others = parameters(), parameters()
    for optimizer, p in ((MAKES["AdamW"](params, True), params), (MAKES["AdamW"](others, False), others)):
        for t in range(6):
            backward(p, t)
            p[t % 3].grad = None
            optimizer.step()
    assert counted.graphs == 1
    assert_near(params, others)


def test_without_compile_nothing_is_compiled(counted: Counting) -> None:
    for make in MAKES.values():
        runs(make(params := parameters(), False), params, range(2))
    assert counted.graphs == 0


def test_a_group_that_is_fused_is_compiled_and_another_is_not(counted: Counting) -> None:
    params = parameters()
    optimizer = ft.optim.AdamW([{"params": params[:3], "fused": True}, {"params": params[3:]}])
    runs(optimizer, params[3:], range(2))
    assert counted.graphs == 0
    runs(optimizer, params, range(2))
    assert counted.graphs == 1


# --- what it leaves behind


@every()
def test_it_agrees_with_eager_and_writes_in_place(make: Callable[[Any, bool], Any], counted: Counting) -> None:
    params, others = parameters(), parameters()
    compiled, eager = make(params, True), make(others, False)
    runs(compiled, params, range(1))
    runs(eager, others, range(1))

    def places() -> list[int]:
        return [x.data_ptr() for p in params for x in (p, *compiled.state[p].values())]

    before = places()
    assert_near(runs(compiled, params, range(1, 10)), runs(eager, others, range(1, 10)))
    assert places() == before
    for p, q in zip(params, others, strict=True):
        mine, its = compiled.state[p], eager.state[q]
        assert list(mine) == list(its)
        assert all(distance(mine[key], x) <= 1e-6 for key, x in its.items())
        assert all(mine[key].dtype == x.dtype for key, x in its.items())


def test_a_copy_is_compiled_too_and_goes_on(counted: Counting) -> None:
    params = parameters()
    optimizer = ft.optim.AdamW(params, compile=True)
    runs(optimizer, params, range(3))
    other = pickle.loads(pickle.dumps(optimizer))
    before = counted.graphs
    theirs = other.param_groups[0]["params"]
    assert_near(runs(other, theirs, range(3, 6)), runs(optimizer, params, range(3, 6)))
    assert counted.graphs == before + 1  # its own


# --- with the compiler that users have


@pytest.mark.inductor
@every("AdamW", "adamw, masked")
def test_compiled_by_inductor_it_agrees_with_eager(make: Callable[[Any, bool], Any]) -> None:
    sizes = ((3, 2), (17,), (5, 4))
    params, others = parameters(sizes), parameters(sizes)
    compiled, eager = make(params, True), make(others, False)
    places = [p.data_ptr() for p in params]
    assert_near(runs(compiled, params, range(5)), runs(eager, others, range(5)))
    for optimizer in (compiled, eager):
        optimizer.param_groups[0]["lr"] = 0.1
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_near(runs(compiled, params, range(5, 10)), runs(eager, others, range(5, 10)))
    assert [p.data_ptr() for p in params] == places


@pytest.mark.inductor
def test_a_rule_that_sees_all_parameters_is_compiled_and_obeys_its_rate() -> None:
    sizes = ((3, 2), (17,))
    rule = ft.chain(ft.clip_by_global_norm(1.0), ft.trace(0.9), ft.scale(-0.1))
    params, others = parameters(sizes), parameters(sizes)
    compiled, eager = (TorchOptimizer(p, rule, compile=c) for p, c in ((params, True), (others, False)))
    places = [p.data_ptr() for p in params]
    assert_near(runs(compiled, params, range(3)), runs(eager, others, range(3)))
    for optimizer in (compiled, eager):
        optimizer.param_groups[0]["lr"] = 0.25
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_near(runs(compiled, params, range(3, 6)), runs(eager, others, range(3, 6)))
    assert [p.data_ptr() for p in params] == places
    for key, x in eager.state_dict()["functrain"].items():
        assert distance(compiled.state_dict()["functrain"][key].double(), x.double()) <= 1e-5, key
