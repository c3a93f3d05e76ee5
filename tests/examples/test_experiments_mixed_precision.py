"""The measurements of mixed precision: bytes counted by hand, and conclusions that follow from the numbers."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

import functrain as ft
from tests.example import load

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load("experiments/mixed_precision")


def test_what_is_kept_is_each_memory_once_and_no_parameter(program: ModuleType) -> None:
    w = torch.randn(5, 3, requires_grad=True)
    x = torch.randn(7, 5, requires_grad=True)  # so that the product keeps w too

    def step() -> None:
        y = (x @ w).tanh()  # keeps x and w, and y
        (y * y.T.T).sum().backward()  # keeps y again, and once more through a view

    assert program.kept(step, {"w": w}) == (x.nbytes + 7 * 3 * 4) / 1e6
    assert program.kept(step, {}) == (x.nbytes + 7 * 3 * 4 + w.nbytes) / 1e6


def test_bf16_keeps_half_of_what_products_keep_and_the_weights_that_it_cast(program: ModuleType) -> None:
    torch.manual_seed(0)
    D, B = 32, 4096
    module = nn.Sequential(*(nn.Linear(D, D, bias=False) for _ in range(4)))
    model, tx = ft.functionalize(module), ft.sgd(0.1)
    batch = torch.randn(B, D), torch.randn(B, D)
    kept = {}
    for name in ("fp32", "bf16"):
        loss = model.loss(lambda out, y: (out.float() * y).mean())  # keeps y in any case
        step, state = ft.train_step(loss, tx, precision=name), ft.TrainState.create(model, tx)
        kept[name] = program.kept(lambda step=step, state=state: step(state, batch), state.params)
    rows, cast = B * D * 4, D * D * 2  # bytes of activations in float32, and of a weight in bfloat16
    # The inputs of four layers, and y. In bf16 also the weights through which gradients go on: all but the first.
    scalars = 16  # at most
    assert 0 <= kept["fp32"] * 1e6 - 5 * rows < scalars
    assert 0 <= kept["bf16"] * 1e6 - (4 * rows / 2 + rows + 3 * cast) < scalars


def test_the_network_looks_at_nothing_that_comes_after(program: ModuleType) -> None:
    torch.manual_seed(0)
    gpt = program.GPT(32)
    x = torch.randint(256, (2, program.T))
    other = x.clone()
    other[:, 100:] = torch.randint(256, (2, program.T - 100))
    assert gpt(x).shape == (2, 256, program.T)
    torch.testing.assert_close(gpt(x)[..., :100], gpt(other)[..., :100])
    assert not torch.allclose(gpt(x)[..., 100:], gpt(other)[..., 100:])


def test_a_target_is_the_byte_after_and_validation_is_other_text(program: ModuleType) -> None:
    for x, y in program.windows(program.LEARNED, 3, "cpu"):
        assert x.shape == y.shape == (program.B, program.T)
        assert torch.equal(x[:, 1:], y[:, :-1])
    assert program.LEARNED.stop == program.HELD_OUT.start


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.7, 0.6, 0.01), "bf16: 0.70 of fp32's time, 0.60 of its memory, loss +0.0100: it saves time and memory"),
        ((1.3, 0.6, -0.01), "bf16: 1.30 of fp32's time, 0.60 of its memory, loss -0.0100: it saves memory"),
        ((0.9, 1.0, 0.0), "bf16: 0.90 of fp32's time, 1.00 of its memory, loss +0.0000: it saves time"),
        ((0.96, 1.2, 0.0), "bf16: 0.96 of fp32's time, 1.20 of its memory, loss +0.0000: it saves nothing"),
    ],
)
def test_the_verdict_follows_from_the_numbers(
    program: ModuleType, numbers: tuple[float, float, float], words: str
) -> None:
    assert program.verdict("bf16", *numbers) == words
