"""The thread pool and the step walker, loaded; the number of threads.

In: steps (function, args, chunks). Out: `run_steps` and `walker_address`, the native function
`void tw_run(ctx)` that call contexts and the call wrapper use; `set_num_threads`.
`share_threads`: run steps on the OpenMP runtime that the process has already, or no longer.
Invariant: no thread exists before the first step that runs on more than one; a step runs on the
pool if the pool is free, else alone on its caller, with the same bits.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from tilewright.config import value
from tilewright.errors import UserError
from tilewright.machine.target import Target, available_cpus
from tilewright.runtime.build import build_shared
from tilewright.runtime.jit import LoadedObject, load_object
from tilewright.runtime.pages import SCRATCH_BYTES, Memory
from tilewright.runtime.pool_text import MAX_THREADS, POOL_BYTES, pool_text
from tilewright.runtime.walk_text import CONTROL

__all__ = [
    "Context",
    "listen",
    "NativeStep",
    "Step",
    "StepTable",
    "num_threads",
    "run_steps",
    "set_num_threads",
    "set_spin",
    "share_threads",
    "start_threads",
    "walker_address",
    "write_step",
]

_MADV_WIPEONFORK = 18
_UNITS_PER_THREAD = 8  # chunks are handed out in about this many portions per thread


class NativeStep(ctypes.Structure):
    """A row of the step table, as `pool_text` lays it out."""

    _fields_ = [
        ("function", ctypes.c_uint64),
        ("args", ctypes.c_uint64),
        ("chunks", ctypes.c_int64),
        ("serial", ctypes.c_int64),
        ("grain", ctypes.c_int64),
        ("units", ctypes.c_int64),
    ]


class Context(ctypes.Structure):
    """What `tw_run` reads, as `pool_text` lays it out."""

    _fields_ = [
        ("steps", ctypes.c_uint64),
        ("count", ctypes.c_int64),
        ("scratch", ctypes.c_uint64),
        ("scratch_stride", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("clock", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Step:
    """One phase to run: `function(args, lo, hi, scratch)` over `chunks` chunks.

    `serial` keeps it on the caller; `grain` is how many chunks are handed out at once, 0 to choose.
    control: no phase but one of the walker's own steps (`pool_text` lists them): then `chunks` is
    the step to go on with, `grain` a count, and `bytes` what is moved.
    """

    function: int
    args: int
    chunks: int = 1
    serial: bool = False
    grain: int = 0
    control: str = ""
    bytes: int = 0


_pages: list[mmap.mmap] = []
_chosen_threads: int | None = None
_lock = threading.Lock()


@lru_cache(maxsize=1)
def _pool() -> LoadedObject:
    pages = mmap.mmap(-1, POOL_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _pages.append(pages)
    # Where the kernel cannot wipe the mapping in a forked child, the hook below does.
    with suppress(OSError, ValueError):
        pages.madvise(_MADV_WIPEONFORK)
    loaded = load_object(build_shared(pool_text(Target.portable()))).keep_forever()
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    ctypes.c_uint64.from_address(loaded.address("tw_pool")).value = address
    return loaded


_OPENMP = re.compile(r"/\S*/lib(?:gomp|omp|iomp5)\b[^/\s]*\.so[^/\s]*")
_team: str | None = None  # the OpenMP runtime that steps run on
_asked: tuple[object, bool] = ("own", False)  # setting, PyTorch is there: what `_team` follows
_is_forked = False


def share_threads() -> None:
    """Follow the setting `pool`, and what has been imported by now: run steps on the threads of an
    OpenMP runtime of this process, as two pools take each other's cores. Calls under way finish
    where they began. A forked child uses threads of our own: runtimes do not survive a fork.
    """
    global _team, _asked
    asked = (value("pool"), "torch" in sys.modules)
    if asked == _asked or _is_forked:
        return
    wanted = asked[0] == "openmp" or asked == ("auto", True)
    with _lock:
        path = _openmp() if wanted else None
        if path != _team:
            code = _pool()
            team = ctypes.c_uint64.from_address(code.address("tw_team"))
            if path is None:
                team.value = 0
            else:
                runtime = ctypes.CDLL(path)
                number = ctypes.c_uint64.from_address(code.address("tw_number"))
                number.value = ctypes.cast(runtime.omp_get_thread_num, ctypes.c_void_p).value or 0
                team.value = ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value or 0
            _team = path
        if path is not None or not wanted:  # else it may be loaded later
            _asked = asked


def _openmp() -> str | None:
    """The file of the OpenMP runtime in this process, PyTorch's before another one; None where
    there is none, or none that speaks as GCC's does.
    """
    with open("/proc/self/maps") as file:
        paths: list[str] = list(dict.fromkeys(_OPENMP.findall(file.read())))
    paths.sort(key=lambda path: "/torch" not in path)
    for path in paths:
        with suppress(OSError):
            library = ctypes.CDLL(path)
            if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_thread_num"):
                return path
    return None


def _wipe_after_fork() -> None:
    global _lock, _team, _is_forked
    _lock = threading.Lock()
    if _team is not None:
        ctypes.c_uint64.from_address(_pool().address("tw_team")).value = 0
    _team, _is_forked = None, True
    for pages in _pages:
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(pages)), 0, POOL_BYTES)


os.register_at_fork(after_in_child=_wipe_after_fork)


def walker_address() -> int:
    """Address of `void tw_run(Context*)`; the first call builds and loads the pool."""
    with _lock:
        return _pool().address("tw_run")


def num_threads() -> int:
    """Threads a step may use: `set_num_threads`, else the setting, else the CPUs available, or as
    many as PyTorch uses where steps share its threads.
    """
    if _chosen_threads is not None:
        return _chosen_threads
    chosen = value("num_threads")
    if not isinstance(chosen, int):
        chosen = available_cpus()
        ask = getattr(sys.modules.get("torch"), "get_num_threads", None)
        if ask is not None and value("pool") != "own":
            chosen = min(chosen, int(ask()))
    return min(chosen, MAX_THREADS - 1)


def set_num_threads(threads: int | None) -> None:
    """Use `threads` threads from the next call on; None returns to the setting.

    Errors: UserError U003 for a number that is not 1 to 255.
    """
    global _chosen_threads
    if threads is not None and not 1 <= threads < MAX_THREADS:
        raise UserError("U003", f"{threads} threads", hint=f"choose 1 to {MAX_THREADS - 1}")
    _chosen_threads = threads
    for listener in list(_listeners):
        listener.threads_changed()


class ThreadsListener(Protocol):
    """Something that keeps a number of threads in native memory."""

    def threads_changed(self) -> None: ...


_listeners: weakref.WeakSet[ThreadsListener] = weakref.WeakSet()


def listen(listener: ThreadsListener) -> None:
    """Call `listener.threads_changed()` after `set_num_threads`, for as long as it lives."""
    _listeners.add(listener)


def set_spin(pauses: int) -> None:
    """How long a helper polls for work before it sleeps, in pause instructions (default 100)."""
    with _lock:
        ctypes.c_uint32.from_address(_pool().address("tw_spin")).value = pauses


def start_threads(threads: int) -> int:
    """Start the helpers that `threads` threads need; how many threads a step can now use."""
    start = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    with _lock:
        return int(start(_pool().address("tw_pool_start"))(threads))


def write_step(native: NativeStep, step: Step, threads: int) -> None:
    """Fill one row of a step table for calls with `threads` threads."""
    if step.control:
        native.function, native.args, native.chunks = 0, step.args, step.chunks
        native.serial = CONTROL.index(step.control)
        native.grain, native.units = step.grain, step.bytes
        return
    grain = step.grain or max(1, step.chunks // (threads * _UNITS_PER_THREAD))
    native.function = step.function
    native.args = step.args
    native.chunks = step.chunks
    native.serial = int(step.serial)
    native.grain = grain
    native.units = -(-step.chunks // grain)


class StepTable:
    """Steps ready to run, with scratch memory; for code that runs or times them many times.

    Phase functions and args must stay alive; nothing is checked.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        threads: int | None = None,
        *,
        scratch_bytes: int = 0,
        is_timed: bool = False,
    ) -> None:
        threads = num_threads() if threads is None else threads
        self._table = (NativeStep * max(1, len(steps)))()
        for native, step in zip(self._table, steps, strict=False):
            write_step(native, step, threads)
        stride = -(-scratch_bytes // 128) * 128
        self._scratch = Memory(max(1, stride * threads), SCRATCH_BYTES)
        self._readings = (ctypes.c_int64 * (len(steps) + 1))()
        self._context = Context(
            ctypes.addressof(self._table),
            len(steps),
            self._scratch.address,
            stride,
            threads,
            ctypes.addressof(self._readings) if is_timed else 0,
        )
        self._walk = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(walker_address())
        self._address = ctypes.addressof(self._context)

    def run(self) -> None:
        """Run the steps in order; the GIL is released meanwhile."""
        self._walk(self._address)

    def clock_ns(self) -> list[int]:
        """Monotonic clock before the first and after each step of the last timed run; a step that
        ran several times counts in one place, as if it had run there for so long.
        """
        return list(self._readings)


def run_steps(
    steps: Sequence[Step],
    *,
    threads: int | None = None,
    scratch_bytes: int = 0,
    clock_ns: list[int] | None = None,
    repeat: int = 1,
) -> None:
    """Run `steps` in order, `repeat` times; `clock_ns` receives the readings of the last time."""
    table = StepTable(steps, threads, scratch_bytes=scratch_bytes, is_timed=clock_ns is not None)
    for _ in range(repeat):
        table.run()
    if clock_ns is not None:
        clock_ns[:] = table.clock_ns()
