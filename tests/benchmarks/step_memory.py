"""Peak memory of `ft.jit(step)` on a GPT of 31M parameters, against torch compiled with fused AdamW.

Each contender trains alone in a child process, once to fill the compiler's cache and once to be measured. This process
must stay small, and imports no torch.
"""

from __future__ import annotations

from tests.benchmarks.timing import Row, child, main

GOAL = 0.85


def run(small: bool) -> list[Row]:
    """The one row."""
    peaks: dict[str, float] = {}
    for name in ("jit", "compiled"):
        for _ in ("fill the cache", "measure"):
            peak = child("peak", name, *(["--small"] if small else []))
            assert isinstance(peak, float)
            peaks[name] = peak
    detail = f"jit {peaks['jit']:.0f} MB, compiled {peaks['compiled']:.0f} MB"
    what = "jit(step) / torch compiled with fused AdamW, GPT of 31M, peak memory"
    return [Row(what, peaks["jit"] / peaks["compiled"], GOAL, detail)]


if __name__ == "__main__":
    main(run)
