"""Work on what nobody trusts, in children with limits of time, memory, file size and processes.

In: tasks and a function that turns a task into what JSON can say. Out: how each task ended.
Invariants: a child that crashes, hangs, eats memory or leaves processes behind costs one task; the
parent never waits longer than the limit, and nothing of the child's process group outlives it.

Children are forked, so they start with what the parent has imported. Tasks share a child until one
fails. Linux only, like the runtime.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tilewright.errors import InternalError, TilewrightError

__all__ = ["Ended", "Limits", "run_in_child", "run_tasks"]


@dataclass(frozen=True)
class Limits:
    """Per task: wall clock and processor time. Per child: address space beyond that of the parent,
    the size of a file, and threads and processes beyond those of the user (0: not limited)."""

    wall_s: float = 60.0
    cpu_s: float = 30.0
    memory_bytes: int = 4 << 30
    file_bytes: int = 1 << 30
    processes: int = 0


@dataclass(frozen=True)
class Ended:
    """kind: done, refused (a typed error), internal (our bug), exception, memory, crash, hang.

    detail: code and message, traceback, or signal. value: what the function returned. where: what
    it last said through `say` before it died.
    """

    kind: str
    detail: str = ""
    value: Any = None
    where: str = ""


def run_in_child(work: Callable[[], Any], limits: Limits | None = None) -> Ended:
    """One task."""
    return next(iter(run_tasks([0], lambda _task, _say: work(), limits)))


def run_tasks(
    tasks: Sequence[Any],
    work: Callable[[Any, Callable[[str], None]], Any],
    limits: Limits | None = None,
) -> Iterator[Ended]:
    """How each task ended, in order. `work(task, say)` may say where it is."""
    limits = limits or Limits()
    at = 0
    while at < len(tasks):
        child = _Child(tasks, at, work, limits)
        try:
            while at < len(tasks):
                ended = child.next()
                yield ended
                at += 1
                if ended.kind in ("crash", "hang", "memory"):
                    break
        finally:
            child.close()


class _Child:
    """A forked process and the pipe on which it answers, a line of JSON a message."""

    def __init__(
        self, tasks: Sequence[Any], at: int, work: Callable[..., Any], limits: Limits
    ) -> None:
        self.limits = limits
        self.text = b""
        self.where = ""
        self.pipe, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.pipe)
                _serve(tasks, at, work, limits, writer)
            finally:
                os._exit(0)
        with suppress(OSError):
            os.setpgid(self.pid, self.pid)  # here too: the child may not have got to it
        os.close(writer)

    def next(self) -> Ended:
        """The outcome of the task that the child works on."""
        deadline = time.monotonic() + self.limits.wall_s
        cpu_start, self.where = self._cpu_s(), ""
        while True:
            line, found, rest = self.text.partition(b"\n")
            if found:
                self.text = rest
                message = json.loads(line)
                if "say" in message:
                    self.where = message["say"]
                    continue
                return Ended(
                    message["kind"], message.get("detail", ""), message.get("value"), self.where
                )
            left = deadline - time.monotonic()
            if left <= 0 or self._cpu_s() - cpu_start > self.limits.cpu_s:
                return Ended("hang", "over the limit of time", where=self.where)
            if select.select([self.pipe], [], [], min(left, 0.5))[0]:
                part = os.read(self.pipe, 1 << 16)
                if not part:
                    return self._died()
                self.text += part

    def _died(self) -> Ended:
        _, status = os.waitpid(self.pid, 0)
        pid, self.pid = self.pid, 0
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        if os.WIFSIGNALED(status):
            detail = signal.Signals(os.WTERMSIG(status)).name
        else:
            detail = f"status {os.WEXITSTATUS(status)}"
        return Ended("crash", detail, where=self.where)

    def _cpu_s(self) -> float:
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        os.close(self.pipe)
        if self.pid:
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
            with suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _limit(limits: Limits) -> None:
    with open("/proc/self/statm", "rb") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    wanted = [
        (resource.RLIMIT_AS, used + limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ]
    if limits.processes:
        wanted.append((resource.RLIMIT_NPROC, _threads_of_user() + limits.processes))
    for kind, soft in wanted:
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(kind, (soft, hard))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is an OSError


def _threads_of_user() -> int:
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == os.getuid():
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _serve(
    tasks: Sequence[Any], at: int, work: Callable[..., Any], limits: Limits, writer: int
) -> None:
    """The child: one answer per task."""
    faulthandler.disable()  # a crash is told by the parent
    with suppress(OSError):
        os.setpgid(0, 0)
    _limit(limits)

    def tell(message: dict[str, Any]) -> None:
        view = memoryview(json.dumps(message).encode() + b"\n")
        while view:
            view = view[os.write(writer, view) :]

    for task in tasks[at:]:
        tell(_outcome(work, task, lambda text: tell({"say": text})))


def _outcome(work: Callable[..., Any], task: Any, say: Callable[[str], None]) -> dict[str, Any]:
    try:
        return {"kind": "done", "value": work(task, say)}
    except InternalError as error:
        return {"kind": "internal", "detail": f"{error}\n{traceback.format_exc(limit=-6)}"}
    except TilewrightError as error:
        return {"kind": "refused", "detail": f"[{error.code}] {error.message}"}
    except MemoryError:
        return {"kind": "memory", "detail": "out of the memory it may use"}
    except Exception:  # noqa: BLE001 - the parent is told
        return {"kind": "exception", "detail": traceback.format_exc(limit=-8)}
