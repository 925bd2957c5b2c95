"""Specifications: elementwise operators, comparisons, casts, quantization."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tilewright.verify.models.graph import BOOL, F16, F32, F64, I8, I32, I64, U8, Graph, Tensor
from tilewright.verify.models.rows import row

__all__: list[str] = []

# Where a function is finite: values are brought there first, most of the time.
_BOUNDED = ("Asin", "Acos", "Atanh")
_POSITIVE = ("Log", "Sqrt", "Reciprocal", "Pow")
_GROWING = ("Exp", "Sinh", "Cosh", "Tan")


def _tamed(g: Graph, op: str, t: Tensor) -> Tensor:
    if not g.chance(0.7):
        return t
    if op in _BOUNDED:
        half = g.const(0.5, t.dtype)
        return g.one("Mul", [g.one("Tanh", [t]), half])
    if op in _POSITIVE or op == "Acosh":
        least = g.const(1.125 if op == "Acosh" else 0.25, t.dtype)
        return g.one("Add", [g.one("Abs", [t]), least])
    if op in _GROWING:
        bounds = (g.const(-1.25, t.dtype), g.const(1.25, t.dtype))
        return g.one("Clip", [t, *bounds])
    return t


def _unary(g: Graph, op: str) -> None:
    g.add(op, [_tamed(g, op, g.any())])


_FUNCTIONS = """
    Ceil Floor Round Exp Log Sqrt Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Acosh Atanh Erf
    Sigmoid Reciprocal Softplus Softsign HardSwish Mish
"""
for _name in _FUNCTIONS.split():
    row(_name)(partial(_unary, op=_name))


@row("Neg")
def neg(g: Graph) -> None:
    g.add("Neg", [g.any("fi")])


@row("Abs")
def absolute(g: Graph) -> None:
    g.add("Abs", [g.any("fi")])


@row("Sign")
def sign(g: Graph) -> None:
    g.add("Sign", [g.any("fi")])


@row("Relu")
def relu(g: Graph) -> None:
    g.add("Relu", [g.any("f")])


@row("Identity")
def identity(g: Graph) -> None:
    g.add("Identity", [g.any("fib")])


def _with_alpha(g: Graph, op: str) -> None:
    g.add(op, [g.any()], **({"alpha": g.real()} if g.chance(0.7) else {}))


for _name in ("LeakyRelu", "ThresholdedRelu", "Elu", "Swish"):
    row(_name)(partial(_with_alpha, op=_name))


@row("Celu")
def celu(g: Graph) -> None:
    t = g.any()
    if t.dtype == F32 or g.opset >= 28:
        g.add("Celu", [t], alpha=g.real() + 0.1)


@row("Selu")
def selu(g: Graph) -> None:
    g.add(
        "Selu", [g.any()], **({"alpha": g.real(), "gamma": g.real() + 0.1} if g.chance(0.5) else {})
    )


@row("HardSigmoid")
def hard_sigmoid(g: Graph) -> None:
    g.add(
        "HardSigmoid", [g.any()], **({"alpha": g.real(), "beta": g.real()} if g.chance(0.6) else {})
    )


@row("Shrink")
def shrink(g: Graph) -> None:
    g.add("Shrink", [g.any()], lambd=g.real(), bias=g.real())


@row("Gelu")
def gelu(g: Graph) -> None:
    g.add("Gelu", [g.any()], approximate=g.rng.choice(("none", "tanh")))


@row("Clip")
def clip(g: Graph) -> None:
    t = g.any("fi")
    low, high = g.const(-1, t.dtype), g.const(2, t.dtype)
    g.add("Clip", [t, *g.rng.choice(((low, high), (low,), (None, high)))])


@row("PRelu")
def prelu(g: Graph) -> None:
    t = g.any(low=1)
    g.add("PRelu", [t, g.new(t.dtype, g.rng.choice((t.shape, t.shape[-1:], (1,))))])


@row("IsNaN")
def is_nan(g: Graph) -> None:
    g.add("IsNaN", [g.any()])


@row("IsInf")
def is_inf(g: Graph) -> None:
    t = g.any()
    if t.dtype != F16:
        g.add("IsInf", [t], **({"detect_negative": 0} if g.chance(0.4) else {}))


def _binary(g: Graph, op: str, kinds: str = "fi") -> None:
    a = g.any(kinds)
    b = g.fitting(a)
    g.add(op, [a, b] if g.chance(0.5) else [b, a])


for _name in ("Add", "Sub", "Mul"):
    row(_name)(partial(_binary, op=_name))
for _name in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"):
    row(_name)(partial(_binary, op=_name))
for _name in ("And", "Or", "Xor"):
    row(_name)(partial(_binary, op=_name, kinds="b"))
for _name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    row(_name)(partial(_binary, op=_name, kinds="i"))


@row("Not")
def logical_not(g: Graph) -> None:
    g.add("Not", [g.any("b")])


@row("BitwiseNot")
def bitwise_not(g: Graph) -> None:
    g.add("BitwiseNot", [g.any("i")])


@row("BitShift")
def bit_shift(g: Graph) -> None:
    a = g.any("u")
    by = g.put(g.values.integers(0, 8, a.shape).astype(a.dtype))
    g.add("BitShift", [a, by], direction=g.rng.choice(("LEFT", "RIGHT")))


@row("Div")
def div(g: Graph) -> None:
    a = g.any("fi")
    if a.dtype.kind == "i":
        g.add("Div", [a, g.put(g.values.integers(1, 9, a.shape).astype(a.dtype))])
    else:
        g.add("Div", [a, _tamed(g, "Reciprocal", g.fitting(a))])


@row("Mod")
def mod(g: Graph) -> None:
    a = g.any("fi")
    if a.dtype.kind == "i":
        by = g.values.integers(1, 9, a.shape) * g.values.choice([-1, 1], a.shape)
        g.add("Mod", [a, g.put(by.astype(a.dtype))], fmod=int(g.chance(0.3)))
    else:
        g.add("Mod", [a, _tamed(g, "Reciprocal", g.fitting(a))], fmod=1)


@row("Pow")
def power(g: Graph) -> None:
    a = g.any()
    exponent = g.const(g.rng.choice((0.5, 1, 2, 3, -1, -0.5, 0)), a.dtype)
    g.add("Pow", [_tamed(g, "Pow", a), exponent])


def _many(g: Graph, op: str) -> None:
    a = g.any()
    g.add(op, [a, *(g.fitting(a) for _ in range(g.rng.choice((0, 1, 1, 2, 3))))])


for _name in ("Sum", "Min", "Max", "Mean"):
    row(_name)(partial(_many, op=_name))


@row("Where")
def where(g: Graph) -> None:
    a = g.any("fi")
    g.add("Where", [g.like(BOOL, a.shape if g.chance(0.6) else a.shape[-1:]), a, g.fitting(a)])


@row("Cast")
def cast(g: Graph) -> None:
    from onnx import helper

    t = g.any("fibu")
    to = g.rng.choice((F32, F32, F64, F16, I32, I64, I8, U8, BOOL))
    if t.dtype.kind == "f" and to.kind == "u":  # a negative number has no defined unsigned value
        t = g.one("Abs", [t])
    g.add("Cast", [t], to=helper.np_dtype_to_tensor_dtype(to))


@row("CastLike")
def cast_like(g: Graph) -> None:
    t, other = g.any("fi"), g.any("fi")
    g.add("CastLike", [t, other])


@row("BitCast")
def bit_cast(g: Graph) -> None:
    from onnx import helper

    t = g.any("fi")
    if t.dtype.kind == "f":  # a computed value may differ in its last bits
        t = g.put(g.values.standard_normal(t.shape).astype(t.dtype), 0.5)
    integers = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}
    floats = {1: np.uint8, 2: np.float16, 4: np.float32, 8: np.float64}
    to: Any = (floats if t.dtype.kind == "i" else integers)[t.dtype.itemsize]
    g.add("BitCast", [t], to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))


def _scales(g: Graph, t: Tensor, axis: int | None) -> tuple[Tensor, Tensor, dict[str, int]]:
    shape = () if axis is None else (t.shape[axis],)
    scale = g.put(g.values.uniform(0.02, 0.3, shape).astype(np.float32), 1.0)
    kind = g.rng.choice((U8, I8))
    zero = g.put(g.values.integers(0, 20, shape).astype(kind), 1.0)
    return scale, zero, {} if axis is None else {"axis": axis}


@row("QuantizeLinear", "DequantizeLinear")
def quantize(g: Graph) -> None:
    t = g.any(low=1)
    if t.dtype != F32:
        t = g.new(F32, g.shape(2))
    axis = g.rng.randrange(t.rank) if g.chance(0.4) else None
    scale, zero, more = _scales(g, t, axis)
    q = g.one("QuantizeLinear", [t, scale, zero], **more)
    if g.chance(0.8):
        g.add("DequantizeLinear", [q, scale, zero], **more)


@row("DynamicQuantizeLinear")
def dynamic_quantize(g: Graph) -> None:
    t = g.any(low=1)
    g.add("DynamicQuantizeLinear", [t if t.dtype == F32 else g.new(F32, g.shape(2))], 3)


@row("MatMulInteger")
def matmul_integer(g: Graph) -> None:
    m, k, n = g.size(), g.size(), g.size()
    a, b = g.like(U8, (m, k)), g.like(g.rng.choice((U8, I8)), (k, n))
    zeros = [g.const(g.rng.randrange(9), t.dtype) for t in (a, b)]
    g.add("MatMulInteger", [a, b, *zeros[: g.rng.randint(0, 2)]])


@row("QLinearMatMul")
def qlinear_matmul(g: Graph) -> None:
    m, k, n = g.size(), g.size(), g.size()
    a, b = g.like(U8, (m, k)), g.like(U8, (k, n))
    parts: list[Tensor] = []
    for t in (a, b):
        parts += [
            t,
            g.const(round(g.rng.uniform(0.01, 0.1), 4), F32),
            g.const(g.rng.randrange(9), U8),
        ]
    g.add("QLinearMatMul", [*parts, g.const(0.7, F32), g.const(3, U8)])
