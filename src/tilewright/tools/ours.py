"""Our own side of a benchmark row: compiled untuned and tuned, bound, in a process of its own.

In: a workload, threads, a tuning budget. Out: the entries `ours` and `untuned`, and what compiling
cost. Invariant: this process cannot import another framework, so nothing of theirs runs in our
timings.
"""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.tools import wiring
from tilewright.tools.peers import BoundCall, Entry
from tilewright.tools.suite import (
    aligned_copy,
    aligned_empty,
    bound_program,
    input_specs,
    load_arrays,
    make_inputs,
    model_file,
)

if TYPE_CHECKING:
    from tilewright.tools.suite import Workload

__all__ = ["FORBIDDEN", "Ours", "forbid_frameworks", "model_of"]

FORBIDDEN = ("torch", "onnxruntime", "openvino", "jax", "tensorflow")


def forbid_frameworks() -> None:
    """Make every import of another framework fail in this process."""
    for name in FORBIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]


def model_of(workload: Workload) -> Any:
    """What `tilewright.compile` gets: a Program with its constants, or a loaded ONNX file."""
    if workload.model:
        return wiring.load_model(model_file(workload))
    program = bound_program(workload)
    everything = make_inputs(workload, input_specs(workload), seed=1)
    return wiring.with_constants(program, {name: everything[name] for name in workload.constants})


def dims_of(workload: Workload, model: Any) -> dict[str, int] | None:
    """Sizes for the model's own symbolic dims, in the order in which its inputs name them."""
    if not workload.model:
        return None
    program = wiring.program_of(model)
    shapes = {name: shape for name, (shape, _) in input_specs(workload).items()}
    dims: dict[str, int] = {}
    for tensor in program.inputs:
        for size, given in zip(tensor.shape, shapes[tensor.name], strict=True):
            if not str(size).isdigit():
                dims[str(size)] = given
    return dims


class Ours:
    """The side `ours` of a worker process."""

    def __init__(self) -> None:
        self.workload: Workload | None = None
        self.model: Any = None
        self.latest: Any = None  # what was compiled last
        self.threads = 1

    def version(self) -> str:
        return wiring.version()

    def prepare(
        self, workload: Workload, threads: int, copies: int, target: str | None = None
    ) -> tuple[Entry, dict[str, Any]]:
        """Compile with default schedules; no record of any database takes part."""
        self.workload, self.threads, self.target = workload, threads, target
        # By the setting, so that what is compiled can be run with fewer threads too.
        wiring.use_threads(threads)
        started = time.perf_counter()
        self.model = model_of(workload)
        with tempfile.TemporaryDirectory(prefix="tilewright-untuned-") as folder:
            compiled = wiring.compile_model(
                self.model,
                dims=dims_of(workload, self.model),
                tune=0.0,
                threads=None,
                target=target,
                db=Path(folder) / "empty.sqlite",
            )
        given = make_inputs(workload, input_specs(workload), seed=1)
        compiled.run({spec.name: given[spec.name] for spec in compiled.input_specs})
        first_s = time.perf_counter() - started
        self.latest = compiled
        return self._bind(compiled, copies), {**self._stats(compiled), "first_result_s": first_s}

    def tune(
        self, budget_s: float, db: Path, copies: int, tell: Callable[[Any], None]
    ) -> tuple[Entry, dict[str, Any]]:
        """Compile again within a tuning budget."""
        assert self.workload is not None
        compiled = wiring.compile_model(
            self.model,
            dims=dims_of(self.workload, self.model),
            tune=budget_s,
            threads=None,
            target=self.target,
            db=db,
            on_event=tell,
        )
        self.latest = compiled
        return self._bind(compiled, copies), self._stats(compiled)

    def fresh(self, copies: int) -> Entry:
        """What was compiled last, called so that every result is a new array."""
        assert self.workload is not None
        given = make_inputs(self.workload, input_specs(self.workload), seed=1)
        compiled, calls = self.latest, []
        for _ in range(copies):
            inputs = {spec.name: aligned_copy(given[spec.name]) for spec in compiled.input_specs}
            last: list[Any] = [None]

            def call(inputs: Any = inputs, last: Any = last) -> None:
                last[0] = compiled.run(inputs)

            calls.append(BoundCall(call, inputs, lambda last=last: last[0]))  # type: ignore[misc]
        return Entry(calls, "fresh", f"{self.threads} threads", keep=compiled)

    def _stats(self, compiled: wiring.CompiledModel) -> dict[str, Any]:
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {**wiring.work(compiled), **compiled.stats, "peak_rss_bytes": peak_kb * 1024}

    def _bind(self, compiled: wiring.CompiledModel, copies: int) -> Entry:
        import numpy as np

        assert self.workload is not None
        given = make_inputs(self.workload, input_specs(self.workload), seed=1)
        calls = []
        for _ in range(copies):
            inputs = {}
            for spec in compiled.input_specs:
                inputs[spec.name] = aligned_copy(given[spec.name])
            fresh = compiled.run(inputs)
            outputs = [aligned_empty(array.shape, array.dtype) for array in fresh]
            for array in outputs:
                array[...] = np.zeros((), array.dtype)
            call = compiled.bind(list(inputs.values()), outputs)
            calls.append(BoundCall(call, inputs, lambda outputs=outputs: outputs))  # type: ignore[misc]
        return Entry(calls, "bound", f"{self.threads} threads", keep=compiled)


class Oracle:
    """The side `oracle`: what the Program means, and the verdict on what the others computed."""

    def prepare(self, workload: Workload) -> None:
        self.workload = workload
        self.model = model_of(workload)
        self.expected: dict[int, Any] = {}
        self.bilinear = wiring.is_bilinear(self.model, dims_of(workload, self.model))

    def judge(self, seed: int, candidates: dict[str, str]) -> dict[str, Any]:
        """Compare output files (`.npz` by position) of each candidate with the oracle.

        Returns name -> ok, max_err, allowed_err, detail of its worst output.
        """
        if seed not in self.expected:
            everything = make_inputs(self.workload, input_specs(self.workload), seed)
            inputs = {n: a for n, a in everything.items() if n not in self.workload.constants}
            self.expected = {seed: wiring.oracle(self.model, inputs)}
        verdicts: dict[str, Any] = {}
        for name, path in candidates.items():
            outputs = load_arrays(path)
            expected = self.expected[seed]
            found = wiring.compare(self.model, outputs, expected, bilinear=self.bilinear)
            worst = max(found, key=_badness)
            verdicts[name] = {
                "ok": all(verdict.ok for verdict in found),
                "max_err": worst.max_err if math.isfinite(worst.max_err) else None,
                "allowed_err": worst.allowed_err,
                "detail": "" if worst.ok else f"{worst.name}: {worst.detail}",
            }
        return verdicts


def _badness(verdict: wiring.Verdict) -> tuple[bool, float]:
    return not verdict.ok, verdict.max_err / (verdict.allowed_err or 1e-300)
