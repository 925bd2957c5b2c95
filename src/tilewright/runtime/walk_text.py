"""The step walker as LLVM text, a part of the pool's module.

In: nothing. Out: text that defines `tw_run`; it calls `parallel` and `serial` of `pool_text`.
Invariant: a step runs after all units of the step before have run.

A step without a function is one of the walker's own, by its number at 24 (`CONTROL`);
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

__all__ = ["CONTROL", "WALK"]

CONTROL = ("", "jump", "unless", "begin", "while", "next", "copy", "fill", "stack")

WALK = """
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
