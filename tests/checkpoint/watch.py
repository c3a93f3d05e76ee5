"""Read hostile files under watch: `python -m tests.checkpoint.watch FOLDER COUNT SEED`.

A process of its own, since an audit hook stays and a limit of memory binds all of it. A line is printed for each file
that is accepted, raises something else than CheckpointError, or has Python open, import, run or compile anything.
"""

from __future__ import annotations

import os
import random
import resource
import sys
from pathlib import Path

import torch

from functrain import checkpoint
from functrain.checkpoint import CheckpointError
from tests.checkpoint.files import sealed
from tests.checkpoint.hostile import attacks, right

ROOM = 128 << 20  # bytes of memory that reading may take; what the files claim is 2**31 and more


def main(folder: Path, count: int, seed: int) -> int:
    path, canary, problems = folder / "a.pt", folder / "canary", list[str]()
    draw = random.Random(seed)
    files = list(attacks(canary, draw, count))

    values = checkpoint.read(sealed(right(), path)).leaves["w"]  # imports whatever reading imports
    assert isinstance(values, torch.Tensor)
    assert values.tolist() == [0, 1, 2, 3, 4]
    checkpoint.verify(path)

    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    events, watching = set[str](), False

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and not (event == "open" and arguments[0] == str(path)):
            events.add(f"{event} {arguments}"[:200])

    sys.addaudithook(watch)
    for i, (what, content) in enumerate(files):
        wrong_seal = i % 20 == 19
        path.write_bytes(content) if wrong_seal else sealed(content, path)
        for look in (checkpoint.verify, checkpoint.read):
            watching = True
            try:
                look(path)
            except CheckpointError:
                pass
            except BaseException as error:
                problems.append(f"{what}: {look.__name__} raises {type(error).__name__}: {error}")
            else:
                problems.append(f"{what}: {look.__name__} accepts it")
            finally:
                watching = False
        problems += [f"{what}: {event}" for event in sorted(events)]
        events.clear()
    if canary.exists():
        problems.append("a canary is there: something ran")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    if grown > ROOM:
        problems.append(f"reading took {grown:,} bytes")
    print(*problems, f"{len(files)} files", sep="\n")
    return len(problems) > 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
