"""Pictures of rules: their numbers are those of torch.optim's loops, and of loops by hand."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from functrain import plot
from functrain.base import GradientTransformation, stateless
from functrain.combinators.chain import chain
from functrain.optimizers.adaptive import adam, lion
from functrain.optimizers.averaged import schedule_free_sgd
from functrain.optimizers.momentum import sgd
from functrain.transforms.averages import params_ema
from functrain.transforms.decay import add_decayed_weights
from functrain.transforms.torch_lbfgs import torch_lbfgs

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

START = torch.tensor([-2.0, 1.0], dtype=torch.float64)
TURN = np.array([[math.sqrt(3), 1.0], [-1.0, math.sqrt(3)]]) / 2
MATRIX = TURN.T @ np.diag([1.0, 25.0]) @ TURN  # of the ravine


def steep(p: np.ndarray) -> np.ndarray:
    """The ravine's gradient."""
    return MATRIX @ p


def line(axes: Axes, label: str) -> np.ndarray:
    """The points of the only line of this name, one a row."""
    (found,) = [each for each in axes.get_lines() if each.get_label() == label]
    return np.stack([np.asarray(found.get_xdata()), np.asarray(found.get_ydata())], axis=1)


def drawn(figure: Figure, label: str) -> tuple[np.ndarray, np.ndarray]:
    """A rule's path and its losses."""
    map_, losses = figure.axes
    heights = line(losses, label)
    assert heights[:, 0].tolist() == list(range(len(heights)))
    return line(map_, label), heights[:, 1]


def by_torch(
    make: Callable[[list[Tensor]], torch.optim.Optimizer], valley: Callable[[Tensor], Tensor], steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The path and the losses of a loop over torch's optimizer."""
    p = START.clone().requires_grad_()
    optimizer = make([p])
    path, losses = [p.detach().numpy().copy()], [float(valley(p.detach()))]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = valley(p)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        path.append(p.detach().numpy().copy())
        losses.append(float(valley(p.detach())))
    return np.stack(path), np.array(losses)


@pytest.mark.parametrize(
    ("tx", "make", "valley"),
    [
        (sgd(0.01), lambda ps: torch.optim.SGD(ps, 0.01), plot.ravine),
        (sgd(0.01, 0.9, True), lambda ps: torch.optim.SGD(ps, 0.01, 0.9, nesterov=True), plot.ravine),
        (adam(0.1), lambda ps: torch.optim.Adam(ps, 0.1), plot.rosenbrock),
        (
            torch_lbfgs(max_iter=4, line_search_fn="strong_wolfe"),
            lambda ps: torch.optim.LBFGS(ps, max_iter=4, line_search_fn="strong_wolfe"), plot.rosenbrock,
        ),
    ],
    ids=["sgd", "nesterov", "adam", "lbfgs"],
)  # fmt: skip
def test_the_path_and_the_losses_are_those_of_the_loop_over_torch_optim(
    tx: GradientTransformation,
    make: Callable[[list[Tensor]], torch.optim.Optimizer],
    valley: Callable[[Tensor], Tensor],
) -> None:
    path, losses = drawn(plot.rule({"mine": tx}, valley=valley, start=START, steps=12), "mine")
    theirs = by_torch(make, valley, 12)
    np.testing.assert_allclose(path, theirs[0], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(losses, theirs[1], rtol=1e-9, atol=1e-20)


def test_a_rule_gets_value_and_gradient_where_it_needs_them() -> None:
    def update(g: Tensor, state: object, params: object, *, value: Tensor, grad: Tensor) -> tuple[Tensor, object]:
        return -value / grad.square().sum() * g, state

    polyak = GradientTransformation(lambda params: (), update, needs={"value", "grad"})
    path, _ = drawn(plot.rule({"Polyak": polyak}, start=START, steps=9), "Polyak")
    p = START.numpy()
    for found in path:
        np.testing.assert_allclose(found, p, rtol=1e-10)
        g = steep(p)
        p = p - 0.5 * p @ g / (g @ g) * g


def test_an_average_that_a_rule_keeps_is_drawn_too() -> None:
    rules = {"ema": chain(sgd(0.01), params_ema(0.75)), "free": chain(schedule_free_sgd(0.01, b1=0.5))}
    figure = plot.rule(rules, start=START, steps=9)
    p = e = START.numpy()
    y = x = z = START.numpy()
    for n in range(10):
        for label, at in {"ema": p, "ema, average": e, "free": y, "free, average": x}.items():
            path, losses = drawn(figure, label)
            np.testing.assert_allclose(path[n], at, rtol=1e-6)  # β of schedule_free's state is a rounded one
            np.testing.assert_allclose(losses[n], 0.5 * at @ steep(at), rtol=1e-5)
        p = p - 0.01 * steep(p)
        e = 0.75 * e + 0.25 * p
        z = z - 0.01 * steep(y)
        x = x + (z - x) / (n + 1)
        y = 0.5 * (x + z)


def test_a_path_that_diverges_is_cut_where_it_leaves_and_its_name_says_so(tmp_path: Path) -> None:
    figure = plot.rule({"wild": sgd(0.09), "calm": sgd(0.02)}, start=START, steps=40)
    left, right = figure.axes[0].get_xlim()
    bottom, top = figure.axes[0].get_ylim()
    path = [START.numpy()]
    for _ in range(40):
        path.append(path[-1] - 0.09 * steep(path[-1]))
    inside = [left <= x <= right and bottom <= y <= top for x, y in path]
    gone = inside.index(False)
    assert 1 < gone < 40
    assert not any(inside[gone:])
    shown, losses = drawn(figure, f"wild (leaves the picture at update {gone})")
    np.testing.assert_allclose(shown, path[: gone + 1], rtol=1e-10)
    np.testing.assert_allclose(losses, [0.5 * p @ steep(p) for p in path], rtol=1e-9)
    assert figure.axes[1].get_ylim()[1] < losses[-1]
    assert len(drawn(figure, "calm")[0]) == 41
    figure.savefig(tmp_path / "a.png")


def test_a_path_that_comes_back_says_that_a_part_is_outside() -> None:
    jump = stateless(lambda g, p: torch.where(p < -1.5, 60.0, torch.where(p > 20.0, -58.5, 0.0)))
    figure = plot.rule({"jump": jump}, valley=lambda p: p.square().sum(), start=(-2.0, 0.0), steps=4)
    path, _ = drawn(figure, "jump (partly outside the picture)")
    assert path.tolist() == [[-2, 0], [58, 0], [-0.5, 0], [-0.5, 0], [-0.5, 0]]
    assert figure.axes[0].get_xlim()[1] < 58


def test_a_walk_ends_where_its_numbers_do(tmp_path: Path) -> None:
    figure = plot.rule(sgd(1.0), valley=lambda p: (p**4).sum(), start=(2.0, 1.0), steps=50)
    path, losses = drawn(figure, "sgd(1.0) (leaves the picture at update 1)")
    assert path.tolist() == [[2, 1], [-30, -3]]
    assert np.isfinite(losses[:3]).all()
    assert not np.isfinite(losses[-1])
    assert len(losses) < 10
    figure.savefig(tmp_path / "a.png")


def test_the_parameter_has_the_shape_and_the_dtype_of_the_start() -> None:
    seen = []

    def update(g: Tensor, state: object, params: Tensor | None = None) -> tuple[Tensor, object]:
        seen.append((g.shape, g.dtype))
        return -0.01 * g, state

    tx = GradientTransformation(lambda params: (), update)
    plot.rule(tx, start=START.reshape(1, 2), steps=1)
    plot.rule(tx, start=(1, 2), steps=1)
    plot.rule(tx, start=torch.tensor([1, 2]), steps=1)
    assert seen == [((1, 2), torch.float64), ((2,), torch.float32), ((2,), torch.float32)]


def told_apart(each: Line2D) -> tuple[object, ...]:
    return each.get_color(), each.get_marker(), each.get_linestyle()


def test_rules_are_told_apart_by_names_colours_and_marks() -> None:
    many = [sgd(0.001 * i) for i in range(1, 13)]
    figure = plot.rule(*many, steps=2)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [repr(tx) for tx in many]
    assert len({told_apart(each) for each in figure.axes[1].get_lines()}) == 12
    figure = plot.rule(adam(0.1), {"mine": sgd(0.01), "yours": lion(0.1)}, steps=2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["adam(0.1)", "mine", "yours"]


@pytest.mark.parametrize("count", [3, 12])
def test_names_lie_beside_the_panels_and_in_the_picture(count: int) -> None:
    rules = [chain(*itertools.repeat(sgd(0.01), i % 4 + 1)) for i in range(count)]
    for figure in (plot.rule(*rules, steps=2), plot.response(*rules, steps=2)):
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        assert not [axes for axes in figure.axes if box.overlaps(axes.get_tightbbox())]
        assert all(axes.get_window_extent().height > 250 for axes in figure.axes)


def test_a_response_is_drawn_by_the_updates_of_each_rule() -> None:
    figure = plot.response({"plain": sgd(0.5), "heavy": sgd(0.5, momentum=0.5)}, steps=4)
    constant, turning = figure.axes
    assert line(constant, "plain").tolist() == [[1, -0.5], [2, -0.5], [3, -0.5], [4, -0.5]]
    assert line(constant, "heavy")[:, 1].tolist() == [-0.5, -0.75, -0.875, -0.9375]
    assert line(turning, "plain")[:, 1].tolist() == [-0.5, -0.5, 0.5, 0.5]
    assert line(turning, "heavy")[:, 1].tolist() == [-0.5, -0.75, 0.125, 0.5625]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "heavy"]
    shrinking = plot.response({"decay": chain(add_decayed_weights(1.0), sgd(0.5))}, steps=4).axes[0]
    assert line(shrinking, "decay")[:, 1].tolist() == [-1.0, -0.5, -0.25, -0.125]  # of parameters 1, 0, -0.5, -0.75
    assert plot.response(adam(0.1)).get_suptitle() == "adam(0.1)"


def bowl(p: Tensor) -> Tensor:
    return p.square().sum()


NEEDY = GradientTransformation(lambda params: (), lambda g, s, p=None, *, curvature: (g, s), needs={"curvature"})


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plot.rule(), ValueError, "plot.rule: there is nothing to draw; "
         "hint: give it a rule, several, or a mapping from names"),
        (lambda: plot.response({}), ValueError, "plot.response: there is nothing to draw; "
         "hint: give it a rule, several, or a mapping from names"),
        (lambda: plot.response(torch_lbfgs()), ValueError,
         "plot.response: torch_lbfgs() needs value_fn; hint: plot.rule has a loss for it"),
        (lambda: plot.rule(adam), TypeError, "plot.rule: it draws transformations, got a function; "
         "hint: ft.adam(0.1), say"),
        (lambda: plot.rule({"a": 0.1}), TypeError, "plot.rule: it draws transformations, got a float; "
         "hint: ft.adam(0.1), say"),
        (lambda: plot.rule(adam(0.1), steps=0), ValueError, "plot.rule: steps must be an integer >= 1, got 0"),
        (lambda: plot.rule(adam(0.1), valley=bowl), ValueError,
         "plot.rule: a valley of your own needs a start; hint: start=(-1.0, 2.0)"),
        (lambda: plot.rule(adam(0.1), start=(1.0, 2.0, 3.0)), ValueError,
         "plot.rule: start must be two numbers, got [1.0, 2.0, 3.0]; hint: start=(-1.0, 2.0)"),
        (lambda: plot.rule(adam(0.1), valley=lambda p: p, start=(1.0, 2.0)), TypeError,
         "plot.rule: a valley returns a 0-dim tensor, got shape (2,); hint: sum it up with tensors"),
        (lambda: plot.rule(adam(0.1), valley=lambda p: 1.0, start=(1.0, 2.0)), TypeError,
         "plot.rule: a valley returns a 0-dim tensor, got a float; hint: sum it up with tensors"),
        (lambda: plot.rule(adam(0.1), valley=lambda p: p.log().sum(), start=(1.0, -2.0)), ValueError,
         "plot.rule: the valley is nan at the start, (1.0, -2.0); hint: start= where it is finite"),
        (lambda: plot.rule(NEEDY), ValueError, f"plot.rule: {NEEDY!r} needs curvature, which a valley does not have; "
         "hint: it has value, grad and value_fn"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_an_error_in_words(
    draw: Callable[[], Figure], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        draw()
