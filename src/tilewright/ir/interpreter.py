"""The fast interpreter: the meaning of a Program, and the oracle of every check.

In: a Program and input arrays. Out: its results, floats in float64 (f64: longdouble), integers
exact in their own type; or, as `naive`, floats in the accumulation type in plain evaluation order.
Invariants: intermediates are freed after their last use; general expressions are evaluated in
blocks of at most 64 MB. The meaning of each statement is in ir/program.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from math import prod
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.binding import (
    NAIVE,
    ORACLE,
    Array,
    Numerics,
    bind_sizes,
    define_size,
    gather_arrays,
    handed_out,
    size_of,
)
from tilewright.ir.contraction import Contraction, contraction_of
from tilewright.ir.dtypes import I64
from tilewright.ir.evaluate import Evaluator, Frame, Probe, Shake
from tilewright.ir.expr import Expr
from tilewright.ir.monoids import (
    better,
    combine,
    fold,
    fold_position,
    identity_array,
    prefix,
    scatter_into,
)
from tilewright.ir.program import (
    Axis,
    Block,
    Definition,
    Extern,
    If,
    Program,
    Recurrence,
    Reduction,
    Scatter,
    Size,
    Statement,
    While,
    defined_by,
    map_statement,
    statement_reads,
)
from tilewright.ir.ranges import simplify

__all__ = ["Runner", "last_uses", "run_extern", "run_program"]

_BLOCK = 1 << 19  # index points of an elementwise block: 4 MB of float64, so that it stays in cache
_FOLD_BLOCK = 1 << 21  # index points of a reduction's block: 16 MB of float64


def run_program(
    program: Program,
    inputs: Mapping[str, Array],
    *,
    precision: str = "oracle",
    values: Mapping[str, Array] | None = None,
    keep: Collection[str] = (),
    dims: Mapping[str, int] | None = None,
) -> list[Array]:
    """The results of `program`, then the tensors named in `keep`, sorted by name.

    values: constants by `array_key`, before `program.values`. dims: sizes that no input shows.
    Errors: R001 to R004 for inputs; P001 for a read outside its tensor or an empty argmax.
    """
    numerics = {"oracle": ORACLE, "naive": NAIVE}[precision]
    sizes = bind_sizes(program, {n: np.asarray(a).shape for n, a in inputs.items()}, dims)
    wanted = [*program.results, *sorted(keep)]
    last = last_uses(program, wanted)
    arrays = {
        n: a
        for n, a in gather_arrays(program, inputs, values, numerics).items()
        if n in last or n in wanted
    }
    runner = Runner(arrays, sizes, numerics)
    with np.errstate(all="ignore"):
        for k, s in enumerate(program.body):
            runner.statement(s)
            for name in [n for n, at in last.items() if at == k]:
                arrays.pop(name, None)
    given = {n for n in wanted if n in inputs}
    return [arrays[n].copy() if n in given else arrays[n] for n in wanted]


def last_uses(program: Program, wanted: list[str]) -> dict[str, int]:
    """Tensor -> the last statement that reads (or only defines) it; results are left out."""
    last: dict[str, int] = {}
    for k, s in enumerate(program.body):
        names = {t.name for t in defined_by(s)} | statement_reads(s)
        last.update((n, k) for n in names)
    for name in wanted:
        last.pop(name, None)
    return last


def run_extern(
    s: Extern, arrays: dict[str, Array], sizes: dict[str, int], numerics: Numerics
) -> None:
    """Call the NumPy meaning of an extern; sizes that its results define are bound."""
    meanings: dict[str, Any] = import_module("tilewright.ir.externs").EXTERNS
    if s.function not in meanings:
        raise UserError("P001", f"unknown extern {s.function!r}", where=str(s))
    with np.errstate(all="ignore"):
        found = meanings[s.function](*(arrays[a] for a in s.args), **dict(s.attributes))
    results = found if isinstance(found, (tuple, list)) else (found,)
    for t, value in zip(s.results, results, strict=True):
        array = np.asarray(value)
        for e, n in zip(t.shape, array.shape, strict=True):
            if e.op == "dim":
                sizes.setdefault(e.attr, n)
        shape = tuple(size_of(e, sizes, s) for e in t.shape)
        if array.shape != shape:
            message = f"{s.function} gave {list(array.shape)} for {t}, expected {list(shape)}"
            raise UserError("P001", message, where=str(s))
        arrays[t.name] = np.ascontiguousarray(array.astype(numerics.work(t.dtype))).reshape(shape)


class Runner:
    """Runs statements one by one against `arrays`; `probe` sees operands of discrete operations."""

    def __init__(self, arrays: dict[str, Array], sizes: dict[str, int], numerics: Numerics) -> None:
        self.arrays, self.sizes, self.numerics = arrays, sizes, numerics
        self.probe: Probe | None = None
        self.shake: Shake | None = None

    def job(self, d: Definition, step: str | None = None) -> _Job:
        made = _Job(d, self.arrays, self.numerics, step)
        made.evaluator.probe, made.evaluator.shake = self.probe, self.shake
        return made

    def statement(self, s: Statement) -> None:
        match s:
            case Extern():
                run_extern(s, self.arrays, self.sizes, self.numerics)
                return
            case Size():
                define_size(s, self.arrays, self.sizes)
                return
            case If():
                chosen = s.then if self.arrays[s.condition][()] else s.orelse
                for t, value in zip(s.results, self.block(chosen), strict=True):
                    self.arrays[t.name] = handed_out(value, t, self.sizes, s)
                return
            case While():
                self.loop(s)
                return
        bound = self.bound(s)
        match bound:
            case Definition():
                job = self.job(bound)
                self.arrays[bound.name] = job.finished(job.run(job.outer))
            case Recurrence():
                self.recurrence(bound)
            case Scatter():
                self.scatter(bound)

    def bound(self, s: Statement) -> Statement:
        """The statement with the sizes that are known in place of their names."""
        known = {E.dim(n): E.const(v) for n, v in self.sizes.items()}
        return map_statement(s, lambda e: E.substitute(e, known)) if known else s

    def block(self, b: Block) -> list[Array]:
        """Run a block's statements; what it hands out."""
        for s in b.body:
            self.statement(s)
        out = [self.arrays[name] for name in b.results]
        for s in b.body:
            for t in defined_by(s):
                self.arrays.pop(t.name, None)
        return out

    def loop(self, s: While) -> None:
        limit, n = size_of(s.axis.extent, self.sizes, s), len(s.carries)
        values = [self.arrays[c.initial] for c in s.carries]
        rows: list[list[Array]] = []
        go = np.asarray(True) if not s.condition else self.arrays[s.condition]
        block = s.block if not s.proceed else Block(s.block.body, (*s.block.results, s.proceed))
        while len(rows) < limit and go:
            self.arrays[s.axis.name] = np.asarray(len(rows), np.int64)
            for c, v in zip(s.carries, values, strict=True):
                self.arrays[c.tensor.name] = handed_out(v, c.tensor, self.sizes, s)
            handed = self.block(block)
            go = handed.pop() if s.proceed else go
            values = handed[:n]
            rows.append(handed[n:])
        self.arrays[s.axis.name] = np.asarray(len(rows), np.int64)
        for c in s.carries:
            self.arrays.pop(c.tensor.name, None)
        for t, v in zip(s.results, values, strict=False):
            self.arrays[t.name] = handed_out(v, t, self.sizes, s)
        for k, t in enumerate(s.results[n:]):
            shape = tuple(size_of(e, self.sizes, s) for e in t.shape)
            stack = self.arrays[t.name] = np.zeros(shape, self.numerics.work(t.dtype))
            for at, row in enumerate(rows):
                stack[at] = row[k]

    def recurrence(self, s: Recurrence) -> None:
        steps = size_of(s.axis.extent, {}, s)
        jobs = [self.job(d, s.axis.name) for d in s.definitions]
        done: dict[str, int] = {}
        for job in jobs:
            job.evaluator.finished = done
            done[job.d.name] = 0
            self.arrays[job.d.name] = np.zeros(job.shape, self.numerics.work(job.d.dtype))
        for t in range(steps):
            for job in jobs:
                outer = Frame(job.outer.names, ((t, t + 1), *job.outer.ranges[1:]))
                target = self.arrays[job.d.name]
                target[t : t + 1] = job.finished(job.run(outer), step=True)
                done[job.d.name] = t + 1

    def scatter(self, s: Scatter) -> None:
        evaluator = Evaluator(self.arrays, self.numerics, s, self.numerics.name == "oracle")
        evaluator.probe = self.probe
        job = self.job(Definition(s.name, s.dtype, s.axes, s.base))
        target = job.run(job.outer)
        frame = _frame(s.source, s)
        for box in _blocks(frame, _BLOCK) if frame.size else ():
            places = [
                np.broadcast_to(evaluator.value(e, box), box.shape).reshape(-1)
                for e in s.subscripts
            ]
            ok = np.ones(box.size, np.bool_)
            for p, n in zip(places, target.shape, strict=True):
                ok &= (p >= 0) & (p < n)
            values = np.broadcast_to(evaluator.value(s.body, box, ok.reshape(box.shape)), box.shape)
            place = tuple(p[ok] for p in places)
            scatter_into(s.monoid, target, place, values.reshape(-1)[ok])
        self.arrays[s.name] = self.numerics.store(target, s.dtype)


def _frame(axes: tuple[Axis, ...], where: object) -> Frame:
    ranges = tuple((0, size_of(a.extent, {}, where)) for a in axes)
    return Frame(tuple(a.name for a in axes), ranges)


def _blocks(frame: Frame, limit: int) -> Iterator[Frame]:
    """Sub-boxes of at most `limit` points where possible, in row-major order of their points."""
    steps = list(frame.shape)
    for k, n in enumerate(frame.shape):
        rest = prod(steps[k + 1 :])
        steps[k] = max(1, min(n, limit // max(rest, 1)))
        if steps[k] * rest <= limit:
            break
    ranges = [
        [(k, min(k + step, hi)) for k in range(lo, hi, step)]
        for step, (lo, hi) in zip(steps, frame.ranges, strict=True)
    ]
    for picked in itertools.product(*ranges):
        yield Frame(frame.names, picked)


class _Job:
    """One definition, its sizes known, ready to run over boxes of its output axes."""

    def __init__(
        self, d: Definition, arrays: dict[str, Array], numerics: Numerics, step: str | None = None
    ) -> None:
        self.d, self.numerics = d, numerics
        self.evaluator = Evaluator(arrays, numerics, d, numerics.name == "oracle")
        whole = _frame(d.axes, d)
        self.shape = whole.shape
        if d.reduction is not None:
            _frame(d.reduction.axes, d)
        self.split = _split_axes(d, step)
        self.outer = _frame(self.split.axes, d)
        r = self.split.reduction
        self.inner = _frame(r.axes, d) if r is not None else Frame((), ())
        self.contraction: Contraction | None = None
        if r is not None and r.monoid == "sum":
            extents = dict(zip(self.outer.names, self.outer.shape, strict=True))
            extents.update(zip(self.inner.names, self.inner.shape, strict=True))
            self.contraction = contraction_of(self.split.body, r.guard, extents)

    def run(self, outer: Frame) -> Array:
        """The definition over `outer`, before its prefix scan."""
        out = np.empty(outer.shape, self.numerics.work(self.d.dtype))
        if out.size == 0:
            return out
        r = self.split.reduction
        if r is None:
            for box in _blocks(outer, _BLOCK):
                out[_place(box, outer)] = self.evaluator.value(self.split.body, box)
            return out
        if self.inner.size == 0:
            self.nothing_to_choose(r, True)
            out[...] = identity_array(r.monoid, self.d.dtype, (), out.dtype)
            return out
        # Products of a contraction are no operations of their own: a shaken one goes term by term,
        # unless that would take long.
        shaken = self.evaluator.shake is not None and outer.size * self.inner.size <= _BLOCK
        if (
            self.contraction is None
            or shaken
            or not self.contraction.run(self.evaluator, outer, self.inner, out)
        ):
            for box in _blocks(outer, max(1, _FOLD_BLOCK // self.inner.size)):
                position = r.monoid in ("argmax", "argmin")
                part = self.positions(box, r) if position else self.folded(box, r)
                out[_place(box, outer)] = part
        return out

    def finished(self, out: Array, step: bool = False) -> Array:
        """`out` in the definition's own shape, prefixes taken, as it is stored."""
        out = out.reshape((1, *self.shape[1:]) if step else self.shape)
        if self.d.scan is not None:
            monoid, name = self.d.scan
            shake = self.evaluator.shake
            if shake is not None and out.dtype.kind == "f" and monoid not in ("max", "min"):
                out = shake(self.d.body, out)
            out = prefix(monoid, out, [a.name for a in self.d.axes].index(name))
        return np.ascontiguousarray(self.numerics.store(out, self.d.dtype)).reshape(out.shape)

    def nothing_to_choose(self, r: Reduction, empty: bool) -> None:
        if empty and r.monoid in ("argmax", "argmin"):
            raise UserError("P001", f"{r.monoid} of nothing in {self.d.name!r}", where=str(self.d))

    def contributions(self, box: Frame, part: Frame, r: Reduction) -> tuple[Array, Array | None]:
        """Body and guard over the block `part` of the reduce axes, in full shape."""
        frame = Frame(box.names + part.names, box.ranges + part.ranges)
        guard = None if r.guard is None else self.evaluator.value(r.guard, frame)
        if guard is not None and guard.all():
            guard = None
        body = self.evaluator.value(self.split.body, frame, guard)
        return np.broadcast_to(body, frame.shape), guard

    def folded(self, box: Frame, r: Reduction) -> Array:
        total: Array | None = None
        for part in _blocks(self.inner, max(1, _FOLD_BLOCK // box.size)):
            x, guard = self.contributions(box, part, r)
            nothing = identity_array(r.monoid, self.d.dtype, (), x.dtype)
            if guard is not None:
                x = np.where(guard, x, nothing)
            shake = self.evaluator.shake
            if shake is not None and x.dtype.kind == "f" and r.monoid not in ("max", "min"):
                x = shake(self.split.body, x, r.monoid, len(part.names))  # each step rounds, too
                if guard is not None:
                    x = np.where(guard, x, nothing)
            y = fold(r.monoid, x, len(part.names), self.numerics.name == "naive")
            total = y if total is None else combine(r.monoid, total, y)
        assert total is not None
        return total

    def positions(self, box: Frame, r: Reduction) -> Array:
        best: tuple[Array, Array, Array] | None = None
        offset = 0
        for part in _blocks(self.inner, max(1, _FOLD_BLOCK // box.size)):
            x, guard = self.contributions(box, part, r)
            if guard is not None:
                guard = np.broadcast_to(guard, x.shape).reshape(*box.shape, -1)
            x = x.reshape(*box.shape, -1)
            if self.evaluator.probe is not None and x.dtype.kind == "f":
                frame = Frame(box.names + part.names, box.ranges + part.ranges)
                x = self.evaluator.probe(
                    self.split.body, -1 if r.monoid == "argmax" else -2, frame, x
                )
            value, place, found = fold_position(r.monoid, x, guard)
            place = place + offset
            offset += part.size
            if best is not None:
                take = found & (~best[2] | better(r.monoid, value, best[0]))
                value, place = np.where(take, value, best[0]), np.where(take, place, best[1])
                found = found | best[2]
            best = (value, place, found)
        assert best is not None
        self.nothing_to_choose(r, not best[2].all())
        return best[1]


def _place(box: Frame, whole: Frame) -> tuple[slice, ...]:
    pairs = zip(box.ranges, whole.ranges, strict=True)
    return tuple(slice(lo - start, hi - start) for (lo, hi), (start, _) in pairs)


# ---- splitting axes ------------------------------------------------------------------------------


def _split_axes(d: Definition, step: str | None) -> Definition:
    """`d` with every axis `a` in an a // c or a % c split there: subscripts become affine.

    The parts of an axis are adjacent and in order, so shapes merge back by a reshape and positions
    in the reduce axes stay what they were. The axis `step` of a recurrence is left alone.
    """
    ranges = {a.name: (0, size_of(a.extent, {}, d) - 1) for a in d.all_axes}
    if any(hi < 0 for _, hi in ranges.values()):
        return replace(d, scan=None)
    r = d.reduction
    parts = [d.body] + ([r.guard] if r is not None and r.guard is not None else [])
    cuts = _cuts([simplify(e, ranges) for e in parts])
    mapping: dict[Expr, Expr] = {}
    split: dict[str, tuple[Axis, ...]] = {}
    for a in d.all_axes:
        extent = ranges[a.name][1] + 1
        chain = sorted(c for c in cuts.get(a.name, ()) if c < extent)
        whole = [*chain, extent]
        if not chain or a.name == step or any(y % x for x, y in itertools.pairwise(whole)):
            continue
        names = [f"{a.name}%{k}" for k in range(len(whole), 0, -1)]
        bounds = [y // x for x, y in itertools.pairwise([1, *whole])][::-1]
        split[a.name] = tuple(Axis(n, E.const(b)) for n, b in zip(names, bounds, strict=True))
        weights = [1, *chain][::-1]
        total = E.const(0)
        for n, w, b in zip(names, weights, bounds, strict=True):
            total = total + E.index(n) * w
            ranges[n] = (0, b - 1)
        mapping[E.index(a.name)] = total

    def go(e: Expr) -> Expr:
        return simplify(E.substitute(e, mapping), ranges)

    def axes(xs: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(y for x in xs for y in split.get(x.name, (x,)))

    if r is not None:
        r = Reduction(r.monoid, axes(r.axes), None if r.guard is None else go(r.guard))
    return replace(d, axes=axes(d.axes), body=go(d.body), reduction=r, scan=None)


def _cuts(parts: list[Expr]) -> dict[str, set[int]]:
    """Index variable -> the constants at which it is divided."""
    out: dict[str, set[int]] = {}
    for node in itertools.chain.from_iterable(e.walk() for e in parts):
        if node.op not in ("floordiv", "mod") or node.dtype is not I64:
            continue
        x, c = node.args[0], E.int_value(node.args[1])
        width = 1
        if x.op == "floordiv" and (E.int_value(x.args[1]) or 0) > 0:
            x, width = x.args[0], E.int_value(x.args[1]) or 1
        if c is not None and c > 0 and x.op == "index":
            out.setdefault(x.attr, set()).update({c * width, width} - {1})
    return out
