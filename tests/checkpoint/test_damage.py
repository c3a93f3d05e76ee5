"""Files that are not as they were written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from functrain import checkpoint
from functrain.checkpoint import CheckpointError
from tests.checkpoint.files import damage, example, fails, refused, same, sample


def test_ckpt_4_one_changed_bit_anywhere_is_an_error(tmp_path: Path) -> None:
    path, whole = sample(tmp_path)
    draw = random.Random(0)
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << draw.randrange(8)]) + whole[i + 1 :])
        refused(path)


def test_ckpt_4_every_truncation_and_every_tail_is_an_error(tmp_path: Path) -> None:
    path, whole = sample(tmp_path)
    tails = [whole + b"\0", whole + whole, b"\0" + whole]
    for changed in [whole[:n] for n in range(0, len(whole), 3)] + tails:
        path.write_bytes(changed)
        refused(path)


def damage_at_random(folder: Path, times: int, seed: int) -> None:
    path, draw = folder / "a.pt", random.Random(seed)
    checkpoint.save(path, example(), meta={"rows": [{"step": i, "loss": i / 3} for i in range(20)]})
    whole, right = path.read_bytes(), checkpoint.read(path)
    for _ in range(times):
        path.write_bytes(changed := damage(draw, whole))
        try:
            checkpoint.verify(path)
            found = checkpoint.read(path)
        except CheckpointError:
            assert changed != whole
        else:
            assert found.meta == right.meta
            assert list(found.leaves) == list(right.leaves)
            assert all(map(same, found.leaves.values(), right.leaves.values()))


def test_ckpt_4_a_hundred_damages_are_errors_or_the_same_bits(tmp_path: Path) -> None:
    damage_at_random(tmp_path, 100, seed=0)


@pytest.mark.long
def test_ckpt_4_two_thousand_damages_are_errors_or_the_same_bits(tmp_path: Path) -> None:
    damage_at_random(tmp_path, 2_000, seed=1)


def test_ckpt_4_damage_is_told_in_words(tmp_path: Path) -> None:
    path, whole = sample(tmp_path)
    where = f"checkpoint.load: {path} is damaged, or no checkpoint:"
    path.write_bytes(whole[:50])
    fails(f"{where} it is too short", checkpoint.load, path, {})
    path.write_bytes(whole[:-1] + b"x")
    fails(f"{where} its bytes do not match its seal", checkpoint.load, path, {})
    torch.save({"w": torch.ones(100)}, path)
    fails(f"{where} its bytes do not match its seal", checkpoint.load, path, {})


def test_ckpt_5_latest_is_the_newest_by_number_that_verifies(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "missing") is None
    assert checkpoint.latest(tmp_path) is None
    for n in ("9", "10", "00000002", "0100000000"):
        checkpoint.save(tmp_path / f"step-{n}.pt", {"n": int(n)})
    (tmp_path / "step-9999999999.pt.stale").write_bytes(b"")
    (tmp_path / "step-x.pt").write_bytes(b"")
    (tmp_path / "step-99999999999.pt").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-0100000000.pt"
    whole = (tmp_path / "step-10.pt").read_bytes()
    (tmp_path / "step-0100000000.pt").write_bytes(damage(random.Random(0), whole))
    assert checkpoint.latest(str(tmp_path)) == tmp_path / "step-10.pt"
    for path in tmp_path.glob("step-*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path / "best_model.pt", {"n": 1})
    assert checkpoint.latest(tmp_path) == tmp_path / "best_model.pt"
    checkpoint.save(tmp_path / "last.pt", {"n": 1})
    assert checkpoint.latest(tmp_path) == tmp_path / "last.pt"
