"""Fit the minimax polynomials of `tilewright.codegen.mathlib` and write `coefficients.py`.

Usage: `python scripts/fit_math.py [NAME ...]` (needs mpmath). Without names every polynomial is
fitted anew and the module is rewritten (four minutes); with names only those are fitted and
printed, with their errors.

Method: Remez exchange in 80-digit arithmetic, least max |weight(t) (target(t) - sum c_i t^i)|. The
coefficients are rounded one at a time from the constant upwards, and the rest is fitted again
after each rounding.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mpmath as mp
from mpmath import mpf

mp.mp.dps = 80
OUTPUT = Path(__file__).parents[1] / "src/tilewright/codegen/mathlib/coefficients.py"
Real = Callable[[mpf], mpf]

LN2 = mp.log(2)
HALF_PI = mp.pi / 2


@dataclass(frozen=True)
class Fit:
    """One polynomial: `target` on [low, high] with `weight`; `counts` is coefficients by dtype."""

    name: str
    counts: dict[str, int]
    target: Real
    weight: Real
    low: mpf
    high: dict[str, mpf]
    note: str


def round_to(dtype: str, value: mpf) -> mpf:
    """`value` rounded to f32 or f64."""
    number = float(value)
    if dtype == "f32":
        number = struct.unpack("<f", struct.pack("<f", number))[0]
    return mpf(number)


def polynomial(coefficients: list[mpf], t: mpf) -> mpf:
    """Horner's rule."""
    result = mpf(0)
    for coefficient in reversed(coefficients):
        result = result * t + coefficient
    return result


def remez(
    target: list[mpf], weight: list[mpf], grid: list[mpf], fixed: list[mpf], free: int
) -> list[mpf]:
    """The `free` coefficients after the `fixed` ones in the weighted minimax fit on `grid`.

    The fixed part is subtracted and `t^len(fixed)` moved into the weight, so that the basis is
    1, t, t^2, ... and the weight is positive: only then does the best error alternate.
    """
    first = len(fixed)
    rest = [(g - polynomial(fixed, t)) / t**first for g, t in zip(target, grid, strict=True)]
    scale = [abs(w * t**first) for w, t in zip(weight, grid, strict=True)]
    last = len(grid) - 1
    picks = [round(last * i / free) for i in range(free + 1)]
    best: list[mpf] = []
    for _ in range(400):
        rows = [
            [grid[i] ** k for k in range(free)] + [(-1) ** n / scale[i]]
            for n, i in enumerate(picks)
        ]
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([rest[i] for i in picks]))
        best, level = list(solution)[:free], solution[free]
        errors = [w * (g - polynomial(best, t)) for w, g, t in zip(scale, rest, grid, strict=True)]
        worst = max(range(len(errors)), key=lambda i: abs(errors[i]))
        if abs(errors[worst]) <= abs(level) * mpf("1.003"):
            return best
        picks = exchange(picks, worst, (errors[worst] > 0) == (level > 0))
    raise RuntimeError("the exchange did not converge")


def exchange(picks: list[int], worst: int, positive: bool) -> list[int]:
    """Put `worst` in place of a neighbour of the same sign; pick 0 counts as positive."""
    after = sum(i < worst for i in picks)
    if after == 0:
        return [worst, *picks[1:]] if positive else [worst, *picks[:-1]]
    last = len(picks) - 1
    same_before = (after - 1) % 2 == (0 if positive else 1)
    if same_before:
        return [*picks[: after - 1], worst, *picks[after:]]
    if after > last:
        return [*picks[1:], worst]
    return [*picks[:after], worst, *picks[after + 1 :]]


def fit(entry: Fit, dtype: str) -> tuple[list[float], float]:
    """The rounded coefficients and the largest weighted error on the grid."""
    count, low, high = entry.counts[dtype], entry.low, entry.high[dtype]
    points = 60 * count
    middle, radius = (low + high) / 2, (high - low) / 2
    grid = [middle - radius * mp.cos(mp.pi * i / points) for i in range(points + 1)]
    grid = [t if abs(t) > mpf("1e-9") else mpf("1e-9") for t in grid]
    target = [entry.target(t) for t in grid]
    weight = [entry.weight(t) for t in grid]
    fixed: list[mpf] = []
    refits = count if dtype == "f32" else 4
    free = remez(target, weight, grid, fixed, count)
    for index in range(count):
        fixed.append(round_to(dtype, free[0]))
        free = free[1:]
        if free and index < refits:
            free = remez(target, weight, grid, fixed, count - index - 1)
    rows = zip(weight, target, grid, strict=True)
    return [float(c) for c in fixed], float(
        max(abs(w * (g - polynomial(fixed, t))) for w, g, t in rows)
    )


def table() -> list[Fit]:
    """Every polynomial of the library; see `odd` for the odd functions."""
    fits: list[Fit] = []

    def add(
        name: str,
        f32: int,
        f64: int,
        target: Real,
        weight: Real,
        low: str | mpf,
        high: str | mpf,
        note: str,
        high_f64: str | None = None,
    ) -> None:
        counts = {dtype: n for dtype, n in (("f32", f32), ("f64", f64)) if n}
        tops = {"f32": mpf(high), "f64": mpf(high if high_f64 is None else high_f64)}
        fits.append(Fit(name, counts, target, weight, mpf(low), tops, note))

    def odd(name: str, f32: int, f64: int, function: Real, high: str, note: str) -> None:
        """f(x) = x + x t P(t) with t = x^2: the target is (f(x)/x - 1)/t, the weight x t / f(x)."""

        def target(t: mpf) -> mpf:
            return (function(mp.sqrt(t)) / mp.sqrt(t) - 1) / t

        def weight(t: mpf) -> mpf:
            return t * mp.sqrt(t) / function(mp.sqrt(t))

        add(name, f32, f64, target, weight, "0", high, f"({note}(x)/x - 1)/x^2 in x^2")

    def power(r: mpf) -> mpf:
        return mp.power(2, r)

    def log_weight(f: mpf) -> mpf:
        return f * LN2 / mp.log1p(f)

    half_ln2 = LN2 / 2 * mpf("1.0001")
    half = mpf("0.50005")
    add(
        "EXP",
        5,
        10,
        lambda r: (mp.exp(r) - 1 - r) / r**2,
        lambda r: r**2 / mp.exp(r),
        -half_ln2,
        half_ln2,
        "(exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2",
    )
    add(
        "EXP2",
        6,
        11,
        lambda r: (power(r) - 1) / r,
        lambda r: r / power(r),
        -half,
        half,
        "(2^r - 1) / r on |r| <= 1/2",
    )
    add(
        "EXP2_SHORT",
        5,
        6,
        lambda r: (power(r) - 1) / r,
        lambda r: r / power(r),
        -half,
        half,
        "(2^r - 1) / r on |r| <= 1/2 where less will do",
    )
    add(
        "EXP_ROOT",
        2,
        0,
        lambda r: (mp.exp(r) - 1 - r) / r**2,
        lambda r: r**2 / mp.exp(r),
        -half_ln2 / 16,
        half_ln2 / 16,
        "(exp(r) - 1 - r) / r^2 on |r| <= ln(2)/32",
    )
    add(
        "EXP2_ROOT",
        3,
        0,
        lambda r: (power(r) - 1) / r,
        lambda r: r / power(r),
        -half / 16,
        half / 16,
        "(2^r - 1) / r on |r| <= 1/32",
    )
    add(
        "LOG",
        8,
        19,
        lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3,
        lambda f: f**3 / mp.log1p(f),
        "-0.25",
        "0.5",
        "(log(1+f) - f + f^2/2) / f^3 on -1/4 <= f < 1/2",
    )
    add(
        "LOG2",
        10,
        21,
        lambda f: mp.log1p(f) / LN2 / f - 1,
        log_weight,
        "-0.25",
        "0.5",
        "log2(1+f)/f - 1 on -1/4 <= f < 1/2",
    )
    add(
        "LOG2_WIDE",
        0,
        13,
        lambda f: mp.log1p(f) / LN2 / f,
        log_weight,
        "-0.25",
        "0.5",
        "log2(1+f)/f on -1/4 <= f < 1/2 where less will do",
    )
    odd("TANH", 5, 11, mp.tanh, "0.3970", "tanh")
    add(
        "ERF",
        6,
        12,
        lambda t: mp.erf(mp.sqrt(t)) / mp.sqrt(t) - 1,
        lambda t: mp.sqrt(t) / mp.erf(mp.sqrt(t)),
        "0",
        "0.8650",
        "erf(x)/x - 1 in x^2, |x| <= 0.93",
    )
    add(
        "ERFC_LOG2",
        7,
        19,
        lambda a: -mp.log(mp.erfc(a), 2),
        mp.erfc,
        "0.9",
        "4.0",
        "-log2(erfc(x)) on [0.9, 4.0] (f32) and [0.9, 6.0] (f64)",
        "6.0",
    )
    odd("SIN", 3, 6, mp.sin, "0.6170", "sin")
    add(
        "COS",
        3,
        6,
        lambda t: (mp.cos(mp.sqrt(t)) - 1 + t / 2) / t**2,
        lambda t: t**2,
        "0",
        "0.6170",
        "(cos(x) - 1 + x^2/2)/x^4 in x^2, |x| <= pi/4",
    )
    odd("ATAN", 9, 20, mp.atan, "1", "atan")
    odd("ASIN", 5, 12, mp.asin, "0.2501", "asin")
    odd("SINH", 4, 7, mp.sinh, "1", "sinh")
    add(
        "ATANH_TAIL",
        0,
        8,
        lambda t: (mp.atanh(mp.sqrt(t)) / mp.sqrt(t) - 1 - t / 3) * 2 / t**2,
        lambda t: t**2 / 2,
        "0",
        "0.0401",
        "2 (atanh(s)/s - 1 - s^2/3)/s^4 in s^2, |s| <= 1/5",
    )
    return fits


@dataclass(frozen=True)
class Pieces:
    """An odd function of f32 by `PIECES` polynomials: the i-th in x - i * width, |that| <= width / 2.

    count: coefficients of each. The first polynomial has no constant, and the last ends at 1.
    """

    name: str
    count: int
    function: Real
    width: mpf
    note: str


PIECES = 16


def piecewise() -> list[Pieces]:
    """Functions that the permutation of a table of 16 numbers makes cheap."""
    return [
        Pieces("ERF_PIECES", 6, mp.erf, mpf("0.25"), "erf(x) by x - i/4, |x| < 3.875"),
        Pieces("TANH_PIECES", 8, mp.tanh, mpf(75) / 128, "tanh(x) by x - 75/128 i, |x| < 9.08"),
    ]


def fit_pieces(entry: Pieces) -> tuple[list[list[float]], float]:
    """The coefficients, by power and then by piece, and the largest relative error."""
    radius = entry.width / 2 * mpf("1.0001")
    end = entry.function(PIECES * entry.width - entry.width / 2)
    columns: list[list[float]] = []
    errors: list[float] = []
    for i in range(PIECES):
        centre = i * entry.width

        def target(t: mpf, i: int = i, centre: mpf = centre) -> mpf:
            y = entry.function(centre + t)
            if i == PIECES - 1:  # what is lacking to 1 at the end, added in proportion
                y += (1 - end) * ((t + radius) / (2 * radius)) ** 2
            return y / t if i == 0 else y

        def weight(t: mpf, i: int = i, centre: mpf = centre) -> mpf:
            return (t if i == 0 else mpf(1)) / entry.function(centre + t)

        low = mpf(0) if i == 0 else -radius
        count = entry.count - (i == 0)
        one = Fit(entry.name, {"f32": count}, target, weight, low, {"f32": radius}, entry.note)
        numbers, error = fit(one, "f32")
        columns.append([0.0] * (i == 0) + numbers)
        errors.append(error)
    return [list(row) for row in zip(*columns, strict=True)], max(errors)


def parts(value: mpf, *bits: int) -> list[float]:
    """`value` as an unevaluated sum: each part has at most that many significant bits."""
    result = []
    for width in bits:
        exponent = int(mp.floor(mp.log(abs(value), 2))) + 1 - width
        part = mp.nint(value * mpf(2) ** -exponent) * mpf(2) ** exponent
        result.append(float(part))
        value -= part
    return result


def quadrant_groups() -> list[float]:
    """2/pi in two f64 parts for each of |x| < 2^48, 2^75, 2^102, 2^128, as one flat list.

    For |x| >= 2^B a float32 is a multiple of 2^(B-23): bits of 2/pi of weight 2^(25-B) and more
    only add multiples of 4 to the number of quadrants and are left out.
    """
    result = []
    for start in (None, 48, 75, 102):
        value = 2 / mp.pi
        if start is not None:
            unit = mpf(2) ** (25 - start)
            value -= mp.floor(value / unit) * unit
        result += parts(value, 53, 53)
    return result


def constants() -> dict[str, dict[str, list[float]]]:
    """Constants in parts; the first of LN2 leaves room for an exact product with an exponent."""
    return {
        "LN2": {"f32": parts(LN2, 15, 24), "f64": parts(LN2, 41, 53)},
        "HALF_PI": {"f32": parts(HALF_PI, 24, 24), "f64": parts(HALF_PI, 53, 53, 53)},
        "TWO_OVER_PI_GROUPS": {"f32": quadrant_groups()},
        "TWO_THIRDS": {"f64": parts(mpf(2) / 3, 53, 53)},
    }


def main(names: list[str]) -> None:
    """Fit and write, or fit and print."""
    blocks: list[str] = []
    exported: list[str] = []

    def block(name: str, comments: list[str], by_dtype: dict[str, list[float]]) -> None:
        exported.append(name)
        lines = [f"# {comment}" for comment in comments]
        lines.append(f"{name}: dict[str, tuple[float, ...]] = {{")
        for dtype, numbers in by_dtype.items():
            lines += [f'    "{dtype}": (', *(f"        {c!r}," for c in numbers), "    ),"]
        blocks.append("\n".join([*lines, "}"]))

    for entry in table():
        if names and entry.name not in names:
            continue
        found = {dtype: fit(entry, dtype) for dtype in entry.counts}
        errors = [f"{d} 2^{float(mp.log(error, 2)):.1f}" for d, (_, error) in found.items()]
        print(f"{entry.name:12} {', '.join(errors)}", flush=True)
        comments = [entry.note, "Error: " + ", ".join(errors)]
        block(entry.name, comments, {dtype: numbers for dtype, (numbers, _) in found.items()})
    for pieces in piecewise():
        if names and pieces.name not in names:
            continue
        rows, error = fit_pieces(pieces)
        print(f"{pieces.name:12} 2^{float(mp.log(error, 2)):.1f}", flush=True)
        exported.append(pieces.name)
        lines = [f"# {pieces.note}; by power, then by i", f"# Error: 2^{float(mp.log(error, 2)):.1f}"]
        lines.append(f"{pieces.name}: tuple[tuple[float, ...], ...] = (")
        for row in rows:
            lines += ["    (", *(f"        {c!r}," for c in row), "    ),"]
        blocks.append("\n".join([*lines, ")"]))
    if names:
        print("\n\n".join(blocks))
        return
    for name, by_dtype in constants().items():
        block(name, ["A constant in parts, see `constants` in the script."], by_dtype)
    head = """\"\"\"Minimax polynomials, written by `scripts/fit_math.py`; do not edit.

In: nothing. Out: coefficients, constant first, by dtype. Invariant: f32 numbers are exact in f32.
The errors in the comments are relative to the function that the polynomial serves.
\"\"\"

from __future__ import annotations

__all__ = [
"""
    names_text = "\n".join(f'    "{name}",' for name in exported)
    OUTPUT.write_text(head + names_text + "\n]\n\n" + "\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
