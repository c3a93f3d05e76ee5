"""A plain PyTorch loop changes its optimizer by changing one import.

    from torch import optim                     # before
    from functrain import optim                 # after

    python examples/drop_in_torch.py            # seconds on a CPU

The loop has what loops have: parameter groups, OneCycleLR, mixed precision with a GradScaler, clipping. It learns the
bytes of what `help("topics")` shows, once with either import. In float64 the weights at the end agree to the last
digits. In float16 rounding alone moves them, so there the losses are to be compared. The rest is what only the second
import brings.

Shapes: B windows in a batch, T bytes in a window.
"""

from __future__ import annotations

import argparse
from pydoc_data.topics import topics
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft

T, B = 8, 32


def network() -> nn.Sequential:
    """From T bytes to the logits of the next."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(256, 16), nn.Flatten(), nn.Linear(16 * T, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 256)
    )


def batches(updates: int) -> list[tuple[Tensor, Tensor]]:
    """Windows from all over the text, (B, T), each with the byte that follows it, (B,)."""
    text = torch.tensor(list("".join(topics[name] for name in sorted(topics)).encode()))
    starts = torch.randint(len(text) - T, (updates, B, 1), generator=torch.Generator().manual_seed(0))
    return [(text[i + torch.arange(T)], text[i.squeeze() + T]) for i in starts]


def train(
    optim: ModuleType, mixed: bool = False, updates: int = 200
) -> tuple[torch.optim.Optimizer, dict[str, Tensor], Tensor]:
    """The loop; nothing in it knows which module `optim` is. Returns the optimizer, the weights and the losses."""
    model = network().to(torch.float32 if mixed else torch.float64)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = optim.AdamW(groups, lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=updates)
    scaler = torch.amp.GradScaler("cpu", growth_interval=50)
    losses = []
    for x, y in batches(updates):
        with torch.autocast("cpu", torch.float16, enabled=mixed):
            loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)  # leaves out the updates whose gradient overflowed
        scaler.update()
        schedule.step()
        losses.append(loss.detach())
    return optimizer, dict(model.state_dict()), torch.stack(losses)


def main(updates: int = 200) -> None:
    """The comparison, and what else there is."""
    theirs, expected, _ = train(torch.optim, updates=updates)
    _, weights, losses = train(ft.optim, updates=updates)
    apart = max(((w - expected[key]).norm() / expected[key].norm()).item() for key, w in weights.items())
    print(
        f"float64: loss {losses[:10].mean():.3f} -> {losses[-10:].mean():.3f}, weights {apart:.0e} from torch.optim's"
    )
    pair = [train(optim, True, updates)[2][-10:].mean() for optim in (torch.optim, ft.optim)]
    print(f"float16: loss at the end {pair[0]:.3f} with torch.optim, {pair[1]:.3f} with functrain.optim")

    ours = ft.from_torch(theirs)  # goes on where torch's optimizer is, over the same parameters
    print(f"from_torch: {type(ours).__name__} after {next(iter(ours.state.values()))['step']:.0f} updates")

    model = network()
    lion = ft.create_optimizer("lion", model.parameters(), lr=1e-3)  # each of functrain's rules, by its name
    adamw = ft.configure_optimizer(model, "adamw", lr=1e-2, weight_decay=0.1)  # what is no matrix does not decay
    decays = [f"{len(group['params'])} decay by {group['weight_decay']}" for group in adamw.param_groups]
    print(f"create_optimizer: {type(lion).__name__}; configure_optimizer, parameters: {', '.join(decays)}")

    tx = adamw.as_transform()  # the same optimizer as a pure function: here, its first update at five learning rates
    batch = batches(1)[0]
    loss = ft.functionalize(model).loss(F.cross_entropy)
    params = {name: p.detach() for name, p in model.named_parameters()}
    grads, state = torch.func.grad(loss)(params, batch), tx.init(params)

    def after(rate: Tensor) -> Tensor:
        updates, _ = tx.update(grads, ft.tree.set(state, learning_rate=rate), params)
        return loss(ft.apply_updates(params, updates), batch)

    rates = torch.tensor([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    print("as_transform: loss after an update", [round(x, 2) for x in torch.func.vmap(after)(rates).tolist()])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="fewer updates")
    torch.set_num_threads(1)  # a second one costs models of this size more than it brings
    main(*((40,) if parser.parse_args().short else ()))
