"""A small GPT learns to write like Python's documentation, one character after another.

    python examples/char_lm.py              # or `make demo`: two minutes on two cores, into runs/char_lm
    python examples/char_lm.py --resume     # goes on where Ctrl-C, or a crash, ended it
    python examples/char_lm.py --text my.txt --steps 2000
    python examples/char_lm.py --optimizer lion --lr 3e-4 --out runs/lion

The text is what `help("topics")` shows: 465,000 characters that every Python brings along. The last tenth is kept for
validation, and `validation loss` is measured on all of it with the best weights: the mean of -log p(character), in
nats, where each character is predicted once, from those before it in its window.

Shapes: B windows in a batch, T characters in a window, D the width, H heads, V characters in the vocabulary.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import functrain as ft

# --- the model


class Attention(nn.Module):
    """Every position looks at itself and those before it; it knows how far back they are by the rotation between."""

    def __init__(self, D: int, H: int) -> None:
        super().__init__()
        self.H = H
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.out = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:  # (B, T, D), (T, D/2H) -> (B, T, D)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.H, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, D/H) each
        y = F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs of entries as complex numbers, turned by their position's angle. (B, H, T, D/H), (T, D/2H) -> x's shape."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # (B, H, T, D/2H)
    return torch.view_as_real(pairs * turn).flatten(-2)


class Block(nn.Module):
    """Look around, then think; each adds to the stream x."""

    def __init__(self, D: int, H: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(D), Attention(D, H)
        self.norm2, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:  # (B, T, D), (T, D/2H) -> (B, T, D)
        x = x + self.attention(self.norm1(x), turn)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A decoder-only transformer: from characters to the logits of what comes next."""

    def __init__(self, V: int, T: int, D: int, H: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.blocks = nn.ModuleList(Block(D, H) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, V, bias=False)
        self.head.weight = self.embed.weight  # tied: two names, trained as one
        for name, p in self.named_parameters():
            if p.ndim >= 2:  # what adds to the stream begins smaller, so that depth does not swell it
                adds = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if adds else 0.02)

        angle = torch.outer(torch.arange(T), 10_000.0 ** -torch.arange(0, 1, 2 * H / D))
        self.register_buffer("turn", torch.polar(torch.ones_like(angle), angle))  # (T, D/2H), complex

    def forward(self, x: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        h = self.embed(x)
        for block in self.blocks:
            h = block(h, self.turn[: x.shape[1]])
        return self.head(self.norm(h))


def next_character_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The sum of -log p over the batch's characters, and their number: a loss that carries its weight."""
    x, y = batch  # (B, T) each
    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
    return loss, torch.tensor(y.numel())


# --- the data


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Every window of T characters, with the window one further: each character's successor."""

    def __init__(self, text: Tensor, T: int) -> None:
        self.text, self.T = text, T

    def __len__(self) -> int:
        return len(self.text) - self.T

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.text[i : i + self.T], self.text[i + 1 : i + 1 + self.T]


def once_through(text: Tensor, B: int, T: int) -> list[tuple[Tensor, Tensor]]:
    """The text once, in order, in batches of windows beside each other; the last window is shorter."""
    x, y = text[:-1], text[1:]
    whole = len(x) // T * T
    batches = list(zip(x[:whole].view(-1, T).split(B), y[:whole].view(-1, T).split(B), strict=True))
    return batches + ([(x[None, whole:], y[None, whole:])] if whole < len(x) else [])


# --- writing


@torch.no_grad()
def write(model: GPT, start: Tensor, length: int, temperature: float, seed: int) -> list[int]:
    """Draw `length` characters, each from the model's distribution after those before it, sharpened by temperature."""
    dice = torch.Generator().manual_seed(seed)
    x = start  # (1, characters so far)
    for _ in range(length):
        logits = model(x[:, -len(model.turn) :])[0, -1]  # (V,)
        p = F.softmax(logits.cpu() / temperature, dim=0)
        x = torch.cat([x, torch.multinomial(p, 1, generator=dice).to(x).view(1, 1)], dim=1)
    return x[0, start.shape[1] :].tolist()


def main() -> None:
    """Train, validate, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, metavar="FILE", help="learn this text instead")
    parser.add_argument("--out", type=Path, default=Path("runs/char_lm"), help="directory of the run (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    parser.add_argument("--short", action="store_true", help="a tiny model, for seconds")
    parser.add_argument("--optimizer", choices=["adamw", "lion"], default="adamw", help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=700, help="updates (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="B, windows an update (%(default)s)")
    parser.add_argument("--context", type=int, default=128, help="T, characters a window (%(default)s)")
    parser.add_argument("--width", type=int, default=128, help="D, a multiple of 32 (%(default)s)")
    parser.add_argument("--layers", type=int, default=5, help="blocks (%(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and the sample (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    if parser.parse_known_args()[0].short:
        parser.set_defaults(steps=60, batch=8, context=32, width=32, layers=1)
    args = parser.parse_args()

    text = args.text.read_text("utf-8") if args.text else "".join(topics[name] for name in sorted(topics))
    vocabulary = sorted(set(text))
    index = {character: i for i, character in enumerate(vocabulary)}
    encoded = torch.tensor([index[character] for character in text])
    train, val = encoded.tensor_split([len(encoded) * 9 // 10])
    if len(train) <= args.context:
        parser.error(f"the text has {len(text)} characters, too few for windows of {args.context}")

    torch.manual_seed(args.seed)
    gpt = GPT(len(vocabulary), args.context, args.width, max(1, args.width // 32), args.layers)
    rate = ft.schedules.warmup_cosine_decay_schedule(0.0, args.lr, args.steps // 10, args.steps, args.lr / 20)
    rule = {"adamw": ft.adamw, "lion": ft.lion}[args.optimizer]
    matrices = ft.mask_by(lambda path, p: p.ndim >= 2)
    trainer = ft.Trainer(
        gpt,
        rule(rate, b1=0.9, b2=0.99, weight_decay=0.1, mask=matrices),
        DataLoader(Windows(train, args.context), args.batch, shuffle=True),
        once_through(val, 4 * args.batch, args.context),
        device=args.device,
        objective=next_character_loss,
        max_epochs=None,
        max_steps=args.steps,
        max_grad_norm=1.0,
        log_interval=20,
        eval_interval=max(1, args.steps // 10),
        save_interval=max(1, args.steps // 10),
        save_dir=args.out,
        resume="auto" if args.resume else None,
        seed=args.seed,
    )
    try:
        trainer.train()
    except SystemExit:  # Ctrl-C: the Trainer has finished its update, and saved
        again = [sys.executable, *(word for word in sys.argv if word != "--resume"), "--resume"]
        print(f"stopped after update {trainer.updates}, and saved; to go on:\n{shlex.join(again)}")
        raise
    ft.plot.history(args.out).savefig(args.out / "history.png")

    print("writing a sample ...")
    trainer.load_checkpoint(args.out / "best_model.pt")
    newline = encoded.new_full((1, 1), index.get("\n", 0)).to(args.device)
    sample = write(gpt.eval(), newline, 600, temperature=0.8, seed=args.seed)
    print(f"\n{''.join(vocabulary[i] for i in sample)}\n")
    print(f"{args.out}: best_model.pt, last.pt, metrics.jsonl, history.png")
    print(f"validation loss {trainer.evaluate()['loss']:.3f}")


if __name__ == "__main__":
    main()
