"""The example of a run that is killed: real processes, and the comparison can fail."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from functrain import checkpoint
from tests.example import load

pytestmark = pytest.mark.long  # real processes, and the extra `examples`


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("resume_after_kill")


def test_the_killed_run_ends_with_the_bits_of_the_whole_one_and_another_seed_with_others(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    example.main(2, out)
    told = capsys.readouterr().out
    killed = re.match(r"killed after update (\d+), (\d+) of 113 into epoch 2 of 2\n", told)
    assert killed
    assert 0 < int(killed[2]) < 113
    assert told.splitlines()[-1] == "all 30 leaves of the two states are equal, bit for bit"

    log = (out / "killed.log").read_text()
    resumed = re.search(r"resumed step-(\d+)\.pt \(epoch 2, batch \d+\), exact", log)
    assert resumed
    assert 0 < int(resumed[1]) <= int(killed[1]) + 1
    assert "resumed" not in (out / "whole.log").read_text()

    assert example.live(out / "other", 2, 2) == 226  # the seed that the resumed child was given
    whole, other = (checkpoint.read(out / name / "last.pt").leaves for name in ("whole", "other"))
    apart = {key for key, x in whole.items() if isinstance(x, torch.Tensor) and not torch.equal(x, other[key])}
    assert {key for key in whole if key.startswith("params.")} <= apart


def test_a_child_that_is_not_killed_though_it_should_be_is_an_error(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the child") as error:
        example.live(tmp_path / "run", 1, 1, kill_at=1000)  # an epoch has 113 updates
    assert str(error.value) == f"the child ended with 0; hint: read {tmp_path / 'run.log'}"


def test_a_child_that_fails_is_an_error(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the child") as error:
        example.live(tmp_path / "run", 1, 0)
    assert str(error.value) == f"the child ended with 1; hint: read {tmp_path / 'run.log'}"
    assert "decay_steps must be > 0" in (tmp_path / "run.log").read_text()
