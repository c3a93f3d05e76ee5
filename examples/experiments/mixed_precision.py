"""What mixed precision brings on the device at hand: time, memory and loss of a small GPT.

    python examples/experiments/mixed_precision.py      # 2 minutes on a CPU; draws a picture in runs/mixed_precision/

The same network learns the bytes of `help("topics")` from the same batches in float32, in `bf16`, and on a GPU in
`fp16` with its loss scale. They take turns, update by update, so that a slow minute hits all; the ratio of times is
the median over the turns. Memory is the allocator's peak on a GPU, elsewhere what a forward pass keeps for the backward
pass. Validation is in float32 for all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft

T, B = 128, 8  # bytes in a window, windows in a batch
LEARNED, HELD_OUT = slice(400_000), slice(400_000, None)  # bytes of the text


class GPT(nn.Module):
    """From bytes to the logits of what comes next; D is the width, a multiple of 32."""

    def __init__(self, D: int, layers: int = 4) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(D, D // 32, 4 * D, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.embed, self.place = nn.Embedding(256, D), nn.Parameter(torch.zeros(T, D))
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(D), enable_nested_tensor=False)
        self.head = nn.Linear(D, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(T))

    def forward(self, x: Tensor) -> Tensor:  # (B, T) -> (B, 256, T): classes second, where cross_entropy wants them
        return self.head(self.blocks(self.embed(x) + self.place, mask=self.mask, is_causal=True)).mT


def windows(part: slice, n: int, device: str) -> list[tuple[Tensor, Tensor]]:
    """n batches from a part of the text."""
    text = torch.tensor(list("".join(topics[name] for name in sorted(topics)).encode()), device=device)[part]
    starts = torch.randint(len(text) - T, (n, B, 1), generator=torch.Generator().manual_seed(0))
    return [(text[i], text[i + 1]) for i in starts + torch.arange(T)]


def kept(step: Callable[[], object], params: dict[str, Tensor]) -> float:
    """Megabytes that the forward pass of a step keeps for the backward pass, other than parameters."""
    saved: list[Tensor] = []  # keeps them, so that no later tensor gets the place of an earlier one
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        step()
    own = {p.untyped_storage().data_ptr() for p in params.values()}
    sizes = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in saved}
    return sum(size for place, size in sizes.items() if place not in own) / 1e6


def peak(step: Callable[[], object], params: dict[str, Tensor]) -> float:
    """Megabytes that a step needs of a GPU beyond what is there before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def verdict(name: str, time: float, memory: float, loss: float) -> str:
    """What the ratios to fp32 say; what is within a twentieth is no gain."""
    gains = " and ".join(what for what, ratio in (("time", time), ("memory", memory)) if ratio < 0.95) or "nothing"
    return f"{name}: {time:.2f} of fp32's time, {memory:.2f} of its memory, loss {loss:+.4f}: it saves {gains}"


def main(width: int = 256, updates: int = 100, out: Path = Path("runs/mixed_precision")) -> None:
    """Train in turns, measure, compare."""
    device, memory = ("cuda", peak) if torch.cuda.is_available() else ("cpu", kept)
    names = ["fp32", "bf16", *(["fp16"] if device == "cuda" else [])]  # on a CPU fp16 takes many times as long
    torch.manual_seed(0)
    model, tx = ft.functionalize(GPT(width).to(device)), ft.adamw(1e-3, weight_decay=0.1)
    loss, train = model.loss(F.cross_entropy), windows(LEARNED, updates, device)
    steps = {name: ft.train_step(loss, tx, precision=name, max_grad_norm=1.0) for name in names}
    states = {name: ft.TrainState.create(model, tx) for name in names}
    megabytes = {n: memory(lambda n=n: steps[n](states[n], train[0]), states[n].params) for n in names}
    times, losses = {name: [] for name in names}, {name: [] for name in names}
    for batch in train:
        for name in names:
            began = time.perf_counter()
            states[name], metrics = steps[name](states[name], batch)
            losses[name].append(metrics["loss"].item())  # on a GPU this waits for it
            times[name].append(time.perf_counter() - began)

    with torch.no_grad():
        val = windows(HELD_OUT, 10, device)
        validation = {name: sum(loss(states[name].params, x).item() for x in val) / len(val) for name in names}
    axes = (figure := Figure(figsize=(8, 4), layout="constrained")).subplots()
    for i, name in enumerate(names):
        seconds = statistics.median(times[name])
        told = f"{name}: {1e3 * seconds:.1f} ms and {megabytes[name]:.1f} MB a step"
        print(told + f", validation loss {validation[name]:.3f}")
        axes.plot([seconds * j for j in range(updates)], losses[name], linewidth=3 - i, label=told)
    axes.set(xlabel=f"seconds on the {device}, at the median of a step", ylabel="training loss")
    axes.legend()
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "mixed_precision.png")
    for name in names[1:]:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["fp32"], strict=True))
        print(verdict(name, ratio, megabytes[name] / megabytes["fp32"], validation[name] - validation["fp32"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256, metavar="D", help="a multiple of 32 (%(default)s)")
    parser.add_argument("--short", action="store_true", help="a smaller network, and a few updates")
    args = parser.parse_args()
    main(**{"width": 64, "updates": 4} if args.short else {"width": args.width})
