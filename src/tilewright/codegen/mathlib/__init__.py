"""Vector math functions written as straight-line LLVM IR into the block of a kernel.

In: a function name, a dtype ("f32" or "f64"), a lane count (a native vector, or 1 for a scalar)
and the names of the arguments. Out: lines of IR appended to the current block, and the name of the
result. Invariant: no branch, no loop, no memory, no call except intrinsics that are one
instruction; the same request gives the same text.

`MATH` is the table of functions with their error bounds; docs/math-accuracy.md has the measured
errors. Error bounds are in ulp of the exact result; a denormal result's ulp is 2^-149 (2^-1074).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from tilewright.codegen.mathlib import elementary, exponential, logarithm, trigonometric
from tilewright.codegen.mathlib.tape import Isa, Tape, Value
from tilewright.errors import InternalError

__all__ = ["MATH", "Isa", "MathFunction", "declarations", "define", "emit"]

_LLVM = {"f32": "float", "f64": "double"}
_INTRINSIC = re.compile(r"call (\S+|<\d+ x \w+>) (@llvm\.[\w.]+)\((.*)\)")


@dataclass(frozen=True, slots=True)
class MathFunction:
    """A row of the table.

    `body` records the function on a tape. `ulp` bounds the error by dtype (0.5 means correctly
    rounded, 0 exact); `domain` says where the bound holds if not everywhere. `special` lists
    special values. `is_mask`: the result has element type i1.
    """

    name: str
    arity: int
    ulp: dict[str, float]
    special: str
    body: Callable[..., Value]
    domain: str = ""
    is_mask: bool = False


def _row(
    name: str,
    body: Callable[..., Value],
    f32: float,
    f64: float,
    special: str,
    *,
    arity: int = 1,
    domain: str = "",
    is_mask: bool = False,
) -> tuple[str, MathFunction]:
    return name, MathFunction(name, arity, {"f32": f32, "f64": f64}, special, body, domain, is_mask)


_E, _L, _T, _B = exponential, logarithm, trigonometric, elementary

# Every function: NaN in, NaN out, except where `special` says otherwise.
MATH: dict[str, MathFunction] = dict(
    (
        _row("exp", _E.exp, 1.5, 1.5, "exp(-inf) = 0, exp(inf) = inf"),
        _row("exp2", _E.exp2, 1.5, 1.5, "exact at integers; exp2(-inf) = 0, exp2(inf) = inf"),
        _row("expm1", _E.expm1, 2.0, 2.5, "expm1(-inf) = -1; -0 kept"),
        _row("sigmoid", _E.sigmoid, 2.5, 2.0, "sigmoid(-inf) = 0, sigmoid(inf) = 1"),
        _row("tanh", _E.tanh, 2.0, 2.0, "tanh(+-inf) = +-1; -0 kept"),
        _row("erf", _E.erf, 2.5, 2.0, "erf(+-inf) = +-1; -0 kept"),
        _row("sinh", _E.sinh, 2.0, 2.0, "sinh(+-inf) = +-inf; -0 kept"),
        _row("cosh", _E.cosh, 2.0, 2.0, "cosh(+-inf) = inf"),
        _row("log", _L.log, 1.5, 1.5, "log(+-0) = -inf, log(inf) = inf, log(x < 0) = NaN"),
        _row("log2", _L.log2, 1.5, 2.0, "exact at powers of two; otherwise as log"),
        _row("log1p", _L.log1p, 2.0, 2.0, "log1p(-1) = -inf, log1p(x < -1) = NaN; -0 kept"),
        _row("pow", _L.pow, 1.0, 1.5, "C99: pow(x, 0) = pow(1, y) = 1 even for NaN", arity=2),
        _row("cbrt", _L.cbrt, 1.0, 1.5, "cbrt(+-inf) = +-inf; -0 kept"),
        _row("asinh", _L.asinh, 1.0, 2.0, "asinh(+-inf) = +-inf; -0 kept"),
        _row("acosh", _L.acosh, 1.0, 2.0, "acosh(x < 1) = NaN, acosh(inf) = inf"),
        _row("atanh", _L.atanh, 1.0, 2.5, "atanh(+-1) = +-inf, atanh(|x| > 1) = NaN; -0 kept"),
        _row("sin", _T.sin, 2.0, 1.5, "sin(+-inf) = NaN; -0 kept", domain="f64: |x| < 2^45"),
        _row("cos", _T.cos, 2.0, 1.5, "cos(+-inf) = NaN", domain="f64: |x| < 2^45"),
        _row("tan", _T.tan, 2.5, 3.0, "tan(+-inf) = NaN; -0 kept", domain="f64: |x| < 2^45"),
        _row("asin", _T.asin, 1.5, 1.5, "asin(|x| > 1) = NaN; -0 kept"),
        _row("acos", _T.acos, 2.0, 2.0, "acos(|x| > 1) = NaN; acos(1) = 0"),
        _row("atan", _T.atan, 2.0, 2.0, "atan(+-inf) = +-pi/2; -0 kept"),
        _row("atan2", _T.atan2, 2.0, 2.0, "C99, signed zeros and infinities", arity=2),
        _row("sqrt", _B.sqrt, 0.5, 0.5, "sqrt(x < 0) = NaN; -0 kept"),
        _row("rsqrt", _B.rsqrt, 1.5, 1.5, "rsqrt(+-0) = +-inf, rsqrt(inf) = 0, rsqrt(x < 0) = NaN"),
        _row("reciprocal", _B.reciprocal, 0.5, 0.5, "1 / +-0 = +-inf, 1 / +-inf = +-0"),
        _row("floor", _B.floor, 0.0, 0.0, "+-inf and -0 kept"),
        _row("ceil", _B.ceil, 0.0, 0.0, "+-inf and -0 kept"),
        _row("trunc", _B.trunc, 0.0, 0.0, "+-inf and -0 kept"),
        _row("round", _B.round_half_even, 0.0, 0.0, "ties to even; +-inf and -0 kept"),
        _row("sign", _B.sign, 0.0, 0.0, "sign(+-0) = 0"),
        _row("min", _B.minimum, 0.0, 0.0, "NaN if either is; zeros are equal", arity=2),
        _row("max", _B.maximum, 0.0, 0.0, "NaN if either is; zeros are equal", arity=2),
        _row(
            "fmod",
            _B.fmod,
            0.0,
            0.0,
            "sign of x; fmod(x, inf) = x, fmod(inf, y) = fmod(x, 0) = NaN",
            arity=2,
            domain="f64: |x / y| < 2^53",
        ),
        _row(
            "mod",
            _B.mod,
            0.5,
            0.5,
            "as Python's %, sign of y (also a zero's); mod(x, 0) = NaN",
            arity=2,
            domain="f64: |x / y| < 2^53",
        ),
        _row("isnan", _B.isnan, 0.0, 0.0, "a mask", is_mask=True),
        _row("isinf", _B.isinf, 0.0, 0.0, "a mask", is_mask=True),
    )
)


@cache
def _template(name: str, dtype: str, lanes: int, isa: Isa) -> tuple[str, str]:
    """The recorded lines and the result's name, with the tape's marks for names and arguments."""
    function = MATH.get(name)
    if function is None or dtype not in _LLVM:
        raise InternalError("X001", f"there is no math function {name} of {dtype}")
    tape = Tape(dtype, lanes, isa)
    result = function.body(tape, *(tape.argument(i) for i in range(function.arity)))
    return "\n".join(tape.lines), result.text


def emit(
    name: str,
    dtype: str,
    lanes: int,
    args: Sequence[str],
    fresh: Callable[[], str],
    out: Callable[[str], None],
    fma: bool,
    avx512: bool = False,
    nan_max: bool = False,
) -> str:
    """Append `name(args)` to the current block, a line a call of `out`; return the result's name.

    `args`: IR values (names or constants) of type `lanes` x `dtype`, plain scalars for lanes 1.
    `fresh()`: an unused local name such as `%t7`, no number: the lines assign `%t7.0`, `%t7.1`...
    `fma`: the target has fused multiply-add for this type. `avx512`: it has AVX-512 F and VL.
    `nan_max`: its min and max instructions propagate NaN (aarch64, wasm). A flag that is off costs
    speed, and for `fma` a little accuracy within the same bound.
    Errors: InternalError X001 for an unknown `name` or a `dtype` other than f32 and f64.
    """
    text, result = _template(name, dtype, lanes, Isa(fma, avx512, nan_max))
    prefix = fresh() + "."
    text = text.replace("\x01", prefix)
    for position, argument in enumerate(args):
        text = text.replace(f"\x02{position}\x03", argument)
    for line in text.split("\n"):
        out(line)
    return result.replace("\x01", prefix)


def define(
    name: str,
    dtype: str,
    lanes: int,
    *,
    fma: bool,
    avx512: bool = False,
    nan_max: bool = False,
    symbol: str | None = None,
) -> str:
    """The text of a function `symbol` (default `tw_NAME`) that computes `name` on one vector."""
    function = MATH[name]
    kind = _LLVM[dtype] if lanes == 1 else f"<{lanes} x {_LLVM[dtype]}>"
    element = "i1" if function.is_mask else _LLVM[dtype]
    result_kind = element if lanes == 1 else f"<{lanes} x {element}>"
    parameters = [f"%x{i}" for i in range(function.arity)]
    lines: list[str] = []
    result = emit(name, dtype, lanes, parameters, lambda: "%t", lines.append, fma, avx512, nan_max)
    head = ", ".join(f"{kind} {p}" for p in parameters)
    body = "\n".join(f"  {line}" for line in lines)
    title = symbol or f"tw_{name}"
    opening = f"define internal {result_kind} @{title}({head}) {{"
    return f"{opening}\n{body}\n  ret {result_kind} {result}\n}}\n"


def declarations(lines: list[str]) -> list[str]:
    """The `declare` lines of the intrinsics called in `lines` (LLVM 20 and newer do without)."""
    found: dict[str, str] = {}
    for line in lines:
        match = _INTRINSIC.search(line)
        if match:
            kind, symbol, operands = match.groups()
            types = re.findall(r"(<\d+ x \w+>|\w+) (?:splat \([^)]*\)|[^\s,]+)", operands)
            found[symbol] = f"declare {kind} {symbol}({', '.join(types)})"
    return list(found.values())
