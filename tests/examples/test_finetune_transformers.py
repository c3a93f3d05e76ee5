"""The example of tuning a Hugging Face model: against a plain loop of torch, and by what is left alone."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import functrain as ft
from tests.example import load

pytestmark = pytest.mark.long  # it needs the extra `interop`
UPDATES = 20


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("finetune_transformers")


@pytest.fixture(scope="module")
def x(example: ModuleType) -> Tensor:
    return example.windows(topics["assert"])[0]


@pytest.fixture
def module(example: ModuleType) -> Any:
    """The example's kind of model in float64, smaller, and without dropout: its masks would differ."""
    torch.manual_seed(0)
    size = {"vocab_size": 256, "n_positions": example.T, "n_embd": 16, "n_layer": 2, "n_head": 2}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = example.GPT2Config(
        **size, **still, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return example.GPT2LMHeadModel(config).double()


def by_torch(module: Any, x: Tensor, batch: int) -> list[float]:
    """The same training with torch.optim.AdamW; the norms of its gradients."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer, warm, norms = torch.optim.AdamW(groups), UPDATES // 10, []
    for t in range(UPDATES):
        part = t / warm if t < warm else 0.5 * (1 + math.cos(math.pi * (t - warm) / (UPDATES - warm)))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * part
        chosen = x[torch.randint(len(x), (batch,))]
        optimizer.zero_grad()
        module(input_ids=chosen, labels=chosen).loss.backward()
        norms.append(torch.cat([p.grad.flatten() for p in trained]).norm().item())
        for p in trained:
            p.grad *= min(1, 1 / norms[-1])
        optimizer.step()
    return norms


@pytest.mark.parametrize("frozen", [False, True], ids=["the whole model", "head and norms"])
def test_the_weights_are_those_of_torchs_own_loop(example: ModuleType, module: Any, x: Tensor, frozen: bool) -> None:
    if frozen:
        example.freeze_body(module)
    twin = copy.deepcopy(module)
    torch.manual_seed(1)
    example.fit(module, x, UPDATES)
    torch.manual_seed(1)
    norms = by_torch(twin, x, example.B)
    assert (max(norms) > 1) != frozen  # the whole gradient is clipped, that of head and norms is too small for it
    for (name, p), q in zip(module.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11, msg=name)


def test_what_is_frozen_keeps_its_bits_and_all_else_moves(example: ModuleType, module: Any, x: Tensor) -> None:
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    kept = example.freeze_body(module)
    example.fit(module, x, UPDATES)
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name]) == (name in kept), name
    trained = before.keys() - kept.keys()
    assert trained == {
        "lm_head.weight",
        *(name for name in before if "ln_1" in name or "ln_2" in name or "ln_f" in name),
    }


def test_the_frozen_have_no_moments(example: ModuleType, module: Any) -> None:
    kept = example.freeze_body(module)
    model = ft.functionalize(module)
    state = ft.TrainState.create(model, example.rule(UPDATES))
    assert state.frozen.keys() == kept.keys()
    assert ft.tree.get(state.opt_state, "mu").keys() == model.params.keys()
    assert not kept.keys() & model.params.keys()


def test_what_is_saved_is_what_was_trained(example: ModuleType, module: Any, x: Tensor, tmp_path: Path) -> None:
    example.fit(module, x, UPDATES)
    module.save_pretrained(tmp_path)
    loaded = example.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float64)
    for (name, p), q in zip(module.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == q[0]
        assert torch.equal(p, q[1]), name
    assert example.measure(loaded, x) == pytest.approx(loaded(input_ids=x, labels=x).loss.item(), rel=1e-12)


def test_what_it_writes_is_the_likeliest_byte_of_the_pure_model(example: ModuleType, module: Any, x: Tensor) -> None:
    example.fit(module, x, UPDATES)
    model, ids = ft.functionalize(module).eval(), torch.tensor([list(b"The ")])
    for _ in range(8):
        out: Any = model.apply(model.params, model.buffers, input_ids=ids)[0]
        ids = torch.cat([ids, out.logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert example.write(module, "The ").startswith(bytes(ids[0].tolist()).decode(errors="replace"))


def test_the_windows_are_the_text(example: ModuleType) -> None:
    text = topics["assert"].encode()
    train, kept = example.windows(text.decode())
    first = len(text) * 9 // 10
    assert bytes(train.flatten().tolist()) == text[: train.numel()]
    assert bytes(kept.flatten().tolist()) == text[first : first + kept.numel()]
    assert first - train.numel() < example.T  # nothing but what does not fill a window is left out
    assert len(text) - first - kept.numel() < example.T
