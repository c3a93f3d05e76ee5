"""The table of docs/torch_face.md: torch's formulas, the chains they are here, and how far the two are apart.

python -m tests.torch_table              # print it; seconds
python -m tests.torch_table --write      # and write it into the page, between its two markers
"""

from __future__ import annotations

import argparse
import copy
import datetime
import platform
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from functrain import optim
from functrain.base import GradientTransformation
from functrain.bridge.face import Face
from functrain.record import show
from tests.benchmarks.__main__ import processor
from tests.bridge.faces import ROWS, Row, distance, gradients, parameters, trajectory

PAGE = Path(__file__).parents[1] / "docs" / "torch_face.md"
BEGIN, END = "<!-- written by python -m tests.torch_table --write -->", "<!-- end of what it writes -->"
STEPS = 30

FORMULAS = {
    "SGD": ("b ← μ b + (1 - d) g, at first g", "p ← p - η b"),
    "Adam": ("p ← p - η m̂ / (√v̂ + ε)",),
    "AdamW": ("p ← (1 - η λ) p - η m̂ / (√v̂ + ε)",),
    "Adamax": ("v ← max(β₂ v, |g| + ε)", "p ← p - η m̂ / v"),
    "NAdam": (
        "μₜ = β₁ (1 - 0.96^(t ψ) / 2)",
        "n = μₜ₊₁ m / (1 - μ₁…μₜ₊₁) + (1 - μₜ) g / (1 - μ₁…μₜ)",
        "p ← p - η n / (√v̂ + ε)",
    ),
    "RAdam": ("p ← p - η r m̂ √(1 - β₂ᵗ) / (√v + ε) if ρ > 5", "p ← p - η m̂ before"),
    "RMSprop": ("v ← α v + (1 - α) g²", "b ← μ b + g / (√v + ε)", "p ← p - η b"),
    "Adagrad": ("s ← s + g²", "p ← p - η / (1 + (t - 1) γ) g / (√s + ε)"),
    "Adadelta": ("G ← ρ G + (1 - ρ) g²", "u = g √(X + ε) / √(G + ε)", "X ← ρ X + (1 - ρ) u²", "p ← p - η u"),
    "Rprop": ("Δ ← η⁺ Δ where g keeps its sign", "Δ ← η⁻ Δ, g ← 0 where it turns", "p ← p - sign(g) Δ"),
    "ASGD": ("p ← (1 - λ η) p - η g", "η ← γ / (1 + λ γ t)^α"),
    "Adafactor": (
        "V = R C / mean R, R and C running means of g² over rows and columns",
        "û = g / √V, α = max(ε₂, rms p) min(η, 1/√t)",
        "p ← (1 - η λ) p - α û / max(1, rms û / d)",
    ),
    "Muon": ("m ← μ m + (1 - μ) g", "X = (1 - μ) g + μ m, made orthogonal", "p ← (1 - η λ) p - η s X"),
    "LBFGS": ("H from the last changes of p and g", "p ← p - η H g, several times"),
}
LETTERS = """\
η is `lr`, λ is `weight_decay`, (β₁, β₂) are `betas`, ε is `eps`, and t counts updates from 1; in ASGD γ is `lr` and λ
`lambd`. Where they are not told otherwise, m ← β₁ m + (1 - β₁) g and v ← β₂ v + (1 - β₂) g², and a hat divides by
1 - βᵗ. Weight decay that is not in a formula comes before it: g ← g + λ p. A chain has the names of the class's
arguments, and where an argument chooses between formulas, what its default chooses. LBFGS runs the core of a rule."""
METHOD = """\
- What is measured: ‖a - b‖ / ‖b‖ of each parameter after {steps} steps, a ours and b torch's in its loop over single
  tensors, and of all those the largest.
- Configurations: all that PyTorch tests the class with on a CPU, from `torch.testing._internal.common_optimizers`.
- Parameters: a number, a vector, a matrix and a kernel in two groups with values of their own; for Muon four matrices.
- Gradients: normal numbers; now and then none, zeros, or tiny ones. LBFGS descends a bowl.
- Machine: {processor}, {system}. Python {python}, torch {torch}, {date}."""


class Distance(NamedTuple):
    """How far a class is from torch's."""

    configurations: int
    float64: float
    float32: float


# --- what a class stands for


class Named(float):
    """A number that prints as the expression it came from."""

    name: str

    def __new__(cls, name: str, value: float) -> Named:
        made = super().__new__(cls, value)
        made.name = name
        return made

    def __repr__(self) -> str:
        return self.name

    def __neg__(self) -> Named:
        return Named(f"-{self.name}", -float(self))

    def __mul__(self, other: Any) -> Named:
        return Named(f"{self.name} * {other}", float(self) * float(other))


def named(name: str, value: Any) -> Any:
    """A value of a group that prints as its name; a zero is another number, so that no part is switched off."""
    if isinstance(value, tuple):
        return tuple(named(f"{name}[{i}]", x or 0.5) for i, x in enumerate(value))
    return Named(name, value or 0.5) if isinstance(value, int | float) and not isinstance(value, bool) else value


def parts(tx: GradientTransformation) -> Iterator[str]:
    """The expressions in a chain, and in chains in it; less the identity, and a counter that torch's state has."""
    if tx.spec is None or show(tx.spec.factory) == "identity":
        return
    if show(tx.spec.factory) == "chain":
        for part in tx.spec.args:
            assert isinstance(part, GradientTransformation)
            yield from parts(part)
        return
    text = re.sub(r", \((\w+)\[0\](, \1\[\d\])+\)", r", \1", show(tx))  # a tuple that is one argument
    yield re.sub(r"(\w+)\[0\](, \1\[\d\])+", r"*\1", text)  # a tuple that is several


def chain_of(row: Row) -> list[str]:
    """What is chained in the pure rule that a class stands for, in the names of the class's arguments."""
    if row.closure:
        return ["torch_lbfgs(lr, …)"]
    optimizer = row.ours(parameters(row.shapes, torch.float32))
    assert isinstance(optimizer, Face)
    static = optimizer.traits.static
    values = {
        name: x if name in static and isinstance(x, int) else named(name, x) for name, x in optimizer.defaults.items()
    }
    return list(parts(optimizer.rule(**values)))


# --- how far it is from torch


def apart(row: Row, options: dict[str, Any], dtype: torch.dtype) -> float:
    """The greatest distance of a parameter from torch's, after the steps."""
    ends = []
    for make in (row.ours, row.reference):
        params = parameters(row.shapes, dtype)
        optimizer = make(row.grouped(params, options), **copy.deepcopy(options))
        ends.append(trajectory(row, optimizer, params, gradients(row.shapes, dtype, STEPS))[-1])
    return max(distance(a, b) for a, b in zip(*ends, strict=True))


def configurations(row: Row) -> list[dict[str, Any]]:
    return [given.kwargs for given in row.info.optim_inputs_func(device="cpu")]


def furthest(row: Row, dtype: torch.dtype) -> float:
    """The greatest over all configurations."""
    return max(apart(row, options, dtype) for options in configurations(row))


def measure(row: Row) -> Distance:
    return Distance(len(configurations(row)), furthest(row, torch.float64), furthest(row, torch.float32))


# --- the table


def figure(x: float) -> str:
    return f"{x:.0e}" if x else "0"


def line(row: Row, found: Distance) -> str:
    """A row of the table."""
    formula = "<br>".join(f"`{text}`".replace("|", r"\|") for text in FORMULAS[row.name])
    ours = "<br>".join(f"`{part}`" for part in chain_of(row))
    figures = f"{figure(found.float64)} | {figure(found.float32)} | {found.configurations}"
    return f"| {row.name} | {formula} | {ours} | {figures} |"


def table() -> str:
    """What is between the markers."""
    rows = "\n".join(line(row, measure(row)) for row in ROWS)
    method = METHOD.format(
        steps=STEPS, processor=processor(), system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(), torch=version("torch"), date=datetime.date.today().isoformat(),
    )  # fmt: skip
    return (
        "| class | torch's formula | the chain here | float64 | float32 | configurations |\n"
        f"|---|---|---|---|---|---|\n{rows}\n\n{LETTERS}\n\n{method}"
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m tests.torch_table", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} too")
    write = parser.parse_args().write
    made = table()
    print(made)
    if write:
        before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        assert end, f"{PAGE} lacks a marker"
        PAGE.write_text(f"{before}{begin}\n\n{made}\n\n{end}{after}", encoding="utf-8")
        print(f"written: {PAGE}")


if __name__ == "__main__":
    assert list(FORMULAS) == [row.name for row in ROWS]
    assert set(FORMULAS) == set(optim.__all__)
    main()
