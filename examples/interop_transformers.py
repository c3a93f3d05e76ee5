"""Transformers' Trainer with functrain's optimizers: clipping, accumulation, warmup, a cosine, a checkpoint halfway.

    pip install -e '.[interop]'
    python examples/interop_transformers.py     # seconds on a CPU; downloads nothing, leaves nothing behind

`optimizers=(optimizer, schedule)` takes an optimizer of `functrain.optim` where it took one of `torch.optim`. Nothing
else changes, not even the checkpoint: what one of the two saved through the Trainer, the other goes on from.

A small GPT-2, made from a configuration, learns the bytes of what `help("topics")` shows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from pydoc_data.topics import topics

import torch
import transformers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

import functrain as ft
from functrain import optim

Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

T, WINDOWS, UPDATES = 16, 1000, 80  # bytes in a window, windows, updates


def windows() -> list[dict[str, Tensor]]:
    """The text's first bytes in windows; the model itself predicts each byte from those before it."""
    text = "".join(topics[name] for name in sorted(topics)).encode()[: WINDOWS * T]
    return [{"input_ids": x, "labels": x} for x in torch.tensor(list(text)).view(WINDOWS, T)]


def train(begin: Make, go_on: Make, folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Half the updates with one optimizer; the rest, in new objects from a checkpoint, with the other.

    Returns the weights at the end, and the losses of all updates.
    """
    losses: list[float] = []
    for make, updates in ((begin, UPDATES // 2), (go_on, UPDATES)):
        torch.manual_seed(0)
        size = {"vocab_size": 256, "n_positions": T, "n_embd": 32, "n_layer": 2, "n_head": 2}
        model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)).double()
        optimizer = make(model.parameters())
        schedule = transformers.get_cosine_schedule_with_warmup(optimizer, UPDATES // 10, UPDATES)
        arguments = TrainingArguments(
            folder,
            max_steps=updates,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            max_grad_norm=0.5,
            save_steps=UPDATES // 2,
            logging_steps=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=windows(), optimizers=(optimizer, schedule))
        trainer.remove_callback(PrinterCallback)  # a line for every update
        trainer.train(resume_from_checkpoint=updates == UPDATES)
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]  # also those before the checkpoint
    return model.state_dict(), torch.tensor(losses)


def main() -> None:
    """Train with either optimizer, with one after the other, and with a rule that torch has not."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def torchs(params: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=3e-3, weight_decay=0.1)

    def ours(params: Iterable[Tensor]) -> torch.optim.Optimizer:
        return optim.AdamW(params, lr=3e-3, weight_decay=0.1)

    def lion(params: Iterable[Tensor]) -> torch.optim.Optimizer:
        return ft.create_optimizer("lion", params, lr=1e-3)

    runs = {
        "torch.optim.AdamW": (torchs, torchs),
        "functrain.optim.AdamW": (ours, ours),
        "torch's, then functrain's": (torchs, ours),
        "functrain's lion": (lion, lion),
    }
    expected: dict[str, Tensor] = {}
    for name, (begin, go_on) in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            weights, losses = train(begin, go_on, Path(folder))
        expected = expected or weights
        apart = max((w - expected[key]).abs().max().item() for key, w in weights.items())
        first, last = losses[:8].mean(), losses[-8:].mean()
        print(f"{name:26} loss {first:.3f} -> {last:.3f}   weights differ from torch.optim's by {apart:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a second one costs models of this size more than it brings
    main()
