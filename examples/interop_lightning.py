"""Lightning trains with functrain's optimizers: clipping, accumulation, OneCycleLR, and a checkpoint halfway.

    pip install -e '.[interop]'
    python examples/interop_lightning.py        # seconds on a CPU; downloads nothing, leaves nothing behind

`configure_optimizers` returns an optimizer of `functrain.optim` where it returned one of `torch.optim`. Nothing else
changes, not even the checkpoint: what one of the two saved through Lightning, the other goes on from.

The text is what `help("topics")` shows. Shapes: B windows in a batch, T bytes in a window, V = 256 different bytes.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from pydoc_data.topics import topics

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

import functrain as ft
from functrain import optim

Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

V, T, B, WINDOWS, ACCUMULATE, EPOCHS = 256, 8, 32, 2048, 2, 4
UPDATES = EPOCHS * WINDOWS // (B * ACCUMULATE)
SETTINGS = {"accelerator": "cpu", "precision": "64-true", "gradient_clip_val": 0.5}
SETTINGS |= {"accumulate_grad_batches": ACCUMULATE, "logger": False, "enable_checkpointing": False}
SETTINGS |= {"enable_progress_bar": False, "enable_model_summary": False}


def next_bytes() -> TensorDataset:
    """Windows of T bytes, each with the byte that follows it, in an order that is mixed once."""
    text = "".join(topics[name] for name in sorted(topics)).encode()[: WINDOWS + T]
    encoded = torch.tensor(list(text))
    order = torch.randperm(WINDOWS, generator=torch.Generator().manual_seed(0))
    return TensorDataset(encoded.unfold(0, T, 1)[order], encoded[T:][order])


class Bytes(lightning.LightningModule):
    """From T bytes to the logits of the next."""

    def __init__(self, make: Make, losses: list[Tensor]) -> None:
        super().__init__()
        self.make, self.losses = make, losses
        self.net = nn.Sequential(
            nn.Embedding(V, 16), nn.Flatten(), nn.Linear(16 * T, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, V)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        x, y = batch  # (B, T), (B,)
        loss = F.cross_entropy(self.net(x), y)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = self.make(self.parameters())
        lr, cycles = optimizer.param_groups[0]["lr"], "betas" in optimizer.defaults  # AdamW's β₁ cycles too
        schedule = OneCycleLR(optimizer, max_lr=lr, total_steps=UPDATES, cycle_momentum=cycles)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(begin: Make, go_on: Make, folder: Path) -> tuple[dict[str, Tensor], Tensor]:
    """Half the epochs with one optimizer; the rest, in new objects from a checkpoint, with the other.

    Returns the weights at the end, and the losses of all batches.
    """
    data = next_bytes()
    losses: list[Tensor] = []
    checkpoint = None
    for make, epochs in ((begin, EPOCHS // 2), (go_on, EPOCHS)):
        torch.manual_seed(0)
        module = Bytes(make, losses)
        trainer = lightning.Trainer(**SETTINGS, max_epochs=epochs, default_root_dir=folder)
        trainer.fit(module, DataLoader(data, B), ckpt_path=checkpoint, weights_only=True)
        checkpoint = folder / "half.ckpt"
        trainer.save_checkpoint(checkpoint)
    return module.state_dict(), torch.stack(losses)


def main() -> None:
    """Train with either optimizer, with one after the other, and with a rule that torch has not."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

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
            weights, losses = train(begin, go_on, Path(folder))
        expected = expected or weights
        apart = max((w - expected[key]).abs().max().item() for key, w in weights.items())
        first, last = losses[:32].mean(), losses[-32:].mean()
        print(f"{name:26} loss {first:.3f} -> {last:.3f}   weights differ from torch.optim's by {apart:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)  # a second one costs models of this size more than it brings
    main()
