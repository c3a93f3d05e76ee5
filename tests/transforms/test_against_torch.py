"""The rules of torch.optim beside torch.optim itself: around them, late in a run, in other dtypes, with tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.optim import ASGD, SGD, Adagrad, Adam, NAdam, RAdam, Rprop

from functrain import tree
from functrain.base import GradientTransformation, apply_updates, identity
from functrain.combinators.chain import chain
from functrain.transforms.decay import add_decayed_weights
from functrain.transforms.scale import scale
from functrain.transforms.torch_adaptive import (
    scale_by_torch_adagrad,
    scale_by_torch_amsgrad,
    scale_by_torch_nadam,
    scale_by_torch_radam,
)
from functrain.transforms.torch_steps import scale_by_torch_asgd, scale_by_torch_rprop, torch_trace

D = torch.float64
LR = 0.05


class Pair(NamedTuple):
    """A rule and the optimizer that uses it."""

    make: Callable[..., GradientTransformation]
    hyper: tuple[float, ...]
    torch: Callable[..., torch.optim.Optimizer]
    keys: dict[str, str]  # our field: torch's key
    decays: bool = True  # torch adds weight decay to the gradient
    steps: bool = False  # torch adds the updates as they are


def rprop(lr: Any, minus: Any, plus: Any, least: Any, greatest: Any) -> GradientTransformation:
    return scale_by_torch_rprop(lr, (minus, plus), (least, greatest))


PAIRS = {
    "amsgrad": Pair(
        scale_by_torch_amsgrad,
        (0.8, 0.95, 1e-6),
        lambda ps, b1, b2, eps, **kw: Adam(ps, LR, (b1, b2), eps, amsgrad=True, **kw),
        {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"},
    ),
    "nadam": Pair(
        scale_by_torch_nadam,
        (0.9, 0.99, 1e-6, 4e-3),
        lambda ps, b1, b2, eps, psi, **kw: NAdam(ps, LR, (b1, b2), eps, momentum_decay=psi, **kw),
        {"mu_product": "mu_product", "mu": "exp_avg", "nu": "exp_avg_sq"},
    ),
    "radam": Pair(
        scale_by_torch_radam,
        (0.9, 0.95, 1e-6),
        lambda ps, b1, b2, eps, **kw: RAdam(ps, LR, (b1, b2), eps, **kw),
        {"mu": "exp_avg", "nu": "exp_avg_sq"},
    ),
    "adagrad": Pair(
        scale_by_torch_adagrad,
        (0.01, 0.1, 1e-6),
        lambda ps, decay, first, eps, **kw: Adagrad(ps, LR, decay, initial_accumulator_value=first, eps=eps, **kw),
        {"sum": "sum"},
    ),
    "momentum": Pair(
        torch_trace,
        (0.9, 0.4),
        lambda ps, decay, dampening, **kw: SGD(ps, LR, decay, dampening, **kw),
        {"trace": "momentum_buffer"},
    ),
    "rprop": Pair(
        rprop,
        (LR, 0.5, 1.2, 1e-3, 0.2),
        lambda ps, lr, minus, plus, least, greatest, **kw: Rprop(ps, lr, (minus, plus), (least, greatest), **kw),
        {"prev": "prev", "step_size": "step_size"},
        decays=False,
        steps=True,
    ),
    "asgd": Pair(
        scale_by_torch_asgd,
        (LR, 0.1, 0.75, 5.0),
        lambda ps, lr, lambd, alpha, t0, **kw: ASGD(ps, lr, lambd, alpha, t0, **kw),
        {"eta": "eta", "mu": "mu", "ax": "ax"},
        steps=True,
    ),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def drawn(draw: torch.Generator, dtype: torch.dtype = D) -> dict[str, Tensor]:
    shapes = {"matrix": (3, 2), "number": (), "kernel": (2, 3, 2, 2)}
    return {name: torch.randn(shape, generator=draw, dtype=D).to(dtype) for name, shape in shapes.items()}


def gradients(steps: int, dtype: torch.dtype = D) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [drawn(draw, dtype) for _ in range(steps)]


def parameters(dtype: torch.dtype = D) -> dict[str, Tensor]:
    return drawn(torch.Generator().manual_seed(0), dtype)


def whole(pair: Pair, rule: GradientTransformation) -> GradientTransformation:
    return rule if pair.steps else chain(rule, scale(-LR))


def step(optimizer: torch.optim.Optimizer, params: dict[str, Tensor], g: dict[str, Tensor]) -> None:
    for name, p in params.items():
        p.grad = g[name].clone()
    optimizer.step()


def assert_near(ours: Tensor, theirs: Tensor, what: str) -> None:
    assert (ours.double() - theirs.double()).norm() <= 1e-10 * theirs.double().norm(), what


@every_pair
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_with_weight_decay_and_maximize_around_it_it_agrees_and_so_does_its_state(
    pair: Pair, maximize: bool, weight_decay: float
) -> None:
    theirs, params = parameters(), parameters()
    around: dict[str, Any] = {"maximize": maximize} | ({"weight_decay": weight_decay} if pair.decays else {})
    optimizer = pair.torch(list(theirs.values()), *pair.hyper, **around)
    first = chain(scale(-1.0) if maximize else identity(), add_decayed_weights(weight_decay if pair.decays else 0.0))
    tx, last = pair.make(*pair.hyper), identity() if pair.steps else scale(-LR)
    state: Any = tx.init(params)
    before = first.init(params)
    for t, g in enumerate(gradients(30), 1):
        step(optimizer, theirs, g)
        u, before = first.update(g, before, params)
        u, state = tx.update(u, state, params)
        params = apply_updates(params, last.update(u, (), params)[0])
        assert state.count == t
        for name, p in theirs.items():
            assert_near(params[name], p, name)
            for field, key in pair.keys.items():
                value, expected = getattr(state, field), optimizer.state[p][key]
                if isinstance(value, Tensor):  # shared by all leaves, and rounded as torch rounds it
                    assert value.dtype == expected.dtype
                    assert torch.equal(value, expected), field
                else:
                    assert_near(value[name], expected, field)


@every_pair
@pytest.mark.parametrize("at", [4, 1000, 10**6])
def test_it_goes_on_from_a_late_count_as_torch_does(pair: Pair, at: int) -> None:
    theirs, params = parameters(), parameters()
    optimizer = pair.torch(list(theirs.values()), *pair.hyper)
    tx = whole(pair, pair.make(*pair.hyper))
    state: Any = tx.init(params)
    for i, g in enumerate(gradients(6)):
        if i == 2:  # as if that many updates had been made
            for p in theirs.values():
                if "step" in optimizer.state[p]:
                    optimizer.state[p]["step"].fill_(at)
            state = tree.map(lambda x: x if x.is_floating_point() else torch.full_like(x, at), state)
        step(optimizer, theirs, g)
        updates, state = tx.update(g, state, params)
        params = apply_updates(params, updates)
    for name, p in theirs.items():
        assert_near(params[name], p, name)


@pytest.fixture
def wide_default() -> Iterator[None]:
    """float64 as the default dtype."""
    torch.set_default_dtype(D)
    yield
    torch.set_default_dtype(torch.float32)


@every_pair
@pytest.mark.usefixtures("wide_default")
def test_what_all_leaves_share_has_the_default_dtype(pair: Pair) -> None:
    theirs, params = parameters(), parameters()
    optimizer = pair.torch(list(theirs.values()), *pair.hyper)
    rule, last = pair.make(*pair.hyper), identity() if pair.steps else scale(-LR)
    state: Any = rule.init(params)
    for g in gradients(20):
        step(optimizer, theirs, g)
        u, state = rule.update(g, state, params)
        params = apply_updates(params, last.update(u, (), params)[0])
    for name, p in theirs.items():
        assert_near(params[name], p, name)
        for field, key in pair.keys.items():
            value = getattr(state, field)
            if isinstance(value, Tensor):
                assert value.dtype == D
                assert abs(value.item() / optimizer.state[p][key].item() - 1) < 1e-14


@every_pair
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_zero_gradient_in_half_precision_moves_nothing_to_nan(pair: Pair, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    tx = whole(pair, pair.make(*pair.hyper))
    state = tx.init(params)
    for _ in range(8):
        updates, state = tx.update(tree.zeros_like(params), state, params)
        params = apply_updates(params, updates)
    assert all(p.isfinite().all() and p.dtype == dtype for p in params.values())


def after_8(pair: Pair) -> Callable[..., dict[str, Tensor]]:
    """The parameters after 8 steps, as a function of the hyper-parameters."""
    start, gs = parameters(), gradients(8)

    def end(*hyper: Any) -> dict[str, Tensor]:
        params, tx = start, whole(pair, pair.make(*hyper))
        state = tx.init(params)
        for g in gs:
            updates, state = tx.update(g, state, params)
            params = apply_updates(params, updates)
        return params

    return end


@every_pair
def test_hyper_parameters_may_be_tensors_and_mapped(pair: Pair) -> None:
    end = after_8(pair)
    tensors = [torch.tensor(h, dtype=D) for h in pair.hyper]
    mapped = torch.func.vmap(end)(*(torch.stack([h, 0.9 * h]) for h in tensors))
    for i, factor in enumerate((1.0, 0.9)):
        for name, p in end(*(factor * h for h in pair.hyper)).items():
            torch.testing.assert_close(mapped[name][i], p, rtol=1e-14, atol=0)
            torch.testing.assert_close(end(*(factor * h for h in tensors))[name], p, rtol=1e-14, atol=0)


@every_pair
@pytest.mark.usefixtures("wide_default")
def test_derivatives_in_hyper_parameters_are_those_of_finite_differences(pair: Pair) -> None:
    end, h = after_8(pair), 1e-6
    tensors = [torch.tensor(x, dtype=D) for x in pair.hyper]

    def total(*hyper: Any) -> Tensor:
        return torch.stack([p.sum() for p in end(*hyper).values()]).sum()

    slopes = torch.func.grad(total, tuple(range(len(tensors))))(*tensors)
    ahead, behind = (total(*(x + x * e * s for x, s in zip(tensors, slopes, strict=True))) for e in (h, -h))
    expected = sum(x * s * s for x, s in zip(tensors, slopes, strict=True))
    torch.testing.assert_close((ahead - behind) / (2 * h), expected, rtol=1e-6, atol=1e-8)


@every_pair
def test_one_graph_takes_any_hyper_parameters(pair: Pair) -> None:
    params, g = parameters(), gradients(1)[0]
    state = pair.make(*pair.hyper).init(params)

    def update(*hyper: Any) -> Any:
        return pair.make(*hyper).update(g, state, params)

    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    compiled = torch.compile(update, backend="aot_eager", fullgraph=True)
    for factor in (1.0, 0.9):
        tensors = [torch.tensor(factor * h, dtype=D) for h in pair.hyper]
        for a, b in zip(tree.leaves(compiled(*tensors)), tree.leaves(update(*tensors)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
    assert graphs["unique_graphs"] - before == 1


@every_pair
def test_a_leaf_without_a_gradient_keeps_its_part_of_the_state(pair: Pair) -> None:
    params = parameters()
    tx: Any = pair.make(*pair.hyper)
    _, state = tx.update(gradients(1)[0], tx.init(params), params)
    updates, after = tx.update({**gradients(2)[1], "matrix": ()}, state, params)
    assert updates["matrix"] == ()
    assert after.count == 2
    for field in pair.keys:
        before, now = getattr(state, field), getattr(after, field)
        if not isinstance(now, Tensor):
            assert torch.equal(now["matrix"], before["matrix"]), field
            assert not torch.equal(now["kernel"], before["kernel"]), field


@every_pair
def test_what_all_leaves_share_may_stay_on_the_cpu(pair: Pair) -> None:
    """The parameters are on the device of shapes without numbers, which mixes with no other, as CUDA does not."""
    params = tree.map(lambda p: p.to("meta"), parameters())
    tx: Any = pair.make(*pair.hyper)
    state = tx.init(params)
    shared = {k: torch.ones((), dtype=x.dtype) for k, x in state._asdict().items() if isinstance(x, Tensor)}
    updates, after = tx.update(params, state._replace(**shared), params)
    assert {u.device.type for u in updates.values()} == {"meta"}
    assert {getattr(after, k).device.type for k in shared} == {"cpu"}
