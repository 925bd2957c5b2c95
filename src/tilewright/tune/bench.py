"""Measure candidates in a process of their own, paired with the default schedule.

In: a kernel with its inputs, built candidates. Out: a `Timing` or a `Rejected` for each.
Invariants: a candidate that crashes, hangs, writes outside its buffers or computes something else
than the reference is a `Rejected`, and the others are measured all the same; a ratio compares
timings of one window, round by round.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.codegen.llvm import chunk_count, function_name, scratch_bytes
from tilewright.errors import Rejected
from tilewright.ir import expr as E
from tilewright.ir.kernel import Kernel
from tilewright.lower.kernel import Lowered
from tilewright.runtime.wire import Worker, WorkerDied
from tilewright.verify.policy import FACTOR, UNIT_ROUNDOFF

__all__ = ["CRASH", "HANG", "WRONG", "Bench", "Built", "Job", "Timing", "paired_ratio"]

log = logging.getLogger("tilewright.tune")
Array = np.ndarray[Any, np.dtype[Any]]

CRASH, HANG, WRONG = "T003", "T004", "V001"
_JOB_S = 120.0
_PATIENCE_S = 3.0  # a candidate may take this long beyond `_TIMES` times the reference
_TIMES = 30
_INEXACT = 1e-3  # share of integer results that rounding of floats may turn over


@dataclass(frozen=True)
class Built:
    """A candidate ready to load."""

    lowered: Lowered
    data: bytes


@dataclass(frozen=True)
class Timing:
    """Nanoseconds per call, round by round, and the reference's of the same rounds."""

    samples_ns: tuple[float, ...]
    reference_ns: tuple[float, ...]

    @property
    def ns(self) -> float:
        return statistics.median(self.samples_ns)

    @property
    def ratio(self) -> float:
        """Reference time over this time: above 1, this is faster."""
        return paired_ratio(self.reference_ns, self.samples_ns)


def paired_ratio(reference: Sequence[float], mine: Sequence[float]) -> float:
    """Median of the ratios of paired samples."""
    pairs = [a / b for a, b in zip(reference, mine, strict=False) if b > 0]
    return statistics.median(pairs) if pairs else 0.0


@dataclass
class Job:
    """One kernel to measure: its arrays by tensor name (inputs and constants, logical)."""

    kernel: Kernel
    threads: int
    arrays: Mapping[str, Array]
    reference: Built
    tolerance: Mapping[str, float] = field(default_factory=dict)  # relative to the largest value

    def frame(self) -> tuple[dict[str, Any], bytes]:
        """What the worker needs to set up the buffers."""
        constants = {t.name for t, _ in self.kernel.program.constants}
        results = set(self.kernel.program.results)
        buffers: list[dict[str, Any]] = []
        parts: list[bytes] = []
        for name, layout in self.kernel.layouts:
            dtype = self.kernel.program.tensors[name].dtype
            b: dict[str, Any] = {"name": name, "dtype": dtype.name, "count": layout.size}
            if name in self.arrays:
                b["role"] = "constant" if name in constants else "input"
                array = np.ascontiguousarray(self.arrays[name])
                b |= {"stored": array.size, "shape": list(layout.shape), "layout": str(layout)}
                parts.append(array.tobytes())
            else:
                assert name in results or self.kernel.sequence or self.kernel.scatter
                b |= {"role": "output", "fill": float(layout.fill) if layout.halo else None}
            buffers.append(b)
        return {"do": "job", "threads": self.threads, "buffers": buffers}, b"".join(parts)

    def candidate(self, number: int, built: Built) -> dict[str, Any]:
        """The header that loads a candidate."""
        low = built.lowered
        constants = {t.name for t, _ in self.kernel.program.constants}
        slots: list[tuple[str, str, Any]] = []
        for b in low.nest.buffers:
            if b.place == "scratch":
                continue
            if b.name in self.kernel.layout_of:
                layout = low.layouts.get(b.name, self.kernel.layout_of[b.name])
                kind = "constant" if b.name in constants else "tensor"
                slots.append((b.name, kind, str(layout)))
            else:
                slots.append((b.name, "workspace", [b.dtype.name, E.int_value(b.size)]))
        phases = [
            (function_name(low.nest, p), chunks)
            for p in range(len(low.nest.phases))
            if (chunks := chunk_count(low.nest, p, {}))
        ]
        return {
            "do": "load", "id": number, "slots": slots, "phases": phases,
            "scratch": scratch_bytes(low.nest, {}),
        }  # fmt: skip

    def judge(self, outputs: Mapping[str, tuple[float, float, int]]) -> str:
        """Empty where the outputs agree with the reference's, else what is wrong."""
        for name, (error, scale, strange) in outputs.items():
            t = self.kernel.program.tensors[name]
            count = self.kernel.layout_of[name].size
            allowed = self.tolerance.get(name, default_tolerance(self.kernel, name)) * scale
            if t.dtype.is_float:
                if strange:
                    return f"{name}: {strange} of {count} elements are not finite, or no longer"
                if error > allowed:
                    return f"{name} is off by {error:.3g}, allowed {allowed:.3g}"
            elif strange > (count * _INEXACT if has_floats(self.kernel) else 0):
                return f"{name}: {strange} of {count} elements differ"
        return ""


def has_floats(kernel: Kernel) -> bool:
    return any(t.dtype.is_float for t in kernel.program.tensors.values())


def default_tolerance(kernel: Kernel, name: str) -> float:
    """How far apart two right results may lie, relative to the largest value, without an oracle."""
    dtype = kernel.program.tensors[name].dtype
    if not dtype.is_float:
        return 0.0
    terms = 1.0
    for d in kernel.definitions.values():
        if d.reduction is not None:
            terms *= max(1, int(np.prod([kernel.extents[a.name] for a in d.reduction.axes])))
    unit = UNIT_ROUNDOFF[dtype.name]
    rough = UNIT_ROUNDOFF["f64" if dtype.name == "f64" else "f32"]
    return 2 * FACTOR * max(8 * unit, rough * float(np.sqrt(min(terms, 1e8))))


class Bench:
    """The measuring process, started when it is needed and again after it died."""

    def __init__(self, module: str = "tilewright.tune.bench_worker") -> None:
        self._module = module
        self._worker: Worker | None = None
        self._job: Job | None = None
        self._reference_ns = 0.0
        self._loaded: dict[int, Built] = {}
        self._next = 1
        self.first_ns = 0.0  # the first run of the candidate loaded last

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None
        self._job, self._loaded = None, {}

    def start(self, job: Job) -> Rejected | None:
        """Make `job` the one that is measured. A `Rejected` is the reference's own."""
        if self._job is job and self._worker is not None:
            return None
        self._loaded = {}
        self._job = job
        return self._set_up()

    def _set_up(self) -> Rejected | None:
        job = self._job
        assert job is not None
        try:
            if self._worker is None:
                self._worker = Worker(self._module)
            self._ask(*job.frame(), timeout_s=_JOB_S)
            header = self._load(0, job.reference, _JOB_S)
        except WorkerDied as died:
            self._worker = None
            return _died(died)
        if "outside" in header:
            return Rejected(WRONG, f"writes behind buffer {header['outside']}")
        self._reference_ns = float(header["first_ns"])
        for number, built in list(self._loaded.items()):
            self._load(number, built, self._limit_s)
        return None

    @property
    def _limit_s(self) -> float:
        return _PATIENCE_S + _TIMES * self._reference_ns * 1e-9

    def _ask(
        self, header: dict[str, Any], body: bytes = b"", *, timeout_s: float
    ) -> tuple[dict[str, Any], bytes]:
        assert self._worker is not None
        self._worker.send(header, body)
        return self._worker.receive(timeout_s)

    def _load(self, number: int, built: Built, timeout_s: float) -> dict[str, Any]:
        assert self._job is not None
        header = self._job.candidate(number, built)
        return self._ask(header, built.data, timeout_s=timeout_s)[0]

    def load(self, built: Built) -> int | Rejected:
        """Load and check one candidate; its number, for `rounds`."""
        job, number = self._job, self._next
        assert job is not None
        self._next += 1
        if self._worker is None and (refused := self._set_up()) is not None:
            return refused
        try:
            answer = self._load(number, built, self._limit_s)
        except WorkerDied as died:
            self._worker = None
            return _died(died)
        if "outside" in answer:
            self.close_worker()
            return Rejected(WRONG, f"writes behind buffer {answer['outside']}")
        self.first_ns = float(answer["first_ns"])
        if wrong := job.judge(answer["outputs"]):
            return Rejected(WRONG, wrong)
        self._loaded[number] = built
        return number

    def close_worker(self) -> None:
        """End the process but keep the job: what was written outside may be anything."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def rounds(
        self, numbers: Sequence[int], seconds: float, *, least: int = 3, most: int = 1000,
        drop: float = 0.0,
    ) -> dict[int, Timing | Rejected]:  # fmt: skip
        """Time loaded candidates against the reference, interleaved.

        drop: leave out, after a few rounds, what is slower than the best by more than this factor.
        """
        if self._worker is None and (refused := self._set_up()) is not None:
            return dict.fromkeys(numbers, refused)
        header = {
            "do": "rounds", "ids": [0, *numbers], "seconds": seconds, "least": least,
            "most": most, "drop": drop, "patience": _PATIENCE_S,
        }  # fmt: skip
        limit = seconds + _PATIENCE_S + self._limit_s * (1 + len(numbers))
        try:
            answer, _ = self._ask(header, timeout_s=limit)
        except WorkerDied as died:
            self._worker = None
            if len(numbers) <= 1:
                return dict.fromkeys(numbers, _died(died))
            out: dict[int, Timing | Rejected] = {}
            for k in numbers:
                out |= self.rounds([k], seconds / len(numbers), least=least, most=most)
                if isinstance(out[k], Rejected):
                    self._loaded.pop(k, None)
            return out
        samples = {int(k): tuple(s) for k, s in answer["samples"].items()}
        return {k: Timing(samples[k], samples[0][: len(samples[k])]) for k in numbers}

    def reference(self, seconds: float, least: int = 3) -> tuple[float, ...] | Rejected:
        """Samples of the reference alone."""
        header = {
            "do": "rounds", "ids": [0], "seconds": seconds, "least": least, "most": 1000,
            "drop": 0.0, "patience": _PATIENCE_S,
        }  # fmt: skip
        try:
            answer, _ = self._ask(header, timeout_s=seconds + _PATIENCE_S + self._limit_s)
        except WorkerDied as died:
            self._worker = None
            return _died(died)
        return tuple(answer["samples"]["0"])

    def forget(self, numbers: Sequence[int]) -> None:
        """Unload candidates."""
        for k in numbers:
            self._loaded.pop(k, None)
        if self._worker is not None:
            try:
                self._ask({"do": "forget", "ids": list(numbers)}, timeout_s=_JOB_S)
            except WorkerDied:
                self._worker = None

    def outputs(self) -> dict[str, Array] | Rejected:
        """What the reference computed, by tensor."""
        job = self._job
        assert job is not None
        try:
            header, body = self._ask({"do": "outputs"}, timeout_s=_JOB_S)
        except WorkerDied as died:
            self._worker = None
            return _died(died)
        out, at = {}, 0
        for name in header["names"]:
            layout = job.kernel.layout_of[name]
            dtype = job.kernel.program.tensors[name].dtype.np
            flat = np.frombuffer(body, dtype, layout.size, at)
            at += flat.nbytes
            plain = layout.is_row_major
            out[name] = flat.reshape(layout.shape) if plain else layout.unpack(flat)
        return out


def _died(died: WorkerDied) -> Rejected:
    if died.timed_out:
        return Rejected(HANG, "no answer in time")
    log.debug("the measuring process died: %s", died.detail)
    return Rejected(CRASH, died.signal_name or died.detail)
