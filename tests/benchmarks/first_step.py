"""Print the seconds of the first step of a compiled `functrain.optim.AdamW`: the child of face_adamw."""

from __future__ import annotations

import argparse

from tests.benchmarks.face_adamw import TREES, ours
from tests.benchmarks.timing import first_call

parser = argparse.ArgumentParser()
parser.add_argument("tree", choices=TREES)
parser.add_argument("--small", action="store_true")
args = parser.parse_args()

print(first_call(ours(*TREES[args.tree].leaves(args.small), compile=True).step))
