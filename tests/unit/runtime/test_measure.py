"""Isolated measuring: crashes, hangs, wrong and stray writes, pairing, and a parent that survives."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tilewright.errors import Rejected
from tilewright.machine.target import Target
from tilewright.runtime import measure_worker
from tilewright.runtime.build import build
from tilewright.runtime.candidates import dtype_named
from tilewright.runtime.eviction import evict
from tilewright.runtime.measure import (
    Buffer,
    Candidate,
    CandidateStep,
    Expected,
    Fill,
    Measurer,
    Plan,
    Timing,
    buffer_values,
    measure_batch,
)

TARGET = Target.native()
COUNT = 1000
QUICK = Plan(rounds=3, sample_s=0.0002)
# args: ptr x, ptr z, i64 n (floats a chunk). The marked lines differ between the candidates.
TEMPLATE = """
define void @k(ptr %args, i64 %lo, i64 %hi, ptr %scratch) #A {
entry:
  %x = load ptr, ptr %args
  %p1 = getelementptr i8, ptr %args, i64 8
  %z = load ptr, ptr %p1
  %p2 = getelementptr i8, ptr %args, i64 16
  %n = load i64, ptr %p2
  %first = mul i64 %lo, %n
  %end0 = mul i64 %hi, %n
  %end = add i64 %end0, EXTRA
  br label %loop
loop:
  %i = phi i64 [%first, %entry], [%j, %loop]
  %px = getelementptr float, ptr %x, i64 %i
  %a = load float, ptr %px
  BODY
  %pz = getelementptr float, ptr %z, i64 %i
  store float %r, ptr %pz
  %j = add i64 %i, STEP
  %t = icmp slt i64 %j, %end
  br i1 %t, label %loop, label %out
out:
  AFTER
  ret void
}
declare void @abort()
declare i64 @exit(i32)
""".replace("#A", TARGET.function_attributes())


def code(
    body: str = "%r = fmul float %a, 3.0", *, step: int = 1, extra: int = 0, after: str = ""
) -> bytes:
    text = TEMPLATE.replace("BODY", body).replace("STEP", str(step)).replace("EXTRA", str(extra))
    return build(text.replace("AFTER", after), TARGET)


X = Buffer(4 * COUNT, "input", Fill("random", "float32", seed=5), align=4)
Z = Buffer(4 * COUNT, "output", align=4)


def candidate(data: bytes, **changes: Any) -> Candidate:
    step = CandidateStep("k", (0, 1), (100,), chunks=COUNT // 100)
    return replace(Candidate((data,), (step,), (X, Z)), **changes)


GOOD = candidate(code())
SLOW = candidate(
    code("%s = fdiv float %a, 7.0\n  %u = fdiv float %s, 0.25\n  %r = fmul float %a, 3.0")
)
X_VALUES = buffer_values(X).view(np.float32)
EXPECTED = Expected(1, "float32", (X_VALUES * np.float32(3)).tobytes(), bound=1e-6)
CRASHES = {
    "SIGSEGV": candidate(code("%r = load float, ptr inttoptr (i64 64 to ptr)")),
    "SIGABRT": candidate(code("call void @abort()\n  %r = fmul float %a, 3.0")),
    "exit status 3": candidate(code(after="%e = call i64 @exit(i32 3)")),
}
HANGS = candidate(code(step=0))


@pytest.fixture(scope="module")
def measurer() -> Iterator[Measurer]:
    one = Measurer()
    yield one
    one.close()


def assert_timing(result: Timing | Rejected) -> Timing:
    assert isinstance(result, Timing), result
    return result


def rejected(result: Timing | Rejected) -> Rejected:
    assert isinstance(result, Rejected), result
    return result


def test_good_candidates_are_timed_in_pairs(measurer: Measurer) -> None:
    results = measurer.measure_batch([GOOD, SLOW, GOOD], GOOD, [EXPECTED], Plan(rounds=9))
    for result in map(assert_timing, results):
        assert len(result.seconds) == len(result.reference_seconds) == 9
        assert min(result.seconds) > 1e-9 and result.spread >= 0
        assert result.ratio == pytest.approx(
            result.median_s / np.median(result.reference_seconds), rel=0.9
        )
    assert assert_timing(measurer.measure_batch([GOOD], plan=QUICK)[0]).reference_seconds == ()
    assert measurer.measure_batch([]) == []


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "exit status 3"])
def test_a_crash_costs_only_its_candidate(measurer: Measurer, name: str) -> None:
    batch = [GOOD, CRASHES[name], SLOW, CRASHES[name], GOOD]
    results = measurer.measure_batch(batch, GOOD, [EXPECTED], QUICK)
    for bad in (results[1], results[3]):
        assert rejected(bad).code == "R020"
        assert name in rejected(bad).detail and "step 0 (k)" in rejected(bad).detail
    for good in (results[0], results[2], results[4]):
        assert_timing(good)


def test_a_hang_costs_its_time_limit(measurer: Measurer) -> None:
    start = time.monotonic()
    plan = replace(QUICK, timeout_s=0.5)
    results = measurer.measure_batch([GOOD, HANGS, GOOD], GOOD, [EXPECTED], plan)
    assert time.monotonic() - start < 10
    assert rejected(results[1]).code == "R021" and "step 0" in rejected(results[1]).detail
    assert_timing(results[0])
    assert_timing(results[2])


def test_wrong_outputs(measurer: Measurer) -> None:
    wrong = candidate(code("%r = fmul float %a, 3.125"))
    skips = candidate(code(step=2))
    nan = candidate(code("%r = fdiv float 0.0, 0.0"))
    results = measurer.measure_batch([wrong, GOOD, skips, nan], None, [EXPECTED], QUICK)
    assert [isinstance(r, Rejected) and r.code for r in results] == ["V001", False, "V001", "V001"]
    assert "element" in rejected(results[0]).detail and "1e-06" in rejected(results[0]).detail
    exact = replace(EXPECTED, bound=None)
    assert_timing(measurer.measure_batch([GOOD], None, [exact], QUICK)[0])
    assert "bytes" in rejected(measurer.measure_batch([wrong], None, [exact], QUICK)[0]).detail
    like_reference = Expected(1, "float32", bound=0.0)
    results = measurer.measure_batch([wrong, GOOD], GOOD, [like_reference], QUICK)
    assert rejected(results[0]).code == "V001" and assert_timing(results[1])
    short = replace(EXPECTED, values=(EXPECTED.values or b"")[:-4])
    assert (
        "expected 3996" in rejected(measurer.measure_batch([GOOD], None, [short], QUICK)[0]).detail
    )


def test_stray_writes(measurer: Measurer) -> None:
    behind = candidate(code(extra=1))
    before = candidate(code(after="%q = getelementptr i8, ptr %z, i64 -1\n  store i8 0, ptr %q"))
    own_input = candidate(code(after="store float 1.0, ptr %x"))
    batch = [behind, GOOD, before, own_input, GOOD]
    results = measurer.measure_batch(batch, GOOD, [EXPECTED], QUICK)
    codes = [r.code if isinstance(r, Rejected) else "" for r in results]
    assert codes == ["R022", "", "R022", "R022", ""]
    assert "behind buffer 1" in rejected(results[0]).detail
    assert "before buffer 1" in rejected(results[2]).detail
    assert "input" in rejected(results[3]).detail


def test_guard_pages_catch_reads_too(measurer: Measurer) -> None:
    guarded = replace(QUICK, guard=True)
    reads = "%far = getelementptr float, ptr %px, i64 1\n  %b = load volatile float, ptr %far\n"
    reads_behind = candidate(code(reads + "  %r = fmul float %a, 3.0"))
    assert assert_timing(measurer.measure_batch([reads_behind], None, [EXPECTED], QUICK)[0])
    results = measurer.measure_batch([GOOD, reads_behind, GOOD], None, [EXPECTED], guarded)
    assert "SIGSEGV" in rejected(results[1]).detail
    assert_timing(results[0])
    assert_timing(results[2])
    for size in (4, 60, 64, 4096, 4100, 1 << 21):
        count = size // 4
        step = CandidateStep("k", (0, 1), (count,))
        buffers = (replace(X, size_bytes=size), replace(Z, size_bytes=size, align=64))
        one = candidate(code(), steps=(step,), buffers=buffers)
        assert_timing(measurer.measure_batch([one], plan=guarded)[0])
        # Between an aligned buffer's end and the guard page there is only pattern.
        past = candidate(
            code(after="%q = getelementptr float, ptr %z, i64 %end\n  store i8 0, ptr %q"),
            steps=(step,),
            buffers=buffers,
        )
        assert rejected(measurer.measure_batch([past], plan=guarded)[0]).code in ("R020", "R022")


def test_a_failing_reference_rejects_all(measurer: Measurer) -> None:
    results = measurer.measure_batch([GOOD, GOOD], CRASHES["SIGSEGV"], (), QUICK)
    for result in results:
        assert rejected(result).code == "R020" and "reference" in rejected(result).detail
    results = measurer.measure_batch([GOOD], HANGS, (), replace(QUICK, timeout_s=0.3))
    assert rejected(results[0]).code == "R021"


def test_objects_that_cannot_be_loaded(measurer: Measurer) -> None:
    missing = candidate(code(), steps=(CandidateStep("other", (0, 1), (100,)),))
    results = measurer.measure_batch([candidate(b"no object"), missing, GOOD], None, (), QUICK)
    assert [isinstance(r, Rejected) and r.code for r in results] == ["R011", "R011", False]


def test_outputs_come_back(measurer: Measurer) -> None:
    plan = Plan(rounds=0, return_outputs=True)
    large = Buffer(4_000_000, "output")
    source = Buffer(4_000_000, "input", Fill("random", "float32", seed=9))
    step = CandidateStep("k", (0, 1), (1000,), chunks=1000)
    big = candidate(code(), steps=(step,), buffers=(source, large), threads=2)
    results = measurer.measure_batch([GOOD, CRASHES["SIGABRT"], big], None, (), plan)
    assert assert_timing(results[0]).outputs == {1: EXPECTED.values}
    expected = buffer_values(source).view(np.float32) * np.float32(3)
    assert assert_timing(results[2]).outputs[1] == expected.tobytes()
    assert assert_timing(results[2]).seconds == ()


def test_fills() -> None:
    for name in ("float64", "float32", "float16", "bfloat16", "int8", "uint8", "int64", "bool"):
        for size in (0, 8, 8192):
            one = buffer_values(Buffer(size, "input", Fill("random", name, seed=3)))
            two = buffer_values(Buffer(size, "input", Fill("random", name, seed=3)))
            assert one.nbytes == size and np.array_equal(one, two)
        values = one.view(dtype_named(name)).astype(np.float64)
        assert len(np.unique(values)) > 1 and np.isfinite(values).all()
    small = buffer_values(Buffer(8000, "input", Fill("random", "int32", low=-2, high=3)))
    assert set(small.view(np.int32)) == {-2, -1, 0, 1, 2}
    scaled = buffer_values(Buffer(8000, "input", Fill("random", "float32", scale=0.01)))
    assert 0.005 < scaled.view(np.float32).std() < 0.02
    given = buffer_values(Buffer(4, "input", Fill("values", values=b"abcd")))
    assert given.tobytes() == b"abcd"
    assert np.isnan(buffer_values(Buffer(64, "output")).view(np.float32)).all()


def test_rotations_and_several_steps(measurer: Measurer) -> None:
    middle = Buffer(4 * COUNT, "scratch")
    steps = (
        CandidateStep("k", (0, 2), (100,), chunks=10),
        CandidateStep("k", (2, 1), (50,), chunks=20, grain=3),
    )
    nine = Expected(1, "float32", (X_VALUES * np.float32(3) * np.float32(3)).tobytes(), 1e-5)
    one = candidate(code(), steps=steps, buffers=(X, Z, middle), threads=2)
    for rotations in (1, 2, 5, 40):
        plan = Plan(rounds=4, sample_s=1e-5, rotations=rotations)
        assert_timing(measurer.measure_batch([one], one, [nine], plan)[0])


def test_slow_candidates_are_pruned(measurer: Measurer) -> None:
    steps = (CandidateStep("k", (0, 1), (100,), chunks=10),) * 400
    much = candidate(code(), steps=steps)
    results = measurer.measure_batch([GOOD, much], GOOD, (), Plan(rounds=12, prune=8.0))
    assert len(assert_timing(results[0]).seconds) == 12
    assert len(assert_timing(results[1]).seconds) == len(assert_timing(results[1]).reference_seconds) == 2


def test_a_killed_supervisor_is_replaced() -> None:
    one = Measurer()
    assert_timing(one.measure_batch([GOOD], plan=QUICK)[0])
    assert one._worker is not None
    os.kill(one._worker.pid, signal.SIGKILL)
    assert rejected(one.measure_batch([GOOD], plan=QUICK)[0]).code == "R020"
    assert_timing(one.measure_batch([GOOD], plan=QUICK)[0])
    one.close()
    assert_timing(one.measure_batch([GOOD], plan=QUICK)[0])
    one.close()


def test_a_supervisor_that_forgot_its_blobs_asks_again(measurer: Measurer) -> None:
    assert_timing(measurer.measure_batch([GOOD], GOOD, [EXPECTED], QUICK)[0])
    other = candidate(code("%r = fmul float %a, 5.0"))
    measurer._sent.add(hashlib.sha256(other.objects[0]).hexdigest())
    assert_timing(measurer.measure_batch([other], None, (), QUICK)[0])


def test_the_shared_measurer_in_parent_and_child() -> None:
    assert_timing(measure_batch([GOOD], plan=QUICK)[0])
    child = os.fork()
    if child == 0:
        from tilewright.runtime import measure

        result = measure_batch([GOOD, CRASHES["SIGSEGV"]], plan=QUICK)
        fine = isinstance(result[0], Timing) and isinstance(result[1], Rejected)
        measure._shared.close()
        os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert_timing(measure_batch([GOOD], plan=QUICK)[0])


def test_the_longest_unused_inputs_are_given_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the batch at hand needs stays, however long ago it was filled."""
    from types import SimpleNamespace

    from tilewright.runtime import measure_worker

    old, other, new = (
        Buffer(40_000, "input", Fill("random", "float32", seed=k)) for k in range(3)
    )

    def batch(*buffers: Buffer) -> Any:
        return [SimpleNamespace(buffers=buffers)]

    store = measure_worker.Store()
    store.prepare(batch(old))
    store.prepare(batch(other))
    monkeypatch.setattr(measure_worker, "_BLOB_BYTES", 100_000)  # two of them
    store.prepare(batch(old, new))
    assert set(store.inputs) == {old, new}


def test_a_cold_input_is_put_out_of_the_caches_before_each_run(
    measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = candidate(code(), buffers=(replace(X, cold=True), Z))
    assert_timing(measurer.measure_batch([cold, GOOD], cold, [EXPECTED], QUICK)[0])
    store = measure_worker.Store()
    store.prepare([cold])
    put_out: list[tuple[int, int]] = []
    monkeypatch.setattr(measure_worker, "evict", lambda *where: put_out.append(where))
    prepared = measure_worker.Prepared(cold, QUICK, store, 0, {})
    prepared.plan_samples(QUICK.sample_s)
    before = len(put_out)
    assert before >= 1 and prepared.sample() > 0
    assert len(put_out) - before == prepared._runs >= 1
    assert set(put_out) == {(prepared.rotations[0][0].address, X.size_bytes)}


def test_memory_that_is_put_out_of_the_caches_is_the_same() -> None:
    data = np.arange(100_003, dtype=np.uint8)
    want = data.copy()
    evict(data.ctypes.data, data.nbytes)
    evict(data.ctypes.data + 1, 1)
    evict(data.ctypes.data, 0)
    assert np.array_equal(data, want)
