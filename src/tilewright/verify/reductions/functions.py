"""The functions whose self-reductions are learned, and where they are asked.

In: an algebra (`Field`, `Floats`). Out: values of a function, and query points made of random ones.
Invariant: a function and a family say what they are and nothing about which relation holds.

A *family* is a way to ask: query points that are each random by themselves, whatever x is, or tied
to x (not `is_random`: a property of the function, no self-reduction).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

__all__ = ["FAMILIES", "FUNCTIONS", "OTHERS", "Family", "Function"]

Value = Any
Queries = list[tuple[str, tuple[Value, ...]]]


@dataclass(frozen=True)
class Function:
    """`f(M, x...)` in algebra M; `domain` names the families that fit, `bases` transforms of its
    values that may be used beside them."""

    name: str
    f: Callable[..., Value]
    domain: str = "real"
    bases: tuple[str, ...] = ("f",)
    note: str = ""


@dataclass(frozen=True)
class Family:
    """`ask(M, f)` gives the query points by name and the coordinates that a relation may use."""

    name: str
    domain: str
    ask: Callable[[Any], tuple[Queries, Queries]]
    is_random: bool = True


def _one(*points: tuple[str, Value]) -> Queries:
    return [(name, (v,)) for name, v in points]


def _sum(m: Any) -> tuple[Queries, Queries]:
    x, r = m.symbol("x"), m.symbol("r")
    return _one(("x+r", x + r), ("x-r", x - r), ("x", x), ("r", r)), _one(("x", x), ("r", r))


def _steps(m: Any) -> tuple[Queries, Queries]:
    x, r = m.symbol("x"), m.symbol("r")
    names = ("x", "x+r", "x+2r", "x+3r", "x+4r", "x+5r")
    return _one(*((n, x + k * r) for k, n in enumerate(names))), _one(("x", x), ("r", r))


def _product(base: str) -> Callable[[Any], tuple[Queries, Queries]]:
    def ask(m: Any) -> tuple[Queries, Queries]:
        x, r = m.positive("x", base), m.positive("r", base)
        return _one(("x*r", x * r), ("x/r", x / r), ("x", x), ("r", r)), _one(("x", x), ("r", r))

    return ask


def _signed(m: Any) -> tuple[Queries, Queries]:
    x, r = m.signed("x"), m.positive("r")
    return _one(("x*r", x * r), ("x", x), ("r", r)), _one(("x", x), ("r", r))


def _split(up: bool) -> Callable[[Any], tuple[Queries, Queries]]:
    def ask(m: Any) -> tuple[Queries, Queries]:
        x, r = m.split("x", up), m.split("r", up)
        return _one(("x+r", x + r), ("x", x), ("r", r)), _one(("x", x), ("r", r))

    return ask


def _sum2(m: Any) -> tuple[Queries, Queries]:
    x, y, r, s = (m.symbol(n) for n in "xyrs")
    return [
        ("x+r, y+s", (x + r, y + s)), ("x-r, y-s", (x - r, y - s)), ("x, y", (x, y)),
        ("r, s", (r, s)),
    ], []  # fmt: skip


def _steps2(m: Any) -> tuple[Queries, Queries]:
    x, y, r, s = (m.symbol(n) for n in "xyrs")
    return [(f"x+{k}r, y+{k}s", (x + k * r, y + k * s)) for k in range(4)], []


def _first(m: Any) -> tuple[Queries, Queries]:
    x, y, r = (m.symbol(n) for n in "xyr")
    return [("x+r, y", (x + r, y)), ("x, y", (x, y)), ("r, y", (r, y))], []


def _split_first(m: Any) -> tuple[Queries, Queries]:
    y = m.symbol("y")
    x, r = (m.split(n) * MODULUS / y for n in "xr")
    return [("x+r, y", (x + r, y)), ("x, y", (x, y)), ("r, y", (r, y))], []


def _law(name: str, law: Callable[[Any, Value, Value, Value, Value], Value]) -> Any:
    """Queries at x, r and at that point where the inverse of `name` has the sum of its values."""

    def ask(m: Any) -> tuple[Queries, Queries]:
        a, b = m.symbol("a"), m.symbol("b")
        x, r = getattr(m, name)(a), getattr(m, name)(b)
        q = m.asserted(law(m, x, r, a, b), name, a + b)
        return _one((_LAW_NAMES[name], q), ("x", x), ("r", r)), []

    return ask


_LAW_NAMES = {
    "sin": "x sqrt(1-r^2) + r sqrt(1-x^2)", "cos": "x r - sqrt(1-x^2) sqrt(1-r^2)",
    "tan": "(x+r) / (1-x r)", "sinh": "x sqrt(1+r^2) + r sqrt(1+x^2)",
    "cosh": "x r + sqrt(x^2-1) sqrt(r^2-1)", "tanh": "(x+r) / (1+x r)",
    "sigmoid": "x r / (1-x-r+2 x r)",
}  # fmt: skip


def _one_plus(m: Any) -> tuple[Queries, Queries]:
    x, r = m.positive("1+x") - 1, m.positive("1+r") - 1
    return _one(("x+r+x r", x + r + x * r), ("x", x), ("r", r)), []


def _log_sum(m: Any) -> tuple[Queries, Queries]:
    a, b = m.symbol("e^x") + 1, m.symbol("e^r")
    points = (("log(e^x+e^r)", a + b), ("log(e^x-e^r)", a - b), ("x", a), ("r", b))
    return _one(*((n, m.log(v)) for n, v in points)), []


def _opposite(m: Any) -> tuple[Queries, Queries]:
    x = m.symbol("x")
    return _one(("x", x), ("-x", -x)), _one(("x", x))


def _opposite_signed(m: Any) -> tuple[Queries, Queries]:
    x = m.signed("x")
    return _one(("x", x), ("-x", -x)), _one(("x", x))


FAMILIES = (
    Family("sums", "real", _sum),
    Family("steps", "real", _steps),
    Family("products", "positive", _product("e")),
    Family("products", "positive 2", _product("2")),
    Family("products", "signed", _signed),
    Family("sums", "split", _split(False)),
    Family("sums", "split up", _split(True)),
    Family("sums of pairs", "pair", _sum2),
    Family("steps of pairs", "pair", _steps2),
    Family("sums of the first", "pair", _first),
    Family("sums of the first", "split pair", _split_first),
    Family("sums of 1+x", "one plus", _one_plus),
    Family("sums of exponentials", "log", _log_sum),
    Family("group law", "sin", _law("sin", lambda m, x, r, a, b: x * m.cos(b) + r * m.cos(a))),
    Family("group law", "cos", _law("cos", lambda m, x, r, a, b: x * r - m.sin(a) * m.sin(b))),
    Family("group law", "tan", _law("tan", lambda m, x, r, a, b: (x + r) / (1 - x * r))),
    Family("group law", "sinh", _law("sinh", lambda m, x, r, a, b: x * m.cosh(b) + r * m.cosh(a))),
    Family("group law", "cosh", _law("cosh", lambda m, x, r, a, b: x * r + m.sinh(a) * m.sinh(b))),
    Family(
        "group law",
        "sigmoid",
        _law("sigmoid", lambda m, x, r, a, b: x * r / (1 - x - r + 2 * x * r)),
    ),
    Family("group law", "tanh", _law("tanh", lambda m, x, r, a, b: (x + r) / (1 + x * r))),
    Family("opposites", "real", _opposite, is_random=False),
    Family("opposites", "signed", _opposite_signed, is_random=False),
)

MODULUS = 7


def _square(x: Value) -> Value:
    return x * x


def _mod(m: Any, x: Value) -> Value:
    return x - MODULUS * m.floor(x / MODULUS)


def _golden(m: Any, x: Value) -> Value:
    out = x
    for _ in range(5):
        out = 1 + 1 / out
    return out


def _select_sign(m: Any, x: Value, below: Fraction) -> Value:
    return x * (m.const((1 + below) / 2) + m.const((1 - below) / 2) * m.sign(x))


def _split_scaled(f: Callable[[Any, Value], Value]) -> Callable[[Any, Value], Value]:
    """The function of 7 x, so that x / 7 has whole part and fraction as symbols."""
    return lambda m, x: f(m, x * MODULUS)


F = Function
FUNCTIONS: Sequence[Function] = (
    F("identity", lambda m, x: x),
    F("exp", lambda m, x: m.exp(x)),
    F("exp - 1", lambda m, x: m.exp(x) - 1),
    F("exp / x, plain", lambda m, x: m.exp(x) / x),
    F("exp / x, composite", lambda m, x: m.exp(x) / x, bases=("f", "1/f"), note="1/f allowed"),
    F("Floudas", lambda m, x, y: -x - y, "pair", note="taken as -x - y"),
    F("mean", lambda m, x, y: (x + y) / 2, "pair"),
    F("tan", lambda m, x: m.tan(x)),
    F("cot", lambda m, x: 1 / m.tan(x)),
    F("difference of squares", lambda m, x, y: x * x - y * y, "pair"),
    F("1 / x^2", lambda m, x: 1 / (x * x), "positive"),
    F("1 / x", lambda m, x: 1 / x),
    F("1 / (x + c)", lambda m, x: 1 / (x + 3), note="c = 3"),
    F("1 / (cot + 1)", lambda m, x: 1 / (1 / m.tan(x) + 1)),
    F("1 / (tan + 1)", lambda m, x: 1 / (m.tan(x) + 1)),
    F("x / (1 - x)", lambda m, x: x / (1 - x)),
    F("-x / (1 - x)", lambda m, x: -x / (1 - x)),
    F("cos", lambda m, x: m.cos(x)),
    F("cosh", lambda m, x: m.cosh(x)),
    F("x^2", lambda m, x: x * x),
    F("sin", lambda m, x: m.sin(x)),
    F("sinh", lambda m, x: m.sinh(x)),
    F("x^3", lambda m, x: x * x * x),
    F("log", lambda m, x: m.log(x), "positive"),
    F("sec", lambda m, x: 1 / m.cos(x)),
    F("csc", lambda m, x: 1 / m.sin(x)),
    F("sinc, plain", lambda m, x: m.sin(x) / x),
    F("sinc, composite", lambda m, x: m.sin(x) / x, bases=("f", "1/f"), note="1/f allowed"),
    F("mod", _split_scaled(_mod), "split", note="of 7 x, modulo 7"),
    F("modular multiply", lambda m, x, y: _mod(m, x * y), "split pair", note="modulo 7"),
    F("integer multiply", lambda m, x, y: x * y, "pair"),
    F("tanh", lambda m, x: m.tanh(x)),
    F("sigmoid", lambda m, x: m.sigmoid(x)),
    F("softmax2, first", lambda m, x, y: m.exp(x) / (m.exp(x) + m.exp(y)), "pair"),
    F("softmax2, second", lambda m, x, y: m.exp(y) / (m.exp(x) + m.exp(y)), "pair"),
    F("logistic", lambda m, x: 1 / (1 + m.exp(-2 * x)), note="growth rate 2"),
    F("scaled logistic", lambda m, x: 5 / (1 + m.exp(-2 * x)), note="capacity 5, growth rate 2"),
    F("square loss", lambda m, x: (1 - x) * (1 - x)),
    F(
        "savage loss, library",
        lambda m, x: _square(m.sigmoid(-x)),
        bases=("f", "sqrt f"),
        note="sqrt(f), the sigmoid of -x, allowed",
    ),
    F("savage loss, basis", lambda m, x: _square(m.sigmoid(-x))),
    F("arcsin", lambda m, x: m.inverted("sin", x), "sin"),
    F("arccos", lambda m, x: m.inverted("cos", x), "cos"),
    F("arctan", lambda m, x: m.inverted("tan", x), "tan"),
    F("arcsinh", lambda m, x: m.inverted("sinh", x), "sinh"),
    F("arccosh", lambda m, x: m.inverted("cosh", x), "cosh"),
    F("arctanh", lambda m, x: m.inverted("tanh", x), "tanh"),
    F("ReLU", lambda m, x: _select_sign(m, x, Fraction(0)), "signed"),
    F(
        "leaky ReLU",
        lambda m, x: _select_sign(m, x, Fraction(1, 100)),
        "signed",
        note="slope 1/100",
    ),
    F("swish", lambda m, x: x * m.sigmoid(x)),
    F(
        "GELU",
        lambda m, x: x * (1 + m.odd("erf", x / 2)) / 2,
        note="only that erf is odd is known; of x sqrt(2)",
    ),
    F("log1p", lambda m, x: m.log(1 + x), "one plus"),
    F("logit", lambda m, x: m.inverted("sigmoid", x), "sigmoid"),
    F("log2", lambda m, x: m.log2(x), "positive 2"),
    F("sqrt", lambda m, x: m.root(x, 2), "positive"),
    F("cbrt", lambda m, x: m.root(x, 3), "positive"),
    F("x^x", lambda m, x: m.exp(x * m.log(x)), "positive", bases=("f", "log f")),
    F("floor", lambda m, x: m.floor(x), "split"),
    F("ceil", lambda m, x: -m.floor(-x), "split up"),
    F("frac", lambda m, x: x - m.floor(x), "split"),
    F("erf", lambda m, x: m.odd("erf", x), note="only that it is odd is known"),
    F("gamma", lambda m, x: m.odd("gamma", x), "none", note="no finite algebraic family"),
    F("exp(sin)", lambda m, x: m.exp(m.sin(x)), bases=("f", "log f")),
    F("sin(exp)", lambda m, x: m.sin(m.exp(x)), "log"),
    F("log(cos)", lambda m, x: m.log(m.cos(x)), "real", bases=("f", "exp f")),
    F("sqrt(1 + x^2)", lambda m, x: m.sqrt(1 + x * x)),
    F("abs", lambda m, x: x * m.sign(x), "signed"),
    F("sign", lambda m, x: m.sign(x), "signed"),
    F("Gudermannian", lambda m, x: m.inverted("tan", m.sinh(x)), bases=("f", "tan f")),
    F("2^x", lambda m, x: m.power("2", x)),
    F("10^x", lambda m, x: m.power("10", x)),
    F("Pade 1-1", lambda m, x: (2 + x) / (2 - x)),
    F("Pade 2-2", lambda m, x: (12 + 6 * x + x * x) / (12 - 6 * x + x * x)),
    F("golden continued fraction", _golden, note="five levels, ending in x"),
    F(
        "tan continued fraction",
        lambda m, x: x / (1 - x * x / (3 - x * x / 5)),
        note="three levels",
    ),
    F("Moebius simple", lambda m, x: (2 * x + 1) / (x + 3), note="(2 x + 1) / (x + 3)"),
    F("Moebius inversion", lambda m, x: (x - 1) / (x + 1)),
    F("Moebius Cayley", lambda m, x: (1 - x) / (1 + x)),
    F("exp(x^2)", lambda m, x: m.exp(x * x)),
    F("exp(cos)", lambda m, x: m.exp(m.cos(x)), bases=("f", "log f")),
    F("x^4", lambda m, x: x * x * x * x),
)
# Not among the eighty, but emitted.
OTHERS: Sequence[Function] = (F("1 / sqrt", lambda m, x: 1 / m.root(x, 2), "positive"),)
del F
