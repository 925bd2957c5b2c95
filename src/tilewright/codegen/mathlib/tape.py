"""A straight-line recorder of LLVM IR: Python expressions in, lines of text out.

In: a dtype, a lane count and the properties of the instruction set. Out: lines of textual IR, each
assigning one value, without branches. Invariant: an equal line is written once; every value has the
lane count of the tape.

Names are written as `\\x01` + number, arguments as `\\x02` + position + `\\x03`: `mathlib.emit`
replaces them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["Isa", "Tape", "Value"]

_FLOATS = ("float", "double")
_BITS = {"float": 32, "double": 64, "i32": 32, "i64": 64, "i1": 1}
_SUFFIX = {"float": "f32", "double": "f64", "i32": "i32", "i64": "i64"}


@dataclass(frozen=True, slots=True)
class Isa:
    """What the emitter may use.

    `fma`: fused multiply-add. `avx512`: the instructions of AVX-512 F and VL. `nan_max`: minimum
    and maximum instructions that propagate NaN.
    """

    fma: bool
    avx512: bool = False
    nan_max: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A value of the tape: `text` is its name or constant, `elem` the LLVM element type."""

    tape: Tape
    text: str
    elem: str

    def __add__(self, other: Value | float) -> Value:
        return self.tape.binary("add", self, other)

    def __radd__(self, other: float) -> Value:
        return self.tape.binary("add", self.tape.const(self.elem, other), self)

    def __sub__(self, other: Value | float) -> Value:
        return self.tape.binary("sub", self, other)

    def __rsub__(self, other: float) -> Value:
        return self.tape.binary("sub", self.tape.const(self.elem, other), self)

    def __mul__(self, other: Value | float) -> Value:
        return self.tape.binary("mul", self, other)

    def __rmul__(self, other: float) -> Value:
        return self.tape.binary("mul", self.tape.const(self.elem, other), self)

    def __truediv__(self, other: Value | float) -> Value:
        return self.tape.binary("div", self, other)

    def __rtruediv__(self, other: float) -> Value:
        return self.tape.binary("div", self.tape.const(self.elem, other), self)

    def __neg__(self) -> Value:
        return self.tape.write(f"fneg {self.tape.type(self.elem)} {self.text}", self.elem)

    def __and__(self, other: Value | int) -> Value:
        return self.tape.binary("and", self, other)

    def __or__(self, other: Value | int) -> Value:
        return self.tape.binary("or", self, other)

    def __xor__(self, other: Value | int) -> Value:
        return self.tape.binary("xor", self, other)

    def __lshift__(self, count: int) -> Value:
        return self.tape.binary("shl", self, count)

    def __rshift__(self, count: int) -> Value:
        """Arithmetic shift right (prefer `lshr` on i64: AVX2 has no 64-bit arithmetic shift)."""
        return self.tape.binary("ashr", self, count)

    def lshr(self, count: int) -> Value:
        """Logical shift right."""
        return self.tape.binary("lshr", self, count)

    def __lt__(self, other: Value | float) -> Value:
        return self.tape.compare("olt", "slt", self, other)

    def __le__(self, other: Value | float) -> Value:
        return self.tape.compare("ole", "sle", self, other)

    def __gt__(self, other: Value | float) -> Value:
        return self.tape.compare("ogt", "sgt", self, other)

    def __ge__(self, other: Value | float) -> Value:
        return self.tape.compare("oge", "sge", self, other)

    def equals(self, other: Value | float) -> Value:
        """Ordered equality: false when either side is NaN."""
        return self.tape.compare("oeq", "eq", self, other)

    def differs(self, other: Value | float) -> Value:
        """Unordered inequality: true when either side is NaN."""
        return self.tape.compare("une", "ne", self, other)

    def is_nan(self) -> Value:
        """Mask of the NaN lanes."""
        return self.tape.compare("uno", "ne", self, self)


class Tape:
    """The recorder for `dtype` "f32" or "f64": methods write a line or a few, return the value."""

    def __init__(self, dtype: str, lanes: int, isa: Isa) -> None:
        self.dtype = dtype
        self.lanes = lanes
        self.isa = isa
        self.real = "float" if dtype == "f32" else "double"
        self.word = "i32" if dtype == "f32" else "i64"
        self.bits = _BITS[self.real]
        self.mantissa_bits = 23 if dtype == "f32" else 52
        self.exponent_bias = 127 if dtype == "f32" else 1023
        self.lines: list[str] = []
        self._known: dict[str, Value] = {}

    def as_double(self) -> Tape:
        """This tape seen as an f64 tape: the same lines, f64 constants and formats."""
        view = Tape("f64", self.lanes, self.isa)
        view.lines, view._known = self.lines, self._known
        return view

    # Values

    def type(self, elem: str) -> str:
        """LLVM type of a value with element type `elem`."""
        return elem if self.lanes == 1 else f"<{self.lanes} x {elem}>"

    def argument(self, position: int) -> Value:
        """The `position`-th argument of the function being recorded."""
        return Value(self, f"\x02{position}\x03", self.real)

    def const(self, elem: str, value: float) -> Value:
        """A constant in every lane, rounded to the element type."""
        if elem in _FLOATS:
            text = self._hexadecimal(elem, value)
        else:
            width = _BITS[elem]
            whole = int(value) & ((1 << width) - 1)
            text = str(whole - (1 << width) if whole >> (width - 1) else whole)
        return Value(self, text if self.lanes == 1 else f"splat ({elem} {text})", elem)

    @staticmethod
    def _hexadecimal(elem: str, value: float) -> str:
        """A float, rounded to the element type, as LLVM writes it."""
        number = struct.unpack("<f", struct.pack("<f", value))[0] if elem == "float" else value
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"

    def real_const(self, value: float) -> Value:
        """A constant of the tape's dtype."""
        return self.const(self.real, value)

    def write(self, text: str, elem: str) -> Value:
        """Append the line `name = text` (or find the equal line) and return its value."""
        known = self._known.get(text)
        if known is None:
            known = Value(self, f"\x01{len(self.lines)}", elem)
            self.lines.append(f"{known.text} = {text}")
            self._known[text] = known
        return known

    def _coerce(self, elem: str, value: Value | float) -> Value:
        return value if isinstance(value, Value) else self.const(elem, value)

    # Arithmetic

    def binary(self, op: str, a: Value, b: Value | float) -> Value:
        """One two-operand instruction; the float form is chosen by the element type."""
        b = self._coerce(a.elem, b)
        name = f"f{op}" if a.elem in _FLOATS else op
        return self.write(f"{name} {self.type(a.elem)} {a.text}, {b.text}", a.elem)

    def compare(self, ordered: str, signed: str, a: Value, b: Value | float) -> Value:
        """A mask: `fcmp ordered` for floats, `icmp signed` for integers."""
        b = self._coerce(a.elem, b)
        op = f"fcmp {ordered}" if a.elem in _FLOATS else f"icmp {signed}"
        return self.write(f"{op} {self.type(a.elem)} {a.text}, {b.text}", "i1")

    def not_at_least(self, a: Value, b: Value | float) -> Value:
        """A mask: not a >= b, which holds for NaN."""
        return self.compare("ult", "slt", a, b)

    def select(self, mask: Value, a: Value | float, b: Value | float) -> Value:
        """`mask ? a : b` per lane; at least one of `a` and `b` is a `Value`."""
        elem = a.elem if isinstance(a, Value) else b.elem if isinstance(b, Value) else self.real
        a, b = self._coerce(elem, a), self._coerce(elem, b)
        kind = self.type(elem)
        return self.write(
            f"select {self.type('i1')} {mask.text}, {kind} {a.text}, {kind} {b.text}", elem
        )

    def call(self, intrinsic: str, *args: Value) -> Value:
        """An LLVM intrinsic overloaded on the type of its first argument."""
        elem = args[0].elem
        suffix = _SUFFIX[elem] if self.lanes == 1 else f"v{self.lanes}{_SUFFIX[elem]}"
        kind = self.type(elem)
        text = ", ".join(f"{kind} {a.text}" for a in args)
        return self.write(f"call {kind} @llvm.{intrinsic}.{suffix}({text})", elem)

    def fma(self, a: Value | float, b: Value | float, c: Value | float) -> Value:
        """`a * b + c`, rounded once where the instruction set has it, else twice."""
        elem = next(v.elem for v in (a, b, c) if isinstance(v, Value))
        a, b, c = (self._coerce(elem, v) for v in (a, b, c))
        return self.call("fma", a, b, c) if self.isa.fma else a * b + c

    def horner(self, x: Value, coefficients: tuple[float, ...]) -> Value:
        """The polynomial with `coefficients` (constant first) at `x`, by Horner's rule."""
        result = self.const(x.elem, coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            result = self.fma(result, x, coefficient)
        return result

    def split_horner(self, x: Value, coefficients: tuple[float, ...]) -> Value:
        """Like `horner`, as even part + x * odd part: half the latency, one more multiplication."""
        if len(coefficients) < 6:
            return self.horner(x, coefficients)
        square = x * x
        odd = self.horner(square, coefficients[1::2])
        even = self.horner(square, coefficients[0::2])
        return self.fma(odd, x, even)

    def two_product(self, a: Value, b: Value) -> tuple[Value, Value]:
        """(h, l): h = a * b rounded, h + l = a * b exactly (unless something overflows)."""
        product = a * b
        if self.isa.fma:
            return product, self.fma(a, b, -product)
        a_high, a_low = self._halves(a)
        b_high, b_low = self._halves(b)
        error = (a_high * b_high - product) + a_high * b_low
        return product, (error + a_low * b_high) + a_low * b_low

    def _halves(self, a: Value) -> tuple[Value, Value]:
        """`a` as a sum of two values of half the significant bits."""
        big = a * (2.0 ** ((self.mantissa_bits + 2) // 2) + 1.0)
        high = big - (big - a)
        return high, a - high

    def fast_two_sum(self, a: Value, b: Value) -> tuple[Value, Value]:
        """(h, l): h = a + b rounded, h + l = a + b exactly, for a = 0 or |a| >= |b|."""
        total = a + b
        return total, b - (total - a)

    def two_sum(self, a: Value, b: Value) -> tuple[Value, Value]:
        """(h, l): h = a + b rounded, h + l = a + b exactly."""
        total = a + b
        part = total - a
        return total, (a - (total - part)) + (b - part)

    # Bits and conversions

    def _cast(self, op: str, a: Value, elem: str) -> Value:
        return self.write(f"{op} {self.type(a.elem)} {a.text} to {self.type(elem)}", elem)

    def to_bits(self, a: Value) -> Value:
        """The bits of a float as an integer of the same width."""
        return self._cast("bitcast", a, "i32" if a.elem == "float" else "i64")

    def from_bits(self, a: Value) -> Value:
        """The float with the bits of an integer of the same width."""
        return self._cast("bitcast", a, "float" if a.elem == "i32" else "double")

    def low_word(self, a: Value) -> Value:
        """The low 32 bits of an i64."""
        return self._cast("trunc", a, "i32")

    def widen(self, a: Value) -> Value:
        """f32 to f64, exact."""
        return self._cast("fpext", a, "double")

    def narrow(self, a: Value) -> Value:
        """f64 to f32, rounded to nearest even."""
        return self._cast("fptrunc", a, "float")

    def clamp(self, x: Value, low: float | None, high: float | None) -> Value:
        """`x` limited to [low, high]; NaN stays NaN. One instruction a side on every target."""
        if low is not None:
            bound = self.const(x.elem, low)
            x = (
                self.call("maximum", x, bound)
                if self.isa.nan_max
                else self.select(bound > x, bound, x)
            )
        if high is not None:
            bound = self.const(x.elem, high)
            x = (
                self.call("minimum", x, bound)
                if self.isa.nan_max
                else self.select(bound < x, bound, x)
            )
        return x

    def abs(self, a: Value) -> Value:
        """`a` with the sign bit cleared."""
        return self.call("fabs", a)

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        """`magnitude` with the sign bit of `sign`."""
        return self.call("copysign", magnitude, sign)

    def sign_bit(self, a: Value) -> Value:
        """The sign bit of a float as an integer of the same width, in place."""
        bits = self.to_bits(a)
        return bits & (-1 << (_BITS[bits.elem] - 1))

    def flip_sign(self, a: Value, sign: Value) -> Value:
        """`a` with its sign bit exclusive-ored by the integer `sign` (from `sign_bit`)."""
        return self.from_bits(self.to_bits(a) ^ sign)

    # Avx-512

    def has_avx512(self, elem: str) -> bool:
        """Whether the AVX-512 forms below exist for this element type and the tape's lane count."""
        return self.isa.avx512 and self.lanes * _BITS[elem] in (128, 256, 512)

    def has_table(self) -> bool:
        """Whether one instruction looks up sixteen numbers, one a lane."""
        return self.isa.avx512 and self.dtype == "f32" and self.lanes <= 16

    def look_up(self, table: tuple[float, ...], index: Value) -> Value:
        """The number of `table`, which holds sixteen, at the low four bits of each lane's index."""
        numbers = ", ".join(f"float {self._hexadecimal('float', x)}" for x in table)
        known = self.write(f"bitcast <16 x float> <{numbers}> to <16 x float>", "float").text
        words, kind = index.text, self.type("i32")
        if self.lanes == 1:
            words = self.write(f"insertelement <16 x i32> poison, i32 {words}, i32 0", "i32").text
        elif self.lanes < 16:
            words = self._shuffled(kind, words, 16, "i32").text
        permute = "call <16 x float> @llvm.x86.avx512.permvar.sf.512"
        found = self.write(f"{permute}(<16 x float> {known}, <16 x i32> {words})", "float")
        if self.lanes == 1:
            return self.write(f"extractelement <16 x float> {found.text}, i32 0", "float")
        if self.lanes == 16:
            return found
        return self._shuffled("<16 x float>", found.text, self.lanes, "float")

    def _shuffled(self, kind: str, text: str, lanes: int, elem: str) -> Value:
        """The first lanes of a vector, or it with more that hold anything."""
        order = ", ".join(f"i32 {k}" if k < self.lanes else "i32 poison" for k in range(lanes))
        operands = f"{kind} {text}, {kind} poison"
        return self.write(f"shufflevector {operands}, <{lanes} x i32> <{order}>", elem)

    def avx512(self, name: str, elem: str, *args: tuple[str, str]) -> Value:
        """`llvm.x86.avx512.mask.NAME` without masking; `args` are (type, text) before the mask."""
        total = self.lanes * _BITS[elem]
        mask = f"i{max(8, self.lanes)} -1"
        text = ", ".join(f"{kind} {operand}" for kind, operand in args)
        rounding = ", i32 4" if total == 512 else ""
        suffix = f"{'ps' if elem == 'float' else 'pd'}.{total}"
        kind = self.type(elem)
        return self.write(
            f"call {kind} @llvm.x86.avx512.mask.{name}.{suffix}({text}, {mask}{rounding})", elem
        )
