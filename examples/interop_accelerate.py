"""A loop of Accelerate's with functrain's optimizers: accumulation, clipping, a schedule, and a state saved halfway.

    pip install -e '.[interop]'
    python examples/interop_accelerate.py       # seconds on a CPU; downloads nothing, leaves nothing behind

`accelerator.prepare` takes an optimizer of `functrain.optim` where it took one of `torch.optim`. Nothing else changes,
not even the saved state: what one of the two saved through Accelerate, the other goes on from.

The text is what `help("topics")` shows. Shapes: B windows in a batch, T bytes in a window, V = 256 different bytes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from pydoc_data.topics import topics

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import functrain as ft
from functrain import optim

Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

V, T, B, WINDOWS, ACCUMULATE, EPOCHS = 256, 8, 32, 2048, 2, 4
UPDATES = EPOCHS * WINDOWS // (B * ACCUMULATE)


def next_bytes() -> TensorDataset:
    """Windows of T bytes, each with the byte that follows it, in an order that is mixed once."""
    text = "".join(topics[name] for name in sorted(topics)).encode()[: WINDOWS + T]
    encoded = torch.tensor(list(text))
    order = torch.randperm(WINDOWS, generator=torch.Generator().manual_seed(0))
    return TensorDataset(encoded.unfold(0, T, 1)[order], encoded[T:][order])


def train(begin: Make, go_on: Make, folder: Path, bf16: bool = False) -> tuple[dict[str, Tensor], Tensor]:
    """Half the epochs with one optimizer; the rest, in new objects from a saved state, with the other.

    Returns the weights at the end, and the losses of all batches.
    """
    data = next_bytes()
    losses: list[Tensor] = []
    for make in (begin, go_on):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Embedding(V, 16), nn.Flatten(), nn.Linear(16 * T, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, V)
        ).to(torch.float32 if bf16 else torch.float64)
        optimizer = make(model.parameters())
        lr, cycles = optimizer.param_groups[0]["lr"], "betas" in optimizer.defaults  # AdamW's β₁ cycles too
        schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=UPDATES, cycle_momentum=cycles)
        accelerator = Accelerator(
            cpu=True, mixed_precision="bf16" if bf16 else "no", gradient_accumulation_steps=ACCUMULATE
        )
        model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, DataLoader(data, B), schedule)
        if losses:
            accelerator.load_state(str(folder))

        for _ in range(EPOCHS // 2):
            for x, y in loader:  # (B, T), (B,)
                with accelerator.accumulate(model):
                    loss = F.cross_entropy(model(x), y)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                losses.append(loss.detach())
        accelerator.save_state(str(folder))
    return accelerator.unwrap_model(model).state_dict(), torch.stack(losses)


def main() -> None:
    """Train with either optimizer, with one after the other, and with a rule that torch has not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bf16", action="store_true", help="float32 weights under bf16 autocast, instead of float64")
    bf16 = parser.parse_args().bf16

    def torchs(params: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1)

    def ours(params: Iterable[Tensor]) -> torch.optim.Optimizer:
        return optim.AdamW(params, lr=1e-2, weight_decay=0.1)

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
            weights, losses = train(begin, go_on, Path(folder), bf16)
        expected = expected or weights
        apart = max((w - expected[key]).abs().max().item() for key, w in weights.items())
        first, last = losses[:32].mean(), losses[-32:].mean()
        print(f"{name:26} loss {first:.3f} -> {last:.3f}   weights differ from torch.optim's by {apart:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a second one costs models of this size more than it brings
    main()
