"""The example of a rule of one's own: the rule against its sum, and what is found of its faulty variants."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.example import EXAMPLES, load


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("property_test_my_rule")


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_the_rule_follows_the_weighted_mean_of_the_gradients(example: ModuleType, decay: float) -> None:
    gradients = np.random.default_rng(0).normal(size=(12, 3))
    tx = example.momentum(0.1, decay)
    state = tx.init(torch.zeros(3, dtype=torch.float64))
    for t, g in enumerate(gradients, 1):
        update, state = tx.update(torch.tensor(g), state)
        weights = decay ** np.arange(t - 1, -1, -1.0)
        mean = (weights[:, None] * gradients[:t]).sum(0) / weights.sum()
        np.testing.assert_allclose(update.numpy(), -0.1 * mean, rtol=1e-11)


@pytest.mark.long
def test_the_faulty_variants_are_found_and_made_small(example: ModuleType) -> None:
    assert example.found(example.check_mean, example.momentum) == ""
    mean = example.found(example.check_mean, example.uncorrected)
    assert mean == "uncorrected(1.0, 0.9): the mean of [1.0] cannot be 0.1"
    pure = example.found(example.laws.check_pure, example.overwriting(0.1))
    assert pure == "pure: overwriting(0.1) writes to leaf 'mean' of state with aten.copy_.default"


def test_from_one_state_the_overwriting_variant_computes_the_same_numbers(example: ModuleType) -> None:
    """So that no comparison of runs would find its fault."""
    ends = []
    for tx in (example.momentum(0.1), example.overwriting(0.1)):
        state, updates = tx.init(torch.zeros(3)), []
        for seed in range(5):
            u, state = tx.update(torch.randn(3, generator=torch.Generator().manual_seed(seed)), state)
            updates.append(u)
        ends.append(torch.stack(updates))
    assert torch.equal(*ends)


@pytest.mark.long
def test_pytest_collects_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "property_test_my_rule.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("2 passed")
