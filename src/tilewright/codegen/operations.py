"""Every scalar operation of ir.expr on LLVM scalars and vectors, for every dtype.

In: operation name, operand values, dtypes, number of lanes (0: a scalar). Out: the name of the
result. Invariants: no fast-math flag, nothing that traps, no library call: f16 and bf16 live in
registers as i16 and are computed in f32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial

import numpy as np

from tilewright.codegen import mathlib
from tilewright.codegen.writer import Writer
from tilewright.errors import InternalError
from tilewright.ir.dtypes import BF16, BOOL, F16, F32, F64, I32, DType
from tilewright.ir.expr import COMPARE
from tilewright.machine.target import Target

__all__ = ["Operations", "identity"]

_FLOAT = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_ROUNDING = {
    "floor": "floor",
    "ceil": "ceil",
    "round": "roundeven",
    "trunc": "trunc",
    "sqrt": "sqrt",
    "abs": "fabs",
}
_INTEGER = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor"}
_BOOLEAN = {
    "and": "and",
    "or": "or",
    "xor": "xor",
    "add": "or",
    "max": "or",
    "mul": "and",
    "min": "and",
    "ne": "xor",
}
_ORDERED = {"lt": "olt", "le": "ole", "eq": "oeq", "ne": "une"}
_HALF = (F16, BF16)
_TYPES = 1 << 10  # texts of types, literals and declarations that are kept


def identity(monoid: str, dtype: DType) -> float | int | bool:
    """The neutral element of a reduction."""
    if monoid in ("add", "or", "xor"):
        return 0
    if monoid == "mul":
        return 1
    if monoid == "and":
        return True if dtype is BOOL else (1 << dtype.bits) - 1
    if dtype is BOOL:
        return monoid == "min"
    if dtype.is_float:
        return float("inf") if monoid == "min" else float("-inf")
    info = np.iinfo(dtype.np)  # type: ignore[type-var]
    return int(info.max if monoid == "min" else info.min)


@lru_cache(maxsize=_TYPES)
def _hexadecimal(value: str, dtype: DType) -> str:
    """A float as LLVM writes it, from its `repr` (which tells 0.0 and -0.0 apart)."""
    with np.errstate(over="ignore"):
        exact = float(np.asarray(float(value), dtype.np))
    return f"0x{struct.unpack('<Q', struct.pack('<d', exact))[0]:016X}"


@lru_cache(maxsize=_TYPES)
def _vector(element: str, values: tuple[int, ...]) -> str:
    return "<" + ", ".join([f"{element} {v}" for v in values]) + ">"


@lru_cache(maxsize=_TYPES)
def _intrinsic(
    name: str, dtype: DType, lanes: int, arguments: int, result: str | None
) -> tuple[str, str]:
    """Type and name of an overloaded intrinsic, and its declaration."""
    t, element = Operations.type(dtype, lanes), Operations.element(dtype)
    suffix = {"float": "f32", "double": "f64"}.get(element, element)
    full = f"llvm.{name}.v{lanes}{suffix}" if lanes else f"llvm.{name}.{suffix}"
    head = f"{result or t} @{full}"
    return head, f"{head}({', '.join([t] * arguments)})"


class Operations:
    """Emits into the region of the writer that `at` chooses (the innermost by default)."""

    def __init__(self, writer: Writer, target: Target) -> None:
        self.writer = writer
        self.target = target
        self.op: Callable[[str], str] = writer.op  # appends an instruction, gives its name
        self.is_arm = target.triple.startswith("aarch64")

    @contextmanager
    def at(self, depth: int) -> Iterator[None]:
        """Emit into the region of `depth`, value-numbered."""
        before, self.op = self.op, partial(self.writer.op_at, depth)
        try:
            yield
        finally:
            self.op = before

    # ---- types and constants ---------------------------------------------------------------------

    @staticmethod
    def element(dtype: DType) -> str:
        """The LLVM type of one element in a register."""
        return "i1" if dtype is BOOL else "i16" if dtype in _HALF else dtype.llvm

    @staticmethod
    @lru_cache(maxsize=_TYPES)
    def type(dtype: DType, lanes: int) -> str:
        """The LLVM type of a value."""
        element = Operations.element(dtype)
        return f"<{lanes} x {element}>" if lanes else element

    @staticmethod
    @lru_cache(maxsize=_TYPES)
    def memory_type(dtype: DType, lanes: int) -> str:
        """The LLVM type it is loaded and stored as."""
        e = "i8" if dtype is BOOL else "i16" if dtype in _HALF else dtype.llvm
        return f"<{lanes} x {e}>" if lanes else e

    def literal(self, value: float | int | bool, dtype: DType, lanes: int = 0) -> str:
        """A constant, splat over lanes."""
        if dtype.is_int:
            text = str(int(value))
        elif dtype is BOOL:
            text = "true" if value else "false"
        elif dtype in _HALF:
            text = str(int(np.asarray(value, dtype.np).view(np.uint16)))
        else:
            text = _hexadecimal(repr(float(value)), dtype)
        return f"splat ({self.element(dtype)} {text})" if lanes else text

    def memory_literal(self, value: float | int | bool, dtype: DType, lanes: int = 0) -> str:
        """A constant of `memory_type`."""
        if dtype is BOOL:
            return f"splat (i8 {int(value)})" if lanes else str(int(value))
        return self.literal(value, dtype, lanes)

    @staticmethod
    def vector(element: str, values: Iterable[int]) -> str:
        """A constant integer vector."""
        return _vector(element, tuple(values))

    def splat(self, value: str, dtype: DType, lanes: int) -> str:
        """A scalar in every lane, once per scalar and region."""
        e = self.type(dtype, 0)
        if value[0] != "%":
            return f"splat ({e} {value})"
        t = self.type(dtype, lanes)
        return self.writer.once_both(
            f"insertelement {t} poison, {e} {value}, i64 0",
            f"shufflevector {t} ",
            f", {t} poison, <{lanes} x i32> zeroinitializer",
        )

    def from_memory(self, raw: str, dtype: DType, lanes: int) -> str:
        """A loaded value as it lives in registers."""
        if dtype is not BOOL:
            return raw
        return self.op(
            f"icmp ne {self.memory_type(dtype, lanes)} {raw}, {'zeroinitializer' if lanes else 0}"
        )

    def to_memory(self, value: str, dtype: DType, lanes: int) -> str:
        """A value as it is stored."""
        if dtype is not BOOL:
            return value
        return self.op(
            f"zext {self.type(dtype, lanes)} {value} to {self.memory_type(dtype, lanes)}"
        )

    def call(
        self, name: str, args: Sequence[str], dtype: DType, lanes: int, result: str | None = None
    ) -> str:
        """An overloaded LLVM intrinsic whose operands are all of one type."""
        t = self.type(dtype, lanes)
        head, declaration = _intrinsic(name, dtype, lanes, len(args), result)
        self.writer.module.declare(declaration)
        return self.op(f"call {head}({', '.join([f'{t} {a}' for a in args])})")

    def call_each(self, name: str, values: list[str], dtype: DType, lanes: int) -> list[str]:
        """An intrinsic of one operand, for each of the values; poison stays poison."""
        t, op = self.type(dtype, lanes), self.op
        head, declaration = _intrinsic(name, dtype, lanes, 1, None)
        if any(v != "poison" for v in values):
            self.writer.module.declare(declaration)
        return [v if v == "poison" else op(f"call {head}({t} {v})") for v in values]

    # ---- the table -------------------------------------------------------------------------------

    def apply(self, op: str, args: Sequence[str], source: DType, dtype: DType, lanes: int) -> str:
        """`op` on operands of dtype `source` (of a select: its values'), giving `dtype`.

        Errors: InternalError L001 for an operation that the dtype does not have.
        """
        if op == "cast":
            return self.cast(args[0], source, dtype, lanes)
        if op == "select":
            t, m = self.type(dtype, lanes), self.type(BOOL, lanes)
            return self.op(f"select {m} {args[0]}, {t} {args[1]}, {t} {args[2]}")
        if source in _HALF:
            wide = [self.cast(a, source, F32, lanes) for a in args]
            result = F32 if dtype is source else dtype
            return self.cast(self.apply(op, wide, F32, result, lanes), result, dtype, lanes)
        if source is BOOL:
            return self._boolean(op, args, lanes)
        if source.is_float:
            return self._float(op, args, source, lanes)
        return self._integer(op, args, source, lanes)

    def multiply_add(self, dtype: DType, lanes: int) -> Callable[[str, str, str], str]:
        """Emits a * b + c: one rounding where the target has it, two elsewhere."""
        if not (dtype.is_float and self.target.has_fma):
            return lambda a, b, c: self.apply(
                "add", [c, self.apply("mul", [a, b], dtype, dtype, lanes)], dtype, dtype, lanes
            )
        t = self.type(dtype, lanes)
        head, declaration = _intrinsic("fma", dtype, lanes, 3, None)
        declared, op = self.writer.module.declarations, self.op

        def fused(a: str, b: str, c: str) -> str:
            declared[declaration] = None
            return op(f"call {head}({t} {a}, {t} {b}, {t} {c})")

        return fused

    def _refuse(self, op: str, dtype: DType) -> InternalError:
        return InternalError("L001", f"operation {op!r} has no meaning for {dtype}")

    def _boolean(self, op: str, args: Sequence[str], lanes: int) -> str:
        t = self.type(BOOL, lanes)
        true = self.literal(True, BOOL, lanes)
        if op == "not":
            return self.op(f"xor {t} {args[0]}, {true}")
        if op in ("lt", "le", "eq"):
            first = self.op(f"xor {t} {args[0]}, {true}")
            return self.op(
                f"{'xor' if op == 'eq' else 'and' if op == 'lt' else 'or'} {t} {first}, {args[1]}"
            )
        if op not in _BOOLEAN:
            raise self._refuse(op, BOOL)
        return self.op(f"{_BOOLEAN[op]} {t} {args[0]}, {args[1]}")

    # ---- floats ----------------------------------------------------------------------------------

    def _float(self, op: str, args: Sequence[str], dtype: DType, lanes: int) -> str:
        t = self.type(dtype, lanes)
        a = args[0]
        if op in _FLOAT:
            return self.op(f"{_FLOAT[op]} {t} {a}, {args[1]}")
        if op in COMPARE:
            return self.op(f"fcmp {_ORDERED[op]} {t} {a}, {args[1]}")
        if op in _ROUNDING:
            return self.call(_ROUNDING[op], [a], dtype, lanes)
        if op in ("min", "max"):
            return self._extremum(op, a, args[1], dtype, lanes)
        match op:
            case "neg":
                return self.op(f"fneg {t} {a}")
            case "isnan":
                return self.op(f"fcmp uno {t} {a}, {a}")
            case "isinf":
                size = self.call("fabs", [a], dtype, lanes)
                return self.op(f"fcmp oeq {t} {size}, {self.literal(float('inf'), dtype, lanes)}")
            case "bits":
                return self.op(f"bitcast {t} {a} to {self.type(I32, lanes)}")
            case "upper_half":
                i, h = self.type(I32, lanes), self.type(BF16, lanes)
                bits = self.op(f"bitcast {t} {a} to {i}")
                upper = self.op(f"lshr {i} {bits}, {self._int(16, lanes)}")
                return self.op(f"trunc {i} {upper} to {h}")
            case "rsqrt":
                root = self.call("sqrt", [a], dtype, lanes)
                return self.op(f"fdiv {t} {self.literal(1.0, dtype, lanes)}, {root}")
            case "floordiv":
                quotient = self.op(f"fdiv {t} {a}, {args[1]}")
                return self.call("floor", [quotient], dtype, lanes)
        return self._mathematics(op, args, dtype, lanes)

    def _extremum(self, op: str, a: str, b: str, dtype: DType, lanes: int) -> str:
        """NaN in either operand wins: the CPU's minimum gives the second operand when unordered."""
        if self.is_arm:
            return self.call("minimum" if op == "min" else "maximum", [a, b], dtype, lanes)
        t, m = self.type(dtype, lanes), self.type(BOOL, lanes)
        first = self.op(f"fcmp {'olt' if op == 'min' else 'ogt'} {t} {a}, {b}")
        best = self.op(f"select {m} {first}, {t} {a}, {t} {b}")
        if self.target.has_masks and lanes * dtype.bytes == 64:
            return self._or_nan(best, a, dtype, lanes)
        bad = self.op(f"fcmp uno {t} {a}, {a}")
        return self.op(f"select {m} {bad}, {t} {a}, {t} {best}")

    def _or_nan(self, x: str, a: str, dtype: DType, lanes: int) -> str:
        """`a` where it is NaN, else x, in one instruction: classes of values choose by a table."""
        t, i = self.type(dtype, lanes), f"<{lanes} x i{8 * dtype.bytes}>"
        name = f"llvm.x86.avx512.mask.fixupimm.p{'s' if dtype.bytes == 4 else 'd'}.512"
        self.writer.module.declare(f"{t} @{name}({t}, {t}, {i}, i32, i{lanes}, i32)")
        table = f"splat (i{8 * dtype.bytes} 17)"  # classes 0 and 1, the two kinds of NaN: `a`
        arguments = f"{t} {x}, {t} {a}, {i} {table}, i32 0, i{lanes} -1, i32 4"
        return self.op(f"call {t} @{name}({arguments})")

    def _mathematics(self, op: str, args: Sequence[str], dtype: DType, lanes: int) -> str:
        """Straight-line code of codegen/mathlib, in the innermost region."""
        if op not in mathlib.MATH:
            raise self._refuse(op, dtype)
        w, t = self.writer, self.target
        return mathlib.emit(
            op, dtype.name, lanes or 1, args, w.fresh, w.line, t.has_fma, t.has_masks, self.is_arm
        )

    # ---- integers --------------------------------------------------------------------------------

    def _integer(self, op: str, args: Sequence[str], dtype: DType, lanes: int) -> str:
        t = self.type(dtype, lanes)
        signed = dtype.kind == "i"
        a = args[0]
        b = args[1] if len(args) > 1 else ""
        if op in _INTEGER:
            return self.op(f"{_INTEGER[op]} {t} {a}, {b}")
        if op in COMPARE:
            sign = "" if op in ("eq", "ne") else "s" if signed else "u"
            return self.op(f"icmp {sign}{op} {t} {a}, {b}")
        zero = "zeroinitializer" if lanes else "0"
        match op:
            case "neg":
                return self.op(f"sub {t} {zero}, {a}")
            case "not":
                return self.op(f"xor {t} {a}, {self.literal(-1, dtype, lanes)}")
            case "abs":
                if not signed:
                    return a
                minus = self.op(f"sub {t} {zero}, {a}")
                return self.call("smax", [a, minus], dtype, lanes)
            case "sign":
                one = self.literal(1, dtype, lanes)
                if not signed:
                    return self.call("umin", [a, one], dtype, lanes)
                low = self.call("smax", [a, self.literal(-1, dtype, lanes)], dtype, lanes)
                return self.call("smin", [low, one], dtype, lanes)
            case "min" | "max":
                return self.call(f"{'s' if signed else 'u'}{op}", [a, b], dtype, lanes)
            case "shl" | "shr":
                count = self.op(f"and {t} {b}, {self.literal(dtype.bits - 1, dtype, lanes)}")
                word = "shl" if op == "shl" else "ashr" if signed else "lshr"
                return self.op(f"{word} {t} {a}, {count}")
            case "div" | "floordiv" | "mod" | "fmod":
                return self._divide(op, a, b, dtype, lanes)
            case "pow":
                return self._power(a, b, dtype, lanes)
        raise self._refuse(op, dtype)

    def _divide(self, op: str, a: str, b: str, dtype: DType, lanes: int) -> str:
        """x / 0 and x % 0 are 0, and the lowest integer divided by -1 wraps: the divisor is made 1
        there.
        """
        t, m = self.type(dtype, lanes), self.type(BOOL, lanes)
        zero, one = ("zeroinitializer" if lanes else "0"), self.literal(1, dtype, lanes)
        none = self.op(f"icmp eq {t} {b}, {zero}")
        if dtype.kind == "u":
            safe = self.op(f"select {m} {none}, {t} {one}, {t} {b}")
            if op in ("div", "floordiv"):
                q = self.op(f"udiv {t} {a}, {safe}")
                return self.op(f"select {m} {none}, {t} {zero}, {t} {q}")
            return self.op(f"urem {t} {a}, {safe}")
        minus = self.op(f"icmp eq {t} {b}, {self.literal(-1, dtype, lanes)}")
        either = self.op(f"or {m} {none}, {minus}")
        safe = self.op(f"select {m} {either}, {t} {one}, {t} {b}")
        r = self.op(f"srem {t} {a}, {safe}")
        if op == "fmod":
            return r
        mixed = self.op(f"xor {t} {r}, {safe}")
        low = self.op(f"icmp slt {t} {mixed}, {zero}")
        some = self.op(f"icmp ne {t} {r}, {zero}")
        down = self.op(f"and {m} {low}, {some}")
        if op == "mod":
            more = self.op(f"select {m} {down}, {t} {safe}, {t} {zero}")
            return self.op(f"add {t} {r}, {more}")
        q = self.op(f"sdiv {t} {a}, {safe}")
        opposite = self.op(f"sub {t} {zero}, {a}")
        q = self.op(f"select {m} {minus}, {t} {opposite}, {t} {q}")
        if op == "floordiv":
            borrow = self.op(f"sext {m} {down} to {t}")
            q = self.op(f"add {t} {q}, {borrow}")
        return self.op(f"select {m} {none}, {t} {zero}, {t} {q}")

    def _power(self, a: str, b: str, dtype: DType, lanes: int) -> str:
        """Square and multiply, wrapping; a negative exponent gives 1, -1 or 0 (1 / a^|b|
        truncated).
        """
        t, m = self.type(dtype, lanes), self.type(BOOL, lanes)
        zero, one = ("zeroinitializer" if lanes else "0"), self.literal(1, dtype, lanes)
        result, base = one, a
        for bit in range(dtype.bits):
            picked = self.op(f"and {t} {b}, {self.literal(1 << bit, dtype, lanes)}")
            use = self.op(f"icmp ne {t} {picked}, {zero}")
            product = self.op(f"mul {t} {result}, {base}")
            result = self.op(f"select {m} {use}, {t} {product}, {t} {result}")
            base = self.op(f"mul {t} {base}, {base}")
        if dtype.kind == "u":
            return result
        negative = self.op(f"icmp slt {t} {b}, {zero}")
        size = self.call("smax", [a, self.op(f"sub {t} {zero}, {a}")], dtype, lanes)
        unit = self.op(f"icmp eq {t} {size}, {one}")
        low = self.op(f"and {t} {b}, {one}")
        odd = self.op(f"icmp ne {t} {low}, {zero}")
        flipped = self.op(f"select {m} {odd}, {t} {a}, {t} {one}")
        inverse = self.op(f"select {m} {unit}, {t} {flipped}, {t} {zero}")
        return self.op(f"select {m} {negative}, {t} {inverse}, {t} {result}")

    # ---- conversions -----------------------------------------------------------------------------

    def cast(self, a: str, source: DType, dtype: DType, lanes: int) -> str:
        """Value conversion with the meaning of ir.scalar: saturating from float to integer,
        wrapping between them.
        """
        if source is dtype:
            return a
        if source in _HALF:
            wide = self._widen(a, source, lanes)
            return self.cast(wide, F32, dtype, lanes)
        if dtype in _HALF:
            if source is F64:
                a = self._to_odd(a, lanes)
            elif source is not F32:
                a = self.cast(a, source, F32, lanes)
            return self._narrow(a, dtype, lanes)
        s, t = self.type(source, lanes), self.type(dtype, lanes)
        if dtype is BOOL:
            zero = self.literal(0, source, lanes)
            return self.op(f"{'fcmp une' if source.is_float else 'icmp ne'} {s} {a}, {zero}")
        if source is BOOL:
            if dtype.is_float:
                one, zero = self.literal(1.0, dtype, lanes), self.literal(0.0, dtype, lanes)
                return self.op(f"select {s} {a}, {t} {one}, {t} {zero}")
            return self.op(f"zext {s} {a} to {t}")
        if source.is_float and dtype.is_float:
            return self.op(f"{'fpext' if dtype is F64 else 'fptrunc'} {s} {a} to {t}")
        if source.is_float:
            return self._saturate(a, source, dtype, lanes)
        if dtype.is_float:
            return self.op(f"{'sitofp' if source.kind == 'i' else 'uitofp'} {s} {a} to {t}")
        if source.bits == dtype.bits:
            return a
        word = "trunc" if dtype.bits < source.bits else "sext" if source.kind == "i" else "zext"
        return self.op(f"{word} {s} {a} to {t}")

    def _saturate(self, a: str, source: DType, dtype: DType, lanes: int) -> str:
        s, t = self.type(source, lanes), self.type(dtype, lanes)
        shape = f"v{lanes}" if lanes else ""
        sign = "s" if dtype.kind == "i" else "u"
        name = f"llvm.fpto{sign}i.sat.{shape}i{dtype.bits}.{shape}f{source.bits}"
        self.writer.module.declare(f"{t} @{name}({s})")
        return self.op(f"call {t} @{name}({s} {a})")

    def _widen(self, a: str, source: DType, lanes: int) -> str:
        """f16 or bf16 to f32, exact."""
        h, i, f = (f"<{lanes} x {e}>" if lanes else e for e in ("i16", "i32", "float"))
        if source is F16 and (self.target.has_f16c or self.is_arm):
            half = f"<{lanes} x half>" if lanes else "half"
            bits = self.op(f"bitcast {h} {a} to {half}")
            return self.op(f"fpext {half} {bits} to {f}")
        wide = self.op(f"zext {h} {a} to {i}")
        if source is BF16:
            return self.op(
                f"bitcast {i} {self.op(f'shl {i} {wide}, {self._int(16, lanes)}')} to {f}"
            )
        # Exponent moved by integers; a denormal is normalised by one float subtraction.
        # After F. Giesen.
        m = self.type(BOOL, lanes)
        size = self.op(f"and {i} {wide}, {self._int(0x7FFF, lanes)}")
        body = self.op(f"shl {i} {size}, {self._int(13, lanes)}")
        exponent = self.op(f"and {i} {body}, {self._int(0x7C00 << 13, lanes)}")
        moved = self.op(f"add {i} {body}, {self._int(112 << 23, lanes)}")
        special = self.op(f"icmp eq {i} {exponent}, {self._int(0x7C00 << 13, lanes)}")
        infinite = self.op(f"add {i} {moved}, {self._int(112 << 23, lanes)}")
        tiny = self.op(f"icmp eq {i} {exponent}, {self._int(0, lanes)}")
        lifted = self.op(
            f"bitcast {i} {self.op(f'add {i} {moved}, {self._int(1 << 23, lanes)}')} to {f}"
        )
        lowered = self.op(f"fsub {f} {lifted}, {self.literal(2.0**-14, F32, lanes)}")
        small = self.op(f"bitcast {f} {lowered} to {i}")
        out = self.op(f"select {m} {special}, {i} {infinite}, {i} {moved}")
        out = self.op(f"select {m} {tiny}, {i} {small}, {i} {out}")
        negative = self.op(f"and {i} {wide}, {self._int(0x8000, lanes)}")
        sign = self.op(f"shl {i} {negative}, {self._int(16, lanes)}")
        return self.op(f"bitcast {i} {self.op(f'or {i} {out}, {sign}')} to {f}")

    def _to_odd(self, a: str, lanes: int) -> str:
        """f64 to f32, to the odd neighbour where it is inexact: rounding that once more is rounding
        once. LLVM would make one conversion of two plain ones, and call a library for it.
        """
        d, f, i = (self.type(t, lanes) for t in (F64, F32, I32))
        m = self.type(BOOL, lanes)
        near = self.op(f"fptrunc {d} {a} to {f}")
        back = self.op(f"fpext {f} {near} to {d}")
        inexact = self.op(f"fcmp one {d} {back}, {a}")
        name = f"llvm.fabs.{f'v{lanes}' if lanes else ''}f64"
        self.writer.module.declare(f"{d} @{name}({d})")
        sizes = [self.op(f"call {d} @{name}({d} {x})") for x in (back, a)]
        away = self.op(f"zext {m} {self.op(f'fcmp ogt {d} {sizes[0]}, {sizes[1]}')} to {i}")
        bits = self.op(f"bitcast {f} {near} to {i}")
        odd = self.op(f"or {i} {self.op(f'sub {i} {bits}, {away}')}, {self._int(1, lanes)}")
        out = self.op(f"select {m} {inexact}, {i} {odd}, {i} {bits}")
        return self.op(f"bitcast {i} {out} to {f}")

    def _narrow(self, a: str, dtype: DType, lanes: int) -> str:
        """f32 to f16 or bf16, to nearest even."""
        h, i, f = (f"<{lanes} x {e}>" if lanes else e for e in ("i16", "i32", "float"))
        native = self.target.has_f16c or self.is_arm if dtype is F16 else False
        if native:
            t = f"<{lanes} x half>" if lanes else "half"
            return self.op(f"bitcast {t} {self.op(f'fptrunc {f} {a} to {t}')} to {h}")
        bits = self.op(f"bitcast {f} {a} to {i}")
        out = self._round_bf16(a, bits, lanes) if dtype is BF16 else self._round_f16(bits, lanes)
        return self.op(f"trunc {i} {out} to {h}")

    def _round_bf16(self, a: str, bits: str, lanes: int) -> str:
        """The CPU's own instruction (vcvtneps2bf16) makes denormals zero, so integers do it."""
        i, f = (f"<{lanes} x {e}>" if lanes else e for e in ("i32", "float"))
        high = self.op(f"lshr {i} {bits}, {self._int(16, lanes)}")
        odd = self.op(f"and {i} {high}, {self._int(1, lanes)}")
        half = self.op(f"add {i} {odd}, {self._int(0x7FFF, lanes)}")
        rounded = self.op(f"lshr {i} {self.op(f'add {i} {bits}, {half}')}, {self._int(16, lanes)}")
        quiet = self.op(f"or {i} {high}, {self._int(0x40, lanes)}")
        bad = self.op(f"fcmp uno {f} {a}, {a}")
        return self.op(f"select {self.type(BOOL, lanes)} {bad}, {i} {quiet}, {i} {rounded}")

    def _round_f16(self, bits: str, lanes: int) -> str:
        """Rounding by integer addition; denormal results by one float addition. After F. Giesen."""
        i, f = (f"<{lanes} x {e}>" if lanes else e for e in ("i32", "float"))
        m = self.type(BOOL, lanes)
        body = self.op(f"and {i} {bits}, {self._int(0x7FFFFFFF, lanes)}")
        sign = self.op(f"lshr {i} {self.op(f'xor {i} {bits}, {body}')}, {self._int(16, lanes)}")
        bad = self.op(f"icmp ugt {i} {body}, {self._int(0x7F800000, lanes)}")
        huge = self.op(
            f"select {m} {bad}, {i} {self._int(0x7E00, lanes)}, {i} {self._int(0x7C00, lanes)}"
        )
        lifted = self.op(
            f"fadd {f} {self.op(f'bitcast {i} {body} to {f}')}, {self.literal(0.5, F32, lanes)}"
        )
        small = self.op(
            f"sub {i} {self.op(f'bitcast {f} {lifted} to {i}')}, {self._int(126 << 23, lanes)}"
        )
        odd = self.op(
            f"and {i} {self.op(f'lshr {i} {body}, {self._int(13, lanes)}')}, {self._int(1, lanes)}"
        )
        moved = self.op(f"add {i} {body}, {self._int(0xFFF - (112 << 23), lanes)}")
        normal = self.op(f"lshr {i} {self.op(f'add {i} {moved}, {odd}')}, {self._int(13, lanes)}")
        is_huge = self.op(f"icmp uge {i} {body}, {self._int(143 << 23, lanes)}")
        is_small = self.op(f"icmp ult {i} {body}, {self._int(113 << 23, lanes)}")
        out = self.op(f"select {m} {is_small}, {i} {small}, {i} {normal}")
        out = self.op(f"select {m} {is_huge}, {i} {huge}, {i} {out}")
        return self.op(f"or {i} {out}, {sign}")

    @staticmethod
    def _int(value: int, lanes: int) -> str:
        return f"splat (i32 {value})" if lanes else str(value)
