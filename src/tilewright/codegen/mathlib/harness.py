"""Loops over arrays for checking and timing the math functions on this machine.

In: a function name, dtype, lane count and a level of the instruction set. Out: a compiled loop over
NumPy arrays, its assembly, a reference loop in the next wider type (libm's f64 for f32, 80-bit for
f64), and the error in ulp. Invariant: not used by compiled models; x86-64 only.
"""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding as llvm
from numpy.typing import NDArray

from tilewright.codegen.mathlib import MATH, declarations, emit

__all__ = ["LEVELS", "Level", "assembly", "compile_loop", "compile_reference"]
__all__ += [
    "in_domain",
    "loop_object",
    "nanoseconds_per_element",
    "sample",
    "ulp_error",
    "worst_error",
]

Array = NDArray[Any]
Loop = Callable[..., Array]
_NAMES = itertools.count()
_KIND = {"f32": ("float", 4), "f64": ("double", 8)}


@dataclass(frozen=True, slots=True)
class Level:
    """An instruction set: LLVM triple, CPU, vector bits, and the flags that `emit` takes."""

    triple: str
    cpu: str
    vector_bits: int
    fma: bool
    avx512: bool = False
    nan_max: bool = False

    def lanes(self, dtype: str) -> int:
        """Lanes of the native vector."""
        return self.vector_bits // (8 * _KIND[dtype][1])


_X86 = "x86_64-unknown-linux-gnu"
LEVELS = {
    "avx512": Level(_X86, "skylake-avx512", 512, fma=True, avx512=True),
    "avx2": Level(_X86, "haswell", 256, fma=True),
    "sse42": Level(_X86, "nehalem", 128, fma=False),
    "aarch64": Level("aarch64-unknown-linux-gnu", "cortex-a76", 128, fma=True, nan_max=True),
}


def _loop_text(name: str, dtype: str, lanes: int, level: Level, wrap: int = -1) -> str:
    """`void @loop(n, out, x...)`: n counts vectors, addressed modulo wrap + 1 (a power of two).

    A mask becomes 0 and 1.
    """
    function = MATH[name]
    kind, size = _KIND[dtype]
    vector = kind if lanes == 1 else f"<{lanes} x {kind}>"
    lines: list[str] = []
    pointers = [f"%p{i}" for i in range(function.arity)]
    for i, pointer in enumerate(pointers):
        lines.append(f"%a{i} = getelementptr {vector}, ptr {pointer}, i64 %j")
        lines.append(f"%x{i} = load {vector}, ptr %a{i}, align {size}")
    args = [f"%x{i}" for i in range(function.arity)]
    flags = (level.fma, level.avx512, level.nan_max)
    result = emit(name, dtype, lanes, args, lambda: "%t", lines.append, *flags)
    if function.is_mask:
        mask = "i1" if lanes == 1 else f"<{lanes} x i1>"
        lines.append(f"%mask = uitofp {mask} {result} to {vector}")
        result = "%mask"
    body = "\n  ".join(lines)
    parameters = ", ".join(["i64 %n", "ptr noalias %out", *(f"ptr {p}" for p in pointers)])
    return f"""
define void @loop({parameters}) #0 {{
entry:
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %body, label %done
body:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %j = and i64 %i, {wrap}
  {body}
  %to = getelementptr {vector}, ptr %out, i64 %j
  store {vector} {result}, ptr %to, align {size}
  %next = add nuw i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %body, label %done
done:
  ret void
}}
{chr(10).join(declarations(lines))}
attributes #0 = {{ nounwind "prefer-vector-width"="512" }}
"""


def _machine(level: Level) -> Any:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(level.triple)
    return target.create_target_machine(cpu=level.cpu, opt=2, reloc="pic", codemodel="small")


def assembly(name: str, dtype: str, lanes: int, level: Level) -> str:
    """The assembly of the loop; an object is emitted too, so that a refusal shows."""
    module = llvm.parse_assembly(_loop_text(name, dtype, lanes, level))
    module.verify()
    machine = _machine(level)
    machine.emit_object(module)
    return str(machine.emit_assembly(module))


def loop_object(name: str, dtype: str, lanes: int, level: Level, more: str) -> bytes:
    """A static object with `loop` and the IR text `more`, for programs without a C library."""
    module = llvm.parse_assembly(_loop_text(name, dtype, lanes, level) + more)
    module.verify()
    _machine(level)
    target = llvm.Target.from_triple(level.triple)
    machine = target.create_target_machine(cpu=level.cpu, opt=2, reloc="static", codemodel="small")
    return bytes(machine.emit_object(module))


def _load(text: str, machine: Any, argument_count: int) -> tuple[Any, Any]:
    """(callable, resource tracker that keeps the code alive)."""
    module = llvm.parse_assembly(text)
    module.verify()
    builder = llvm.JITLibraryBuilder().add_object_img(machine.emit_object(module))
    tracker = (
        builder.add_current_process().export_symbol("loop").link(_engine(), f"m{next(_NAMES)}")
    )
    types = [ctypes.c_int64, *([ctypes.c_void_p] * argument_count)]
    return ctypes.CFUNCTYPE(None, *types)(tracker["loop"]), tracker


_ENGINE: list[Any] = []


def _engine() -> Any:
    if not _ENGINE:
        _ENGINE.append(llvm.create_lljit_compiler(use_jit_link=True))
    return _ENGINE[0]


def compile_loop(
    name: str, dtype: str, lanes: int, level: Level, change: Callable[[str], str] | None = None
) -> Loop:
    """A function from arrays (1-d, contiguous, a multiple of `lanes` long) to a new array.

    change: applied to the text first, to plant a fault.
    """
    arity = MATH[name].arity
    text = _loop_text(name, dtype, lanes, level)
    function, tracker = _load(change(text) if change else text, _machine(level), arity + 1)

    def loop(*arrays: Array, out: Array | None = None) -> Array:
        result = np.empty_like(arrays[0]) if out is None else out
        function(arrays[0].size // lanes, result.ctypes.data, *(a.ctypes.data for a in arrays))
        return result

    loop.tracker = tracker  # type: ignore[attr-defined]
    return loop


def nanoseconds_per_element(
    name: str, dtype: str, lanes: int, level: Level, arguments: tuple[Array, ...]
) -> float:
    """The best of many runs over arrays of 1024 elements, which stay in the first cache."""
    text = _loop_text(name, dtype, lanes, level, 1024 // lanes - 1)
    function, _tracker = _load(text, _machine(level), len(arguments) + 1)
    aligned = [_aligned(a) for a in (arguments[0], *arguments)]
    pointers = [a.ctypes.data for a in aligned]
    repeats = 32
    best = float("inf")
    for _ in range(200):
        start = time.perf_counter_ns()
        function(repeats * 1024 // lanes, *pointers)
        best = min(best, (time.perf_counter_ns() - start) / (repeats * 1024))
    return best


def _aligned(array: Array) -> Array:
    """A copy that starts at a cache line."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype)
    copy[:] = array
    return copy


# libm's name, for a function that is not called the same.
_LIBM = {"round": "nearbyint", "max": "fmax", "min": "fmin", "sign": "", "isnan": "", "isinf": ""}
_LIBM |= {"sigmoid": "", "rsqrt": "", "reciprocal": "", "mod": "fmod"}


def compile_reference(name: str, dtype: str) -> Loop:
    """A loop in the next wider type through libm, or NumPy where libm has no such function."""
    symbol = _LIBM.get(name, name)
    wide_type = np.float64 if dtype == "f32" else np.longdouble
    if not symbol:
        return lambda x: _numpy_reference(name, x, wide_type)
    arity = MATH[name].arity
    kind, _ = _KIND[dtype]
    wide, suffix = ("double", "") if dtype == "f32" else ("x86_fp80", "l")
    loads, arguments = [], []
    for i in range(arity):
        loads.append(f"%a{i} = getelementptr {kind}, ptr %p{i}, i64 %i")
        loads.append(f"%n{i} = load {kind}, ptr %a{i}")
        loads.append(f"%x{i} = fpext {kind} %n{i} to {wide}")
        arguments.append(f"{wide} %x{i}")
    body = "\n  ".join(loads)
    text = f"""
declare {wide} @{symbol}{suffix}({", ".join([wide] * arity)})
define void @loop(i64 %n, ptr %out, {", ".join(f"ptr %p{i}" for i in range(arity))}) {{
entry:
  br label %body
body:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  {body}
  %y = call {wide} @{symbol}{suffix}({", ".join(arguments)})
  %to = getelementptr {wide}, ptr %out, i64 %i
  store {wide} %y, ptr %to
  %next = add nuw i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %body, label %done
done:
  ret void
}}
"""
    function, tracker = _load(text, _machine(LEVELS["sse42"]), arity + 1)

    def loop(*arrays: Array) -> Array:
        result = np.empty(arrays[0].size, wide_type)
        function(result.size, result.ctypes.data, *(a.ctypes.data for a in arrays))
        return _fix_reference(name, result, *arrays)

    loop.tracker = tracker  # type: ignore[attr-defined]
    return loop


def _numpy_reference(name: str, narrow: Array, wide_type: type[Any]) -> Array:
    one = wide_type(1)
    with np.errstate(all="ignore"):
        x: Any = narrow.astype(wide_type)
        table: dict[str, Callable[[], Any]] = {
            "sigmoid": lambda: one / (one + np.exp(-x)),
            "rsqrt": lambda: one / np.sqrt(x),
            "reciprocal": lambda: one / x,
            "sign": lambda: np.sign(x),
            "isnan": lambda: np.isnan(x).astype(wide_type),
            "isinf": lambda: np.isinf(x).astype(wide_type),
        }
        return np.asarray(table[name]())


def _fix_reference(name: str, result: Array, *arrays: Array) -> Array:
    """NaN for min and max of NaN; the sign of the divisor for mod."""
    with np.errstate(all="ignore"):
        wide = [a.astype(result.dtype) for a in arrays]
        if name in ("min", "max"):
            return np.where(np.isnan(wide[0]) | np.isnan(wide[1]), np.nan, result)
        if name == "mod":
            moved = (result != 0) & (np.signbit(result) != np.signbit(wide[1]))
            result = np.where(moved, result + wide[1], result)
            return np.where(result == 0, np.copysign(result, wide[1]), result)
    return result


def ulp_error(y: Array, reference: Array, signed_zero: bool = True) -> Array:
    """|y - reference| in ulp of the reference in y's type; inf where NaN or a zero's sign differs.

    An infinite y counts as the first number beyond the largest: a rounded overflow is right.
    """
    digits, low, high = (24, -126, 127) if y.dtype == np.float32 else (53, -1022, 1023)
    wide = reference.dtype.type
    with np.errstate(all="ignore"):
        top = np.ldexp(wide(1), high + 1)
        limited = np.clip(reference, -top, top)
        if wide is np.float64:
            power = (limited.view(np.uint64) & np.uint64(0x7FF << 52)).view(np.float64)
        else:
            power = np.ldexp(wide(1), np.frexp(limited)[1] - 1)
        power = np.clip(power, np.ldexp(wide(1), low), np.ldexp(wide(1), high))
        error = np.abs(np.clip(y.astype(wide), -top, top) - limited) / power
        error *= np.ldexp(wide(1), digits - 1)
    nans = np.flatnonzero(np.isnan(error))
    error[nans] = np.where(np.isnan(y[nans]) & np.isnan(reference[nans]), 0, np.inf)
    if signed_zero:
        zeros = np.flatnonzero((y == 0) & (reference == 0))
        error[zeros[np.signbit(y[zeros]) != np.signbit(reference[zeros])]] = np.inf
    return np.asarray(error)


def worst_error(
    name: str, dtype: str, loop: Loop, reference: Loop, arguments: tuple[Array, ...]
) -> tuple[float, int]:
    """(error, index) of the worst input in the domain, in pieces that stay in the cache."""
    worst, where, piece = -1.0, 0, 1 << 14
    for start in range(0, arguments[0].size, piece):
        part = tuple(a[start : start + piece] for a in arguments)
        error = ulp_error(loop(*part), reference(*part), name not in ("min", "max"))
        error = np.where(in_domain(name, dtype, *part), error, 0)
        index = int(np.argmax(error))
        if error[index] > worst:
            worst, where = float(error[index]), start + index
    return worst, where


# Where a function changes its formula or the kind of its result, besides powers of two.
_CORNERS = [0.0, 0.63, 0.75, 0.93, 1.5, 3.0, 3.92, 6.0, 9.01, 10.0, 20.0, 87.3, 88.3, 88.72, 89.4]
_CORNERS += [103.9, 104.0, 126.0, 127.0, 149.0, 150.0, 708.3, 709.78, 710.47, 745.1, 746.0, 1022.0]
_CORNERS += [1074.0, 1075.0, float("inf")]


def sample(dtype: str, count: int, arity: int, seed: int) -> tuple[Array, ...]:
    """`count` inputs: half spread evenly over the bit patterns, a quarter of moderate size, a
    quarter of random bits, the last replaced by powers of two and corners with their neighbours.

    Two arguments: the last are every pair of special values, and some have like size.
    """
    rng = np.random.default_rng(seed)
    real, word = (np.float32, np.uint32) if dtype == "f32" else (np.float64, np.uint64)
    bits = 8 * np.dtype(word).itemsize

    def column() -> Array:
        x: Any = rng.integers(0, 1 << bits, count, dtype=np.uint64, endpoint=False).astype(word)
        step = np.uint64((1 << bits) // count)
        spread = (np.arange(count // 2, dtype=np.uint64) * (step * np.uint64(2))).astype(word)
        x[: count // 2] = spread + (x[: count // 2] & word(step))
        values = x.view(real)
        quarter = values[count // 2 : 3 * count // 4]
        quarter[:] = rng.standard_normal(quarter.size) * np.exp(rng.uniform(-8, 6, quarter.size))
        return np.asarray(values)

    with np.errstate(all="ignore"):
        info = np.finfo(real)
        powers = np.ldexp(real(1), np.arange(info.minexp - info.nmant, info.maxexp))
        corners = np.concatenate([powers, np.array(_CORNERS, real)]).astype(real)
        around = np.concatenate([np.nextafter(corners, real(s)) for s in (-np.inf, np.inf)])
        special = np.concatenate([corners, around, np.array([np.nan, info.max], real)])
        special = np.concatenate([special, special * real(-1)])
    columns = [column() for _ in range(arity)]
    if arity == 1:
        columns[0][-special.size :] = special
        return (columns[0],)
    few: Any = np.array(
        [0, 1, 2, 3, 0.5, 0.3, 2**24 + 1, info.tiny, info.max, np.inf, np.nan], real
    )
    few = np.concatenate([few, -few, special[:: special.size // 200]])
    pairs = np.meshgrid(few, few)
    like = slice(0, count // 8)
    columns[1][like] = columns[0][like] * rng.uniform(0.1, 10, count // 8).astype(real)
    for values, pair in zip(columns, pairs, strict=True):
        values[-pair.size :] = pair.ravel()
    return tuple(columns)


def in_domain(name: str, dtype: str, *arguments: Array) -> Array:
    """Mask of the inputs for which the stated bound holds (`MathFunction.domain`)."""
    x = arguments[0]
    with np.errstate(all="ignore"):
        if dtype == "f64" and name in ("sin", "cos", "tan"):
            return np.asarray(~(np.abs(x) >= 2.0**45) | np.isinf(x))
        if dtype == "f64" and name in ("fmod", "mod"):
            return np.asarray(~(np.abs(x / arguments[1]) >= 2.0**53) | (arguments[1] == 0))
    return np.ones(x.shape, np.bool_)
