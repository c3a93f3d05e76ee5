"""What comes back from a file, and what is refused on the way there and back."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from functrain import checkpoint, tree
from tests.checkpoint.files import HINT, Pair, example, fails, same, same_tree, sealed, zipped
from tests.checkpoint.hostile import GOOD
from tests.checkpoint.pickles import contents, storage, tensor


def test_a_tree_comes_back_bit_for_bit_with_its_structure(tmp_path: Path) -> None:
    saved = example()
    checkpoint.save(tmp_path / "a.pt", saved)
    like = tree.map(lambda x: torch.full_like(x, 1) if isinstance(x, torch.Tensor) else x, saved)
    before = tree.map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, like)

    loaded = checkpoint.load(str(tmp_path / "a.pt"), like=like)
    assert same_tree(loaded, saved)
    assert type(loaded["a.b"]) is Pair
    assert same_tree(like, before), "the template was written to"


def test_a_tree_may_be_one_tensor(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", torch.arange(3))
    assert same(checkpoint.load(tmp_path / "a.pt", torch.zeros(3, dtype=torch.int64)), torch.arange(3))


def test_a_saved_and_loaded_tree_saves_equal_content(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", example())
    checkpoint.save(tmp_path / "b.pt", checkpoint.load(tmp_path / "a.pt", example()))
    a, b = (checkpoint.read(tmp_path / name).leaves for name in ("a.pt", "b.pt"))
    assert list(a) == list(b)
    assert all(map(same, a.values(), b.values()))


def test_ckpt_10_a_view_is_saved_as_its_own_elements(tmp_path: Path) -> None:
    whole = torch.arange(1_000_000.0).reshape(1000, 1000)
    views = {"row": whole[3], "column": whole[:, 3], "transposed": whole[:2, :3].T, "expanded": whole[0, 1].expand(2)}
    checkpoint.save(tmp_path / "a.pt", views)
    assert same_tree(checkpoint.load(tmp_path / "a.pt", views), views)
    assert (tmp_path / "a.pt").stat().st_size < 20_000


def test_conjugate_and_negative_views_keep_their_values(tmp_path: Path) -> None:
    z = torch.randn(3, dtype=torch.complex64)
    views = {"conj": z.conj(), "neg": z.conj().imag}
    assert views["conj"].is_conj()
    assert views["neg"].is_neg()
    checkpoint.save(tmp_path / "a.pt", views)
    loaded = checkpoint.load(tmp_path / "a.pt", views)
    assert all(torch.equal(loaded[name], views[name]) for name in views)


def test_ckpt_10_tied_leaves_are_written_once_and_are_tied_where_the_template_is(tmp_path: Path) -> None:
    w = torch.randn(300, 300)
    tied = {"embed": w, "head": w}
    checkpoint.save(tmp_path / "a.pt", tied)
    assert (tmp_path / "a.pt").stat().st_size < 1.5 * w.nbytes

    again = checkpoint.load(tmp_path / "a.pt", tied)
    assert again["embed"] is again["head"]
    apart = checkpoint.load(tmp_path / "a.pt", {"embed": w, "head": w.clone()})
    assert apart["embed"].data_ptr() != apart["head"].data_ptr()
    assert same(apart["head"], w)


def test_a_tied_template_refuses_a_file_in_which_the_leaves_differ(tmp_path: Path) -> None:
    path, w = tmp_path / "a.pt", torch.ones(2)
    checkpoint.save(path, {"embed": w, "head": 2 * w})
    message = f"checkpoint.load: {path}: leaves 'embed' and 'head' are one tensor, and differ in the file; {HINT}"
    fails(message, checkpoint.load, path, {"embed": w, "head": w})


def test_leaves_come_as_plain_tensors_where_and_as_the_template_lies(tmp_path: Path) -> None:
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    like = torch.nn.Parameter(torch.zeros_like(image))
    checkpoint.save(tmp_path / "a.pt", image.contiguous())
    loaded = checkpoint.load(tmp_path / "a.pt", like)
    assert type(loaded) is torch.Tensor
    assert not loaded.requires_grad
    assert loaded.stride() == image.stride()
    assert torch.equal(loaded, image)
    assert checkpoint.load(tmp_path / "a.pt", torch.empty(2, 3, 4, 4, device="meta")).device.type == "cpu"


def test_meta_comes_back_nan_and_all(tmp_path: Path) -> None:
    meta = {"best": float("inf"), "loss": float("nan"), "rows": [{"step": 1, "x": None}]}
    checkpoint.save(tmp_path / "a.pt", {}, meta=meta)
    assert json.dumps(checkpoint.read(tmp_path / "a.pt").meta) == json.dumps(meta)


def test_a_file_is_a_zip_that_torch_reads_without_running_code(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", {"w": torch.ones(2)})
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["leaves"]["w"], torch.ones(2))


def test_ckpt_3_a_number_that_is_saved_is_read(tmp_path: Path) -> None:
    for n in (0, -1, 2**31, -(2**31) - 1, 2**63, -(2**64), 2**2039 - 1, -(2**2039) + 1):
        checkpoint.save(tmp_path / "a.pt", {"n": n})
        assert checkpoint.load(tmp_path / "a.pt", {"n": 0}) == {"n": n}


@pytest.mark.parametrize("text", ["", "é\n\0", "\ud800", "x" * 300])
def test_ckpt_3_a_text_that_is_saved_is_read_as_leaf_name_and_meta(tmp_path: Path, text: str) -> None:
    checkpoint.save(tmp_path / "a.pt", {text: text}, meta={text: text})
    contents = checkpoint.read(tmp_path / "a.pt")
    assert checkpoint.load(tmp_path / "a.pt", {text: ""}) == {text: text}
    assert contents.meta == {text: text}


def test_ckpt_3_every_dtype_and_thousands_of_leaves_are_read(tmp_path: Path) -> None:
    dtypes = [x for x in vars(torch).values() if isinstance(x, torch.dtype) and x.itemsize and "q" not in str(x)]
    named = {str(x) for x in dtypes if not str(x).startswith(("torch.bits", "torch.int", "torch.uint"))}
    whole = {f"torch.{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64)}
    assert {"torch.float8_e8m0fnu", "torch.float4_e2m1fn_x2", "torch.complex128", "torch.bool"} <= named
    leaves: dict[str, object] = {}
    for x in dtypes:
        if str(x) in named - {"torch.complex32"} | whole:  # torch warns whenever it makes one of that
            leaves[str(x)] = torch.arange(32, dtype=torch.uint8).remainder(2).view(x)
    leaves |= {f"n{i}": (i, f"text {i}", torch.tensor(i))[i % 3] for i in range(3_500)}
    checkpoint.save(tmp_path / "a.pt", leaves)
    assert same_tree(checkpoint.load(tmp_path / "a.pt", leaves), leaves)


def test_ckpt_10_a_module_with_tied_weights_is_tied_when_it_comes_back(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(7, 3), torch.nn.Linear(3, 7, bias=False))
    module[1].weight = module[0].weight
    checkpoint.save(tmp_path / "a.pt", dict(module.named_parameters(remove_duplicate=False)))
    empty = dict.fromkeys(("0.weight", "1.weight"), torch.zeros(7, 3))
    loaded = checkpoint.load(tmp_path / "a.pt", empty)
    assert loaded["0.weight"] is loaded["1.weight"]
    assert torch.equal(loaded["0.weight"], module[0].weight)
    read = checkpoint.read(tmp_path / "a.pt").leaves
    assert read[r"\0\.weight"] is read[r"\1\.weight"]


@pytest.mark.cuda
def test_ckpt_9_written_on_cuda_it_loads_on_the_cpu_and_the_reverse(tmp_path: Path) -> None:
    here = {"w": torch.randn(300, 3), "n": torch.tensor(3), "half": torch.randn(5).to(torch.bfloat16)}
    there = tree.map(lambda x: x.cuda(), here)
    for saved, like in ((there, here), (here, there), (there, there)):
        checkpoint.save(tmp_path / "a.pt", saved)
        loaded = checkpoint.load(tmp_path / "a.pt", like)
        assert [x.device for x in tree.leaves(loaded)] == [x.device for x in tree.leaves(like)]
        assert same_tree(tree.map(lambda x: x.cpu(), loaded), here)
        assert all(x.device.type == "cpu" for x in checkpoint.read(tmp_path / "a.pt").leaves.values())


def test_ckpt_9_a_file_says_where_its_tensors_were_and_is_read_on_the_cpu(tmp_path: Path) -> None:
    # What torch.save writes of a tensor on CUDA differs in this word alone.
    data = contents({"w": tensor(storage(device="cuda:3"))})
    path = sealed(zipped({**GOOD, "archive/data.pkl": data}), tmp_path / "a.pt")
    assert same(checkpoint.load(path, {"w": torch.zeros(5)})["w"], torch.arange(5.0))
