"""The modules that tests train: small, and each with one thing that is hard to get right."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

D = torch.float64


def mlp(*sizes: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Linear layers with tanh between."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b, dtype=dtype), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Weight(nn.Module):
    """One number; a batch multiplies it."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def product(m: nn.Module, x: Tensor) -> Tensor:
    """The mean of w * x: its gradient is the mean of x."""
    return m(x).mean()


def ones(*sizes: int) -> list[Tensor]:
    """Batches for it, whose gradient is 1."""
    return [torch.ones(n, dtype=torch.float64) for n in sizes]


class NormNet(nn.Module):
    """BatchNorm, and dropout if asked for."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        # No bias: behind it comes BatchNorm, so its gradient would be rounding noise, which Adam makes large.
        self.inner = nn.Linear(3, 5, bias=False, dtype=dtype)
        self.norm = nn.BatchNorm1d(5, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(5, 2, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(torch.relu(self.norm(self.inner(x)))))


class Block(nn.Module):
    """Attention and a feed-forward part, with residuals."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out(weights @ v)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A language model over 11 tokens whose embedding is its head: one weight under two names."""

    def __init__(self, d: int = 8, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.embedding = nn.Embedding(11, d)
        self.blocks = nn.ModuleList([Block(d), Block(d)])
        self.head = nn.Linear(d, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x)


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def tokens(rows: int = 4, length: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(11, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return drawn[:, :-1], drawn[:, 1:]


def points(rows: int = 12, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Inputs of 3 numbers, targets of 2."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator, dtype=dtype)
    return x, torch.randn(rows, 2, generator=generator, dtype=dtype)
