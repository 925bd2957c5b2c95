"""The native half of a model call as LLVM text.

In: a Target. Out: text of a module that exports `tw_call`, a CPython METH_FASTCALL|METH_KEYWORDS
function that serves every model; its `self` is a capsule that holds the model's entry.
Invariant: it runs the model only after every array passed every check; whatever it does not
recognize goes unchanged to the entry's Python function, which converts or raises.

Arrays are read through NumPy's public struct layout, which `runtime.call` verifies at load.

  entry:  0 inputs   8 outputs   16 ndarray type   24 ptr kinds (24 bytes: dtype, ndim, flags)
          32 ptr contexts   40 contexts   48 release GIL   56 Python function   64 "out"
          72 tw_run   80 Python function that adds a result   88 reuse   96 None   104 tuple type
  array:  0 references   8 type   16 data   24 i32 ndim   32 ptr dims   56 dtype   64 i32 flags
          72 weak references
  The context and its tables are the structures of `runtime.context`.
"""

from __future__ import annotations

from tilewright.machine.target import Target
from tilewright.runtime.context import RING

__all__ = ["MAX_OUTPUTS", "call_text"]

MAX_OUTPUTS = 64


def call_text(target: Target) -> str:
    """The module for `target`."""
    text = _TEXT.replace("#A", target.function_attributes())
    return text.replace("RING", str(RING)).replace("MAX_OUTPUTS", str(MAX_OUTPUTS))


_TEXT = """
declare ptr @PyCapsule_GetPointer(ptr, ptr)
declare i64 @PyTuple_Size(ptr)
declare ptr @PyTuple_GetItem(ptr, i64)
declare ptr @PyTuple_New(i64)
declare i32 @PyTuple_SetItem(ptr, i64, ptr)
declare ptr @PyLong_FromLong(i64)
declare ptr @PyObject_Vectorcall(ptr, ptr, i64, ptr)
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)
declare void @Py_IncRef(ptr)
declare void @Py_DecRef(ptr)

define internal i64 @word(ptr %p, i64 %offset) alwaysinline #A {
  %q = getelementptr i8, ptr %p, i64 %offset
  %v = load i64, ptr %q
  ret i64 %v
}
define internal ptr @field(ptr %p, i64 %offset) alwaysinline #A {
  %q = getelementptr i8, ptr %p, i64 %offset
  %v = load ptr, ptr %q
  ret ptr %v
}

; Whether an array has the sizes %dims.
define internal i1 @same_dims(ptr %array, ptr %dims, i64 %ndim) #A {
entry:
  %have = call ptr @field(ptr %array, i64 32)
  br label %loop
loop:
  %k = phi i64 [0, %entry], [%k1, %next]
  %more = icmp slt i64 %k, %ndim
  br i1 %more, label %next, label %yes
next:
  %p = getelementptr i64, ptr %have, i64 %k
  %a = load i64, ptr %p
  %q = getelementptr i64, ptr %dims, i64 %k
  %b = load i64, ptr %q
  %k1 = add i64 %k, 1
  %same = icmp eq i64 %a, %b
  br i1 %same, label %loop, label %no
yes:
  ret i1 true
no:
  ret i1 false
}

; Whether an object is exactly an ndarray of this kind and size.
define internal i1 @fits(ptr %object, ptr %type, ptr %kind, ptr %dims) #A {
  %t = call ptr @field(ptr %object, i64 8)
  %c1 = icmp eq ptr %t, %type
  br i1 %c1, label %typed, label %no
typed:
  %d = call ptr @field(ptr %object, i64 56)
  %wanted = load ptr, ptr %kind
  %c2 = icmp eq ptr %d, %wanted
  %pn = getelementptr i8, ptr %object, i64 24
  %n32 = load i32, ptr %pn
  %n = sext i32 %n32 to i64
  %ndim = call i64 @word(ptr %kind, i64 8)
  %c3 = icmp eq i64 %n, %ndim
  %pf = getelementptr i8, ptr %object, i64 64
  %f32 = load i32, ptr %pf
  %f = zext i32 %f32 to i64
  %mask = call i64 @word(ptr %kind, i64 16)
  %g = and i64 %f, %mask
  %c4 = icmp eq i64 %g, %mask
  %c23 = and i1 %c2, %c3
  %c = and i1 %c23, %c4
  br i1 %c, label %sized, label %no
sized:
  %r = call i1 @same_dims(ptr %object, ptr %dims, i64 %ndim)
  ret i1 %r
no:
  ret i1 false
}

; Write the address of an array's data where the context's args want array %number.
define internal void @place(ptr %ctx, i64 %number, ptr %object) #A {
entry:
  %data = call ptr @field(ptr %object, i64 16)
  %table = call ptr @field(ptr %ctx, i64 72)
  %o = shl i64 %number, 4
  %row = getelementptr i8, ptr %table, i64 %o
  %count = load i64, ptr %row
  %list = call ptr @field(ptr %row, i64 8)
  br label %loop
loop:
  %k = phi i64 [0, %entry], [%k1, %next]
  %more = icmp slt i64 %k, %count
  br i1 %more, label %next, label %out
next:
  %p = getelementptr ptr, ptr %list, i64 %k
  %to = load ptr, ptr %p
  store ptr %data, ptr %to
  %k1 = add i64 %k, 1
  br label %loop
out:
  ret void
}

; Whether output %number at %object shares a byte with one of the first %count arrays of %list;
; the number of the first is %base.
define internal i1 @shares(
    ptr %ctx, i64 %number, ptr %object, ptr %list, i64 %count, i64 %base) #A {
entry:
  %bytes = call ptr @field(ptr %ctx, i64 64)
  %a = call i64 @word(ptr %object, i64 16)
  %pa = getelementptr i64, ptr %bytes, i64 %number
  %na = load i64, ptr %pa
  %aend = add i64 %a, %na
  br label %loop
loop:
  %k = phi i64 [0, %entry], [%k1, %next]
  %more = icmp slt i64 %k, %count
  br i1 %more, label %next, label %no
next:
  %po = getelementptr ptr, ptr %list, i64 %k
  %other = load ptr, ptr %po
  %b = call i64 @word(ptr %other, i64 16)
  %m = add i64 %base, %k
  %pb = getelementptr i64, ptr %bytes, i64 %m
  %nb = load i64, ptr %pb
  %bend = add i64 %b, %nb
  %x = icmp ult i64 %a, %bend
  %y = icmp ult i64 %b, %aend
  %both = and i1 %x, %y
  %k1 = add i64 %k, 1
  br i1 %both, label %yes, label %loop
yes:
  ret i1 true
no:
  ret i1 false
}

; Check and place all arrays for one context; %outs is null when results are to be fresh.
define internal i1 @accept(ptr %entry_, ptr %ctx, ptr %args, ptr %outs) #A {
entry:
  %inputs = load i64, ptr %entry_
  %outputs = call i64 @word(ptr %entry_, i64 8)
  %type = call ptr @field(ptr %entry_, i64 16)
  %kinds = call ptr @field(ptr %entry_, i64 24)
  %dims = call ptr @field(ptr %ctx, i64 56)
  br label %loop
loop:
  %k = phi i64 [0, %entry], [%k1, %put]
  %kind = phi ptr [%kinds, %entry], [%kind1, %put]
  %dim = phi ptr [%dims, %entry], [%dim1, %put]
  %more = icmp slt i64 %k, %inputs
  br i1 %more, label %next, label %results
next:
  %p = getelementptr ptr, ptr %args, i64 %k
  %object = load ptr, ptr %p
  %ok = call i1 @fits(ptr %object, ptr %type, ptr %kind, ptr %dim)
  br i1 %ok, label %put, label %no
put:
  call void @place(ptr %ctx, i64 %k, ptr %object)
  %ndim = call i64 @word(ptr %kind, i64 8)
  %dim1 = getelementptr i64, ptr %dim, i64 %ndim
  %kind1 = getelementptr i8, ptr %kind, i64 24
  %k1 = add i64 %k, 1
  br label %loop
results:
  %given = icmp ne ptr %outs, null
  br i1 %given, label %rloop, label %yes
rloop:
  %j = phi i64 [0, %results], [%j1, %rput]
  %rkind = phi ptr [%kind, %results], [%rkind1, %rput]
  %rdim = phi ptr [%dim, %results], [%rdim1, %rput]
  %rmore = icmp slt i64 %j, %outputs
  br i1 %rmore, label %rnext, label %yes
rnext:
  %q = getelementptr ptr, ptr %outs, i64 %j
  %out = load ptr, ptr %q
  %rok = call i1 @fits(ptr %out, ptr %type, ptr %rkind, ptr %rdim)
  br i1 %rok, label %apart1, label %no
apart1:
  %number = add i64 %inputs, %j
  %s1 = call i1 @shares(ptr %ctx, i64 %number, ptr %out, ptr %args, i64 %inputs, i64 0)
  br i1 %s1, label %no, label %apart2
apart2:
  %s2 = call i1 @shares(ptr %ctx, i64 %number, ptr %out, ptr %outs, i64 %j, i64 %inputs)
  br i1 %s2, label %no, label %rput
rput:
  call void @place(ptr %ctx, i64 %number, ptr %out)
  %rndim = call i64 @word(ptr %rkind, i64 8)
  %rdim1 = getelementptr i64, ptr %rdim, i64 %rndim
  %rkind1 = getelementptr i8, ptr %rkind, i64 24
  %j1 = add i64 %j, 1
  br label %rloop
yes:
  ret i1 true
no:
  ret i1 false
}

; An array for output %j that nobody but the context refers to and that is as it was made; null if
; there is none. With %reuse the first one will do while it is as it was made.
define internal ptr @spare(ptr %ctx, i64 %j, ptr %kind, ptr %dims, i64 %reuse) #A {
entry:
  %ring = call ptr @field(ptr %ctx, i64 80)
  %first = mul i64 %j, RING
  %any = icmp ne i64 %reuse, 0
  br label %loop
loop:
  %k = phi i64 [0, %entry], [%k1, %next], [%k1, %held], [%k1, %free]
  %more = icmp slt i64 %k, RING
  br i1 %more, label %next, label %none
next:
  %k1 = add i64 %k, 1
  %index = add i64 %first, %k
  %o = shl i64 %index, 5
  %row = getelementptr i8, ptr %ring, i64 %o
  %object = load ptr, ptr %row
  %there = icmp ne ptr %object, null
  br i1 %there, label %held, label %loop
held:
  %count = load i32, ptr %object
  %alone = icmp eq i32 %count, 1
  %take = or i1 %alone, %any
  br i1 %take, label %free, label %loop
free:
  %data = call i64 @word(ptr %object, i64 16)
  %data0 = call i64 @word(ptr %row, i64 8)
  %c1 = icmp eq i64 %data, %data0
  %pf = getelementptr i8, ptr %object, i64 64
  %f = load i32, ptr %pf
  %flags = zext i32 %f to i64
  %flags0 = call i64 @word(ptr %row, i64 16)
  %c2 = icmp eq i64 %flags, %flags0
  %dtype = call ptr @field(ptr %object, i64 56)
  %dtype0 = load ptr, ptr %kind
  %c3 = icmp eq ptr %dtype, %dtype0
  %weak = call i64 @word(ptr %object, i64 72)
  %c4 = icmp eq i64 %weak, 0
  %pn = getelementptr i8, ptr %object, i64 24
  %n32 = load i32, ptr %pn
  %n = sext i32 %n32 to i64
  %ndim = call i64 @word(ptr %kind, i64 8)
  %c5 = icmp eq i64 %n, %ndim
  %c12 = and i1 %c1, %c2
  %c34 = and i1 %c3, %c4
  %c345 = and i1 %c34, %c5
  %c = and i1 %c12, %c345
  br i1 %c, label %sized, label %loop
sized:
  %same = call i1 @same_dims(ptr %object, ptr %dims, i64 %ndim)
  br i1 %same, label %yes, label %none
yes:
  ret ptr %object
none:
  ret ptr null
}

; A new reference to an array for output %j, made by Python when no spare one is left; null and an
; exception when that fails.
define internal ptr @result(ptr %entry_, ptr %ctx, i64 %j, ptr %kind, ptr %dims) #A {
entry:
  %argv = alloca [2 x ptr]
  %reuse = call i64 @word(ptr %entry_, i64 88)
  %s = call ptr @spare(ptr %ctx, i64 %j, ptr %kind, ptr %dims, i64 %reuse)
  %found = icmp ne ptr %s, null
  br i1 %found, label %old, label %new
old:
  call void @Py_IncRef(ptr %s)
  ret ptr %s
new:
  %where = ptrtoint ptr %ctx to i64
  %a = call ptr @PyLong_FromLong(i64 %where)
  %b = call ptr @PyLong_FromLong(i64 %j)
  store ptr %a, ptr %argv
  %slot1 = getelementptr i8, ptr %argv, i64 8
  store ptr %b, ptr %slot1
  %refill = call ptr @field(ptr %entry_, i64 80)
  %made = call ptr @PyObject_Vectorcall(ptr %refill, ptr %argv, i64 2, ptr null)
  call void @Py_DecRef(ptr %a)
  call void @Py_DecRef(ptr %b)
  ret ptr %made
}

; The result of the call: one new reference to an array or a tuple of arrays.
define internal ptr @results(ptr %entry_, ptr %ctx) #A {
entry:
  %inputs = load i64, ptr %entry_
  %outputs = call i64 @word(ptr %entry_, i64 8)
  %kinds = call ptr @field(ptr %entry_, i64 24)
  %dims = call ptr @field(ptr %ctx, i64 56)
  br label %skip
skip:
  %i = phi i64 [0, %entry], [%i1, %skipped]
  %kind0 = phi ptr [%kinds, %entry], [%kind01, %skipped]
  %dim0 = phi ptr [%dims, %entry], [%dim01, %skipped]
  %more0 = icmp slt i64 %i, %inputs
  br i1 %more0, label %skipped, label %begin
skipped:
  %n0 = call i64 @word(ptr %kind0, i64 8)
  %dim01 = getelementptr i64, ptr %dim0, i64 %n0
  %kind01 = getelementptr i8, ptr %kind0, i64 24
  %i1 = add i64 %i, 1
  br label %skip
begin:
  %single = icmp eq i64 %outputs, 1
  br i1 %single, label %one, label %several
one:
  %r = call ptr @result(ptr %entry_, ptr %ctx, i64 0, ptr %kind0, ptr %dim0)
  %bad = icmp eq ptr %r, null
  br i1 %bad, label %fail, label %put
put:
  call void @place(ptr %ctx, i64 %inputs, ptr %r)
  ret ptr %r
several:
  %tuple = call ptr @PyTuple_New(i64 %outputs)
  %bad1 = icmp eq ptr %tuple, null
  br i1 %bad1, label %fail, label %loop
loop:
  %j = phi i64 [0, %several], [%j1, %add]
  %kind = phi ptr [%kind0, %several], [%kind1, %add]
  %dim = phi ptr [%dim0, %several], [%dim1, %add]
  %more = icmp slt i64 %j, %outputs
  br i1 %more, label %next, label %done
next:
  %rj = call ptr @result(ptr %entry_, ptr %ctx, i64 %j, ptr %kind, ptr %dim)
  %bad2 = icmp eq ptr %rj, null
  br i1 %bad2, label %drop, label %add
add:
  %number = add i64 %inputs, %j
  call void @place(ptr %ctx, i64 %number, ptr %rj)
  %e = call i32 @PyTuple_SetItem(ptr %tuple, i64 %j, ptr %rj)
  %n = call i64 @word(ptr %kind, i64 8)
  %dim1 = getelementptr i64, ptr %dim, i64 %n
  %kind1 = getelementptr i8, ptr %kind, i64 24
  %j1 = add i64 %j, 1
  br label %loop
drop:
  call void @Py_DecRef(ptr %tuple)
  br label %fail
done:
  ret ptr %tuple
fail:
  ret ptr null
}

define ptr @tw_call(ptr %self, ptr %args, i64 %nargs, ptr %names) #A {
entry:
  %list = alloca [MAX_OUTPUTS x ptr]
  %e = call ptr @PyCapsule_GetPointer(ptr %self, ptr null)
  %inputs = load i64, ptr %e
  %right = icmp eq i64 %nargs, %inputs
  br i1 %right, label %counted, label %slow
counted:
  %named = icmp ne ptr %names, null
  br i1 %named, label %keyword, label %take
keyword:
  %size = call i64 @PyTuple_Size(ptr %names)
  %one = icmp eq i64 %size, 1
  br i1 %one, label %keyword1, label %slow
keyword1:
  %name = call ptr @PyTuple_GetItem(ptr %names, i64 0)
  %wanted = call ptr @field(ptr %e, i64 64)
  %is_out = icmp eq ptr %name, %wanted
  br i1 %is_out, label %keyword2, label %slow
keyword2:
  %pout = getelementptr ptr, ptr %args, i64 %nargs
  %given = load ptr, ptr %pout
  %none = call ptr @field(ptr %e, i64 96)
  %is_none = icmp eq ptr %given, %none
  br i1 %is_none, label %take, label %keyword3
keyword3:
  %outputs = call i64 @word(ptr %e, i64 8)
  %single = icmp eq i64 %outputs, 1
  br i1 %single, label %take, label %many
many:
  %tuple_type = call ptr @field(ptr %e, i64 104)
  %type = call ptr @field(ptr %given, i64 8)
  %is_tuple = icmp eq ptr %type, %tuple_type
  br i1 %is_tuple, label %many1, label %slow
many1:
  %members = call i64 @PyTuple_Size(ptr %given)
  %fit = icmp eq i64 %members, %outputs
  %few = icmp ule i64 %outputs, MAX_OUTPUTS
  %fine = and i1 %fit, %few
  br i1 %fine, label %unpack, label %slow
unpack:
  %u = phi i64 [0, %many1], [%u1, %unpack1]
  %left = icmp slt i64 %u, %outputs
  br i1 %left, label %unpack1, label %take
unpack1:
  %member = call ptr @PyTuple_GetItem(ptr %given, i64 %u)
  %pm = getelementptr ptr, ptr %list, i64 %u
  store ptr %member, ptr %pm
  %u1 = add i64 %u, 1
  br label %unpack
take:
  %outs = phi ptr [null, %counted], [null, %keyword2], [%pout, %keyword3], [%list, %unpack]
  %bound = phi ptr [null, %counted], [null, %keyword2], [%given, %keyword3], [%given, %unpack]
  %contexts = call ptr @field(ptr %e, i64 32)
  %count = call i64 @word(ptr %e, i64 40)
  br label %search
search:
  %c = phi i64 [0, %take], [%c1, %busy], [%c1, %misfit]
  %any = icmp slt i64 %c, %count
  br i1 %any, label %try, label %slow
try:
  %c1 = add i64 %c, 1
  %pc = getelementptr ptr, ptr %contexts, i64 %c
  %ctx = load ptr, ptr %pc
  %pb = getelementptr i8, ptr %ctx, i64 48
  %pair = cmpxchg ptr %pb, i64 0, i64 1 acquire monotonic, align 8
  %mine = extractvalue {i64, i1} %pair, 1
  br i1 %mine, label %check, label %busy
busy:
  br label %search
check:
  %ok = call i1 @accept(ptr %e, ptr %ctx, ptr %args, ptr %outs)
  br i1 %ok, label %ready, label %misfit
misfit:
  store atomic i64 0, ptr %pb release, align 8
  br label %search
ready:
  %fresh = icmp eq ptr %outs, null
  br i1 %fresh, label %make, label %keep
keep:
  call void @Py_IncRef(ptr %bound)
  br label %run
make:
  %made = call ptr @results(ptr %e, ptr %ctx)
  %failed = icmp eq ptr %made, null
  br i1 %failed, label %fail, label %run
run:
  %value = phi ptr [%bound, %keep], [%made, %make]
  %walk = call ptr @field(ptr %e, i64 72)
  %release = call i64 @word(ptr %e, i64 48)
  %long = icmp ne i64 %release, 0
  br i1 %long, label %without, label %with
without:
  %state = call ptr @PyEval_SaveThread()
  call void %walk(ptr %ctx)
  call void @PyEval_RestoreThread(ptr %state)
  br label %done
with:
  call void %walk(ptr %ctx)
  br label %done
done:
  store atomic i64 0, ptr %pb release, align 8
  ret ptr %value
fail:
  store atomic i64 0, ptr %pb release, align 8
  ret ptr null
slow:
  %python = call ptr @field(ptr %e, i64 56)
  %answer = call ptr @PyObject_Vectorcall(ptr %python, ptr %args, i64 %nargs, ptr %names)
  ret ptr %answer
}
"""
