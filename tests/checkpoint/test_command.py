"""`python -m functrain.checkpoint`, as somebody types it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import functrain as ft
from functrain import checkpoint
from tests.checkpoint.files import example, same
from tests.checkpoint.test_export import safetensors, trained

RUN = [sys.executable, "-m", "functrain.checkpoint"]


def run(*arguments: object, cwd: Path | None = None) -> tuple[int, str, str]:
    """The exit status, and what was printed where; times are replaced by TIME."""
    done = subprocess.run([*RUN, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)
    return done.returncode, re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", "TIME", done.stdout), done.stderr


def test_show_prints_what_is_in_a_file(tmp_path: Path) -> None:
    w = torch.ones(300, 2)
    saved = {"layer": {"w": w, "tied": w, "b.c": torch.zeros(0)}, "n": 3, "x": torch.tensor(0.5), "s": "a\x1b[2Jb"}
    checkpoint.save(tmp_path / "a.pt", saved, meta={"best": 1, "\x1b[0m": 2})
    size = f"{(tmp_path / 'a.pt').stat().st_size:,}"
    assert run("show", "a.pt", cwd=tmp_path) == (
        0,
        f"""a.pt
  whole, {size} bytes, written TIME, format 1
  meta: best, \\x1b[0m

  layer: 3 leaves, 2,400 bytes
    w     float32  300 × 2  2,400
    tied  float32  300 × 2      0  the same tensor as layer.w
    b.c   float32  0            0
  top: 3 leaves, 4 bytes
    n     int                   0  3
    x     float32  ()           4  0.5
    s     str                   0  'a\\x1b[2Jb'
  total: 6 leaves, 2,404 bytes
""",
        "",
    )


def test_show_prints_how_far_a_trainers_run_was(tmp_path: Path) -> None:
    trained(tmp_path, ft.adam(0.1))
    status, out, err = run("show", tmp_path / "last.pt")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert "  update 3, after 1 epoch and 0 batches of the next, not validated" in lines
    assert any(line.startswith("  optimizer ") and "adam" in line for line in lines)
    assert "  opt_state.0.mu: 5 leaves, 72 bytes" in lines
    assert any(line.split() == ["step", "int64", "()", "8", "3"] for line in lines)


@pytest.mark.long
def test_show_of_three_hundred_leaves_is_a_line_a_leaf_and_a_group(tmp_path: Path) -> None:
    leaves = {group: {f"{i}.weight": torch.zeros(i) for i in range(100)} for group in ("params", "mu", "nu")}
    checkpoint.save(tmp_path / "a.pt", leaves)
    status, out, _ = run("show", tmp_path / "a.pt")
    body = out.split("\n\n")[1].splitlines()
    assert status == 0
    assert [line for line in body if not line.startswith("    ")] == [
        *(f"  {group}: 100 leaves, 19,800 bytes" for group in ("params", "mu", "nu")),
        "  total: 300 leaves, 59,400 bytes",
    ]
    assert len(body) == 304
    assert max(map(len, body)) < 60


@pytest.mark.long
def test_show_of_a_directory_lists_its_checkpoints_and_why_one_is_not_whole(tmp_path: Path) -> None:
    for n in (2, 10, 9):
        checkpoint.save(tmp_path / f"step-{n}.pt", {"n": n})
    os.link(tmp_path / "step-10.pt", tmp_path / "last.pt")
    (tmp_path / "step-9.pt").write_bytes(bytes(9))
    size = f"{(tmp_path / 'step-10.pt').stat().st_size:,}"
    assert run("show", tmp_path) == (
        1,
        f"""{tmp_path}: 4 checkpoints, newest first
  step-10.pt  whole, {size} bytes, written TIME
  step-9.pt   damaged, or no checkpoint: it is too short
  step-2.pt   whole, {size} bytes, written TIME
  last.pt     the same file as step-10.pt
""",
        "",
    )
    (tmp_path / "step-9.pt").unlink()
    assert run("show", tmp_path)[0] == 0
    (empty := tmp_path / "empty").mkdir()
    assert run("show", empty) == (1, f"{empty}: there is no checkpoint in it\n", "")


@pytest.mark.long
def test_verify_prints_a_line_a_file_and_its_status_says_whether_all_are_whole(tmp_path: Path) -> None:
    a, b, folder, missing = (tmp_path / name for name in ("a.pt", "b.pt", "run", "missing.pt"))
    folder.mkdir()
    assert run("verify", folder) == (1, f"none     {folder}: there is no checkpoint in it\n", "")
    checkpoint.save(a, example())
    checkpoint.save(folder / "last.pt", {})
    assert run("verify", a, folder) == (0, f"whole    {a}\nwhole    {folder / 'last.pt'}\n", "")
    b.write_bytes(a.read_bytes()[:-1])
    assert run("verify", b, a, missing) == (
        1,
        f"not      {b}: damaged, or no checkpoint: its bytes do not match its seal\nwhole    {a}\n"
        f"not      {missing}: No such file or directory\n",
        "",
    )
    assert run("verify", "e", cwd=tmp_path) == (1, "not      e: No such file or directory\n", "")


@pytest.mark.long
def test_export_writes_the_weights_and_with_ema_their_mean(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", ft.chain(ft.sgd(0.1), ft.params_ema(0.9)))
    out = tmp_path / "w.safetensors"
    status, said, err = run("export", tmp_path / "run" / "last.pt", out)
    assert (status, said, err) == (0, f"{out}: 9 tensors, {out.stat().st_size:,} bytes\n", "")
    state = trainer.model.module.state_dict()
    assert all(same(x, state[name]) for name, x in safetensors.load_file(out).items())
    assert safetensors.load_model(trainer.model.module, out) == (set(), [])

    assert run("export", tmp_path / "run" / "last.pt", out, "--ema")[0] == 0
    mean = ft.tree.get(trainer.state.opt_state, "ema")
    found = safetensors.load_file(out)
    assert all(same(found[name], x) for name, x in mean.items())


@pytest.mark.long
def test_each_mistake_is_worded_and_has_its_status(tmp_path: Path) -> None:
    missing, plain = tmp_path / "missing.pt", tmp_path / "plain.pt"
    checkpoint.save(plain, {"w": torch.ones(1)})
    words = f"checkpoint.load: {missing}: No such file or directory\n"
    assert run("show", missing) == (1, "", words)
    assert run("export", missing, tmp_path / "w.safetensors") == (1, "", words)
    assert run("export", plain, tmp_path / "w.safetensors") == (
        1,
        "",
        f"checkpoint.export: {plain}: it has no parameters; hint: this is not the checkpoint of a Trainer's run\n",
    )
    for arguments in ((), ("show",), ("verify",), ("export", plain), ("look", plain), ("show", plain, plain)):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("usage: python -m functrain.checkpoint ")
    assert run("--help")[0] == 0


@pytest.mark.long
def test_a_reader_who_leaves_early_hears_nothing(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", {str(i): torch.zeros(1) for i in range(5_000)})
    child = subprocess.Popen([*RUN, "show", str(tmp_path / "a.pt")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr is not None
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 1


@pytest.mark.long
def test_names_are_printed_where_the_terminal_knows_ascii_alone(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", {"é×": torch.zeros(2, 2)})
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*RUN, "show", str(tmp_path / "a.pt")], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xe9\\xd7" in done.stdout
