"""The process in which candidates run: it may crash or hang, its parent does not.

In: frames of `tune.bench`: a job (buffers of one kernel), objects to load, rounds to time. Out:
nanoseconds, and how far an output is from the one of the reference candidate (number 0).
Invariant: nothing of a candidate runs before it was asked for by number, so its parent knows whom
to blame; candidates write into their own outputs, with marked memory behind every buffer.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from typing import Any

import numpy as np

from tilewright.ir.dtypes import DTYPES
from tilewright.ir.layout import Layout
from tilewright.runtime.context import Memory
from tilewright.runtime.jit import LoadedObject, load_object
from tilewright.runtime.pool import Step, StepTable
from tilewright.runtime.wire import Header, serve

__all__ = ["difference", "main", "place"]

Array = np.ndarray[Any, np.dtype[Any]]
_GUARD_BYTES = 4096
_MARK = 0xA5
_UNWRITTEN = 0xAB  # what an output holds before it is written
_BLOCK = 1 << 20
_WINDOW_NS = 100_000  # calls are timed in groups that take at least this long
_MOST_CALLS = 256
_PACKED_BYTES = 1 << 30  # of constants in the layouts that candidates want


class Buffer:
    """Memory of one tensor, followed by marked bytes."""

    def __init__(self, count: int, dtype: np.dtype[Any]) -> None:
        self.count, self.dtype = count, dtype
        size = count * dtype.itemsize
        self._memory = Memory(size + _GUARD_BYTES)
        self.address = self._memory.address
        raw = self._memory.array(size + _GUARD_BYTES, np.dtype(np.uint8))
        self.bytes = raw[:size]
        self.data = self.bytes.view(dtype)
        self._guard = raw[size:]
        self._guard[:] = _MARK

    def is_intact(self) -> bool:
        return bool((self._guard == _MARK).all())


def place(layout: Layout, array: Array, fill: Array | None = None) -> Array:
    """`layout.pack(array)` by one strided copy where the layout splits axes into digits."""
    flat = np.full(layout.size, layout.fill, array.dtype) if fill is None else fill
    shape: list[int] = []
    strides: list[int] = []
    padded: list[tuple[int, int]] = []
    for axis, n in enumerate(layout.shape):
        terms = sorted((t for t in layout.terms if t.axis == axis), key=lambda t: -t.divisor)
        above = 0
        total = 1
        for k, t in enumerate(terms):
            if k == 0:
                if t.modulus:
                    return _pack_slowly(layout, array, flat)
                extent = -(-n // t.divisor)
            else:
                if t.modulus != above:
                    return _pack_slowly(layout, array, flat)
                extent = t.modulus // t.divisor
            above = t.divisor
            shape.append(extent)
            strides.append(t.stride)
            total *= extent
        if (terms and above != 1) or (not terms and n != 1):
            return _pack_slowly(layout, array, flat)
        padded.append((0, total - n))
    whole = np.pad(array, padded) if any(p for _, p in padded) else array
    last = layout.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if array.size == 0 or last >= layout.size:
        return _pack_slowly(layout, array, flat)
    view = np.lib.stride_tricks.as_strided(
        flat[layout.offset :], shape, [s * array.itemsize for s in strides]
    )
    view[...] = whole.reshape(shape)
    return flat


def _pack_slowly(layout: Layout, array: Array, flat: Array) -> Array:
    flat[layout.addresses()] = array
    return flat


def difference(want: Array, got: Array) -> tuple[float, float, int]:
    """(largest |want - got| among finite elements, largest |want|, elements of another kind).

    For integers the third number counts the elements that differ.
    """
    if np.array_equal(want.view(np.uint8), got.view(np.uint8)):
        return 0.0, 0.0, 0
    error, scale, strange = 0.0, 0.0, 0
    for k in range(0, want.size, _BLOCK):
        a, b = want[k : k + _BLOCK], got[k : k + _BLOCK]
        if a.dtype.kind in "iub":
            strange += int((a != b).sum())
            continue
        if a.dtype.itemsize < 4:
            a, b = a.astype(np.float32), b.astype(np.float32)
        with np.errstate(all="ignore"):
            gap = np.abs(a - b)
            fine = np.isfinite(gap)
            if fine.all():
                error = max(error, float(gap.max()))
                scale = max(scale, float(np.abs(a).max()))
                continue
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            strange += int((~fine & ~same).sum())
            error = max(error, float(gap[fine].max(initial=0.0)))
            scale = max(scale, float(np.abs(a[np.isfinite(a)]).max(initial=0.0)))
    return error, scale, strange


class Candidate:
    """Code that was loaded, bound to the buffers of the job."""

    def __init__(self, job: Job, header: Header, data: bytes) -> None:
        self.loaded: LoadedObject = load_object(data)
        self.is_reference = header["id"] == 0
        self.slots = job.slots(header, self.is_reference)
        self.args = (ctypes.c_uint64 * max(1, len(self.slots)))(*(b.address for b in self.slots))
        at = ctypes.addressof(self.args)
        self.steps = [
            Step(self.loaded.address(symbol), at, chunks, chunks <= 1)
            for symbol, chunks in header["phases"]
        ]
        self.job, self.scratch_bytes = job, int(header["scratch"])
        self.once = self._table(1)
        self.calls = 1
        self.table = self.once

    def _table(self, calls: int) -> StepTable:
        return StepTable(self.steps * calls, self.job.threads, scratch_bytes=self.scratch_bytes)

    def repeat(self, calls: int) -> None:
        """From now on one timing is of `calls` calls in a row."""
        if calls != self.calls:
            self.calls, self.table = calls, self._table(calls)

    def time_ns(self) -> float:
        started = time.perf_counter_ns()
        self.table.run()
        return (time.perf_counter_ns() - started) / self.calls


class Job:
    """The buffers of one kernel, and the candidates loaded for it."""

    def __init__(self, header: Header, body: bytes) -> None:
        self.threads = int(header["threads"])
        self.tensors: dict[str, Buffer] = {}
        self.outputs: dict[str, tuple[Buffer, Buffer]] = {}  # of the reference, of all others
        self.constants: dict[str, Array] = {}
        self.packed: dict[tuple[str, str], Buffer] = {}
        self.workspace: dict[str, Buffer] = {}
        self.candidates: dict[int, Candidate] = {}
        self.calls = 0  # per timing; known after the reference ran
        self._fills: dict[str, float | None] = {}
        at = 0
        for b in header["buffers"]:
            dtype, name, count = DTYPES[b["dtype"]].np, b["name"], int(b["count"])
            if b["role"] == "output":
                self.outputs[name] = (Buffer(count, dtype), Buffer(count, dtype))
                self._fills[name] = b["fill"]
                for side in self.outputs[name]:
                    self._clear(name, side)
                continue
            stored = int(b["stored"])
            given = np.frombuffer(body, dtype, stored, at)
            at += stored * dtype.itemsize
            if b["role"] == "constant":
                self.constants[name] = given
            else:
                self.tensors[name] = buffer = Buffer(count, dtype)
                layout = Layout.parse(b["layout"])
                if layout.halo:
                    buffer.data[:] = layout.fill
                place(layout, given.reshape(b["shape"]), buffer.data)

    def _clear(self, name: str, buffer: Buffer) -> None:
        fill = self._fills[name]
        if fill is None:
            buffer.bytes[:] = _UNWRITTEN
        else:
            buffer.data[:] = fill

    def slots(self, header: Header, is_reference: bool) -> list[Buffer]:
        out = []
        for name, kind, detail in header["slots"]:
            if kind == "workspace":
                dtype, count = DTYPES[detail[0]].np, int(detail[1])
                known = self.workspace.get(name)
                if known is None or known.bytes.size < count * dtype.itemsize:
                    known = self.workspace[name] = Buffer(count, dtype)
                out.append(known)
            elif kind == "constant":
                out.append(self._packed(name, detail))
            elif name in self.outputs:
                out.append(self.outputs[name][0 if is_reference else 1])
            else:
                out.append(self.tensors[name])
        return out

    def _packed(self, name: str, text: str) -> Buffer:
        key = (name, text)
        if key not in self.packed:
            if sum(b.bytes.size for b in self.packed.values()) > _PACKED_BYTES:
                self.packed.clear()
            layout = Layout.parse(text)
            source = self.constants[name]
            buffer = Buffer(layout.size, source.dtype)
            buffer.data[:] = layout.fill
            place(layout, source.reshape(layout.shape), buffer.data)
            self.packed[key] = buffer
        return self.packed[key]

    def load(self, header: Header, data: bytes) -> Header:
        """Load one candidate, run it, and say how its outputs differ from the reference's."""
        candidate = Candidate(self, header, data)
        for name, sides in self.outputs.items():
            self._clear(name, sides[0 if candidate.is_reference else 1])
        started = time.perf_counter_ns()
        candidate.once.run()
        first_ns = time.perf_counter_ns() - started
        broken = [str(k) for k, b in enumerate(candidate.slots) if not b.is_intact()]
        if broken:
            return {"outside": ", ".join(broken)}
        outputs = {}
        if not candidate.is_reference:
            for name, (want, got) in self.outputs.items():
                outputs[name] = difference(want.data, got.data)
        else:
            each = max(1.0, min(candidate.time_ns() for _ in range(3)))
            self.calls = max(1, min(_MOST_CALLS, int(_WINDOW_NS / each) + 1))
        candidate.repeat(self.calls)
        self.candidates[header["id"]] = candidate
        return {"first_ns": first_ns, "outputs": outputs}

    def rounds(self, header: Header) -> Header:
        """Time candidates in turn, round after round; the slow ones drop out early."""
        ids: list[int] = header["ids"]
        seconds, least, most = header["seconds"], header["least"], header["most"]
        samples: dict[int, list[float]] = {k: [] for k in ids}
        active = list(ids)
        for k in active:
            if self.candidates[k].calls > 1:  # warm caches and branches before short timings count
                self.candidates[k].time_ns()
        end = time.perf_counter() + seconds
        last = end + header["patience"]
        done = 0
        while done < most:
            now = time.perf_counter()
            if (now >= last and done) or (now >= end and done >= least):
                break
            for k in active if done % 2 == 0 else reversed(active):
                samples[k].append(self.candidates[k].time_ns())
            done += 1
            if header["drop"] and done in (3, 6):
                best = min(min(samples[k]) for k in active)
                limit = best * (header["drop"] if done == 6 else 1.5 * header["drop"])
                active = [k for k in active if k == ids[0] or min(samples[k]) <= limit]
        return {"samples": {str(k): s for k, s in samples.items()}, "calls": self.calls}


class _Server:
    def __init__(self) -> None:
        self.job: Job | None = None

    def answer(self, header: Header, body: bytes) -> tuple[Header, bytes]:
        do = header["do"]
        if do == "job":
            self.job = None
            self.job = Job(header, body)
            return {}, b""
        job = self.job
        assert job is not None
        if do == "load":
            return job.load(header, body), b""
        if do == "rounds":
            return job.rounds(header), b""
        if do == "forget":
            for k in header["ids"]:
                job.candidates.pop(k, None)
            return {}, b""
        if do == "outputs":
            parts = [sides[0].bytes.tobytes() for sides in job.outputs.values()]
            return {"names": list(job.outputs)}, b"".join(parts)
        return {"unknown": do}, b""


def _end_with_parent() -> None:
    """A candidate that hangs must not outlive a parent that was killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() == 1:
        os._exit(1)


def main(arguments: list[str]) -> None:
    """Serve until standard input closes. Ctrl-C is for the parent, which then stops asking."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    serve(_Server().answer)
