"""What one candidate costs: CPU milliseconds to lower, emit, build and link a whole kernel.

In: nothing. Out: `measure()`. Invariant: nothing comes from a cache of objects, and every candidate
is a matrix product of 512^3 with packing and tails, another one each time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from tilewright.codegen.llvm import emit_llvm
from tilewright.errors import Rejected
from tilewright.group.plan import plan_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.program import parse_program
from tilewright.lower.kernel import lower
from tilewright.machine.target import Target
from tilewright.runtime.build import emit_object
from tilewright.runtime.jit import load_object
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule

__all__ = ["measure"]

_PROGRAM = """program product(x: f32[512, 512], w: f32[512, 512]):
  y: f32[i<512, j<512] = sum(k<512) x[i, k] * w[k, j]
  return y
"""


def _schedules(kernel: Kernel, target: Target, count: int) -> Iterator[Schedule]:
    """The default, then others of its packing whose register tile does not divide the extents."""
    space = space_of(kernel, target)
    default = space.default()
    yield default
    tile = space.groups[0]
    start = dict(zip(tile.names, tile.rows[tile.start], strict=True))
    found = 1
    for row in tile.rows:
        values = dict(zip(tile.names, row, strict=True))
        rows = [v for n, v in values.items() if ".reg.m" in n]
        same = all(v == start[n] for n, v in values.items() if ".reg.m" not in n)
        if same and values != start and all(isinstance(v, int) and 512 % v for v in rows):
            yield Schedule.of({**default.values, **values})
            found += 1
            if found == count:
                return


def measure(count: int = 5) -> tuple[float, float]:
    """(all, Python's part): medians over `count` candidates after one to warm up.

    Python's part is lowering and emitting; the rest is LLVM and the linker.
    """
    target = Target.native()
    plan, _ = plan_program(parse_program(_PROGRAM), target)
    kernel = plan.kernels[0]
    totals: list[float] = []
    pythons: list[float] = []
    schedules = list(_schedules(kernel, target, count))
    for s in [schedules[-1], *schedules]:
        started = time.process_time()
        lowered = lower(kernel, s, target)
        assert not isinstance(lowered, Rejected), lowered.detail
        text = emit_llvm(lowered.nest, target)
        emitted = time.process_time()
        load_object(emit_object(text, target))
        totals.append(1e3 * (time.process_time() - started))
        pythons.append(1e3 * (emitted - started))
    return statistics.median(totals[1:]), statistics.median(pythons[1:])
