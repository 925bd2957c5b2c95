"""How values of scalar operations and folds move with their operands, and where they are finite.

In: values of operands and of the result. Out: a slope for each operand, or a direction that leads
out of the domain of the operation. Invariants: a step (floor, sign) has the slope of the line that
it follows, and the operand that max leaves has a small one, so that a search can cross them; what
is not differentiable at a point has some slope there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log as ln
from math import pi, sqrt

import numpy as np

from tilewright.ir.binding import Array
from tilewright.ir.dtypes import DType

__all__ = ["directions", "fits", "fold_slopes", "prefix_slopes", "slopes"]

_LEAK = 0.1  # of the operand that max or min does not choose: it may come to be chosen
_MOST = {"f16": 65504.0, "bf16": 3.38e38, "f32": 3.4e38, "f64": 1.79e308}

Slopes = Callable[..., "tuple[Array | float, ...]"]

_SLOPES: dict[str, Slopes] = {
    "neg": lambda x, y: (-1.0,),
    "abs": lambda x, y: (np.where(x < 0, -1.0, 1.0),),
    "exp": lambda x, y: (y,),
    "exp2": lambda x, y: (y * ln(2),),
    "expm1": lambda x, y: (y + 1,),
    "log": lambda x, y: (1 / x,),
    "log2": lambda x, y: (1 / (x * ln(2)),),
    "log1p": lambda x, y: (1 / (1 + x),),
    "sin": lambda x, y: (np.cos(x),),
    "cos": lambda x, y: (-np.sin(x),),
    "tan": lambda x, y: (1 + y * y,),
    "asin": lambda x, y: (1 / np.sqrt(1 - x * x),),
    "acos": lambda x, y: (-1 / np.sqrt(1 - x * x),),
    "atan": lambda x, y: (1 / (1 + x * x),),
    "sinh": lambda x, y: (np.cosh(x),),
    "cosh": lambda x, y: (np.sinh(x),),
    "tanh": lambda x, y: (1 - y * y,),
    "asinh": lambda x, y: (1 / np.sqrt(x * x + 1),),
    "acosh": lambda x, y: (1 / np.sqrt(x * x - 1),),
    "atanh": lambda x, y: (1 / (1 - x * x),),
    "erf": lambda x, y: (2 / sqrt(pi) * np.exp(-x * x),),
    "sigmoid": lambda x, y: (y * (1 - y),),
    "sqrt": lambda x, y: (0.5 / y,),
    "rsqrt": lambda x, y: (-0.5 * y / x,),
    "add": lambda a, b, y: (1.0, 1.0),
    "sub": lambda a, b, y: (1.0, -1.0),
    "mul": lambda a, b, y: (b, a),
    "div": lambda a, b, y: (1 / b, -y / b),
    "floordiv": lambda a, b, y: (1 / b, -y / b),
    "mod": lambda a, b, y: (1.0, -np.floor(a / b)),
    "fmod": lambda a, b, y: (1.0, -np.trunc(a / b)),
    "min": lambda a, b, y: (np.where(a <= b, 1.0, _LEAK), np.where(a > b, 1.0, _LEAK)),
    "max": lambda a, b, y: (np.where(a >= b, 1.0, _LEAK), np.where(a < b, 1.0, _LEAK)),
    "pow": lambda a, b, y: (b * y / a, y * np.log(a)),
    "atan2": lambda a, b, y: (b / (a * a + b * b), -a / (a * a + b * b)),
}
_SLOPES |= {step: lambda x, y: (1.0,) for step in ("floor", "ceil", "round", "trunc", "sign")}


def slopes(op: str, args: Sequence[Array], out: Array) -> tuple[Array | float, ...]:
    """The derivative of `out = op(args)` by each operand; empty where there is none."""
    return _SLOPES[op](*args, out) if op in _SLOPES else ()


def fits(x: Array, dtype: DType) -> Array:
    """Where is a value finite as an element of this type?"""
    return np.asarray(np.abs(x) <= _MOST[dtype.name])


def _sign(x: Array) -> Array:
    return np.where(x < 0, -1.0, 1.0)


def _quotient(a: Array, b: Array) -> tuple[Array, Array]:
    """Away from a divisor of nothing; a dividend that is too large becomes smaller."""
    small = np.abs(b) < 1
    return np.where(small, 0.0, _sign(a)), np.where(small, -_sign(b), 0.0)


def _power(a: Array, b: Array) -> tuple[Array, Array]:
    return np.where(a <= 0, -1.0, _sign(b)), np.where(a <= 0, 0.0, _sign(a - 1))


_UP = ("log", "log2", "log1p", "sqrt", "rsqrt", "acosh")


def directions(op: str, args: Sequence[Array], out: Array) -> tuple[Array | float, ...]:
    """For each operand, which way leads further out of what gives a finite value. Means something
    only where the value is not finite, and its operands are.
    """
    if op in _UP:
        return (-1.0,)
    if op in ("div", "floordiv", "mod", "fmod"):
        return _quotient(*args)
    if op == "pow":
        return _power(*args)
    if op == "sub":
        return (_sign(args[0]), -_sign(args[1]))
    return tuple(_sign(x) for x in args)  # too large, or beyond the ends of a symmetric domain


def fold_slopes(monoid: str, x: Array, out: Array) -> Array:
    """The derivative of a fold by each contribution; `out` has length 1 along the folded axes."""
    if monoid == "sum":
        return np.ones_like(x)
    if monoid == "prod":
        return np.where(x == 0, 0.0, out / x)
    if monoid in ("max", "min"):
        return np.where(x == out, 1.0, 0.0)
    if monoid == "logsumexp":
        return np.asarray(np.exp(x - out))
    return np.zeros_like(x)  # a position, or a bool


def _from_here(x: Array) -> Array:
    """Sums of every element and all that come after it, along the last axis."""
    return np.flip(np.cumsum(np.flip(x, -1), -1), -1)


def prefix_slopes(monoid: str, x: Array, out: Array, axis: int, up: Array) -> Array:
    """What `up`, a gradient of prefixes along an axis, is for the elements that were folded."""
    x, out, up = (np.moveaxis(a, axis, -1) for a in (x, out, up))
    if monoid == "sum":
        moved = _from_here(up)
    elif monoid == "prod":
        moved = np.where(x == 0, 0.0, _from_here(up * out) / x)
    elif monoid == "logsumexp":
        top = np.max(out, -1, keepdims=True, initial=-np.inf)
        moved = np.exp(x - top) * _from_here(up * np.exp(top - out))
    elif monoid in ("max", "min") and out.size:  # the element at which a prefix changes
        begins = np.ones(out.shape, np.bool_)
        begins[..., 1:] = out[..., 1:] != out[..., :-1]
        moved = np.zeros(out.shape)
        moved[begins] = np.add.reduceat(up.reshape(-1), np.flatnonzero(begins))
    else:
        moved = np.zeros(out.shape)
    return np.asarray(np.moveaxis(moved, -1, axis))
