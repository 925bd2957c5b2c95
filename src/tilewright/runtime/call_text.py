"""The native half of a model call as LLVM text.

In: a Target. Out: text of a module that exports `tw_call`, a CPython METH_FASTCALL|METH_KEYWORDS
function that serves every model; its `self` is a capsule that holds the model's entry and the
Python function behind it.
Invariant: it runs the model only after every array passed every check; whatever it does not
recognize goes unchanged to that Python function, which converts or raises.

NumPy's arrays are read through their public struct layout, which `runtime.call` verifies at load;
PyTorch's tensors as `runtime.tensor_layout` finds it out.

  capsule:  0 entry   8 Python function
  entry:  0 inputs   8 outputs   16 ndarray type   24 ptr kinds (32 bytes: dtype, ndim, flags,
          i32 DLPack dtype, i32 bytes of an element)   32 ptr contexts   40 contexts
          48 release GIL   56 False   64 "out"   72 tw_run
          80 Python function that adds a result   88 reuse   96 None   104 tuple type
          112 tensor type, or null   120 its DLTensor function   128 "requires_grad"
          136 offset of a tensor in its object   144, 152 offsets of keys and gradients in it
          160, 168 keys of plain tensors
  array:  0 references   8 type   16 data   24 i32 ndim   32 ptr dims   56 dtype   64 i32 flags
          72 weak references
  DLTensor:  0 data   8 i32 device type   16 i32 ndim   20 i32 dtype   24 ptr sizes
          32 ptr strides, or null   40 offset in bytes
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
declare ptr @PyObject_GetAttr(ptr, ptr)
declare void @PyErr_Clear()
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

; Whether the sizes %have are %dims.
define internal i1 @same_dims(ptr %have, ptr %dims, i64 %ndim) #A {
entry:
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

; Whether %strides, in elements, are those of a C-contiguous array; of an axis of 1 they may be any.
define internal i1 @contiguous(ptr %strides, ptr %dims, i64 %ndim) #A {
entry:
  %any = icmp eq ptr %strides, null
  br i1 %any, label %yes, label %loop
loop:
  %k = phi i64 [%ndim, %entry], [%k1, %next]
  %wanted = phi i64 [1, %entry], [%wanted1, %next]
  %more = icmp sgt i64 %k, 0
  br i1 %more, label %next, label %yes
next:
  %k1 = sub i64 %k, 1
  %p = getelementptr i64, ptr %strides, i64 %k1
  %stride = load i64, ptr %p
  %q = getelementptr i64, ptr %dims, i64 %k1
  %size = load i64, ptr %q
  %wanted1 = mul i64 %wanted, %size
  %same = icmp eq i64 %stride, %wanted
  %one = icmp eq i64 %size, 1
  %fits = or i1 %same, %one
  br i1 %fits, label %loop, label %no
yes:
  ret i1 true
no:
  ret i1 false
}

; Where the elements of an object lie that is exactly an ndarray of this kind and size; else 0.
define internal i64 @array_address(ptr %object, ptr %kind, ptr %dims) #A {
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
  %have = call ptr @field(ptr %object, i64 32)
  %r = call i1 @same_dims(ptr %have, ptr %dims, i64 %ndim)
  %data = call i64 @word(ptr %object, i64 16)
  %address = select i1 %r, i64 %data, i64 0
  ret i64 %address
no:
  ret i64 0
}

; The same for a plain tensor that no gradients belong to.
define internal i64 @tensor_address(ptr %entry_, ptr %object, ptr %kind, ptr %dims) #A {
entry:
  %t = alloca [48 x i8], align 8
  %tensor_at = call i64 @word(ptr %entry_, i64 136)
  %tensor = call ptr @field(ptr %object, i64 %tensor_at)
  %keys_at = call i64 @word(ptr %entry_, i64 144)
  %keys = call i64 @word(ptr %tensor, i64 %keys_at)
  %plain1 = call i64 @word(ptr %entry_, i64 160)
  %plain2 = call i64 @word(ptr %entry_, i64 168)
  %is1 = icmp eq i64 %keys, %plain1
  %is2 = icmp eq i64 %keys, %plain2
  %plain = or i1 %is1, %is2
  br i1 %plain, label %gradients, label %no
gradients:
  %gradients_at = call i64 @word(ptr %entry_, i64 152)
  %gradients_ = call ptr @field(ptr %tensor, i64 %gradients_at)
  %none = icmp eq ptr %gradients_, null
  br i1 %none, label %ask, label %look
look:
  %name = call ptr @field(ptr %entry_, i64 128)
  %grad = call ptr @PyObject_GetAttr(ptr %object, ptr %name)
  %unknown = icmp eq ptr %grad, null
  br i1 %unknown, label %clear, label %looked
looked:
  call void @Py_DecRef(ptr %grad)
  %false_ = call ptr @field(ptr %entry_, i64 56)
  %free = icmp eq ptr %grad, %false_
  br i1 %free, label %ask, label %no
ask:
  %read = call ptr @field(ptr %entry_, i64 120)
  %failed = call i32 %read(ptr %object, ptr %t)
  %c0 = icmp eq i32 %failed, 0
  br i1 %c0, label %told, label %clear
clear:
  call void @PyErr_Clear()
  br label %no
told:
  %pdevice = getelementptr i8, ptr %t, i64 8
  %device = load i32, ptr %pdevice
  %c1 = icmp eq i32 %device, 1
  %pd = getelementptr i8, ptr %t, i64 20
  %d = load i32, ptr %pd
  %pw = getelementptr i8, ptr %kind, i64 24
  %wanted = load i32, ptr %pw
  %c2 = icmp eq i32 %d, %wanted
  %pn = getelementptr i8, ptr %t, i64 16
  %n32 = load i32, ptr %pn
  %n = sext i32 %n32 to i64
  %ndim = call i64 @word(ptr %kind, i64 8)
  %c3 = icmp eq i64 %n, %ndim
  %data = call i64 @word(ptr %t, i64 0)
  %offset = call i64 @word(ptr %t, i64 40)
  %address = add i64 %data, %offset
  %pb = getelementptr i8, ptr %kind, i64 28
  %bytes = load i32, ptr %pb
  %low = sub i32 %bytes, 1
  %mask = zext i32 %low to i64
  %over = and i64 %address, %mask
  %c4 = icmp eq i64 %over, 0
  %c12 = and i1 %c1, %c2
  %c34 = and i1 %c3, %c4
  %c = and i1 %c12, %c34
  br i1 %c, label %sized, label %no
sized:
  %have = call ptr @field(ptr %t, i64 24)
  %r = call i1 @same_dims(ptr %have, ptr %dims, i64 %ndim)
  br i1 %r, label %laid, label %no
laid:
  %strides = call ptr @field(ptr %t, i64 32)
  %s = call i1 @contiguous(ptr %strides, ptr %dims, i64 %ndim)
  %found = select i1 %s, i64 %address, i64 0
  ret i64 %found
no:
  ret i64 0
}

; Where the elements of an object lie that can be taken as it is, else 0; tensors if %tensors.
define internal i64 @address(
    ptr %entry_, ptr %object, ptr %kind, ptr %dims, i1 %tensors) #A {
  %t = call ptr @field(ptr %object, i64 8)
  %type = call ptr @field(ptr %entry_, i64 16)
  %c1 = icmp eq ptr %t, %type
  br i1 %c1, label %array, label %other
array:
  %a = call i64 @array_address(ptr %object, ptr %kind, ptr %dims)
  ret i64 %a
other:
  %tensor_type = call ptr @field(ptr %entry_, i64 112)
  %c2 = icmp eq ptr %t, %tensor_type
  %c = and i1 %c2, %tensors
  br i1 %c, label %tensor, label %no
tensor:
  %b = call i64 @tensor_address(ptr %entry_, ptr %object, ptr %kind, ptr %dims)
  ret i64 %b
no:
  ret i64 0
}

; Write the address of an array's data where the context's args want array %number.
define internal void @place(ptr %ctx, i64 %number, i64 %data) #A {
entry:
  %addresses = call ptr @field(ptr %ctx, i64 88)
  %pa = getelementptr i64, ptr %addresses, i64 %number
  store i64 %data, ptr %pa
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
  store i64 %data, ptr %to
  %k1 = add i64 %k, 1
  br label %loop
out:
  ret void
}

; Whether output %number at %a shares a byte with one of the arrays placed before it.
define internal i1 @shares(ptr %ctx, i64 %number, i64 %a) #A {
entry:
  %bytes = call ptr @field(ptr %ctx, i64 64)
  %addresses = call ptr @field(ptr %ctx, i64 88)
  %pa = getelementptr i64, ptr %bytes, i64 %number
  %na = load i64, ptr %pa
  %aend = add i64 %a, %na
  br label %loop
loop:
  %k = phi i64 [0, %entry], [%k1, %next]
  %more = icmp slt i64 %k, %number
  br i1 %more, label %next, label %no
next:
  %po = getelementptr i64, ptr %addresses, i64 %k
  %b = load i64, ptr %po
  %pb = getelementptr i64, ptr %bytes, i64 %k
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
  %kinds = call ptr @field(ptr %entry_, i64 24)
  %dims = call ptr @field(ptr %ctx, i64 56)
  %given = icmp ne ptr %outs, null
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
  %address = call i64 @address(ptr %entry_, ptr %object, ptr %kind, ptr %dim, i1 %given)
  %ok = icmp ne i64 %address, 0
  br i1 %ok, label %put, label %no
put:
  call void @place(ptr %ctx, i64 %k, i64 %address)
  %ndim = call i64 @word(ptr %kind, i64 8)
  %dim1 = getelementptr i64, ptr %dim, i64 %ndim
  %kind1 = getelementptr i8, ptr %kind, i64 32
  %k1 = add i64 %k, 1
  br label %loop
results:
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
  %to = call i64 @address(ptr %entry_, ptr %out, ptr %rkind, ptr %rdim, i1 true)
  %rok = icmp ne i64 %to, 0
  br i1 %rok, label %apart, label %no
apart:
  %number = add i64 %inputs, %j
  %s = call i1 @shares(ptr %ctx, i64 %number, i64 %to)
  br i1 %s, label %no, label %rput
rput:
  call void @place(ptr %ctx, i64 %number, i64 %to)
  %rndim = call i64 @word(ptr %rkind, i64 8)
  %rdim1 = getelementptr i64, ptr %rdim, i64 %rndim
  %rkind1 = getelementptr i8, ptr %rkind, i64 32
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
  %have = call ptr @field(ptr %object, i64 32)
  %same = call i1 @same_dims(ptr %have, ptr %dims, i64 %ndim)
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
  %kind01 = getelementptr i8, ptr %kind0, i64 32
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
  %at = call i64 @word(ptr %r, i64 16)
  call void @place(ptr %ctx, i64 %inputs, i64 %at)
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
  %atj = call i64 @word(ptr %rj, i64 16)
  call void @place(ptr %ctx, i64 %number, i64 %atj)
  %e = call i32 @PyTuple_SetItem(ptr %tuple, i64 %j, ptr %rj)
  %n = call i64 @word(ptr %kind, i64 8)
  %dim1 = getelementptr i64, ptr %dim, i64 %n
  %kind1 = getelementptr i8, ptr %kind, i64 32
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
  %held = call ptr @PyCapsule_GetPointer(ptr %self, ptr null)
  %e = load ptr, ptr %held
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
  %python = call ptr @field(ptr %held, i64 8)
  %answer = call ptr @PyObject_Vectorcall(ptr %python, ptr %args, i64 %nargs, ptr %names)
  ret ptr %answer
}
"""
