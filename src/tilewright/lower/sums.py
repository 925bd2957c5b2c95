"""Sums that wait in scratch between blocks of a reduced axis.

In: a `StageSpec` whose levels hold one of a reduced axis. Out: the stage with scratch for its sums,
or without that level. Invariant: every position is absorbed once, block after block.

What a register tile reads of a long axis leaves the caches before the next tile reads it again. A
block of the axis stays there for all tiles of a cache block; the sums, which are few, travel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tilewright.ir import expr as E
from tilewright.ir.extent import ceil_div, is_symbolic
from tilewright.ir.layout import Layout, Term
from tilewright.ir.nest import Buffer
from tilewright.lower.reductions import working_type
from tilewright.lower.region import Region, StageSpec
from tilewright.lower.tiles import Place
from tilewright.schedule.roles import StageRoles

if TYPE_CHECKING:
    from tilewright.lower.kernel import _Lowering

__all__ = ["with_blocks", "with_scratch"]


def with_blocks(lowering: _Lowering, k: int, roles: StageRoles, spec: StageSpec) -> StageSpec:
    """The stage with blocks of a reduced axis as its levels say, if it can have them; else without
    that level.
    """
    fold, outer = spec.anchor.reduction, next((x for x in spec.levels if x.tail == "sums"), None)
    if outer is None:
        return spec
    block = ceil_div(outer.block, 2 * lowering.lanes) * 2 * lowering.lanes  # whole cache lines
    can = fold is not None and not fold.monoid.startswith("arg")
    can = can and not (lowering.kernel.shared or lowering.kernel.sequence)
    can = can and not (spec.rows or spec.partial)
    can = can and not any(is_symbolic(n) for n in roles.extents.values())
    can = can and lowering.schedule.integer(f"s{k}.parts") < 2
    if not can or block >= roles.extents[outer.axis]:
        return replace(spec, levels=tuple(x for x in spec.levels if x is not outer))
    # Tiles that overlap would count a block twice.
    levels = tuple(replace(x, tail="peel") if x.tail == "overlap" else x for x in spec.levels)
    levels = tuple(replace(x, block=block) if x.tail == "sums" else x for x in levels)
    return replace(spec, levels=levels, sums=f"f{k}")


def with_scratch(lowering: _Lowering, spec: StageSpec) -> StageSpec:
    """The stage with its sums in scratch: tiles one behind the other, in the order of the loops."""
    d = spec.anchor
    assert d.reduction is not None
    at = next(i for i, x in enumerate(spec.levels) if x.tail == "sums")
    names = [a.name for a in d.axes]
    tile = dict.fromkeys(names, 1) | {x.axis: x.block for x in spec.levels}
    shape = []
    for name in names:
        mine = [x.block for x in spec.levels[:at] if x.axis == name]
        most = min([*mine[-1:], spec.extents[name]])
        shape.append(ceil_div(most, tile[name]) * tile[name])
    terms: dict[str, list[Term]] = {name: [] for name in names}
    stride = 1
    for name in sorted(names, key=lambda a: a != spec.lane):
        if tile[name] > 1:
            terms[name].append(Term(names.index(name), 1, tile[name], stride))
            stride *= tile[name]
    for name in dict.fromkeys(x.axis for x in reversed(spec.levels) if x.axis in terms):
        i = names.index(name)
        terms[name].append(Term(i, tile[name], 0, stride))
        stride *= shape[i] // tile[name]
    layout = Layout(tuple(shape), tuple(t for name in names for t in terms[name]), stride)
    dtype = working_type(d.reduction.monoid, d.dtype)
    lowering.scratch.append(Buffer(spec.sums, dtype, E.const(stride), "scratch"))
    staged = spec.staging.get(at)

    def begin(region: Region) -> None:
        origin = tuple(region.starts[name] for name in names)
        spec.places[spec.sums] = Place(spec.sums, layout, dtype, origin)
        if staged is not None:
            staged(region)

    return replace(spec, staging={**spec.staging, at: begin})
