"""The child of a benchmark: builds one side of a row, then runs a burst of it when it is told to.

In: JSON lines on standard input. Out: JSON lines on the descriptor named in argv; whatever a
library prints goes to standard error. Invariant: between requests this process does nothing, and
it ends with its parent.

Requests: `prepare` (a peer may be asked again, for another workload), `plan` (choose the fastest
way of a peer), `tune` and `fresh` (ours), `judge` (oracle), `compute` (outputs for a seed),
`round`, `probe`, `threads` (ours). Each answer has `ok`; lines with `event` may come before it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.errors import TilewrightError
from tilewright.tools.peers import Entry, Unavailable, load
from tilewright.tools.suite import (
    Workload,
    input_specs,
    make_inputs,
    output_specs,
    save_arrays,
)

if TYPE_CHECKING:
    import numpy as np

    from tilewright.tools.ours import Oracle, Ours
    from tilewright.tools.peers import Peer

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["Burst", "main", "plan_burst", "run_burst"]

_BATCH_S = 200e-6
_LONG_CALL_S = 0.05  # such a call warms itself up
_MANY_CALLS = 0.2  # of a burst
_CACHES_IN_ROTATION = 4
_LARGEST_ROTATION_BYTES = 2 << 30


class Burst:
    """How many calls one timing covers, and how many timings make a burst."""

    def __init__(self, calls: int, batches: int, warm: bool = True) -> None:
        self.calls = calls
        self.batches = batches
        self.warm = warm


def plan_burst(entry: Entry, burst_s: float) -> Burst:
    """Choose a burst of about `burst_s`; calls under 200 us are timed in batches."""
    calls = [bound.call for bound in entry.calls]
    count, elapsed = 0, 0
    for call in calls:
        call()
    started = time.perf_counter_ns()
    while count < 1 or (elapsed < 2_000_000 and count < 10_000):
        calls[count % len(calls)]()
        count += 1
        elapsed = time.perf_counter_ns() - started
    one_s = elapsed / count * 1e-9
    per_batch = max(1, round(_BATCH_S / max(one_s, 1e-9)))
    least = 3 if one_s < _MANY_CALLS * burst_s else 1  # one long call a round is one of eleven
    batches = int(min(1000, max(least, burst_s / (per_batch * one_s))))
    return Burst(per_batch, batches, one_s < _LONG_CALL_S)


def run_burst(entry: Entry, burst: Burst) -> float:
    """One untimed call if calls are short, then the burst; the median call in nanoseconds."""
    calls = [bound.call for bound in entry.calls]
    turns = len(calls)
    clock = time.perf_counter_ns
    times = []
    place = 0
    collecting = gc.isenabled()
    gc.disable()
    try:
        if burst.warm:
            calls[0]()
            place = 1
        for _ in range(burst.batches):
            if turns == 1:
                call = calls[0]
                repeat = range(burst.calls)
                started = clock()
                for _ in repeat:
                    call()
                times.append((clock() - started) / burst.calls)
            else:
                batch = [calls[(place + n) % turns] for n in range(burst.calls)]
                place += burst.calls
                started = clock()
                for call in batch:
                    call()
                times.append((clock() - started) / burst.calls)
    finally:
        if collecting:
            gc.enable()
    times.sort()
    return times[len(times) // 2]


def copies_of(workload: Workload) -> int:
    """Sets of buffers to rotate, so that they exceed the last-level cache several times."""
    if not workload.rotate:
        return 1
    from tilewright.machine.target import Target

    last_level = max(Target.native().l3_bytes, Target.native().l2_bytes)
    shapes = [*input_specs(workload).values(), *output_specs(workload)]
    import numpy as np

    size_bytes = sum(
        int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in shapes
    )
    wanted = -(-_CACHES_IN_ROTATION * last_level // size_bytes)
    return max(1, min(wanted, _LARGEST_ROTATION_BYTES // size_bytes))


def fastest(entries: Sequence[Entry], seconds: float = 0.05) -> Entry:
    """The entry with the quickest call, each tried for about so long."""
    if len(entries) == 1:
        return entries[0]
    best: tuple[float, Entry] | None = None
    for entry in entries:
        call = entry.calls[-1].call
        call()
        times: list[float] = []
        started = time.perf_counter()
        while len(times) < 2 or time.perf_counter() - started < seconds:
            before = time.perf_counter()
            call()
            times.append(time.perf_counter() - before)
        if best is None or min(times) < best[0]:
            best = (min(times), entry)
    assert best is not None
    return best[1]


class Worker:
    """State of one child: what it stands for, and its entries by name."""

    def __init__(self, name: str, tell: Callable[[Any], None]) -> None:
        self.name = name
        self.tell = tell
        self.entries: dict[str, Entry] = {}
        self.bursts: dict[str, Burst] = {}
        self.workload: Workload | None = None
        self.ours: Ours | None = None
        self.oracle: Oracle | None = None
        self.peer: Peer | None = None
        self.ways: Sequence[Entry] = ()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        match request["do"]:
            case "prepare":
                return self.prepare(request)
            case "tune":
                assert self.ours is not None and self.workload is not None
                entry, stats = self.ours.tune(
                    request["budget_s"],
                    Path(request["db"]),
                    copies_of(self.workload),
                    self.event,
                )
                self.enter("ours", entry, request["burst_s"])
                return {"stats": stats}
            case "plan":
                entry = fastest(self.ways)
                self.ways = ()
                self.enter(self.name, entry, request["burst_s"])
                return {"outputs": entry.outputs_kind, "settings": entry.settings}
            case "fresh":
                assert self.ours is not None and self.workload is not None
                self.enter("fresh", self.ours.fresh(copies_of(self.workload)), request["burst_s"])
                return {}
            case "threads":
                from tilewright.tools import wiring

                wiring.use_threads(request["threads"])
                return {}
            case "round":
                name = request["entry"]
                return {"ns": run_burst(self.entries[name], self.bursts[name])}
            case "compute":
                return self.compute(request["entry"], request["seed"], request["path"])
            case "judge":
                assert self.oracle is not None
                return {"verdicts": self.oracle.judge(request["seed"], request["candidates"])}
            case "probe":
                from tilewright.tools import wiring

                return {"probes": wiring.probes(request["threads"])}
        raise ValueError(f"unknown request {request['do']}")

    def enter(self, name: str, entry: Entry, burst_s: float) -> None:
        self.entries[name] = entry
        self.bursts[name] = plan_burst(entry, burst_s)

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        workload = self.workload = Workload.from_json(request["workload"])
        if self.name == "oracle":
            from tilewright.tools.ours import Oracle

            self.oracle = Oracle()
            self.oracle.prepare(workload)
            return {}
        threads, burst_s = request["threads"], request["burst_s"]
        if self.name == "ours":
            from tilewright.tools.ours import Ours

            self.ours = Ours()
            entry, stats = self.ours.prepare(
                workload, threads, copies_of(workload), request.get("target")
            )
            self.enter("untuned", entry, burst_s)
            return {"version": self.ours.version(), "stats": stats, "outputs": entry.outputs_kind}
        self.ways = ()
        self.entries.clear()
        gc.collect()
        if self.peer is None:
            self.peer = load(self.name)
        version = self.peer.available()
        self.ways = self.peer.prepare(workload, threads, copies_of(workload))
        return {"version": version}

    def compute(self, name: str, seed: int, path: str) -> dict[str, Any]:
        """Write the outputs of the very entry that is timed, on the inputs of another seed."""
        import numpy as np

        assert self.workload is not None
        entry = self.entries[name]
        fresh = make_inputs(self.workload, input_specs(self.workload), seed)
        bound = entry.calls[-1]
        kept = {tensor: buffer.copy() for tensor, buffer in bound.inputs.items()}
        for tensor, buffer in bound.inputs.items():
            buffer[...] = fresh[tensor]
        bound.refresh()
        bound.call()
        save_arrays(path, self.as_declared([np.asarray(array) for array in bound.outputs()]))
        for tensor, buffer in bound.inputs.items():
            buffer[...] = kept[tensor]
        bound.refresh()
        return {}

    def as_declared(self, arrays: list[Array]) -> list[Array]:
        """Integers of a peer in the width of the program: some count positions in 32 bits."""
        assert self.workload is not None
        if self.workload.model or self.ours is not None:
            return arrays
        kinds = [dtype for _, dtype in output_specs(self.workload)]
        return [
            array.astype(kind) if array.dtype.kind in "iu" else array
            for array, kind in zip(arrays, kinds, strict=True)
        ]

    def event(self, state: Any) -> None:
        """Pass the state of a search on to the parent."""
        names = ("task", "done", "total", "best_us", "ratio", "elapsed_s", "left_s", "finished")
        data = {name: getattr(state, name, None) for name in names}
        data["rejected"] = dict(getattr(state, "rejected", {}) or {})
        self.tell({"event": data})


def _end_with_parent() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() == 1:
        os._exit(1)


def main(arguments: list[str]) -> int:
    """`python -m tilewright.tools.worker NAME DESCRIPTOR [CPU,...]`."""
    _end_with_parent()
    name, descriptor = arguments[0], int(arguments[1])
    if len(arguments) > 2:
        os.sched_setaffinity(0, {int(cpu) for cpu in arguments[2].split(",")})
    if name in ("ours", "oracle"):
        from tilewright.tools.ours import forbid_frameworks

        forbid_frameworks()
    os.dup2(2, 1)  # libraries may print; our answers go elsewhere
    with os.fdopen(descriptor, "w", encoding="utf-8") as replies:

        def tell(data: Any) -> None:
            replies.write(json.dumps(data) + "\n")
            replies.flush()

        worker = Worker(name, tell)
        for line in sys.stdin:
            try:
                answer: dict[str, Any] = {"ok": True, **worker.answer(json.loads(line))}
            except Unavailable as error:
                answer = {"ok": False, "skip": str(error)}
            except TilewrightError as error:
                answer = {"ok": False, "error": f"[{error.code}] {error.message}"}
            except Exception as error:  # noqa: BLE001  the row reports it, the run goes on
                if os.environ.get("TILEWRIGHT_DEBUG", "0") != "0":
                    import traceback

                    traceback.print_exc()
                answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            tell(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
