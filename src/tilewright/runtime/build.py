"""Build objects: the cache first, then LLVM in build workers or in this process.

In: LLVM text and a `Target`. Out: ELF bytes, in the order asked; a text that LLVM refuses, or that
makes it crash or hang, is a `Rejected` in `build_many` and an InternalError C001 elsewhere.
Invariant: the bytes depend on text, target, options and LLVM's version only, never on who compiled
(where no process can be started, what options ask of a worker is not done and nothing is cached).
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from tilewright.errors import InternalError, Rejected
from tilewright.machine.target import Target, available_cpus
from tilewright.runtime.build_worker import (
    LlvmRefused,
    MachineSpec,
    emit,
    options_here,
    request,
    set_options,
)
from tilewright.runtime.cache import ObjectCache, default_cache
from tilewright.runtime.wire import Worker, WorkerDied

__all__ = ["BuildOptions", "build", "build_counted", "build_many", "build_shared"]
__all__ += ["emit_assembly", "emit_object", "object_key", "provide", "set_kernel_options"]
__all__ += ["shared_key", "stop_workers"]

_log = logging.getLogger("tilewright.runtime.build")
_WORKER = "tilewright.runtime.build_worker"
_EPOCH = 1  # raise when the same text and machine compile to other bytes because of this file


@dataclass(frozen=True)
class BuildOptions:
    """`passes`: speed level of LLVM's pipeline, 0 for scheduled kernels; `disable_lsr`: no loop
    strength reduction (an option of the whole LLVM process, hence only in a worker).

    Kernels are emitted with their addresses reduced already; on the kernels of both benchmark
    suites LLVM's own reduction gives the same code or spills more, for a third of the build time.
    """

    opt: int = 2
    passes: int = 0
    disable_lsr: bool = True


DEFAULT = BuildOptions()


@lru_cache(maxsize=1)
def _llvm_version() -> str:
    from importlib.metadata import version

    return version("llvmlite")


@lru_cache(maxsize=64)
def _spec(target: Target, options: BuildOptions = DEFAULT) -> MachineSpec:
    return MachineSpec(
        target.triple,
        target.cpu,
        target.features,
        options.opt,
        options.passes,
        options.disable_lsr,
    )


def object_key(text: str, target: Target, options: BuildOptions = DEFAULT) -> str:
    """Content key of the object that `text` compiles to."""
    head = f"{_EPOCH} {_llvm_version()} {_spec(target, options)}\n"
    return hashlib.sha256(head.encode() + text.encode()).hexdigest()


_provided: dict[str, bytes] = {}


def shared_key(text: str) -> str:
    """The name of what `build_shared` makes of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()


def provide(key: str, data: bytes) -> None:
    """Let `build_shared` answer with `data` for the text of this key, in this process: what a saved
    model brings along is not compiled again."""
    _provided.setdefault(key, data)


def build_shared(text: str) -> bytes:
    """An object that all models of a process run on: `text` is for `Target.portable()`, so a saved
    model can bring it to any CPU of this kind. Errors: InternalError C001.
    """
    data = _provided.get(shared_key(text))
    options = BuildOptions(passes=2, disable_lsr=False)
    return build(text, Target.portable(), options) if data is None else data


def emit_object(text: str, target: Target, options: BuildOptions = DEFAULT) -> bytes:
    """Compile without the cache. Errors: InternalError C001.

    In this process where LLVM has the options here (`set_kernel_options`), else in a worker.
    Requires: text that LLVM does not abort on; `build_many` is for candidates that nobody tried.
    """
    return _emit(text, target, options, assembly=False)


def emit_assembly(text: str, target: Target, options: BuildOptions = DEFAULT) -> str:
    """The assembly of what `emit_object` returns. Errors: InternalError C001."""
    return _emit(text, target, options, assembly=True).decode()


def _emit(text: str, target: Target, options: BuildOptions, *, assembly: bool) -> bytes:
    spec = _spec(target, options)
    if _llvm_options(spec) != options_here():
        with _Batch(_pool, spec, 1, 60.0, assembly=assembly) as batch:
            batch.add("", text)
            result = batch.finish()[""]
        if isinstance(result, Rejected):
            raise InternalError(result.code, result.detail)
        return result
    try:
        return emit(text, spec, assembly=assembly)
    except LlvmRefused as refused:
        raise InternalError("C001", str(refused)) from None


def build(
    text: str,
    target: Target,
    options: BuildOptions = DEFAULT,
    *,
    cache: ObjectCache | None = None,
) -> bytes:
    """One object, from the cache or as `emit_object` makes it. Errors: InternalError C001."""
    cache = default_cache() if cache is None else cache
    key = object_key(text, target, options)
    data = cache.get(key)
    if data is None:
        data = emit_object(text, target, options)
        cache.put(key, data)
    return data


def build_many(
    texts: Iterable[str],
    target: Target,
    jobs: int | None = None,
    options: BuildOptions = DEFAULT,
    *,
    cache: ObjectCache | None = None,
    timeout_s: float = 60.0,
) -> list[bytes | Rejected]:
    """Objects of `texts`, in order; equal texts are compiled once.

    Compiling happens in `jobs` worker processes (default: the CPUs available), so a text that
    crashes LLVM or takes longer than `timeout_s` costs its worker, not this process. Where no
    process can be started, compiles here. The texts may come from a generator: those that are
    there are compiled while it makes the next.
    """
    return build_counted(texts, target, jobs, options, cache=cache, timeout_s=timeout_s)[0]


def build_counted(
    texts: Iterable[str],
    target: Target,
    jobs: int | None = None,
    options: BuildOptions = DEFAULT,
    *,
    cache: ObjectCache | None = None,
    timeout_s: float = 60.0,
) -> tuple[list[bytes | Rejected], int]:
    """What `build_many` gives, and how many texts the cache did not have."""
    cache = default_cache() if cache is None else cache
    jobs = available_cpus() if jobs is None else max(1, jobs)
    keys: list[str] = []
    done: dict[str, bytes | Rejected] = {}
    with _Batch(_pool, _spec(target, options), jobs, timeout_s) as batch:
        for text in texts:
            key = object_key(text, target, options)
            keys.append(key)
            if key in done or key in batch.asked:
                continue
            data = cache.get(key)
            if data is None:
                batch.add(key, text)
            else:
                done[key] = data
        made = batch.finish()
    for key, result in made.items():
        if isinstance(result, bytes) and key not in batch.foreign:
            cache.put(key, result)
    done.update(made)
    return [done[key] for key in keys], len(made)


class _BuildPool:
    """Idle workers by their LLVM options; one batch at a time takes them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._idle: dict[tuple[str, ...], list[Worker]] = {}

    def idle(self, spec: MachineSpec) -> list[Worker]:
        """The idle workers that compile for `spec`."""
        return self._idle.setdefault(_llvm_options(spec), [])

    def stop(self) -> None:
        for workers in self._idle.values():
            while workers:
                workers.pop().close()

    def abandon(self) -> None:
        for workers in self._idle.values():
            for worker in workers:
                worker.abandon()


def _llvm_options(spec: MachineSpec) -> tuple[str, ...]:
    """The options of LLVM that a process must have to compile for `spec`."""
    return ("-disable-lsr",) if spec.disable_lsr else ()


def set_kernel_options() -> None:
    """Let this process compile kernels itself, as workers do: for a process of ours alone, because
    the options are those of every user of llvmlite in it."""
    set_options(_llvm_options(_spec(Target.native())))


class _Batch:
    """Texts that are compiled by at most `jobs` workers while more texts are being made.

    It holds the pool from the first text that no cache has to its end.
    """

    def __init__(
        self,
        pool: _BuildPool,
        spec: MachineSpec,
        jobs: int,
        timeout_s: float,
        *,
        assembly: bool = False,
    ) -> None:
        self.pool, self.spec, self.jobs = pool, spec, jobs
        self.timeout_s, self.assembly = timeout_s, assembly
        self.asked: set[str] = set()
        self.foreign: set[str] = set()  # compiled in this process, without the spec's options
        self._results: dict[str, bytes | Rejected] = {}
        self._waiting: deque[tuple[str, str]] = deque()
        self._busy: dict[int, tuple[Worker, str, float]] = {}

    def __enter__(self) -> _Batch:
        return self

    def __exit__(self, *error: object) -> None:
        for worker, _, _ in self._busy.values():  # interrupted: their answers belong to nobody
            worker.kill()
        if self.asked:
            self.pool.lock.release()

    def add(self, key: str, text: str) -> None:
        """Compile `text` as soon as a worker is free; does not wait."""
        if not self.asked:
            self.pool.lock.acquire()
        self.asked.add(key)
        self._waiting.append((key, text))
        self._collect(0.0)
        self._hand_out()

    def finish(self) -> dict[str, bytes | Rejected]:
        """Wait for everything; results by key."""
        while self._waiting or self._busy:
            self._hand_out()
            nearest = min((entry[2] for entry in self._busy.values()), default=0.0)
            self._collect(max(0.0, nearest - time.monotonic()))
        return self._results

    def _hand_out(self) -> None:
        idle = self.pool.idle(self.spec)
        while self._waiting and len(self._busy) < self.jobs:
            key, text = self._waiting.popleft()
            try:
                worker = idle.pop() if idle else Worker(_WORKER, _llvm_options(self.spec))
            except OSError as error:
                _log.warning("no build worker could be started (%s); compiling here", error)
                self._results[key] = _emit_or_reject(text, self.spec, self.assembly)
                if _llvm_options(self.spec) != options_here():
                    self.foreign.add(key)
                continue
            try:
                worker.send(*request(text, self.spec, assembly=self.assembly))
            except WorkerDied as died:
                self._results[key] = Rejected("C001", died.detail)
            else:
                self._busy[worker.fileno()] = (worker, key, time.monotonic() + self.timeout_s)

    def _collect(self, wait_s: float) -> None:
        """Take what is ready within `wait_s` seconds, and give up on what is overdue."""
        if not self._busy:
            return
        ready = select.select(list(self._busy), [], [], wait_s)[0]
        now = time.monotonic()
        overdue = [number for number, entry in self._busy.items() if entry[2] <= now]
        idle = self.pool.idle(self.spec)
        for number in ready or overdue:
            worker, key, _ = self._busy.pop(number)
            left = self.timeout_s if number in ready else 0.0
            self._results[key] = _receive(worker, left, idle)


def _receive(worker: Worker, timeout_s: float, idle: list[Worker]) -> bytes | Rejected:
    try:
        header, body = worker.receive(timeout_s)
    except WorkerDied as died:
        detail = "LLVM took too long" if died.timed_out else f"LLVM aborted: {died.detail}"
        return Rejected("C001", detail)
    idle.append(worker)
    return Rejected("C001", str(header["refused"])) if "refused" in header else body


def _emit_or_reject(text: str, spec: MachineSpec, assembly: bool) -> bytes | Rejected:
    try:
        return emit(text, spec, assembly=assembly)
    except LlvmRefused as refused:
        return Rejected("C001", str(refused))


_pool = _BuildPool()


def stop_workers() -> None:
    """End the build workers of this process; the next build starts new ones."""
    _pool.stop()


def _forget_workers() -> None:
    global _pool
    _pool.abandon()
    _pool = _BuildPool()


atexit.register(stop_workers)
os.register_at_fork(after_in_child=_forget_workers)
