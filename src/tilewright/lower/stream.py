"""Kernels that stream along an axis: its blocks in order, what they add absorbed by accumulators.

In: a lowering in progress, whose kernel has a stream axis. Out: the body of one block of the
shared axes. Invariants: accumulators live in scratch and start as the identity of their monoid; a
block that no contribution can come from is not visited; blocks in which every condition surely
holds do not test it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tilewright.derive.stream import StreamPlan, stream_plan
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.extent import is_symbolic
from tilewright.ir.nest import Buffer, For, If
from tilewright.ir.program import Definition, identity_of
from tilewright.ir.ranges import coefficient, simplify
from tilewright.lower import symbolic
from tilewright.lower.region import Fold, Level, Region, StageSpec
from tilewright.lower.stage import emit_stage
from tilewright.lower.tiles import Place

if TYPE_CHECKING:
    from tilewright.lower.kernel import _Lowering

__all__ = ["Stream"]


@dataclass(frozen=True)
class _Bound:
    """A condition that ends the axis: where it may first fail, and from where it always does."""

    condition: Expr
    surely: Expr  # first j at which it may fail
    never: Expr  # first j from which it fails for every row


class Stream:
    """Emits the stages of a streaming kernel for one block of the shared axes."""

    def __init__(self, lowering: _Lowering) -> None:
        self.lowering = lowering
        kernel, s = lowering.kernel, lowering.schedule
        self.plan: StreamPlan = stream_plan(kernel)
        self.length = kernel.extents[kernel.stream]
        self.block = max(1, s.integer("stream", 128))
        if not is_symbolic(self.length):
            self.block = max(1, min(self.length, self.block))
        # Blocks of the smaller size begin where those of the larger one may end.
        border = max(1, min(self.block, s.integer("border", 32)))
        self.border = next(x for x in range(border, 0, -1) if self.block % x == 0)
        self.factors: dict[str, Place] = {}  # z -> where exp(z before - z now) lies

    def factor_places(self) -> None:
        """Scratch for the factors, shaped like the shifts that they come from."""
        for _, z in self.plan.states.values():
            like = self.lowering.places[z]
            name = f"c_{z}"
            size = E.const(like.layout.size)
            self.lowering.scratch.append(Buffer(name, like.dtype, size, "scratch"))
            self.factors[z] = replace(like, buffer=name)

    def emit(self, specs: list[StageSpec], r: Region, origins: dict[str, Place]) -> None:
        """All stages for the block `r` of the shared axes; `origins` says where scratch begins."""
        for k in self.plan.before:
            self._stage(specs[k], k, r, origins)
        for k in self.plan.folds:
            self._start(specs[k], r, origins)
        self._blocks(r, lambda region, known: self._within(specs, region, origins, known))
        for k in self.plan.after:
            self._stage(specs[k], k, r, origins)

    def _within(
        self, specs: list[StageSpec], r: Region, origins: dict[str, Place], known: list[Expr]
    ) -> None:
        start = r.starts[self.plan.axis]
        moved = dict(origins)
        for name, place in origins.items():
            axes = self.lowering.kernel.definitions[name].axes
            at = next((i for i, a in enumerate(axes) if a.name == self.plan.axis), -1)
            if at >= 0 and place.origin is not None:
                origin = (*place.origin[:at], start, *place.origin[at + 1 :])
                moved[name] = replace(place, origin=origin)
        swap = {c: E.const(True) for c in known}
        for k in self.plan.within:
            spec = specs[k]
            if swap:
                spec = replace(
                    spec,
                    anchor=_given(spec.anchor, swap, r),
                    before=tuple(_given(d, swap, r) for d in spec.before),
                    after=tuple(_given(d, swap, r) for d in spec.after),
                )
            self._stage(spec, k, r, moved)

    def _stage(self, spec: StageSpec, k: int, r: Region, places: dict[str, Place]) -> None:
        b = self.lowering.b
        b.enter(is_root=True)
        local = {**spec.places, **places}
        written = {local[m].buffer for m in spec.stored}
        if k in self.plan.folds:
            corrected = state = None
            if k in self.plan.corrected:
                z = self.plan.corrected[k]
                corrected = self._factor(z, places)
            if k in self.plan.states:
                z = self.plan.states[k][1]
                state = (z, *self._factor(z, places))
                written.add(self.factors[z].buffer)
            spec = replace(spec, fold=Fold(self.plan.axis, corrected, state))
        b.written = written
        emit_stage(b, replace(spec, places=local), r, self.lowering.lanes, [])
        for node in b.leave():
            b.effect(node)

    def _factor(self, z: str, places: dict[str, Place]) -> tuple[Place, tuple[str, ...]]:
        axes = tuple(a.name for a in self.lowering.kernel.definitions[z].axes)
        return replace(self.factors[z], origin=places[z].origin), axes

    def _start(self, spec: StageSpec, r: Region, places: dict[str, Place]) -> None:
        """Set an accumulator to the identity of its monoid."""
        b, d = self.lowering.b, spec.anchor
        assert d.reduction is not None
        value = E.const(identity_of(d.reduction.monoid, d.dtype), d.dtype)
        fill = Definition(d.name, d.dtype, d.axes, value)
        lane = spec.lane if spec.lane in {a.name for a in d.axes} else None
        if lane is None and d.axes:
            lane = d.axes[-1].name
        levels = [Level(a.name, 1) for a in d.axes if a.name != lane]
        if lane is not None:
            levels.append(Level(lane, self.lowering.lanes, "mask"))
        b.enter(is_root=True)
        b.written = {places[d.name].buffer}
        stored = frozenset({d.name})
        start = StageSpec(fill, (), (), stored, tuple(levels), (), lane, places=dict(places))
        emit_stage(b, start, r, self.lowering.lanes, [])
        for node in b.leave():
            b.effect(node)

    # -- blocks of the stream axis
    def _blocks(self, r: Region, body: Callable[[Region, list[Expr]], None]) -> None:
        axis, n = self.plan.axis, self.length
        bounds = self._bounds(r)
        if not bounds:
            whole, rest = divmod(n, self.block)
            self._loop(r, E.const(0), E.const(whole), self.block, [], body)
            if is_symbolic(rest):
                at = E.const(whole * self.block)
                symbolic.emit_rest(self.lowering.b, r, axis, at, rest, lambda x: body(x, []))
            elif rest:
                body(r.narrowed(axis, E.const(whole * self.block), rest), [])
            return
        known = [x.condition for x in bounds]
        surely = never = E.const(n)
        for x in bounds:
            surely, never = E.minimum(surely, x.surely), E.minimum(never, x.never)
        inside = simplify(E.maximum(surely, E.const(0)) // self.block, r.ranges)
        self._loop(r, E.const(0), inside, self.block, known, body)
        # Then blocks of the smaller size, as far as some row has a contribution.
        whole, rest = divmod(n, self.border)
        first = simplify(inside * (self.block // self.border), r.ranges)
        last = (never + (self.border - 1)) // self.border
        last = simplify(E.maximum(E.minimum(last, E.const(whole)), first), r.ranges)
        self._loop(r, first, last, self.border, [], body)
        if rest:
            b = self.lowering.b
            b.enter()
            body(r.narrowed(axis, E.const(whole * self.border), rest), [])
            nodes = b.leave()
            reached = simplify(E.compare("lt", E.const(whole * self.border), never), r.ranges)
            b.effect(If(reached, nodes))

    def _loop(
        self,
        r: Region,
        lo: Expr,
        hi: Expr,
        block: int,
        known: list[Expr],
        body: Callable[[Region, list[Expr]], None],
    ) -> None:
        first, last = E.int_value(lo), E.int_value(hi)
        if last is not None and last <= 0:
            return
        if first == 0 and last == 1:
            body(r.narrowed(self.plan.axis, E.const(0), block), known)
            return
        b = self.lowering.b
        var = b.counter()
        b.enter(var, is_root=True)
        count = self.length // block
        inner = r.with_range(var, count if is_symbolic(count) else max(1, count))
        body(inner.narrowed(self.plan.axis, E.index(var) * block, block), known)
        nodes = b.leave()
        b.effect(For(var, lo, hi, 1, nodes))

    def _bounds(self, r: Region) -> list[_Bound]:
        """The conditions that end the axis, for the rows of a block."""
        j = E.index(self.plan.axis)
        out = []
        for c in self.plan.conditions:
            if c.op not in ("lt", "le") or any(x.reads() for x in c.args):
                continue
            gap = c.args[0] - c.args[1]  # the condition: gap < 0, or gap <= 0
            step = coefficient(gap, j)
            if step is None or step <= 0:
                continue
            rest = E.substitute(gap, {j: E.const(0)})
            if j.attr in rest.indices() or not rest.indices() <= set(r.starts):
                continue
            ends = self._ends(rest, r)
            if ends is None:
                continue
            low, high = ends
            if c.op == "lt":
                low, high = low + 1, high + 1
            # step * j + rest <= 0 for all rows: j <= -high // step; for some row: j <= -low // step
            surely, never = (-high) // step + 1, (-low) // step + 1
            out.append(_Bound(c, surely, never))
        return out

    def _ends(self, e: Expr, r: Region) -> tuple[Expr, Expr] | None:
        """The least and the greatest value of a linear expression over the rows of a block."""
        low = high = e
        for a in sorted(e.indices()):
            c = coefficient(e, E.index(a))
            if c is None:
                return None
            start = r.starts[a]
            end = start + (r.valid.get(a, r.lengths[a]) - 1)
            small, large = (start, end) if c >= 0 else (end, start)
            low = E.substitute(low, {E.index(a): small})
            high = E.substitute(high, {E.index(a): large})
        return simplify(low, r.ranges), simplify(high, r.ranges)


def _given(d: Definition, known: dict[Expr, Expr], r: Region) -> Definition:
    """The definition where some conditions are known to hold."""
    reduction = d.reduction
    if reduction is not None and reduction.guard is not None:
        guard: Expr | None = simplify(E.substitute(reduction.guard, known), r.ranges)
        guard = None if guard is not None and guard.op == "const" and guard.attr else guard
        reduction = replace(reduction, guard=guard)
    return replace(d, body=simplify(E.substitute(d.body, known), r.ranges), reduction=reduction)
