"""The analytic cost of a tiled loop nest: cycles of arithmetic and of cache traffic.

In: a stage as numbers (extents, strides of its streams), its loops and register tile, a Target.
Out: cycles. Invariants: a function of its arguments alone; only ratios between schedules of one
kernel mean something. The tuner orders candidates by it, timings correct it.

Arithmetic follows the ports of a register tile; traffic follows the loops: a cache level is filled
again by every loop outside the largest part of the nest whose data fits into the level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

from tilewright.machine.target import Target

__all__ = ["Loop", "Stream", "Tiling", "Work", "balance", "lines", "stage_cycles"]

# Cycles for a byte that comes from the second level, the third, or memory. Prefetching hides part.
_CYCLES_PER_BYTE = (0.012, 0.05, 0.16)
_STREAMED_CYCLES = 0.06  # for a byte that is stored past the caches
_FULL = 0.75  # share of a cache that one nest may count on
_LATENCY = 4.0  # of a dependent multiply-add
_STRIDED_CYCLES = 12.0  # a vector gathered from, or scattered to, as many lines as it has lanes
_FORK_CYCLES = 6000.0
_CHUNK_CYCLES = 60.0


@dataclass(frozen=True)
class Stream:
    """A tensor that a stage reads or writes: element stride per axis (0: unused, None: unknown).

    packed: the copy that the nest reads has no gaps. known: an earlier stage has touched it.
    streamed: stores go past the caches.
    """

    strides: tuple[int | None, ...]
    element_bytes: int
    is_write: bool = False
    is_packed: bool = False
    is_known: bool = False
    is_streamed: bool = False

    def uses(self, axis: int) -> bool:
        return self.strides[axis] != 0


@dataclass(frozen=True)
class Work:
    """A stage: extents by axis number, which axes are reduced, operations per point.

    row_cycles: what the scalars of one row of a register tile cost beside the multiply-adds.
    """

    extents: tuple[int, ...]
    reduced: frozenset[int]
    streams: tuple[Stream, ...]
    operations: float = 1.0
    is_product: bool = False
    row_cycles: float = 0.2


@dataclass(frozen=True)
class Loop:
    """A loop over `axis` in steps of `step`, inside the loops before it."""

    axis: int
    step: int


@dataclass(frozen=True)
class Tiling:
    """Loops from the outermost, register tile sizes by axis, the axis of the lanes (-1: none)."""

    loops: tuple[Loop, ...]
    registers: tuple[int, ...]
    lane: int = -1


def lines(s: Stream, box: Sequence[int], line_bytes: int = 64) -> float:
    """Cache lines of a stream that a box of the index space touches."""
    along: dict[int, int] = {}
    scattered = 1
    for axis, n in enumerate(box):
        stride = s.strides[axis]
        if stride is None:
            scattered *= n
        elif stride:
            # Axes of equal stride slide along each other: a window, not a product.
            along[abs(stride)] = along.get(abs(stride), 1) + n - 1
    if s.is_packed:
        return max(1.0, scattered * prod(along.values()) * s.element_bytes / line_bytes)
    run = along.pop(1, 1)
    rows = scattered
    for stride, n in sorted(along.items()):
        if stride <= run or stride * s.element_bytes < line_bytes:
            run = max(run, stride * (n - 1) + run)
        else:
            rows *= n
    return rows * max(1.0, run * s.element_bytes / line_bytes)


class _Traffic:
    """The loops of a stage from the outermost: boxes inside them, trips, lines of every stream."""

    def __init__(self, work: Work, tiling: Tiling, line_bytes: int) -> None:
        self.work, self.tiling, self.line_bytes = work, tiling, line_bytes
        box = list(work.extents)
        self.trips: list[int] = []
        self.lines = [self._lines(box)]
        for loop in tiling.loops:
            step = max(1, min(loop.step, box[loop.axis]))
            trips = max(1, ceil(box[loop.axis] / step))
            self.trips.append(trips)
            box[loop.axis] = step
            self.lines.append(self._lines(box) if trips > 1 else self.lines[-1])

    def _lines(self, box: list[int]) -> list[float]:
        return [lines(s, box, self.line_bytes) for s in self.work.streams]

    def bytes(self, cache_bytes: int, keeps_known: bool) -> float:
        """Bytes that enter a cache of this size while the stage runs, when it ran before."""
        room = _FULL * cache_bytes / self.line_bytes
        depth = len(self.trips)
        for d, each in enumerate(self.lines):
            if sum(each) <= room:
                depth = d
                break
        total = 0.0
        for i, s in enumerate(self.work.streams):
            if depth == 0 or s.is_streamed or (s.is_known and keeps_known):
                continue
            times = 1
            is_inner = True
            for k in range(depth - 1, -1, -1):
                # What a loop does not move is still there in its next trip.
                if is_inner and not s.uses(self.tiling.loops[k].axis):
                    continue
                is_inner = False
                times *= self.trips[k]
            total += times * self.lines[depth][i] * (2 if s.is_write else 1)
        return total * self.line_bytes


def strided_cycles(work: Work, tiling: Tiling, lanes: int) -> float:
    """Cycles of vectors whose elements do not lie side by side."""
    lane, total = tiling.lane, 0.0
    if lane < 0:
        return 0.0
    for s in work.streams:
        stride = s.strides[lane]
        if stride in (0, 1) or s.is_packed:
            continue
        vectors = 1.0 / lanes
        for axis, n in enumerate(work.extents):
            if s.is_write and axis in work.reduced:
                continue
            # A vector that an axis does not move is loaded once for all rows of the tile.
            vectors *= n if s.uses(axis) else ceil(n / max(1, tiling.registers[axis]))
        total += vectors * _STRIDED_CYCLES
    return total


def compute_cycles(work: Work, tiling: Tiling, lanes: int) -> float:
    """Cycles of the register tile, times the tiles: ports, latency, loop control, tails."""
    registers, lane = tiling.registers, tiling.lane
    points = prod(work.extents)
    if not points:
        return 0.0
    waste = 1.0
    for axis, n in enumerate(work.extents):
        size = min(registers[axis], max(n, 1))
        if size <= 1:
            continue
        full, rest = divmod(n, registers[axis])
        if axis == lane:
            width = lanes * ceil(registers[axis] / lanes)
            waste *= (full * width + (min(width, lanes * ceil(rest / lanes)) if rest else 0)) / n
        elif rest and axis not in work.reduced:
            # A tail runs at the pace of a smaller tile.
            waste *= (full * size + max(rest, 0.6 * size)) / n
    vectors = ceil(registers[lane] / lanes) if lane >= 0 else 1
    width = lanes if lane >= 0 else 1
    rows = prod(
        r for a, r in enumerate(registers) if a != lane and a not in work.reduced and r > 1
    )
    unroll = prod(r for a, r in enumerate(registers) if a != lane and a in work.reduced and r > 1)
    live = rows * vectors
    if work.is_product:
        across = lane in work.reduced
        loads = 2.0 * live if across else rows + vectors
        streams = 0.1 * loads if across else 0.5 * vectors + work.row_cycles * rows
        step = max(live / 2, loads / 2, _LATENCY) + streams + 1.0 / unroll + 0.01 * unroll * live
        cycles = step / (live * width)
    elif work.reduced:
        cycles = (max(work.operations * live / 2, _LATENCY) + 1.0) / (live * width)
    else:
        cycles = (work.operations / 2 + 1.0 + 1.0 / live) / width
    return cycles * points * waste


def stage_cycles(
    work: Work,
    tiling: Tiling,
    target: Target,
    *,
    block_bytes: float = 0.0,
    arithmetic: float | None = None,
) -> float:
    """Cycles of a stage on one thread.

    block_bytes: what all stages touch for one block of the axes they share; where that fits into a
    cache, what an earlier stage has touched costs nothing there. arithmetic: cycles of what is not
    done in vector registers.
    """
    lanes = target.lanes(32)
    total = compute_cycles(work, tiling, lanes) if arithmetic is None else arithmetic
    total += strided_cycles(work, tiling, lanes)
    traffic = _Traffic(work, tiling, target.cache_line_bytes)
    levels = (target.l1_bytes, target.l2_bytes, target.l3_bytes)
    for size, price in zip(levels, _CYCLES_PER_BYTE, strict=True):
        if size > 0:
            total += price * traffic.bytes(size, block_bytes <= _FULL * size)
    for i, s in enumerate(work.streams):
        if s.is_streamed:
            total += _STREAMED_CYCLES * traffic.lines[0][i] * target.cache_line_bytes
    return total


def balance(cycles: float, chunks: int, threads: int) -> float:
    """Cycles when `chunks` equal parts are shared by threads; 0 chunks: one thread does it all."""
    if chunks <= 1 or threads <= 1:
        return cycles + _CHUNK_CYCLES * chunks
    rounds = ceil(chunks / threads)
    return cycles * rounds / chunks + _FORK_CYCLES + _CHUNK_CYCLES * rounds
