"""Reductions of one stage over a region: accumulators in registers, guards, first best elements.

In: a `StageSpec`, a region of the reduced axes, and the scope of the tile that wants the result.
Out: the reduced tile. Invariants: accumulators are loop-carried tiles; what a guard or a masked
tail leaves out contributes the monoid's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, F32, I32, I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.extent import is_symbolic, smaller
from tilewright.ir.kernel import int_extent
from tilewright.ir.nest import TileType
from tilewright.ir.program import MONOIDS, Axis, Definition, identity_of
from tilewright.ir.ranges import split_linear
from tilewright.ir.words import half_factors, narrow_factors
from tilewright.lower.builder import Builder, Tile
from tilewright.lower.loops import emit_reduce_levels
from tilewright.lower.prefetch import fetch_ahead
from tilewright.lower.region import Region, StageSpec, converted, define, least, scope_of
from tilewright.lower.tiles import TileScope

__all__ = ["emit_arg", "emit_arg_lanes", "emit_reduction", "working_type"]


def working_type(monoid: str, dtype: DType) -> DType:
    """What a reduction accumulates in: 16-bit floats are summed in f32."""
    return F32 if dtype.bits == 16 and dtype.is_float and monoid not in ("max", "min") else dtype


def emit_reduction(
    b: Builder,
    spec: StageSpec,
    r: Region,
    lanes: int,
    scope: TileScope,
    result: DType | None = None,
    before: Tile | None = None,
) -> Tile:
    """The reduction over a region of the reduced axes, in the anchor's dtype or in `result`.

    before: what positions before the region give, in the dtype that is accumulated in.
    """
    d = spec.anchor
    assert d.reduction is not None
    monoid = d.reduction.monoid
    op = MONOIDS[monoid]
    identity = identity_of(monoid, d.dtype)
    work = working_type(monoid, d.dtype)
    extents = {a.name: int_extent(a.extent) for a in d.reduction.axes}
    # Axes that keep their own accumulators, with their register extents.
    kept = {
        x.axis: least(x.block, r.lengths[x.axis]) for x in spec.reduce if x.axis in spec.partial
    }
    if spec.lane in kept and not is_symbolic(r.lengths[spec.lane]):
        length = r.lengths[spec.lane]
        kept[spec.lane] = min(-(-length // lanes) * lanes, _block(spec, spec.lane))
    acc_sizes = {**scope.sizes, **kept}
    # A tile needs its axes in one order everywhere: output axes, then kept reduce axes.
    order = [a.name for a in d.axes] + [a for a in extents if a in kept]
    lane = spec.lane if acc_sizes.get(spec.lane or "", 1) > 1 else None
    acc_axes = tuple((a, acc_sizes[a]) for a in order if acc_sizes.get(a, 1) > 1)
    acc_type = TileType(work, acc_axes, lane if lane in dict(acc_axes) else None)
    start = before or b.fill(acc_type, identity)
    ends, guard = _ends(spec, r)
    members = (d, *spec.before)

    def accumulate(region: Region, acc: Tile) -> Tile:
        assert d.reduction is not None
        sizes = {a.name: region.lengths[a.name] for a in d.all_axes}
        inner = scope_of(b, spec, region, sizes)
        several = [a for a in extents if sizes[a] > 1 and a not in kept and a not in region.valid]
        coupled = inner.coupled(_reads(members)) if several else ()
        for a in several:
            if a in coupled:  # one position after the other, each with limits of its own
                for i in range(sizes[a]):
                    acc = accumulate(region.narrowed(a, region.starts[a] + i, 1), acc)
                return acc
        for m in spec.before:
            define(inner, spec, m, inner.value(m.body))
        if spec.prefetch:
            fetch_ahead(b, inner, _reads(members), spec.prefetch)
        if spec.products:
            tile = replace(inner, valid={}, memo={})  # there are whole tiles of copies
            for x, y in spec.products:
                acc = b.contract(acc_type, acc, tile.value(x), tile.value(y))
            return acc
        masked = {a: v for a, v in inner.valid.items() if a in extents}
        if monoid == "sum" and d.body.op == "mul" and not masked:
            narrow = half_factors(d) if spec.in_words else narrow_factors(d)
            factors = d.body.args if narrow is None else narrow
            if d.dtype.is_float or (narrow and any(sizes[a] > 1 for a in extents if a not in kept)):
                left, right = (inner.value(x) for x in factors)
                present = {*acc_type.names, *left.type.names, *right.type.names}
                counts = None if guard is None else inner.value(guard)
                # What a guard leaves out at a whole step keeps the accumulators as they are, which
                # costs a masked multiply-add nothing.
                steps = counts is None or set(counts.type.names) <= set(acc_type.names)
                if steps and all(n == 1 or a in present for a, n in sizes.items()):
                    summed = b.contract(acc_type, acc, left, right)
                    if counts is None:
                        return summed
                    return b.map("select", acc_type, (counts, summed, acc))
        value = converted(b, inner.value(d.body), work)
        value = _guarded(b, inner, d, guard, value, masked, identity)
        for a in [a for a in value.type.names if a not in acc_type.names]:
            t = TileType(
                work,
                tuple(x for x in value.type.axes if x[0] != a),
                None if value.type.lane == a else value.type.lane,
            )
            value = b.reduce(t, value, a, op)
        # A value that is constant along an axis of extent n counts n times in a sum.
        return b.map(op, acc_type, (acc, value))

    acc = emit_reduce_levels(b, spec.reduce, r, start, lanes, accumulate, ends)
    for a, _ in acc_axes:
        if a in kept:
            t = TileType(
                work,
                tuple(x for x in acc.type.axes if x[0] != a),
                None if acc.type.lane == a else acc.type.lane,
            )
            acc = b.reduce(t, acc, a, op)
    return converted(b, acc, result or d.dtype)


def _ends(spec: StageSpec, r: Region) -> tuple[dict[str, Expr], Expr | None]:
    """Where loops over reduced axes end for one tile of a region, by the comparisons of the guard
    that bound one axis from above by what the whole tile has in common; and what is left of the
    guard.
    """
    d = spec.anchor
    assert d.reduction is not None
    if d.reduction.guard is None:
        return {}, None
    reduced = {a.name for a in d.reduction.axes}
    loops = [x.axis for x in spec.reduce if not is_symbolic(r.lengths[x.axis])]
    single = {
        x.axis
        for x in spec.reduce
        if x.block == 1 and x.axis not in spec.partial and loops.count(x.axis) == 1
    }
    known = {
        E.index(a): start
        for a, start in r.starts.items()
        if a not in reduced and r.lengths[a] == 1 and not start.reads()
    }
    ends: dict[str, Expr] = {}
    left: list[Expr] = []
    for e in E.conjuncts(d.reduction.guard):
        axis = ""
        if e.op in ("lt", "le") and e.args[0].dtype is I64 and not e.reads():
            used = e.indices() & reduced
            axis = next(iter(used)) if len(used) == 1 else ""
        slack = e.args[1] - e.args[0] - int(e.op == "lt") if axis in single else None
        found = None if slack is None else split_linear(slack, [E.index(axis)])
        step = -found[0].get(E.index(axis), 0) if found is not None else 0
        if found is None or step < 1:
            left.append(e)
            continue
        rest = E.substitute(found[1], known)
        if {E.index(a) for a in found[1].indices()} - set(known):
            left.append(e)
            continue
        # step * axis <= rest
        end = E.floordiv(rest, E.const(step)) + 1
        ends[axis] = E.minimum(ends[axis], end) if axis in ends else end
    if not left:
        return ends, None
    return ends, reduce(lambda a, c: E.logical("and", a, c), left)


def _block(spec: StageSpec, axis: str) -> int:
    return next(x.block for x in spec.reduce if x.axis == axis)


def _guarded(
    b: Builder,
    scope: TileScope,
    d: Definition,
    guard: Expr | None,
    value: Tile,
    masked: dict[str, int],
    identity: float | int | bool,
) -> Tile:
    """Replace contributions that the guard or a masked tail leaves out by the identity."""
    conditions = []
    dtype = value.type.dtype
    if guard is not None:
        conditions.append(scope.value(guard))
    for a, v in masked.items():
        t = scope.type(BOOL, {a})
        conditions.append(b.map("lt", t, (b.iota(scope.type(I64, {a})), b.number(v))))
    for a, n in scope.sizes.items():
        if n > 1 and a not in value.type.names and a in {x.name for x in d.reduction.axes}:  # type: ignore[union-attr]
            # The body does not depend on this reduce axis: spread it, so that each position
            # contributes.
            conditions.append(b.fill(scope.type(BOOL, {a}), True))
    for c in conditions:
        axes = set(c.type.names) | set(value.type.names)
        value = b.map(
            "select", scope.type(dtype, axes), (c, value, b.fill(TileType(dtype), identity))
        )
    return value


def _reads(members: tuple[Definition, ...]) -> list[Expr]:
    return [r for m in members for e in m.expressions() for r in e.reads()]


def emit_arg_lanes(b: Builder, spec: StageSpec, r: Region, lanes: int, scope: TileScope) -> Tile:
    """The linear position of the first best element; NaN counts as best, as in NumPy.

    Every lane keeps its own best; at the end the first of the best lanes wins.
    """
    d = spec.anchor
    assert d.reduction is not None and spec.lane is not None
    lane, monoid, axes = spec.lane, d.reduction.monoid, d.reduction.axes
    width = _block(spec, lane)
    if not is_symbolic(r.lengths[lane]):
        width = min(-(-r.lengths[lane] // lanes) * lanes, width)
    total, steps = 1, {}
    for a in reversed(axes):
        steps[a.name] = total
        total *= int_extent(a.extent)
    is_small = not is_symbolic(total) and total + width * steps[lane] < 1 << 31
    number = I32 if is_small else I64
    others = scope.tiled
    sizes = {**scope.sizes, **{a.name: 1 for a in axes}, lane: width}
    names = {*others, lane}
    whole = replace(scope, sizes=sizes, lane=lane, memo={}, registers={})
    value_type, index_type = whole.type(d.body.dtype, names), whole.type(number, names)
    flag = whole.type(BOOL, names)
    identity = b.fill(TileType(d.body.dtype), identity_of(monoid, d.body.dtype))
    line = whole.type(I64, {lane})
    place = b.iota(line)
    if steps[lane] != 1:
        place = b.map("mul", line, (place, b.number(steps[lane])))
    place = converted(b, place, number)
    best = b.fill(value_type, identity_of(monoid, d.body.dtype))
    yes = b.fill(flag, True)
    # A lane that never finds a better one than the identity holds its own first position.
    where = b.map("select", index_type, (yes, place, place))

    def step(region: Region, state: Sequence[Tile]) -> Sequence[Tile]:
        inner = scope_of(b, spec, region, {**sizes, lane: region.lengths[lane]})
        for m in spec.before:
            define(inner, spec, m, inner.value(m.body))
        value = inner.value(d.body)
        valid = inner.valid.get(lane)
        if valid is not None:
            count = b.iota(inner.type(I64, {lane}))
            end = b.number(valid)
            inside = b.map("lt", inner.type(BOOL, {lane}), (count, end))
            value = b.map("select", value_type, (inside, value, identity))
        linear = E.const(0)
        for a in axes:
            linear = linear + region.starts[a.name] * steps[a.name]
        base = converted(b, b.position(TileType(I64), linear), number)
        here = b.map("add", whole.type(number, {lane}), (base, place))
        old, at = state
        pair = (value, old) if monoid == "argmax" else (old, value)
        worse = b.map("le", flag, pair)
        if d.body.dtype.is_float:
            # What is not worse is better, or NaN; after a NaN nothing is better.
            worse = b.map("or", flag, (worse, b.map("isnan", flag, (old,))))
        return (
            b.map("select", value_type, (worse, old, value)),
            b.map("select", index_type, (worse, at, here)),
        )

    def loops(region: Region, left: tuple[str, ...], state: Sequence[Tile]) -> Sequence[Tile]:
        if not left:
            return step(region, state)
        axis, block = left[0], width if left[0] == lane else 1
        start, length = region.starts[axis], region.lengths[axis]
        full, rest = divmod(length, block)

        def run(
            count: int, part: Callable[[Expr], Region], state: Sequence[Tile]
        ) -> Sequence[Tile]:
            var = b.counter()
            block = part(E.index(var)).with_range(var, count)
            return b.loop(var, count, state, lambda inside: loops(block, left[1:], inside))

        if full:
            state = run(full, lambda i: region.narrowed(axis, start + i * block, block), state)
        if is_symbolic(rest):
            at = start + full * block
            state = run(
                smaller(rest, 1), lambda i: region.narrowed(axis, at + i, width, rest), state
            )
        elif rest:
            state = loops(region.narrowed(axis, start + full * block, width, rest), left[1:], state)
        return state

    best, where = loops(r, tuple(a.name for a in axes), (best, where))
    single = set(others)
    op = MONOIDS[monoid]
    top = b.reduce(scope.type(d.body.dtype, single), best, lane, op)
    hit = b.map("eq", flag, (best, top))
    if d.body.dtype.is_float:
        hit = b.map("or", flag, (hit, b.map("isnan", flag, (best,))))
    last = b.fill(TileType(number), (1 << (number.bits - 1)) - 1)
    first = b.map("select", index_type, (hit, where, last))
    return converted(b, b.reduce(scope.type(number, single), first, lane, "min"), I64)


def emit_arg(
    b: Builder,
    spec: StageSpec,
    r: Region,
    scope: TileScope,
    start: tuple[Tile, Tile] | None = None,
) -> tuple[Tile, Tile]:
    """The first best element of a region and its linear position, -1 where there is none; NaN
    counts as best, as in NumPy.

    One position at a time, after what `start` found before.
    """
    d = spec.anchor
    assert d.reduction is not None
    value_type = scope.type(d.body.dtype, set(scope.tiled))
    index_type = scope.type(I64, set(scope.tiled))
    best = b.fill(value_type, identity_of(d.reduction.monoid, d.body.dtype))
    where = b.fill(index_type, -1)
    if start is not None:
        best, where = start
    reduction = d.reduction
    axes = reduction.axes

    def loops(region: Region, left: tuple[Axis, ...], state: Sequence[Tile]) -> Sequence[Tile]:
        if not left:
            return step(region, state)
        axis, n = left[0].name, r.lengths[left[0].name]
        var = b.counter()
        at = r.starts[axis] + E.index(var)
        one = region.with_range(var, n).narrowed(axis, at, 1)
        return b.loop(var, n, state, lambda inside: loops(one, left[1:], inside))

    def step(region: Region, state: Sequence[Tile]) -> Sequence[Tile]:
        best, where = state
        inner = scope_of(b, spec, region, {**scope.sizes, **{a.name: 1 for a in axes}})
        for m in spec.before:
            define(inner, spec, m, inner.value(m.body))
        value = inner.value(d.body)
        linear = E.const(0)
        for a in axes:
            linear = linear * int_extent(a.extent) + region.starts[a.name]
        position = b.position(TileType(I64), linear)
        flag = scope.type(BOOL, set(scope.tiled))
        args = (best, value) if reduction.monoid == "argmax" else (value, best)
        better = b.map("lt", flag, args)
        none = b.map("lt", flag, (where, b.fill(TileType(I64), 0)))
        if d.body.dtype.is_float:
            nan = b.map("isnan", scope.type(BOOL, set(value.type.names)), (value,))
            known = b.map("isnan", flag, (best,))
            better = b.map(
                "or", flag, (better, b.map("and", flag, (nan, b.map("not", flag, (known,)))))
            )
        better = b.map("or", flag, (better, none))
        if reduction.guard is not None:
            better = b.map("and", flag, (better, inner.value(reduction.guard)))
        return (
            b.map("select", value_type, (better, value, best)),
            b.map("select", index_type, (better, position, where)),
        )

    best, where = loops(r, axes, (best, where))
    return best, where
