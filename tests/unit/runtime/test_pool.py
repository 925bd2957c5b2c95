"""The pool: every chunk once, same bits for any threads and callers, fork, spawn, nesting, float mode.

All of it with threads of our own, and with those of the OpenMP runtime that PyTorch brings.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tilewright.config import config
from tilewright.errors import UserError
from tilewright.machine.target import Target, available_cpus
from tilewright.runtime import pool
from tilewright.runtime.build import build
from tilewright.runtime.jit import LoadedObject, load_object
from tilewright.runtime.pool import (
    Step,
    num_threads,
    run_steps,
    set_num_threads,
    set_spin,
    share_threads,
    start_threads,
)

TARGET = Target.native()
TEXT = """
; args: ptr counts. Adds 1 to counts[i] for each chunk i.
define void @count(ptr %args, i64 %lo, i64 %hi, ptr %scratch) #A {
entry:
  %c = load ptr, ptr %args
  %none = icmp sge i64 %lo, %hi
  br i1 %none, label %out, label %loop
loop:
  %i = phi i64 [%lo, %entry], [%j, %loop]
  %p = getelementptr i64, ptr %c, i64 %i
  %v = load i64, ptr %p
  %w = add i64 %v, 1
  store i64 %w, ptr %p
  %j = add i64 %i, 1
  %t = icmp slt i64 %j, %hi
  br i1 %t, label %loop, label %out
out:
  ret void
}
; args: ptr x, ptr y, i64 row. y[i] = sum of row x[i, :], through scratch, in a fixed order.
define void @rows(ptr %args, i64 %lo, i64 %hi, ptr %scratch) #A {
entry:
  %x = load ptr, ptr %args
  %p1 = getelementptr i8, ptr %args, i64 8
  %y = load ptr, ptr %p1
  %p2 = getelementptr i8, ptr %args, i64 16
  %n = load i64, ptr %p2
  br label %head
head:
  %i = phi i64 [%lo, %entry], [%i1, %next]
  %go = icmp slt i64 %i, %hi
  br i1 %go, label %row, label %out
row:
  store float 0.0, ptr %scratch
  %base = mul i64 %i, %n
  br label %loop
loop:
  %k = phi i64 [0, %row], [%k1, %loop]
  %o = add i64 %base, %k
  %q = getelementptr float, ptr %x, i64 %o
  %v = load float, ptr %q
  %a = load volatile float, ptr %scratch
  %b = fadd float %a, %v
  store volatile float %b, ptr %scratch
  %k1 = add i64 %k, 1
  %t = icmp slt i64 %k1, %n
  br i1 %t, label %loop, label %next
next:
  %r = load float, ptr %scratch
  %d = getelementptr float, ptr %y, i64 %i
  store float %r, ptr %d
  %i1 = add i64 %i, 1
  br label %head
out:
  ret void
}
; args: ptr x, ptr y. y[i] = x[i] * 0.5f.
define void @halve(ptr %args, i64 %lo, i64 %hi, ptr %scratch) #A {
entry:
  %x = load ptr, ptr %args
  %p1 = getelementptr i8, ptr %args, i64 8
  %y = load ptr, ptr %p1
  br label %loop
loop:
  %i = phi i64 [%lo, %entry], [%j, %loop]
  %p = getelementptr float, ptr %x, i64 %i
  %v = load float, ptr %p
  %w = fmul float %v, 0.5
  %q = getelementptr float, ptr %y, i64 %i
  store float %w, ptr %q
  %j = add i64 %i, 1
  %t = icmp slt i64 %j, %hi
  br i1 %t, label %loop, label %out
out:
  ret void
}
define void @flush_denormals(ptr %p) #A {
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  ret void
}
define void @read_mode(ptr %p) #A {
  call void @llvm.x86.sse.stmxcsr(ptr %p)
  ret void
}
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse.stmxcsr(ptr)
""".replace("#A", TARGET.function_attributes())


@pytest.fixture(scope="module")
def code() -> LoadedObject:
    return load_object(build(TEXT, TARGET))


@pytest.fixture(params=["own", "openmp"], autouse=True)
def whose_threads(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "openmp":
        pytest.importorskip("torch")
    with config(pool=request.param):
        share_threads()
        assert (pool._team is not None) == (request.param == "openmp")
        yield request.param
    set_num_threads(None)
    with config(pool="own"):
        share_threads()


def args_of(*values: object) -> ctypes.Array[ctypes.c_uint64]:
    numbers = [v.ctypes.data if isinstance(v, np.ndarray) else int(v) for v in values]  # type: ignore[call-overload]
    return (ctypes.c_uint64 * len(numbers))(*numbers)


def address(args: ctypes.Array[ctypes.c_uint64]) -> int:
    return ctypes.addressof(args)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 13, 97, 10007])
def test_each_chunk_exactly_once(code: LoadedObject, threads: int, chunks: int) -> None:
    for grain in (0, 1, 2, 5, chunks + 1):
        counts = np.zeros(chunks + 1, np.int64)
        args = args_of(counts)
        step = Step(code.address("count"), address(args), chunks, grain=grain)
        run_steps([step] * 5, threads=threads, repeat=3)
        assert (counts[:-1] == 15).all() and counts[-1] == 0


def test_many_small_regions_in_a_row(code: LoadedObject) -> None:
    counts = np.zeros(6, np.int64)
    args = args_of(counts)
    for spin in (100, 0, 5000):
        set_spin(spin)
        steps = [Step(code.address("count"), address(args), n % 7, grain=1) for n in range(700)]
        run_steps(steps, threads=3, repeat=10)
    set_spin(100)
    assert counts.tolist() == [30 * 100 * (6 - i) for i in range(6)]


def test_same_bits_for_any_threads(code: LoadedObject) -> None:
    x = np.random.default_rng(1).standard_normal((211, 333), np.float32)
    results = []
    for threads in (1, 2, 3, 5, 2):
        y = np.zeros(211, np.float32)
        args = args_of(x, y, 333)
        run_steps(
            [Step(code.address("rows"), address(args), 211)], threads=threads, scratch_bytes=4
        )
        results.append(y.tobytes())
    assert len(set(results)) == 1
    assert np.frombuffer(results[0], np.float32) == pytest.approx(x.sum(1), abs=1e-3)


def test_eight_callers_at_once(code: LoadedObject) -> None:
    x = np.random.default_rng(2).standard_normal((64, 257), np.float32)
    expected = np.zeros(64, np.float32)
    args0 = args_of(x, expected, 257)
    run_steps([Step(code.address("rows"), address(args0), 64)], threads=1, scratch_bytes=4)
    wrong: list[int] = []
    barrier = threading.Barrier(8)

    def call(number: int) -> None:
        y = np.zeros(64, np.float32)
        args = args_of(x, y, 257)
        barrier.wait()
        for _ in range(60):
            y[:] = 0
            step = Step(code.address("rows"), address(args), 64, grain=1)
            run_steps([step] * 3, threads=2 + number % 2, scratch_bytes=4)
            if y.tobytes() != expected.tobytes():
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_nested_calls_run_on_their_caller(code: LoadedObject) -> None:
    counts = np.zeros(50, np.int64)
    args = args_of(counts)
    inner = Step(code.address("count"), address(args), 50, grain=1)
    lock = threading.Lock()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    def outer(args: int, lo: int, hi: int, scratch: int) -> None:
        with lock:
            for _ in range(lo, hi):
                run_steps([inner], threads=2)

    outer_address = ctypes.cast(outer, ctypes.c_void_p).value
    assert outer_address is not None
    run_steps([Step(outer_address, 0, 20, grain=1)], threads=2)
    assert (counts == 20).all()


def test_denormals_survive_on_every_thread_and_the_mode_is_restored(code: LoadedObject) -> None:
    x = np.full(40_000, 1e-39, np.float32)
    y = np.zeros_like(x)
    args = args_of(x, y)
    step = Step(code.address("halve"), address(args), x.size)
    mode = ctypes.c_uint32(0x9FC0)  # flush to zero, denormals are zero
    change = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address("flush_denormals"))
    read = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address("read_mode"))
    seen = ctypes.c_uint32()
    change(ctypes.addressof(mode))
    try:
        run_steps([step], threads=2)
        read(ctypes.addressof(seen))
    finally:
        change(ctypes.addressof(ctypes.c_uint32(0x1F80)))
    assert seen.value & 0xFFC0 == 0x9FC0
    assert np.array_equal(y, x * np.float32(0.5)) and (y > 0).all()


def test_fork_from_a_process_with_helpers(code: LoadedObject) -> None:
    counts = np.zeros(1000, np.int64)
    args = args_of(counts)
    step = Step(code.address("count"), address(args), 1000, grain=1)
    run_steps([step], threads=3)
    stop = threading.Event()

    def hammer() -> None:  # the pool is often busy at the moment of the fork
        mine = np.zeros(1000, np.int64)
        own = args_of(mine)
        while not stop.is_set():
            run_steps([Step(code.address("count"), address(own), 1000, grain=1)] * 50, threads=2)

    busy = threading.Thread(target=hammer)
    busy.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                before = counts[0]
                run_steps([step] * 20, threads=2)
                helpers = len(os.listdir("/proc/self/task")) - 1
                os._exit(0 if (counts == before + 20).all() and helpers == 1 else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        busy.join()


def test_a_fresh_process_has_no_threads_until_a_parallel_step() -> None:
    program = """
import os, ctypes
tasks = lambda: len(os.listdir('/proc/self/task'))
from tilewright.machine.target import Target, available_cpus
from tilewright.runtime.build import build
from tilewright.runtime.jit import load_object
from tilewright.runtime import pool
target = Target.native()
text = 'define void @f(ptr %a, i64 %b, i64 %c, ptr %d) { ret void }'
code = load_object(build(text, target))
f = code.address('f')
counts = [tasks()]
pool.run_steps([pool.Step(f, 0, 8)], threads=1); counts.append(tasks())
pool.run_steps([pool.Step(f, 0, 1)], threads=3); counts.append(tasks())
pool.run_steps([pool.Step(f, 0, 8, serial=True)], threads=3); counts.append(tasks())
pool.run_steps([pool.Step(f, 0, 8)], threads=3); counts.append(tasks())
pool.run_steps([pool.Step(f, 0, 8)], threads=2); counts.append(tasks())
print(counts, pool.num_threads())
"""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), TILEWRIGHT_NUM_THREADS="5")
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[1, 1, 1, 1, 3, 3] 5"


def test_clock_readings(code: LoadedObject) -> None:
    counts = np.zeros(3_000_000, np.int64)
    args = args_of(counts)
    clock: list[int] = []
    small = Step(code.address("count"), address(args), 1)
    large = Step(code.address("count"), address(args), counts.size, serial=True)
    run_steps([small, large, small], threads=2, clock_ns=clock)
    first, second, third = (after - before for before, after in itertools.pairwise(clock))
    assert min(first, second, third) >= 0 and second > 10 * max(1, min(first, third))


def test_number_of_threads() -> None:
    with config(num_threads=3):
        assert num_threads() == 3
        set_num_threads(2)
        assert num_threads() == 2
        set_num_threads(None)
        assert num_threads() == 3
    for wrong in (0, -1, 256):
        with pytest.raises(UserError, match="U003"):
            set_num_threads(wrong)
    assert start_threads(2) >= 2


def test_work_changes_its_threads_while_it_runs(code: LoadedObject) -> None:
    """Steps under way, and the next ones, count every chunk once, whoever runs them."""
    pytest.importorskip("torch")
    counts = np.zeros((4, 500), np.int64)
    left = threading.Event()

    def work(number: int) -> None:
        args = args_of(counts[number])
        for _ in range(200):
            run_steps([Step(code.address("count"), address(args), 500, grain=1)] * 5, threads=3)

    callers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    names = itertools.cycle(("openmp", "own"))
    while any(caller.is_alive() for caller in callers):
        with config(pool=next(names)):
            share_threads()
        left.wait(0.002)
    for caller in callers:
        caller.join()
    assert (counts == 1000).all()


TORCH = """
import os
import numpy as np
import tilewright as tw
from tilewright.runtime import pool

def helpers():
    tasks = (open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task"))
    return sum(name == "tilewright" for name in tasks)

x = np.random.default_rng(0).standard_normal((512, 700)).astype("f4")
model = tw.compile("x: f32[512, 700]; y[i] = sum(j) exp(x[i, j])", threads=2)
before = model(x)
own = helpers(), pool._team is not None
import torch
torch.set_num_threads(2)
torch.ones(1 << 20).add(1)
tasks = len(os.listdir("/proc/self/task"))
again = tw.compile("x: f32[512, 700]; y[i] = sum(j) exp(x[i, j])", threads=2)
after = again(x), model(x)
more = len(os.listdir("/proc/self/task")) - tasks
torch.set_num_threads(1)
print(own, pool._team is not None, more, pool.num_threads(), all((y == before).all() for y in after))
child = os.fork()
if child == 0:
    same = (tw.compile("x: f32[512, 700]; y[i] = sum(j) exp(x[i, j])", threads=2)(x) == before).all()
    os._exit(0 if same and pool._team is None else 1)
print(os.waitpid(child, 0)[1])
"""


def test_the_threads_of_pytorch_are_shared_when_it_is_imported(whose_threads: str) -> None:
    pytest.importorskip("torch")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TILEWRIGHT_NUM_THREADS": ""}
    variables["TILEWRIGHT_POOL"] = "own" if whose_threads == "own" else "auto"
    done = subprocess.run(
        [sys.executable, "-c", TORCH], env=variables, capture_output=True, text=True, check=True
    )
    shared = whose_threads != "own"
    cpus = available_cpus()
    threads = 1 if shared else cpus
    assert done.stdout.splitlines() == [f"(1, False) {shared} 0 {threads} True", "0"]
