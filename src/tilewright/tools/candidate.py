"""What one candidate of the search costs: lower, emit, build and link a matmul with tails.

In: nothing. Out: CPU milliseconds of the whole, and of Python's part (lowering and printing), as
medians over sizes that no cache has seen. Invariant: everything runs in this one process, so its
CPU clock sees all of it, with LLVM's options as build workers set them; the first kernel, which
starts LLVM and takes the same way through the compiler, is not counted.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

__all__ = ["main", "measure"]

# Prime sizes: every axis has a tail, and both operands are packed.
_PRIMES = (457, 461, 463, 467, 479, 487, 491, 499, 503, 509, 521, 523, 541, 547, 557)
_SIZES = tuple(zip(_PRIMES, _PRIMES[5:] + _PRIMES[:5], _PRIMES[10:] + _PRIMES[:10], strict=True))
_TEXT = """program matmul(a: f32[{m}, {k}], b: f32[{k}, {n}]):
  c: f32[i<{m}, j<{n}] = sum(k<{k}) a[i, k] * b[k, j]
  return c
"""


def measure() -> tuple[float, float]:
    """(whole, Python's part) in CPU milliseconds, measured in a fresh process."""
    command = [sys.executable, "-P", "-m", "tilewright.tools.candidate"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    whole, python = json.loads(output)
    return float(whole), float(python)


def _one(size: tuple[int, int, int]) -> tuple[float, float]:
    from tilewright.codegen.llvm import emit_llvm
    from tilewright.group.plan import plan_program
    from tilewright.ir.program_parser import parse_program
    from tilewright.machine.target import Target
    from tilewright.runtime.build import emit_object
    from tilewright.runtime.collection import no_collection
    from tilewright.runtime.jit import load_object
    from tilewright.runtime.link import lower_kernel
    from tilewright.schedule.kernel_space import space_of

    target = Target.native()
    m, n, k = size
    plan, _ = plan_program(parse_program(_TEXT.format(m=m, n=n, k=k)), target)
    kernel = max(plan.kernels, key=lambda kernel: len(str(kernel)))
    schedule = space_of(kernel, target).default()
    started = time.process_time()
    with no_collection():  # as compiler and tuner do
        text = emit_llvm(lower_kernel(kernel, schedule, target).nest, target)
    python = time.process_time()
    load_object(emit_object(text, target))
    return (time.process_time() - started) * 1e3, (python - started) * 1e3


def main() -> None:
    """Print the two medians as JSON."""
    from tilewright.runtime.build import set_kernel_options

    set_kernel_options()
    _one((257, 269, 263))
    costs = [_one(size) for size in _SIZES]
    whole, python = (statistics.median(column) for column in zip(*costs, strict=True))
    print(json.dumps([whole, python]))


if __name__ == "__main__":
    main()
