"""What is refused on the way to a file and back, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from functrain import checkpoint
from tests.checkpoint.files import HINT, fails


class Marked(torch.Tensor):
    """A tensor of a class of its own."""


def test_each_misfit_names_the_first_leaf(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"layer": {"w": torch.zeros(3), "n": 1}})
    where = f"checkpoint.load: {path}: leaf"
    cases = [
        (
            {"layer": {"w": torch.zeros(4), "n": 1}},
            f"{where} 'layer.w' is float32 of shape (3,) in the file, and should be float32 of shape (4,); {HINT}",
        ),
        (
            {"layer": {"w": torch.zeros(3, dtype=torch.bfloat16), "n": 1}},
            f"{where} 'layer.w' is float32 of shape (3,) in the file, and should be bfloat16 of shape (3,); {HINT}",
        ),
        (
            {"layer": {"w": torch.zeros(3), "n": torch.zeros(())}},
            f"{where} 'layer.n' is of type int in the file, and should be float32 of shape (); {HINT}",
        ),
        (
            {"layer": {"w": torch.zeros(3), "n": 1}, "bias": torch.zeros(2)},
            f"{where} 'bias', float32 of shape (2,), is not in the file; {HINT}",
        ),
        (
            {"layer": {"n": 1}},
            f"{where} 'layer.w' of the file, float32 of shape (3,), has no place; {HINT}",
        ),
    ]
    for like, message in cases:
        fails(message, checkpoint.load, path, like)


def test_an_absent_file_is_a_checkpoint_error_in_the_systems_words(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    fails(f"checkpoint.load: {path}: No such file or directory", checkpoint.load, path, {})
    fails(f"checkpoint.verify: {path}: No such file or directory", checkpoint.verify, path)
    missing = tmp_path / "missing" / "a.pt"
    fails(f"checkpoint.save: {missing}: No such file or directory", checkpoint.save, missing, {})
    fails(f"checkpoint.load: {tmp_path}: Is a directory", checkpoint.load, tmp_path, {})


def test_what_cannot_be_saved_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    where = f"checkpoint.save: {path}: leaf 'a.b'"
    hint = "hint: a checkpoint holds tensors, bool, int, float and str"
    fails(f"{where} is a bytes; {hint}", checkpoint.save, path, {"a": {"b": b""}})
    dense = "is not a dense tensor with values"
    for x, what in (
        (torch.eye(2).to_sparse(), "(Tensor, torch.sparse_coo, on cpu)"),
        (torch.empty(2, device="meta"), "(Tensor, torch.strided, on meta)"),
        (torch.eye(2).as_subclass(Marked), "(Marked, torch.strided, on cpu)"),
    ):
        fails(f"{where} {dense} {what}; hint: convert it first", checkpoint.save, path, {"a": {"b": x}})
    big = f"{where} is an int of more than 2039 bits; hint: save it as a str"
    fails(big, checkpoint.save, path, {"a": {"b": 1 << 2039}})
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.save(path, {}, meta={"x": object()})
    assert not list(tmp_path.iterdir())
