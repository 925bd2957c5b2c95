"""Bilinear algorithms: a convolution in fewer multiplications, by way of evaluated polynomials.

In: a bound Program, a Target. Out: the Program with some of its convolutions written in another
form, and what was done. Invariants: the new definitions are equal to the old one over the reals
(the tables are exact rationals, tested as identities); a constant is named after the constant it
comes from, so that the result does not depend on whether values are at hand; nothing here knows an
operator.

The rule. For a sum over a window of r positions that an output axis slides along by one,

    y[h] = sum(u<r) x[h + u] * k[u],

m neighbouring outputs need only n = m + r - 1 products: with the tables of Toom and Cook at n - 1
points and infinity, y = At ((G k) * (Bt x)) (Winograd, "Arithmetic Complexity of Computations",
1980). The transform G k of a constant is made at build. With two such windows the tables apply one
after the other; the products over all tiles of outputs are then a batch of n * n matrix products.
Each transform is a contraction with a small constant table, so grouping, layouts and schedules
treat it like any other.

The price is rounding: the tables amplify it, so the numeric policy allows such outputs four times
as much, and `numerics="strict"` leaves the rule out. An infinity in the input reaches all outputs
of its tile, as NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from math import prod
from typing import Any

import numpy as np

from tilewright.derive import Derivation, Names, rewritten
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32
from tilewright.ir.expr import Expr
from tilewright.ir.extent import assuming, ceil_div
from tilewright.ir.kernel import int_extent
from tilewright.ir.program import (
    Axis,
    Definition,
    Program,
    Reduction,
    Statement,
    Tensor,
    array_key,
)
from tilewright.machine.target import Target

__all__ = ["faster_convolutions", "tables"]

Array = np.ndarray[Any, np.dtype[Any]]
Table = tuple[tuple[Fraction, ...], ...]

SIZES = (2, 4)  # outputs of a tile along an axis; the error of 6 is an order larger
WORTH = 1.15  # estimated gain below which the plain form stays


@dataclass(frozen=True)
class _Window:
    """An output axis that slides along a reduced one: `x` is subscripted by out + step * tap + a
    shift. Outputs that lie `step` apart slide along with each other, the others by themselves.
    """

    out: Axis
    tap: Axis
    step: int

    def tiles(self, m: int) -> int:
        """Tiles of m outputs that lie `step` apart, from one of the first `step` on."""
        return ceil_div(int_extent(self.out.extent), self.step * m)


@dataclass(frozen=True)
class _Convolution:
    """The parts of a definition that the rule needs."""

    d: Definition
    x: Expr
    k: Expr
    key: str  # of the constant
    windows: tuple[_Window, ...]
    depth: tuple[Axis, ...]  # reduced axes that are no taps
    kept: tuple[Axis, ...]  # output axes of x alone, or of both, without the sliding ones
    columns: tuple[Axis, ...]  # output axes of k alone


# ---- tables --------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def tables(m: int, r: int) -> tuple[Table, Table, Table]:
    """(At [m, n], G [n, r], Bt [n, n]) for m outputs of a window of r, n = m + r - 1."""
    n = m + r - 1
    points = [Fraction(0), *(Fraction(s * p) for p in range(1, n) for s in (1, -1))][: n - 1]

    def product(roots: Sequence[Fraction]) -> list[Fraction]:
        """Coefficients of the polynomial with these roots, lowest first."""
        out = [Fraction(1)]
        for p in roots:
            out = [
                (out[i - 1] if i else Fraction(0)) - (p * out[i] if i < len(out) else Fraction(0))
                for i in range(len(out) + 1)
            ]
        return out

    zero, one = Fraction(0), Fraction(1)
    at = [[p**i for p in points] + [one if i == m - 1 else zero] for i in range(m)]
    g, bt = [], []
    for j, p in enumerate(points):
        others = [q for i, q in enumerate(points) if i != j]
        scale = prod((p - q for q in others), start=one)
        g.append([p**k / scale for k in range(r)])
        bt.append([*product(others), zero])
    g.append([one if k == r - 1 else zero for k in range(r)])
    bt.append(product(points))
    return tuple(map(tuple, at)), tuple(map(tuple, g)), tuple(map(tuple, bt))


def _array(table: Table) -> Array:
    return np.array([[float(v) for v in row] for row in table], np.float64)


# ---- recognition ---------------------------------------------------------------------------------


def _convolution(d: Definition, constants: Mapping[str, str]) -> _Convolution | None:
    """The definition as a convolution with a constant along one or two windows, or None."""
    r = d.reduction
    if r is None or r.monoid != "sum" or r.guard is not None or d.scan is not None:
        return None
    if d.dtype is not F32 or d.body.op != "mul" or any(a.op != "read" for a in d.body.args):
        return None
    sides = sorted(d.body.args, key=lambda a: a.attr[0] in constants)
    x, k = sides
    if k.attr[0] not in constants or x.attr[0] in constants or k.attr[1]:
        return None
    if x.attr[1] and not (x.args[-1].op == "const" and x.args[-1].attr == 0.0):
        return None
    axes = {a.name: a for a in d.all_axes if int_extent(a.extent) != 1}
    reduced = {a.name for a in r.axes}
    in_k: set[str] = set()
    for s in k.args:
        if s.op == "index" and s.attr in axes and s.attr not in in_k:
            in_k.add(s.attr)
        elif not _is_zero(s, axes):
            return None
    windows: list[_Window] = []
    in_x: set[str] = set()
    for s in x.args[:-1] if x.attr[1] else x.args:
        terms = dict(E.polynomial(_point(s, axes, d)))
        shift = terms.pop((), 0)
        if any(len(a) != 1 or a[0].op != "index" or c < 1 for a, c in terms.items()):
            return None
        by = {a[0].attr: c for a, c in terms.items()}
        names = list(by)
        if in_x & set(names):
            return None
        in_x.update(names)
        taps = [n for n in names if n in reduced]
        outs = [n for n in names if n not in reduced]
        if len(names) == 2 and len(taps) == len(outs) == 1 and by[outs[0]] == 1:
            windows.append(_Window(axes[outs[0]], axes[taps[0]], by[taps[0]]))
        elif len(names) > 1 or (names and (shift or by[names[0]] != 1)):
            return None
    sliding = {w.out.name for w in windows}
    tapped = {w.tap.name for w in windows}
    if not 1 <= len(windows) <= 2 or any(int_extent(w.tap.extent) != 3 for w in windows):
        return None
    if not tapped <= in_k or sliding & in_k or in_x | in_k != set(axes):
        return None
    depth = tuple(a for n, a in axes.items() if n in reduced and n not in tapped)
    if not depth or any(a.name not in in_x or a.name not in in_k for a in depth):
        return None
    out = [a for n, a in axes.items() if n not in reduced]
    kept = tuple(a for a in out if a.name in in_x and a.name not in sliding)
    columns = tuple(a for a in out if a.name not in in_x)
    if not columns or any(a.name in in_k for a in kept):
        return None
    key = constants[k.attr[0]]
    return _Convolution(d, x, k, key, tuple(windows), depth, kept, columns)


def _is_zero(s: Expr, axes: Mapping[str, Axis]) -> bool:
    """Is the subscript zero: the constant, or an axis of one point?"""
    return (s.op == "const" and s.attr == 0) or (s.op == "index" and s.attr not in axes)


def _point(s: Expr, axes: Mapping[str, Axis], d: Definition) -> Expr:
    """The subscript with axes of one point at 0."""
    return E.substitute(s, {a.index: E.const(0) for a in d.all_axes if a.name not in axes})


# ---- cost ----------------------------------------------------------------------------------------


# Bytes by which all constants together may grow: a share of them, or this where it is more.
_SHARE, _ROOM = 0.28, float(8 << 20)
_WEIGHTS = 8.0  # bytes a cycle at which constants that are read once arrive, from L3 or beyond


def _rate(size: float, target: Target) -> float:
    """Bytes a cycle that a buffer of this size is read or written at, roughly."""
    if 2 * size <= target.l2_bytes:
        return 25.0
    return 14.0 if 4 * size <= min(target.l3_bytes, 16 * target.l2_bytes) else 6.0


def _plain(c: _Convolution, target: Target) -> float:
    """Estimated cycles of the plain form."""
    products = prod(int_extent(a.extent) for a in (*c.kept, *c.depth, *c.columns))
    points = prod(int_extent(w.out.extent) for w in c.windows)
    return float(products * points * 3 ** len(c.windows)) / (2 * target.lanes(32)) / 0.85


def _gain(c: _Convolution, m: int, target: Target) -> float:
    """Estimated time of the plain form over that of tiles of m."""
    lanes = target.lanes(32)
    many = len(c.windows)
    n = m + 2
    depth = prod(int_extent(a.extent) for a in c.depth)
    columns = prod(int_extent(a.extent) for a in c.columns)
    rows = prod(int_extent(a.extent) for a in c.kept)
    tiles = rows * prod(w.step * w.tiles(m) for w in c.windows)
    if min(depth, columns) < lanes:
        return 0.0
    plain = _plain(c, target)
    fewer = n**many * tiles * depth * columns / (2 * lanes) / 0.8
    into = sum(n ** (many + 1) for _ in range(many)) * depth
    back = sum(m ** (i + 1) * n ** (many - i) for i in range(many)) * columns
    around = tiles * (into + back) / (2 * lanes) / 0.4
    moved = 0.0
    for wide in (4.0 * n**many * tiles * depth, 4.0 * n**many * tiles * columns):
        moved += wide * 2 * many / _rate(wide, target)
    # Weights arrive while products are computed, but not without a trace: a third of the shorter.
    weights = 4.0 * n**many * depth * columns / _WEIGHTS
    products = max(fewer, weights) + min(fewer, weights) / 3
    return float(plain / (products + around + moved))


# ---- rewriting -----------------------------------------------------------------------------------


def _transformed(k: Array, c: _Convolution, g: Array) -> Array:
    """The constant at the points instead of the taps: [points.., depth.., columns..]."""
    order = [s.attr if s.op == "index" else None for s in c.k.args]
    names = [n for n in order if n is not None and n in _names_of(c)]
    out = k.reshape([k.shape[i] for i, n in enumerate(order) if n in names]).astype(np.float64)
    first = [w.tap.name for w in c.windows]
    rest = [a.name for a in (*c.depth, *c.columns)]
    out = np.transpose(out, [names.index(n) for n in (*first, *rest)])
    others = out.shape[len(first) :]
    every = reduce(np.kron, [g] * len(first))  # of all windows at once
    out = every @ out.reshape(every.shape[1], -1)
    return out.astype(np.float32).reshape(*[len(g)] * len(first), *others)


def _names_of(c: _Convolution) -> set[str]:
    return {a.name for a in (*(w.tap for w in c.windows), *c.depth, *c.columns)}


def _derived_key(key: str, c: _Convolution, m: int) -> str:
    """Name of the transformed constant: it follows from the constant and the form alone."""
    order = [s.attr if s.op == "index" else "0" for s in c.k.args]
    parts = [[w.tap.name for w in c.windows], [a.name for a in (*c.depth, *c.columns)]]
    place = [[order.index(n) for n in names] for names in parts]
    return hashlib.sha256(f"F({m},3) of {key} by {place}".encode()).hexdigest()


def _fresh(c: _Convolution, *names: str) -> list[str]:
    taken = {a.name for a in c.d.all_axes}
    out = []
    for n in names:
        while n in taken:
            n += "_"
        taken.add(n)
        out.append(n)
    return out


def _rewrite(
    c: _Convolution, m: int, names: Names, table: Mapping[str, str]
) -> tuple[list[Definition], str]:
    """The definitions that take the place of `c.d`, and the name of the transformed constant.

    table: names of the constant tables At and Bt.
    """
    n, count = m + 2, len(c.windows)
    d = c.d
    numbers = _fresh(c, *(f"{w.out.name}_t" for w in c.windows))
    phases = _fresh(c, *(f"{w.out.name}_r" for w in c.windows))
    tiles: list[Axis] = []
    spread: dict[Expr, Expr] = {}  # axes of the definition by those of a tile
    back: dict[Expr, Expr] = {}  # and the other way round
    for w, number, phase in zip(c.windows, numbers, phases, strict=True):
        t, o, g = Axis(number, E.const(w.tiles(m))), w.out.index, w.step
        tiles.append(t)
        spread[o] = t.index * (g * m)
        back[t.index] = o // (g * m)
        if g > 1:
            r = Axis(phase, E.const(g))
            tiles.append(r)
            spread[o] += r.index
            back[r.index] = o % g
    points = [Axis(x, E.const(n)) for x in _fresh(c, "e0", "e1")[:count]]
    inner = [Axis(x, E.const(n)) for x in _fresh(c, "d0", "d1")[:count]]
    some = [Axis(x, E.const(m)) for x in _fresh(c, "q0", "q1")[:count]]
    out: list[Definition] = []

    def define(name: str, axes: Sequence[Axis], over: tuple[Axis, ...], body: Expr) -> Expr:
        """Append a sum; returns what reads it at its own axes."""
        full = names.new(f"{d.name}_{name}")
        out.append(Definition(full, F32, tuple(axes), body, Reduction("sum", over)))
        return E.read(full, [a.index for a in axes], F32)

    # The input in tiles, one window after the other.
    one_point = {a.index: E.const(0) for a in d.all_axes if int_extent(a.extent) == 1}
    spread |= {w.tap.index: i.index for w, i in zip(c.windows, inner, strict=True)}
    subs = c.x.args[:-1] if c.x.attr[1] else c.x.args
    value = E.read(
        c.x.attr[0], [E.substitute(s, spread | one_point) for s in subs], F32, E.const(0.0, F32)
    )
    for i in range(count):
        done, left = points[: i + 1], inner[i + 1 :]
        # Points go outermost at last: there they number the products.
        around = [*c.kept, *tiles, *done, *left] if left else [*done, *c.kept, *tiles]
        weight = E.read(table["bt"], [points[i].index, inner[i].index], F32)
        value = define(f"in{i}", [*around, *c.depth], (inner[i],), E.mul(weight, value))
    # The products.
    wide = names.new(f"{c.k.attr[0]}_points")
    axes = [*points, *c.kept, *tiles, *c.columns]
    constant = E.read(wide, [a.index for a in (*points, *c.depth, *c.columns)], F32)
    value = define("products", axes, c.depth, E.mul(value, constant))
    # And back; the last step has the axes of the definition.
    for i in range(count - 1):
        behind = [*c.kept, *tiles, *some[: i + 1], *points[i + 1 :], *c.columns]
        weight = E.read(table["at"], [some[i].index, points[i].index], F32)
        value = define(f"out{i}", behind, (points[i],), E.mul(weight, value))
    back |= {q.index: w.out.index // w.step % m for w, q in zip(c.windows, some, strict=True)}
    weight = E.read(table["at"], [some[-1].index, points[count - 1].index], F32)
    last = E.substitute(E.mul(weight, value), back)
    out.append(Definition(d.name, F32, d.axes, last, Reduction("sum", (points[count - 1],))))
    return out, wide


def faster_convolutions(
    program: Program,
    target: Target,
    strict: bool = False,
    *,
    sizes: Sequence[int] = SIZES,
    worth: float = WORTH,
) -> tuple[Program, list[Derivation]]:
    """The Program with each convolution in the form that is estimated to be fastest.

    strict: leave everything as it is. sizes: outputs of a tile that are tried. worth: estimated
    gain below which the plain form stays; 0 rewrites whatever the rule matches.

    Only definitions at the top level, of f32, whose weights are constant and whose windows have
    three taps, next to each other or a fixed step apart, and slide by one. The values of new
    constants are made where the old ones are known.
    """
    if strict:
        return program, []
    with assuming(program.dims):
        return _faster(program, target, sizes, worth)


def _chosen(
    convolutions: Mapping[int, _Convolution],
    target: Target,
    sizes: Sequence[int],
    worth: float,
    room: float,
) -> dict[int, tuple[int, float]]:
    """Outputs of a tile, and the estimated gain, of each convolution that is rewritten.

    Weights at points take more memory than taps, and `room` bytes more in all: what saves most time
    a byte comes first, then larger tiles in place of smaller ones by what they save more.
    """
    out: dict[int, tuple[int, float]] = {}
    gains = {k: {m: _gain(c, m, target) for m in sizes} for k, c in convolutions.items()}
    while True:
        best: tuple[float, float, int, int] | None = None
        for k, c in convolutions.items():
            now = out.get(k, (0, 1.0))
            for m, gain in gains[k].items():
                if gain < worth or (gain <= now[1] and k in out) or m == now[0]:
                    continue
                more = _more_bytes(c, m) - (_more_bytes(c, now[0]) if k in out else 0.0)
                saved = _plain(c, target) * (1 / now[1] - 1 / gain) if worth else 1.0
                if more <= room and (best is None or saved / max(more, 1.0) > best[0]):
                    best = saved / max(more, 1.0), more, k, m
        if best is None:
            return out
        _, more, k, m = best
        room -= more
        out[k] = m, gains[k][m]


def _more_bytes(c: _Convolution, m: int) -> float:
    """By how much the weights at points are longer than the taps."""
    many = len(c.windows)
    each = prod(int_extent(a.extent) for a in (*c.depth, *c.columns))
    return float(4 * each * ((m + 2) ** many - 3**many))


def _faster(
    program: Program, target: Target, sizes: Sequence[int], worth: float
) -> tuple[Program, list[Derivation]]:
    constants = {t.name: key for t, key in program.constants}
    names = Names(set(program.tensors))
    body: list[Statement] = []
    added: list[tuple[Tensor, str]] = []
    values = dict(program.values)
    found: list[Derivation] = []
    made: dict[int, dict[str, str]] = {}
    convolutions = {
        k: c
        for k, s in enumerate(program.body)
        if isinstance(s, Definition) and (c := _convolution(s, constants)) is not None
    }
    held = sum(
        float(prod(int_extent(n) for n in t.shape)) * t.dtype.bytes for t, _ in program.constants
    )
    room = max(_SHARE * held, _ROOM) if worth else float("inf")
    chosen = _chosen(convolutions, target, sizes, worth, room)
    for k, s in enumerate(program.body):
        if k not in chosen:
            body.append(s)
            continue
        c, (m, gain) = convolutions[k], chosen[k]
        at, g, bt = (_array(t) for t in tables(m, 3))
        if m not in made:
            made[m] = {}
            for name, table in (("at", at), ("bt", bt)):
                array = table.astype(np.float32)
                full, table_shape = names.new(f"table_{name}{m}"), tuple(map(E.const, array.shape))
                added.append((Tensor(full, F32, table_shape), array_key(array)))
                values[array_key(array)] = array
                made[m][name] = full
        definitions, wide = _rewrite(c, m, names, made[m])
        key = _derived_key(c.key, c, m)
        shape = (*[m + 2] * len(c.windows), *(int_extent(a.extent) for a in (*c.depth, *c.columns)))
        added.append((Tensor(wide, F32, tuple(map(E.const, shape))), key))
        if c.key in values and key not in values:
            values[key] = _transformed(np.asarray(values[c.key]), c, g)
        body += definitions
        form = "x".join([f"F({m},3)"] * len(c.windows))
        reason = f"{form}, estimated {gain:.2f}x the plain form"
        found.append(Derivation("bilinear", c.d.name, reason))
    if not found:
        return program, []
    return rewritten(program, body, added, values), found
