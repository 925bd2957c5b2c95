"""The thread pool and the step walker as LLVM text.

In: a Target. Out: text of a module that exports `tw_run`, `tw_pool_start`, `tw_pool` and `tw_spin`.
Invariant: every unit of a step is claimed exactly once, by compare-and-swap on the range of one
thread; a claimed and unreported unit keeps the job alive, so whoever holds one may read the job.

A step's chunks are cut into units of `grain` chunks. Each thread owns a range of units (a 64-bit
word, first unit low, end high), takes from its front, and when it is empty steals from the back of
the others; equal steps thus put equal chunks on the same core, and a sleeping or preempted helper
costs nothing. The caller is thread 0 and never waits for a helper that has claimed nothing. A
helper polls its word for `tw_spin` pauses, or `tw_spin_inside` while some call is walking a table,
then sleeps in a futex: the gap between two steps of one call is short, and waking takes long.

The pool lives in one zeroed private mapping that a forked child sees zeroed again: no lock is held
there and no helper is running, so the child starts its own.

  pool:  0 i32 lock   4 i32 helpers   64 i32 calls under way   128 job   256 i64 units reported
         512+128t slot of thread t
  job:   0 ptr fn   8 ptr args   16 i64 grain   24 i64 chunks   32 ptr scratch   40 i64 scratch
         stride   48 i64 threads
  slot:  0 i64 word   8 i32 asleep (the futex)
  ctx:   0 ptr steps   8 i64 steps   16 ptr scratch   24 i64 scratch stride   32 i64 threads
         40 ptr clock readings (or null)
  step:  0 ptr fn   8 ptr args   16 i64 chunks   24 i64 serial   32 i64 grain   40 i64 units

A step without a function is one of the walker's own, by its number at 24 (JUMP and so on below);
args are addresses, 16 is the number of the step to go on with, 32 a count, 40 a number of bytes:
  jump    go there             unless  go there if the byte args[0] is 0
  begin   the counter args[0] (i64) = 0
  while   go there if the counter args[0] is the count or more, or the byte args[1] is 0
  next    add 1 to the counter args[0], go there
  copy    bytes from args[0] to args[1]        fill    bytes at args[0] with the byte that counts
  stack   bytes from args[0] to args[1] + bytes * the counter args[2]
Readings of the clock are sums of what came before, so that a step that ran twice counts twice.
"""

from __future__ import annotations

from tilewright.machine.target import Target

__all__ = ["CONTROL", "MAX_THREADS", "POOL_BYTES", "pool_text"]

MAX_THREADS = 256
CONTROL = ("", "jump", "unless", "begin", "while", "next", "copy", "fill", "stack")
POOL_BYTES = 512 + 128 * MAX_THREADS


def pool_text(target: Target) -> str:
    """The module for `target` (x86-64 or aarch64 Linux)."""
    if target.triple.startswith("aarch64"):
        machine, futex = _AARCH64, 98
    else:
        machine, futex = _X86, 202
    text = machine + _COMMON.replace("FUTEX", str(futex)).replace("POOL_LAST", str(MAX_THREADS - 1))
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
  %have = phi i32 [%have0, %mine], [%have1, %more]
  %have64 = zext i32 %have to i64
  %can = add i64 %have64, 1
  %t1 = call i64 @llvm.umin.i64(i64 %can, i64 %most)
  %pu = getelementptr i8, ptr %step, i64 40
  %units = load i64, ptr %pu
  %n = call i64 @llvm.umin.i64(i64 %t1, i64 %units)
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

define internal void @read_clock(ptr %to) noinline #A {
  %time = alloca [2 x i64]
  %e = call i32 @clock_gettime(i32 1, ptr %time)
  %s = load i64, ptr %time
  %pn = getelementptr i8, ptr %time, i64 8
  %n = load i64, ptr %pn
  %ns = mul i64 %s, 1000000000
  %all = add i64 %ns, %n
  store i64 %all, ptr %to
  ret void
}

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)

; One of the walker's own steps; the step that comes next.
define internal ptr @control(ptr %steps, ptr %step) noinline #A {
entry:
  %after = getelementptr i8, ptr %step, i64 48
  %p1 = getelementptr i8, ptr %step, i64 8
  %args = load ptr, ptr %p1
  %p2 = getelementptr i8, ptr %step, i64 16
  %number = load i64, ptr %p2
  %o = mul i64 %number, 48
  %there = getelementptr i8, ptr %steps, i64 %o
  %p3 = getelementptr i8, ptr %step, i64 24
  %kind = load i64, ptr %p3
  %p4 = getelementptr i8, ptr %step, i64 32
  %count = load i64, ptr %p4
  %p5 = getelementptr i8, ptr %step, i64 40
  %bytes = load i64, ptr %p5
  %a = load ptr, ptr %args
  %pb = getelementptr i8, ptr %args, i64 8
  switch i64 %kind, label %done [
    i64 1, label %jump
    i64 2, label %unless
    i64 3, label %begin
    i64 4, label %while
    i64 5, label %next
    i64 6, label %copy
    i64 7, label %fill
    i64 8, label %stack
  ]
jump:
  ret ptr %there
unless:
  %c = load i8, ptr %a
  %no = icmp eq i8 %c, 0
  %way = select i1 %no, ptr %there, ptr %after
  ret ptr %way
begin:
  store i64 0, ptr %a
  ret ptr %after
while:
  %t = load i64, ptr %a
  %over = icmp sge i64 %t, %count
  br i1 %over, label %jump, label %asked
asked:
  %b1 = load ptr, ptr %pb
  %go = load i8, ptr %b1
  %stop = icmp eq i8 %go, 0
  %on = select i1 %stop, ptr %there, ptr %after
  ret ptr %on
next:
  %u = load i64, ptr %a
  %u1 = add i64 %u, 1
  store i64 %u1, ptr %a
  ret ptr %there
copy:
  %b2 = load ptr, ptr %pb
  call void @llvm.memcpy.p0.p0.i64(ptr %b2, ptr %a, i64 %bytes, i1 false)
  ret ptr %after
fill:
  %byte = trunc i64 %count to i8
  call void @llvm.memset.p0.i64(ptr %a, i8 %byte, i64 %bytes, i1 false)
  ret ptr %after
stack:
  %b3 = load ptr, ptr %pb
  %pc = getelementptr i8, ptr %args, i64 16
  %r = load ptr, ptr %pc
  %row = load i64, ptr %r
  %skip = mul i64 %row, %bytes
  %to = getelementptr i8, ptr %b3, i64 %skip
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %a, i64 %bytes, i1 false)
  ret ptr %after
done:
  ret ptr %after
}

define void @tw_run(ptr %ctx) #A {
entry:
  %now = alloca i64
  %mode = call i64 @float_mode_default()
  %steps = load ptr, ptr %ctx
  %c1 = getelementptr i8, ptr %ctx, i64 8
  %count = load i64, ptr %c1
  %c4 = getelementptr i8, ptr %ctx, i64 32
  %threads = load i64, ptr %c4
  %c5 = getelementptr i8, ptr %ctx, i64 40
  %clock = load ptr, ptr %c5
  %timed = icmp ne ptr %clock, null
  %length = mul i64 %count, 48
  %last = getelementptr i8, ptr %steps, i64 %length
  %pool = load ptr, ptr @tw_pool
  %inside = getelementptr i8, ptr %pool, i64 64
  %helped = icmp ugt i64 %threads, 1
  %long = icmp ugt i64 %count, 1
  %counted = and i1 %helped, %long
  br i1 %counted, label %enter, label %begin
enter:
  %calls = atomicrmw add ptr %inside, i32 1 monotonic, align 4
  br label %begin
begin:
  br i1 %timed, label %first, label %loop
first:
  ; Reading k + 1 is first the time that step k took.
  %zeros = shl i64 %count, 3
  %readings = getelementptr i8, ptr %clock, i64 8
  call void @llvm.memset.p0.i64(ptr %readings, i8 0, i64 %zeros, i1 false)
  call void @read_clock(ptr %clock)
  call void @read_clock(ptr %now)
  br label %loop
loop:
  %step = phi ptr [%steps, %begin], [%steps, %first], [%next, %after], [%next, %tick]
  %end = icmp eq ptr %step, %last
  br i1 %end, label %out, label %body
body:
  %function = load ptr, ptr %step
  %own = icmp eq ptr %function, null
  br i1 %own, label %turn, label %work
turn:
  %there = call ptr @control(ptr %steps, ptr %step)
  br label %after
work:
  %following = getelementptr i8, ptr %step, i64 48
  %p3 = getelementptr i8, ptr %step, i64 24
  %flag = load i64, ptr %p3
  %p5 = getelementptr i8, ptr %step, i64 40
  %units = load i64, ptr %p5
  %several = icmp ugt i64 %units, 1
  %parallelstep = icmp eq i64 %flag, 0
  %manythreads = icmp ugt i64 %threads, 1
  %b1 = and i1 %several, %parallelstep
  %b2 = and i1 %b1, %manythreads
  br i1 %b2, label %together, label %alone
together:
  call void @parallel(ptr %ctx, ptr %step, i64 %threads)
  br label %after
alone:
  call void @serial(ptr %ctx, ptr %step)
  br label %after
after:
  %next = phi ptr [%there, %turn], [%following, %together], [%following, %alone]
  br i1 %timed, label %tick, label %loop
tick:
  %before = load i64, ptr %now
  call void @read_clock(ptr %now)
  %later = load i64, ptr %now
  %took = sub i64 %later, %before
  %from = ptrtoint ptr %steps to i64
  %to = ptrtoint ptr %step to i64
  %offset = sub i64 %to, %from
  %index = sdiv i64 %offset, 48
  %index1 = add i64 %index, 1
  %reading = getelementptr i64, ptr %clock, i64 %index1
  %sum = load i64, ptr %reading
  %sum1 = add i64 %sum, %took
  store i64 %sum1, ptr %reading
  br label %loop
out:
  br i1 %timed, label %total, label %finish
total:
  %k = phi i64 [0, %out], [%k1, %totalled]
  %further = icmp slt i64 %k, %count
  br i1 %further, label %totalled, label %finish
totalled:
  %pk = getelementptr i64, ptr %clock, i64 %k
  %vk = load i64, ptr %pk
  %k1 = add i64 %k, 1
  %pk1 = getelementptr i64, ptr %clock, i64 %k1
  %vk1 = load i64, ptr %pk1
  %vsum = add i64 %vk, %vk1
  store i64 %vsum, ptr %pk1
  br label %total
finish:
  br i1 %counted, label %leave, label %quit
leave:
  %calls2 = atomicrmw sub ptr %inside, i32 1 monotonic, align 4
  br label %quit
quit:
  call void @float_mode_set(i64 %mode)
  ret void
}
"""
