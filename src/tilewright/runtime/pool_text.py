"""The thread pool and the step walker as LLVM text.

In: a Target. Out: text of a module that exports `tw_run`, `tw_pool_start`, `tw_pool`, `tw_spin`,
`tw_team` and `tw_number`.
Invariant: every unit of a step is claimed exactly once, by compare-and-swap on the range of one
thread; a claimed and unreported unit keeps the job alive, so whoever holds one may read the job.

A step's chunks are cut into units of `grain` chunks. Each thread owns a range of units (a 64-bit
word, first unit low, end high), takes from its front, and when it is empty steals from the back of
the others; equal steps thus put equal chunks on the same core, and a sleeping or preempted helper
costs nothing. The caller is thread 0 and never waits for a helper that has claimed nothing. A
helper polls its word for `tw_spin` pauses, or `tw_spin_inside` while some call is walking a table,
then sleeps in a futex: the gap between two steps of one call is short, and waking takes long.

Where `tw_team` holds the address of an OpenMP runtime's `GOMP_parallel`, and `tw_number` that of
its `omp_get_thread_num`, a step runs on a team of that runtime instead: the same units, claimed in
the same way, from a second row of slots, as helpers of our own may still watch the first. The step
ends when all threads of the team have left, so every one of them may steal.

The pool lives in one zeroed private mapping that a forked child sees zeroed again: no lock is held
there and no helper is running, so the child starts its own.

  pool:  0 i32 lock   4 i32 helpers   64 i32 calls under way   128 job   256 i64 units reported
         512+128t slot of thread t   512+128*(MAX_THREADS+t) slot of thread t of a team
  job:   0 ptr fn   8 ptr args   16 i64 grain   24 i64 chunks   32 ptr scratch   40 i64 scratch
         stride   48 i64 threads
  slot:  0 i64 word   8 i32 asleep (the futex)
  ctx:   0 ptr steps   8 i64 steps   16 ptr scratch   24 i64 scratch stride   32 i64 threads
         40 ptr clock readings (or null)
  step:  0 ptr fn   8 ptr args   16 i64 chunks   24 i64 serial   32 i64 grain   40 i64 units

Steps without a function are the walker's own: see `walk_text`.
"""

from __future__ import annotations

from tilewright.machine.target import Target
from tilewright.runtime.walk_text import WALK

__all__ = ["MAX_THREADS", "POOL_BYTES", "pool_text"]

MAX_THREADS = 256
POOL_BYTES = 512 + 2 * 128 * MAX_THREADS


def pool_text(target: Target) -> str:
    """The module for `target` (x86-64 or aarch64 Linux)."""
    if target.triple.startswith("aarch64"):
        machine, futex = _AARCH64, 98
    else:
        machine, futex = _X86, 202
    text = machine + _COMMON.replace("FUTEX", str(futex)) + WALK
    text = text.replace("POOL_LAST", str(MAX_THREADS - 1)).replace("TEAM_FIRST", str(MAX_THREADS))
    return text.replace("#A", target.function_attributes())


# The control register decides rounding and denormals; the sticky status bits are not compared.
_X86 = """
declare void @llvm.x86.sse2.pause()
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define internal void @pause() alwaysinline #A {
  call void @llvm.x86.sse2.pause()
  ret void
}
define internal i64 @float_mode_default() #A {
  %p = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %p)
  %old = load i32, ptr %p
  %kept = and i32 %old, 65472
  %same = icmp eq i32 %kept, 8064
  br i1 %same, label %done, label %change
change:
  store i32 8064, ptr %p
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  br label %done
done:
  %wide = zext i32 %old to i64
  ret i64 %wide
}
define internal void @float_mode_set(i64 %mode) #A {
  %kept = and i64 %mode, 65472
  %same = icmp eq i64 %kept, 8064
  br i1 %same, label %done, label %change
change:
  %p = alloca i32
  %narrow = trunc i64 %mode to i32
  store i32 %narrow, ptr %p
  call void @llvm.x86.sse.ldmxcsr(ptr %p)
  br label %done
done:
  ret void
}
"""
_AARCH64 = """
declare void @llvm.aarch64.hint(i32)
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
define internal void @pause() alwaysinline #A {
  call void @llvm.aarch64.hint(i32 1)
  ret void
}
define internal i64 @float_mode_default() #A {
  %old = call i64 @llvm.aarch64.get.fpcr()
  %same = icmp eq i64 %old, 0
  br i1 %same, label %done, label %change
change:
  call void @llvm.aarch64.set.fpcr(i64 0)
  br label %done
done:
  ret i64 %old
}
define internal void @float_mode_set(i64 %mode) #A {
  %same = icmp eq i64 %mode, 0
  br i1 %same, label %done, label %change
change:
  call void @llvm.aarch64.set.fpcr(i64 %mode)
  br label %done
done:
  ret void
}
"""
_COMMON = """
@tw_pool = global ptr null
@tw_team = global ptr null
@tw_number = global ptr null
@tw_spin = global i32 100
@tw_spin_inside = global i32 4000
@name = private constant [11 x i8] c"tilewright\\00"
declare i64 @syscall(i64, ...)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(i64)
declare i32 @pthread_setname_np(i64, ptr)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i32 @sched_yield()
declare i32 @clock_gettime(i32, ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare i64 @llvm.umin.i64(i64, i64)

; The slot of thread %t.
define internal ptr @slot(ptr %pool, i64 %t) alwaysinline #A {
  %o = shl i64 %t, 7
  %o2 = add i64 %o, 512
  %p = getelementptr i8, ptr %pool, i64 %o2
  ret ptr %p
}

; Claim a unit from %slot: the first when %step is 1, the last when it is -2^32. -1: none is left.
define internal i64 @claim(ptr %slot, i64 %step) #A {
entry:
  %w0 = load atomic i64, ptr %slot acquire, align 8
  br label %try
try:
  %w = phi i64 [%w0, %entry], [%seen, %swap]
  %lo = and i64 %w, 4294967295
  %hi = lshr i64 %w, 32
  %some = icmp ult i64 %lo, %hi
  br i1 %some, label %swap, label %none
swap:
  %next = add i64 %w, %step
  %pair = cmpxchg ptr %slot, i64 %w, i64 %next acq_rel acquire, align 8
  %seen = extractvalue {i64, i1} %pair, 0
  %won = extractvalue {i64, i1} %pair, 1
  br i1 %won, label %mine, label %try
mine:
  %front = icmp eq i64 %step, 1
  %last = sub i64 %hi, 1
  %unit = select i1 %front, i64 %lo, i64 %last
  ret i64 %unit
none:
  ret i64 -1
}

define internal void @run_unit(ptr %pool, i64 %t, i64 %unit) #A {
  %job = getelementptr i8, ptr %pool, i64 128
  %fn = load ptr, ptr %job
  %p1 = getelementptr i8, ptr %job, i64 8
  %args = load ptr, ptr %p1
  %p2 = getelementptr i8, ptr %job, i64 16
  %grain = load i64, ptr %p2
  %p3 = getelementptr i8, ptr %job, i64 24
  %chunks = load i64, ptr %p3
  %p4 = getelementptr i8, ptr %job, i64 32
  %scratch = load ptr, ptr %p4
  %p5 = getelementptr i8, ptr %job, i64 40
  %stride = load i64, ptr %p5
  %lo = mul i64 %unit, %grain
  %end = add i64 %lo, %grain
  %hi = call i64 @llvm.umin.i64(i64 %end, i64 %chunks)
  %offset = mul i64 %t, %stride
  %mine = getelementptr i8, ptr %scratch, i64 %offset
  call void %fn(ptr %args, i64 %lo, i64 %hi, ptr %mine)
  ret void
}

; Run units until none is left to claim; how many were run. A helper that claimed nothing from its
; own range returns at once: it must not read the job.
define internal i64 @work(ptr %pool, i64 %t) #A {
entry:
  %own = call ptr @slot(ptr %pool, i64 %t)
  br label %front
front:
  %n = phi i64 [0, %entry], [%n1, %run]
  %u = call i64 @claim(ptr %own, i64 1)
  %none = icmp eq i64 %u, -1
  br i1 %none, label %empty, label %run
run:
  call void @run_unit(ptr %pool, i64 %t, i64 %u)
  %n1 = add i64 %n, 1
  br label %front
empty:
  %caller = icmp eq i64 %t, 0
  %worked = icmp ne i64 %n, 0
  %inside = or i1 %caller, %worked
  br i1 %inside, label %steal, label %out0
steal:
  %pt = getelementptr i8, ptr %pool, i64 176
  %threads = load i64, ptr %pt
  br label %victim
victim:
  %m = phi i64 [%n, %steal], [%m, %skip], [%m1, %run2]
  %d = phi i64 [1, %steal], [%d1, %skip], [%d, %run2]
  %more = icmp ult i64 %d, %threads
  br i1 %more, label %look, label %out
look:
  %s = add i64 %t, %d
  %over = icmp uge i64 %s, %threads
  %s2 = sub i64 %s, %threads
  %v = select i1 %over, i64 %s2, i64 %s
  %other = call ptr @slot(ptr %pool, i64 %v)
  %u2 = call i64 @claim(ptr %other, i64 -4294967296)
  %none2 = icmp eq i64 %u2, -1
  br i1 %none2, label %skip, label %run2
skip:
  %d1 = add i64 %d, 1
  br label %victim
run2:
  call void @run_unit(ptr %pool, i64 %t, i64 %u2)
  %m1 = add i64 %m, 1
  br label %victim
out:
  ret i64 %m
out0:
  ret i64 0
}

define internal ptr @helper(ptr %number) #A {
entry:
  %mode = call i64 @float_mode_default()
  %t = ptrtoint ptr %number to i64
  %pool = load ptr, ptr @tw_pool
  %slot = call ptr @slot(ptr %pool, i64 %t)
  %asleep = getelementptr i8, ptr %slot, i64 8
  %reported = getelementptr i8, ptr %pool, i64 256
  %inside = getelementptr i8, ptr %pool, i64 64
  br label %poll
poll:
  %spins = phi i32 [0, %entry], [0, %report], [%spins1, %spin], [%spins1, %ask], [0, %awake]
  %w = load atomic i64, ptr %slot acquire, align 8
  %lo = and i64 %w, 4294967295
  %hi = lshr i64 %w, 32
  %some = icmp ult i64 %lo, %hi
  br i1 %some, label %busy, label %spin
busy:
  %n = call i64 @work(ptr %pool, i64 %t)
  br label %report
report:
  %before = atomicrmw add ptr %reported, i64 %n release, align 8
  br label %poll
spin:
  call void @pause()
  %spins1 = add i32 %spins, 1
  %limit = load i32, ptr @tw_spin
  %tired = icmp uge i32 %spins1, %limit
  br i1 %tired, label %ask, label %poll
ask:
  %calls = load atomic i32, ptr %inside monotonic, align 4
  %idle = icmp sle i32 %calls, 0
  %limit2 = load i32, ptr @tw_spin_inside
  %exhausted = icmp uge i32 %spins1, %limit2
  %leave = or i1 %idle, %exhausted
  br i1 %leave, label %bed, label %poll
bed:
  %was = atomicrmw xchg ptr %asleep, i32 1 seq_cst, align 4
  %w2 = load atomic i64, ptr %slot seq_cst, align 8
  %lo2 = and i64 %w2, 4294967295
  %hi2 = lshr i64 %w2, 32
  %some2 = icmp ult i64 %lo2, %hi2
  br i1 %some2, label %awake, label %wait
wait:
  %r = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %asleep, i32 128, i32 1, ptr null)
  %still = load atomic i32, ptr %asleep acquire, align 4
  %again = icmp eq i32 %still, 1
  br i1 %again, label %wait, label %awake
awake:
  store atomic i32 0, ptr %asleep release, align 4
  br label %poll
}

; Start helpers until %wanted run; the caller holds the lock. How many run.
define internal i32 @start(ptr %pool, i32 %wanted) noinline #A {
entry:
  %all = alloca [128 x i8], align 8
  %old = alloca [128 x i8], align 8
  %id = alloca i64
  call void @llvm.memset.p0.i64(ptr %all, i8 -1, i64 128, i1 false)
  %x = call i32 @pthread_sigmask(i32 2, ptr %all, ptr %old)
  %pc = getelementptr i8, ptr %pool, i64 4
  %have0 = load i32, ptr %pc
  br label %loop
loop:
  %have = phi i32 [%have0, %entry], [%have1, %made]
  %enough = icmp uge i32 %have, %wanted
  br i1 %enough, label %out, label %make
make:
  %have1 = add i32 %have, 1
  %wide = zext i32 %have1 to i64
  %number = inttoptr i64 %wide to ptr
  %e = call i32 @pthread_create(ptr %id, ptr null, ptr @helper, ptr %number)
  %ok = icmp eq i32 %e, 0
  br i1 %ok, label %made, label %out
made:
  %handle = load i64, ptr %id
  %y = call i32 @pthread_setname_np(i64 %handle, ptr @name)
  %z = call i32 @pthread_detach(i64 %handle)
  store i32 %have1, ptr %pc
  br label %loop
out:
  %q = call i32 @pthread_sigmask(i32 2, ptr %old, ptr null)
  ret i32 %have
}

; Start the helpers for %threads threads now; how many threads a step can use.
define i64 @tw_pool_start(i64 %threads) #A {
  %pool = load ptr, ptr @tw_pool
  %pair = cmpxchg ptr %pool, i32 0, i32 1 acquire monotonic, align 4
  %free = extractvalue {i32, i1} %pair, 1
  br i1 %free, label %mine, label %busy
mine:
  %most = call i64 @llvm.umin.i64(i64 %threads, i64 POOL_LAST)
  %narrow = trunc i64 %most to i32
  %wanted = sub i32 %narrow, 1
  %have = call i32 @start(ptr %pool, i32 %wanted)
  store atomic i32 0, ptr %pool release, align 4
  %wide = zext i32 %have to i64
  %n = add i64 %wide, 1
  ret i64 %n
busy:
  ret i64 0
}

; Give thread %t the units [%lo, %hi) and wake it if it sleeps.
define internal void @publish(ptr %pool, i64 %t, i64 %lo, i64 %hi) alwaysinline #A {
  %slot = call ptr @slot(ptr %pool, i64 %t)
  %high = shl i64 %hi, 32
  %w = or i64 %high, %lo
  %old = atomicrmw xchg ptr %slot, i64 %w seq_cst, align 8
  %asleep = getelementptr i8, ptr %slot, i64 8
  %a = load atomic i32, ptr %asleep seq_cst, align 4
  %sleeps = icmp ne i32 %a, 0
  br i1 %sleeps, label %wake, label %done
wake:
  store atomic i32 0, ptr %asleep seq_cst, align 4
  %r = call i64 (i64, ...) @syscall(i64 FUTEX, ptr %asleep, i32 129, i32 1)
  br label %done
done:
  ret void
}

define internal void @serial(ptr %ctx, ptr %step) alwaysinline #A {
  %fn = load ptr, ptr %step
  %p1 = getelementptr i8, ptr %step, i64 8
  %args = load ptr, ptr %p1
  %p2 = getelementptr i8, ptr %step, i64 16
  %chunks = load i64, ptr %p2
  %p3 = getelementptr i8, ptr %ctx, i64 16
  %scratch = load ptr, ptr %p3
  call void %fn(ptr %args, i64 0, i64 %chunks, ptr %scratch)
  ret void
}

; Write the job for %n threads.
define internal void @describe(ptr %pool, ptr %ctx, ptr %step, i64 %n) alwaysinline #A {
  %job = getelementptr i8, ptr %pool, i64 128
  %fn = load ptr, ptr %step
  store ptr %fn, ptr %job
  %s1 = getelementptr i8, ptr %step, i64 8
  %args = load ptr, ptr %s1
  %j1 = getelementptr i8, ptr %job, i64 8
  store ptr %args, ptr %j1
  %s2 = getelementptr i8, ptr %step, i64 32
  %grain = load i64, ptr %s2
  %j2 = getelementptr i8, ptr %job, i64 16
  store i64 %grain, ptr %j2
  %s3 = getelementptr i8, ptr %step, i64 16
  %chunks = load i64, ptr %s3
  %j3 = getelementptr i8, ptr %job, i64 24
  store i64 %chunks, ptr %j3
  %c4 = getelementptr i8, ptr %ctx, i64 16
  %scratch = load ptr, ptr %c4
  %j4 = getelementptr i8, ptr %job, i64 32
  store ptr %scratch, ptr %j4
  %c5 = getelementptr i8, ptr %ctx, i64 24
  %stride = load i64, ptr %c5
  %j5 = getelementptr i8, ptr %job, i64 40
  store i64 %stride, ptr %j5
  %j6 = getelementptr i8, ptr %job, i64 48
  store i64 %n, ptr %j6
  ret void
}

; What each thread of a team runs: units of its own slot, then of the others.
define internal void @member(ptr %pool) #A {
entry:
  %mode = call i64 @float_mode_default()
  %ask = load ptr, ptr @tw_number
  %narrow = call i32 %ask()
  %t = zext i32 %narrow to i64
  %pt = getelementptr i8, ptr %pool, i64 176
  %threads = load i64, ptr %pt
  %known = icmp ult i64 %t, %threads
  br i1 %known, label %look, label %out
look:
  %d = phi i64 [0, %entry], [%d1, %skip], [%d, %run]
  %more = icmp ult i64 %d, %threads
  br i1 %more, label %take, label %out
take:
  %s = add i64 %t, %d
  %over = icmp uge i64 %s, %threads
  %s2 = sub i64 %s, %threads
  %v = select i1 %over, i64 %s2, i64 %s
  %v2 = add i64 %v, TEAM_FIRST
  %slot = call ptr @slot(ptr %pool, i64 %v2)
  %own = icmp eq i64 %d, 0
  %end = select i1 %own, i64 1, i64 -4294967296
  %u = call i64 @claim(ptr %slot, i64 %end)
  %none = icmp eq i64 %u, -1
  br i1 %none, label %skip, label %run
skip:
  %d1 = add i64 %d, 1
  br label %look
run:
  call void @run_unit(ptr %pool, i64 %t, i64 %u)
  br label %look
out:
  call void @float_mode_set(i64 %mode)
  ret void
}

; A step on a team of %threads threads at most; the caller holds the lock.
define internal void @together(
    ptr %pool, ptr %ctx, ptr %step, i64 %threads, ptr %fork) noinline #A {
entry:
  %pu = getelementptr i8, ptr %step, i64 40
  %units = load i64, ptr %pu
  %n = call i64 @llvm.umin.i64(i64 %threads, i64 %units)
  call void @describe(ptr %pool, ptr %ctx, ptr %step, i64 %n)
  %each = udiv i64 %units, %n
  %whole = mul i64 %each, %n
  %rest = sub i64 %units, %whole
  br label %share
share:
  %t = phi i64 [0, %entry], [%tn, %give]
  %lo = phi i64 [0, %entry], [%hi, %give]
  %all = icmp uge i64 %t, %n
  br i1 %all, label %go, label %give
give:
  %extra = icmp ult i64 %t, %rest
  %one = zext i1 %extra to i64
  %len = add i64 %each, %one
  %hi = add i64 %lo, %len
  %place = add i64 %t, TEAM_FIRST
  %slot = call ptr @slot(ptr %pool, i64 %place)
  %high = shl i64 %hi, 32
  %w = or i64 %high, %lo
  store atomic i64 %w, ptr %slot release, align 8
  %tn = add i64 %t, 1
  br label %share
go:
  %narrow = trunc i64 %n to i32
  call void %fork(ptr @member, ptr %pool, i32 %narrow, i32 0)
  ret void
}

define internal void @parallel(ptr %ctx, ptr %step, i64 %threads) noinline #A {
entry:
  %pool = load ptr, ptr @tw_pool
  %pair = cmpxchg ptr %pool, i32 0, i32 1 acquire monotonic, align 4
  %free = extractvalue {i32, i1} %pair, 1
  br i1 %free, label %mine, label %alone
alone:
  call void @serial(ptr %ctx, ptr %step)
  ret void
mine:
  %most = call i64 @llvm.umin.i64(i64 %threads, i64 POOL_LAST)
  %fork = load ptr, ptr @tw_team
  %shared = icmp ne ptr %fork, null
  br i1 %shared, label %team, label %own
team:
  call void @together(ptr %pool, ptr %ctx, ptr %step, i64 %most, ptr %fork)
  store atomic i32 0, ptr %pool release, align 4
  ret void
own:
  %narrow = trunc i64 %most to i32
  %wanted = sub i32 %narrow, 1
  %pc = getelementptr i8, ptr %pool, i64 4
  %have0 = load i32, ptr %pc
  %short = icmp ult i32 %have0, %wanted
  br i1 %short, label %more, label %go
more:
  %have1 = call i32 @start(ptr %pool, i32 %wanted)
  br label %go
go:
  %have = phi i32 [%have0, %own], [%have1, %more]
  %have64 = zext i32 %have to i64
  %can = add i64 %have64, 1
  %t1 = call i64 @llvm.umin.i64(i64 %can, i64 %most)
  %pu = getelementptr i8, ptr %step, i64 40
  %units = load i64, ptr %pu
  %n = call i64 @llvm.umin.i64(i64 %t1, i64 %units)
  call void @describe(ptr %pool, ptr %ctx, ptr %step, i64 %n)
  %reported = getelementptr i8, ptr %pool, i64 256
  store atomic i64 0, ptr %reported monotonic, align 8
  %each = udiv i64 %units, %n
  %whole = mul i64 %each, %n
  %rest = sub i64 %units, %whole
  %extra0 = icmp ne i64 %rest, 0
  %one0 = zext i1 %extra0 to i64
  %end0 = add i64 %each, %one0
  %slot0 = call ptr @slot(ptr %pool, i64 0)
  %word0 = shl i64 %end0, 32
  store atomic i64 %word0, ptr %slot0 release, align 8
  br label %share
share:
  %t = phi i64 [1, %go], [%tn, %give]
  %lo = phi i64 [%end0, %go], [%hi, %give]
  %all = icmp uge i64 %t, %n
  br i1 %all, label %join, label %give
give:
  %extra = icmp ult i64 %t, %rest
  %one = zext i1 %extra to i64
  %len = add i64 %each, %one
  %hi = add i64 %lo, %len
  call void @publish(ptr %pool, i64 %t, i64 %lo, i64 %hi)
  %tn = add i64 %t, 1
  br label %share
join:
  %mineunits = call i64 @work(ptr %pool, i64 0)
  %open = sub i64 %units, %mineunits
  br label %check
check:
  %spins = phi i32 [0, %join], [%spins1, %relax], [0, %yield]
  %got = load atomic i64, ptr %reported acquire, align 8
  %done = icmp eq i64 %got, %open
  br i1 %done, label %out, label %relax
relax:
  call void @pause()
  %spins1 = add i32 %spins, 1
  %long = icmp uge i32 %spins1, 200
  br i1 %long, label %yield, label %check
yield:
  %y = call i32 @sched_yield()
  br label %check
out:
  store atomic i32 0, ptr %pool release, align 4
  ret void
}
"""
