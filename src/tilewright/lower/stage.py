"""One stage: loops around its tiles, and in each tile accumulation, epilogue and stores.

In: a `StageSpec` (decided by the Schedule) and a region of the output axes. Out: nodes in a
Builder. Invariants: every output point of the region is written, none outside it is touched; the
order in which a reduction is folded depends on the spec alone.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL
from tilewright.ir.expr import Expr
from tilewright.ir.kernel import int_extent
from tilewright.ir.nest import TileType
from tilewright.ir.program import MONOIDS, identity_of
from tilewright.ir.ranges import simplify
from tilewright.lower import strips
from tilewright.lower.builder import Builder, Tile
from tilewright.lower.loops import emit_levels
from tilewright.lower.prefetch import fetch_ahead, fetch_tile
from tilewright.lower.reductions import emit_arg, emit_arg_lanes, emit_reduction, working_type
from tilewright.lower.region import Fold, Region, StageSpec, converted, define, scope_of
from tilewright.lower.tiles import TileScope

__all__ = ["emit_stage"]


def emit_stage(b: Builder, spec: StageSpec, region: Region, lanes: int, given: list[Expr]) -> None:
    """The stage over a region of its output axes."""
    d = spec.anchor
    whole = region
    if d.reduction is not None:
        for a in d.reduction.axes:
            if a.name in ((spec.fold and spec.fold.axis), (spec.part and spec.part[0])):
                continue  # the region is one block of it
            whole = whole.narrowed(a.name, E.const(0), int_extent(a.extent))

    def tile(r: Region) -> None:
        if spec.part is not None:
            axis, block = spec.part
            number = simplify(r.starts[axis] // block, r.ranges)
            r = r.narrowed(d.axes[0].name, number, 1)
        if any(r.lengths[a.name] == 0 for a in d.axes):
            return
        if spec.rows:
            strips.emit_strip(b, spec, levels[spec.around :], r, lanes)
        elif d.scan is not None and spec.lane == d.scan[1] and r.lengths[spec.lane] > 1:
            strips.emit_lane_scan(b, spec, r, _scan_block(spec), lanes)
        elif d.scan is not None:
            _emit_scan(b, spec, r)
        else:
            _emit_tile(b, spec, r, lanes)

    # A prefix walks its axis in its own loop.
    levels = tuple(x for x in spec.levels if d.scan is None or x.axis != d.scan[1])
    outer = levels[: spec.around] if spec.rows else levels
    emit_levels(b, outer, whole, lanes, given, tile, spec.staging)


def _scan_block(spec: StageSpec) -> int:
    """Positions of a prefix in one tile."""
    return next(x.block for x in spec.levels if x.axis == spec.lane)


def _emit_tile(b: Builder, spec: StageSpec, r: Region, lanes: int) -> None:
    """One register tile: accumulate, then epilogue and stores."""
    d = spec.anchor
    sizes = {a.name: r.lengths[a.name] for a in d.axes}
    scope = scope_of(b, spec, r, sizes)
    if d.reduction is None:
        members = (*spec.before, d, *spec.after)
        if spec.prefetch:
            fetch_ahead(b, scope, (x for m in members for x in m.reads()), spec.prefetch)
        for m in members:
            define(scope, spec, m, scope.value(m.body))
        return
    if spec.fetches:
        fetch_tile(b, scope, spec.after)
    if d.reduction.monoid in ("argmax", "argmin"):
        if spec.lane is not None and spec.lane in spec.partial and r.lengths[spec.lane] > 1:
            value = emit_arg_lanes(b, spec, r, lanes, scope)
        else:
            value = emit_arg(b, spec, r, scope)[1]
    elif spec.sums:
        total = _sum_of_blocks(b, spec, r, lanes, scope)
        if total is None:
            return
        value = total
    else:
        value = emit_reduction(b, spec, r, lanes, scope)
    if spec.fold is not None:
        value = _absorb(b, spec, spec.fold, scope, value)
    define(scope, spec, d, value)
    for m in spec.after:
        define(scope, spec, m, scope.value(m.body))


def _sum_of_blocks(
    b: Builder, spec: StageSpec, r: Region, lanes: int, scope: TileScope
) -> Tile | None:
    """A block of a reduced axis, added to the blocks before; None if there are blocks after it."""
    d = spec.anchor
    assert d.reduction is not None
    axis = next(x.axis for x in spec.levels if x.tail == "sums")
    # The sums have whole tiles, as scratch has.
    tile = replace(scope, valid={}, memo={})
    place, subscripts = spec.places[spec.sums], [a.index for a in d.axes]
    start, end = r.starts[axis], r.starts[axis] + r.lengths[axis]
    before = None if E.int_value(start) == 0 else tile.load(place, subscripts)
    is_last = E.int_value(end) == spec.extents[axis]
    value = emit_reduction(b, spec, r, lanes, scope, d.dtype if is_last else place.dtype, before)
    if is_last:
        return value
    tile.store(place, subscripts, value)
    return None


def _absorb(b: Builder, spec: StageSpec, fold: Fold, scope: TileScope, value: Tile) -> Tile:
    """The value of one block combined with what earlier blocks left behind."""
    d = spec.anchor
    assert d.reduction is not None
    old = scope.load(spec.places[d.name], [a.index for a in d.axes])
    op = MONOIDS[d.reduction.monoid]
    if fold.corrected is not None:
        place, axes = fold.corrected
        factor = scope.load(place, [E.index(a) for a in axes])
        return b.contract(value.type, value, old, factor)
    new = b.combine(op, value.type, old, value)
    if fold.state is not None:
        name, place, axes = fold.state
        shift = next(m for m in spec.after if m.name == name)
        names = tuple(a.name for a in d.axes)
        both = []
        for m in (old, new):
            scope.define(d.name, m, names)
            both.append(scope.value(shift.body))
        t = both[1].type
        gap = b.map("exp", t, (b.map("sub", t, (both[0], both[1])),))
        flag = TileType(BOOL, old.type.axes, old.type.lane)
        low = b.fill(TileType(d.dtype), identity_of(d.reduction.monoid, d.dtype))
        first = b.map("eq", flag, (old, low))
        factor = b.map("select", t, (first, b.fill(TileType(d.dtype), 0), gap))
        scope.store(place, [E.index(a) for a in axes], factor)
    return new


def _emit_scan(b: Builder, spec: StageSpec, r: Region) -> None:
    """An inclusive prefix along one axis, carried; the other axes are tiled as usual."""
    d = spec.anchor
    assert d.scan is not None
    monoid, axis = d.scan
    length = r.lengths[axis]
    sizes = {a.name: (1 if a.name == axis else r.lengths[a.name]) for a in d.axes}
    outer = scope_of(b, spec, r.narrowed(axis, E.const(0), 1), sizes)
    acc_type = outer.type(working_type(monoid, d.dtype), set(outer.tiled))
    start = b.fill(acc_type, identity_of(monoid, d.dtype))
    var = b.counter()
    region = r.with_range(var, length).narrowed(axis, r.starts[axis] + E.index(var), 1)

    def step(carried: list[Tile]) -> list[Tile]:
        scope = scope_of(b, spec, region, sizes)
        for m in spec.before:
            define(scope, spec, m, scope.value(m.body))
        value = converted(b, scope.value(d.body), acc_type.dtype)
        total = b.combine(MONOIDS[monoid], acc_type, carried[0], value)
        define(scope, spec, d, converted(b, total, d.dtype))
        for m in spec.after:
            define(scope, spec, m, scope.value(m.body))
        return [total]

    b.loop(var, length, [start], step)
