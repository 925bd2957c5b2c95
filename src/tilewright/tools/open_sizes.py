"""What a size that is left open costs: one model for a range of it, against a build for each size.

In: rows of a suite, the dim that is left open, sizes to call with. Out: for each the time of the
open model over that of a build for this size alone. Invariants: both are untuned, give the same
numbers, and are timed in turns on the same arrays.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import tilewright as tw
from tilewright.frontend.notation import parse_notation
from tilewright.tools import wiring
from tilewright.tools.suite import OpenSize, Workload, aligned_empty, input_specs, make_inputs

__all__ = ["loss_of", "losses"]

_ROUNDS = 11
_BURST_S = 20e-3
_AGREE = 1e-4


def losses(
    rows: Sequence[Workload], cases: Sequence[OpenSize], threads: int, note: Callable[[str], None]
) -> dict[str, float]:
    """`row dim=size` -> time of the open model over that of the exact one.

    Errors: ValueError where the two disagree, or a case names no row.
    """
    known = {row.name: row for row in rows}
    out: dict[str, float] = {}
    for case in cases:
        if case.row not in known:
            raise ValueError(f"no row {case.row} for the open size {case.dim}")
        for name, value in loss_of(known[case.row], case, threads).items():
            out[name] = value
            note(f"{name}: {value:.3f} of the build for this size")
    return out


def loss_of(workload: Workload, case: OpenSize, threads: int) -> dict[str, float]:
    """One case of `losses`."""
    out: dict[str, float] = {}
    weights: Mapping[str, Any] = {}
    some = replace(workload, dims={**workload.dims, case.dim: case.sizes[0]})
    if workload.constants:
        given = make_inputs(some, input_specs(some), 0)
        weights = {n: given[n] for n in workload.constants}
    with tw.config(symbolic="always"):
        open_model = tw.compile(_program(some, case.dim, weights), threads=threads)
    for size in case.sizes:
        exact = replace(workload, dims={**workload.dims, case.dim: size})
        inputs = make_inputs(exact, input_specs(exact), 0)
        arrays = [inputs[n] for n in inputs if n not in weights]
        with tw.config(symbolic="never"):
            model = tw.compile(_program(exact, "", weights), threads=threads)
        got, want = _outputs(open_model(*arrays)), _outputs(model(*arrays))
        for a, b in zip(got, want, strict=True):
            if not np.allclose(a, b, rtol=_AGREE, atol=_AGREE, equal_nan=True):
                raise ValueError(f"{case.row} with {case.dim}={size}: the two builds disagree")
        out[f"{case.row} {case.dim}={size}"] = _ratio(open_model, model, arrays, want)
    return out


def _program(workload: Workload, left_open: str, weights: Mapping[str, Any]) -> Any:
    program = parse_notation(workload.text)
    known = {d.name for d in program.dims} - {left_open}
    program = program.bind({n: v for n, v in workload.dims.items() if n in known})
    return wiring.with_constants(program, weights) if weights else program


def _outputs(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple | list) else [found]


def _ratio(a: Any, b: Any, arrays: Sequence[Any], results: Sequence[Any]) -> float:
    """Median over rounds of a's time over b's, both writing into the same outputs."""
    out = tuple(aligned_empty(x.shape, x.dtype) for x in results)
    given = out[0] if len(out) == 1 else out

    def burst(model: Any, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            model(*arrays, out=given)
        return (time.perf_counter() - start) / calls

    once = min(burst(b, 1) for _ in range(3))
    calls = max(1, int(_BURST_S / max(once, 1e-7)))
    burst(a, calls)
    ratios = []
    for k in range(_ROUNDS):
        pair = {m: burst(m, calls) for m in ((a, b) if k % 2 else (b, a))}
        ratios.append(pair[a] / pair[b])
    return statistics.median(ratios)
