"""The programs of examples/, and how each is run: short by the tests, in full by `make examples`.

    python -m tests.programs [NAME ...]           # in full, below runs/
    python -m tests.programs --pictures           # those that draw, and docs/pictures/ gets what they drew

Every program takes `--short`, and writes below runs/ in the current folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from typing import NamedTuple

from tests.example import EXAMPLES
from tests.pages import PICTURES, ROOT

LIKE_TORCHS = r"functrain.s lion .* weights differ from torch\.optim.s by \d\.\de[-+]\d\d"


class Program(NamedTuple):
    """A program, by its path below examples/ without the suffix."""

    name: str
    ends: str  # a regular expression for the last line that its short run prints
    picture: str = ""  # the file below runs/ that its page shows under the program's name
    short: tuple[str, ...] = ("--short",)  # arguments of a run of seconds; none where the full run is one

    @property
    def stem(self) -> str:
        return self.name.rpartition("/")[2]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(EXAMPLES / f"{self.name}.py"), *arguments]


PROGRAMS = (
    Program("callbacks", r"validation loss 0\.\d{3}"),
    Program("char_lm", r"validation loss 3\.\d{3}"),
    Program("compose_transforms", r"missed most: [\w-]+, without which the loss is \d\.\d{3} higher"),
    Program(
        "custom_loop",
        r"branches: \d+\.\d% with the rate held, \d+\.\d% with the rate cooled",
        "custom_loop/custom_loop.png",
    ),
    Program("drop_in_torch", r"as_transform: loss after an update \[.*\]"),
    Program(
        "ensemble_digits",
        r"best rate 0\.\d+: loss \d\.\d{3} where it was chosen, \d+\.\d% of the test digits",
        "ensemble_digits/ensemble_digits.png",
    ),
    Program(
        "experiments/from_scratch_vs_torch_vs_functrain",
        r"after 20 updates at most \de-1\d in float64, \de-0\d in float32",
        "from_scratch_vs_torch_vs_functrain/from_scratch_vs_torch_vs_functrain.png",
    ),
    Program("experiments/loggers", r"least validation loss: .*: best lr=0\.03", "loggers/loggers.png"),
    Program(
        "experiments/mixed_precision",
        r"(bf16|fp16): \d+\.\d\d of fp32's time, \d\.\d\d of its memory, loss [+-]\d\.\d{4}: "
        r"it saves (time|memory|time and memory|nothing)",
        "mixed_precision/mixed_precision.png",
    ),
    Program(
        "experiments/sweep",
        r"36 networks in one step: \d\.\d+ of the time of a loop over them",
        "sweep/sweep.png",
    ),
    Program(
        "finetune_transformers",
        r"12% of the weights trained: \d\.\d+ -> \d\.\d+; the others are bitwise what they were",
    ),
    Program(
        "hypergradient",
        r"test loss \d\.\d+ with one learned rate, \d\.\d+ with 10",
        "hypergradient/hypergradient.png",
    ),
    Program("interop_accelerate", LIKE_TORCHS, short=()),
    Program("interop_lightning", LIKE_TORCHS, short=()),
    Program("interop_transformers", LIKE_TORCHS, short=()),
    Program(
        "maml_sine",
        r"one update from MAML's weights: \d\.\d+; ten from pretrained ones: \d\.\d+",
        "maml_sine/maml_sine.png",
    ),
    Program(
        "private_sgd", r"ε = 0\.62 at δ = 0\.0001 costs -?\d+\.\d points of accuracy", "private_sgd/private_sgd.png"
    ),
    Program(
        "property_test_my_rule",
        r"found: pure: overwriting\(0\.1\) writes to leaf 'mean' of state with aten\.copy_\.default",
    ),
    Program("resume_after_kill", r"all 30 leaves of the two states are equal, bit for bit"),
)


def main(arguments: list[str]) -> int:
    """Run programs in full; the exit status is that of the first that failed."""
    chosen = {name for name in arguments if not name.startswith("-")}
    only_pictures = "--pictures" in arguments
    for program in PROGRAMS:
        if (chosen and program.stem not in chosen) or (only_pictures and not program.picture):
            continue
        print(f"--- {program.name}", flush=True)
        began = time.perf_counter()
        if status := subprocess.run(program.command(), cwd=ROOT).returncode:
            print(f"{program.name}: exit status {status}", file=sys.stderr)
            return status
        print(f"--- {program.name}: {time.perf_counter() - began:.0f} s", flush=True)
        if only_pictures:
            shutil.copyfile(ROOT / "runs" / program.picture, PICTURES / f"{program.stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
