"""Kernels whose order of execution is part of their meaning: recurrences and scatters.

In: a lowering in progress. Out: its phases. Invariants: a recurrence runs its steps in order and,
within one, its stages in order; a scatter combines contributions in source order, so duplicates are
deterministic.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.kernel import int_extent
from tilewright.ir.nest import For, Phase, Scatter, TileType
from tilewright.ir.program import MONOIDS, Definition
from tilewright.lower.loops import Level, Region, StageSpec, emit_stage
from tilewright.lower.tiles import TileScope

if TYPE_CHECKING:
    from tilewright.lower.kernel import _Lowering

__all__ = ["lower_scatter", "lower_sequence"]


def lower_sequence(lowering: _Lowering) -> None:
    """for t: stage; stage; ... in one serial phase."""
    kernel, b = lowering.kernel, lowering.b
    specs = [lowering.spec(k, {kernel.sequence})[0] for k in range(len(kernel.stages))]
    steps = kernel.extents[kernel.sequence]
    b.enter(is_root=True)
    var = b.counter()
    b.enter(var, is_root=True)
    for spec in specs:
        b.enter(is_root=True)
        b.written = {m for s in kernel.stages for m in s.members}
        extents = {a.name: int_extent(a.extent) for a in spec.anchor.axes}
        region = Region(
            {a: E.const(0) for a in extents}, extents, {}, {var: (0, max(0, steps - 1))}
        )
        levels = tuple(x for x in spec.levels if x.axis != kernel.sequence)
        region = region.narrowed(kernel.sequence, E.index(var), 1)
        emit_stage(b, replace(spec, levels=levels, prefetch=()), region, lowering.lanes, [])
        for node in b.leave():
            b.effect(node)
    nodes = b.leave()
    b.effect(For(var, E.const(0), E.const(steps), 1, nodes))
    lowering.phases.append(Phase(b.leave()))


def lower_scatter(lowering: _Lowering) -> None:
    """The base in parallel, then every contribution in source order."""
    kernel, b = lowering.kernel, lowering.b
    s = kernel.scatter
    assert s is not None
    base = Definition(s.name, s.dtype, s.axes, s.base)
    levels = [Level(a.name, 1) for a in s.axes[:-1]]
    lane = s.axes[-1].name if s.axes else None
    if lane is not None:
        levels.append(Level(lane, lowering.lanes, "mask"))
    spec = StageSpec(
        base, (), (), frozenset({s.name}), tuple(levels), (), lane, places=lowering.places
    )
    lowering.phase([(spec, {a.name: int_extent(a.extent) for a in s.axes})], (), 1, 1)
    b.enter(is_root=True)
    opened = []
    starts, ranges = {}, {}
    for a in s.source:
        var, n = b.counter(), int_extent(a.extent)
        b.enter(var)
        opened.append((var, n))
        starts[a.name] = E.index(var)
        ranges[var] = (0, max(0, n - 1))
    b.written = {s.name}
    scope = TileScope(b, lowering.places, starts, {}, None, ranges)
    place = lowering.places[s.name]
    subscripts = [scope.localize(x) for x in s.subscripts]
    inside = scope._inside(place, subscripts)
    mask = scope._value(inside) if inside is not None else None
    offset = scope._value(place.layout.address(subscripts))
    if offset.type != TileType(I64):
        offset = b.map("add", TileType(I64), (offset, b.fill(TileType(I64), 0)))
    value = scope.value(s.body)
    monoid = MONOIDS[s.monoid] if s.monoid else None
    if monoid == "logaddexp":  # not a monoid of the scatter operation
        old = b.gather(TileType(s.dtype), place.buffer, E.const(0), offset, mask, 0)
        value = b.combine(monoid, TileType(s.dtype), old, value)
        monoid = None
    b.effect(
        Scatter(
            place.buffer, E.const(0), offset.name, value.name, mask.name if mask else None, monoid
        )
    )
    for var, n in reversed(opened):
        nodes = b.leave()
        b.effect(For(var, E.const(0), E.const(n), 1, nodes))
    lowering.phases.append(Phase(b.leave()))
