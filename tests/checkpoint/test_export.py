"""Weights in safetensors files, held against what its own library reads."""

from __future__ import annotations

import errno
import importlib
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import functrain as ft
from functrain import checkpoint, tree
from functrain.checkpoint import durable, exporting
from functrain.checkpoint.exporting import split_key, weights_of
from tests.checkpoint.files import fails, same

safetensors = importlib.import_module("safetensors.torch")


class Tied(nn.Module):
    """An embedding that is the head too, a norm, and a buffer that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm = nn.Embedding(7, 3), nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("cache", torch.ones(2), persistent=False)


def equal(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return list(x) == list(y) and all(map(same, x.values(), y.values()))


def test_an_exported_module_is_loaded_by_safetensors_and_by_torch(tmp_path: Path) -> None:
    saved, a, b = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(torch.float64) for _ in range(3))
    saved(torch.randn(5, 3, dtype=torch.float64))
    checkpoint.export_weights(tmp_path / "a.safetensors", saved)
    assert safetensors.load_model(a, tmp_path / "a.safetensors") == (set(), [])
    b.load_state_dict(safetensors.load_file(tmp_path / "a.safetensors"))
    assert equal(a, saved)
    assert equal(b, saved)
    with importlib.import_module("safetensors").safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_ckpt_10_tied_weights_are_exported_once_and_stay_tied(tmp_path: Path) -> None:
    saved, loaded = Tied(), Tied()
    nn.init.normal_(saved.embed.weight)
    checkpoint.export_weights(tmp_path / "a.safetensors", saved)
    names = set(safetensors.load_file(tmp_path / "a.safetensors"))
    assert names == set(saved.state_dict()) - {"head.weight"}
    safetensors.load_model(loaded, tmp_path / "a.safetensors")
    assert equal(loaded, saved)
    assert loaded.head.weight is loaded.embed.weight


def test_ckpt_10_views_are_exported_as_their_own_elements(tmp_path: Path) -> None:
    whole = torch.arange(1_000_000.0).view(1_000, 1_000)
    views = {
        "row": whole[3],
        "column": whole[:, 3],
        "transposed": whole[:2, :3].T,
        "again": whole[3],
        "empty": whole[:0],
    }
    checkpoint.export_weights(tmp_path / "a.safetensors", views)
    found = safetensors.load_file(tmp_path / "a.safetensors")
    assert set(found) == set(views) - {"again"}
    assert all(same(x, views[name].contiguous()) for name, x in found.items())
    assert (tmp_path / "a.safetensors").stat().st_size < 20_000


@pytest.mark.parametrize("dtype", sorted(exporting._DTYPES, key=str))
def test_each_dtype_is_exported_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.arange(64, dtype=torch.uint8).remainder(2).view(dtype)
    checkpoint.export_weights(tmp_path / "a.safetensors", {"x": x})
    assert same(safetensors.load_file(tmp_path / "a.safetensors")["x"], x)


def test_what_cannot_be_exported_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    where = f"checkpoint.export_weights: {path}:"
    for given, message in (
        ({"z": torch.zeros(2, dtype=torch.complex128)},
         "tensor 'z' is complex128, which safetensors cannot say; hint: convert it"),
        ({"n": 1}, "'n' is a int; hint: weights are tensors, by names that are strings"),
        ({1: torch.ones(1)}, "1 is a Tensor; hint: weights are tensors, by names that are strings"),
        ({"s": torch.eye(2).to_sparse()},
         "tensor 's' is not a dense tensor with values (Tensor, torch.sparse_coo, on cpu); hint: convert it first"),
    ):  # fmt: skip
        fails(f"{where} {message}", checkpoint.export_weights, path, given)
    missing = tmp_path / "missing" / "a.safetensors"
    message = f"checkpoint.export_weights: {missing}: No such file or directory"
    fails(message, checkpoint.export_weights, missing, {"w": torch.ones(1)})
    with pytest.raises(TypeError) as caught:
        checkpoint.export_weights(path, ft.functionalize(Tied()))
    assert str(caught.value) == (
        "checkpoint.export_weights: expected a module or tensors by name, got Model; "
        "hint: the module of a functionalized model is model.module"
    )
    assert not list(tmp_path.iterdir())


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        checkpoint.export_weights(tmp_path / "a.safetensors", {"w": torch.ones(1)})
    assert str(caught.value) == (
        "checkpoint.export_weights: safetensors is not installed; hint: pip install 'functrain[safetensors]'"
    )


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_ckpt_2_an_export_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.export_weights(path, {"w": torch.ones(3)})

    def broken(*args: object) -> object:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, call, broken)
    message = f"checkpoint.export_weights: {path}: No space left on device"
    fails(message, checkpoint.export_weights, path, {"w": torch.zeros(3)})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert same(safetensors.load_file(path)["w"], torch.ones(3))


# --- from a Trainer's checkpoint


def trained(folder: Path, optimizer: ft.GradientTransformation) -> ft.Trainer:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    module[2].bias.requires_grad_(False)
    batches = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(3)]
    trainer = ft.Trainer(
        module, optimizer, batches, loss_fn=nn.functional.mse_loss, max_epochs=1, save_dir=folder, log_interval=1
    )
    trainer.train()
    return trainer


def test_the_weights_of_a_trainers_checkpoint_are_the_modules(tmp_path: Path) -> None:
    trainer = trained(tmp_path, ft.sgd(0.1))
    found = weights_of(checkpoint.read(tmp_path / "last.pt"))
    module = trainer.model.module.state_dict()
    assert set(found) == set(module)
    assert all(same(found[name], x) for name, x in module.items())


def test_the_averaged_weights_are_those_of_params_ema_and_of_no_other_mean(tmp_path: Path) -> None:
    tx = ft.chain(ft.ema(0.5), ft.sgd(0.1), ft.inject_hyperparams(ft.params_ema)(0.9))
    trainer = trained(tmp_path, tx)
    averaged = tree.get(trainer.state.opt_state[2], "ema")
    found = weights_of(checkpoint.read(tmp_path / "last.pt"), averaged=True)
    assert set(found) == set(trainer.model.module.state_dict())
    for name, x in found.items():
        assert same(x, averaged.get(name, trainer.model.module.state_dict()[name]))
    assert not torch.equal(found["0.weight"], trainer.model.module[0].weight)


def test_what_has_no_weights_or_no_single_mean_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    where = f"checkpoint.export: {path}:"
    hint = "hint: ft.chain(optimizer, ft.params_ema(0.999)) keeps one"
    x = torch.ones(2)
    cases: list[tuple[object, bool, str]] = [
        ({"w": x}, False, "it has no parameters; hint: this is not the checkpoint of a Trainer's run"),
        ({"params": x}, False, "'params' is one tensor, and not tensors by name"),
        ({"params": {"a.b": x, "a": {"b": 2 * x}}}, False, "two tensors are called 'a.b'"),
        ({"params": {"w": x}}, True, f"the optimizer's state has no running mean of the parameters; {hint}"),
        ({"params": {"w": x}, "opt_state": {"ema": {"w": x}, "count": 1}}, True,
         f"the optimizer's state has no running mean of the parameters; {hint}"),
        ({"params": {"w": x}, "opt_state": {"ema": {"v": x}}}, True,
         f"the optimizer's state has no running mean of the parameters; {hint}"),
        ({"params": {"w": x}, "opt_state": [{"ema": {"w": x}}, {"ema": {"w": x}}]}, True,
         f"the optimizer's state has 2 running means of the parameters; {hint}"),
    ]  # fmt: skip
    for saved, averaged, message in cases:
        checkpoint.save(path, saved)
        fails(f"{where} {message}", weights_of, checkpoint.read(path), averaged)


def test_the_names_in_a_key_are_those_it_was_made_of() -> None:
    names = ["a", "a.b", "0.weight", "7", "", "\\", "\\.", ".", "e", r"\e", r"\i7", "i7", "r", "a\nb", "\\\\0", "é"]
    nested = {a: dict.fromkeys(names, 1) for a in names}
    assert [split_key(key) for key in tree.keys(nested)] == [[a, b] for a in names for b in names]
