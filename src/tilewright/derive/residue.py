"""Residue split: a sum over every s-th tap, as a sum over taps that are all used.

In: a bound Program, a Target. Out: the Program with such reductions written by phases, and what was
done. Invariants: the same contributions reach every output, so the new definition is equal to the
old one for every input, up to the order of the reduction; a constant is named after the constant
it comes from; nothing here knows an operator.

The rule. In a reduction over taps r under the condition (a*h + b*r + c) % s == 0, only every
s / gcd(b, s)-th tap reaches an output, and which ones depends on the phase p of h alone: with
h = t*h' + p, t = s / gcd(a, s), the condition is r = u*r' + q(p), u = s / gcd(b, s), where q is a
table of t numbers. Then a quotient of a*h + b*r + c by s is linear in h' and r' plus a number that
depends on p, so that a transposed convolution becomes one dense convolution per phase. Phases that
no tap reaches keep the part of the condition that says so. Several such pairs of an output axis
and a tap are split at once.

What the taps index alone (the weights) is put into the order of phases: at build where it is
constant. The output keeps its axes: h' and p stand in the text as h // t and h % t, and a kernel
whose subscripts divide an axis splits it (group/merge.py). Where t does not divide the extent, the
definition is made a little longer, and a part of it is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd, prod
from typing import Any

import numpy as np

from tilewright.derive import Derivation, Names, rewritten
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr
from tilewright.ir.kernel import int_extent
from tilewright.ir.program import (
    Axis,
    Definition,
    Program,
    Reduction,
    Statement,
    Tensor,
)
from tilewright.ir.ranges import interval, simplify
from tilewright.ir.scalar import evaluate
from tilewright.machine.target import Target

__all__ = ["split_residues"]

Array = np.ndarray[Any, np.dtype[Any]]

WORTH = 1.15  # estimated gain below which the plain form stays
MASKED = 4.0  # cost of a contribution whose operands are gathered under a mask; a dense one has 1
LIMIT = 64  # phases of one axis
REUSE = 8  # a copy of weights that are not constant pays where each is used so many times


@dataclass(frozen=True)
class _Pair:
    """`(a*out + b*tap + c) % s == 0`; without `out` the condition picks taps for all outputs,
    without `tap` it picks outputs.
    """

    out: Axis | None
    tap: Axis | None
    a: int
    b: int
    c: int
    s: int

    @property
    def phases(self) -> int:
        return self.s // gcd(self.a, self.s)

    @property
    def step(self) -> int:
        """Between one tap and the next of a phase."""
        return self.s // gcd(self.b, self.s)

    def first(self, phase: int) -> int | None:
        """The first tap of a phase, below `step`; None where no tap reaches it."""
        fits = [r for r in range(self.step) if (self.a * phase + self.b * r + self.c) % self.s == 0]
        return fits[0] if fits else None

    @property
    def taps(self) -> int:
        """The most taps that a phase has."""
        n = 1 if self.tap is None else int_extent(self.tap.extent)
        firsts = [f for p in range(self.phases) if (f := self.first(p)) is not None]
        return max((-(-(n - f) // self.step) for f in firsts), default=0)


# ---- recognition ---------------------------------------------------------------------------------


def _conditional(d: Definition) -> tuple[list[Expr], Expr] | None:
    """Conditions under which a contribution counts, and the contribution."""
    r = d.reduction
    if r is None or not r.axes or r.monoid.startswith("arg") or d.scan is not None:
        return None
    conditions = [] if r.guard is None else list(E.conjuncts(r.guard))
    body = d.body
    while r.monoid == "sum" and body.op == "select":
        condition, then, other = body.args
        if other.op != "const" or other.attr != 0:
            break
        conditions += E.conjuncts(condition)
        body = then
    return (conditions, body) if conditions else None


def _pair(condition: Expr, outs: Mapping[str, Axis], taps: Mapping[str, Axis]) -> _Pair | None:
    """A condition on one output axis, one tap, or one of each; else None."""
    if condition.op != "eq" or condition.args[0].dtype is not I64:
        return None
    left, right = condition.args
    if left.op == "const":
        left, right = right, left
    s, wanted = (E.int_value(left.args[1]) if left.op == "mod" else None), E.int_value(right)
    if s is None or wanted is None or not 2 <= s <= LIMIT or not 0 <= wanted < s:
        return None
    terms = dict(E.polynomial(left.args[0]))
    c = terms.pop((), 0) - wanted
    if any(len(k) != 1 or k[0].op != "index" for k in terms):
        return None
    by = {k[0].attr: v for k, v in terms.items()}
    tap = [n for n in by if n in taps and by[n] % s]
    out = [n for n in by if n in outs and by[n] % s]
    if len(tap) > 1 or len(out) > 1 or len(by) != len(tap) + len(out) or not by:
        return None
    a, b = (by[names[0]] if names else 0 for names in (out, tap))
    return _Pair(outs[out[0]] if out else None, taps[tap[0]] if tap else None, a, b, c, s)


def _pairs(d: Definition, conditions: Sequence[Expr]) -> tuple[list[_Pair], list[Expr]]:
    """The pairs of a definition, no axis in two of them, and the other conditions."""
    assert d.reduction is not None
    outs = {a.name: a for a in d.axes}
    taps = {a.name: a for a in d.reduction.axes}
    pairs: list[_Pair] = []
    rest: list[Expr] = []
    for condition in conditions:
        found = _pair(condition, outs, taps)
        if found is None:
            rest.append(condition)
            continue
        if found.tap is not None:
            taps.pop(found.tap.name)
        if found.out is not None:
            outs.pop(found.out.name)
        pairs.append(found)
    return pairs, rest


# ---- numbers of a phase --------------------------------------------------------------------------


def _closed(values: Sequence[int], p: Expr) -> Expr | None:
    """An expression in p that has these values at 0, 1, ...: linear if there is one, then a
    quotient, then a remainder.
    """
    n, first = len(values), values[0]
    slope = values[1] - first if n > 1 else 0
    if all(v == first + slope * k for k, v in enumerate(values)):
        return p * slope + first
    for m in range(2, n + 1):
        for u in (1, -1):
            for c in range(m):
                shift = first - c // m
                if all(v == (u * k + c) // m + shift for k, v in enumerate(values)):
                    return E.floordiv(p * u + c, E.const(m)) + shift
    low = min(values)
    m = max(values) - low + 1
    for u in range(1, m):
        c = first - low
        if all(v - low == (u * k + c) % m for k, v in enumerate(values)):
            return E.mod(p * u + c, E.const(m)) + low
    return None


def _close(e: Expr, phases: Mapping[str, int]) -> Expr:
    """`e` with what depends on one phase alone in the simplest form that `_closed` knows."""
    memo: dict[Expr, Expr] = {}

    def alone(x: Expr) -> Expr:
        (name,) = x.indices()
        p = E.index(name)
        found = [E.int_value(E.substitute(x, {p: E.const(k)})) for k in range(phases[name])]
        values = [v for v in found if v is not None]
        closed = _closed(values, p) if len(values) == len(found) else None
        return x if closed is None else closed

    def own_of(*atoms: Expr) -> str:
        """The one phase that all of them depend on, and nothing else; "" where there is none."""
        used = frozenset[str]().union(*(a.indices() for a in atoms))
        return next(iter(used)) if len(used) == 1 and used <= set(phases) else ""

    def go(x: Expr) -> Expr:
        if not x.args or not x.indices() & set(phases):
            return x
        hit = memo.get(x)
        if hit is None:
            if x.dtype is I64 and own_of(x):
                hit = alone(x)
            elif x.dtype is I64 and x.op in ("add", "mul"):
                parts: dict[str, dict[tuple[Expr, ...], int]] = {}
                for atoms, v in E.polynomial(x).items():
                    own = own_of(*atoms)
                    atoms = atoms if own else tuple(map(go, atoms))
                    part = parts.setdefault(own, {})
                    part[atoms] = part.get(atoms, 0) + v
                hit = E.const(0)
                for own, part in parts.items():
                    piece = E.from_polynomial(part)
                    hit = hit + (alone(piece) if own else piece)
            else:
                hit = E.rebuild(x, tuple(map(go, x.args)))
            memo[x] = hit
        return hit

    return go(e)


# ---- rewriting -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    """A definition by phases: axes stand for themselves until `back` puts the outputs in."""

    d: Definition
    pairs: tuple[_Pair, ...]
    body: Expr  # over `outer`, `phase` and taps of the new extents
    guard: Expr  # true where there is none
    over: tuple[Axis, ...]
    phase: tuple[Axis, ...]  # one per pair; of one point where it has no output axis
    outer: Mapping[Expr, Expr]  # h' -> h // t, p -> h % t

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Output axes, as many points of each as there are in whole periods."""
        period = {x.out.name: x.phases for x in self.pairs if x.out is not None}

        def whole(a: Axis) -> Axis:
            t = period.get(a.name, 1)
            return Axis(a.name, E.const(-(-int_extent(a.extent) // t) * t)) if t > 1 else a

        return tuple(map(whole, self.d.axes))


def _split(d: Definition, taken: Iterable[str]) -> _Split | None:
    """The definition by phases, or None where it has no conditions of this kind. taken: names that
    axes may not have.
    """
    found = _conditional(d)
    if found is None or any(int_extent(a.extent) < 1 for a in d.all_axes):
        return None
    conditions, body = found
    pairs, rest = _pairs(d, conditions)
    if not pairs or any(x.taps < 1 for x in pairs):
        return None
    assert d.reduction is not None
    names = Names({*taken, *(a.name for a in d.all_axes)})
    swap: dict[Expr, Expr] = {}
    outer: dict[Expr, Expr] = {}
    ranges = {a.name: (0, int_extent(a.extent) - 1) for a in d.all_axes}
    many: dict[str, int] = {}
    phase: list[Axis] = []
    taps: dict[str, Axis] = {}
    guards: list[Expr] = []
    for x in pairs:
        p = Axis(names.new(f"p{len(phase)}"), E.const(x.phases))
        phase.append(p)
        many[p.name] = x.phases
        ranges[p.name] = (0, x.phases - 1)
        value = E.const(0)
        if x.out is not None:
            h = Axis(names.new(f"{x.out.name}_h"), x.out.extent)
            ranges[h.name] = (0, -(-int_extent(x.out.extent) // x.phases) - 1)
            swap[x.out.index] = h.index * x.phases + p.index
            outer[h.index] = E.floordiv(x.out.index, E.const(x.phases))
            value = p.index
        outer[p.index] = E.const(0) if x.out is None else E.mod(x.out.index, E.const(x.phases))
        g = gcd(x.b, x.s)
        firsts = [x.first(k) for k in range(x.phases)]
        if None in firsts:
            guards.append(E.compare("eq", E.mod(value * x.a + x.c, E.const(g)), E.const(0)))
        if x.tap is None:
            continue
        n, count = int_extent(x.tap.extent), x.taps
        taps[x.tap.name] = Axis(x.tap.name, E.const(count))
        ranges[x.tap.name] = (0, count - 1)
        # b*r = -(a*p + c) modulo s: the first tap is the remainder of a multiple of (a*p + c) / g.
        inverse = pow(x.b // g, -1, x.step) if x.step > 1 else 0
        q = E.mod(E.floordiv(value * -x.a - x.c, E.const(g)) * inverse, E.const(x.step))
        # Where no tap reaches a phase, any number will do; its contributions are left out.
        q = _closed([0 if f is None else f for f in firsts], p.index) or q
        tap = x.tap.index * x.step + q
        swap[x.tap.index] = tap
        if any(f is not None and f + (count - 1) * x.step >= n for f in firsts):
            guards.append(E.compare("lt", tap, E.const(n)))

    def go(e: Expr) -> Expr:
        return _close(simplify(e, ranges), many)

    guard = E.const(True)
    for e in (*(E.substitute(e, swap) for e in rest), *guards):
        guard = E.logical("and", guard, go(e))
    over = tuple(taps.get(a.name, a) for a in d.reduction.axes)
    body = go(E.substitute(body, swap))
    return _Split(d, tuple(pairs), body, guard, over, tuple(phase), outer)


# ---- weights -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weights:
    """A read that taps index alone, and the tensor in the order of phases that takes its place.

    axes: of that tensor: phases, taps, the other axes of what is read. body: reads the old one.
    """

    old: Expr
    axes: tuple[Axis, ...]
    body: Expr
    at: tuple[Expr, ...]

    def reordered(self, k: Array) -> Array:
        """The value of the tensor from that of the old one; zeros where the old one ends."""
        shape = [int_extent(a.extent) for a in self.axes]
        grids = np.meshgrid(*map(np.arange, shape), indexing="ij", sparse=True)
        env = {a.name: g for a, g in zip(self.axes, grids, strict=True)}

        def go(e: Expr) -> Array:
            if e.op == "const":
                return np.asarray(e.attr, np.int64)
            return env[e.attr] if e.op == "index" else evaluate(e.op, [*map(go, e.args)], e.dtype)

        subs = [go(s) for s in self.body.args[: k.ndim]]
        inside = [(s >= 0) & (s < n) for s, n in zip(subs, k.shape, strict=True)]
        held = k[tuple(np.clip(s, 0, n - 1) for s, n in zip(subs, k.shape, strict=True))]
        return np.where(reduce(np.logical_and, inside), held, np.zeros((), k.dtype))

    def key(self, old: str) -> str:
        """Name of the constant: it follows from the old one and the order alone."""
        swap = {a.index: E.index(f"a{i}") for i, a in enumerate(self.axes)}
        subs = [E.substitute(s, swap) for s in self.body.args]
        shape = [a.extent for a in self.axes]
        text = f"[{', '.join(map(str, subs))}] of {old} over {shape}"
        return hashlib.sha256(text.encode()).hexdigest()


def _weights(x: _Split, tensors: Mapping[str, Tensor]) -> list[_Weights]:
    """Reads whose taps stand in subscripts of their own."""
    by_tap = {q.tap.name for q in x.pairs if q.tap is not None}
    moved = {a.name: a for a in (*x.over, *x.phase)}
    special = {*by_tap, *(a.name for a in x.phase)}
    out: list[_Weights] = []
    for r in x.body.reads():
        if r.attr[1]:
            continue
        tapped = [i for i, s in enumerate(r.args) if s.indices() & by_tap]
        used = [r.args[i].indices() for i in tapped]
        rest = [s for i, s in enumerate(r.args) if i not in tapped]
        if (
            not tapped
            or any(
                not names <= special or r.args[i].reads()
                for i, names in zip(tapped, used, strict=True)
            )
            or len(set().union(*used)) != sum(map(len, used))
            or any(s.indices() & special for s in rest)
        ):
            continue
        names = sorted(set().union(*used), key=list(moved).index)
        phases = [moved[n] for n in names if n not in by_tap]
        taps = [moved[n] for n in names if n in by_tap]
        shape = tensors[r.attr[0]].shape
        fresh = Names({*tensors, *moved})
        others = {
            i: Axis(fresh.new(f"x{i}"), shape[i]) for i in range(len(shape)) if i not in tapped
        }
        subs = [others[i].index if i in others else s for i, s in enumerate(r.args)]
        axes = (*phases, *taps, *others.values())
        inside = all(
            lo is not None and hi is not None and 0 <= lo and hi < int_extent(shape[i])
            for i in tapped
            for lo, hi in [interval(subs[i], {a.name: (0, int_extent(a.extent) - 1) for a in axes})]
        )
        zero = None if inside else E.const(0, r.dtype)
        at = (*(a.index for a in (*phases, *taps)), *rest)
        out.append(_Weights(r, axes, E.read(r.attr[0], subs, r.dtype, zero), at))
    return out


# ---- cost ----------------------------------------------------------------------------------------


def _pays(x: _Split, w: _Weights, known: Collection[str]) -> bool:
    """Is the order of phases worth a copy of the weights?"""
    points = prod(int_extent(a.extent) for a in (*x.axes, *x.over))
    many = prod(int_extent(a.extent) for a in w.axes)
    return w.old.attr[0] in known or points >= REUSE * many


def _gain(x: _Split, weights: Sequence[_Weights], known: Collection[str], target: Target) -> float:
    """Estimated time of the plain form over that of phases."""
    lanes = target.lanes(8 * x.d.dtype.bytes)
    plain = prod(int_extent(a.extent) for a in x.d.all_axes) * MASKED / lanes
    points = prod(int_extent(a.extent) for a in x.axes)
    split = points * prod(int_extent(a.extent) for a in x.over) / lanes
    if x.axes != x.d.axes:
        split += 2 * points / lanes
    for w in weights:
        if w.old.attr[0] not in known:
            split += 4 * prod(int_extent(a.extent) for a in w.axes) / lanes
    return plain / split


def split_residues(
    program: Program, target: Target, *, worth: float = WORTH
) -> tuple[Program, list[Derivation]]:
    """The Program with each reduction over every s-th tap written by phases, where that pays.

    worth: estimated gain below which the plain form stays; 0 rewrites whatever the rule matches.

    Only definitions at the top level of programs whose sizes are all fixed. The values of new
    constants are made where the old ones are known.
    """
    if program.dims:
        return program, []
    constants = {t.name: key for t, key in program.constants}
    tensors = dict(program.tensors)
    names = Names(set(tensors))
    body: list[Statement] = []
    added: list[tuple[Tensor, str]] = []
    values = dict(program.values)
    found: list[Derivation] = []
    for s in program.body:
        x = _split(s, names.taken) if isinstance(s, Definition) else None
        if x is None:
            body.append(s)
            continue
        weights = [w for w in _weights(x, tensors) if _pays(x, w, constants)]
        gain = _gain(x, weights, constants, target)
        if gain < worth:
            body.append(s)
            continue
        swap: dict[Expr, Expr] = {}
        for w in weights:
            old = w.old.attr[0]
            shape = tuple(a.extent for a in w.axes)
            name = names.new(f"{old}_phases")
            swap[w.old] = E.read(name, w.at, w.old.dtype)
            if old in constants:
                key = w.key(constants[old])
                added.append((Tensor(name, w.old.dtype, shape), key))
                if constants[old] in values and key not in values:
                    values[key] = w.reordered(np.asarray(values[constants[old]]))
            else:
                body.append(Definition(name, w.old.dtype, w.axes, w.body))
        body += _written(x, swap, names)
        axes = "x".join(str(p.phases) for p in x.pairs)
        reason = f"{axes} phases with the taps of each, estimated {gain:.2f}x the plain form"
        found.append(Derivation("residue", x.d.name, reason))
    if not found:
        return program, []
    return rewritten(program, body, added, values), found


def _written(x: _Split, swap: Mapping[Expr, Expr], names: Names) -> list[Definition]:
    """The definition with its own output axes, and the part of it that is asked for if it is
    longer.
    """
    d, axes = x.d, x.axes
    assert d.reduction is not None
    whole = axes == d.axes

    def go(e: Expr) -> Expr:
        e = E.substitute(E.substitute(e, swap), x.outer)
        return e if whole else _bounded(e)

    guard = None if x.guard.op == "const" and x.guard.attr else go(x.guard)
    reduction = Reduction(d.reduction.monoid, x.over, guard)
    name = d.name if whole else names.new(f"{d.name}_whole")
    out = [Definition(name, d.dtype, axes, go(x.body), reduction)]
    if not whole:
        part = E.read(name, [a.index for a in d.axes], d.dtype)
        out.append(Definition(d.name, d.dtype, d.axes, part))
    return out


def _bounded(e: Expr) -> Expr:
    """`e` with zeros where a read leaves its tensor: points behind the last one are thrown away."""
    memo: dict[Expr, Expr] = {}
    for r in e.reads():
        args = tuple(E.substitute(a, memo) for a in r.args)
        if r.attr[1]:
            memo[r] = E.read(r.attr[0], args[:-1], r.dtype, args[-1])
        else:
            memo[r] = E.read(r.attr[0], args, r.dtype, E.const(0, r.dtype))
    return E.substitute(e, memo)
