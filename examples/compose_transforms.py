"""An optimizer is an expression: it is built of parts, printed, looked into, changed in mid-run, and taken apart.

    python examples/compose_transforms.py        # half a minute on a CPU

The body of a network is trained by a chain of six named parts, two of them written here; its last layer by Lion, with
a rate that a program sets; and two batches make one update. With `torch.optim` this is a class to write. Then one part
after another is left out, to see what it was good for. All answers are means over networks that began with other
weights and are trained at once, by `torch.func.vmap`.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import functrain as ft


@ft.rule
def centralize() -> ft.GradientTransformation:
    """Subtract from each row of a matrix's gradient the row's mean (Yong et al., 2020, arXiv 2004.01461)."""
    return ft.stateless(lambda g, params: ft.tree.map(lambda g: g - g.mean(1, keepdim=True) if g.ndim == 2 else g, g))


@ft.rule
def cautious(inner: ft.GradientTransformation) -> ft.GradientTransformation:
    """Keep of a part's updates what has the sign of the gradient (Liang et al., 2024, arXiv 2411.16085).

    u ← u m / mean(m), where m = 1 if u g > 0, else 0
    """

    def agreeing(u: Tensor, g: Tensor) -> Tensor:
        m = (u * g > 0).to(u.dtype)
        return u * m / m.mean().clamp(min=1e-3)

    def update(g: object, state: object, params: object = None) -> tuple[object, object]:
        u, state = inner.update(g, state, params)
        return ft.tree.map(agreeing, u, g), state

    return ft.GradientTransformation(inner.init, update)


def is_matrix(path: str, p: Tensor) -> bool:
    return p.ndim == 2


def place(path: str, p: Tensor) -> str:
    return "head" if path.startswith("4.") else "body"


def parts(updates: int) -> dict[str, ft.GradientTransformation]:
    """What the body's gradient goes through, first to last."""
    return {
        "clip": ft.clip_by_global_norm(0.2),
        "centralize": centralize(),
        "adam": cautious(ft.scale_by_adam(b2=0.99)),
        "trust": ft.masked(ft.scale_by_trust_ratio(), ft.mask_by(is_matrix)),
        "decay": ft.add_decayed_weights(0.1, mask=ft.mask_by(is_matrix)),
        "rate": ft.scale_by_learning_rate(ft.schedules.warmup_cosine_decay_schedule(0, 0.04, updates // 10, updates)),
    }


def compose(body: dict[str, ft.GradientTransformation]) -> ft.GradientTransformation:
    """The whole optimizer."""
    head = ft.inject_hyperparams(ft.lion)(learning_rate=1e-3)
    return ft.MultiSteps(ft.partition({"body": ft.named_chain(*body.items()), "head": head}, ft.mask_by(place)), 2)


def train(tx: ft.GradientTransformation, batches: int, networks: int) -> tuple[ft.TrainState, Tensor]:
    """The stacked states after so many batches, and the test loss of each network, (networks,)."""
    pixels, labels = load_digits(return_X_y=True)
    draw, states = torch.Generator().manual_seed(0), []
    order = torch.randperm(len(labels), generator=draw)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    for seed in range(networks):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
        states.append(ft.TrainState.create(model := ft.functionalize(net), tx))
    loss, together = model.loss(F.cross_entropy), ft.tree.stack(states)
    step = torch.func.vmap(ft.train_step(loss, tx), in_dims=(0, None))
    for i in range(batches):
        if i == batches // 2:  # a state is a value: here is one with another rate of Lion's
            together = ft.tree.set(together, learning_rate=1e-4)  # the body's schedule goes on from its count
        chosen = torch.randint(300, (50,), generator=draw)  # of 300 digits to learn from; the others are for the test
        together, _ = step(together, (x[chosen], y[chosen]))
    return together, torch.func.vmap(lambda params: loss(params, (x[300:], y[300:])))(together.params)


def main(batches: int = 240, networks: int = 8) -> None:
    """Print the expression, look into its state, and leave out one part after another."""
    body = parts(batches // 2)
    together, losses = train(tx := compose(body), batches, networks)
    adam, lion = (ft.tree.get(together.opt_state, name) for name in ("adam", "head"))
    print(f"{tx}\n\nafter {batches} batches, in the state of the first of {networks} networks:")
    print(f"adam.count {adam.count[0]}, |adam.mu| {ft.tree.norm(ft.tree.unstack(adam.mu)[0]):.4f}", end=", ")
    print(f"Lion's learning_rate {ft.tree.get(lion, 'learning_rate')[0]:.4f}\n")

    variants = {name: {k: part for k, part in body.items() if k != name} for name in body if name != "rate"}
    variants["cautious"] = body | {"adam": ft.scale_by_adam(b2=0.99)}
    variants["schedule"] = body | {"rate": ft.scale_by_learning_rate(0.02)}
    print(f"left out    test loss    more, and its standard error\nnothing     {losses.mean():.3f}")
    more = {}
    for name, variant in variants.items():
        apart = train(compose(variant), batches, networks)[1] - losses  # the same weights at first, the same batches
        more[name] = apart.mean().item()
        print(f"{name:12}{losses.mean() + more[name]:.3f} {more[name]:+14.3f} ± {apart.std() / networks**0.5:.3f}")
    print(f"missed most: {max(more, key=more.__getitem__)}, without which the loss is {max(more.values()):.3f} higher")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="few batches, two networks")
    torch.set_num_threads(1)  # a second one costs networks of this size more than it brings
    main(*((20, 2) if parser.parse_args().short else ()))
