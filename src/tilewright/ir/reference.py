"""The reference interpreter: a Program read word by word, one index point at a time.

In: a Program and input arrays. Out: its results. Invariant: nothing is shared with the fast
interpreter but the meaning of scalar operations, so each is a test of the other. For tiny sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tilewright.errors import UserError
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
from tilewright.ir.expr import Expr
from tilewright.ir.program import (
    MONOIDS,
    Axis,
    Definition,
    Extern,
    If,
    Program,
    Recurrence,
    Scatter,
    Size,
    Statement,
    While,
    identity_of,
)
from tilewright.ir.scalar import SCALAR

__all__ = ["run_reference"]

Point = dict[str, int]


def run_reference(
    program: Program,
    inputs: Mapping[str, Array],
    dims: Mapping[str, int] | None = None,
    *,
    precision: str = "oracle",
    values: Mapping[str, Array] | None = None,
) -> list[Array]:
    """The results of `program`, floats in float64 (f64: longdouble), integers exact.

    Errors: R001 to R004 for inputs; P001 for a read outside its tensor or an empty argmax.
    """
    numerics = {"oracle": ORACLE, "naive": NAIVE}[precision]
    shapes = {name: np.asarray(a).shape for name, a in inputs.items()}
    sizes = bind_sizes(program, shapes, dims)
    walker = _Walker(numerics, sizes, gather_arrays(program, inputs, values, numerics))
    with np.errstate(all="ignore"):
        for s in program.body:
            walker.statement(s)
    return [walker.arrays[name] for name in program.results]


class _Walker:
    def __init__(self, numerics: Numerics, sizes: dict[str, int], arrays: dict[str, Array]) -> None:
        self.numerics, self.sizes, self.arrays = numerics, sizes, arrays
        self.where: object = ""

    def statement(self, s: Statement) -> None:
        match s:
            case Definition():
                self.begin(s)
                self.definition(s, {})
            case Recurrence():
                for d in s.definitions:
                    self.begin(d)
                for step in range(size_of(s.axis.extent, self.sizes)):
                    for d in s.definitions:
                        self.definition(d, {s.axis.name: step})
            case Scatter():
                self.scatter(s)
            case Extern():
                self.extern(s)
            case Size():
                define_size(s, self.arrays, self.sizes)
            case If():
                chosen = s.then if self.arrays[s.condition][()] else s.orelse
                for x in chosen.body:
                    self.statement(x)
                for t, name in zip(s.results, chosen.results, strict=True):
                    self.arrays[t.name] = handed_out(self.arrays[name], t, self.sizes, s)
            case While():
                self.loop(s)

    def loop(self, s: While) -> None:
        n = len(s.carries)
        limit = size_of(s.axis.extent, self.sizes, s)
        for stack in s.results[n:]:
            shape = tuple(size_of(e, self.sizes, s) for e in stack.shape)
            self.arrays[stack.name] = np.zeros(shape, self.numerics.work(stack.dtype))
        values = [self.arrays[c.initial] for c in s.carries]
        steps = 0
        again = not s.condition or bool(self.arrays[s.condition][()])
        while again and steps < limit:
            self.arrays[s.axis.name] = np.asarray(steps)
            for c, v in zip(s.carries, values, strict=True):
                self.arrays[c.tensor.name] = handed_out(v, c.tensor, self.sizes, s)
            for x in s.block.body:
                self.statement(x)
            values = [self.arrays[name] for name in s.block.results[:n]]
            for stack, name in zip(s.results[n:], s.block.results[n:], strict=True):
                self.arrays[stack.name][steps] = self.arrays[name]
            again = not s.proceed or bool(self.arrays[s.proceed][()])
            steps += 1
        for t, v in zip(s.results, values, strict=False):
            self.arrays[t.name] = handed_out(v, t, self.sizes, s)
        self.arrays[s.axis.name] = np.asarray(steps)

    def begin(self, d: Definition) -> None:
        shape = tuple(size_of(e, self.sizes, d) for e in d.shape)
        self.arrays[d.name] = np.zeros(shape, self.numerics.work(d.dtype))

    def points(self, axes: tuple[Axis, ...], fixed: Point) -> Iterator[Point]:
        """Every point of the axes in row-major order; axes in `fixed` stay there."""
        ranges = [
            [fixed[a.name]] if a.name in fixed else range(size_of(a.extent, self.sizes, self.where))
            for a in axes
        ]
        for place in itertools.product(*ranges):
            yield {a.name: k for a, k in zip(axes, place, strict=True)}

    def definition(self, d: Definition, fixed: Point) -> None:
        self.where = d
        target = self.arrays[d.name]
        for point in self.points(d.axes, fixed):
            place = tuple(point[a.name] for a in d.axes)
            target[place] = self.numerics.store(np.asarray(self.reduced(d, point)), d.dtype)
        if d.scan is not None:
            monoid, name = d.scan
            axis = [a.name for a in d.axes].index(name)
            for point in self.points(d.axes, fixed):
                if point[name] > 0:
                    place = tuple(point[a.name] for a in d.axes)
                    before = (*place[:axis], place[axis] - 1, *place[axis + 1 :])
                    both = self.apply(MONOIDS[monoid], target[before], target[place])
                    target[place] = self.numerics.store(np.asarray(both), d.dtype)

    def reduced(self, d: Definition, point: Point) -> Any:
        r = d.reduction
        if r is None:
            return self.value(d.body, point)
        best: Any = None
        position = -1
        for k, inner in enumerate(self.points(r.axes, {})):
            here = point | inner
            if r.guard is not None and not self.value(r.guard, here):
                continue
            v = self.value(d.body, here)
            if r.monoid in ("argmax", "argmin"):
                if position < 0 or _beats(r.monoid, v, best):
                    best, position = v, k
            else:
                best = v if best is None else self.apply(MONOIDS[r.monoid], best, v)
        if r.monoid in ("argmax", "argmin"):
            if position < 0:
                raise UserError("P001", f"{r.monoid} of nothing in {d.name!r}", where=str(d))
            return np.int64(position)
        if best is None:
            return np.asarray(identity_of(r.monoid, d.dtype), self.numerics.work(d.dtype))[()]
        return best

    def apply(self, op: str, *args: Any) -> Any:
        if op == "logaddexp":
            return np.logaddexp(*args)
        return SCALAR[op](*args)

    def value(self, e: Expr, point: Point) -> Any:
        """The value at one point; only what is needed is evaluated."""
        op = e.op
        if op == "const":
            return np.asarray(e.attr, self.numerics.work(e.dtype))[()]
        if op == "index":
            return np.int64(point[e.attr])
        if op == "dim":
            return np.int64(size_of(e, self.sizes, self.where))
        if op == "select":
            return self.value(e.args[1 if self.value(e.args[0], point) else 2], point)
        if op == "read":
            return self.read(e, point)
        args = [self.value(a, point) for a in e.args]
        if op == "cast":
            return self.numerics.cast(np.asarray(args[0]), e.dtype)[()]
        out = np.asarray(SCALAR[op](*map(np.asarray, args)))
        return out.astype(self.numerics.work(e.dtype))[()]

    def read(self, e: Expr, point: Point) -> Any:
        name, has_else = e.attr
        array = self.arrays[name]
        subscripts = e.args[: len(e.args) - has_else]
        place = tuple(int(self.value(s, point)) for s in subscripts)
        if all(0 <= k < n for k, n in zip(place, array.shape, strict=True)):
            return array[place]
        if has_else:
            return self.value(e.args[-1], point)
        message = f"{e} reads {name}{list(place)}, outside its shape {list(array.shape)}"
        raise UserError("P001", message, where=str(self.where))

    def scatter(self, s: Scatter) -> None:
        self.where = s
        target = np.zeros([size_of(e, self.sizes, s) for e in s.shape], self.numerics.work(s.dtype))
        self.arrays[s.name] = target
        for point in self.points(s.axes, {}):
            place = tuple(point[a.name] for a in s.axes)
            target[place] = self.numerics.store(np.asarray(self.value(s.base, point)), s.dtype)
        for point in self.points(s.source, {}):
            place = tuple(int(self.value(e, point)) for e in s.subscripts)
            if not all(0 <= k < n for k, n in zip(place, target.shape, strict=True)):
                continue
            v = self.value(s.body, point)
            if s.monoid is not None:
                v = self.apply(MONOIDS[s.monoid], target[place], v)
            target[place] = self.numerics.store(np.asarray(v), s.dtype)

    def extern(self, s: Extern) -> None:
        from tilewright.ir.interpreter import run_extern

        run_extern(s, self.arrays, self.sizes, self.numerics)


def _beats(monoid: str, new: Any, best: Any) -> bool:
    """Is `new` a better value for argmax or argmin? The first NaN is the best of all."""
    if np.asarray(best).dtype.kind == "f" and (np.isnan(best) or np.isnan(new)):
        return not np.isnan(best)
    return bool(new > best if monoid == "argmax" else new < best)
