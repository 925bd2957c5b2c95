"""Build objects: the cache first, then LLVM in build workers or in this process.

In: LLVM text and a `Target`. Out: ELF bytes, in the order asked; a text that LLVM refuses, or that
makes it crash or hang, is a `Rejected` in `build_many` and an InternalError C001 elsewhere.
Invariant: the bytes depend on text, target, options and LLVM's version only, never on who compiled.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tilewright.errors import InternalError, Rejected
from tilewright.machine.target import Target, available_cpus
from tilewright.runtime.build_worker import LlvmRefused, MachineSpec, emit, request
from tilewright.runtime.cache import ObjectCache, default_cache
from tilewright.runtime.wire import Worker, WorkerDied

__all__ = ["BuildOptions", "build", "build_many", "emit_assembly", "emit_object", "object_key"]
__all__ += ["provide", "stop_workers"]

_log = logging.getLogger("tilewright.runtime.build")
_EPOCH = 1  # raise when the same text and machine compile to other bytes because of this file


@dataclass(frozen=True)
class BuildOptions:
    """`passes`: speed level of LLVM's pipeline, 0 for scheduled kernels; `disable_lsr`: no loop
    strength reduction (an option of the whole LLVM process, hence only in a worker)."""

    opt: int = 2
    passes: int = 0
    disable_lsr: bool = False


DEFAULT = BuildOptions()


@lru_cache(maxsize=1)
def _llvm_version() -> str:
    from importlib.metadata import version

    return version("llvmlite")


@lru_cache(maxsize=64)
def _spec(target: Target, options: BuildOptions) -> MachineSpec:
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


def provide(key: str, data: bytes) -> None:
    """Let `build` answer with `data` for the text, target and options that `key` stands for, in
    this process: what a saved model brings along is not compiled again."""
    _provided.setdefault(key, data)


def emit_object(text: str, target: Target, options: BuildOptions = DEFAULT) -> bytes:
    """Compile in this process, without the cache. Errors: InternalError C001.

    Requires: text that LLVM does not abort on; `build_many` is for candidates that nobody tried.
    """
    return _emit_here(text, target, options, assembly=False)


def emit_assembly(text: str, target: Target, options: BuildOptions = DEFAULT) -> str:
    """The assembly of what `emit_object` returns. Errors: InternalError C001."""
    return _emit_here(text, target, options, assembly=True).decode()


def _emit_here(text: str, target: Target, options: BuildOptions, *, assembly: bool) -> bytes:
    if options.disable_lsr:
        result = _pool.run([text], _spec(target, options), 1, 60.0, assembly=assembly)[0]
        if isinstance(result, Rejected):
            raise InternalError(result.code, result.detail)
        return result
    try:
        return emit(text, _spec(target, options), assembly=assembly)
    except LlvmRefused as refused:
        raise InternalError("C001", str(refused)) from None


def build(
    text: str,
    target: Target,
    options: BuildOptions = DEFAULT,
    *,
    cache: ObjectCache | None = None,
) -> bytes:
    """One object, from the cache or compiled in this process. Errors: InternalError C001."""
    cache = default_cache() if cache is None else cache
    key = object_key(text, target, options)
    data = _provided.get(key) or cache.get(key)
    if data is None:
        data = emit_object(text, target, options)
        cache.put(key, data)
    return data


def build_many(
    texts: Sequence[str],
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
    process can be started, compiles here.
    """
    cache = default_cache() if cache is None else cache
    keys = [object_key(text, target, options) for text in texts]
    done: dict[str, bytes | Rejected] = {}
    missing: dict[str, str] = {}
    for key, text in zip(keys, texts, strict=True):
        if key not in done and key not in missing:
            data = cache.get(key)
            if data is None:
                missing[key] = text
            else:
                done[key] = data
    if missing:
        jobs = available_cpus() if jobs is None else max(1, jobs)
        results = _pool.run(list(missing.values()), _spec(target, options), jobs, timeout_s)
        for key, result in zip(missing, results, strict=True):
            done[key] = result
            if isinstance(result, bytes):
                cache.put(key, result)
    return [done[key] for key in keys]


class _BuildPool:
    """Idle workers by their LLVM options; one caller at a time hands out texts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, ...], list[Worker]] = {}

    def run(
        self,
        texts: list[str],
        spec: MachineSpec,
        jobs: int,
        timeout_s: float,
        *,
        assembly: bool = False,
    ) -> list[bytes | Rejected]:
        """Compile `texts` with at most `jobs` workers."""
        arguments = ("-disable-lsr",) if spec.disable_lsr else ()
        with self._lock:
            try:
                return self._run(texts, spec, jobs, timeout_s, arguments, assembly)
            except OSError as error:
                _log.warning("no build worker could be started (%s); compiling here", error)
        return [_emit_or_reject(text, spec, assembly) for text in texts]

    def _run(
        self,
        texts: list[str],
        spec: MachineSpec,
        jobs: int,
        timeout_s: float,
        arguments: tuple[str, ...],
        assembly: bool,
    ) -> list[bytes | Rejected]:
        idle = self._idle.setdefault(arguments, [])
        while len(idle) < min(jobs, len(texts)):
            idle.append(Worker("tilewright.runtime.build_worker", arguments))
        results: list[bytes | Rejected] = [Rejected("C001", "not compiled")] * len(texts)
        waiting = list(reversed(range(len(texts))))
        busy: dict[int, tuple[Worker, int, float]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < jobs:
                    index = waiting.pop()
                    if not idle:
                        idle.append(Worker("tilewright.runtime.build_worker", arguments))
                    worker = idle.pop()
                    deadline = time.monotonic() + timeout_s
                    try:
                        worker.send(*request(texts[index], spec, assembly=assembly))
                        busy[worker.fileno()] = (worker, index, deadline)
                    except WorkerDied as died:
                        results[index] = Rejected("C001", died.detail)
                nearest = min((entry[2] for entry in busy.values()), default=0.0)
                ready = select.select(list(busy), [], [], max(0.0, nearest - time.monotonic()))[0]
                now = time.monotonic()
                overdue = [number for number, entry in busy.items() if entry[2] <= now]
                for number in ready or overdue:
                    worker, index, _ = busy.pop(number)
                    results[index] = _receive(worker, timeout_s if number in ready else 0.0, idle)
        finally:
            for worker, _, _ in busy.values():  # interrupted: their answers belong to nobody
                worker.kill()
        return results

    def stop(self) -> None:
        for workers in self._idle.values():
            while workers:
                workers.pop().close()

    def abandon(self) -> None:
        for workers in self._idle.values():
            for worker in workers:
                worker.abandon()


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
