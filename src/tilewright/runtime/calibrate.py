"""Measure what this machine can do.

In: thread counts. Out: `Probes`, the seven peaks of one moment for the benchmark's windows, and
`measure_hardware`, the whole `HardwareDescriptor`; `hardware` keeps one per machine in the cache
folder.
Invariant: a rate is the best of several rounds, because other programs only ever slow a probe down;
all of it runs code of ours through the pool that kernels use.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.config import current
from tilewright.errors import UserError
from tilewright.machine.hardware import HardwareDescriptor, fingerprint
from tilewright.machine.target import Target
from tilewright.runtime.build import build
from tilewright.runtime.calibrate_text import probe_text, register_operations
from tilewright.runtime.call import ModelCall
from tilewright.runtime.context import ArrayType, Binding, PhaseCall, Slot
from tilewright.runtime.jit import load_object
from tilewright.runtime.pages import Memory
from tilewright.runtime.pool import Step, StepTable, num_threads

__all__ = ["WINDOW_PROBES", "Probes", "calibrate", "hardware", "measure_hardware", "probe"]

WINDOW_PROBES = (
    "fma_gflops", "f64_gflops", "bf16_gflops", "vnni_gops",
    "read_gbs", "copy_nt_gbs", "triad_nt_gbs",
)  # fmt: skip
_MEMORY_PROBES = {"read_gbs": 1, "copy_nt_gbs": 2, "triad_nt_gbs": 3, "copy_gbs": 2}  # -> arrays
_BLOCK_BYTES = 384 << 20  # far beyond any share of a last-level cache that one guest gets to keep
_CHUNK_BYTES = 256 << 10
_LINE = 64


class Probes:
    """The probes, loaded, with one block of memory that they all share."""

    def __init__(self, target: Target | None = None, block_bytes: int | None = None) -> None:
        self.target = Target.native() if target is None else target
        self._code = load_object(build(probe_text(self.target), self.target))
        if block_bytes is None:
            block_bytes = min(_BLOCK_BYTES, _available_bytes() // 4)
        granule = 6 * _CHUNK_BYTES  # whole chunks whether cut into one, two or three arrays
        self._memory = Memory(max(granule, block_bytes // granule * granule))
        ctypes.memset(self._memory.address, 0, self._memory.size)
        self._turns: dict[str, int] = {}

    def has(self, name: str) -> bool:
        """Whether this target has the unit that the register probe measures."""
        return register_operations(name, self.target) > 0

    def _step(
        self, name: str, chunks: int, n: int = 0, repeat: int = 1, arrays: Sequence[int] = ()
    ) -> tuple[Step, Any]:
        """A step, and its args, which must live as long."""
        pointers = [*arrays, *([self._memory.address] * (3 - len(arrays)))]
        args = (ctypes.c_int64 * 5)(*pointers, n, repeat)
        return Step(self._code.address(name), ctypes.addressof(args), chunks, grain=1), args

    def seconds(self, step: Step, threads: int, rounds: int) -> float:
        """Best time of one run of `step`."""
        table = StepTable([step], threads, scratch_bytes=4096, is_timed=True)
        best = float("inf")
        for _ in range(rounds):
            table.run()
            before, after = table.clock_ns()
            best = min(best, (after - before) * 1e-9)
        return best

    def register(self, name: str, threads: int, *, budget_s: float = 0.02) -> float:
        """Operations per nanosecond of a register probe; a latency probe gives its inverse."""
        if name not in self._turns:
            step, args = self._step(name, 1, 2000)
            self._turns[name] = max(200, int(2000 * 0.0005 / self.seconds(step, 1, 3)))
            del args
        # Half a millisecond a chunk: a helper that loses its core for a moment loses one chunk.
        turns, chunks = self._turns[name], threads * 4
        step, args = self._step(name, chunks, turns)
        rounds = max(3, int(budget_s / 0.002))
        taken = self.seconds(step, threads, rounds)
        del args
        return register_operations(name, self.target) * turns * chunks / taken * 1e-9

    def memory(self, name: str, threads: int, rounds: int = 3) -> float:
        """Gigabytes per second of one of the memory probes, over the whole block."""
        parts = _MEMORY_PROBES[name]
        part_bytes = self._memory.size // parts
        arrays = [self._memory.address + k * part_bytes for k in range(parts)]
        if parts == 3:  # a, c are read, b is written
            arrays = [arrays[0], arrays[2], arrays[1]]
        function = name.removesuffix("_gbs")
        step, args = self._step(function, part_bytes // _CHUNK_BYTES, _CHUNK_BYTES, 1, arrays)
        taken = self.seconds(step, threads, rounds)
        del args
        return self._memory.size / taken * 1e-9

    def cache(self, size_bytes: int, threads: int, rounds: int = 9) -> float:
        """Gigabytes per second of reading a private `size_bytes` again and again on each thread."""
        size_bytes = max(4096, min(size_bytes, self._memory.size // threads)) // 4096 * 4096
        repeat = max(1, (4 << 20) // size_bytes)
        step, args = self._step("read", threads, size_bytes, repeat)
        taken = self.seconds(step, threads, rounds)
        del args
        return size_bytes * repeat * threads / taken * 1e-9

    def chase_ns(self, size_bytes: int, rounds: int = 3) -> float:
        """Latency of a dependent load within `size_bytes`, one line after another at random."""
        count = max(16, min(size_bytes, self._memory.size) // _LINE)
        order = np.random.default_rng(0).permutation(count).astype(np.int64)
        words = self._memory.array(count * _LINE // 8, np.dtype(np.int64))
        words[order * (_LINE // 8)] = self._memory.address + np.roll(order, -1) * _LINE
        steps = max(20_000, min(2 * count, 200_000))
        step, args = self._step("chase", 1, steps)
        taken = self.seconds(step, 1, rounds + (count < 1 << 16) * 4)
        del args
        words[order * (_LINE // 8)] = 0
        return taken / steps * 1e9

    def step_ns(self, threads: int, count: int = 2000) -> float:
        """One empty step: with one thread a call, else fork and join with the helpers awake."""
        step, args = self._step("empty", threads)
        table = StepTable([step] * count, threads)
        times = []
        for _ in range(15):
            start = time.perf_counter_ns()
            table.run()
            times.append((time.perf_counter_ns() - start) / count)
        del args
        return sorted(times)[len(times) // 2]  # the best is one whose helper was too late to help

    def wake_ns(self, threads: int) -> float:
        """What a step on all threads loses when its helpers have gone to sleep before."""
        self.register("fma_gflops", 1, budget_s=0.001)
        step, args = self._step("fma_gflops", threads, self._turns["fma_gflops"])
        alone = self.seconds(step, 1, 5) / threads
        late = []
        for _ in range(9):
            time.sleep(0.003)
            late.append(self.seconds(step, threads, 1) - alone)
        del args
        return max(100.0, sorted(late)[len(late) // 2] * 1e9)

    def call_ns(self) -> float:
        """A call from Python with two inputs and out=, of a model that does nothing."""
        kinds = [ArrayType(name, np.dtype(np.float32), (4, 4)) for name in "xyz"]
        slots = (Slot("input", 0), Slot("input", 1), Slot("output", 0))
        phase = PhaseCall(self._code.address("empty"), slots)
        model = ModelCall(Binding((kinds[0], kinds[1]), (kinds[2],), (phase,)), release_gil=False)
        call = model.function
        x, y, z = (np.zeros((4, 4), np.float32) for _ in range(3))
        call(x, y, out=z)

        def loop(body: Callable[[], None]) -> float:
            best = float("inf")
            for _ in range(9):
                start = time.perf_counter_ns()
                body()
                best = min(best, time.perf_counter_ns() - start)
            return best / 2000

        def calls() -> None:
            for _ in range(2000):
                call(x, y, out=z)

        def nothing() -> None:
            for _ in range(2000):
                pass

        return max(1.0, loop(calls) - loop(nothing))

    def window(self, threads: int) -> dict[str, float]:
        """The seven peaks that a benchmark window records, in a few hundred milliseconds.

        A unit that the machine lacks is absent.
        """
        values: dict[str, float] = {}
        for name in WINDOW_PROBES:
            if name in _MEMORY_PROBES:
                values[name] = self.memory(name, threads)
            elif self.has(name):
                values[name] = self.register(name, threads)
        return values


@lru_cache(maxsize=1)
def _shared_probes() -> Probes:
    return Probes()


def probe(threads: int) -> dict[str, float]:
    """`Probes.window` with memory that stays allocated between calls."""
    return _shared_probes().window(threads)


def measure_hardware(
    thread_counts: Sequence[int] | None = None, probes: Probes | None = None
) -> HardwareDescriptor:
    """Measure everything; a few seconds. `thread_counts` always gains 1."""
    probes = Probes() if probes is None else probes
    target = probes.target
    counts = tuple(sorted({1, *(thread_counts or _default_counts())}))
    rates: dict[str, list[float]] = {}
    for threads in counts:
        for name, value in probes.window(threads).items():
            rates.setdefault(name, []).append(value)
        for name in ("divide_gops", "shuffle_gops", "gather_gops"):
            rates.setdefault(name, []).append(probes.register(name, threads))
        rates.setdefault("copy_gbs", []).append(probes.memory("copy_gbs", threads))
        levels = {
            "l1_gbs": target.l1_bytes // 2,
            "l2_gbs": target.l2_bytes // 2,
            "l3_gbs": min(target.l3_bytes // 8, 8 << 20),
        }
        for name, size in levels.items():
            if size:
                rates.setdefault(name, []).append(probes.cache(size, threads))
    latencies = {
        "fma_ns": 1 / probes.register("fma_ns", 1),
        "l1_ns": probes.chase_ns(target.l1_bytes // 2),
        "memory_ns": probes.chase_ns(256 << 20),
        "step_ns": probes.step_ns(1),
        "call_ns": probes.call_ns(),
    }
    if target.l2_bytes:
        latencies["l2_ns"] = probes.chase_ns(target.l2_bytes // 2)
    if target.l3_bytes:
        latencies["l3_ns"] = probes.chase_ns(max(target.l3_bytes // 8, 2 * target.l2_bytes))
    if counts[-1] > 1:
        latencies["fork_join_ns"] = probes.step_ns(counts[-1])
        latencies["wake_ns"] = probes.wake_ns(counts[-1])
    return HardwareDescriptor(
        machine=cpu_name(),
        target=str(target),
        ghz=probes.register("cycle_ns", 1),
        thread_counts=counts,
        rates={name: tuple(values) for name, values in rates.items()},
        latencies_ns=latencies,
    )


def _default_counts() -> tuple[int, ...]:
    most = num_threads()
    return tuple(2**k for k in range(most.bit_length())) + (most,)


def hardware(target: Target | None = None, *, measure: bool = False) -> HardwareDescriptor:
    """The descriptor of `target`: the stored one of this machine; else measured and stored when
    `measure`, else the typical one."""
    native = Target.native()
    target = native if target is None else target
    if target != native:
        return HardwareDescriptor.typical(target)
    path = _stored(native)
    with suppress(OSError, UserError):
        return HardwareDescriptor.parse(path.read_text())
    if not measure:
        return HardwareDescriptor.typical(native)
    return _store(measure_hardware(), path)


def calibrate(threads: Sequence[int] | None = None) -> dict[str, Any]:
    """Measure now, store, and return the descriptor as plain data."""
    descriptor = _store(measure_hardware(threads), _stored(Target.native()))
    plain: dict[str, Any] = json.loads(str(descriptor))
    return plain | {"fingerprint": descriptor.fingerprint}


def _stored(target: Target) -> Path:
    return current().cache_dir / "hardware" / f"{fingerprint(cpu_name(), target)}.json"


def _store(descriptor: HardwareDescriptor, path: Path) -> HardwareDescriptor:
    with suppress(OSError):  # measured again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.new")
        temporary.write_text(str(descriptor))
        temporary.replace(path)
    return descriptor


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """What the operating system calls the CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "CPU part"):
                return value.strip()
    return "unknown"


def _available_bytes() -> int:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 << 30
