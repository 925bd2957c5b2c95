"""What a branch, and a step of a loop, cost the host program of a compiled model.

Times a chain of scalar kernels with and without a branch around each of them, and a loop that runs
one of them; prints nanoseconds per branch (`branch_ns`) and per step of the loop.

    python scripts/time_branches.py [--count N]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import tilewright as tw
from tilewright.ir.plan import KernelCall
from tilewright.ir.program import parse_program

__all__ = ["branch_ns", "step_ns"]


def _chain(count: int, branches: bool) -> str:
    lines = ["program chain format 1(x: f32[8], c: bool[]):"]
    last = "x"
    for k in range(count):
        if branches:
            lines += [
                f"  y{k}: f32[8] = if c:", f"    a{k}: f32[i<8] = scan sum(i) {last}[i]",
                f"    yield a{k}", "  else:", f"    b{k}: f32[i<8] = {last}[i] + 1.0",
                f"    yield b{k}",
            ]  # fmt: skip
        else:
            lines.append(f"  y{k}: f32[i<8] = scan sum(i) {last}[i]")  # never fused with the next
        last = f"y{k}"
    kept = ", ".join(f"y{k}" for k in range(count))  # results are stored: no kernel disappears
    return "\n".join([*lines, f"  return {kept}", ""])


def _median_ns(run: Callable[[], object], repeat: int = 400) -> float:
    for _ in range(20):
        run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times)


def _walk_ns(text: str, *arrays: Any) -> tuple[float, int]:
    """Time of a call, and how many kernels it runs."""
    model = tw.compile(parse_program(text), threads=1, reuse_outputs=True)
    taken = sum(isinstance(s, KernelCall) for s in model.latest.plan.steps)
    return _median_ns(lambda: model(*arrays)), taken


def branch_ns(count: int = 48) -> float:
    """Nanoseconds of a branch beyond the kernel that it runs."""
    x, c = np.ones(8, np.float32), np.asarray(True)
    with_branches, twice = _walk_ns(_chain(count, True), x, c)
    without, kernels = _walk_ns(_chain(count, False), x, c)
    per_kernel = without / max(kernels, 1)
    return (with_branches - per_kernel * twice / 2) / count


def step_ns(count: int = 1000) -> float:
    """Nanoseconds of a step of a loop with a condition, its kernel included."""
    text = f"""program loop format 1(x: f32[8], n: i64[]):
  s: f32[8] = while t<{count}:
    carry h: f32[8] = x
    a: f32[i<8] = h[i] * 0.5
    more: bool[] = t[] < n[]
    next a if more
  return s
"""
    time_ns, _ = _walk_ns(text, np.ones(8, np.float32), np.asarray(count))
    return time_ns / count


def main() -> None:
    """Print both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=48, help="branches in the chain")
    options = parser.parse_args()
    print(f"branch_ns: {branch_ns(options.count):.1f}")
    print(f"loop step (kernel, condition and copy): {step_ns():.1f} ns")


if __name__ == "__main__":
    main()
