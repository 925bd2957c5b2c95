"""From a schedule to the numbers that the analytic cost needs.

In: a Kernel and its Space. Out: `KernelCost`: log gain over the default, canonical rows, and which
schedules are worth compiling. Invariant: schedules with equal canonical rows lower to equal nests.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from math import ceil, log, prod

from tilewright.group.groups import cost
from tilewright.ir.kernel import Kernel
from tilewright.machine.cost import Loop, Stream, Tiling, Work, balance, lines, stage_cycles
from tilewright.machine.target import Target
from tilewright.schedule.matrices import in_matrices, matrix_cycles
from tilewright.schedule.roles import StageRoles, stage_roles
from tilewright.schedule.schedule import Value
from tilewright.schedule.space import Space

__all__ = ["KernelCost"]

Rows = tuple[int, ...]
_PACK_CYCLES = 0.12  # per byte that is copied into panels
_PACKED_ROW, _PLAIN_ROW, _CROWDED_ROW = 0.15, 0.25, 0.45  # cycles of a row of the register tile
_MOST_BODY = 400  # vector operations of an innermost body, tails aside


class _View:
    """Parameters of a row tuple by name; what `Schedule` offers, without making one."""

    def __init__(self, cost: KernelCost, rows: Rows) -> None:
        self._cost, self._rows = cost, rows

    def integer(self, name: str, default: int = 0) -> int:
        v = self._cost.value(self._rows, name, default)
        return int(v) if not isinstance(v, str) else default

    def text(self, name: str, default: str = "") -> str:
        return str(self._cost.value(self._rows, name, default))


class _Stage:
    """One stage: its roles, axis numbers, streams."""

    def __init__(self, kernel: Kernel, k: int, touched: set[str]) -> None:
        self.roles: StageRoles = stage_roles(kernel, k)
        r = self.roles
        self.axes = list(r.extents)
        self.number = {a: i for i, a in enumerate(self.axes)}
        self.prefix = f"s{k}."
        self.tensors: list[str] = []
        streams = []
        for x in (*r.accesses, *r.writes):
            strides = tuple(x.strides.get(a, 0) for a in self.axes)
            is_write = x in r.writes
            streams.append(
                Stream(strides, x.dtype_bytes, is_write, False, x.tensor in touched)
            )
            self.tensors.append(x.tensor)
        touched |= set(self.tensors)
        self.written_bytes = max(
            [
                prod(n for a, n in r.extents.items() if x.uses(a)) * x.dtype_bytes
                for x in r.writes
                if x.tensor in kernel.layout_of  # the next stage reads the others at once
            ],
            default=0,
        )
        members = kernel.stages[k].members
        operations = float(sum(cost(kernel.definitions[m].body) for m in members))
        self.work = Work(
            tuple(r.extents.values()), frozenset(self.number[a] for a in r.reduce),
            tuple(streams), max(1.0, operations), r.is_contraction,
        )  # fmt: skip

    def with_packing(self, s: _View) -> tuple[Work, float]:
        """The stage as the schedule packs it, and the cycles of packing."""
        r = self.roles
        cycles = 0.0
        row_cycles = 0.2
        streams = list(self.work.streams)
        packs = ((r.a, s.text(self.prefix + "pack.a", "none") == "block"),
                 (r.b, s.text(self.prefix + "pack.b", "none") == "panel"))  # fmt: skip
        for i, x in enumerate(r.accesses):
            for operand, is_packed in packs:
                if operand is None or operand is not x:
                    continue
                if operand is r.a:
                    row_cycles = _PACKED_ROW if is_packed else self._row_cycles
                if not is_packed:
                    continue
                old = streams[i]
                streams[i] = replace(old, is_packed=True)
                if not x.constant:
                    size = prod(n for a, n in r.extents.items() if x.uses(a)) * x.dtype_bytes
                    cycles += _PACK_CYCLES * size
        if s.integer(self.prefix + "nt"):
            streams = [replace(x, is_streamed=x.is_write) for x in streams]
        return replace(self.work, streams=tuple(streams), row_cycles=row_cycles), cycles

    @cached_property
    def _row_cycles(self) -> float:
        """Rows that lie a multiple of 1 KiB apart fall into few sets of the first level."""
        r = self.roles
        assert r.a is not None
        steps = [(r.a.strides.get(m) or 0) * r.a.dtype_bytes for m in r.roles("m")]
        is_bad = any(step and step % 1024 == 0 for step in steps)
        return _CROWDED_ROW if is_bad else _PLAIN_ROW

    def tiling(self, s: _View, outer: dict[str, int]) -> Tiling:
        """The loops of the stage, as lowering reads the parameters."""
        r, p = self.roles, self.prefix
        sizes = {a: max(1, s.integer(f"{p}reg.{n}", 1)) for a, n in r.names.items()}
        loops = [Loop(self.number[a], b) for a, b in outer.items() if a in self.number]
        named: set[str] = set()
        for item in s.text(p + "order").split(","):
            name, _, level = item.partition(":")
            axis = r.axis_of.get(name)
            if axis is None or axis in r.reduce:
                continue
            if level:
                block = s.integer(f"{p}tile.{name}")
                if block > 0 and axis not in outer:
                    loops.append(Loop(self.number[axis], block))
                continue
            named.add(axis)
            loops.append(Loop(self.number[axis], sizes[axis]))
        loops = [Loop(self.number[a], 1) for a in r.out if a not in named] + loops
        order = [x for x in s.text(p + "reduce").split(",") if x in r.axis_of]
        order += [r.names[a] for a in r.reduce if r.names[a] not in order]
        loops += [Loop(self.number[r.axis_of[n]], sizes[r.axis_of[n]]) for n in order]
        lane = r.axis_of.get(s.text(p + "lane"))
        registers = tuple(sizes.get(a, 1) for a in self.axes)
        return Tiling(tuple(loops), registers, -1 if lane is None else self.number[lane])


class KernelCost:
    """Analytic cost of the schedules of one kernel."""

    def __init__(self, kernel: Kernel, space: Space, target: Target, threads: int) -> None:
        self.kernel, self.space, self.target, self.threads = kernel, space, target, threads
        self._number = {
            n: (k, i) for k, g in enumerate(space.groups) for i, n in enumerate(g.names)
        }
        self._known: dict[tuple[int, tuple[int, ...]], float] = {}
        self._groups_of: dict[int, list[int]] = {}

    @cached_property
    def _stages(self) -> list[_Stage]:
        touched: set[str] = set()
        return [_Stage(self.kernel, k, touched) for k in range(len(self.kernel.stages))]

    @cached_property
    def _default(self) -> float:
        return self.cycles(tuple(g.start for g in self.space.groups))

    def is_contraction(self, stage: int) -> bool:
        return self._stages[stage].roles.is_contraction

    def value(self, rows: Rows, name: str, default: Value = "") -> Value:
        """One parameter of a schedule."""
        at = self._number.get(name)
        return default if at is None else self.space.groups[at[0]].rows[rows[at[0]]][at[1]]

    @cached_property
    def _idle(self) -> list[tuple[int, int, str, str]]:
        """(group, row of the default, kind, the parameter that decides) of those that may be idle.

        A cache block counts where the order has its level, a tail where that is so or the tile has
        more than one row, the grain where there is more than one thread.
        """
        out = []
        for k, g in enumerate(self.space.groups):
            stage, _, rest = g.names[0].partition(".")
            if len(g.names) != 1:
                continue
            if rest.startswith("tile.") and f"{stage}.order" in self._number:
                out.append((k, g.start, rest[len("tile.") :] + ":", f"{stage}.order"))
            elif rest.startswith("tail.") and f"{stage}.reg.{rest[5:]}" in self._number:
                out.append((k, g.start, "1", f"{stage}.reg.{rest[5:]}"))
            elif g.names[0] == "chunk" and self.threads == 1:
                out.append((k, g.start, "", ""))
        return out

    def canonical(self, rows: Rows) -> Rows:
        """The same schedule with the parameters that no loop reads at their defaults."""
        out = list(rows)
        for k, start, text, name in self._idle:
            if out[k] == start:
                continue
            value = str(self.value(rows, name)) if name else ""
            if text == "1":
                stage, _, axis = name.partition(".reg.")
                order = f"{stage}.order"
                blocks = str(self.value(rows, order)) if order in self._number else ""
                idle = value == "1" and f"{axis}:" not in blocks
            else:
                idle = not name or text not in value
            if idle:
                out[k] = start
        return tuple(out)

    def is_reasonable(self, rows: Rows) -> bool:
        """Is the innermost body of a size worth compiling?"""
        s = _View(self, rows)
        lanes = self.target.lanes(32)
        for stage in self._stages:
            r, body = stage.roles, 1
            lane = r.axis_of.get(s.text(stage.prefix + "lane"))
            for a, n in r.names.items():
                size = max(1, s.integer(f"{stage.prefix}reg.{n}", 1))
                body *= ceil(size / lanes) if a == lane else size
            if body > _MOST_BODY:
                return False
            # Alone in a loop a stream of stores wins; the kernel that reads the result then loses.
            if s.integer(stage.prefix + "nt") and stage.written_bytes < 2 * self.target.l2_bytes:
                return False
        return True

    def cycles(self, rows: Rows) -> float:
        """Cycles of a schedule with all its threads."""
        s = _View(self, rows)
        outer = {
            a: max(1, s.integer(f"block.{i}", 1)) for i, a in enumerate(self.kernel.shared)
        }
        block = self._block_bytes(outer) if outer else 0.0
        total, chunks = 0.0, 1
        for k, stage in enumerate(self._stages):
            key = (k, tuple(rows[g] for g in self._groups(k)))
            if key not in self._known:
                work, packing = stage.with_packing(s)
                tiling = stage.tiling(s, outer)
                cycles = stage_cycles(
                    work, tiling, self.target, block_bytes=block,
                    arithmetic=None if outer else self._in_matrices(stage, tiling),
                )  # fmt: skip
                self._known[key] = cycles + packing
            cycles = self._known[key]
            if not outer:
                cycles = balance(cycles, self._chunks(stage, s, outer), self.threads)
            total += cycles
        if outer:
            chunks = self._chunks(self._stages[0], s, outer)
            total = balance(total, chunks, self.threads)
        return total

    def _in_matrices(self, stage: _Stage, tiling: Tiling) -> float | None:
        """Cycles of arithmetic where matrix registers hold the accumulators, else None."""
        r = stage.roles
        lane = stage.axes[tiling.lane] if tiling.lane >= 0 else None
        sizes = dict(zip(stage.axes, tiling.registers, strict=True))
        if lane is None or not in_matrices(r, self.target, lane, sizes):
            return None
        return matrix_cycles(r, lane, sizes) * prod(r.extents.values())

    def _groups(self, k: int) -> list[int]:
        """The groups that matter to a stage's own loops."""
        if k not in self._groups_of:
            self._groups_of[k] = [
                i for i, g in enumerate(self.space.groups)
                if g.names[0].startswith((f"s{k}.", "block."))
            ]  # fmt: skip
        return self._groups_of[k]

    def _block_bytes(self, outer: dict[str, int]) -> float:
        """What all stages touch for one block of the shared axes."""
        seen: dict[str, float] = {}
        for stage in self._stages:
            box = [min(outer.get(a, n), n) for a, n in stage.roles.extents.items()]
            for name, stream in zip(stage.tensors, stage.work.streams, strict=True):
                seen[name] = max(seen.get(name, 0.0), 64.0 * lines(stream, box))
        return sum(seen.values())

    def _chunks(self, stage: _Stage, s: _View, outer: dict[str, int]) -> int:
        """How many chunks the parallel loop has; 1 where there is none."""
        depth, grain = s.integer("par", 1), max(1, s.integer("chunk", 1))
        r = stage.roles
        if outer:
            loops = [Loop(stage.number[a], b) for a, b in outer.items() if a in stage.number]
        else:
            loops = list(stage.tiling(s, outer).loops)
            loops = [x for x in loops if self._is_output(r, stage, x)]
        trips, seen = 1, set()
        for x in loops[:depth]:
            if x.axis in seen:
                break
            seen.add(x.axis)
            trips *= ceil(stage.work.extents[x.axis] / max(1, x.step))
        return max(1, ceil(trips / grain))

    @staticmethod
    def _is_output(r: StageRoles, stage: _Stage, x: Loop) -> bool:
        return x.axis not in stage.work.reduced

    def log_gain(self, rows: Rows) -> float:
        """Log of (cycles of the default / cycles)."""
        if not self.kernel.stages or self.kernel.sequence or self.kernel.scatter is not None:
            return 0.0
        return log(max(1e-9, self._default) / max(1e-9, self.cycles(rows)))
