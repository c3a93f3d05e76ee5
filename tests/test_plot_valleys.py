"""The land that rules walk through: where its lines of equal height are, and what of it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from functrain import plot
from functrain.optimizers.adaptive import adam
from functrain.optimizers.momentum import sgd

pytest.importorskip("matplotlib")

from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure

from tests.test_plot_rules import MATRIX, START, drawn, line, steep


def test_the_picture_holds_the_start_the_lowest_point_and_the_paths() -> None:
    figure = plot.rule(sgd(0.01, momentum=0.9), adam(0.1), steps=60)
    map_ = figure.axes[0]
    (left, right), (bottom, top) = map_.get_xlim(), map_.get_ylim()
    points = np.concatenate([*(np.asarray(each.get_xydata()) for each in map_.get_lines()), [[0.0, 0.0]]])
    assert len(points) > 2 * 61
    assert (points[:, 0] > left).all()
    assert (points[:, 0] < right).all()
    assert (points[:, 1] > bottom).all()
    assert (points[:, 1] < top).all()
    assert line(map_, "_start").tolist() == [[-2.5, 0.5]]
    assert line(map_, "_lowest").tolist() == [[0.0, 0.0]]
    assert map_.get_aspect() == 1.0
    assert plot.rule(sgd(1e-4), steps=2).axes[0].get_xlim()[1] > 0  # the lowest point, though no path comes near


def lines_of_equal_height(figure: Figure) -> QuadContourSet:
    (found,) = [each for each in figure.axes[0].collections if isinstance(each, QuadContourSet) and not each.filled]
    return found


def test_lines_of_equal_height_are_where_the_valley_has_that_height() -> None:
    found = lines_of_equal_height(plot.rule(sgd(0.01)))
    seen = 0
    for level, path in zip(found.levels, found.get_paths(), strict=True):
        for x, y in path.vertices:
            p = np.array([x, y])
            assert 0.5 * p @ steep(p) == pytest.approx(level, rel=0.02, abs=0.02)
            seen += 1
    assert seen > 1000


def test_a_valley_that_asks_what_its_numbers_are_is_drawn_point_by_point() -> None:
    def branching(p: Tensor) -> Tensor:
        return 2 * p.abs().sum() if p[0] > 0 else p.abs().sum()

    def mapped(p: Tensor) -> Tensor:
        return torch.where(p[0] > 0, 2.0, 1.0) * p.abs().sum()

    a, b = (
        lines_of_equal_height(plot.rule(sgd(0.1), valley=v, start=(1.0, 2.0), steps=3)) for v in (branching, mapped)
    )
    assert a.levels.tolist() == b.levels.tolist()
    assert len(a.levels) > 5


@pytest.mark.parametrize("flat", [0.0, -3.0])
def test_a_valley_without_height_is_drawn_without_lines(flat: float, tmp_path: Path) -> None:
    figure = plot.rule(adam(0.1), valley=lambda p: 0.0 * p.sum() + flat, start=(1.0, 2.0), steps=3)
    assert drawn(figure, "adam(0.1)")[1].tolist() == [flat] * 4
    assert not figure.axes[0].collections
    figure.savefig(tmp_path / "a.png")


def test_the_ravine_is_turned_by_30_degrees_and_rises_25_times_as_steeply_across() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    np.testing.assert_allclose(torch.func.hessian(plot.ravine)(zero).numpy(), MATRIX, atol=1e-12)
    assert plot.ravine(zero) == 0
    assert plot.ravine(START).item() == pytest.approx(0.5 * START.numpy() @ steep(START.numpy()))


def test_rosenbrock_is_lowest_at_one_one() -> None:
    one = torch.ones(2, dtype=torch.float64)
    assert plot.rosenbrock(one) == 0
    assert torch.func.grad(plot.rosenbrock)(one).tolist() == [0, 0]
    assert torch.func.hessian(plot.rosenbrock)(one).tolist() == [[802, -400], [-400, 200]]
    assert plot.rosenbrock(torch.tensor([-1.2, 1.0], dtype=torch.float64)).item() == pytest.approx(24.2)
