"""The model that benchmarks train, and the shapes of its parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GPT(nn.Module):
    """A decoder-only transformer as in GPT-2. Sizes: layers, width D, heads, vocabulary V, context T."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, context: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) tokens to (B * T, V) logits."""
        h = self.token(x) + self.position.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)).flatten(0, 1)


class Block(nn.Module):
    """Attention, then a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def of_31m(small: bool) -> tuple[GPT, tuple[Tensor, Tensor]]:
    """A GPT of 31M parameters and a batch of 1 x 64 tokens: weights, and so the optimizer, outweigh activations."""
    torch.manual_seed(0)
    layers, width, vocabulary, context = (1, 32, 64, 8) if small else (4, 768, 3500, 64)
    tokens = torch.randint(vocabulary, (1, context + 1))
    return GPT(layers, width, 4 if small else 12, vocabulary, context), (tokens[:, :-1], tokens[:, 1:].flatten())


def leaves_of_30m(small: bool) -> dict[str, Tensor]:
    """The 148 parameters of a GPT of 12 layers: 30M numbers."""
    torch.manual_seed(0)
    layers, width, vocabulary, context = (1, 16, 32, 8) if small else (12, 384, 22_000, 1024)
    model = GPT(layers, width, 2, vocabulary, context)
    return {name: p.detach() for name, p in model.named_parameters()}


def leaves_of_11m(small: bool) -> dict[str, Tensor]:
    """Of those, the 72 of the first six blocks: 11M numbers."""
    first = tuple(f"blocks.{i}." for i in range(6))
    return {name: p for name, p in leaves_of_30m(small).items() if name.startswith(first)}
