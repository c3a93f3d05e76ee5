"""Train with one contender and print the process's peak memory in megabytes: the child of step_memory."""

from __future__ import annotations

import argparse

from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.timing import peak_megabytes

parser = argparse.ArgumentParser()
parser.add_argument("name", choices=CONTENDERS)
parser.add_argument("--small", action="store_true")
args = parser.parse_args()

call = CONTENDERS[args.name](args.small)
for _ in range(10):
    call()
print(peak_megabytes())
