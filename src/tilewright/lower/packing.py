"""Operands in the layout of their use: panels along the lanes, blocks of rows.

In: a kernel, its schedule, what a stage decided. Out: `Packing`, the state of a lowering, whose
methods give the stage back with other places for its operands. Invariants: a constant is packed at
build, another tensor by a phase before or where a cache block begins; what is copied keeps its
values, with zeros past the ends.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, F32
from tilewright.ir.expr import Expr
from tilewright.ir.extent import ceil_div, is_symbolic, smaller
from tilewright.ir.kernel import Kernel, int_extent
from tilewright.ir.layout import Layout, panels
from tilewright.ir.nest import Buffer, Phase
from tilewright.ir.program import Axis, Definition
from tilewright.ir.words import wide_name, widened
from tilewright.lower import pieces
from tilewright.lower.builder import Builder
from tilewright.lower.region import Block, Level, Region, StageSpec
from tilewright.lower.stage import emit_stage
from tilewright.lower.stream import Stream
from tilewright.lower.tiles import Place
from tilewright.machine.target import Target
from tilewright.schedule.matrices import in_matrices
from tilewright.schedule.roles import Access, StageRoles
from tilewright.schedule.schedule import Schedule

__all__ = ["Packing"]


class Packing:
    """What a lowering has made so far, and the copies that it makes of operands."""

    def __init__(self, kernel: Kernel, schedule: Schedule, target: Target) -> None:
        self.kernel, self.schedule, self.target = kernel, schedule, target
        self.b = Builder()
        self.lanes = target.lanes(32)
        self.constants = {t.name for t, _ in kernel.program.constants}
        self.layouts: dict[str, Layout] = {}  # constants that are packed
        self.scratch: list[Buffer] = []
        self.workspace: list[Buffer] = []
        self.phases: list[Phase] = []
        self.places: dict[str, Place] = {}
        self.stream: Stream | None = None
        for name, layout in kernel.layouts:
            t = kernel.program.tensors[name]
            self.places[name] = Place(name, layout, t.dtype)

    def phase(
        self,
        stages: list[tuple[StageSpec, dict[str, int]]],
        shared: tuple[Level, ...],
        depth: int,
        grain: int,
    ) -> None:
        """Stages inside loops over `shared`, `depth` outer loops of which are one parallel loop."""
        raise NotImplementedError

    def in_matrices(self, roles: StageRoles, spec: StageSpec) -> bool:
        """Whether matrix registers hold the accumulators: B lies in panels then, A as it is."""
        if self.kernel.shared or self.kernel.sequence:
            return False
        if roles.split[0] and not pieces.can_split(self, roles):
            return False
        sizes = {x.axis: x.block for x in (*spec.levels, *spec.reduce)}
        return in_matrices(roles, self.target, spec.lane, sizes)

    def pack_lanes(self, k: int, roles: StageRoles, spec: StageSpec) -> StageSpec:
        """Operands that hold the lane axis, in panels as wide as the register tile.

        A constant is packed at build; another one (operand B only) in a phase before.
        """
        s, p = self.schedule, f"s{k}."
        wanted = s.text(p + "pack.b", "none") == "panel" or self.in_matrices(roles, spec)
        if not wanted or spec.lane is None or spec.lane in roles.reduce:
            return spec
        if roles.split[0] and self.in_matrices(roles, spec):
            return pieces.split_factors(self, k, roles, spec)
        for operand in (roles.b, roles.a):
            if operand is not None and operand.uses(spec.lane):
                spec = self._pack_panel(k, roles, spec, operand)
        return spec

    def _pack_panel(self, k: int, roles: StageRoles, spec: StageSpec, operand: Access) -> StageSpec:
        s, p, name, read = self.schedule, f"s{k}.", operand.tensor, operand.read
        if read is None or name not in self.kernel.layout_of or read.attr[1]:
            return spec
        constant = name in self.constants and self._only_reader(name, k)
        if not constant and (
            operand is not roles.b
            or not roles.names[spec.lane or ""].startswith("n")
            or self.kernel.sequence
        ):
            return spec
        axes = [x.attr if x.op == "index" else None for x in read.args]
        shape = self.kernel.layout_of[name].shape
        for x, n in zip(read.args, shape, strict=True):
            if not (x.op == "index" or (n == 1 and E.int_value(x) == 0)):
                return spec
        if spec.lane not in axes or len([a for a in axes if a]) != len({a for a in axes if a}):
            return spec
        width = s.integer(f"{p}reg.{roles.names[spec.lane or '']}", self.lanes)
        inner = list(dict.fromkeys(axes.index(x.axis) for x in spec.reduce if x.axis in axes))
        at = axes.index(spec.lane)
        group = self._group(roles, spec, axes)
        layout = panels(shape, at, width, inner, group)
        dtype = self.places[name].dtype
        if constant:
            self.layouts[name] = layout
            spec.places[name] = self.places[name] = Place(name, layout, dtype)
            return spec
        wide = name if spec.in_words else wide_name(spec.anchor, read)
        dtype = dtype if wide == name else F32
        buffer = Buffer(f"w{len(self.workspace)}", dtype, E.const(layout.size), "arena")
        self.workspace.append(buffer)
        target = Place(buffer.name, layout, dtype)
        self._copy_phase(name, self.places[name], target, at, width, group)
        spec.places[wide] = self.places[wide] = target
        return spec if wide == name else replace(spec, anchor=widened(spec.anchor, read))

    def _group(self, roles: StageRoles, spec: StageSpec, axes: list[str | None]) -> tuple[int, int]:
        """The position of the reduce axis whose elements a packed operand holds side by side, and
        how many of them.
        """
        axis, size = roles.pairs if spec.in_words else roles.group
        whole = any(x.axis == axis and x.block % size == 0 for x in spec.reduce)
        return (axes.index(axis), size) if whole and axis in axes else (-1, 1)

    def _only_reader(self, name: str, k: int) -> bool:
        """Does nothing but this stage's operand B read the constant (so that one layout serves)?"""
        reads = {
            r
            for s in self.kernel.stages
            for m in s.members
            for r in self.kernel.definitions[m].reads()
            if r.attr[0] == name
        }
        return len(reads) == 1

    def _copy_phase(
        self,
        name: str,
        source: Place,
        target: Place,
        lane: int,
        width: int,
        group: tuple[int, int] = (-1, 1),
    ) -> None:
        """A phase that copies a whole tensor into another layout, in parallel over panels."""
        axes = tuple(Axis(f"p{i}", E.const(n)) for i, n in enumerate(source.layout.shape))
        body = E.cast(E.read(name, [a.index for a in axes], source.dtype), target.dtype)
        d = Definition("pack", target.dtype, axes, body)
        self.copy_phase((d,), {name: source, "pack": target}, name, lane, width, group)

    def copy_phase(
        self,
        copies: tuple[Definition, ...],
        places: dict[str, Place],
        name: str,
        lane: int,
        width: int,
        group: tuple[int, int] = (-1, 1),
        rows: int = 0,
    ) -> None:
        """A phase of definitions over the positions of tensor `name`, in parallel over panels of
        `width` along its axis `lane`. group: an axis, and how many of its positions lie side by
        side; rows: so many of its positions at a time, for all panels, or all.
        """
        source, axes = places[name], copies[0].axes
        shape = tuple(int_extent(a.extent) for a in axes)
        unit = [i for i in range(len(shape)) if source.layout.stride(i) == 1 and shape[i] > 1]
        turn = bool(unit) and unit[0] != lane
        levels = [Level(f"p{lane}", width, "mask")]
        if rows:
            levels.insert(0, Level(f"p{group[0]}", rows))
        for i, n in enumerate(shape):
            if i != lane and n > 1:
                # One code, no remainder.
                step = next((k for k in (4, 3, 2, 1) if n % k == 0 or is_symbolic(n)), 1)
                if i == group[0]:
                    step = group[1]
                elif turn and i == unit[0]:
                    step = self.lanes
                levels.append(Level(f"p{i}", step))
        stored = frozenset(d.name for d in copies)
        spec = StageSpec(
            copies[0], (), copies[1:], stored, tuple(levels), (), f"p{lane}", places=places
        )
        self.phase([(spec, {a.name: int_extent(a.extent) for a in axes})], (), 1, 1)

    def pack_a(self, k: int, roles: StageRoles, spec: StageSpec) -> StageSpec:
        """Operand A in blocks of the register tile's height, packed into scratch where the cache
        block begins.
        """
        if self.schedule.text(f"s{k}.pack.a", "none") != "block" or self.in_matrices(roles, spec):
            return spec  # matrix registers are loaded from rows
        found = self.block_of_rows(roles, spec)
        if found is None or roles.a is None or roles.a.read is None:
            return spec
        row, column, position = found
        read, name = roles.a.read, roles.a.tensor
        m, kk = read.args[row].attr, read.args[column].attr
        height = next(x.block for x in reversed(spec.levels) if x.axis == m)
        source = self.places[name]
        deep = ceil_div(self.depth(spec, kk, roles.extents[kk], position), self.lanes) * self.lanes
        group, size = self._group(roles, spec, [kk])
        across = row if size == 1 else column  # groups are copied as they are
        wide = name if spec.in_words else wide_name(spec.anchor, read)
        dtype = source.dtype if wide == name else F32
        members = (spec.anchor, *spec.before, *spec.after)
        others = {r for d in members for e in d.expressions() for r in e.reads()} - {read}
        if any(r.attr[0] in (name, wide) for r in others):
            wide += ".block"  # a block holds what this read needs, and no more
        shape = self.block_shape(roles, spec, row, column, deep)
        layout = panels(shape, row, height, [column], (column if group == 0 else -1, size))
        step = self.lanes if size == 1 else size

        def copied(axes: tuple[Axis, ...], value: Expr) -> tuple[Definition, ...]:
            return (Definition("packed", dtype, axes, E.cast(value, dtype)),)

        levels = (Level(f"q{row}", height), Level(f"q{column}", step))
        block = Block(
            read, row, column, shape, layout, levels, f"q{across}", {wide: dtype}, copied
        )
        spec = self.staged(k, spec, block, position)
        return replace(spec, anchor=widened(spec.anchor, read, wide))

    def block_of_rows(self, roles: StageRoles, spec: StageSpec) -> tuple[int, int, int] | None:
        """Which subscripts of operand A are its rows and what is summed, and how many levels stand
        around a block of rows; None where a block of it cannot be copied.
        """
        if roles.a is None or roles.a.read is None:
            return None
        read, name = roles.a.read, roles.a.tensor
        if name not in self.kernel.layout_of or read.attr[1] or name in self.constants:
            return None
        if spec.lane in roles.reduce:
            return None  # rows are read along the lane already, and its level has a mask
        varying = [
            (i, x.attr)
            for i, x in enumerate(read.args)
            if x.op == "index" and roles.extents[x.attr] > 1
        ]
        if any(x.op != "index" and E.int_value(x) is None for x in read.args):
            return None
        rows = [(i, a) for i, a in varying if roles.names.get(a, "").startswith("m")]
        columns = [(i, a) for i, a in varying if a in roles.reduce]
        if len(rows) != 1 or len(columns) != 1 or len(varying) != len({a for _, a in varying}):
            return None
        (row, m), (column, kk) = rows[0], columns[0]
        if any(a not in (m, kk) and roles.names[a][0] != "b" for _, a in varying):
            return None
        tile = {x.axis: x.block for x in spec.levels}  # the last level of an axis is the innermost
        if any(a not in (m, kk) and tile.get(a, 1) > 1 for _, a in varying):
            return None  # a block is of one matrix, the tile reads several
        position = next((i for i, x in enumerate(spec.levels) if x.axis == m), 0) + 1
        if sum(x.axis == m for x in spec.levels) == 1:
            position = 0  # no cache block of m: the whole operand is one block
            if any(roles.names[a][0] == "b" for a in roles.out):
                return None
        elif position < len(spec.levels) and spec.levels[position].tail == "sums":
            position += 1  # a block of what is summed at a time
        return row, column, position

    def depth(self, spec: StageSpec, axis: str, extent: int, position: int) -> int:
        """Positions of a reduced axis that the levels from `position` on see."""
        blocks = [x.block for x in spec.levels[:position] if x.axis == axis]
        return min([extent, *blocks])

    def block_shape(
        self, roles: StageRoles, spec: StageSpec, row: int, column: int, deep: int
    ) -> list[int]:
        """The shape of a copied block of rows, in whole register tiles."""
        assert roles.a is not None and roles.a.read is not None
        m = roles.a.read.args[row].attr
        mine = [x.block for x in spec.levels if x.axis == m]
        most = mine[0] if len(mine) > 1 else roles.extents[m]
        shape = [1] * len(roles.a.read.args)
        shape[row], shape[column] = ceil_div(most, mine[-1]) * mine[-1], deep
        return shape

    def staged(self, k: int, spec: StageSpec, block: Block, position: int) -> StageSpec:
        """The stage with copies of blocks of rows of an operand in scratch, made before the level
        at `position`. Whole tiles are copied, with zeros past the ends: one body, whatever the
        extents.
        """
        read, row, column, shape = block.read, block.row, block.column, block.shape
        name, m, kk = read.attr[0], read.args[row].attr, read.args[column].attr
        source = self.places[name]
        height = next(x.block for x in reversed(spec.levels) if x.axis == m)
        most = shape[row]
        buffers, size = [], E.const(block.layout.size)
        for i, dtype in enumerate(block.copies.values()):
            buffers.append(f"a{k}" if not i else f"a{k}_{i}")
            self.scratch.append(Buffer(buffers[i], dtype, size, "scratch"))
        places = dict(self.places)

        def stage(region: Region) -> None:
            reach = list(source.layout.shape)  # what the copy's positions may be, zeros included
            reach[row] += height
            reach[column] = ceil_div(spec.extents[kk], shape[column]) * shape[column]
            axes = tuple(Axis(f"q{i}", E.const(n)) for i, n in enumerate(reach))
            origin = [
                region.starts[x.attr] if x.op == "index" and x.attr in region.starts else x
                for x in read.args
            ]
            valid = region.valid.get(m, region.lengths[m])
            tall = ceil_div(smaller(valid, most), height) * height
            lengths = {f"q{i}": (tall if i == row else shape[i]) for i in range(len(shape))}
            starts = {f"q{i}": o for i, o in enumerate(origin)}
            nothing = E.const(False if source.dtype is BOOL else 0, source.dtype)
            value = E.read(name, [a.index for a in axes], source.dtype, nothing)
            copies = block.make(axes, value)
            targets = {
                d.name: Place(b, block.layout, d.dtype, tuple(origin))
                for d, b in zip(copies, buffers, strict=True)
            }
            copy = StageSpec(
                copies[0],
                (),
                copies[1:],
                frozenset(targets),
                block.levels,
                (),
                block.lane,
                places={name: source, **targets},
            )
            inner = replace(
                region,
                starts={**region.starts, **starts},
                lengths={**region.lengths, **lengths},
                valid={},
            )
            if m in region.ragged:
                i, full, rest = region.ragged[m]
                tall = -(-rest // height) * height
                inner = replace(inner, ragged={f"q{row}": (i, full, tall)})
            self.b.written = {*self.b.written, *buffers}
            emit_stage(self.b, copy, inner, self.lanes, [])
            places.update(zip(block.copies, targets.values(), strict=True))

        # Blocks of the copy start at whole tiles, so the last tile cannot be moved back.
        tail = "sized" if is_symbolic(spec.extents[m]) else "peel"
        levels = tuple(replace(x, tail=tail) if x.axis == m else x for x in spec.levels)
        return replace(spec, levels=levels, places=places, staging={position: stage})
