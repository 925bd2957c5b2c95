"""The schedule of a kernel with symbolic dims.

In: the kernel, and a schedule of it at the hints of its dims. Out: the schedule for the range.
Invariant: every parameter keeps its name; sizes are absolute, so that they fit every extent.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from tilewright.ir.extent import Extent, assuming, is_symbolic
from tilewright.ir.kernel import Kernel
from tilewright.ir.ranges import interval
from tilewright.schedule.matrices import ROWS
from tilewright.schedule.roles import StageRoles, stage_roles
from tilewright.schedule.schedule import Schedule, Value

__all__ = ["for_range"]

_SHORTEST = 32  # positions of a tile that is never cut: two vectors of the widest registers


def for_range(kernel: Kernel, schedule: Schedule) -> Schedule:
    """What differs from the build for one size.

    Rows of operand A that lie a symbolic stride apart take a pointer each, more than there are
    registers: they are copied, so that one pointer and constants reach them. A result without a
    largest size may be one that is written past the caches; the code asks for its size.
    """
    if not kernel.program.dims or kernel.scatter is not None:
        return schedule
    changed = dict(schedule.items)
    with assuming(kernel.program.dims):
        for k in range(len(kernel.stages)):
            roles, name = stage_roles(kernel, k), f"s{k}.pack.a"
            changed.update(_in_vectors(roles, changed, f"s{k}."))
            changed.update(_short(roles, changed, f"s{k}."))
            if f"s{k}.nt" in changed and _may_be_large(kernel, k):
                changed[f"s{k}.nt"] = 1
            if name not in changed or roles.a is None:
                continue
            strides = (roles.a.strides.get(a) for a in roles.roles("m"))
            if any(s is not None and is_symbolic(s) for s in strides):
                changed[name] = "block"
    return Schedule.of(changed)


def _short(roles: StageRoles, items: Mapping[str, Value], p: str) -> dict[str, Value]:
    """A reduced lane axis in tiles that the least size of the range fills: all vectors of its last
    tile are computed, however few positions are left.
    """
    lane = roles.axis_of.get(str(items.get(f"{p}lane", "")))
    n = roles.extents.get(lane or "")
    if lane not in roles.reduce or not isinstance(n, Extent):
        return {}
    name = f"{p}reg.{roles.names[lane]}"
    least, width = interval(n.expr, {})[0] or 0, int(items.get(name, 1))
    while width > max(least, _SHORTEST):
        width //= 2
    return {name: width}


def _may_be_large(kernel: Kernel, k: int) -> bool:
    """Has a result that the stage hands out an extent without a largest value?"""
    endless = {d.name for d in kernel.program.dims if d.hi is None}
    out = [kernel.definitions[m] for m in kernel.stages[k].members if m in kernel.layout_of]
    return any(endless & a.extent.names("dim") for d in out for a in d.axes)


def _in_vectors(roles: StageRoles, items: Mapping[str, Value], p: str) -> dict[str, Value]:
    """Rows of the register tile, where it was one of matrix registers, which multiply words of an
    axis of known extent only: as many as fit 32 vector registers instead.
    """
    lane = roles.axis_of.get(str(items.get(f"{p}lane", "")))
    if not roles.is_contraction or lane is None or roles.group[0] or roles.pairs[0]:
        return {}
    rows = [f"{p}reg.{roles.names[a]}" for a in roles.out if a != lane]
    vectors = -(-int(items.get(f"{p}reg.{roles.names[lane]}", 1)) // ROWS)
    if lane in roles.reduce or prod(int(items.get(x, 1)) for x in rows) * vectors <= 31:
        return {}
    out: dict[str, Value] = dict.fromkeys((x for x in rows if x in items), 1)
    last = [x for x in rows if int(items.get(x, 1)) > 1][-1:]
    return {**out, **{x: max(1, 28 // vectors) for x in last}}
