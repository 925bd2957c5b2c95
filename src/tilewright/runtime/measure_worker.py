"""The isolated side of measuring: a supervisor that forks a runner for each batch.

In: frames with candidates (see `runtime.candidates`). Out: frames with timings, outputs and
rejections. Invariant: the supervisor has one thread and never runs code under test; a runner that
crashes, hangs or spoils memory loses one candidate, and the rest goes to a new runner. Input
buffers belong to the supervisor; a runner sees them copy-on-write, so each one finds them whole.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import select
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import TilewrightError
from tilewright.runtime.candidates import (
    Buffer,
    Candidate,
    Expected,
    Plan,
    buffer_values,
    dtype_named,
    read_candidate,
    read_expected,
)
from tilewright.runtime.context import Memory
from tilewright.runtime.eviction import evict
from tilewright.runtime.jit import LoadedObject, load_object
from tilewright.runtime.pool import Step, StepTable, walker_address
from tilewright.runtime.wire import Header, serve, signal_name

_PAGE = 4096
_RED = 64  # bytes of pattern kept before and behind every private buffer
_PATTERN = 0xA5
_BLOB_BYTES = 2 << 30  # blobs and inputs that the supervisor keeps beyond a batch
_MAX_ROWS = 4096
_MOST_COLD = 8  # runs of a sample before each of which memory is put out of the caches
_LONG = 4.0  # a run of this many times the length of a sample needs no company
_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The candidate is rejected: code and detail."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


# --------------------------------------------------------------------------- supervisor


class Store:
    """Blobs and filled input buffers, the longest unused given up first."""

    def __init__(self) -> None:
        self.blobs: OrderedDict[str, bytes] = OrderedDict()
        self.inputs: OrderedDict[Buffer, Memory] = OrderedDict()

    def add(self, header: Header, body: bytes) -> list[str]:
        """Keep the blobs of a frame; the keys that the frame needs and nobody has."""
        offset = 0
        for key, size in header["sent"]:
            self.blobs[key] = body[offset : offset + size]
            offset += size
        for key in header["needed"]:
            if key in self.blobs:
                self.blobs.move_to_end(key)
        return [key for key in header["needed"] if key not in self.blobs]

    def prepare(self, candidates: list[Candidate]) -> None:
        """Fill the input buffers of a batch that are not there yet."""
        wanted = {b for c in candidates for b in c.buffers if b.role == "input"}
        for buffer in wanted:
            if buffer in self.inputs:
                self.inputs.move_to_end(buffer)
                continue
            memory = Memory(buffer.size_bytes + 2 * _PAGE)
            whole = memory.array(memory.size, np.dtype(np.uint8))
            whole[: _PAGE + buffer.size_bytes + _RED] = _PATTERN
            whole[_PAGE : _PAGE + buffer.size_bytes] = buffer_values(buffer)
            self.inputs[buffer] = memory
        kept = sum(map(len, self.blobs.values())) + sum(m.size for m in self.inputs.values())
        while kept > _BLOB_BYTES and len(self.inputs) > len(wanted):
            kept -= self.inputs.popitem(last=False)[1].size
        while kept > _BLOB_BYTES and len(self.blobs) > 64:
            kept -= len(self.blobs.popitem(last=False)[1])


class Batch:
    """One request, read."""

    def __init__(self, header: Header, blobs: Mapping[str, bytes]) -> None:
        self.plan = Plan(**header["plan"])
        self.candidates = [read_candidate(c, blobs) for c in header["candidates"]]
        reference = header["reference"]
        self.reference = None if reference is None else read_candidate(reference, blobs)
        self.expected = [read_expected(e, blobs) for e in header["expected"]]


def _answer_with(store: Store) -> Callable[[Header, bytes], tuple[Header, bytes]]:
    def answer(header: Header, body: bytes) -> tuple[Header, bytes]:
        missing = store.add(header, body)
        if missing:
            return {"missing": missing}, b""
        batch = Batch(header, store.blobs)
        candidates = list(batch.candidates)
        if batch.reference is not None:
            candidates.append(batch.reference)
        store.prepare(candidates)
        gc.freeze()  # collections in a runner do not touch, and so copy, what is shared
        results: dict[int, Header] = {}
        outputs: dict[tuple[int, int], bytes] = {}
        while len(results) < len(batch.candidates):
            open_numbers = [k for k in range(len(batch.candidates)) if k not in results]
            _run_in_child(batch, open_numbers, store, results, outputs)
        keys = sorted(outputs)
        reply = {
            "results": [results[k] for k in range(len(batch.candidates))],
            "outputs": [[*key, len(outputs[key])] for key in keys],
        }
        return reply, b"".join(outputs[key] for key in keys)

    return answer


def _run_in_child(
    batch: Batch,
    numbers: list[int],
    store: Store,
    results: dict[int, Header],
    outputs: dict[tuple[int, int], bytes],
) -> None:
    """Fork a runner for the candidates `numbers`, and note what it says and how it ends."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = 1
        try:
            _run(batch, numbers, store, _Speaker(sink))
            status = 0
        except Exception as error:  # noqa: BLE001 - an isolated process reports and dies
            _Speaker(sink).say({"broken": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(status)
    os.close(sink)
    listener = _Listener(source, outputs)
    current, place, code, ending = -1, "the beginning", "R020", ""
    done = len(results)
    try:
        while (message := listener.next(batch.plan.timeout_s)) is not None:
            if "at" in message:
                current, place = message["at"], message["place"]
            elif "broken" in message:
                ending = message["broken"]
            elif "result" in message:
                results[message["result"]] = message["value"]
    except TimeoutError:
        code, ending = "R021", f"ran over {batch.plan.timeout_s} s in {place}"
        os.kill(child, signal.SIGKILL)
    os.close(source)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not ending and status:
        name = signal_name(-status) if status < 0 else f"exit status {status}"
        ending = f"{name} in {place}"
    if not ending and len(results) == done:
        ending = "the runner ended without a result"
    if not ending:
        return
    if current in numbers:
        results.setdefault(current, {"code": code, "detail": ending})
    else:
        for number in numbers:
            results.setdefault(number, {"code": code, "detail": f"the reference failed: {ending}"})


class _Speaker:
    """The runner's end of the pipe: one JSON line per message, blobs behind their line."""

    def __init__(self, sink: int) -> None:
        self._sink = sink

    def say(self, message: Header, blob: bytes | memoryview = b"") -> None:
        rest = memoryview(json.dumps(message).encode() + b"\n" + bytes(blob))
        while rest:
            rest = rest[os.write(self._sink, rest) :]


class _Listener:
    """The supervisor's end of the pipe."""

    def __init__(self, source: int, outputs: dict[tuple[int, int], bytes]) -> None:
        self._source = source
        self._outputs = outputs
        self._pending = bytearray()

    def next(self, timeout_s: float) -> Header | None:
        """The next message; None when the runner has ended. Errors: TimeoutError."""
        while (end := self._pending.find(b"\n")) < 0:
            if not self._more(timeout_s):
                return None
        message: Header = json.loads(self._pending[:end])
        del self._pending[: end + 1]
        if "output" in message:
            number, buffer, size = message["output"]
            while len(self._pending) < size:
                if not self._more(timeout_s):
                    return None
            self._outputs[number, buffer] = bytes(self._pending[:size])
            del self._pending[:size]
        return message

    def _more(self, timeout_s: float) -> bool:
        if not select.select([self._source], [], [], timeout_s)[0]:
            raise TimeoutError
        part = os.read(self._source, 1 << 20)
        self._pending += part
        return bool(part)


# --------------------------------------------------------------------------- runner


class _Guarded:
    """Memory whose end (up to `align`) touches a page that must not be touched."""

    def __init__(self, size: int, align: int) -> None:
        body = -(-(size + _RED) // _PAGE) * _PAGE
        self.size = size
        self._memory = Memory(body + 3 * _PAGE)
        first = -(-self._memory.address // _PAGE) * _PAGE
        end = first + _PAGE + body
        for page in (first, end):
            if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        self.address = (end - size) // align * align
        self.before = self.address - (first + _PAGE)
        self.behind = end - self.address - size


class _Plain:
    """Memory on a page boundary, with a pattern on both sides."""

    def __init__(self, size: int, memory: Memory | None = None) -> None:
        self._memory = Memory(size + 2 * _PAGE) if memory is None else memory
        self.size = size
        self.address = self._memory.address + _PAGE
        self.before = self.behind = _RED


# What candidates write, by position, rotation, size and alignment. They are checked one after the
# other, so all but the reference may use the same memory; it is at one place for all of them.
Memories = dict[tuple[int, int, int, int], _Guarded | _Plain]


class Placed:
    """One buffer of a candidate in this process."""

    def __init__(self, buffer: Buffer, memory: _Guarded | _Plain, shared: bool) -> None:
        self.buffer = buffer
        self.memory = memory
        self.address = memory.address
        self.is_shared = shared

    def view(self, before: int = 0, behind: int = 0) -> NDArray[np.uint8]:
        """The buffer as bytes, with some of what surrounds it."""
        size = before + self.buffer.size_bytes + behind
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address - before))

    def reset(self) -> None:
        """Put the starting contents back, with the pattern around them."""
        if not self.is_shared:
            memory = self.memory
            around = self.view(memory.before, memory.behind)
            around[: memory.before] = _PATTERN
            around[memory.before + self.buffer.size_bytes :] = _PATTERN
            if self.buffer.fill.kind == "garbage":
                self.view().fill(255)
            else:
                self.view()[:] = buffer_values(self.buffer)

    def check_surroundings(self, number: int) -> None:
        """Errors: Refused R022 when a byte around the buffer, or of an input, has changed."""
        memory = self.memory
        around = self.view(memory.before, memory.behind)
        size = self.buffer.size_bytes
        if (around[: memory.before] != _PATTERN).any():
            raise Refused("R022", f"bytes before buffer {number} were written")
        if (around[memory.before + size :] != _PATTERN).any():
            raise Refused("R022", f"bytes behind buffer {number} were written")


def _digest(data: NDArray[np.uint8]) -> int:
    """A quick fingerprint that any single write changes."""
    whole = data.size // 8 * 8
    words = data[:whole].view(np.uint64).sum(dtype=np.uint64)
    return int(words) + (int(data[whole:].sum(dtype=np.uint64)) << 64)


class Prepared:
    """A candidate loaded and placed: ready to run and be checked."""

    def __init__(
        self, candidate: Candidate, plan: Plan, store: Store, number: int, memories: Memories
    ) -> None:
        self._memories = memories
        self.candidate = candidate
        self.number = number
        self._loaded = [load_object(data) for data in candidate.objects]
        self.rotations = [self._place(plan, store, k) for k in range(max(1, plan.rotations))]
        self._args: list[Any] = []
        self._rows = [self._bind(places) for places in self.rotations]
        self._cold = [p for places in self.rotations for p in places if p.buffer.cold]
        self._turn = 0
        self._tables: list[StepTable] = []
        self._runs = 1
        self.first_s = 0.0  # how long the verified run took
        # What other processes take of the CPU is nothing of the candidate's. With helpers only the
        # wall clock sees how well the work was shared.
        is_alone = candidate.threads == 1
        self._clock_ns = time.thread_time_ns if is_alone else time.perf_counter_ns

    def _place(self, plan: Plan, store: Store, rotation: int) -> list[Placed]:
        places = []
        for position, buffer in enumerate(self.candidate.buffers):
            shared = buffer.role == "input" and rotation == 0 and not plan.guard
            key = (position, rotation, buffer.size_bytes, buffer.align)
            memory = None if buffer.role == "input" else self._memories.get(key)
            if memory is None:
                if plan.guard:
                    memory = _Guarded(buffer.size_bytes, buffer.align)
                else:
                    memory = _Plain(buffer.size_bytes, store.inputs[buffer] if shared else None)
                if buffer.role != "input":
                    self._memories[key] = memory
            place = Placed(buffer, memory, shared)
            place.reset()
            places.append(place)
        return places

    def _bind(self, places: list[Placed]) -> list[Step]:
        steps = []
        for step in self.candidate.steps:
            words = [places[k].address for k in step.args] + list(step.numbers)
            args = (ctypes.c_uint64 * max(1, len(words)))(*(w & (1 << 64) - 1 for w in words))
            self._args.append(args)
            address = _address(self._loaded, step.function)
            pointer = ctypes.addressof(args)
            steps.append(Step(address, pointer, step.chunks, step.serial, step.grain))
        return steps

    def _table(self, steps: list[Step]) -> StepTable:
        threads, scratch = self.candidate.threads, self.candidate.scratch_bytes
        return StepTable(steps, threads, scratch_bytes=scratch)

    def verify_run(self, say: Callable[[int, str], None]) -> None:
        """Run once, step by step. Errors: Refused R022 for writes beside the outputs."""
        places = self.rotations[0]
        inputs = [p for p in places if p.buffer.role == "input"]
        before = [_digest(p.view()) for p in inputs]
        for index, step in enumerate(self._rows[0]):
            name = self.candidate.steps[index].function
            say(self.number, f"step {index} ({name})")
            table = self._table([step])
            start = self._clock_ns()
            table.run()
            self.first_s += 1e-9 * (self._clock_ns() - start)
        say(self.number, "checking")
        for number, place in enumerate(places):
            place.check_surroundings(number)
        if before != [_digest(p.view()) for p in inputs]:
            changed = [k for k, p in enumerate(places) if p.buffer.role == "input"]
            raise Refused("R022", f"an input was written (one of buffers {changed})")

    def output(self, buffer: int) -> NDArray[np.uint8]:
        return self.rotations[0][buffer].view()

    def plan_samples(self, sample_s: float) -> None:
        """Warm up, and choose how many runs make one sample."""
        single = self._table(self._rows[0])
        best, spent = self.first_s, 0.0
        for _ in range(20):
            if self.first_s > _LONG * sample_s:
                break  # it is warm, and one run is a sample
            took = 1e-9 * self._timed(single)
            best, spent = min(best, took), spent + took
            if spent > sample_s:
                break
        most = max(1, _MAX_ROWS // max(1, len(self._rows[0])))
        self._runs = max(1, min(most, int(sample_s / max(best, 1e-8))))
        if self._cold:
            self._runs = min(self._runs, _MOST_COLD)
            self._tables = [single]
            return
        count = len(self._rows)
        for first in range(count):
            rows = [step for k in range(self._runs) for step in self._rows[(first + k) % count]]
            self._tables.append(self._table(rows))
            if self._runs >= count:
                break

    def sample(self) -> float:
        """Seconds of one run, from one sample."""
        if self._cold:
            return 1e-9 * sum(self._timed(self._tables[0]) for _ in range(self._runs)) / self._runs
        table = self._tables[self._turn % len(self._tables)]
        self._turn += self._runs if len(self._tables) > 1 else 1
        return 1e-9 * self._timed(table) / self._runs

    def _timed(self, table: StepTable) -> int:
        """Nanoseconds of one walk through `table`."""
        for place in self._cold:
            evict(place.address, place.buffer.size_bytes)
        start = self._clock_ns()
        table.run()
        return max(1, self._clock_ns() - start)


def _address(loaded: list[LoadedObject], name: str) -> int:
    for code in loaded:
        if name in code.symbols:
            return code.address(name)
    raise Refused("R011", f"no object exports {name!r}")


def _largest(values: NDArray[np.uint8], dtype: np.dtype[Any]) -> float:
    """The largest finite magnitude."""
    whole, most = values[: values.size // dtype.itemsize * dtype.itemsize].view(dtype), 0.0
    for first in range(0, whole.size, 1 << 18):
        part = np.abs(whole[first : first + (1 << 18)].astype(np.float64))
        top = float(part.max(initial=0.0))
        most = max(most, top if np.isfinite(top) else part[np.isfinite(part)].max(initial=0.0))
    return most


def _is_near(a: NDArray[Any], b: NDArray[Any], bound: float) -> bool:
    """A quick test that is passed by almost all: floats without NaN, each within the bound."""
    if a.dtype.kind != "f" or a.dtype.itemsize < 4:
        return False
    with np.errstate(all="ignore"):
        return bool(np.abs(a - b).max(initial=0.0) < bound)


def compare(expected: Expected, wanted: NDArray[np.uint8], got: NDArray[np.uint8]) -> None:
    """Return if `got` is as expected. Errors: Refused V001."""
    where = f"output buffer {expected.buffer}"
    if wanted.size != got.size:
        raise Refused("V001", f"{where} has {got.size} bytes, expected {wanted.size}")
    if expected.bound is None:
        different = np.flatnonzero(wanted != got)
        if different.size:
            count = f"{different.size} bytes, first {different[0]}"
            raise Refused("V001", f"{where} differs in {count}")
        return
    if np.array_equal(wanted, got):
        return
    dtype = dtype_named(expected.dtype)
    bound = expected.bound
    if expected.relative:
        bound += expected.relative * _largest(wanted, dtype)
    size, part = wanted.size // dtype.itemsize, 1 << 18
    wanted_all, got_all = (a[: size * dtype.itemsize].view(dtype) for a in (wanted, got))
    for first in range(0, size, part):
        a, b = wanted_all[first : first + part], got_all[first : first + part]
        if _is_near(a, b, bound):
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        with np.errstate(invalid="ignore"):
            # Equal infinities and two NaN are no difference; one of them alone is an infinite one.
            gap = np.abs(a - b)
            gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
            gap[np.isnan(gap)] = np.inf
        worst = int(gap.argmax()) if gap.size else 0
        if gap.size and gap[worst] > bound:
            raise Refused(
                "V001",
                f"{where}: element {first + worst} is {b[worst]:.9g}, expected {a[worst]:.9g}, "
                f"allowed difference {bound:.3g}",
            )


def _run(batch: Batch, numbers: list[int], store: Store, speaker: _Speaker) -> None:
    """Measure `numbers` and say the results."""

    def at(number: int, place: str) -> None:
        speaker.say({"at": number, "place": place})

    plan = batch.plan
    reference = None
    if batch.reference is not None:
        at(-1, "loading")
        reference = Prepared(batch.reference, plan, store, -1, {})
        reference.verify_run(at)
    ready: list[Prepared] = []
    memories: Memories = {}
    for number in numbers:
        at(number, "loading")
        try:
            prepared = Prepared(batch.candidates[number], plan, store, number, memories)
            prepared.verify_run(at)
            for expected in batch.expected:
                if expected.values is not None:
                    wanted = np.frombuffer(expected.values, np.uint8)
                elif reference is not None:
                    wanted = reference.output(expected.buffer)
                else:
                    raise Refused("V001", "nothing to compare with")
                compare(expected, wanted, prepared.output(expected.buffer))
        except Refused as refused:
            value = {"code": refused.code, "detail": refused.detail}
            speaker.say({"result": number, "value": value})
            if refused.code == "R022":
                return  # memory of other candidates may be spoiled; a new runner serves them
            continue
        except TilewrightError as error:
            value = {"code": error.code, "detail": error.message}
            speaker.say({"result": number, "value": value})
            continue
        if reference is not None and _is_screened(prepared.first_s, reference.first_s, plan):
            first = {"seconds": [prepared.first_s], "reference": [reference.first_s]}
            speaker.say({"result": number, "value": first})
            continue
        if plan.return_outputs:
            for index, buffer in enumerate(batch.candidates[number].buffers):
                if buffer.role == "output":
                    data = prepared.output(index).tobytes()
                    speaker.say({"output": [number, index, len(data)]}, data)
        ready.append(prepared)
    for number, times, others in _time(ready, reference, plan, at):
        speaker.say({"result": number, "value": {"seconds": times, "reference": others}})


def _is_screened(own_s: float, other_s: float, plan: Plan) -> bool:
    """Is the first run so slow that no more are needed? Short ones do not tell."""
    if plan.screen is None or other_s < _LONG * plan.sample_s:
        return False
    return own_s > plan.screen * other_s


def _time(
    ready: list[Prepared],
    reference: Prepared | None,
    plan: Plan,
    at: Callable[[int, str], None],
) -> list[tuple[int, list[float], list[float]]]:
    """Interleaved rounds: the reference before and behind each candidate's sample."""
    own: dict[int, list[float]] = {p.number: [] for p in ready}
    other: dict[int, list[float]] = {p.number: [] for p in ready}
    if plan.rounds:
        for prepared in ([] if reference is None else [reference]) + ready:
            at(prepared.number, "warming up")
            prepared.plan_samples(plan.sample_s)
    racing = list(ready)
    for turn in range(plan.rounds):
        # Every second round runs backwards, so that a slow drift hits all alike.
        before = 0.0
        if reference is not None:
            at(-1, "timing")
            before = reference.sample()
        for prepared in racing if turn % 2 == 0 else racing[::-1]:
            at(prepared.number, "timing")
            own[prepared.number].append(prepared.sample())
            if reference is not None:
                at(-1, "timing")
                after = reference.sample()
                other[prepared.number].append((before + after) / 2)
                before = after
        if plan.prune is not None and turn >= 1:
            best = min((min(own[p.number]) for p in racing), default=0.0)
            racing = [p for p in racing if min(own[p.number]) <= plan.prune * best]
    return [(p.number, own[p.number], other[p.number]) for p in ready]


def main(arguments: list[str]) -> None:
    """Serve until standard input closes."""
    walker_address()  # the pool's code is loaded once, here; its threads start in the runners
    serve(_answer_with(Store()))
