"""One call for many leaves is the loop over leaves: bit for bit, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from functrain import elementwise, tree
from functrain.testing import strategies

Formula = Callable[..., object]


def loop(f: Formula, first: tree.Tree, *rest: tree.Tree) -> tree.Tree:
    """The meaning of pointwise: f leaf by leaf, where a 0-dim leaf counts as one of one element."""

    def lone(*xs: Tensor) -> object:
        if xs[0].dim():
            return f(*xs)
        out = f(*(x.reshape(1) for x in xs))
        return out.reshape(()) if isinstance(out, Tensor) and out.shape == (1,) else out

    return tree.map(lone, first, *rest)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape, strides and every bit; a NaN is a NaN."""
    if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
        return False
    if a.is_complex():
        return same_bits(torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj()))
    if not a.is_floating_point():
        return torch.equal(a, b)
    nan = a.isnan()
    zeros = torch.zeros_like(a)
    left, right = torch.where(nan, zeros, a), torch.where(b.isnan(), zeros, b)
    return torch.equal(nan, b.isnan()) and torch.equal(left, right) and torch.equal(left.signbit(), right.signbit())


def assert_same(one: tree.Tree, other: tree.Tree) -> None:
    mine, theirs = tree.leaves(one), tree.leaves(other)
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        if isinstance(a, Tensor):
            assert same_bits(a, b), (a, b)
        else:
            assert a == b


class Foreach(TorchDispatchMode):
    """Counts the operators that run on more than a number, those on lists of tensors apart."""

    def __init__(self) -> None:
        super().__init__()
        self.lists = self.others = 0

    def __torch_dispatch__(
        self, func: object, types: object, args: Sequence[object] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        if "_foreach_" in str(func):
            self.lists += 1
        elif any(isinstance(x, Tensor) and x.dim() for x in args):
            self.others += 1
        assert callable(func)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Foreach]:
    with Foreach() as mode:
        yield mode


# --- random formulas

SCALARS = ("2", "0.5", "-1.5", "3", "0", "1e-8", "7")
OUTER = {
    "s64": torch.tensor(0.3, dtype=torch.float64),
    "s32": torch.tensor(-1.7),
    "s16": torch.tensor(2.5, dtype=torch.bfloat16),
    "n64": torch.tensor(3),
    "z64": torch.tensor(1 - 2j),
    "yes": torch.tensor(True),
}


@st.composite
def formulas(draw: st.DrawFn) -> str:
    """The source of an elementwise formula of x and y, with scalars and 0-dim tensors from outside."""

    def other(depth: int) -> str:
        kind = draw(st.sampled_from(("scalar", "outer", "tensor")))
        if kind == "tensor":
            return tensor(depth)
        return draw(st.sampled_from(SCALARS if kind == "scalar" else tuple(OUTER)))

    def tensor(depth: int) -> str:
        if depth == 0:
            return draw(st.sampled_from(("x", "y")))
        kind = draw(st.sampled_from(("arithmetic", "unary", "compare", "where", "method", "alpha")))
        a = tensor(depth - 1)
        if kind == "unary":
            name = draw(st.sampled_from(("neg", "abs", "sqrt", "sign", "exp", "log", "reciprocal", "square", "tanh")))
            return draw(st.sampled_from((f"torch.{name}({a})", f"{a}.{name}()" if name != "neg" else f"(-{a})")))
        b = other(depth - 1)
        pair = draw(st.permutations((a, b)))
        if kind == "arithmetic":
            return f"({pair[0]} {draw(st.sampled_from(('+', '-', '*', '/', '**')))} {pair[1]})"
        if kind == "compare":
            return f"({a} {draw(st.sampled_from(('<', '<=', '>', '>=')))} {b})"
        if kind == "where":
            return f"torch.where({a} > {b}, {pair[0]}, {pair[1]})"
        if kind == "alpha":
            return f"torch.add({a}, {tensor(depth - 1)}, alpha=0.5)"
        method = draw(st.sampled_from(("clamp(-1, 2)", "clamp(min=0)", "to(torch.float32)", "square()", "pow(3)")))
        return f"torch.maximum({a}, {tensor(depth - 1)}).{method}"

    return tensor(draw(st.integers(1, 4)))


@st.composite
def two_trees(draw: st.DrawFn) -> tuple[tree.Tree, tree.Tree]:
    values = strategies.numbers() | st.sampled_from((math.inf, -math.inf, math.nan))
    dtypes = draw(
        st.sampled_from(((torch.float32,), (torch.float64,), (torch.bfloat16,), (torch.complex64,), strategies.FLOATS))
    )
    leaf = st.sampled_from(dtypes).flatmap(lambda dtype: strategies.tensors(dtype, values=values))
    one = draw(strategies.trees(leaf=leaf) | st.lists(leaf, min_size=2, max_size=5))
    return one, draw(strategies.gradients(one, values, draw(st.sampled_from((None, torch.float32)))))


def outcome(run: Callable[[], tree.Tree]) -> tree.Tree | type[Exception]:
    try:
        return run()
    except Exception as error:  # the kind of error is the outcome
        return type(error)


@given(formulas(), two_trees())
def test_a_formula_of_groups_is_bitwise_the_loop_over_leaves(source: str, trees: tuple[tree.Tree, tree.Tree]) -> None:
    f = eval(f"lambda x, y: {source}", {"torch": torch, **OUTER})
    got, expected = outcome(lambda: tree.pointwise(f, *trees)), outcome(lambda: loop(f, *trees))
    if isinstance(expected, type):
        assert got == expected
    else:
        assert_same(got, expected)


@pytest.mark.cuda
@given(formulas(), two_trees())
def test_a_formula_of_groups_is_bitwise_the_loop_over_leaves_on_an_accelerator(
    source: str, trees: tuple[tree.Tree, tree.Tree]
) -> None:
    there = [tree.map(lambda x: x.cuda(), t) for t in trees]
    f = eval(f"lambda x, y: {source}", {"torch": torch, **{k: v.cuda() for k, v in OUTER.items()}})
    got, expected = outcome(lambda: tree.pointwise(f, *there)), outcome(lambda: loop(f, *there))
    if isinstance(expected, type):
        assert got == expected
    else:
        assert_same(got, expected)


@given(st.sampled_from(("x / 3.0", "x / torch.tensor(3.0)", "x ** 2", "x ** 0.5", "x / torch.tensor(0.1, dtype=F)")))
def test_scalars_divide_and_raise_groups_as_they_do_leaves(source: str) -> None:
    leaves = [torch.linspace(-5, 9, n) for n in (7, 16, 33)]
    f = eval(f"lambda x: {source}", {"torch": torch, "F": torch.float64})
    assert_same(tree.pointwise(f, leaves), loop(f, leaves))


# --- operands that are not symmetric, on both sides of the group

LEFT = torch.tensor(0.3, dtype=torch.float64)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.add(LEFT, x, alpha=3),
        lambda x: LEFT.add(x, alpha=3),
        lambda x: torch.sub(LEFT, x, alpha=3),
        lambda x: LEFT + x,
        lambda x: LEFT * x,  # in half precision PyTorch rounds a scalar on the left first, and on the right not
        lambda x: LEFT - x,
        lambda x: LEFT / x,
        lambda x: LEFT**x,
        lambda x: x * 0.3,  # on the right a scalar is not rounded
        lambda x: 2 - x,
        lambda x: 2 / x,
        lambda x: 2**x,
        lambda x: torch.lt(LEFT, x),
        lambda x: torch.where(x > 0, LEFT, x),
        lambda x: torch.lerp(x, -x, 0.25),
        lambda x: x.addcmul(x, x + 1, value=0.5),
        lambda x: torch.addcdiv(x, x, x + 3, value=-2.0),
        lambda x: x.maximum(torch.zeros(())),
        lambda x: ((x > 0) + 2) + LEFT,  # integers on the way
        lambda x: OUTER["z64"] * x + x * OUTER["z64"],
    ],
)
@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_the_order_of_operands_is_kept(f: Formula, dtype: torch.dtype) -> None:
    leaves = [torch.tensor([-0.5, 0.75]).to(dtype), torch.tensor([1.5, -2.5, 0.25]).to(dtype)]
    assert_same(tree.pointwise(f, leaves), loop(f, leaves))


# --- 0-dim leaves


@pytest.mark.parametrize("dtype", strategies.FLOATS)
@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * OUTER["s64"],
        lambda x: OUTER["s64"] - x,
        lambda x: (x / OUTER["s64"]) + OUTER["s32"],
        lambda x: x * OUTER["s64"] if isinstance(x, Tensor) else x,  # refused by a group, and still no promotion
        lambda x: torch.where(x > OUTER["s64"], x, OUTER["s64"].to(x.dtype)),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_a_scalar_tensor_from_outside_never_promotes_a_leaf(n: int, f: Formula, dtype: torch.dtype) -> None:
    leaves = [torch.tensor(1.5, dtype=dtype)] * n
    for out in tree.leaves(tree.pointwise(f, leaves)):
        assert out.dtype == dtype
        assert out.shape == ()


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_a_compiled_scalar_tensor_never_promotes_a_leaf_either(dtype: torch.dtype) -> None:
    compiled = torch.compile(lambda leaves, s: tree.pointwise(lambda x: x * s, leaves), backend="eager", fullgraph=True)
    (out,) = compiled([torch.tensor(1.5, dtype=dtype)], OUTER["s64"])
    assert (out.dtype, out.shape) == (dtype, ())


# --- what is not elementwise goes leaf by leaf

LARGE = torch.tensor([10.0, 20.0])
REFUSED: dict[str, Formula] = {
    "isinstance": lambda x: x + 1 if isinstance(x, Tensor) else None,
    "bool": lambda x: x if (x > 0).all() else -x,
    "truth": lambda x: x[:1] if x[0] > 0 else x,
    "index": lambda x: x[..., :1] * 2,
    "shape": lambda x: x / x.shape[-1],
    "reduction": lambda x: x - x.mean(),
    "functional reduction": lambda x: x / torch.linalg.vector_norm(x),
    "larger tensor outside": lambda x: x + LARGE,
    "larger tensor on the left": lambda x: LARGE - x,
    "larger tensor by keyword": lambda x: x.clamp(min=LARGE),
    "larger tensor inside where": lambda x: torch.where(x > 0, x, LARGE),
    "hasattr": lambda x: x + 1 if hasattr(x, "shape") else None,
    "getattr with default": lambda x: x if getattr(x, "nothing", None) is None else None,
    "float": lambda x: x * float(x.flatten()[0]),
    "len": lambda x: x * len(x),
    "iteration": lambda x: torch.stack([row * i for i, row in enumerate(x)]),
    "in a list": lambda x: x * 2 if x.shape in [(2,), (2, 2)] else x,
    "equals": lambda x: (x == 1.0).to(x.dtype),
    "not equal": lambda x: x != 1.0,
    "device": lambda x: x + torch.ones((), device=x.device),
    "requires_grad": lambda x: x if x.requires_grad else -x,
    "sort": lambda x: x.sort().values,
    "cumsum": lambda x: x.cumsum(0),
    "matmul": lambda x: x.reshape(-1, 1) @ x.reshape(1, -1),
    "modulo": lambda x: x % 2,
    "floor division": lambda x: x // 2,
    "like": lambda x: x + torch.ones_like(x),
    "reshape": lambda x: x.reshape(-1),
    "string": lambda x: x * len(str(x.device)),
    "two results": lambda x: (x, x + 1)[1] if x.dim() else x,
    "hash": lambda x: x + len({hash(x)}),
    "where of a condition": lambda x: torch.where(x > 0)[0],
    "max of two": lambda x: max(x.sum(), x.mean()),
    "numpy": lambda x: torch.from_numpy(x.numpy() * 2),
    "softmax": lambda x: torch.nn.functional.softmax(x, 0),
    "type": lambda x: x.type(torch.float64),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_formula_that_is_not_elementwise_is_the_loop(name: str) -> None:
    leaves = {"a": torch.tensor([-1.0, 2.0]), "b": [torch.tensor([3.0, 4.0]), torch.tensor([1.0, 1.0])]}
    assert_same(tree.pointwise(REFUSED[name], leaves), tree.map(REFUSED[name], leaves))
    assert elementwise.as_batch(REFUSED[name], [tree.leaves(leaves)]) is None


def test_a_formula_that_returns_no_tensor_is_the_loop() -> None:
    leaves = [torch.ones(2), torch.ones(3)]
    assert tree.pointwise(lambda x: "text", leaves) == ["text", "text"]
    assert tree.pointwise(lambda x: None, {"a": leaves[0], "b": leaves[1]}) == {"a": None, "b": None}
    with pytest.raises(ZeroDivisionError):
        tree.pointwise(lambda x: 1 / 0, leaves)


@pytest.mark.parametrize("layout", ["sparse", "integer", "mixed in one tree"])
def test_leaves_that_are_not_dense_floats_are_the_loop(layout: str) -> None:
    leaves = {
        "sparse": [torch.eye(2).to_sparse(), torch.eye(3).to_sparse()],
        "integer": [torch.arange(3), torch.arange(4)],
        "mixed in one tree": [torch.arange(3), torch.ones(3), torch.tensor(True)],
    }[layout]
    got = tree.pointwise(lambda x: x * 3, leaves)
    expected = [x * 3 for x in leaves]
    assert [x.dtype for x in got] == [x.dtype for x in expected]
    assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(got, expected, strict=True))


def test_complex_conjugated_and_negated_views_are_the_loop() -> None:
    z = [torch.view_as_complex(torch.arange(8.0).reshape(4, 2)).conj(), torch.ones(3, dtype=torch.complex64).conj()]
    for leaves in (z, [x.imag for x in z], [x.real for x in z]):
        f = lambda x: (x * 2 - 1).abs() + x.exp()  # noqa: E731
        assert_same(tree.pointwise(f, leaves), loop(f, leaves))


# --- the group is really taken

ADAM: dict[str, Formula] = {
    "mean": lambda m, g: 0.9 * m + (1 - 0.9) * g,
    "mean square": lambda v, g: 0.999 * v + (1 - 0.999) * g * g,
    "ratio": lambda m, v: (m / OUTER["s64"]) / ((v / OUTER["s64"]).sqrt() + 1e-8),
    "apply": lambda p, u: p + u,
}


@pytest.mark.parametrize("name", ADAM)
def test_an_elementwise_formula_runs_once_for_many_leaves(name: str) -> None:
    trees = [[torch.rand(3, 2) for _ in range(50)] for _ in range(2)]
    with counted() as ops:
        tree.pointwise(ADAM[name], *trees)
    assert 1 <= ops.lists <= 6
    assert ops.others == 0


def test_a_group_ends_at_its_limit_and_at_another_dtype() -> None:
    big = torch.ones(elementwise.GROUP_BYTES["cpu"] // 4)  # float32: exactly a group
    small = torch.ones(3)
    for leaves, groups in [
        ([small, small, small], 1),
        ([big, big], 0),
        ([small, small, small.double(), small.double()], 2),
        ([small, small.double(), small], 0),
        ([small, small, big, small, small], 2),
    ]:
        with counted() as ops:
            tree.pointwise(lambda x: x * 2, leaves)
        assert ops.lists == groups


def test_autocast_is_the_loop() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), counted() as ops:
        tree.pointwise(lambda x: x * 2, [torch.ones(2), torch.ones(2)])
    assert ops.lists == 0


def test_a_formula_may_ask_for_the_dtype_of_a_group() -> None:
    trees = [torch.ones(2), torch.ones(3), torch.ones(2, dtype=torch.float64), torch.ones(3, dtype=torch.float64)]
    f = lambda x: x + torch.finfo(x.dtype).eps  # noqa: E731
    with counted() as ops:
        got = tree.pointwise(f, trees)
    assert ops.lists == 2
    assert_same(got, tree.map(f, trees))


# --- transforms of torch.func, autograd, compile

FORMULA: Formula = lambda x, y: torch.where(x > y, x * y, (x - 2 * y) / 3) ** 2 + x.exp()  # noqa: E731
LEAVES = {"a": torch.tensor([0.5, -1.0]), "b": [torch.tensor(0.25), torch.tensor([[1.5], [2.0]])]}
OTHERS = {"a": torch.tensor([-0.5, 2.0]), "b": [torch.tensor(0.75), torch.tensor([[0.5], [-2.0]])]}


def total(f: Formula, apply: Callable[..., tree.Tree]) -> Callable[..., Tensor]:
    return lambda x, y: sum((leaf.sum() for leaf in tree.leaves(apply(f, x, y))), torch.zeros(()))


def test_under_vmap_it_is_the_loop() -> None:
    stacked = tree.stack([LEAVES, OTHERS])
    got = torch.func.vmap(lambda x, y: tree.pointwise(FORMULA, x, y))(stacked, stacked)
    assert_same(got, torch.func.vmap(lambda x, y: loop(FORMULA, x, y))(stacked, stacked))


def test_under_vmap_with_mapped_scalars_from_outside_it_is_the_loop() -> None:
    rates = torch.tensor([0.1, 0.2, 0.3])
    got = torch.func.vmap(lambda r: tree.pointwise(lambda x: x * r, LEAVES))(rates)
    assert_same(got, tree.map(lambda x: torch.stack([x * r for r in rates.tolist()]), LEAVES))


def test_its_gradient_is_the_gradient_of_the_loop() -> None:
    got = torch.func.grad(total(FORMULA, tree.pointwise))(LEAVES, OTHERS)
    assert_same(got, torch.func.grad(total(FORMULA, loop))(LEAVES, OTHERS))


def test_its_tangent_is_the_tangent_of_the_loop() -> None:
    ones = tree.map(torch.ones_like, LEAVES)
    got = torch.func.jvp(lambda x: tree.pointwise(FORMULA, x, OTHERS), (LEAVES,), (ones,))
    expected = torch.func.jvp(lambda x: loop(FORMULA, x, OTHERS), (LEAVES,), (ones,))
    assert_same(got, expected)


def test_its_autograd_gradient_is_that_of_the_loop() -> None:
    grads = []
    for apply in (tree.pointwise, loop):
        x, y = (tree.map(lambda leaf: leaf.clone().requires_grad_(), t) for t in (LEAVES, OTHERS))
        grads.append(torch.autograd.grad(total(FORMULA, apply)(x, y), tree.leaves((x, y))))
    assert_same(*(list(g) for g in grads))


@pytest.mark.parametrize(
    "f",
    [
        lambda x, s: x * s,
        lambda x, s: s - x,
        lambda x, s: (x + s).sqrt().maximum(x) / (x * s).exp(),
        lambda x, s: ((x * s) ** 2).abs() - (x * s).reciprocal(),
        lambda x, s: torch.where(x > s, x * s, x / s) + (s * x).log().sign(),
    ],
)
def test_a_gradient_reaches_a_scalar_from_outside(f: Callable[..., Tensor]) -> None:
    leaves = [torch.tensor([1.5, 0.5]).double(), torch.tensor([0.25, 2.0, 4.0]).double()]
    grads = []
    for apply in (tree.pointwise, tree.map):
        s = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        out = sum((leaf.sum() for leaf in apply(lambda x, s=s: f(x, s), leaves)), torch.zeros(()))
        grads.append(torch.autograd.grad(out, s)[0])
    torch.testing.assert_close(*grads)  # autograd adds the leaves up in another order
    assert grads[0].isfinite()


def test_parameters_that_require_gradients_are_grouped_where_gradients_are_off() -> None:
    leaves = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    with torch.no_grad(), counted() as ops:
        out = tree.pointwise(lambda x: x * 2, leaves)
    assert ops.lists == 1
    assert [type(x) for x in out] == [Tensor] * 3


def test_compiled_it_is_the_loop() -> None:
    compiled = torch.compile(lambda x, y: tree.pointwise(FORMULA, x, y), backend="eager", fullgraph=True)
    assert_same(compiled(LEAVES, OTHERS), loop(FORMULA, LEAVES, OTHERS))


def test_it_writes_to_no_leaf() -> None:
    leaves = [torch.tensor([1.0, -2.0]), torch.tensor([3.0])]
    before = [x.clone() for x in leaves]

    def augmented(x: Tensor) -> Tensor:
        x = x * 1
        x += 1
        x *= 2
        return x

    got = tree.pointwise(augmented, leaves)
    assert_same(leaves, before)
    assert_same(got, [(x + 1) * 2 for x in before])
