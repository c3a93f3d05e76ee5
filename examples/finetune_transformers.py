"""A Hugging Face model through ft.functionalize: trained whole, then tuned to other text by its head and norms alone.

    pip install -e '.[interop]'
    python examples/finetune_transformers.py        # two minutes on a CPU; saves below runs/finetune_transformers/

A model of transformers is an `nn.Module`, and its loss an objective like any other: `model(**batch).loss`. What has
`requires_grad=False` goes through the step as `state.frozen`: it has no gradient and no moments, and comes out as the
bits that went in. `write_back` gives the module its new weights, and from there on it is transformers' own again:
`save_pretrained`, `from_pretrained`, `generate`.

A small GPT-2, made from a configuration, reads bytes, so nothing is downloaded: first the text that `help("topics")`
shows, then the source of Python's argparse. The last tenth of each is kept to measure the loss with, in nats a byte.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import functrain as ft

T, B = 64, 32  # bytes in a window, windows in a batch
OUT = Path("runs/finetune_transformers")


def windows(text: str) -> tuple[Tensor, Tensor]:
    """Windows to train with and to measure with, (n, T) each. The model itself predicts each byte from those before."""
    data = torch.tensor(list(text.encode()))
    return tuple(part[: len(part) // T * T].view(-1, T) for part in data.tensor_split([len(data) * 9 // 10]))


def objective(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The model's own loss."""
    return module(**batch).loss


def rule(updates: int) -> ft.GradientTransformation:
    """AdamW with warm-up; biases and the weights of norms do not decay."""
    rate = ft.schedules.warmup_cosine_decay_schedule(0.0, 3e-3, updates // 10, updates)
    return ft.chain(
        ft.clip_by_global_norm(1.0), ft.adamw(rate, weight_decay=0.1, mask=ft.mask_by(lambda path, p: p.ndim >= 2))
    )


def fit(module: nn.Module, x: Tensor, updates: int) -> None:
    """Train what is not frozen on windows x."""
    model, tx = ft.functionalize(module.train()), rule(updates)
    step = ft.train_step(model.objective(objective), tx)
    state = ft.TrainState.create(model, tx)
    for _ in range(updates):
        chosen = x[torch.randint(len(x), (B,))]
        state, _ = step(state, {"input_ids": chosen, "labels": chosen})
    model.write_back(state.params, state.buffers)


def measure(module: nn.Module, x: Tensor) -> float:
    """The mean loss on windows x."""
    model = ft.functionalize(module).eval()
    with torch.no_grad():
        return model.objective(objective)(model.params, {"input_ids": x, "labels": x}).item()


def freeze_body(module: nn.Module) -> dict[str, Tensor]:
    """Let only the head and the norms train; return copies of the rest."""
    for name, p in module.named_parameters():
        p.requires_grad_(name == "lm_head.weight" or ".ln_" in name)
    return {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}


def write(module: GPT2LMHeadModel, prompt: str) -> str:
    """What the model says next, its likeliest byte at each place."""
    ids = torch.tensor([list(prompt.encode())])
    out = module.eval().generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=T - ids.shape[1], do_sample=False
    )
    return bytes(out[0].tolist()).decode(errors="replace")


def main(updates: int = 800) -> None:
    """Train, freeze, tune, save, load, and compare."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    text, code = windows("".join(topics[name] for name in sorted(topics))), windows(inspect.getsource(argparse))
    size = {"vocab_size": 256, "n_positions": T, "n_embd": 64, "n_layer": 2, "n_head": 4}
    module = GPT2LMHeadModel(
        GPT2Config(**size, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    )

    print("loss on              documentation   source   goes on")
    fit(module, text[0], updates)
    before = measure(module, code[1])
    print(f"trained on the first {measure(module, text[1]):13.3f} {before:8.3f}   {write(module, '    def ')!r}")
    kept = freeze_body(module)
    fit(module, code[0], updates)
    module.save_pretrained(OUT)
    tuned = GPT2LMHeadModel.from_pretrained(OUT)
    after = measure(tuned, code[1])
    print(f"tuned to the second {measure(tuned, text[1]):14.3f} {after:8.3f}   {write(tuned, '    def ')!r}")
    now = dict(tuned.named_parameters())
    assert all(torch.equal(p, now[name]) for name, p in kept.items())
    share = 1 - sum(p.numel() for p in kept.values()) / tuned.num_parameters()
    print(f"{share:.0%} of the weights trained: {before:.3f} -> {after:.3f}; the others are bitwise what they were")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="few updates")
    torch.set_num_threads(1)  # a second one costs models of this size more than it brings
    main(*((30,) if parser.parse_args().short else ()))
