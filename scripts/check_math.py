"""Measure the errors and costs of `tilewright.codegen.mathlib` on this machine.

Usage: python scripts/check_math.py [--exhaustive | --every N] [--level L] [--dtype T] [NAME ...]
       python scripts/check_math.py --time [--level L] [--dtype T] [NAME ...]

Prints one Markdown row a function: inputs tried, largest error in ulp, the input where it occurs
and the stated bound. f32 is compared with libm in f64, f64 with libm in 80-bit arithmetic.
--exhaustive tries all 2^32 inputs of the f32 functions of one argument (two minutes each),
--every N each N-th of them; everything else gets a stratified sample. Exit status 1 if a bound is
exceeded. --time prints the cost instead: the best of many runs over 1024 elements, loads and
stores included.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.codegen.mathlib import MATH
from tilewright.codegen.mathlib.harness import (
    LEVELS,
    compile_loop,
    compile_reference,
    nanoseconds_per_element,
    sample,
    worst_error,
)

Array = NDArray[Any]
CHUNK = 1 << 20
PIECE = 1 << 14


@dataclass(frozen=True)
class Result:
    """The worst case of a function."""

    tried: int
    error: float
    arguments: tuple[float, ...]


def every_f32(step: int) -> Iterator[Array]:
    """Every `step`-th float32 bit pattern, in chunks that stay in the cache."""
    for start in range(0, 1 << 32, PIECE * step):
        patterns = np.arange(start, start + PIECE * step, step, dtype=np.uint64)
        yield patterns.astype(np.uint32).view(np.float32)


def check(name: str, dtype: str, level_name: str, step: int) -> Result:
    """Compare with the reference on every chunk."""
    level = LEVELS[level_name]
    arity = MATH[name].arity
    loop = compile_loop(name, dtype, level.lanes(dtype), level)
    reference = compile_reference(name, dtype)
    chunks: Iterator[tuple[Array, ...]]
    if step and dtype == "f32" and arity == 1:
        chunks = ((x,) for x in every_f32(step))
    else:
        chunks = (sample(dtype, CHUNK, arity, seed) for seed in range(4))
    tried, worst, where = 0, -1.0, tuple[float, ...]()
    for arguments in chunks:
        error, index = worst_error(name, dtype, loop, reference, arguments)
        tried += arguments[0].size
        if error > worst:
            worst, where = error, tuple(float(a[index]) for a in arguments)
    return Result(tried, worst, where)


def cost(name: str, dtype: str, level_name: str) -> float:
    """ns per element on moderate arguments."""
    level = LEVELS[level_name]
    real = np.float32 if dtype == "f32" else np.float64
    low, high = {"acosh": (1.0, 6.0), "asin": (0, 1), "acos": (0, 1), "atanh": (0, 1)}.get(
        name, (0.01, 5.0)
    )
    arguments = [
        np.random.default_rng(i).uniform(low, high, 1024).astype(real)
        for i in range(MATH[name].arity)
    ]
    return nanoseconds_per_element(name, dtype, level.lanes(dtype), level, tuple(arguments))


def main() -> int:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--exhaustive", dest="step", action="store_const", const=1, default=0)
    parser.add_argument("--every", dest="step", type=int, metavar="N")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--level", default="avx512", choices=[k for k in LEVELS if k != "aarch64"])
    parser.add_argument("--dtype", default="f32", choices=["f32", "f64"])
    options = parser.parse_args()
    names = options.names or list(MATH)
    if options.time:
        print("| function | type | level | ns/element |\n| --- | --- | --- | --- |")
        for name in names:
            spent = cost(name, options.dtype, options.level)
            print(f"| {name} | {options.dtype} | {options.level} | {spent:.2f} |", flush=True)
        return 0
    print("| function | type | level | inputs | max ulp | at | bound |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    failed = False
    for name in names:
        result = check(name, options.dtype, options.level, options.step)
        bound = MATH[name].ulp[options.dtype]
        failed |= result.error > bound
        at = ", ".join(f"{a!r}" for a in result.arguments)
        cells = [name, options.dtype, options.level, str(result.tried), f"{result.error:.3f}", at]
        print("| " + " | ".join([*cells, str(bound)]) + " |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
