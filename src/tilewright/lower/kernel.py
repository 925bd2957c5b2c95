"""Kernel + Schedule -> LoopNest.

In: a Kernel, a Schedule of its Space, a Target. Out: `Lowered`, or a `Rejected` for a schedule that
is not of its Space. Invariants: the nest computes what the kernel's definitions say, whatever the
schedule; the chunk grid and the order of every reduction depend on kernel and schedule alone.

The parameters are read in the fixed order of SPEC section 3: shared blocks, levels, register tile
and lane, packing, tails, parallel depth, unrolling, prefetch, non-temporal stores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, prod

from tilewright.errors import Rejected
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr
from tilewright.ir.extent import assuming, ceil_div, is_symbolic
from tilewright.ir.kernel import Kernel, int_extent
from tilewright.ir.layout import Layout, ordered
from tilewright.ir.nest import Buffer, For, LoopNest, Phase
from tilewright.ir.program import Axis, Definition, Reduction
from tilewright.lower import sums
from tilewright.lower.cuts import cuts_of
from tilewright.lower.loops import emit_levels
from tilewright.lower.packing import Packing
from tilewright.lower.reductions import working_type
from tilewright.lower.region import Level, Region, StageSpec, least, trips
from tilewright.lower.sequential import lower_scatter, lower_sequence
from tilewright.lower.stage import emit_stage
from tilewright.lower.stream import Stream
from tilewright.lower.tiles import Place
from tilewright.machine.target import Target
from tilewright.schedule.roles import StageRoles, stage_roles
from tilewright.schedule.schedule import Schedule

__all__ = ["Lowered", "lower"]

CUT_POINTS = 1 << 14  # points below which conditions cost less than code
_MOST_PARTS = 16


@dataclass(frozen=True)
class Lowered:
    """A nest, how its constants must be laid out, and which of its buffers are its own workspace.

    tensors: kernel tensor of each arg and const buffer; layouts: of the constants that the schedule
    packs.
    """

    nest: LoopNest
    tensors: tuple[str, ...]
    layouts: dict[str, Layout]
    workspace: tuple[Buffer, ...]


class _Lowering(Packing):
    # -- parameters
    def levels(
        self, k: int, roles: StageRoles, fixed: set[str]
    ) -> tuple[tuple[Level, ...], str | None]:
        """The output loops of a stage, outermost first, and its lane axis."""
        s, p = self.schedule, f"s{k}."
        lane = roles.axis_of.get(s.text(p + "lane"))
        order = [x for x in s.text(p + "order").split(",") if x]
        out: list[Level] = []
        seen: set[str] = set()
        for item in order:
            name, _, level = item.partition(":")
            axis = roles.axis_of.get(name)
            if axis is None or (axis in roles.reduce and not level):
                continue
            if level:
                block = s.integer(f"{p}tile.{name}")
                if axis in roles.reduce:
                    if 0 < block and not is_symbolic(roles.extents[axis]):
                        out.append(Level(axis, block, "sums"))
                    continue
                if block > 0 and axis not in fixed:
                    n = roles.extents[axis]
                    if is_symbolic(n) or block < n:  # whole register tiles
                        height = max(1, s.integer(f"{p}reg.{name}", 1))
                        block = max(height, block // height * height)
                    out.append(Level(axis, block, "peel"))
                continue
            seen.add(axis)
            block = max(1, s.integer(f"{p}reg.{name}", 1))
            tail = "mask" if axis == lane else s.text(f"{p}tail.{name}", "peel")
            out.append(Level(axis, block, tail))
        missing = [a for a in roles.out if a not in seen]
        return tuple([Level(a, 1) for a in missing] + out), lane

    def reduce_levels(
        self, k: int, roles: StageRoles, lane: str | None
    ) -> tuple[tuple[Level, ...], frozenset[str]]:
        """The reduction loops, outermost first, and the axes that keep their own accumulators."""
        s, p = self.schedule, f"s{k}."
        out: list[Level] = []
        partial: set[str] = set()
        order = [x for x in s.text(p + "reduce").split(",") if x in roles.axis_of]
        order += [roles.names[a] for a in roles.reduce if roles.names[a] not in order]
        for name in order:
            axis = roles.axis_of[name]
            unroll = max(1, s.integer(f"{p}reg.{name}", 1))
            if axis == lane:
                partial.add(axis)
                out.append(Level(axis, unroll, "mask"))
                continue
            outer = s.integer(f"{p}tile.{name}")
            if outer > unroll and f"{name}:" not in s.text(p + "order"):
                out.append(Level(axis, outer))
            out.append(Level(axis, unroll))
        return tuple(out), frozenset(partial)

    def spec(self, k: int, fixed: set[str]) -> tuple[StageSpec, StageRoles]:
        """The stage's decisions; `fixed` are axes that enclosing loops have blocked already."""
        kernel, s, p = self.kernel, self.schedule, f"s{k}."
        stage = kernel.stages[k]
        roles = stage_roles(kernel, k)
        levels, lane = self.levels(k, roles, fixed)
        reduce, partial = self.reduce_levels(k, roles, lane)
        at = stage.members.index(stage.anchor)
        definitions = [kernel.definitions[m] for m in stage.members]
        prefetch: list[tuple[str, str, int]] = []
        steps = s.integer(p + "ahead")
        if steps and roles.b is not None and reduce:
            prefetch.append((roles.b.tensor, reduce[-1].axis, steps))
        ahead = s.integer(p + "prefetch")
        if ahead and kernel.shared:
            axis = kernel.shared[-1]
            candidates = [
                x
                for x in roles.accesses
                if x.tensor in kernel.layout_of and not x.constant and x.uses(axis)
            ]
            if candidates:
                prefetch.append((candidates[0].tensor, axis, ahead))
        stored = frozenset(m for m in stage.members if kernel.is_stored(m))
        spec = StageSpec(
            definitions[at],
            tuple(definitions[:at]),
            tuple(definitions[at + 1 :]),
            stored,
            levels,
            reduce,
            lane,
            partial,
            bool(s.integer(p + "nt")),
            tuple(prefetch),
            self.places,
            fetches=bool(s.integer(p + "fetch")),
        )
        if self.in_matrices(roles, spec):  # a step takes many words, so their loop is innermost
            inner = sorted(spec.reduce, key=lambda x: x.axis == roles.words[0])
            spec = replace(spec, reduce=tuple(inner), in_words=bool(roles.pairs[0]))
        else:
            axis, word = roles.pairs
            whole = any(x.axis == axis and x.block % word == 0 for x in spec.reduce)
            dots = whole and roles.dots(self.target, spec.lane)
            spec = self.strips(k, roles, replace(spec, in_words=dots))
        return sums.with_blocks(self, k, roles, spec), roles

    def strips(self, k: int, roles: StageRoles, spec: StageSpec) -> StageSpec:
        """The stage with its accumulators in scratch, if the schedule says so (lower/strips.py)."""
        s, p, d = self.schedule, f"s{k}.", spec.anchor
        rows, width = s.integer(p + "rows"), s.integer(p + "strip")
        scanned = d.scan[1] if d.scan is not None else ""
        if not rows or not width or self.kernel.shared or self.kernel.sequence:
            return spec
        if spec.lane is None or spec.lane not in roles.out or spec.lane == scanned:
            return spec
        inner = [x for x in spec.levels if x.axis == spec.lane][-1:]
        others = {x.axis: x for x in spec.levels if x.axis in roles.out}
        others = {a: x for a, x in others.items() if a not in (spec.lane, scanned)}
        width = max(1, least(width, roles.extents[spec.lane]))
        name = f"f{k}"
        monoid = d.scan[0] if d.scan is not None else d.reduction.monoid if d.reduction else ""
        whole = ceil_div(width, inner[0].block) * inner[0].block  # panels (lower/strips.py)
        size = whole * prod(least(x.block, roles.extents[a]) for a, x in others.items())
        dtype = working_type(monoid, d.dtype)
        if monoid.startswith("arg"):
            dtype = d.body.dtype
            self.scratch.append(Buffer(f"{name}n", I64, E.const(size), "scratch"))
        self.scratch.append(Buffer(name, dtype, E.const(size), "scratch"))
        around = (*others.values(), Level(spec.lane, width, "block"))
        levels = (*around, *inner)
        return replace(spec, levels=levels, strip=name, rows=rows, around=len(around))

    def split(
        self, k: int, spec: StageSpec, extents: dict[str, int], depth: int, grain: int
    ) -> bool:
        """The reduction in two phases, if the schedule says so: partial results of blocks of one
        axis, in parallel, then their combination.
        """
        d, parts = spec.anchor, self.schedule.integer(f"s{k}.parts")
        if parts < 2 or d.reduction is None or d.reduction.monoid.startswith("arg"):
            return False
        if spec.products or spec.sums:
            return False
        sizes = {a.name: int_extent(a.extent) for a in d.reduction.axes}
        axis = max(sizes, key=lambda a: sizes[a])
        if is_symbolic(sizes[axis]):
            return False  # the parts would have no fixed number of positions
        step = max([1, *(x.block for x in spec.reduce if x.axis == axis)])
        block = ceil(ceil(sizes[axis] / parts) / step) * step
        count = ceil(sizes[axis] / max(1, block))
        if count < 2 or 0 in extents.values():
            return False
        monoid, work = d.reduction.monoid, working_type(d.reduction.monoid, d.dtype)
        number = Axis("part", E.const(count))
        layout = ordered((count, *extents.values()), list(range(1 + len(extents))))
        buffer = Buffer(f"w{len(self.workspace)}", work, E.const(layout.size), "arena")
        self.workspace.append(buffer)
        places = {**spec.places, "part": Place(buffer.name, layout, work)}
        out = [a for a in d.axes if extents[a.name] > 1]
        first = replace(
            spec,
            anchor=replace(d, name="part", dtype=work, axes=(number, *d.axes)),
            after=(),
            stored=frozenset({"part"}),
            levels=(Level(axis, block), *spec.levels),
            around=spec.around + 1,
            part=(axis, block),
            places=places,
        )
        if sizes[axis] == block * count:
            # Equal blocks: their number is an output axis, and a few of them are read side by side.
            move = {E.index(axis): number.index * block + E.index(axis)}
            guard = d.reduction.guard
            over = replace(
                d.reduction,
                axes=tuple(
                    replace(a, extent=E.const(block)) if a.name == axis else a
                    for a in d.reduction.axes
                ),
                guard=None if guard is None else E.substitute(guard, move),
            )
            anchor = replace(first.anchor, body=E.substitute(d.body, move), reduction=over)
            beside = 4 if axis == spec.lane and not out and not spec.before else 1
            levels = (Level("part", min(beside, count)), *spec.levels)
            first = replace(first, anchor=anchor, part=None, levels=levels)
            if spec.before:
                first = replace(
                    first,
                    before=tuple(replace(m, body=E.substitute(m.body, move)) for m in spec.before),
                )
        self.phase([(first, {**extents, axis: sizes[axis], "part": count})], (), depth + 1, grain)
        body = E.read("part", [number.index, *(a.index for a in d.axes)], work)
        lane = out[-1].name if out else "part"
        second = StageSpec(
            Definition(d.name, d.dtype, d.axes, body, Reduction(monoid, (number,))),
            (),
            spec.after,
            spec.stored,
            tuple(
                Level(a.name, self.lanes, "mask") if a.name == lane else Level(a.name, 1)
                for a in out
            ),
            (Level("part", 1) if out else Level("part", self.lanes, "mask"),),
            lane,
            frozenset() if out else frozenset({"part"}),
            places=places,
        )
        self.phase([(second, extents)], (), 1, 1)
        return True

    # -- phases
    def phase(
        self,
        stages: list[tuple[StageSpec, dict[str, int]]],
        shared: tuple[Level, ...],
        depth: int,
        grain: int,
    ) -> None:
        """Stages inside loops over `shared`, `depth` outer loops of which are one parallel loop."""
        extents = {a: n for _, e in stages for a, n in e.items()}
        region = Region({a: E.const(0) for a in extents}, dict(extents), {}, {})
        regions = [region] if shared else self._parts(*stages[0], region, depth)
        for part in regions:
            self._phase(stages, shared, part, depth, grain)

    def _parts(
        self, spec: StageSpec, extents: dict[str, int], region: Region, depth: int
    ) -> list[Region]:
        """The regions of a stage that have loops of their own, as its conditions are others there.

        One for every part of the axes of the parallel loop; other axes are taken apart inside it.
        """
        points = prod(extents.values())
        plain = spec.anchor.reduction is None and spec.anchor.scan is None and not spec.staging
        if not plain or is_symbolic(points) or points < CUT_POINTS:
            return [region]
        # A halo holds what a read outside gives.
        shapes = {n: x.shape for n, x in self.kernel.layout_of.items() if not x.halo}
        vectors = [x.block for x in spec.levels if x.axis == spec.lane]
        block = (spec.lane, vectors[-1]) if spec.lane is not None and vectors else None
        cuts = cuts_of((*spec.before, spec.anchor, *spec.after), shapes, extents, block)
        if len(cuts) > 1 and prod(len(x) + 1 for x in cuts.values()) > _MOST_PARTS:
            return [region]
        regions = [replace(region, cuts=cuts)]
        for level in spec.levels[:depth]:
            if level.axis in regions[0].cuts:
                regions = [part for r in regions for part in r.parts(level.axis)]
        return regions

    def _phase(
        self,
        stages: list[tuple[StageSpec, dict[str, int]]],
        shared: tuple[Level, ...],
        region: Region,
        depth: int,
        grain: int,
    ) -> None:
        b = self.b
        b.enter(is_root=True)
        scanned = stages[0][0].anchor.scan
        outer = (
            shared
            if shared
            else tuple(x for x in stages[0][0].levels if scanned is None or x.axis != scanned[1])
        )
        loops: list[int] = []
        seen: set[str] = set()
        if (
            not shared and stages[0][0].staging
        ):  # what is staged at a level is staged once for all that is inside
            depth = min(depth, *stages[0][0].staging)
        for level in outer[:depth]:
            if level.axis in seen:
                break  # an inner level of the same axis has no fixed number of trips
            if level.tail == "sums":
                break  # its blocks come one after the other
            seen.add(level.axis)
            loops.append(trips(level, region.lengths[level.axis]))
        total = prod(loops)

        def inner(r: Region, given: list[Expr]) -> None:
            if not shared:
                first = stages[0][0]
                b.written = {first.places[m].buffer for m in first.stored}
                b.written |= {first.strip, f"{first.strip}n", first.sums}
                emit_stage(b, stages[0][0], r, self.lanes, given)
                return
            if self.stream is not None:
                self.stream.emit([spec for spec, _ in stages], r, self._origins(r))
                return
            for spec, _ in stages:
                b.enter(is_root=True)
                local = dict(spec.places)
                b.written = {local[m].buffer for m in spec.stored}
                local.update(self._origins(r))
                emit_stage(b, replace(spec, places=local), r, self.lanes, [])
                for node in b.leave():
                    b.effect(node)

        if not is_symbolic(total) and total <= 1:
            if shared:
                emit_levels(b, shared, region, self.lanes, [], lambda r: inner(r, []))
            else:
                inner(region, [])
            self.phases.append(Phase(b.leave()))
            return
        var = b.counter()
        b.enter(var)
        region = region.with_range(var, total)
        given: list[Expr] = []
        at = E.index(var)
        outermost = True
        for k, n in enumerate(loops):
            if not is_symbolic(n) and n == 1:
                given.append(E.const(0))
                continue
            i: Expr = at // prod(loops[k + 1 :])
            given.append(i if outermost else i % n)
            outermost = False
        if shared:
            emit_levels(b, shared, region, self.lanes, given, lambda r: inner(r, []))
        else:
            inner(region, given)
        nodes = b.leave()
        b.effect(For(var, E.const(0), E.const(total), 1, nodes, parallel=True, grain=grain))
        self.phases.append(Phase(b.leave()))

    def _origins(self, r: Region) -> dict[str, Place]:
        """Places of what lives in scratch, which holds one block of the shared axes."""
        out: dict[str, Place] = {}
        for m, place in self.places.items():
            if place.origin is not None:
                axes = self.kernel.definitions[m].axes
                origin = tuple(
                    r.starts[a.name] if a.name in self.kernel.shared else E.const(0) for a in axes
                )
                out[m] = replace(place, origin=origin)
        return out

    def run(self) -> Lowered:
        kernel, s = self.kernel, self.schedule
        shared = tuple(
            Level(a, max(1, s.integer(f"block.{i}", 1)), "block")
            for i, a in enumerate(kernel.shared)
        )
        fixed = set(kernel.shared)
        stages: list[tuple[StageSpec, dict[str, int]]] = []
        if kernel.stream:
            self.stream = Stream(self)
        if kernel.shared:
            self._scratch_places(shared)
        if self.stream is not None:
            self.stream.factor_places()
        for k in range(len(kernel.stages)):
            spec, roles = self.spec(k, fixed)
            if not kernel.shared:
                spec = self.pack_lanes(k, roles, spec)
                if not spec.products:
                    spec = self.pack_a(k, roles, replace(spec, places=dict(self.places)))
                if spec.sums:
                    spec = sums.with_scratch(self, spec)
            extents = {a.name: int_extent(a.extent) for a in spec.anchor.axes}
            stages.append((spec, extents))
        depth = s.integer("par", 1)
        grain = max(1, s.integer("chunk", 1))
        if kernel.shared:
            self.phase(stages, shared, depth, grain)
        else:
            for k, pair in enumerate(stages):
                if not self.split(k, *pair, depth, grain):
                    self.phase([pair], (), depth, grain)
        return self.finish()

    def _scratch_places(self, shared: tuple[Level, ...]) -> None:
        """Tensors that stay inside the kernel live in scratch, for one block of the shared axes."""
        kernel = self.kernel
        blocks = {x.axis: x.block for x in shared}
        rows = set(blocks)
        if self.stream is not None:
            blocks[kernel.stream] = self.stream.block
        for k, stage in enumerate(kernel.stages):
            lane = stage_roles(kernel, k).axis_of.get(self.schedule.text(f"s{k}.lane"))
            for m in stage.members:
                if m in kernel.layout_of or not kernel.is_stored(m):
                    continue
                d = kernel.definitions[m]
                sizes = ((a.name, int_extent(a.extent)) for a in d.axes)
                shape = tuple(least(blocks[a], n) if a in blocks else n for a, n in sizes)
                order = [i for i, a in enumerate(d.axes) if a.name in rows]
                order += [i for i, a in enumerate(d.axes) if a.name not in rows]
                if lane in rows and any(a.name == lane for a in d.axes):
                    at = next(i for i, a in enumerate(d.axes) if a.name == lane)
                    order = [i for i in order if i != at] + [at]
                layout = ordered(shape, order)
                name = f"r_{m}"
                self.scratch.append(Buffer(name, d.dtype, E.const(layout.size), "scratch"))
                self.places[m] = Place(name, layout, d.dtype, tuple(E.const(0) for _ in d.axes))

    def finish(self) -> Lowered:
        buffers, tensors = [], []
        for name, layout in self.kernel.layouts:
            t = self.kernel.program.tensors[name]
            place = "const" if name in self.constants else "arg"
            size = self.layouts.get(name, layout).size
            align = 64 if place == "const" else t.dtype.bytes
            buffers.append(Buffer(name, t.dtype, E.const(size), place, align))
            tensors.append(name)
        nest = LoopNest(
            "k",
            tuple(buffers) + tuple(self.workspace) + tuple(self.scratch),
            tuple(d.name for d in self.kernel.program.dims),
            tuple(self.phases),
        )
        return Lowered(nest, tuple(tensors), self.layouts, tuple(self.workspace))


def lower(kernel: Kernel, schedule: Schedule, target: Target) -> Lowered | Rejected:
    """The nest of a kernel under a schedule. A schedule of the kernel's Space is never rejected.

    A schedule of the kernel's Space at some sizes serves the kernel with symbolic dims.
    """
    with assuming(kernel.program.dims):
        return _lowered(kernel, schedule, target)


def _lowered(kernel: Kernel, schedule: Schedule, target: Target) -> Lowered | Rejected:
    known = {"s", "block", "par", "chunk", "stream", "border"}
    strange = [n for n, _ in schedule.items if n.split(".")[0].rstrip("0123456789") not in known]
    if strange:
        return Rejected("S001", f"unknown parameter {strange[0]}")
    lowering = _Lowering(kernel, schedule, target)
    special: Callable[[_Lowering], None] | None = None
    if kernel.scatter is not None:
        special = lower_scatter
    elif kernel.sequence:
        special = lower_sequence
    if special is not None:
        special(lowering)
        return lowering.finish()
    return lowering.run()
