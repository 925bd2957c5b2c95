"""Reductions and prefixes whose accumulators live in scratch, and prefixes along the lanes.

In: a `StageSpec` and a region. Out: nodes in a Builder. Invariants: every output point of the
region is written once; the order in which contributions are combined depends on the spec alone.

A strip is a block of the lane axis that is walked in full for a few positions of the reduced (or
scanned) axis at a time. Memory is then read in long runs, as it lies, while the accumulators of the
strip stay in L1; with accumulators in registers a strip could be no wider than the registers are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.extent import is_symbolic
from tilewright.ir.layout import Layout, dense, panels
from tilewright.ir.nest import For, If, TileType
from tilewright.ir.program import MONOIDS, Axis, Definition, identity_of
from tilewright.lower import symbolic
from tilewright.lower.builder import Builder, Tile
from tilewright.lower.loops import emit_levels
from tilewright.lower.reductions import emit_arg, emit_reduction, working_type
from tilewright.lower.region import Level, Region, StageSpec, converted, define, scope_of
from tilewright.lower.tiles import Place

__all__ = ["emit_lane_scan", "emit_strip"]


def _loop(b: Builder, r: Region, axis: str, block: int, body: Callable[[Region], None]) -> None:
    """Blocks of an axis in order, the last one shorter."""
    start, length = r.starts[axis], r.lengths[axis]
    full, rest = divmod(length, block)
    if full == 1:
        body(r.narrowed(axis, start, block))
    elif full > 1 or is_symbolic(full):
        var = b.counter()
        b.enter(var)
        inner = r.with_range(var, full)
        body(inner.narrowed(axis, start + E.index(var) * block, block))
        nodes = b.leave()
        b.effect(For(var, E.const(0), E.const(full), 1, nodes))
    if is_symbolic(rest):
        symbolic.emit_rest(b, r, axis, start + full * block, rest, body)
    elif rest:
        body(r.narrowed(axis, start + full * block, rest))


def emit_strip(
    b: Builder, spec: StageSpec, levels: tuple[Level, ...], r: Region, lanes: int
) -> None:
    """One strip: start the accumulators, absorb all positions, finish.

    `levels` are the register loops inside the strip. The region has whole reduced axes.
    """
    d = spec.anchor
    monoid = d.scan[0] if d.scan is not None else d.reduction.monoid if d.reduction else ""
    work = working_type(monoid, d.dtype)
    axes = tuple(a for a in d.axes if d.scan is None or a.name != d.scan[1])
    layout = _side_by_side(axes, levels, spec.lane or "", r)
    place = Place(spec.strip, layout, work, tuple(r.starts[a.name] for a in axes))
    subscripts = [a.index for a in axes]

    if monoid.startswith("arg"):
        work = d.body.dtype
        place = replace(place, dtype=work)
    # Beside the best value its position.
    numbers = replace(place, buffer=f"{spec.strip}n", dtype=I64)
    start = Definition(d.name, work, axes, E.const(identity_of(monoid, work), work))

    def walk(region: Region, body: Callable[[Region], None]) -> None:
        emit_levels(b, levels, region, lanes, [], body)

    first = r if d.scan is None else r.narrowed(d.scan[1], r.starts[d.scan[1]], 1)

    def begin(region: Region) -> None:
        scope = scope_of(b, spec, region, {a.name: region.lengths[a.name] for a in axes})
        scope.store(place, subscripts, scope.value(start.body))
        if monoid.startswith("arg"):
            scope.store(numbers, subscripts, b.fill(TileType(I64), -1))

    walk(first, begin)
    if d.scan is not None:
        _scan_rows(b, spec, r, place, walk)
        return
    assert d.reduction is not None
    order = list(dict.fromkeys(x.axis for x in spec.reduce))

    def absorb(region: Region) -> None:
        sizes = {a.name: region.lengths[a.name] for a in axes}
        scope = scope_of(b, spec, region, sizes)
        if monoid.startswith("arg"):
            state = scope.load(place, subscripts), scope.load(numbers, subscripts)
            best, where = emit_arg(b, spec, region, scope, state)
            scope.store(place, subscripts, best)
            scope.store(numbers, subscripts, where)
            return
        value = emit_reduction(b, spec, region, lanes, scope, work)
        old = scope.load(place, subscripts)
        scope.store(place, subscripts, b.combine(MONOIDS[monoid], value.type, old, value))

    def blocks(region: Region, left: list[str]) -> None:
        if not left:
            walk(region, absorb)
            return
        size = 1 if left[1:] else spec.rows
        _loop(b, region, left[0], size, lambda inner: blocks(inner, left[1:]))

    blocks(r, order)

    def finish(region: Region) -> None:
        scope = scope_of(b, spec, region, {a.name: region.lengths[a.name] for a in axes})
        source = numbers if monoid.startswith("arg") else place
        define(scope, spec, d, converted(b, scope.load(source, subscripts), d.dtype))
        for m in spec.after:
            define(scope, spec, m, scope.value(m.body))

    walk(r, finish)


def _side_by_side(
    axes: tuple[Axis, ...], levels: tuple[Level, ...], lane: str, r: Region
) -> Layout:
    """Accumulators as a tile takes them: a strip apart, its rows would share a set of the cache."""
    shape = tuple(r.lengths[a.name] for a in axes)
    at = [a.name for a in axes].index(lane)
    others = [k for k in range(len(axes)) if k != at]
    if any(map(is_symbolic, shape)) or prod(shape[k] for k in others) == 1:
        return dense(shape)
    return panels(shape, at, levels[-1].block, others)


def _scan_rows(
    b: Builder,
    spec: StageSpec,
    r: Region,
    place: Place,
    walk: Callable[[Region, Callable[[Region], None]], None],
) -> None:
    d = spec.anchor
    assert d.scan is not None
    monoid, axis = d.scan
    others = [a for a in d.axes if a.name != axis]

    def step(region: Region) -> None:
        sizes = {a.name: region.lengths[a.name] for a in others}
        scope = scope_of(b, spec, region, {**sizes, axis: 1})
        for m in spec.before:
            define(scope, spec, m, scope.value(m.body))
        value = converted(b, scope.value(d.body), place.dtype)
        old = scope.load(place, [a.index for a in others])
        total = b.combine(MONOIDS[monoid], scope.type(place.dtype, set(scope.tiled)), old, value)
        scope.store(place, [a.index for a in others], total)
        define(scope, spec, d, converted(b, total, d.dtype))
        for m in spec.after:
            define(scope, spec, m, scope.value(m.body))

    _loop(b, r, axis, 1, lambda row: walk(row, step))


def emit_lane_scan(b: Builder, spec: StageSpec, r: Region, block: int, lanes: int) -> None:
    """A prefix along the lane axis: inside the vectors of a tile, after the total so far."""
    d = spec.anchor
    assert d.scan is not None
    monoid, axis = d.scan
    op = MONOIDS[monoid]
    work = working_type(monoid, d.dtype)
    length = r.lengths[axis]
    sizes = {a.name: (1 if a.name == axis else r.lengths[a.name]) for a in d.axes}
    outer = scope_of(b, spec, r.narrowed(axis, r.starts[axis], 1), sizes)
    carry_type = outer.type(work, set(outer.tiled))
    carry = b.fill(carry_type, identity_of(monoid, d.dtype))

    def tile(region: Region, before: Tile, goes_on: bool) -> Tile:
        here = {**sizes, axis: region.lengths[axis]}
        scope = scope_of(b, spec, region, here)
        for m in spec.before:
            define(scope, spec, m, scope.value(m.body))
        value = converted(b, scope.value(d.body), work)
        whole = scope.type(work, set(scope.tiled))
        if value.type != whole:  # the same at every position: spread it
            yes = b.fill(scope.type(BOOL, set(scope.tiled)), True)
            value = b.map("select", whole, (yes, value, value))
        total = b.map(op, whole, (before, b.scan(whole, value, axis, op)))
        define(scope, spec, d, converted(b, total, d.dtype))
        for m in spec.after:
            define(scope, spec, m, scope.value(m.body))
        if not goes_on:
            return before
        return b.map(op, carry_type, (before, b.reduce(carry_type, value, axis, op)))

    full, rest = divmod(length, block)
    if full:
        var = b.counter()
        at = r.starts[axis] + E.index(var) * block
        whole = r.with_range(var, full).narrowed(axis, at, block)
        (carry,) = b.loop(var, full, [carry], lambda inside: [tile(whole, inside[0], True)])
    if is_symbolic(rest):
        at = r.starts[axis] + full * block
        b.enter()
        tile(r.narrowed(axis, at, block, rest), carry, False)
        b.effect(If(E.compare("lt", E.const(0), E.const(rest)), b.leave()))
    elif rest == 1:
        single = r.narrowed(axis, r.starts[axis] + full * block, 1)
        scope = scope_of(b, replace(spec, lane=None), single, sizes)
        for m in spec.before:
            define(scope, spec, m, scope.value(m.body))
        value = converted(b, scope.value(d.body), work)
        define(scope, spec, d, converted(b, b.map(op, carry_type, (carry, value)), d.dtype))
        for m in spec.after:
            define(scope, spec, m, scope.value(m.body))
    elif rest:
        wide = min(block, -(-rest // lanes) * lanes)
        tile(r.narrowed(axis, r.starts[axis] + full * block, wide, rest), carry, False)
