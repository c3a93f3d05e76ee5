"""The table of README.md beside other libraries: `python -m tests.interop.comparison --write` measures it again.

Each library answers the same questions by running; an error is a no. Lightning trains with torch.optim, so it is asked
about its Trainer alone. What runs nothing, in `STATED`, is checked by names that the library has.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torchopt
from torch.func import grad, vmap

import functrain as ft
from tests.interop.peer_table import committed as beside
from tests.interop.peer_table import markdown

PAGE = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- comparison -->\n", "<!-- end of comparison -->\n"
ROWS = {
    "named": "functions or classes that make an optimizer of a rate",
    "pure": "an update leaves its arguments as they were",
    "composed": "clipping, Adam, and decay of matrices alone as one expression",
    "hyper": "differentiates a loss by the learning rate, through three updates",
    "rates": "Adam at eight learning rates in one `vmap`",
    "face": "is a `torch.optim.Optimizer`, for schedulers, GradScaler, Lightning",
    "digits": "relative error of Adam's first ten updates in float32",
    "implicit": "implicit differentiation: of a solution, without its updates",
    "laws": "property tests for a rule of your own",
    "loop": "a training loop, with accumulation, AMP and checkpoints",
    "resumed": "its shuffled, augmented run, resumed in mid-epoch",
    "sparse": "sparse gradients",
    "devices": "several devices",
}
OPTIMIZERS = ("named", "pure", "composed", "hyper", "rates", "face", "digits")  # the rows that are asked
STATED = {
    "functrain": {"implicit": "no", "laws": "yes", "loop": "yes", "sparse": "no", "devices": "no"},
    "torch": {"implicit": "no", "laws": "no", "loop": "no", "sparse": "yes", "devices": "yes"},
    "optax": {"implicit": "no", "laws": "no", "loop": "no", "sparse": "no", "devices": "yes, JAX's"},
    "torchopt": {"implicit": "yes", "laws": "no", "loop": "no", "sparse": "no", "devices": "yes, by RPC"},
    "lightning": {"implicit": "no", "laws": "no", "loop": "yes", "sparse": "as torch.optim", "devices": "yes"},
}
START, SLOPE, RATE = np.array([[1.0, -2.0], [3.0, 0.5]]), np.array([[3.0, 1.0], [-2.0, 4.0]]), 0.1
RATES = [10.0**-k for k in range(8)]


def by_hand(n: int) -> np.ndarray:
    """START after n updates: SLOPE clipped to norm 1, Adam, decay 0.1. Both moments of a constant gradient are it."""
    p, g = START, SLOPE / np.linalg.norm(SLOPE)
    for _ in range(n):
        p = p - RATE * (np.sign(g) + 0.1 * p)
    return p


def slope(after: Callable[[float], Any], h: float = 1e-4) -> float:
    """The central difference at RATE; a smaller h would show that torch.optim counts its updates in float32."""
    return (after(RATE + h) - after(RATE - h)).item() / (2 * h)


def same(xs: Any, ys: Any, within: float = 1e-4) -> bool:
    return np.allclose(np.asarray(xs), np.asarray(ys), rtol=within, atol=within)


class Functrain:
    """And what the libraries of `init`/`update` pairs have in common."""

    library: Any = ft
    title, rate = "functrain", "learning_rate"
    grad, vmap = staticmethod(grad), staticmethod(vmap)
    how: ClassVar[dict[str, Any]] = {}  # arguments of every update and application

    def array(self, x: Any) -> Any:
        return torch.tensor(x, dtype=torch.float64)

    def run(self, tx: Any, params: Any, gradient: Callable[[Any], Any], n: int) -> Any:
        state = tx.init(params)
        for _ in range(n):
            updates, state = tx.update(gradient(params), state, params=params, **self.how)
            params = self.library.apply_updates(params, updates, **self.how)
        return params

    def chained(self, mask: Callable[[Any], Any]) -> Any:
        return self.library.chain(
            self.library.clip_by_global_norm(1.0),
            self.library.scale_by_adam(),
            self.library.add_decayed_weights(0.1, mask=mask),
            self.library.scale_by_learning_rate(RATE),
        )

    def named(self) -> str:
        """How many functions take a rate alone and make what goes down, further at a larger rate."""
        every = vars(getattr(self.library, "contrib", self.library)) | vars(self.library)
        return str(sum(self.descends(x) for name, x in every.items() if not name.startswith(("_", "scale_by"))))

    def descends(self, factory: Any) -> bool:
        one = self.array([1.0])
        try:
            with warnings.catch_warnings(action="ignore"):  # of what a library will change
                ends = [float(self.run(factory(**{self.rate: r}), one, lambda p: one, 2)[0]) for r in (1e-2, 1e-3)]
        except Exception:  # what makes no optimizer fails in its own way
            return False
        return ends[0] < ends[1] < 1.0

    def pure(self) -> str:
        return "yes" if self.leaves_alone(self.library.sgd(RATE, momentum=0.9)) else "no"

    def leaves_alone(self, tx: Any, **how: Any) -> bool:
        params, gradient = self.array(START), self.array(SLOPE)
        tx.update(gradient, tx.init(params), params=params, **how)
        return same(params, START) and same(gradient, SLOPE)

    def composed(self) -> bool:
        tx = self.chained(lambda params: {"w": True, "b": False})
        slopes = {"w": self.array(SLOPE), "b": self.array([0.0])}
        end = self.run(tx, {"w": self.array(START), "b": self.array([1.0])}, lambda params: slopes, 5)
        return same(end["w"], by_hand(5)) and float(end["b"][0]) == 1.0

    def after(self, rate: Any) -> Any:
        """Σp⁴ after three updates of Adam, by the rate."""
        return (self.run(self.library.adam(rate), self.array(START), lambda p: 4 * p**3, 3) ** 4).sum()

    def hyper(self) -> bool:
        return same(self.grad(self.after)(self.array(RATE)), slope(self.after))

    def rates(self) -> bool:
        return same(self.vmap(self.after)(self.array(RATES)), [float(self.after(rate)) for rate in RATES])

    def face(self) -> bool:
        return isinstance(ft.create_optimizer("adam", [torch.ones(1)]), torch.optim.Optimizer)

    def single(self, x: list[float]) -> Any:
        return torch.tensor(x)

    def digits(self) -> str:
        """Of a gradient that is 1 both moments are, and the update is -rate / (1 + ε)."""
        tx, zero, worst = self.library.adam(1.0), self.single([0.0]), 0.0
        state = tx.init(zero)
        for _ in range(10):
            updates, state = tx.update(self.single([1.0]), state, params=zero)
            worst = max(worst, abs(float(updates[0]) * (1 + 1e-8) + 1))
        return order(worst)


def order(error: float) -> str:
    """The power of ten that an error is below."""
    return f"below 1e{math.floor(math.log10(error)) + 1}"


class Optax(Functrain):
    library, title = optax, "Optax"
    grad, vmap = staticmethod(jax.grad), staticmethod(jax.vmap)

    def array(self, x: Any) -> Any:
        return jnp.asarray(x, jnp.float64)

    def single(self, x: list[float]) -> Any:
        return jnp.asarray(x, jnp.float32)

    def face(self) -> bool:
        return False

    def digits(self) -> str:
        with jax.enable_x64(False):  # as it comes
            return super().digits()


class TorchOpt(Functrain):
    library, title, rate = torchopt, "TorchOpt", "lr"
    how: ClassVar[dict[str, Any]] = {"inplace": False}

    def chained(self, mask: Callable[[Any], Any]) -> Any:
        return torchopt.chain(
            torchopt.clip.clip_grad_norm(1.0),
            torchopt.transform.scale_by_adam(),
            torchopt.transform.add_decayed_weights(0.1, mask=mask),
            torchopt.transform.scale(-RATE),
        )

    def pure(self) -> str:
        tx = torchopt.sgd(RATE, momentum=0.9)
        by_default, asked = self.leaves_alone(tx), self.leaves_alone(tx, inplace=False)
        return f"{'yes' if by_default else 'no'}; `inplace=False`: {'yes' if asked else 'no'}"

    def face(self) -> bool:
        return issubclass(torchopt.Adam, torch.optim.Optimizer)


class Torch:
    title = "torch.optim"

    def named(self) -> str:
        classes = [c for c in vars(torch.optim).values() if isinstance(c, type)]
        return str(sum(issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer for c in classes))

    def pure(self) -> bool:
        params = torch.tensor(START, requires_grad=True)
        params.grad = torch.tensor(SLOPE)
        torch.optim.SGD([params], lr=RATE, momentum=0.9).step()
        return same(params.detach(), START)

    def composed(self) -> str:
        return "groups, and a call"

    def after(self, rate: Any) -> Any:
        p = torch.tensor(START, requires_grad=True).clone()
        optimizer = torch.optim.Adam([p], lr=rate, differentiable=True)
        for _ in range(3):
            p.grad = 4 * p.clone() ** 3
            optimizer.step()
        return (p**4).sum()

    def hyper(self) -> bool:
        rate = torch.tensor(RATE, dtype=torch.float64, requires_grad=True)
        return same(torch.autograd.grad(self.after(rate), rate)[0], slope(self.after))

    def rates(self) -> bool:
        return same(vmap(self.after)(torch.tensor(RATES)), [float(self.after(rate)) for rate in RATES])

    def face(self) -> bool:
        return True

    def digits(self) -> str:
        p, worst = torch.zeros(1, requires_grad=True), 0.0
        optimizer = torch.optim.Adam([p], lr=1.0)
        for _ in range(10):
            p.data.zero_()  # so that the parameter becomes the update
            p.grad = torch.ones(1)
            optimizer.step()
            worst = max(worst, abs(p.item() * (1 + 1e-8) + 1))
        return order(worst)


class Lightning:
    title = "Lightning"

    def __getattr__(self, row: str) -> Callable[[], str]:
        if row not in OPTIMIZERS:
            raise AttributeError(row)
        return lambda: "as torch.optim"


LIBRARIES = {
    "functrain": Functrain(),
    "torch": Torch(),
    "optax": Optax(),
    "torchopt": TorchOpt(),
    "lightning": Lightning(),
}


def measure(name: str) -> dict[str, str]:
    """The column of a library, by the keys of its rows."""
    column = {}
    with jax.enable_x64(True):
        for row in OPTIMIZERS:
            try:
                found = getattr(LIBRARIES[name], row)()
            except RuntimeError:  # what torch raises where a transform cannot go
                found = False
            column[row] = found if isinstance(found, str) else "yes" if found else "no"
    resumed = beside(name)["augmented"] if name in ("functrain", "lightning") else "has none"
    return {row: (column | STATED[name] | {"resumed": resumed})[row] for row in ROWS}


def table() -> str:
    titles = {name: f"{library.title} {version(name).partition('+')[0]}" for name, library in LIBRARIES.items()}
    return markdown({title: measure(name) for name, title in titles.items()}, ROWS)


def main() -> None:
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    text = table()
    print(text)
    if "--write" in sys.argv:
        PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2], "utf-8")


if __name__ == "__main__":
    main()
