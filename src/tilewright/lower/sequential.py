"""Kernels whose order of execution is part of their meaning: recurrences and scatters.

In: a lowering in progress. Out: its phases. Invariants: a recurrence runs its steps in order and,
within one, its stages in order; a scatter combines the contributions to one element in source
order, so duplicates are deterministic, for any number of threads.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.extent import is_symbolic
from tilewright.ir.kernel import Kernel, int_extent
from tilewright.ir.layout import Layout, dense
from tilewright.ir.nest import Buffer, For, If, Phase, TileType
from tilewright.ir.nest import Scatter as ScatterNode
from tilewright.ir.program import MONOIDS, Axis, Definition, Recurrence, Scatter
from tilewright.lower.loops import emit_levels
from tilewright.lower.prefetch import fetch_rows
from tilewright.lower.reductions import working_type
from tilewright.lower.region import Level, Region, StageSpec
from tilewright.lower.stage import emit_stage
from tilewright.lower.tiles import Place, TileScope
from tilewright.schedule.roles import scatter_lane
from tilewright.schedule.shares import share_of, shared_out

if TYPE_CHECKING:
    from tilewright.lower.kernel import _Lowering

__all__ = ["lower_scatter", "lower_sequence"]

_PART = "part"  # the axis of a recurrence whose blocks run apart, whatever a stage calls it
_PIECE = 1 << 14  # elements that are set at a time by one thread


def lower_sequence(lowering: _Lowering) -> None:
    """for t: stage; stage; ... in one phase: serial, or parts that never meet, each with all steps.

    States of 16-bit floats are kept, and computed with, in f32; what leaves is rounded once.
    """
    given, b = lowering.kernel, lowering.b
    narrow = [d for d in given.definitions.values() if d.dtype.is_float and d.dtype.bits == 16]
    kernel = lowering.kernel = _widened(given, {d.name for d in narrow}) if narrow else given
    final: dict[str, Place] = {}
    for d in narrow:
        final[d.name] = old = lowering.places[d.name]
        layout = old.layout if old.layout.is_ring else dense(old.layout.shape)
        buffer = Buffer(f"w{len(lowering.workspace)}", F32, E.const(layout.size), "arena")
        lowering.workspace.append(buffer)
        lowering.places[d.name] = Place(buffer.name, layout, F32)
    specs = []
    turning: list[bool] = []  # stages whose panels are passed there and back again
    for k in range(len(kernel.stages)):
        spec, roles = lowering.spec(k, {kernel.sequence})
        specs.append(lowering.pack_lanes(k, roles, spec))
        outer = [x.axis for x in spec.levels if x.axis != kernel.sequence][:1]
        turns = lowering.schedule.integer(f"s{k}.turn") and roles.b is not None
        turning.append(bool(turns) and roles.b is not None and any(map(roles.b.uses, outer)))
    steps = kernel.extents[kernel.sequence]
    first = 0 if is_symbolic(steps) else min(steps, _steps_before(kernel))

    parts = lowering.schedule.integer("par")
    axes = shared_out(kernel, parts)

    def step(at: Expr, ranges: dict[str, tuple[int, int]], part: Region) -> None:
        for spec, turns in zip(specs, turning, strict=True):
            b.enter(is_root=True)
            b.written = {lowering.places[m].buffer for s in kernel.stages for m in s.members}
            extents = {a.name: int_extent(a.extent) for a in spec.anchor.axes}
            starts = {a: E.const(0) for a in extents}
            region = Region(starts, extents, {}, {**part.ranges, **ranges})
            levels = tuple(x for x in spec.levels if x.axis != kernel.sequence)
            if turns and at.op != "const":
                levels = (replace(levels[0], turn=at % 2), *levels[1:])
            region = region.narrowed(kernel.sequence, at, 1)
            if axes:
                own = axes[spec.anchor.name]
                region = region.narrowed(own, part.starts[_PART], part.lengths[_PART])
            emit_stage(b, replace(spec, levels=levels, prefetch=()), region, lowering.lanes, [])
            for node in b.leave():
                b.effect(node)

    def every_step(part: Region) -> None:
        for at in range(first):
            step(E.const(at), {}, part)
        if steps > first or not first:
            var = b.counter()
            b.enter(var, is_root=True)
            step(E.index(var), {var: (first, max(first, steps - 1))}, part)
            nodes = b.leave()
            b.effect(For(var, E.const(first), E.const(steps), 1, nodes))

    b.enter(is_root=True)
    if not axes:
        every_step(Region({}, {}, {}, {}))
    else:
        name, axis = next(iter(axes.items()))
        extents = {a.name: int_extent(a.extent) for a in kernel.definitions[name].axes}
        n = extents[axis]
        block = share_of(n, parts)
        number = b.counter()
        count = -(-n // block)
        b.enter(number, is_root=True)
        whole = Region({_PART: E.const(0)}, {_PART: n}, {}, {}).with_range(number, count)
        level = (Level(_PART, block, "peel"),)
        emit_levels(b, level, whole, lowering.lanes, [E.index(number)], every_step)
        nodes = b.leave()
        b.effect(For(number, E.const(0), E.const(count), 1, nodes, parallel=True))
    lowering.phases.append(Phase(b.leave()))
    lowering.kernel = given
    for d in narrow:
        if final[d.name].layout.is_ring:
            continue  # nothing outside reads it
        wide = {"wide": lowering.places[d.name]}
        read = E.read("wide", [a.index for a in d.axes], F32)
        _elementwise(lowering, d.name, d.axes, final[d.name], E.cast(read, d.dtype), wide)


def _steps_before(kernel: Kernel) -> int:
    """How many steps have code of their own: those in which a read reaches before the first step,
    so that no step of the loop asks; none where that would be more than two.
    """
    axis = E.index(kernel.sequence)
    reach = 0
    for d in kernel.definitions.values():
        for r in d.reads():
            if r.attr[0] in kernel.definitions and r.attr[1]:
                for s in r.args[:-1]:
                    back = E.int_value(axis - s)
                    reach = max(reach, back if back is not None else 0)
    return reach if reach <= 2 else 0


def _widened(kernel: Kernel, names: set[str]) -> Kernel:
    """The kernel with its own 16-bit floats in f32: they are rounded where a cast says so alone."""

    def go(e: Expr) -> Expr:
        if e.op == "const":
            return E.const(e.attr, F32) if _is_narrow(e.dtype) else e
        if e.op == "read":
            subs = [go(s) for s in e.args[: len(e.args) - e.attr[1]]]
            orelse = e.args[-1] if e.attr[1] else None
            if e.attr[0] in names:
                return E.read(e.attr[0], subs, F32, None if orelse is None else go(orelse))
            if orelse is not None and orelse.op != "const":
                orelse = E.cast(go(orelse), e.dtype)
            new = E.read(e.attr[0], subs, e.dtype, orelse)
            return E.cast(new, F32) if _is_narrow(e.dtype) else new
        if e.op == "cast":
            new = E.cast(go(e.args[0]), e.dtype)
            return E.cast(new, F32) if _is_narrow(e.dtype) else new
        return E.rebuild(e, tuple(map(go, e.args))) if e.args else e

    def definition(d: Definition) -> Definition:
        r = d.reduction
        if r is not None and r.guard is not None:
            r = replace(r, guard=go(r.guard))
        dtype = F32 if d.name in names else d.dtype
        body = go(d.body)
        return replace(d, dtype=dtype, body=body, reduction=r)

    body = tuple(
        Recurrence(s.axis, tuple(map(definition, s.definitions)))
        if isinstance(s, Recurrence)
        else s
        for s in kernel.program.body
    )
    return replace(kernel, program=replace(kernel.program, body=body))


def _is_narrow(dtype: DType) -> bool:
    return dtype.is_float and dtype.bits == 16


def lower_scatter(lowering: _Lowering) -> None:
    """The base in parallel, then every contribution; those to one element in source order."""
    kernel = lowering.kernel
    s = kernel.scatter
    assert s is not None
    work = working_type(s.monoid, s.dtype) if s.monoid else s.dtype
    target = lowering.places[s.name]
    if work is not s.dtype:  # sums of narrow floats are rounded once, at the end
        layout = dense(target.layout.shape)
        buffer = Buffer("w0", work, E.const(layout.size), "arena")
        lowering.workspace.append(buffer)
        target = Place(buffer.name, layout, work)
    base = s.base if work is s.dtype else E.cast(s.base, work)
    streams = bool(lowering.schedule.integer("s0.nt"))
    _elementwise(lowering, s.name, s.axes, target, base, {}, streams)
    if not _scatter_runs(lowering, s, target):
        _scatter_points(lowering, s, target)
    if work is not s.dtype:
        read = E.read("wide", [a.index for a in s.axes], work)
        final = lowering.places[s.name]
        body = E.cast(read, s.dtype)
        _elementwise(lowering, s.name, s.axes, final, body, {"wide": target}, streams)


def _elementwise(
    lowering: _Lowering,
    name: str,
    axes: tuple[Axis, ...],
    target: Place,
    body: Expr,
    more: dict[str, Place],
    nontemporal: bool = False,
) -> None:
    """A phase that sets every element of a place."""
    places = {**lowering.places, **more, name: target}
    if body.op == "const" and _is_dense(target.layout):
        size = prod(target.layout.shape)  # an empty tensor has room for an element, but none
        axes = (Axis("e", E.const(size)),)
        places[name] = Place(target.buffer, dense((size,)), target.dtype)
    levels = [Level(a.name, 1) for a in axes[:-1]]
    lane = axes[-1].name if axes else None
    grain = 1
    if lane is not None:
        n = int_extent(axes[-1].extent)
        long = not is_symbolic(n) and n > _PIECE
        levels += [Level(lane, _PIECE, "block")] if long else []
        levels.append(Level(lane, 4 * lowering.lanes, "mask"))
        grain = 1 if is_symbolic(n) else max(1, _PIECE // max(1, n))
    d = Definition(name, target.dtype, axes, body)
    spec = StageSpec(d, (), (), frozenset({name}), tuple(levels), (), lane, places=places)
    spec = replace(spec, nontemporal=nontemporal)
    lowering.phase([(spec, {a.name: int_extent(a.extent) for a in axes})], (), 1, grain)


def _is_dense(layout: Layout) -> bool:
    """Is it row-major, without gaps, of a known size?"""
    if is_symbolic(layout.size) or any(map(is_symbolic, layout.shape)):
        return False
    return bool(layout.shape) and layout == dense(layout.shape)


def _scatter_runs(lowering: _Lowering, s: Scatter, target: Place) -> bool:
    """Contributions as vectors along an axis that goes straight into the tensor, whose blocks are
    shared out; False where there is none.

    Positions of that axis never meet, so its blocks are independent.
    """
    b, lanes = lowering.b, lowering.lanes
    extents = {a.name: int_extent(a.extent) for a in s.source}
    lane = scatter_lane(lowering.kernel)
    if lane is None:
        return False
    n = extents[lane]
    blocks_wanted = max(1, lowering.schedule.integer("s0.blocks", 4))
    block = -(-n // (4 * lanes * blocks_wanted)) * 4 * lanes  # of whole vectors
    count = -(-n // block)
    counters = {a.name: f"r_{a.name}" for a in s.source if a.name != lane}
    starts: dict[str, Expr] = {a: E.index(v) for a, v in counters.items()}
    ranges = {v: (0, max(0, extents[a] - 1)) for a, v in counters.items()}

    def scope(r: Region) -> TileScope:
        sizes = {lane: r.lengths[lane]}
        inside = lane if r.lengths[lane] > 1 else None
        return TileScope(b, lowering.places, r.starts, sizes, inside, r.ranges, r.valid, extents)

    whole = Region({**starts, lane: E.const(0)}, {**dict.fromkeys(starts, 1), lane: n}, {}, ranges)
    b.written = {target.buffer}
    probe = scope(whole)
    subscripts = [probe.localize(x) for x in s.subscripts]
    inside = probe._inside(target, subscripts)
    flat = [probe.flat(x) for x in subscripts]
    condition = None if inside is None else probe.flat(inside)
    if None in flat or (inside is not None and condition is None):
        return False
    if condition is not None and any(p.attr in condition.indices() for p in probe._positions):
        return False
    monoid = MONOIDS[s.monoid] if s.monoid else None
    ahead = _later(s, lane, lowering.schedule.integer("s0.ahead"))

    def tile(r: Region) -> None:
        here = scope(r)
        if ahead is not None:
            fetch_rows(b, here, target, ahead)
        value = here.value(s.body)
        if value.type.dtype is not target.dtype:
            t = TileType(target.dtype, value.type.axes, value.type.lane)
            value = b.map("cast", t, (value,))
        local = [x for x in map(here.flat, map(here.localize, s.subscripts)) if x is not None]
        if monoid is not None:
            t = here.type(target.dtype, set(here.tiled))
            value = b.combine(monoid, t, here.load_at(target, local), value)
        here.store_at(target, local, value)

    b.enter(is_root=True)
    chunk = b.counter()
    b.enter(chunk)
    region = whole.with_range(chunk, count)
    for a in s.source:
        if a.name != lane:
            b.enter(counters[a.name])

    def blocks(r: Region) -> None:
        emit_levels(b, (Level(lane, 4 * lanes, "mask"),), r, lanes, [], tile)

    if condition is not None:
        b.enter()
    emit_levels(b, (Level(lane, block),), region, lanes, [E.index(chunk)], blocks)
    if condition is not None:
        b.effect(If(condition, b.leave()))
    for a in reversed(s.source):
        if a.name != lane:
            nodes = b.leave()
            b.effect(For(counters[a.name], E.const(0), E.const(extents[a.name]), 1, nodes))
    nodes = b.leave()
    b.effect(For(chunk, E.const(0), E.const(count), 1, nodes, parallel=True))
    lowering.phases.append(Phase(b.leave()))
    return True


def _later(s: Scatter, lane: str, ahead: int) -> tuple[Expr, ...] | None:
    """The subscripts of the contribution that comes so many positions later, of the last at the
    end; None where that is not wanted.
    """
    axis = next((a for a in reversed(s.source) if a.name != lane), None)
    if not ahead or axis is None:
        return None
    last = axis.extent - 1
    later = E.minimum(axis.index + ahead, last)
    return tuple(E.substitute(x, {axis.index: later}) for x in s.subscripts)


def _scatter_points(lowering: _Lowering, s: Scatter, place: Place) -> None:
    """One contribution after the other."""
    b = lowering.b
    b.enter(is_root=True)
    opened = []
    starts, ranges = {}, {}
    for a in s.source:
        var, n = b.counter(), int_extent(a.extent)
        b.enter(var)
        opened.append((var, n))
        starts[a.name] = E.index(var)
        ranges[var] = (0, max(0, n - 1))
    b.written = {place.buffer}
    scope = TileScope(b, lowering.places, starts, {}, None, ranges)
    subscripts = [scope.localize(x) for x in s.subscripts]
    inside = scope._inside(place, subscripts)
    mask = scope._value(inside) if inside is not None else None
    offset = scope._value(place.layout.address(subscripts))
    if offset.type != TileType(I64):
        offset = b.map("add", TileType(I64), (offset, b.fill(TileType(I64), 0)))
    value = scope.value(s.body)
    if value.type.dtype is not place.dtype:
        value = b.map("cast", TileType(place.dtype), (value,))
    monoid = MONOIDS[s.monoid] if s.monoid else None
    if monoid == "logaddexp":  # not a monoid of the scatter operation
        old = b.gather(TileType(place.dtype), place.buffer, E.const(0), offset, mask, 0)
        value = b.combine(monoid, TileType(place.dtype), old, value)
        monoid = None
    b.effect(
        ScatterNode(
            place.buffer, E.const(0), offset.name, value.name, mask.name if mask else None, monoid
        )
    )
    for var, n in reversed(opened):
        nodes = b.leave()
        b.effect(For(var, E.const(0), E.const(n), 1, nodes))
    lowering.phases.append(Phase(b.leave()))
