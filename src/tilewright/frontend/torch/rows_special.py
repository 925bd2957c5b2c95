"""Special functions, written out over float64 and rounded to the result's type.

In: a call. Out: one definition. Invariant: the float64 evaluation has a relative error far below
the unit roundoff of float32 where the function is not near one of its zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.dtypes import TORCH_DTYPES
from tilewright.frontend.torch.table import pointwise
from tilewright.frontend.values import like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F64
from tilewright.ir.expr import Expr

__all__: list[str] = []


def _wide(f: Callable[..., Expr]) -> Callable[..., Expr]:
    """`f` on float64, rounded to the type of the first operand."""

    def apply(n: Call, *x: Expr) -> Expr:
        if x[0].dtype is F64:
            return f(n, *x)
        return E.cast(f(n, *(E.cast(e, F64) for e in x)), x[0].dtype)

    return apply


def _c(value: float) -> Expr:
    return E.const(value, F64)


def _horner(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """Highest power first."""
    total = _c(coefficients[0])
    for c in coefficients[1:]:
        total = E.add(E.mul(total, x), _c(c))
    return total


def _select(condition: Expr, then: Expr, orelse: Expr) -> Expr:
    return E.select(condition, then, orelse)


def _sinc(n: Call, x: Expr) -> Expr:
    zero = E.compare("eq", x, like(x, 0))
    scaled = E.mul(x, like(x, math.pi))
    return E.select(zero, like(x, 1), E.binary("div", E.unary("sin", scaled), scaled))


pointwise("sinc.default", "special_sinc.default", f=_sinc, kind="special")
pointwise("deg2rad.default", f=lambda n, x: E.mul(x, like(x, math.pi / 180)), kind="special")
pointwise("rad2deg.default", f=lambda n, x: E.mul(x, like(x, 180 / math.pi)), kind="special")


def _logit(n: Call, x: Expr) -> Expr:
    eps = n.get("eps")
    if eps is not None:
        low, high = like(x, float(eps)), like(x, 1 - float(eps))
        x = E.minimum(E.maximum(x, low), high)
    return E.unary("log", E.binary("div", x, E.sub(like(x, 1), x)))


pointwise("logit.default", "special_logit.default", f=_logit, kind="special")


def _log_add(base: str) -> Callable[[Call, Expr, Expr], Expr]:
    """log(exp(a) + exp(b)) in base e or 2."""
    power, log = ("exp", "log1p") if base == "e" else ("exp2", "log1p")

    def f(n: Call, a: Expr, b: Expr) -> Expr:
        top, low = E.maximum(a, b), E.minimum(a, b)
        tail = E.unary(log, E.unary(power, E.sub(low, top)))
        if base == "2":
            tail = E.mul(tail, like(a, 1 / math.log(2)))
        same = E.logical("and", E.compare("eq", a, b), E.unary("isinf", a))
        return E.select(same, a, E.add(top, tail))

    return f


pointwise("logaddexp.default", f=_log_add("e"), args=("self", "other"), kind="special")
pointwise("logaddexp2.default", f=_log_add("2"), args=("self", "other"), kind="special")

# ---- error functions -----------------------------------------------------------------------------


def _erfc(n: Call, x: Expr) -> Expr:
    """1 - erf(x) where that keeps its digits, else exp(-x^2) times a continued fraction."""
    a = E.unary("abs", x)
    near = E.sub(_c(1), E.unary("erf", x))
    z = E.mul(a, a)
    fraction = a
    for k in range(50, 0, -1):  # Laplace's continued fraction, which converges for a >= 1.5
        fraction = E.add(a, E.binary("div", _c(k / 2), fraction))
    tail = E.binary("div", E.unary("exp", E.neg(z)), E.mul(fraction, _c(math.sqrt(math.pi))))
    far = _select(E.compare("lt", x, _c(0)), E.sub(_c(2), tail), tail)
    return _select(E.compare("lt", a, _c(1.5)), near, far)


def _inverse_erf(n: Call, y: Expr) -> Expr:
    """An approximation by a logarithm, then three Newton steps on erf."""
    a = 0.147
    one = _c(1)
    log = E.unary("log", E.mul(E.sub(one, y), E.add(one, y)))
    first = E.add(_c(2 / (math.pi * a)), E.mul(_c(0.5), log))
    inner = E.unary("sqrt", E.sub(E.mul(first, first), E.mul(log, _c(1 / a))))
    size = E.unary("sqrt", E.maximum(E.sub(inner, first), _c(0)))
    negative = E.compare("lt", y, _c(0))
    x = _select(negative, E.neg(size), size)
    for _ in range(3):
        slope = E.mul(_c(2 / math.sqrt(math.pi)), E.unary("exp", E.neg(E.mul(x, x))))
        error = E.sub(E.unary("erf", x), y)
        x = E.sub(x, E.binary("div", error, slope))
    end = E.compare("eq", E.unary("abs", y), one)
    limit = _select(negative, _c(-math.inf), _c(math.inf))
    outside = E.compare("lt", one, E.unary("abs", y))
    return _select(outside, _c(math.nan), _select(end, limit, x))


pointwise("erfc.default", "special_erfc.default", f=_wide(_erfc), kind="special")
pointwise("erfinv.default", "special_erfinv.default", f=_wide(_inverse_erf), kind="special")


def _normal_cdf(n: Call, x: Expr) -> Expr:
    return E.mul(_c(0.5), _erfc(n, E.mul(x, _c(-math.sqrt(0.5)))))


pointwise("special_ndtr.default", f=_wide(_normal_cdf), kind="special")

# ---- gamma functions -----------------------------------------------------------------------------

# Source: Lanczos' approximation with g = 7 and nine coefficients.
_LANCZOS = (
    0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313,
    -176.61502916214059, 12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6,
    1.5056327351493116e-7,
)  # fmt: skip


def _log_gamma_positive(x: Expr) -> Expr:
    """log(gamma(x)) for x >= 0.5."""
    z = E.sub(x, _c(1))
    total = _c(_LANCZOS[0])
    for k, c in enumerate(_LANCZOS[1:], 1):
        total = E.add(total, E.binary("div", _c(c), E.add(z, _c(k))))
    t = E.add(z, _c(7.5))
    power = E.mul(E.add(z, _c(0.5)), E.unary("log", t))
    rest = E.add(_c(0.5 * math.log(2 * math.pi)), E.unary("log", total))
    value = E.add(E.sub(power, t), rest)
    return _select(E.unary("isinf", x), _c(math.inf), value)


def _log_gamma(n: Call, x: Expr) -> Expr:
    """log|gamma(x)|; below 0.5 by reflection."""
    low = E.compare("lt", x, _c(0.5))
    direct = _log_gamma_positive(_select(low, E.sub(_c(1), x), x))
    # |sin(pi x)| from the distance to the nearest integer, which is exact.
    part = E.unary("abs", E.sub(x, E.unary("round", x)))
    sine = E.unary("sin", E.mul(part, _c(math.pi)))
    below = E.sub(E.sub(_c(math.log(math.pi)), E.unary("log", sine)), direct)
    value = _select(low, below, direct)
    return _select(E.unary("isinf", x), _c(math.inf), value)


def _digamma(n: Call, x: Expr) -> Expr:
    """Ten steps of the recurrence, then the asymptotic series; below 0.5 by reflection."""
    low = E.compare("lt", x, _c(0.5))
    z = _select(low, E.sub(_c(1), x), x)
    total = _c(0)
    for k in range(10):
        total = E.sub(total, E.binary("div", _c(1), E.add(z, _c(k))))
    z = E.add(z, _c(10))
    inverse = E.binary("div", _c(1), E.mul(z, z))
    series = _horner(
        inverse,
        (-1 / 12, 691 / 32760, -1 / 132, 1 / 240, -1 / 252, 1 / 120, -1 / 12, 0.0),
    )
    value = E.add(total, E.add(E.sub(E.unary("log", z), E.binary("div", _c(0.5), z)), series))
    part = E.sub(x, E.unary("round", x))
    angle = E.mul(part, _c(math.pi))
    cotangent = E.binary("div", E.unary("cos", angle), E.unary("sin", angle))
    reflected = E.sub(value, E.mul(_c(math.pi), cotangent))
    whole = E.logical("and", E.compare("le", x, _c(0)), E.compare("eq", part, _c(0)))
    pole = _select(E.compare("eq", x, _c(0)), _c(-math.inf), _c(math.nan))
    found = _select(low, _select(whole, pole, reflected), value)
    return _select(E.compare("eq", x, _c(math.inf)), _c(math.inf), found)


def _zeta_tail(order: int, x: Expr) -> Expr:
    """sum over k >= 0 of (x + k)^-(order + 1), by Euler and Maclaurin after twelve terms."""
    s = order + 1
    total = _c(0)
    z = x

    def power(e: Expr, count: int) -> Expr:
        out = e
        for _ in range(count - 1):
            out = E.mul(out, e)
        return out

    for _ in range(12):
        total = E.add(total, E.binary("div", _c(1), power(z, s)))
        z = E.add(z, _c(1))
    inverse = E.binary("div", _c(1), z)
    last = power(inverse, s)
    total = E.add(total, E.mul(last, _c(0.5)))
    total = E.add(total, E.binary("div", E.mul(last, z), _c(s - 1)))
    term = E.mul(last, inverse)
    rising = float(s)
    for k, b in enumerate((1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66), 1):
        total = E.add(total, E.mul(term, _c(b * rising / math.factorial(2 * k))))
        term = E.mul(E.mul(term, inverse), inverse)
        rising *= (s + 2 * k - 1) * (s + 2 * k)
    return total


def _polygamma(n: Call, x: Expr) -> Expr:
    order = int(n.get("n"))
    if order == 0:
        return _digamma(n, x)
    if order > 6:
        raise n.refuse(f"order {order}")
    sign = 1.0 if order % 2 else -1.0
    # Below 0 the sum is shifted up: only finitely many poles matter for what float32 holds.
    positive = E.mul(_c(sign * math.factorial(order)), _zeta_tail(order, x))
    if order > 1:
        return positive
    part = E.sub(x, E.unary("round", x))
    sine = E.unary("sin", E.mul(part, _c(math.pi)))
    mirrored = E.sub(
        E.binary("div", _c(math.pi**2), E.mul(sine, sine)),
        _zeta_tail(1, E.sub(_c(1), x)),
    )
    return _select(E.compare("lt", x, _c(0.5)), mirrored, positive)


def _multivariate(n: Call, x: Expr) -> Expr:
    p = int(n.get("p"))
    total = _c(p * (p - 1) / 4 * math.log(math.pi))
    for k in range(p):
        total = E.add(total, _log_gamma(n, E.sub(x, _c(k / 2))))
    return total


pointwise("lgamma.default", "special_gammaln.default", f=_wide(_log_gamma), kind="special")
pointwise("digamma.default", "special_digamma.default", f=_wide(_digamma), kind="special")
pointwise("polygamma.default", f=_wide(_polygamma), kind="special")
pointwise("mvlgamma.default", f=_wide(_multivariate), kind="special")

# ---- Bessel functions ----------------------------------------------------------------------------


def _bessel_i0(n: Call, x: Expr) -> Expr:
    """The power series up to 18, the asymptotic one above."""
    a = E.unary("abs", x)
    q = E.mul(E.mul(a, a), _c(0.25))
    near = _c(0)
    for k in range(40, 0, -1):
        near = E.mul(E.binary("div", q, _c(float(k * k))), E.add(_c(1), near))
    near = E.add(_c(1), near)
    inverse = E.binary("div", _c(1), a)
    series, term = _c(1), 1.0
    power = _c(1)
    for k in range(1, 13):
        term *= (2 * k - 1) ** 2 / (8.0 * k)
        power = E.mul(power, inverse)
        series = E.add(series, E.mul(_c(term), power))
    scale = E.unary("rsqrt", E.mul(a, _c(2 * math.pi)))
    far = E.mul(E.mul(E.unary("exp", a), scale), series)
    return _select(E.compare("lt", a, _c(18)), near, far)


pointwise("i0.default", "special_i0.default", f=_wide(_bessel_i0), kind="special")


def _nan_to_num(n: Call, x: Expr) -> Expr:
    if not x.dtype.is_float:
        return x
    info = torch.finfo(TORCH_DTYPES[n.dtype])
    low, high = n.get("neginf"), n.get("posinf")
    zero = float(n.get("nan", 0.0))
    e = E.select(E.unary("isnan", x), like(x, zero), x)
    e = E.select(
        E.compare("eq", x, like(x, math.inf)), like(x, info.max if high is None else high), e
    )
    return E.select(
        E.compare("eq", x, like(x, -math.inf)), like(x, info.min if low is None else low), e
    )


pointwise("nan_to_num.default", f=_nan_to_num, kind="elementwise")


def _heaviside(n: Call, x: Expr, v: Expr) -> Expr:
    zero, one = like(x, 0), like(x, 1)
    step = E.select(E.compare("lt", zero, x), one, zero)
    step = E.select(E.compare("eq", x, zero), v, step)
    return E.select(E.unary("isnan", x), zero, step) if x.dtype.is_float else step


pointwise("heaviside.default", f=_heaviside, args=("self", "values"))


def _load_exponent(n: Call, x: Expr, k: Expr) -> Expr:
    return E.mul(x, E.unary("exp2", k))


pointwise("ldexp.Tensor", f=_load_exponent, args=("self", "other"), kind="special")
