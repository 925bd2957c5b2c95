"""The schedule of a kernel with symbolic dims.

In: the kernel, and a schedule of it at the hints of its dims. Out: the schedule for the range.
Invariant: every parameter keeps its name; sizes are absolute, so that they fit every extent.
"""

from __future__ import annotations

from tilewright.ir.extent import assuming, is_symbolic
from tilewright.ir.kernel import Kernel
from tilewright.schedule.roles import stage_roles
from tilewright.schedule.schedule import Schedule

__all__ = ["for_range"]


def for_range(kernel: Kernel, schedule: Schedule) -> Schedule:
    """What differs from the build for one size.

    Rows of operand A that lie a symbolic stride apart take a pointer each, more than there are
    registers: they are copied, so that one pointer and constants reach them.
    """
    if not kernel.program.dims or kernel.scatter is not None:
        return schedule
    changed = dict(schedule.items)
    with assuming(kernel.program.dims):
        for k in range(len(kernel.stages)):
            roles, name = stage_roles(kernel, k), f"s{k}.pack.a"
            if name not in changed or roles.a is None:
                continue
            strides = (roles.a.strides.get(a) for a in roles.roles("m"))
            if any(s is not None and is_symbolic(s) for s in strides):
                changed[name] = "block"
    return Schedule.of(changed)
