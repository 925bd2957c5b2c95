"""The groups of one stage: which register tiles, loop orders, packings and tails it may have, best
guess first.

In: the roles of a stage, the Target. Out: `Group`s. Invariants: live registers of every row fit the
Target (SPEC section 4); tile sizes are element counts with tails, never divisors; nothing is looked
up by extents, guesses are computed from them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import product
from math import ceil, gcd, log2, prod
from typing import TypeVar

from tilewright.ir.dtypes import BF16
from tilewright.ir.extent import is_symbolic
from tilewright.ir.pieces import PIECES
from tilewright.ir.words import wide_name
from tilewright.machine.target import Target
from tilewright.schedule.blocks import SummedBlock, equal_blocks, summed_block
from tilewright.schedule.matrices import in_matrices, matrix_cycles, matrix_tiles, takes_matrices
from tilewright.schedule.roles import Access, StageRoles
from tilewright.schedule.schedule import Value
from tilewright.schedule.space import Group

__all__ = ["stage_groups"]

T = TypeVar("T")

MAX_BODY = 512  # vector operations in an innermost body
_LATENCY = 400  # cycles that memory takes to answer, roughly
MOST_THIN = 64  # rows for which an operand that comes from memory sets the pace
AHEAD_BYTES = 8192  # how far ahead of its use memory is asked for what is read once
TURNED_CYCLES = 40.0  # a vector of results that is turned and stored element by element
_RUN = 6  # elements side by side from which on the turning itself sets the pace, not the stores
_TURNED = 4  # vectors from which on they are turned in registers
_SHORT_SUM = 8  # products of a sum that is dearer to store than to compute
_HIDDEN = 4  # weight of what follows a sum that goes beside its loads
MEMORY_CYCLES = 0.17  # of a byte that comes from memory
_EXTREME_CYCLES = 10.0  # until a maximum that lets NaN through is known
HEAVY_BODY = 24  # a body of more operations than this is not worth interleaving widely


def _waste(extent: int, tile: int, lanes: int, masked: bool) -> float:
    """Work done over work asked for along one axis."""
    if extent <= 0:
        return 1.0
    if masked:
        full, rest = divmod(extent, tile)
        return (full * tile + min(tile, ceil(rest / lanes) * lanes)) / extent
    return 1.0


def _once_a_lane(
    method: Callable[[StageSpace, str | None], T],
) -> Callable[[StageSpace, str | None], T]:
    """What depends on the lane axis alone is asked for with every tile, and computed once."""

    @wraps(method)
    def found(self: StageSpace, lane: str | None) -> T:
        key = method.__name__, lane
        if key not in self.known:
            self.known[key] = method(self, lane)
        return self.known[key]  # type: ignore[return-value]

    return found


class StageSpace:
    """Candidates of one stage, with a score: estimated cycles per unit of work."""

    def __init__(
        self,
        roles: StageRoles,
        target: Target,
        number: int,
        shared: set[str],
        threads: int,
        ahead: int,
        full: dict[str, int],
        sequence: bool = False,
    ) -> None:
        self.sequence = sequence  # the stage runs once for each step of a recurrence
        self.r, self.target, self.p = roles, target, f"s{number}."
        self.shared = shared
        self.threads = threads
        self.ahead = ahead  # rows that are asked for before they are read
        self.full = full  # extents before the shared axes were cut into blocks
        self.first: dict[str, Value] = {}
        self.known: dict[tuple[str, str | None], object] = {}
        self._windows: dict[str, str | None] = {}
        folds = roles.anchor.reduction
        guard = None if folds is None else folds.guard
        self.guarded: frozenset[str] = frozenset() if guard is None else guard.indices()
        self.bits = max([8 * roles.anchor.dtype.bytes, 32]) if roles.anchor.dtype.is_float else 32
        self.lanes = target.lanes(self.bits)
        self.group, self.word = roles.dotted(target)
        self.registers = target.vector_registers

    # -- lane candidates
    def lanes_of(self) -> list[tuple[float, str | None]]:
        """(score, axis), best first: an axis that is contiguous in what is read and written, and
        long enough.
        """
        r = self.r
        out: list[tuple[float, str | None]] = []
        for axis in (*r.out, *r.reduce):
            n = r.extents[axis]
            if r.anchor.scan is not None and axis == r.anchor.scan[1]:
                unit = all(x.strides.get(axis, 0) in (0, 1) for x in (*r.accesses, *r.writes))
                if self.shared or r.anchor.scan[0] == "logsumexp" or not unit:
                    continue  # one position after the other
            if (
                axis in r.reduce
                and r.anchor.reduction is not None
                and r.anchor.reduction.monoid.startswith("arg")
                and (r.anchor.reduction.guard is not None or (len(r.reduce) > 1 and self.shared))
            ):
                continue
            fit = n / max(1, ceil(n / self.lanes) * self.lanes)
            score = fit * (2.0 + r.contiguous(axis))
            if r.b is not None and r.names[axis].startswith("n"):
                score += fit * (2.0 + 6.0 * r.b.constant + 1.0 * (r.b.strides.get(axis) == 1))
            if axis in r.reduce:
                score *= 0.6 if not r.is_contraction else 0.45
            out.append((score, axis))
        out.sort(key=lambda x: -x[0])
        best = [x for x in out if x[0] > 0][:3]
        best += [x for x in out[3:] if x[0] > 0 and self._fills(x[1])]
        return best or [(0.0, None)]

    @_once_a_lane
    def _fills(self, lane: str | None) -> bool:
        """The axis of rows whose results lie closest together, if it fills vectors, and all columns
        together do not.
        """
        r = self.r
        columns = prod(r.extents[a] for a in r.roles("n"))
        if lane is None or not r.is_contraction or not r.names[lane].startswith("m"):
            return False
        if not 1 < columns <= self.lanes // 2 or r.extents[lane] < self.lanes:
            return False
        apart = [(w.strides.get(a) or 0, a) for w in r.writes for a in r.roles("m")]
        return min(apart, default=(0, lane))[1] == lane

    # -- register tiles
    def tiles(self) -> list[tuple[float, dict[str, Value]]]:
        """(estimate, values) of every legal register tile."""
        out: list[tuple[float, dict[str, Value]]] = []
        for rank, (_, lane) in enumerate(self.lanes_of()):
            rank = 0 if self._fills(lane) else rank
            for sizes in self._sizes(lane):
                out.append(
                    (self._estimate(lane, sizes) * (1 + 0.5 * rank), self._values(lane, sizes))
                )
        out.sort(key=lambda x: x[0])
        return out

    def _values(self, lane: str | None, sizes: dict[str, int]) -> dict[str, Value]:
        values: dict[str, Value] = {f"{self.p}lane": self.r.names[lane] if lane else ""}
        for axis, name in self.r.names.items():
            values[f"{self.p}reg.{name}"] = sizes.get(axis, 1)
        return values

    def _sizes(self, lane: str | None) -> list[dict[str, int]]:
        r, out = self.r, []
        reduction = r.anchor.reduction is not None
        lane_counts = [1, 2, 3, 4] if r.is_contraction else [1, 2, 3, 4, 6, 8]
        vectors: list[int] = [1]
        if lane is not None:
            n = ceil(r.extents[lane] / self.lanes)
            vectors = [v for v in lane_counts if v <= max(1, n)] or [1]
        others = [a for a in r.out if a != lane]
        inner = self._unrolled_axes(lane, others)
        for v in vectors:
            base = {} if lane is None else {lane: v * self.lanes}
            for combo in self._unrolls(inner, v):
                sizes = {**base, **combo}
                rows = prod(combo.values())
                live = rows * v
                if lane in r.reduce:
                    need = live * 2 + 1
                elif r.is_contraction:
                    need = live + (v + 1 if rows > 1 or v > 1 else 1)
                    if self._own_vectors(lane):
                        need += 2  # loads on their way
                    if self._grouped(lane) and self.word > 2 and not self.target.has_vnni:
                        need += v + 2  # even and odd bytes of both factors
                else:
                    need = live * (2 if reduction else 1)
                if need > self.registers or live * 2 > MAX_BODY:
                    continue
                if self._grouped(lane):
                    out.append({**sizes, self.group: self.word})
                elif r.is_contraction and r.reduce and lane not in r.reduce:
                    k = r.reduce[-1]
                    window = self._window(k)
                    unrolls = [1, 2, 4, *([r.extents[k]] if window and r.extents[k] <= 11 else [])]
                    if self._lies_across(lane):  # so many vectors are turned in registers
                        unrolls = [u for u in (1, 4, 8, 16) if u * v + live < self.registers]
                    if k in self.guarded:  # a loop of single steps can end early, or skip a step
                        unrolls = [1]
                    if self._own_vectors(lane) and live * 2 > self.registers:
                        unrolls = [1]  # vectors that two trips share would be kept beside the sums
                    for u in dict.fromkeys(unrolls):
                        if u == 1 or (u <= r.extents[k] and live * u <= 112):
                            out.append({**sizes, k: u})
                elif reduction and r.reduce and lane is not None and lane not in r.reduce:
                    # Rows are combined among themselves first, so that one operation of a trip
                    # waits for the trip before.
                    k = r.reduce[-1]
                    folds = r.anchor.reduction
                    is_arg = folds is not None and folds.monoid.startswith("arg")
                    for u in (1,) if is_arg else (1, 2, 4, 8):
                        if u == 1 or (u <= r.extents[k] and live * (u + 1) <= self.registers):
                            out.append({**sizes, k: u})
                else:
                    out.append(sizes)
        if not self.shared and not self.sequence and takes_matrices(r, self.target, lane):
            out += matrix_tiles(r, self.target, lane or "", inner)
        return out or [{} if lane is None else {lane: self.lanes}]

    def _in_matrices(self, lane: str | None, sizes: dict[str, int]) -> bool:
        return in_matrices(self.r, self.target, lane, sizes)

    @_once_a_lane
    def _grouped(self, lane: str | None) -> bool:
        """Whether the stage takes its reduction a word of narrow factors at a time."""
        return self.r.dots(self.target, lane)

    @_once_a_lane
    def _own_vectors(self, lane: str | None) -> bool:
        """Whether every multiplication needs its own vector of A."""
        r = self.r
        if r.a is None or r.b is None or lane is None or lane in r.reduce:
            return False
        return r.a.uses(lane) and not self._fills(lane)

    def _lies_across(self, lane: str | None) -> bool:
        """Whether operand A holds the lane axis, but has the last reduced one contiguous."""
        a = self.r.a
        if a is None or lane is None or not self._fills(lane):
            return False
        return a.strides.get(lane) != 1 and a.strides.get(self.r.reduce[-1]) == 1

    def _window(self, k: str) -> str | None:
        """The output axis that slides along reduce axis `k` in some operand, or None."""
        if k not in self._windows:
            self._windows[k] = self._find_window(k)
        return self._windows[k]

    def _find_window(self, k: str) -> str | None:
        r = self.r
        for x in (r.a, r.b):
            if x is None or x.read is None:
                continue
            for e in x.read.args:
                names = e.names("index")
                if k in names:
                    others = [a for a in r.out if a in names]
                    if others:
                        return others[0]
        return None

    def _unrolled_axes(self, lane: str | None, others: list[str]) -> list[str]:
        """Axes worth more than one register row: those along which an operand is reused or
        contiguous.
        """
        r = self.r
        # Along an axis that an address is not linear in, a tile would have to be gathered.
        others = [
            a for a in others if all(x.strides.get(a, 0) is not None for x in self.r.accesses)
        ]
        if not others:
            return []
        if r.is_contraction:
            rows = [a for a in others if r.names[a].startswith("m")]
            if lane is not None and r.names[lane].startswith("m"):
                rows = [a for a in others if r.names[a].startswith("n")] or rows
            return rows[-2:]
        turned = [
            a
            for a in others
            if any(
                x.strides.get(a) == 1 and x.strides.get(lane or "", 0) not in (0, 1)
                for x in (*r.accesses, *r.writes)
            )
        ]
        if turned:
            return turned[:1]
        return others[-1:] if r.anchor.reduction is not None else []

    def _unrolls(self, axes: list[str], vectors: int) -> list[dict[str, int]]:
        r = self.r
        if not axes:
            return [{}]
        most = max(1, (self.registers - 2) // vectors)
        choices: list[list[int]] = []
        for a in axes:
            n = r.extents[a]
            if not r.is_contraction and r.anchor.reduction is None:
                choices.append(sorted({1, max(1, min(n, self.lanes))}))
            elif a is axes[-1]:
                choices.append(
                    [
                        x
                        for x in range(1, min(n, most) + 1)
                        if x <= 8 or x % 2 == 0 or x in (n, most)
                    ]
                    or [1]
                )
            else:
                choices.append([x for x in (1, 2, 3, 4, 6, 7) if x <= n] or [1])
        return [dict(zip(axes, c, strict=True)) for c in product(*choices) if prod(c) <= most]

    def _estimate(self, lane: str | None, sizes: dict[str, int]) -> float:
        """Cycles per point of the stage's iteration space, up to a constant factor."""
        r = self.r
        if lane is not None and self._in_matrices(lane, sizes):
            chunks = prod(ceil(r.extents[a] / max(1, sizes.get(a, 1))) for a in r.out)
            return matrix_cycles(r, lane, sizes) * max(1.0, self.threads / max(1, chunks))
        rows = prod(n for a, n in sizes.items() if a != lane and a in r.out)
        v = ceil(sizes.get(lane or "", 1) / self.lanes) if lane else 1
        width = self.lanes if lane else 1
        waste = 1.0
        if lane is not None:
            waste *= _waste(r.extents[lane], sizes[lane], self.lanes, True)
        for a, n in sizes.items():
            if a == lane or a not in r.out:
                continue
            full, rest = divmod(r.extents[a], n)
            # A peeled remainder runs at the pace of a smaller tile.
            waste *= (full * n + (max(rest, 0.6 * n) if rest and full else rest)) / max(
                1, r.extents[a]
            )
        live = rows * v
        chunks = prod(ceil(r.extents[a] / max(1, sizes.get(a, 1))) for a in r.out)
        if not self.shared and chunks < self.threads:
            waste *= self.threads / max(1, chunks)  # threads that find nothing to do
        if r.is_contraction:
            loads: float = rows + v if lane not in r.reduce else 2 * live
            unroll = sizes.get(r.reduce[-1], 1) if r.reduce and lane not in r.reduce else 1
            if self._grouped(lane):
                unroll = max(1, sizes.get(self.group, 1) // self.word)
                width *= self.word
            if self._own_vectors(lane):  # a window that is unrolled shares them
                window = self._window(r.reduce[-1])
                slides = unroll > 1 and window in sizes
                vectors = (rows + unroll - 1) / unroll if slides else float(rows)
                loads = vectors * v + v * (1 if unroll > 1 else 1.2)
                if window == lane and r.a is not None:
                    # Narrow strips of rows that lie far apart come slowly.
                    loads += 2.0 * prod(
                        n for x, n in sizes.items() if x != lane and x in r.out and r.a.uses(x)
                    )
            # Loop control costs about a cycle a trip; unrolling a full tile buys little and costs
            # code. Vectors of B come from L2, scalars of A from L1: both cost something beside the
            # multiply-adds.
            streams = 2.0 * v + 0.2 * rows if lane not in r.reduce else 0.1 * loads
            if self._own_vectors(lane):  # B is as small as a window then
                streams = 0.5 * v + 0.2 * rows
            if lane in r.reduce:
                streams += 4.0 * live * self._strided(lane)
                # At its end each sum is one number, and what follows is scalar.
                steps = max(1.0, prod(r.extents[k] for k in r.reduce) / self.lanes)
                streams += live * max(0, r.after - _HIDDEN) / steps
                # A factor whose address is not linear in the lanes is gathered for every product.
                gathered = [x for x in (r.a, r.b) if x and x.strides.get(lane or "", 0) is None]
                streams += self.lanes * live * len(gathered)
            elif lane is not None:
                streams += self._turned_cycles(lane, sizes, live)
            cycles = max(live / 2, loads / 2, 4.0) + streams + 1.0 / unroll + 0.02 * unroll * live
            streamed = self._streamed(lane)
            if streamed is not None:  # the first of the passes over it waits for memory
                points = prod(r.extents[a] for a in r.out if not streamed.uses(a))
                passes = max(1.0, points / rows)
                once = max(cycles, MEMORY_CYCLES * v * self.lanes * streamed.dtype_bytes)
                if points > 1:
                    cycles = (once + (passes - 1) * cycles) / passes
            return cycles / (live * width) * waste
        if r.anchor.reduction is not None:
            # Sums that keep the lane axis need several of them in flight; a strided lane axis is
            # loaded the other way and turned, at about four operations a vector.
            unroll = sizes.get(r.reduce[-1], 1) if r.reduce and lane not in r.reduce else 1
            live *= unroll
            cycles = max(live / 2, 4.0 if lane not in r.reduce or live < 4 else live / 2)
            extreme = r.anchor.reduction.monoid in ("max", "min")
            if lane not in r.reduce:
                if extreme and self._from_memory():
                    # Its operations fill the CPU's window: rows that come at once are in one step.
                    cycles *= (1 + 1 / unroll) * (1 + 0.05 * abs(v - 2))
                else:
                    cycles *= 1 + 1 / v  # narrow strips of rows that lie far apart come slowly
            elif extreme and (self.shared or self._from_memory()):
                # NaN makes three operations of one, each of which waits for the one before; several
                # rows are as many streams.
                cycles = max(1.5 * live, _EXTREME_CYCLES) * (1 + 0.01 * rows)
            return (cycles + 4.0 * live * self._strided(lane)) / (live * width) * waste
        turned = self._unrolled_axes(lane, [a for a in r.out if a != lane])
        missing = bool(turned) and sizes.get(turned[0], 1) == 1
        best = 2 if not turned else 1
        return (1 + 0.2 * abs(v - best) + 4.0 * missing) / width * waste

    def _from_memory(self) -> bool:
        """Whether what is read does not fit a cache."""
        sizes = (
            x.dtype_bytes * prod(n for a, n in self.r.extents.items() if x.uses(a))
            for x in self.r.accesses
        )
        return sum(sizes) > self.target.l3_bytes

    def _turned_cycles(self, lane: str, sizes: dict[str, int], live: int) -> float:
        """What it costs a step of the reduction that results or an operand lie across the lanes:
        results are turned and stored in many short pieces at its end, operands are gathered.
        """
        across, gathered = self._turned(lane)
        cycles = across * live
        if prod(self.r.extents[k] for k in self.r.reduce) <= _SHORT_SUM:
            # Long sums wait for such stores; here they go beside the next vectors' products.
            beside = [a for w in self.r.writes for a, s in w.strides.items() if s == 1]
            cycles /= min(_RUN, max([sizes.get(a, 1) for a in beside], default=1))
        turned = self._lies_across(lane) and sizes.get(self.r.reduce[-1], 1) >= _TURNED
        for axes in gathered:
            points = prod([n for a, n in sizes.items() if a in axes])
            each = 4.0 / self.lanes + 0.5 / sizes.get(self.r.reduce[-1], 1) if turned else 1.0
            cycles += each * points
        return cycles

    @_once_a_lane
    def _turned(self, lane: str | None) -> tuple[float, list[set[str]]]:
        """Cycles of a vector of results that is turned, by the step of the reduction; the output
        axes of each operand that is gathered.
        """
        r = self.r
        if lane is None or (self.shared and not self.sequence):
            return 0.0, []  # what stages exchange lies as they want it
        depth = prod(r.extents[k] for k in r.reduce)
        across = any(w.strides.get(lane) not in (0, 1) for w in r.writes)
        gathered = []
        for x in (r.a, r.b):
            packed = x is not None and (x.constant or (x is r.b and r.names[lane].startswith("n")))
            if x is not None and x.uses(lane) and x.strides.get(lane) != 1 and not packed:
                gathered.append({a for a in r.out if x.uses(a)})
        return TURNED_CYCLES / max(1, depth) if across else 0.0, gathered

    @_once_a_lane
    def _strided(self, lane: str | None) -> float:
        """The share of what is read and written that is strided along the lane axis."""
        sizes, strided = 0, 0
        for x in (*self.r.accesses, *self.r.writes):
            size = prod(self.r.extents.get(a, 1) for a in x.strides if x.uses(a))
            sizes += size
            if lane is not None and x.strides.get(lane, 0) not in (0, 1):
                strided += size
        return strided / max(1, sizes)

    # -- loop orders and the rest
    def groups(self) -> list[Group]:
        """The stage's groups; the first row of each is the best guess."""
        r, p = self.r, self.p
        ranked = self.tiles()[:400]
        names = tuple(ranked[0][1])
        kinds = tuple("choice" if n.endswith("lane") else "tile" for n in names)
        rows = tuple(dict.fromkeys(tuple(v[n] for n in names) for _, v in ranked))
        out = [Group(names, kinds, rows)]
        first = dict(zip(names, rows[0], strict=True))
        self.first = first
        lane = r.axis_of.get(str(first[f"{p}lane"]))
        orders = self._orders(lane, self._in_matrices(lane, self._first_sizes(first)))
        out.append(Group((f"{p}order",), ("order",), tuple((o,) for o in orders)))
        if len(r.reduce) > 1:
            out.append(
                Group((f"{p}reduce",), ("order",), tuple((o,) for o in self._reduce_orders()))
            )
        out += self._packing(lane, first)
        out += self._fetching(lane, first)
        if self.sequence and r.is_contraction and r.b is not None and r.b.constant:
            # Panels that pass through L2 in every step: what the last ones left is met first.
            passes = self.target.l2_bytes < 2 * self._b_bytes() < 16 * self.target.l2_bytes
            out.append(Group((f"{p}turn",), ("flag",), ((1,), (0,)) if passes else ((0,), (1,))))
        out += self._strips(lane)
        for a in r.out:
            if a != lane and int(first.get(f"{p}reg.{r.names[a]}", 1)) > 1:
                guess = self._tail(a, first)
                other = "peel" if guess == "overlap" else "overlap"
                tails: tuple[tuple[Value, ...], ...] = (
                    ((guess,), (other,)) if a not in self.shared else (("peel",),)
                )
                out.append(Group((f"{p}tail.{r.names[a]}",), ("choice",), tails))
        if self.shared:
            out.append(Group((f"{p}prefetch",), ("choice",), self._prefetch()))
        if any(w.strides for w in r.writes) and not r.is_contraction and not self.sequence:
            size = prod(self.full[a] for a in r.out) * r.anchor.dtype.bytes
            streams = size > self.target.kept_bytes
            out.append(Group((f"{p}nt",), ("flag",), ((1,), (0,)) if streams else ((0,), (1,))))
        return out

    def _tail(self, axis: str, first: dict[str, Value]) -> str:
        """Best form of the rest of an unrolled axis: tiles that overlap, or a smaller one."""
        r, p = self.r, self.p
        tile = int(first[f"{p}reg.{r.names[axis]}"])
        rest = r.extents[axis] % tile
        if not rest or axis in self.shared:
            return "peel"
        # A small tile is more code and, with few sums in flight, no faster than a whole one.
        lane = r.axis_of.get(str(first[f"{p}lane"]))
        sizes = {a: int(first.get(f"{p}reg.{r.names[a]}", 1)) for a in r.out}
        live = prod(ceil(n / self.lanes) if a == lane else n for a, n in sizes.items())
        is_busy = r.is_contraction and live * rest // tile >= 8
        return "peel" if is_busy and (tile - rest) > 0.05 * r.extents[axis] else "overlap"

    def _fetching(self, lane: str | None, first: dict[str, Value]) -> list[Group]:
        """Prefetch in a contraction: of B along the reduced axis, and of the rows that follow."""
        r, p = self.r, self.p
        out: list[Group] = []
        if not r.is_contraction or r.b is None or lane not in r.out:
            return out
        if lane is not None and r.names[lane].startswith("n") and not self.shared:
            # A step takes half a cycle an accumulator; memory answers in some 400 cycles.
            live = prod(
                ceil(n / self.lanes) if a == lane else n
                for a, n in ((a, int(first.get(f"{p}reg.{r.names[a]}", 1))) for a in r.out)
            )
            ahead = 1 << max(2, ceil(log2(_LATENCY / max(1, live / 2))))
            streams = r.b.constant and 2 * self._b_bytes() >= self.target.l2_bytes
            if self._streamed(lane) is not None:  # memory sets the pace, not the multiply-adds
                v = max(1, int(first.get(f"{p}reg.{r.names[lane]}", 1)) // self.lanes)
                ahead = max(4, AHEAD_BYTES // (self.target.vector_bits // 8 * v))
            some: tuple[int, ...] = (0, ahead, ahead // 2)
            if streams:
                some = (ahead, 0, ahead // 2, 2 * ahead)
            if r.split[0] and self._in_matrices(lane, self._first_sizes(first)):
                some = (0,)  # pieces that pass at the pace of L3: no request comes before them
            out.append(Group((f"{p}ahead",), ("choice",), tuple((x,) for x in some)))
        shared = self.shared & set(r.out)
        single = {a for a in shared if first.get(f"{p}reg.{r.names[a]}", 1) == 1}
        if any(all(x.uses(a) for a in r.out if a not in single) for x in r.follows):
            out.append(Group((f"{p}fetch",), ("flag",), ((1,), (0,))))
        return out

    def _strips(self, lane: str | None) -> list[Group]:
        """Accumulators of a long run of the lane axis in scratch, for operands that lie across."""
        r, p = self.r, self.p
        scanned = r.anchor.scan[1] if r.anchor.scan is not None else ""
        if self.shared or lane is None or lane not in r.out or lane == scanned:
            return []
        fold = r.anchor.reduction
        if not scanned and (fold is None or not r.reduce):
            return []
        constant = any(x.constant and x.uses(lane) for x in r.accesses)
        if constant and r.is_contraction and not self._single(lane):
            return []  # it is packed in panels: registers hold what is summed
        n = r.extents[lane]
        most = max(self.lanes, self.target.l1_bytes // 2 // 4)
        if r.is_contraction and len(r.out) > 1:
            if self._thin(lane) is None:
                return []  # an operand is reused
            points = prod(r.extents[a] for a in r.out if a != lane)
            most = max(self.lanes, self.target.l2_bytes // 4 // 4 // max(1, points))
        wide = min(most, ceil(ceil(n / self.threads) / (4 * self.lanes)) * 4 * self.lanes)
        first = wide
        if self.threads == 1 and not r.is_contraction:
            # Of an open size this is a guess, and a strip that is too short costs another pass.
            first = most // (4 * self.lanes) * 4 * self.lanes
        sizes = [
            prod(r.extents[a] for a in x.strides if x.uses(a)) * x.dtype_bytes for x in r.accesses
        ]
        walked = [scanned] if scanned else list(r.reduce)
        across = any((x.strides.get(a) or 0) > 512 for x in r.accesses for a in walked)
        worth = across and max([0, *sizes]) > self.target.l2_bytes and n >= 8 * self.lanes
        if r.is_contraction and len(r.out) > 1:
            worth = worth and self._streamed(lane) is not None
        heights: tuple[int, ...] = (8, 16, 4)
        if scanned:
            heights = (1,)
        elif r.is_contraction:  # rows of one step are as many streams from memory
            heights = (4, 16, 8, 32) if self._single(lane) else (16, 8, 32)
        some = [(h, w) for w in dict.fromkeys([first, max(self.lanes, wide // 2)]) for h in heights]
        rows = [*some, (0, 0)] if worth else [(0, 0), *some]
        return [Group((f"{p}rows", f"{p}strip"), ("tile", "tile"), tuple(rows))]

    def _prefetch(self) -> tuple[tuple[Value, ...], ...]:
        """Ahead in shared points."""
        return ((self.ahead,), (0,), (2 * self.ahead,)) if self.ahead else ((0,), (1,))

    @_once_a_lane
    def _streamed(self, lane: str | None) -> Access | None:
        """The operand that holds the lane axis, where it comes from memory, once for a few rows:
        then memory sets the pace.
        """
        x = self._thin(lane)
        if x is None:
            return None
        size = prod(self.r.extents[a] for a in self.r.names if x.uses(a)) * x.dtype_bytes
        return x if size > self.target.l2_bytes else None

    @_once_a_lane
    def _thin(self, lane: str | None) -> Access | None:
        """The operand that holds the lane axis, if the other one has a few rows only."""
        r = self.r
        if not r.is_contraction or lane is None or lane not in r.out or self.shared:
            return None
        if any(is_symbolic(n) for n in r.extents.values()):
            return None
        found = [x for x in (r.a, r.b) if x is not None and x.uses(lane)]
        if len(found) != 1 or not r.reduce or any(r.names[a][0] == "b" for a in r.out):
            return None
        points = prod(r.extents[a] for a in r.out if not found[0].uses(a))
        return found[0] if points <= MOST_THIN else None

    def _single(self, lane: str | None) -> bool:
        """Whether a matrix that comes from memory, as it lies, meets one vector."""
        x = self._streamed(lane)
        if x is None or lane is None or x.strides.get(lane) != 1:
            return False
        return all(x.uses(a) for a in self.r.out)

    def _orders(self, lane: str | None, in_matrices: bool = False) -> list[str]:
        r = self.r
        name = r.names
        if r.anchor.scan is not None or not r.is_contraction:
            # The axis that is contiguous goes innermost; others keep the output's order.
            rest = [a for a in r.out if a != lane]
            rest.sort(key=lambda a: -max([w.strides.get(a) or 0 for w in r.writes] or [0]))
            base = [name[a] for a in rest] + ([name[lane]] if lane in r.out and lane else [])
            turned = [name[a] for a in self._unrolled_axes(lane, [a for a in r.out if a != lane])]
            if turned and lane in r.out and r.anchor.reduction is None:
                others = [x for x in base if x not in (*turned, name[lane or ""])]
                both = [*turned, name[lane or ""]]
                blocks = [f"{x}:L2" for x in both]
                return list(
                    dict.fromkeys(
                        [
                            # What is read runs innermost, a few vectors of what is written wide.
                            ",".join([*others, *blocks[::-1], *both[::-1]]),
                            ",".join([*others, *blocks, *both[::-1]]),
                            ",".join([*others, *blocks, *both]),
                            ",".join([*others, *both]),
                            ",".join([*others, *both[::-1]]),
                        ]
                    )
                )
            return list(dict.fromkeys([",".join(base), ",".join([*base[-1:], *base[:-1]])]))
        batch = [name[a] for a in r.roles("b") if a != lane]
        m = [name[a] for a in r.roles("m") if a != lane]
        n = [name[a] for a in r.roles("n") if a != lane]
        at = [name[lane]] if lane in r.out and lane else []
        blocked = [f"{m[-1]}:L2"] if len(m) == 1 else []
        columns = n + at
        orders = [
            [*batch, *blocked, *columns, *m],
            [*batch, *columns, *m],
            [*batch, *blocked, *m, *columns],
            [*batch, *m[:-1], *columns, *m[-1:]],
            [*batch, *[f"{x}:L2" for x in columns[-1:]], *blocked, *columns, *m],
        ]
        width, depth = (prod(r.extents[a] for a in r.roles(kind)) for kind in "nk")
        summed = self._summed_block(lane) if in_matrices else None
        if summed is not None:
            around = [*batch, *blocked, f"{name[r.split[0]]}:L2"]
            by_panels, by_rows = [*around, *columns, *m], [*around, *m, *columns]
            # Some 5 % by rows, for twice the code: the tuner's choice.
            orders[:1] = (
                [orders[0], by_rows] if summed.by_rows else [by_panels, by_rows, orders[0]]
            )
        if in_matrices and at and not r.split[0]:
            # Rows of A stay close, panels of B come one after the other.
            orders.insert(0, [*batch, *m, *columns])
        along = [a for a in r.out if a != lane]
        along.sort(key=lambda a: -max([w.strides.get(a) or 0 for w in r.writes] or [0]))
        if at and depth <= _SHORT_SUM and along and self._is_scattered(lane, along[-1]):
            # A line of results is written by one thread, and at once.
            orders.insert(0, [*at, *(name[a] for a in along)])
        near = 2 * self._b_bytes() <= self.target.l1_bytes
        near |= depth <= 8 * self.lanes and 16 * self._b_bytes() <= self.target.l2_bytes
        if at and near and width > 2 * self.lanes:
            # All of B stays close: rows are written whole, which memory likes better than columns.
            orders.insert(0, [*batch, *m, *columns])
        return list(dict.fromkeys(",".join(o) for o in orders))

    def _is_scattered(self, lane: str | None, axis: str) -> bool:
        """Whether lanes of results lie apart, and positions of another axis side by side."""
        strides = [w.strides for w in self.r.writes]
        return any((x.get(lane or "") or 0) > 1 and x.get(axis) == 1 for x in strides)

    def _reduce_orders(self) -> list[str]:
        """The axis along which operand A is contiguous goes innermost."""
        r = self.r
        ks = list(r.reduce)
        if r.a is not None:
            ks.sort(key=lambda k: (r.a.strides.get(k) == 1, r.extents[k]))  # type: ignore[union-attr]
        first = [r.names[k] for k in ks]
        return list(
            dict.fromkeys(
                [",".join(first), ",".join(r.names[k] for k in r.reduce), ",".join(first[::-1])]
            )
        )

    @_once_a_lane
    def _summed_block(self, lane: str | None) -> SummedBlock | None:
        """Blocks of the summed axis and of rows (schedule/blocks.py)."""
        if not self._in_matrices(lane, self._first_sizes(self.first)):
            return None
        sizes = self._first_sizes(self.first)
        height = [sizes[a] for a in self.r.roles("m")]
        return summed_block(self.r, self.target, height[-1], self.threads)

    def _packing(self, lane: str | None, first: dict[str, Value]) -> list[Group]:
        r, p, out = self.r, self.p, []
        for a in r.out:
            out.append(self._cache_tile(a, lane))
        summed = self._summed_block(lane)
        if summed is not None:
            best = summed.deep
            deep = dict.fromkeys([best, 0, best // 4, best // 2, 2 * best, 4 * best])
            name = f"{p}tile.{r.names[r.split[0]]}"
            out.append(Group((name,), ("tile",), tuple((x,) for x in deep)))
        if not r.is_contraction or r.a is None or r.b is None:
            return out
        points = prod(r.extents[a] for a in r.roles("m"))
        lane_n = lane is not None and r.names[lane].startswith("n")
        constant = any(x.constant and lane and x.uses(lane) for x in (r.a, r.b))
        whole = not self.shared or self.sequence
        if not lane_n and constant and whole and lane in r.out:
            # One row of results is soonest done along many rows of the matrix at a time.
            packs = (("none",), ("panel",)) if self._single(lane) else (("panel",), ("none",))
            out.append(Group((f"{p}pack.b",), ("choice",), packs))
        if lane_n and (not self.shared or (self.sequence and r.b.constant)):
            strided = r.b.strides.get(lane or "") != 1
            worth = r.b.constant or strided or (points >= 48 and self._copied_b(lane))
            worth = worth or (self._grouped(lane) and points >= 16)
            worth = worth or (self._converted(r.b) and points >= 48)
            worth = worth or self._in_matrices(lane, self._first_sizes(first))
            out.append(
                Group(
                    (f"{p}pack.b",),
                    ("choice",),
                    (("panel",), ("none",)) if worth else (("none",), ("panel",)),
                )
            )
        m, k = r.roles("m"), [x for x in r.reduce if r.a.uses(x)]
        if lane_n and len(m) == 1 and len(k) == 1 and not r.a.constant and not self.shared:
            columns = prod(r.extents[a] for a in r.roles("n"))
            rows = int(first.get(f"{p}reg.{r.names[m[0]]}", 1))
            # The rows of one register tile are read again for every panel of B. Where they fill L1,
            # or fall into few of its 64 sets, enough columns pay for a copy in the order of use.
            stride = r.a.strides.get(m[0]) or 0
            ways = max(1, self.target.l1_bytes // (64 * 64))
            sets = 64 // gcd(64, max(1, stride * r.a.dtype_bytes // 64))
            fills = 2 * rows * r.extents[k[0]] * r.a.dtype_bytes > self.target.l1_bytes
            worth = fills or rows > sets * ways or self._converted(r.a)
            worth = worth and columns >= 4 * self.lanes
            worth = worth and not self._in_matrices(lane, self._first_sizes(first))
            out.append(
                Group(
                    (f"{p}pack.a",),
                    ("choice",),
                    (("block",), ("none",)) if worth else (("none",), ("block",)),
                )
            )
        return out

    def _first_sizes(self, first: dict[str, Value]) -> dict[str, int]:
        return {a: int(first.get(f"{self.p}reg.{name}", 1)) for a, name in self.r.names.items()}

    def _converted(self, access: Access) -> bool:
        """Whether a copy of the operand would hold its 16-bit floats as f32."""
        read = access.read
        return read is not None and wide_name(self.r.anchor, read) != access.tensor

    def _b_bytes(self) -> int:
        r = self.r
        if r.b is None:
            return 0
        return prod(r.extents[x] for x in r.names if r.b.uses(x)) * r.b.dtype_bytes

    def _copied_b(self, lane: str | None) -> bool:
        """Whether B does better in panels: one matrix of it fills half of L2, or its rows are not
        whole cache lines, so that every vector would straddle two.
        """
        r, size = self.r, self._b_bytes()
        if r.b is None or not size:
            return False
        size //= prod(r.extents[a] for a in r.roles("b") if r.b.uses(a))
        strides = [s or 0 for a, s in r.b.strides.items() if a != lane]
        straddles = any(s * r.b.dtype_bytes % 64 for s in strides)
        return 2 * size >= self.target.l2_bytes or (straddles and size > self.target.l1_bytes)

    def _cache_tile(self, axis: str, lane: str | None) -> Group:
        """Sizes of the cache block of an output axis, for the orders that have one."""
        r = self.r
        n = r.extents[axis]
        name = f"{self.p}tile.{r.names[axis]}"
        sizes = [x for x in (32, 48, 64, 96, 128, 192, 256, 384, 512) if x < n] or [n]
        guess = min(n, 128)
        turned = self._unrolled_axes(lane, [a for a in r.out if a != lane])
        if turned and not r.is_contraction and r.anchor.reduction is None:
            guess = min(n, 2 * self.lanes if axis == lane else 1024)
            sizes = [x for x in (self.lanes, *sizes, 1024, 4096) if x < n] or [n]
        if r.is_contraction and r.a is not None and r.a.uses(axis):
            depth = prod(r.extents[k] for k in r.reduce if r.a.uses(k)) * r.a.dtype_bytes
            guess = max(32, min(512, self.target.l2_bytes // max(1, depth)))
            height = max(1, int(self.first.get(f"{self.p}reg.{r.names[axis]}", 1)))
            if r.split[0] and self._in_matrices(lane, self._first_sizes(self.first)):
                # Pieces of a block stay in L2, beside those of B on their way through.
                depth = depth // r.a.dtype_bytes * PIECES * BF16.bytes
                guess = max(height, 2 * self.target.l2_bytes // 5 // max(1, depth))
                guess = min(guess, 4 * height)
            if self._copied_b(lane) and 12 * self._b_bytes() < self.target.l3_bytes:
                # B comes from L3 as fast as it is used; what matters is that the block of A and
                # two panels of B stay in a part of L2, which other hardware threads use too.
                guess = min(guess, 4 * height)
            guess = equal_blocks(n, guess, height, self.threads)
            summed = self._summed_block(lane)
            if summed is not None:
                sizes = [summed.tall, *sizes]
                guess = guess if summed.by_rows else summed.tall
        rows = list(dict.fromkeys([guess, *sizes]))
        return Group((name,), ("tile",), tuple((x,) for x in rows))


def stage_groups(
    roles: StageRoles,
    target: Target,
    number: int,
    shared: set[str],
    threads: int,
    ahead: int = 0,
    full: dict[str, int] | None = None,
    sequence: bool = False,
) -> list[Group]:
    """All groups of stage `number`; `ahead` is how many rows ahead it asks for what it reads by
    default; `sequence` marks one that runs in every step of a recurrence.
    """
    return StageSpace(
        roles, target, number, shared, threads, ahead, full or roles.extents, sequence
    ).groups()
