"""What every test stands on: how Hypothesis draws, what is skipped where, and torch left as it was found."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, is_hypothesis_test, settings

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: the oracle needs no accelerator

# Programs, not tests: collecting doctests would import them.
collect_ignore_glob = ["mutants.py", "benchmarks/*", "interop/comparison.py"]

# `make test` draws the same examples on every machine. The long profile draws ten times as many, and new ones at each
# run, kept in .hypothesis/ where they fail; in CI it too is the same at every run. No deadline and no complaint
# about slow draws: what a loaded machine does to a clock is not a fault of the code.
CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", max_examples=30, derandomize=True, **CALM)
settings.register_profile("long", max_examples=300, derandomize="CI" in os.environ, print_blob=True, **CALM)
# Of a planted fault any counterexample will do: it is not made smaller and not explained.
settings.register_profile("mutants", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate])
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)  # pytest's --hypothesis-profile comes later and wins

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores already

COMPILER = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # inductor's choice


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run; in the long profile every property counts as long."""
    long = (config.getoption("--hypothesis-profile") or PROFILE) == "long"
    no_cuda = pytest.mark.skip(reason="no CUDA device")
    no_compiler = pytest.mark.skip(
        reason=f"no C++ compiler {COMPILER!r} for torch.compile's inductor; CXX names another"
    )
    for item in items:
        if long and is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.long)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(no_cuda)
        if item.get_closest_marker("inductor") and not shutil.which(COMPILER):
            item.add_marker(no_compiler)


class TorchState(NamedTuple):
    """The switches of torch that outlive the code that threw them."""

    grad_mode: bool
    inference_mode: bool
    default_dtype: torch.dtype
    autocast: bool
    hooks_disabled: str | None  # the message that saved-tensor hooks raise with, if they are disabled
    hooks: object  # the innermost pair of saved-tensor hooks
    functorch: int  # how many transforms of torch.func are open

    @classmethod
    def now(cls) -> TorchState:
        autograd, functorch = torch._C._autograd, torch._C._functorch
        return cls(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            autograd._saved_tensors_hooks_get_disabled_error_message(),
            autograd._top_saved_tensors_default_hooks(True),
            len(functorch.get_interpreter_stack() or ()),
        )

    def restore(self) -> None:
        """Put back what can be put back, so that one test's fault does not fail the next."""
        torch.set_grad_enabled(self.grad_mode)
        torch.set_default_dtype(self.default_dtype)
        torch.set_autocast_enabled("cpu", self.autocast)
        if self.hooks_disabled is None:
            torch._C._autograd._saved_tensors_hooks_enable()


@pytest.fixture(autouse=True)
def torch_state_is_left_as_found() -> Iterator[None]:
    before = TorchState.now()
    yield
    after = TorchState.now()
    before.restore()
    assert after == before, "the test left torch in another state than it found it in"
