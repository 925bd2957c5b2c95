"""Candidates of one kernel, measured: what the isolated process is asked, what its answers mean.

In: a kernel with arrays for its inputs, built candidates. Out: a `Timing` or a `Rejected` for each.
Invariants: every candidate sees the same inputs as the reference, the default schedule, and is
refused (V001) where it computes something else; a ratio pairs timings of one window.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import tilewright.runtime.candidates as C
from tilewright.codegen.llvm import chunk_count, function_name, scratch_bytes
from tilewright.errors import Rejected
from tilewright.ir import expr as E
from tilewright.ir.kernel import Kernel
from tilewright.ir.layout import Layout
from tilewright.ir.nest import Buffer
from tilewright.lower.kernel import Lowered
from tilewright.runtime.link import without_denormals
from tilewright.runtime.measure import Measurer
from tilewright.verify.policy import FACTOR, UNIT_ROUNDOFF

__all__ = ["Bench", "Built", "Job", "Timing", "default_tolerance"]

Array = np.ndarray[Any, np.dtype[Any]]

_PATIENCE_S = 3.0  # a candidate may take this long beyond `_TIMES` times the reference
_TIMES = 30
_SAMPLE_S = 1e-4
_SCREEN, _SCREEN_SLOW = 2.0, 1.4  # how much slower a first run may be; from 20 ms on
_PRUNE = 1.15


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
    def pairs(self) -> list[float]:
        """Reference time over this time, round by round: above 1, this is faster."""
        return [a / b for a, b in zip(self.reference_ns, self.samples_ns, strict=False) if b > 0]

    @property
    def ratio(self) -> float:
        """Reference time over this time: the smaller of two estimates.

        The median of the pairs follows a machine that drifts; the ratio of the lower quartiles
        follows one on which other programs take turns, where half of the samples may be spoiled.
        """
        pairs = self.pairs
        return min(statistics.median(pairs), self.quiet_ratio) if pairs else 0.0

    @property
    def noise(self) -> float:
        """How far the ratio may be off, from how far its pairs lie apart."""
        pairs = sorted(self.pairs)
        if len(pairs) < 2:
            return 0.2
        n = len(pairs)
        middle = pairs[(3 * n) // 4 if n > 3 else -1] - pairs[n // 4 if n > 3 else 0]
        return max(0.005, middle / statistics.median(pairs) / math.sqrt(n))

    @property
    def quiet_ratio(self) -> float:
        """Ratio of the lower quartiles of both."""
        return _low(self.reference_ns) / max(1e-9, _low(self.samples_ns))


def _low(samples: Sequence[float]) -> float:
    ranked = sorted(samples)
    return ranked[(len(ranked) - 1) // 4]


class Job:
    """One kernel to measure: its arrays by tensor name (inputs and constants, logical). `cold`:
    tensors that a run finds in memory, not in a cache.
    """

    def __init__(
        self, kernel: Kernel, threads: int, arrays: Mapping[str, Array | C.Fill], reference: Built,
        cold: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.kernel, self.threads, self.reference = kernel, threads, reference
        self.cold = cold
        self._arrays = arrays
        self._data: dict[tuple[str, str], C.Fill] = {}
        self.reference_ns = 0.0

    @property
    def held_bytes(self) -> int:
        """Memory that the job holds."""
        held = sum(a.nbytes for a in self._arrays.values() if isinstance(a, np.ndarray))
        return held + sum(len(f.values) for f in self._data.values())

    def light(self) -> Job:
        """The job without its arrays."""
        return self.with_arrays({})

    def with_arrays(self, arrays: Mapping[str, Array | C.Fill]) -> Job:
        """The same job on (the same) arrays."""
        out = Job(self.kernel, self.threads, arrays, self.reference, self.cold)
        out.reference_ns = self.reference_ns
        return out

    def _packed(self, name: str, layout: Layout) -> C.Fill:
        key = (name, str(layout))
        given = self._arrays[name]
        if isinstance(given, C.Fill):
            return given
        if key not in self._data:
            # As the linker lays constants down: denormals would make every candidate look slow.
            array = without_denormals(given.reshape(layout.shape))
            flat = array.reshape(-1) if layout.is_row_major else layout.pack(array)
            self._data[key] = C.Fill("values", values=np.ascontiguousarray(flat).tobytes())
        return self._data[key]

    def array(self, name: str) -> Array:
        """The values of an input or constant."""
        given = self._arrays[name]
        if not isinstance(given, C.Fill):
            return given
        t, layout = self.kernel.program.tensors[name], self.kernel.layout_of[name]
        raw = C.buffer_values(C.Buffer(layout.size * t.dtype.bytes, "input", given))
        return raw.view(t.dtype.np).reshape(layout.shape)

    def _buffer(self, b: Buffer, low: Lowered) -> C.Buffer:
        size = (E.int_value(b.size) or 0) * b.dtype.bytes
        layout = self.kernel.layout_of.get(b.name)
        if layout is None:
            return C.Buffer(size, "scratch")
        is_cold = b.name in self.cold
        if b.name in self._arrays:
            layout = low.layouts.get(b.name, layout)
            return C.Buffer(size, "input", self._packed(b.name, layout), cold=is_cold)
        if layout.halo:  # the plan fills what lies around the tensor, once
            around = np.full(layout.size, layout.fill, b.dtype.np)
            fill = C.Fill("values", values=around.tobytes())
            return C.Buffer(size, "output", fill, cold=is_cold)
        return C.Buffer(size, "output", cold=is_cold)

    def candidate(self, built: Built) -> C.Candidate:
        """A candidate as the measuring process wants it."""
        low = built.lowered
        slots = [b for b in low.nest.buffers if b.place != "scratch"]
        args = tuple(range(len(slots)))
        steps = []
        for p in range(len(low.nest.phases)):
            chunks = chunk_count(low.nest, p, {})
            if chunks:
                name = function_name(low.nest, p)
                steps.append(C.CandidateStep(name, args, chunks=chunks, serial=chunks <= 1))
        buffers = tuple(self._buffer(b, low) for b in slots)
        scratch = scratch_bytes(low.nest, {})
        return C.Candidate((built.data,), tuple(steps), buffers, self.threads, scratch)

    def outputs(self) -> list[tuple[int, str]]:
        """(position, tensor) of the buffers that hold results; the same for every candidate."""
        slots = [b.name for b in self.reference.lowered.nest.buffers if b.place != "scratch"]
        wanted = self.kernel.program.results
        return [(slots.index(n), n) for n in dict.fromkeys(wanted) if n in slots]

    def logical(self, outputs: Mapping[int, bytes]) -> dict[str, Array]:
        """Results by tensor, out of their buffers."""
        out = {}
        for position, name in self.outputs():
            layout = self.kernel.layout_of[name]
            flat = np.frombuffer(outputs[position], self.kernel.program.tensors[name].dtype.np)
            is_plain = layout.is_row_major
            out[name] = flat.reshape(layout.shape) if is_plain else layout.unpack(flat)
        return out

    @property
    def moved_bytes(self) -> int:
        """Bytes of everything that crosses the kernel's border."""
        tensors = self.kernel.program.tensors
        return sum(layout.size * tensors[n].dtype.bytes for n, layout in self.kernel.layouts)

    def expected(self) -> list[C.Expected]:
        """Outputs equal the reference's, up to rounding."""
        out = []
        inexact = any(t.dtype.is_float for t in self.kernel.program.tensors.values())
        for position, name in self.outputs():
            dtype = self.kernel.program.tensors[name].dtype
            bound: float | None = None
            if dtype.is_float:
                bound = 1e-38
            elif inexact and dtype.bits > 1 and dtype.kind != "b":
                bound = 1.0  # what was rounded to an integer may fall to the other side
            tolerance = default_tolerance(self.kernel, name)
            out.append(C.Expected(position, dtype.np.name, None, bound, tolerance))
        return out


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
    """Asks the measuring process about candidates of jobs."""

    def __init__(self, measurer: Measurer | None = None) -> None:
        self._measurer = Measurer() if measurer is None else measurer
        self._slowdown = 1.0  # wall time over the time that candidates ran

    def start(self) -> None:
        """Start the process while other work is done. Errors: OSError."""
        self._measurer.start()

    def close(self) -> None:
        """End the process."""
        self._measurer.close()

    def baselines(
        self, jobs: Sequence[Job], seconds: float, *, with_outputs: bool
    ) -> list[tuple[Timing | Rejected, dict[str, Array]]]:
        """Time the references of several jobs, `seconds` each; what they compute, by tensor."""
        plan = C.Plan(
            rounds=3, sample_s=max(1e-4, seconds / 4), timeout_s=60, return_outputs=with_outputs
        )
        candidates = [job.candidate(job.reference) for job in jobs]
        out: list[tuple[Timing | Rejected, dict[str, Array]]] = []
        results = self._measurer.measure_batch(candidates, None, (), plan)
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Rejected):
                out.append((result, {}))
                continue
            timing = _timing(result, is_reference=True)
            job.reference_ns = timing.ns
            out.append((timing, job.logical(result.outputs) if with_outputs else {}))
        return out

    def measure(
        self, job: Job, candidates: Sequence[Built], seconds: float, *, least: int = 2,
        is_race: bool = True,
    ) -> list[Timing | Rejected]:  # fmt: skip
        """Check candidates, and time them against the reference for about `seconds`.

        is_race: those that are clearly slower than the best are timed no further.
        """
        each = 2e-9 * max(job.reference_ns, 1e9 * _SAMPLE_S) * max(1, len(candidates))
        rounds = max(least, min(41, math.ceil(seconds / each / self._slowdown)))
        started = time.monotonic()
        screen = _SCREEN if job.reference_ns < 2e7 else _SCREEN_SLOW
        plan = C.Plan(
            rounds=rounds, sample_s=_SAMPLE_S,
            prune=_PRUNE if is_race else None, screen=screen if is_race else None,
            timeout_s=_PATIENCE_S + _TIMES * 1e-9 * job.reference_ns,
        )  # fmt: skip
        found = self._measurer.measure_batch(
            [job.candidate(b) for b in candidates], job.candidate(job.reference), job.expected(),
            plan,
        )  # fmt: skip
        out = [r if isinstance(r, Rejected) else _timing(r) for r in found]
        ran = sum(sum(t.samples_ns) + sum(t.reference_ns) for t in out if isinstance(t, Timing))
        if ran > 5e7:  # on a busy machine there is time for fewer rounds
            now = min(10.0, max(1.0, (time.monotonic() - started) / (1e-9 * ran)))
            self._slowdown = 0.5 * (self._slowdown + now)
        return out


def _timing(t: C.Timing, *, is_reference: bool = False) -> Timing:
    mine = tuple(1e9 * s for s in t.seconds)
    others = mine if is_reference else tuple(1e9 * s for s in t.reference_seconds)
    return Timing(mine, others)
