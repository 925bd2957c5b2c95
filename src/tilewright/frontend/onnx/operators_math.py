"""Elementwise rows: arithmetic, mathematical functions, activations, comparisons, logic, casts.

In: a node and one scalar expression per operand. Out: the scalar expression of the result.
Invariant: operands have been broadcast; literals take the operand's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tilewright.frontend.onnx.folding import evaluate_scalar
from tilewright.frontend.onnx.table import elementwise, folds, row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.activations import (
    affine,
    convert,
    elu,
    gelu,
    hard_sigmoid,
    leaky_relu,
    relu,
    scaled_tanh,
    softplus,
    softsign,
    thresholded_relu,
)
from tilewright.frontend.operations.arithmetic import floor_modulo
from tilewright.frontend.sizes import Undecided
from tilewright.frontend.values import Array, Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, F64
from tilewright.ir.expr import Expr

__all__ = ["ACTIVATIONS"]


def _binary(op: str) -> Callable[[Node, Expr, Expr], Expr]:
    def f(n: Node, a: Expr, b: Expr) -> Expr:
        _same_dtype(n, a, b)
        return {"add": E.add, "sub": E.sub, "mul": E.mul, "min": E.minimum, "max": E.maximum}[op](
            a, b
        )

    return f


def _same_dtype(n: Node, *operands: Expr) -> None:
    if len({e.dtype for e in operands}) > 1:
        raise n.contradiction(
            f"operands of different dtypes {', '.join(str(e.dtype) for e in operands)}"
        )


def _variadic(op: str) -> Callable[..., Expr]:
    step = _binary(op)

    def f(n: Node, first: Expr, *rest: Expr) -> Expr:
        for e in rest:
            first = step(n, first, e)
        return first

    return f


def _mean(n: Node, *operands: Expr) -> Expr:
    total = _variadic("add")(n, *operands)
    return E.binary("div", total, like(total, len(operands)))


def _divide(n: Node, a: Expr, b: Expr) -> Expr:
    _same_dtype(n, a, b)
    return E.binary("div", a, b)


def _modulo(n: Node, a: Expr, b: Expr) -> Expr:
    _same_dtype(n, a, b)
    if n.attribute("fmod", 0):
        return E.binary("fmod", a, b)
    return floor_modulo(a, b)


def _square_root(a: Expr) -> Expr:
    """a^(1/2), which differs from sqrt(a) at two places: -inf gives inf, and -0 gives +0."""
    lowest = E.compare("eq", a, like(a, -math.inf))
    return E.select(lowest, like(a, math.inf), E.unary("abs", E.unary("sqrt", a)))


def _power(n: Node, a: Expr, b: Expr) -> Expr:
    if b.op == "const" and float(b.attr) == 2.0:
        return E.mul(a, a)
    if b.op == "const" and float(b.attr) == 1.0:
        return a
    if a.dtype is b.dtype:
        if b.op == "const" and b.dtype.is_float and b.attr == 0.5:
            return _square_root(a)
        return E.binary("pow", a, b)
    if a.dtype.is_float and not b.dtype.is_float:
        return E.binary("pow", a, E.cast(b, a.dtype))
    if a.dtype.is_int and b.dtype.is_int:
        return E.binary("pow", a, E.cast(b, a.dtype))
    wide = F64 if F64 in (a.dtype, b.dtype) or a.dtype.is_int else F32
    return E.cast(E.binary("pow", E.cast(a, wide), E.cast(b, wide)), a.dtype)


for _name, _op in (("Add", "add"), ("Sub", "sub"), ("Mul", "mul")):
    elementwise(_name, _binary(_op), since=7)
for _name, _op in (("Sum", "add"), ("Min", "min"), ("Max", "max")):
    elementwise(_name, _variadic(_op), since=6)
elementwise("Mean", _mean, since=6)
elementwise("Div", _divide, since=7)
elementwise("Mod", _modulo, since=10)
elementwise("Pow", _power, since=7)

for _name, _op in {
    "Neg": "neg",
    "Abs": "abs",
    "Sign": "sign",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "Sqrt": "sqrt",
    "Exp": "exp",
    "Log": "log",
    "Sin": "sin",
    "Cos": "cos",
    "Tan": "tan",
    "Asin": "asin",
    "Acos": "acos",
    "Atan": "atan",
    "Sinh": "sinh",
    "Cosh": "cosh",
    "Tanh": "tanh",
    "Asinh": "asinh",
    "Acosh": "acosh",
    "Atanh": "atanh",
    "Erf": "erf",
    "Sigmoid": "sigmoid",
    "IsNaN": "isnan",
    "Not": "not",
    "BitwiseNot": "not",
}.items():
    elementwise(_name, lambda n, x, op=_op: _unary(op, x))


def _unary(op: str, x: Expr) -> Expr:
    if x.dtype.kind in "iu" and op in ("floor", "ceil", "round"):
        return x
    if x.dtype.kind == "u" and op == "abs":
        return x
    return E.unary(op, x)


elementwise("Reciprocal", lambda n, x: E.binary("div", like(x, 1), x))


def _isinf(n: Node, x: Expr) -> Expr:
    positive, negative = n.attribute("detect_positive", 1), n.attribute("detect_negative", 1)
    if positive and negative:
        return E.unary("isinf", x)
    if positive or negative:
        return E.compare("eq", x, like(x, math.inf if positive else -math.inf))
    return E.logical("and", E.unary("isinf", x), E.const(False))


elementwise("IsInf", _isinf)


# ---- activations ---------------------------------------------------------------------------------


# Activation functions of RNN, GRU, LSTM by lower-case name; alpha and beta follow the operand where
# given.
ACTIVATIONS: dict[str, Callable[..., Expr]] = {
    "relu": relu,
    "tanh": lambda x: E.unary("tanh", x),
    "sigmoid": lambda x: E.unary("sigmoid", x),
    "affine": affine,
    "leakyrelu": leaky_relu,
    "thresholdedrelu": thresholded_relu,
    "scaledtanh": scaled_tanh,
    "hardsigmoid": hard_sigmoid,
    "elu": elu,
    "softsign": softsign,
    "softplus": softplus,
}

elementwise("Relu", lambda n, x: relu(x))
elementwise("LeakyRelu", lambda n, x: leaky_relu(x, n.attribute("alpha", 0.01)), since=6)
elementwise(
    "HardSigmoid",
    lambda n, x: hard_sigmoid(x, n.attribute("alpha", 0.2), n.attribute("beta", 0.5)),
    since=6,
)
elementwise("HardSwish", lambda n, x: E.mul(x, hard_sigmoid(x, 1 / 6, 0.5)), since=14)
elementwise("Softplus", lambda n, x: softplus(x))
elementwise("Softsign", lambda n, x: softsign(x))
elementwise("Elu", lambda n, x: elu(x, n.attribute("alpha", 1.0)), since=6)
elementwise(
    "ThresholdedRelu", lambda n, x: thresholded_relu(x, n.attribute("alpha", 1.0)), since=10
)
elementwise("Gelu", lambda n, x: gelu(x, n.attribute("approximate", "none") == "tanh"), since=20)
elementwise("Mish", lambda n, x: E.mul(x, E.unary("tanh", softplus(x))), since=18)


def _selu(n: Node, x: Expr) -> Expr:
    alpha = n.attribute("alpha", 1.67326319217681884765625)
    gamma = n.attribute("gamma", 1.05070102214813232421875)
    positive = E.mul(like(x, gamma), x)
    negative = E.mul(like(x, gamma * alpha), E.unary("expm1", x))
    return E.select(E.compare("le", x, like(x, 0)), negative, positive)


def _celu(n: Node, x: Expr) -> Expr:
    alpha = n.attribute("alpha", 1.0)
    negative = E.mul(like(x, alpha), E.unary("expm1", E.binary("div", x, like(x, alpha))))
    # An alpha that is 0 in the tensor's type makes 0 * inf of what is not chosen.
    return E.select(E.compare("lt", x, like(x, 0)), negative, x)


def _swish(n: Node, x: Expr) -> Expr:
    alpha = n.attribute("alpha", 1.0)
    return E.mul(x, E.unary("sigmoid", x if alpha == 1.0 else E.mul(like(x, alpha), x)))


def _shrink(n: Node, x: Expr) -> Expr:
    bias, lambd = n.attribute("bias", 0.0), n.attribute("lambd", 0.5)
    # The limit is an f32: rounded to 16 bits it may be another number of x.
    wide = E.cast(x, F32) if not x.dtype.is_float or x.dtype.bits == 16 else x
    low = E.add(wide, like(wide, bias))
    high = E.sub(wide, like(wide, bias))
    zero = like(wide, 0)
    inner = E.select(E.compare("gt", wide, like(wide, lambd)), high, zero)
    return E.cast(E.select(E.compare("lt", wide, like(wide, -lambd)), low, inner), x.dtype)


elementwise("Selu", _selu, since=6)
elementwise("Celu", _celu, since=12)
elementwise("Swish", _swish, since=24)
elementwise("Shrink", _shrink, since=9)


@row("PRelu", kind="elementwise", since=7)
def prelu(n: Node) -> Value:
    """x, or slope x below 0; the slope broadcasts to x in one direction."""
    x, slope = n[0], n[1]
    return n.elementwise(
        lambda a, s: E.select(E.compare("lt", a, like(a, 0)), E.mul(s, a), a), x, slope
    )


def _clip_limits(n: Node) -> tuple[Value | None, Value | None]:
    x = n[0]
    if n.opset >= 11:
        return n.optional(1), n.optional(2)
    info = np.finfo(np.float32)
    limits = [n.attribute("min", float(info.min)), n.attribute("max", float(info.max))]
    low, high = (n.constant(np.asarray(v, x.dtype.np)) for v in limits)
    return (low if "min" in n.attributes else None), (high if "max" in n.attributes else None)


@row("Clip", kind="elementwise", since=6)
def clip(n: Node) -> Value:
    """min(max(x, low), high); limits are scalars."""
    low, high = _clip_limits(n)
    for limit in (low, high):
        if limit is not None and any(s is not E.const(1) for s in limit.shape):
            raise n.contradiction("a limit is no scalar")

    def body(*i: Expr) -> Expr:
        e = n[0].at(*i)
        if low is not None:
            e = E.maximum(e, low.at(*[0] * low.rank))
        if high is not None:
            e = E.minimum(e, high.at(*[0] * high.rank))
        return e

    return n.define(n[0].shape, body)


# ---- comparisons, logic, bits --------------------------------------------------------------------


def _compare(op: str) -> Callable[[Node, Expr, Expr], Expr]:
    def f(n: Node, a: Expr, b: Expr) -> Expr:
        _same_dtype(n, a, b)
        return E.compare(op, a, b)

    return f


for _name, _op, _since in (
    ("Equal", "eq", 7),
    ("Less", "lt", 7),
    ("Greater", "gt", 7),
    ("LessOrEqual", "le", 12),
    ("GreaterOrEqual", "ge", 12),
):
    elementwise(_name, _compare(_op), since=_since)
elementwise("And", lambda n, a, b: E.logical("and", a, b), since=7)
elementwise("Or", lambda n, a, b: E.logical("or", a, b), since=7)
elementwise("Xor", lambda n, a, b: E.compare("ne", a, b), since=7)
elementwise("Where", lambda n, c, a, b: E.select(c, a, b), since=9)
for _name, _op in (("BitwiseAnd", "and"), ("BitwiseOr", "or"), ("BitwiseXor", "xor")):
    elementwise(_name, lambda n, a, b, op=_op: E.binary(op, a, b), since=18)


def _shift(n: Node, a: Expr, b: Expr) -> Expr:
    """A count that is negative or not below the width leaves only the sign's extension."""
    left = n.required("direction") == "LEFT"
    shifted = E.binary("shl" if left else "shr", a, b)
    nothing = like(a, 0)
    if not left and a.dtype.kind == "i":
        nothing = E.select(E.compare("lt", a, like(a, 0)), like(a, -1), like(a, 0))
    inside = E.compare("lt", b, like(b, a.dtype.bits))
    if b.dtype.kind == "i":
        inside = E.logical("and", inside, E.compare("le", like(b, 0), b))
    return E.select(inside, shifted, nothing)


elementwise("BitShift", _shift, since=11)


# ---- casts ---------------------------------------------------------------------------------------


def _cast(n: Node) -> Value:
    x, to = n[0], n.importer.cast_target(n)
    return x if x.dtype is to else n.define(x.shape, lambda *i: convert(x.at(*i), to))


def _fold_cast(n: Node, x: Array, *_: Array) -> Array:
    to = n.importer.cast_target(n)
    if x.dtype == object:
        raise Undecided
    return evaluate_scalar(lambda e: convert(e, to), [x]) if x.dtype != to.np else x


for _name, _since in (("Cast", 6), ("CastLike", 15)):
    row(
        _name,
        kind="elementwise",
        since=_since,
        notes="no strings, 8-bit floats or types below 8 bits",
    )(_cast)
    folds(_name)(_fold_cast)


@row("BitCast", kind="extern", since=26)
def bit_cast(n: Node) -> Value:
    """The same bits read as another type of the same width."""
    x, to = n[0], n.importer.cast_target(n)
    if x.dtype.bits != to.bits:
        raise n.contradiction(f"{x.dtype} and {to} have different widths")
    if x.array is not None:
        return n.constant(np.asarray(x.array, order="C").view(to.np))
    return n.extern("bitcast", [x], [("", to, x.shape)], source=str(x.dtype), target=str(to))[0]
