"""The table of docs/peers.md: `python -m tests.interop.peer_table --write` measures it again.

A cell is made from what `peers.py` found, by the functions here and nothing else. A cell with several parts has what
the trainer does by default, then what it does with a setting that its manual offers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.interop.peers import FLIPS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "peers.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
TITLES = {
    "functrain": "functrain",
    "lightning": "Lightning",
    "transformers": "Transformers",
    "accelerate": "Accelerate",
}
ROWS = {
    "window": "WIN-1: ten batches of gradient 1, four an update, rate 1: an epoch moves the weight by",
    "samples": "ACC-2: mean losses of three samples and of one, an update; as one batch it is 1.0",
    "tokens": "ACC-2: mean losses of three tokens and of one, the rest masked; as one batch it is 1.0",
    "shuffled": "RES-1: a shuffled run, resumed in mid-epoch",
    "augmented": "RES-1: the same, with noise that the dataset draws",
    "end": "RES-1: with the noise, resumed at an epoch's end",
    "nan": "NAN-1: a batch is NaN",
    "flips": f"CKPT-4: a bit of a weight is flipped in the file, {FLIPS} times",
    "modes": "EVAL-1: a BatchNorm that was put into eval mode trains, before a validation and after it",
    "stop": "SIG-1: SIGTERM in the fifth update",
}


def measure(name: str, folder: Path) -> dict[str, str]:
    """The column of a trainer, by the keys of its rows: its program is run, in processes of its own."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    command = [sys.executable, "-W", "ignore", "-m", "tests.interop.peers", name, str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return column(json.loads(ended.stdout))


def column(found: dict[str, Any]) -> dict[str, str]:
    return {
        "window": f"{found['window']:.1f}",
        "samples": by_way({way: f"{moved:.1f}" for way, moved in found["samples"].items()}),
        "tokens": by_way({way: f"{moved:.1f}" for way, moved in found["tokens"].items()}),
        **{case: by_way({w: resumed(x) for w, x in ways.items()}) for case, ways in found["resume"].items()},
        "nan": by_way({way: after_nan(x) for way, x in found["nan"].items()}),
        "flips": damaged(found["flips"]),
        "modes": "has no validation" if found["modes"] is None else modes(*found["modes"]),
        "stop": by_way({way: stopped(x) for way, x in found["stop"].items()}),
    }


def by_way(results: dict[str, str]) -> str:
    return "; ".join(f"`{way}`: {result}" if way else result for way, result in results.items())


def resumed(found: dict[str, bool]) -> str:
    told = ", and a warning" if found["told"] else ""
    if not found["samples"]:
        return f"other samples{told}"
    return ("exact" if found["weights"] else "same samples, other weights") + told


def after_nan(found: dict[str, Any]) -> str:
    raised = f"`{found['error']}`" if found["error"] else "no error"
    log = ", losses in its log finite" if found["log"] else ""
    return f"{raised}, weights {'finite' if found['finite'] else 'NaN'}{log}"


def damaged(found: dict[str, int]) -> str:
    words = {"wrong": "wrong weights, no error", "right": "right weights"}
    return ", ".join(f"{count} × {words.get(what, f'`{what}`')}" for what, count in sorted(found.items()))


def modes(before: bool, after: bool) -> str:
    words = ["in training mode" if training else "in eval mode" for training in (before, after)]
    return f"{words[0]} in both" if before == after else f"{words[0]}, then {words[1]}"


def stopped(found: dict[str, Any]) -> str:
    status = found["status"]
    return f"{'saved' if found['saved'] else 'nothing saved'}, {'killed' if status < 0 else f'exit {status}'}"


def table(columns: dict[str, dict[str, str]]) -> str:
    return markdown({f"{title} {version(name)}": columns[name] for name, title in TITLES.items()}, ROWS)


def markdown(columns: dict[str, dict[str, str]], rows: dict[str, str]) -> str:
    """Columns by their titles, with the rows in this order, under these names."""
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[text, *(column[row] for column in columns.values())] for row, text in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("|  |", "| |")


def committed(name: str) -> dict[str, str]:
    """The column of a trainer as it is in the page."""
    place = list(TITLES).index(name) + 1
    lines = [line.strip("| \n").split(" | ") for line in inside().splitlines()[2:]]
    return {row: line[place] for row, line in zip(ROWS, lines, strict=True)}


def inside() -> str:
    return PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        places = [Path(folder, name) for name in TITLES]
        for place in places:
            place.mkdir()
        columns = dict(zip(TITLES, pool.map(measure, TITLES, places), strict=True))
    page = PAGE.read_text("utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    new = before + BEGIN + table(columns) + END + after
    if "--write" in sys.argv:
        PAGE.write_text(new, "utf-8")
    print(table(columns), end="")


if __name__ == "__main__":
    main()
