"""The parent's handle on one side of a benchmark row: a worker process, frozen between bursts.

In: a name (`ours`, `oracle`, or a peer), a number of threads. Out: answers to requests. Invariant:
while one side is timed every other side is stopped, so its idle threads cannot spin beside it; a
side that dies or hangs is a `SideFailed`, never the end of the run.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tilewright.tools.peers import Unavailable, preload_of

__all__ = ["Side", "SideFailed", "SideSkipped"]


class SideFailed(Exception):
    """The side crashed, hung, or refused; the text is the reason that the row shows."""


class SideSkipped(Exception):
    """The side has no form of this workload here; the text is the reason that the row shows."""


def _environment(name: str, threads: int) -> dict[str, str]:
    environment = dict(os.environ)
    try:
        preload = preload_of(name)
    except Unavailable as error:
        raise SideSkipped(str(error)) from None
    if preload:
        environment["LD_PRELOAD"] = preload
    for name in ("OMP", "MKL", "OPENBLAS", "TILEWRIGHT"):
        environment[f"{name}_NUM_THREADS"] = str(threads)
    return environment


class Side:
    """One worker process; use as a context manager.

    Errors: SideSkipped where a peer's variant cannot run here.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self.version = ""
        self.outputs_kind = "bound"
        self.settings = ""
        environment = _environment(name, threads if name != "oracle" else os.cpu_count() or 1)
        reading, writing = os.pipe()
        cpus = sorted(os.sched_getaffinity(0))
        # One thread is pinned, so that no side pays for moving; the last CPU has the fewest
        # interrupts. Fewer threads than CPUs likewise: not every library can be told how many.
        pinned = []
        if name != "oracle" and (threads == 1 or threads < len(cpus)):
            pinned = [",".join(map(str, cpus[-threads:]))]
        worker = [sys.executable, "-P", "-m", "tilewright.tools.worker", name, str(writing)]
        self._process = subprocess.Popen(
            [*worker, *pinned],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=None if os.environ.get("TILEWRIGHT_DEBUG", "0") != "0" else subprocess.DEVNULL,
            pass_fds=(writing,),
            start_new_session=True,  # Ctrl-C is for the parent, which decides what ends
            env=environment,
        )
        os.close(writing)
        self._reading = reading
        self._pending = b""

    def ask(
        self,
        do: str,
        timeout_s: float,
        on_event: Callable[[dict[str, Any]], None] | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Errors: SideFailed when the side dies, hangs over `timeout_s`, or answers with an error;
        SideSkipped when it says that it has no form of the workload.
        """
        self._signal(signal.SIGCONT)
        try:
            assert self._process.stdin is not None
            try:
                line = json.dumps({"do": do, **request}) + "\n"
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
            except BrokenPipeError:
                raise SideFailed(self._death()) from None
            answer = self._answer(do, time.monotonic() + timeout_s, timeout_s, on_event)
        finally:
            self._signal(signal.SIGSTOP)
        if not answer["ok"]:
            if "skip" in answer:
                raise SideSkipped(answer["skip"])
            raise SideFailed(answer["error"])
        return answer

    def _answer(
        self,
        do: str,
        deadline_s: float,
        timeout_s: float,
        on_event: Callable[[dict[str, Any]], None] | None,
    ) -> dict[str, Any]:
        while True:
            while b"\n" not in self._pending:
                ready, _, _ = select.select([self._reading], [], [], deadline_s - time.monotonic())
                if not ready:
                    self.close()
                    raise SideFailed(f"hung: no answer to {do} in {timeout_s:.0f} s")
                data = os.read(self._reading, 1 << 16)
                if not data:
                    raise SideFailed(self._death())
                self._pending += data
            line, _, self._pending = self._pending.partition(b"\n")
            answer: dict[str, Any] = json.loads(line)
            if "event" not in answer:
                return answer
            if on_event is not None:
                on_event(answer["event"])

    def _death(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        if code is not None and code < 0:
            return f"crashed with {signal.Signals(-code).name}"
        return f"ended with status {code}"

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    @property
    def is_alive(self) -> bool:
        """Can it be asked again?"""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process at once."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
