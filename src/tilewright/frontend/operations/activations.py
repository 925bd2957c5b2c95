"""Functions of one scalar that several front ends name, written out.

In: an expression. Out: an expression of the same dtype (`convert`: of another). Invariant: no
intermediate overflows where the function itself is finite.
"""

from __future__ import annotations

import math

from tilewright.frontend.values import like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, F32, DType
from tilewright.ir.expr import Expr

__all__ = [
    "affine",
    "convert",
    "elu",
    "gelu",
    "hard_sigmoid",
    "leaky_relu",
    "relu",
    "scaled_tanh",
    "softplus",
    "softsign",
    "thresholded_relu",
]


def relu(x: Expr) -> Expr:
    """max(x, 0)."""
    return E.maximum(x, like(x, 0))


def leaky_relu(x: Expr, alpha: float = 0.01) -> Expr:
    """x, or alpha x below 0."""
    return E.select(E.compare("lt", x, like(x, 0)), E.mul(x, like(x, alpha)), x)


def hard_sigmoid(x: Expr, alpha: float = 0.2, beta: float = 0.5) -> Expr:
    """alpha x + beta, clipped to [0, 1]."""
    y = E.add(E.mul(x, like(x, alpha)), like(x, beta))
    return E.maximum(E.minimum(y, like(x, 1)), like(x, 0))


def softplus(x: Expr) -> Expr:
    """log(1 + e^x), without overflow."""
    return E.add(
        E.maximum(x, like(x, 0)),
        E.unary("log1p", E.unary("exp", E.unary("neg", E.unary("abs", x)))),
    )


def elu(x: Expr, alpha: float = 1.0) -> Expr:
    """x, or alpha (e^x - 1) below 0."""
    return E.select(E.compare("lt", x, like(x, 0)), E.mul(like(x, alpha), E.unary("expm1", x)), x)


def softsign(x: Expr) -> Expr:
    """x / (1 + |x|)."""
    return E.binary("div", x, E.add(like(x, 1), E.unary("abs", x)))


def thresholded_relu(x: Expr, alpha: float = 1.0) -> Expr:
    """x above alpha, else 0."""
    wide = E.cast(x, F32) if x.dtype.is_float and x.dtype.bits == 16 else x  # as alpha is
    return E.select(E.compare("gt", wide, like(wide, alpha)), x, like(x, 0))


def scaled_tanh(x: Expr, alpha: float = 1.0, beta: float = 1.0) -> Expr:
    """alpha tanh(beta x)."""
    return E.mul(like(x, alpha), E.unary("tanh", E.mul(like(x, beta), x)))


def affine(x: Expr, alpha: float = 1.0, beta: float = 0.0) -> Expr:
    """alpha x + beta."""
    return E.add(E.mul(like(x, alpha), x), like(x, beta))


def gelu(x: Expr, tanh: bool = False) -> Expr:
    """x times the normal distribution function of x, by erf or by its tanh approximation."""
    half = E.mul(like(x, 0.5), x)
    if tanh:
        inner = E.mul(
            like(x, math.sqrt(2 / math.pi)),
            E.add(x, E.mul(like(x, 0.044715), E.mul(x, E.mul(x, x)))),
        )
        return E.mul(half, E.add(like(x, 1), E.unary("tanh", inner)))
    return E.mul(half, E.add(like(x, 1), E.unary("erf", E.mul(x, like(x, math.sqrt(0.5))))))


def convert(x: Expr, to: DType) -> Expr:
    """A cast as ONNX means it: float to bool is `!= 0`, NaN to integer is unspecified (0 here)."""
    if to is BOOL:
        return E.compare("ne", x, like(x, 0)) if x.dtype is not BOOL else x
    return E.cast(x, to)
