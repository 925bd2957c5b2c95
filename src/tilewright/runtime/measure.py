"""Measure candidates in an isolated process.

In: candidates (objects, steps, buffers), a reference candidate, expected outputs, a plan.
Out: per candidate a `Timing`, or a `Rejected`: R020 crashed, R021 hung, R022 wrote where it must
not, V001 wrong output, R011 not loadable.
Invariant: nothing a candidate does reaches this process; a call returns one answer per candidate,
in order, and later calls work whatever happened before.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict

from tilewright.errors import Rejected
from tilewright.runtime.candidates import (
    Blobs,
    Buffer,
    Candidate,
    CandidateStep,
    Expected,
    Fill,
    Plan,
    Timing,
    buffer_values,
    write_candidate,
    write_expected,
)
from tilewright.runtime.wire import Header, Worker, WorkerDied

__all__ = [
    "Buffer",
    "Candidate",
    "CandidateStep",
    "Expected",
    "Fill",
    "Measurer",
    "Plan",
    "Timing",
    "buffer_values",
    "measure_batch",
]

_MODULE = "tilewright.runtime.measure_worker"


class Measurer:
    """Owns one measuring process; started at the first batch, replaced when it dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: Worker | None = None
        self._sent: set[str] = set()

    def start(self) -> None:
        """Start the process now, so that it comes up while other work is done."""
        with self._lock:
            self._started()

    def _started(self) -> Worker:
        if self._worker is None:
            # The supervisor forks, so nothing in it may start threads of its own.
            alone = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
            self._worker = Worker(_MODULE, environment=alone)
            self._sent = set()
        return self._worker

    def measure_batch(
        self,
        candidates: Sequence[Candidate],
        reference: Candidate | None = None,
        expected: Sequence[Expected] = (),
        plan: Plan | None = None,
    ) -> list[Timing | Rejected]:
        """Verify and time `candidates`, paired with `reference` in the same rounds.

        A failing reference rejects all. Errors: OSError when no process can be started.
        """
        plan = Plan() if plan is None else plan
        if not candidates:
            return []
        blobs = Blobs()
        header: Header = {
            "candidates": [write_candidate(c, blobs) for c in candidates],
            "reference": None if reference is None else write_candidate(reference, blobs),
            "expected": [write_expected(e, blobs) for e in expected],
            "plan": asdict(plan),
        }
        # The supervisor itself ends what hangs; this limit is for the supervisor.
        samples = (plan.rounds + 3) * (2 * len(candidates) + 1)
        timeout_s = 60.0 + plan.timeout_s * (samples + 4 * len(candidates))
        with self._lock:
            try:
                reply, body = self._ask(header, blobs, timeout_s)
            except WorkerDied as died:
                self._worker = None
                code = "R021" if died.timed_out else "R020"
                return [Rejected(code, f"the measuring process: {died.detail}")] * len(candidates)
        return _read_reply(reply, body)

    def _ask(self, header: Header, blobs: Blobs, timeout_s: float) -> tuple[Header, bytes]:
        worker = self._started()
        missing = [key for key in blobs.by_key if key not in self._sent]
        while True:
            sent = [[key, len(blobs.by_key[key])] for key in missing]
            body = b"".join(blobs.by_key[key] for key in missing)
            worker.send(header | {"sent": sent, "needed": list(blobs.by_key)}, body)
            reply, answer = worker.receive(timeout_s)
            self._sent.update(missing)
            missing = reply.get("missing", [])  # it had no room to keep them
            if not missing:
                return reply, answer

    def close(self) -> None:
        """End the process; the next batch starts another."""
        with self._lock:
            if self._worker is not None:
                self._worker.close()
                self._worker = None

    def abandon(self) -> None:
        """Forget the parent's process, in a forked child."""
        self._lock = threading.Lock()
        if self._worker is not None:
            self._worker.abandon()
            self._worker = None


def _read_reply(reply: Header, body: bytes) -> list[Timing | Rejected]:
    outputs: dict[int, dict[int, bytes]] = {}
    offset = 0
    for number, buffer, size in reply["outputs"]:
        outputs.setdefault(number, {})[buffer] = body[offset : offset + size]
        offset += size
    results: list[Timing | Rejected] = []
    for number, value in enumerate(reply["results"]):
        if "code" in value:
            results.append(Rejected(value["code"], value["detail"]))
        else:
            times = tuple(value["seconds"]), tuple(value["reference"])
            results.append(Timing(*times, outputs.get(number, {})))
    return results


_shared = Measurer()
atexit.register(_shared.close)
os.register_at_fork(after_in_child=_shared.abandon)


def measure_batch(
    candidates: Sequence[Candidate],
    reference: Candidate | None = None,
    expected: Sequence[Expected] = (),
    plan: Plan | None = None,
) -> list[Timing | Rejected]:
    """`Measurer.measure_batch` of a process-wide measurer."""
    return _shared.measure_batch(candidates, reference, expected, plan)
