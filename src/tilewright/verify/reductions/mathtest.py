"""Self-test of the emitted math functions: do they obey their reductions, within their bounds?

In: a level of the instruction set, a dtype. Out: an `Outcome` per function. Invariant: no reference
is asked; all numbers used are what the emitted code returns, and the stated bounds in ulp.

Every query is rounded to the type; what that and the stated error bound can move a value by is
propagated to first order through the relation, and the residual must not exceed it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tilewright.codegen.mathlib import MATH
from tilewright.codegen.mathlib.harness import LEVELS, compile_loop
from tilewright.verify.reductions.floats import Floats
from tilewright.verify.reductions.learn import Reduction
from tilewright.verify.reductions.models import Outcome
from tilewright.verify.reductions.table import family_of, read_table

__all__ = ["MATH_REDUCTIONS", "check_math", "residual_share"]

Array = np.ndarray[Any, np.dtype[Any]]

# The emitted function -> the function of the table.
MATH_REDUCTIONS = {
    "exp": "exp", "exp2": "2^x", "expm1": "exp - 1", "sigmoid": "sigmoid", "tanh": "tanh",
    "sinh": "sinh", "cosh": "cosh", "log": "log", "log2": "log2", "log1p": "log1p", "cbrt": "cbrt",
    "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh", "sin": "sin", "cos": "cos",
    "tan": "tan", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "sqrt": "sqrt",
    "rsqrt": "1 / sqrt", "reciprocal": "1 / x", "floor": "floor", "ceil": "ceil", "sign": "sign",
    "erf": "erf, property",
}  # fmt: skip
_LN2, _PI = math.log(2), math.pi
# sin(2 x) obeys the reduction of sin, log to any base that of log: the first terms of the series at
# a point tell them apart. The rest is below the cube of the distance.
SERIES = {
    "exp": (0, 1, 1, 1 / 2), "exp2": (0, 1, _LN2, _LN2**2 / 2), "expm1": (0, 0, 1, 1 / 2),
    "sigmoid": (0, 1 / 2, 1 / 4, 0), "tanh": (0, 0, 1, 0), "erf": (0, 0, 2 / math.sqrt(_PI), 0),
    "sinh": (0, 0, 1, 0), "cosh": (0, 1, 0, 1 / 2), "log": (1, 0, 1, -1 / 2),
    "log2": (1, 0, 1 / _LN2, -1 / 2 / _LN2), "log1p": (0, 0, 1, -1 / 2),
    "cbrt": (1, 1, 1 / 3, -1 / 9), "asinh": (0, 0, 1, 0), "atanh": (0, 0, 1, 0),
    "sin": (0, 0, 1, 0), "cos": (0, 1, 0, -1 / 2), "tan": (0, 0, 1, 0), "asin": (0, 0, 1, 0),
    "acos": (0, _PI / 2, -1, 0), "atan": (0, 0, 1, 0), "sqrt": (1, 1, 1 / 2, -1 / 8),
    "rsqrt": (1, 1, -1 / 2, 3 / 8), "reciprocal": (1, 1, -1, 1),
}  # fmt: skip
_POINTS = 2048
_SPREADS = (0.7, 5.0, 30.0)
_SLACK = 1.25  # for what is left out of first order


def check_math(
    names: list[str] | None = None, level: str = "avx512", dtype: str = "f32",
    change: Callable[[str], str] | None = None,
) -> Iterator[Outcome]:  # fmt: skip
    """Test the functions of `names` (default: all that have a reduction).

    change: applied to the text of the loop before it is compiled, to plant a fault.
    """
    table = read_table()
    for name in names or list(MATH_REDUCTIONS):
        target = LEVELS[level]
        lanes = target.lanes(dtype)
        loop = compile_loop(name, dtype, lanes, target, change)
        reduction = table[MATH_REDUCTIONS[name]]
        worst = 0.0
        # A group law holds on the principal branch, which small arguments do not leave.
        wide = family_of(reduction).name != "group law"
        for seed, spread in enumerate(_SPREADS if wide else _SPREADS[:1]):
            worst = max(worst, residual_share(loop, reduction, name, dtype, seed, spread))
        yield Outcome(f"{name}: {reduction}", worst <= 1, worst, f"{dtype}, {level}")
        if name in SERIES:
            share = _series_share(loop, name, dtype)
            at, *c = SERIES[name]
            terms = f"{name}: f({at} + h) = {c[0]:.6g} + {c[1]:.6g} h + {c[2]:.6g} h^2 + ..."
            yield Outcome(terms, share <= 1, share, f"{dtype}, {level}")


def residual_share(
    loop: Callable[..., Array], r: Reduction, name: str, dtype: str, seed: int, spread: float
) -> float:
    """The largest residual over what rounding may explain."""
    real = np.float32 if dtype == "f32" else np.float64
    m = Floats(_POINTS, seed, spread)
    bound = max(MATH[name].ulp[dtype], 0.0)
    values: list[Array] = []
    unsure: list[Array] = []
    with np.errstate(all="ignore"):
        queries, given = family_of(r).ask(m)
        for _, (q,) in queries:
            x = q.astype(real)
            y = loop(np.ascontiguousarray(x)).astype(np.float64)
            gap = np.zeros_like(y)
            for way in (-np.inf, np.inf):
                beside = loop(np.nextafter(x, real(way))).astype(np.float64)
                gap = np.fmax(gap, np.abs(beside - y))
            exact = x.astype(np.float64) == q
            spacing = np.spacing(np.abs(y).astype(real)).astype(np.float64)
            values.append(y)
            unsure.append(bound * spacing + np.where(exact, 0, gap))
        if len(r.variables) > r.queries:
            values += [c.astype(real).astype(np.float64) for _, (c,) in given]
            unsure += [np.spacing(np.abs(c)) for _, (c,) in given]
        total, allowed = np.zeros(_POINTS), np.zeros(_POINTS)
        for c, powers in r.terms:
            total += float(c) * _product(values, powers)
            for k, p in enumerate(powers):
                if p:
                    less = tuple(n - (j == k) for j, n in enumerate(powers))
                    allowed += abs(float(c)) * p * np.abs(_product(values, less)) * unsure[k]
            allowed += abs(float(c)) * np.abs(_product(values, powers)) * 2.0**-50
        share = np.abs(total) / (_SLACK * allowed + np.finfo(real).tiny)
    usable = np.all([np.isfinite(v) for v in values], axis=0) & np.isfinite(share)
    return float(np.max(share[usable], initial=0.0)) if usable.sum() >= 16 else 0.0


def _series_share(loop: Callable[..., Array], name: str, dtype: str) -> float:
    real = np.float32 if dtype == "f32" else np.float64
    at, *terms = SERIES[name]
    x = (at + np.linspace(-0.05, 0.05, 256)).astype(real)
    h = x.astype(np.float64) - at
    y = loop(x).astype(np.float64)
    expected = terms[0] + terms[1] * h + terms[2] * h * h
    allowed = 1.5 * np.abs(h) ** 3 + 4 * np.spacing(np.abs(expected).astype(real))
    share = np.abs(y - expected) / allowed
    return float(np.max(np.where(np.isnan(share), np.inf, share)))


def _product(values: list[Array], powers: tuple[int, ...]) -> Array:
    out = np.ones_like(values[0])
    for v, p in zip(values, powers, strict=True):
        for _ in range(p):
            out = out * v
    return out
