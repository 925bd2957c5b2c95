"""Scalar expressions over index variables -> operations on register tiles.

In: an expression of a definition, where each axis stands (base, tile extent), and where tensors
live. Out: the tile that holds its value at every position. Invariants: addresses linear in the
tile's positions become strided loads; everything else becomes a gather, so every quasi-affine or
data-dependent subscript has a translation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.extent import is_symbolic
from tilewright.ir.layout import Layout
from tilewright.ir.nest import Limits, Strides, TileType
from tilewright.ir.ranges import Ranges, interval, nonnegative, simplify, split_linear
from tilewright.lower.builder import Builder, Tile

__all__ = ["Place", "TileScope", "position_of"]

APART = 4  # elements between neighbours that still count as close together
FAR = 64  # elements between neighbours that lie in lines, or pages, of their own


@dataclass(frozen=True)
class Place:
    """Where a tensor lives: buffer name, layout, and the logical index that the buffer's origin
    stands for.
    """

    buffer: str
    layout: Layout
    dtype: DType
    origin: tuple[Expr, ...] | None = None

    def local(self, subscripts: Sequence[Expr]) -> tuple[Expr, ...]:
        """Subscripts relative to the origin."""
        if self.origin is None:
            return tuple(subscripts)
        return tuple([s - o for s, o in zip(subscripts, self.origin, strict=True)])


_Split = tuple[dict[Expr, int], Expr] | None


def position_of(axis: str) -> Expr:
    """The variable that counts an axis's positions inside the tile."""
    return E.index(f"{axis}'")


def _leaves(s: Expr, lo: int, hi: int, ranges: Ranges) -> tuple[bool, bool]:
    """May a subscript be below `lo`, and may it be `hi` or above?"""
    low, high = interval(s, ranges)
    symbolic = is_symbolic(hi)
    below, above = low is None or low < lo, high is None or symbolic or high >= hi
    if low is None or high is None or symbolic:
        below = below and not nonnegative(s - lo, ranges)
        above = above and not nonnegative(E.const(hi) - s - 1, ranges)
    return below, above


@dataclass
class TileScope:
    """One region's tile: its axes in order, where they start, how many positions are valid.

    bases: axis -> index expression of position 0. sizes: tile extents (axes of one position are
    left out). valid: axis -> number of valid positions where that is fewer than the tile has.
    registers: tensors whose tile is at hand, with the axes (in the tensor's order) it was computed
    for.
    """

    builder: Builder
    places: dict[str, Place]
    bases: dict[str, Expr]
    sizes: dict[str, int]
    lane: str | None
    ranges: dict[str, tuple[int, int]]
    valid: dict[str, int] = field(default_factory=dict)
    extents: dict[str, int] = field(default_factory=dict)
    registers: dict[str, tuple[Tile, tuple[str, ...]]] = field(default_factory=dict)
    memo: dict[Expr, Tile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tiled = [a for a, n in self.sizes.items() if n > 1]
        self._positions = {position_of(a): a for a in self.tiled}
        self._here = {E.index(a): b for a, b in self.bases.items()}
        self._ranges = dict(self.ranges)
        for p, a in self._positions.items():
            if a in self.bases:
                self._here[E.index(a)] = self.bases[a] + p
            self._ranges[p.attr] = (0, self.sizes[a] - 1)
        # Of localized reads that may be outside their tensor, the subscripts over axes.
        self._provenance: dict[Expr, tuple[Expr, ...]] = {}
        # Tensors that lie alike are read at the same addresses. A layout is kept with its number.
        self._splits: dict[tuple[int, tuple[Expr, ...]], tuple[Layout, _Split]] = {}
        self._localized: dict[Expr, Expr] = {}
        self._substituted = dict(self._here)
        self._simplified: dict[Expr, Expr] = {}
        self._names_read: set[str] = set()

    @cached_property
    def _loose(self) -> tuple[dict[Expr, Expr], dict[str, tuple[int, int]]]:
        """A second view of every axis: a start that is only known to keep the valid positions
        inside the axis. It proves subscripts inside where the loop counters are coupled (a fused
        parallel counter).
        """
        view = {
            E.index(a): E.index(f"{a}@") + (position_of(a) if self.sizes.get(a, 1) > 1 else 0)
            for a in self.bases
        }
        ranges = {f"{a}'": (0, self.valid.get(a, self.sizes[a]) - 1) for a in self.tiled}
        for a in self.bases:
            if a in self.extents:
                length = self.valid.get(a, self.sizes.get(a, 1))
                last = self.extents[a] - length
                ranges[f"{a}@"] = (0, last if is_symbolic(last) else max(0, last))
        return view, ranges

    # -- types
    def type(self, dtype: DType, axes: set[str]) -> TileType:
        ordered = tuple([(a, self.sizes[a]) for a in self.tiled if a in axes])
        return TileType(dtype, ordered, self.lane if self.lane in axes else None)

    def _joined(self, dtype: DType, tiles: Sequence[Tile]) -> TileType:
        """The type over all axes that any of the tiles has."""
        most = tiles[0].type
        for t in tiles:
            if t.type.axes and t.type.axes != most.axes:
                if most.axes:
                    return self.type(dtype, {a for t in tiles for a, _ in t.type.axes})
                most = t.type
        return most if most.dtype is dtype else TileType(dtype, most.axes, most.lane)

    # -- expressions
    def localize(self, e: Expr) -> Expr:
        """The expression over loop counters and tile positions instead of axes."""
        found = self._localized.get(e)
        if found is None:
            found = self._localized[e] = self._localize(e)
        return found

    def _localize(self, e: Expr) -> Expr:
        for r in e.reads() if self.extents else ():
            if r.attr[1]:
                self._provenance[self._moved(r)] = r.args[:-1]
        return self._moved(e)

    def _moved(self, e: Expr) -> Expr:
        here = E.substitute_more(e, self._substituted)
        return simplify(here, self._ranges, self._simplified)

    def value(self, e: Expr) -> Tile:
        """The tile of an expression over axes."""
        return self._value(self.localize(e))

    def _value(self, e: Expr) -> Tile:
        hit = self.memo.get(e)
        if hit is None:
            hit = self.memo[e] = self._compute(e)
        return hit

    def define(self, name: str, tile: Tile, axes: tuple[str, ...]) -> None:
        """Make the tile of a tensor known; what was computed from another one is forgotten."""
        self.registers[name] = (tile, axes)
        if name in self._names_read:
            self.memo.clear()

    def _compute(self, e: Expr) -> Tile:
        b = self.builder
        if e.op == "const":
            return b.fill(TileType(e.dtype), e.attr)
        if e.op == "read":
            return self._read(e)
        if e.dtype is I64 and not e.has_reads:
            linear = self._linear_index(e)
            if linear is not None:
                return linear
        args = tuple([self._value(a) for a in e.args])
        return b.map(e.op, self._joined(e.dtype, args), args)

    def _linear_index(self, e: Expr) -> Tile | None:
        """An index expression as position + sum of coefficient * iota, or None where it is not
        linear in the tile.
        """
        split = split_linear(e, self._positions)
        if split is None:
            return None
        coefficients, rest = split
        b = self.builder
        total = b.position(TileType(I64), rest)
        for p, c in coefficients.items():
            axis = self._positions[p]
            t = self.type(I64, {axis})
            term = b.iota(t)
            if c != 1:
                term = b.map("mul", t, (term, b.number(c)))
            total = b.map("add", self._joined(I64, (total, term)), (total, term))
        return total

    # -- reads
    def _register(self, name: str, subscripts: Sequence[Expr]) -> Tile | None:
        found = self.registers.get(name)
        if found is None:
            return None
        tile, axes = found
        for s, a in zip(subscripts, axes, strict=True):
            if s is not self.localize(E.index(a)):
                return None
        return tile

    def _read(self, e: Expr) -> Tile:
        name, has_else = e.attr
        self._names_read.add(name)
        subscripts = e.args[:-1] if has_else else e.args
        tile = self._register(name, subscripts)
        if tile is not None:
            return tile
        place = self.places[name]
        local = place.local(subscripts)
        orelse = e.args[-1] if has_else else None
        if orelse is not None and self._is_outside(place, local):
            return self._value(orelse)
        if orelse is not None and orelse.op != "const":
            return self._read_or(e, place, local, orelse)
        flat = local
        if any([s.has_reads for s in local]):
            known = [self.flat(s) for s in local]
            if None in known:
                return self._gather(place, local, orelse, e.dtype)
            flat = tuple(s for s in known if s is not None)
        split = self.split(place.layout, flat)
        limits = self._limits(place, flat, orelse, self._provenance.get(e, ()))
        if split is None or limits is None:
            return self._gather(place, local, orelse, e.dtype)
        coefficients, base = split
        axes = {self._positions[p] for p in coefficients}
        axes |= {a for a, _, _ in limits}
        if limits and not axes:
            return self._gather(place, local, orelse, e.dtype)
        return self._strided(place, e.dtype, coefficients, base, axes, limits, orelse)

    def _is_outside(self, place: Place, subscripts: Sequence[Expr]) -> bool:
        """Whether no position of the tile is inside the tensor."""
        for s, n in zip(subscripts, place.layout.shape, strict=True):
            low, high = interval(s, self._ranges)
            if (high is not None and high < 0) or (
                low is not None and not is_symbolic(n) and low >= n
            ):
                return True
        return False

    def _strided(
        self,
        place: Place,
        dtype: DType,
        coefficients: dict[Expr, int],
        base: Expr,
        axes: set[str],
        limits: list[tuple[str, Expr, Expr]],
        orelse: Expr | None,
    ) -> Tile:
        by_axis = {self._positions[p]: c for p, c in coefficients.items()}
        limited = {a: (lo, hi) for a, lo, hi in limits}
        for a in axes:
            if a in self.valid:  # positions past the end of the axis are never touched
                lo, hi = limited.get(a, (E.const(0), E.const(self.sizes[a])))
                valid = E.const(self.valid[a])
                if hi.op == "select":  # a condition of all positions stays outside
                    hi = E.select(hi.args[0], E.minimum(hi.args[1], valid), hi.args[2])
                else:
                    hi = E.minimum(hi, valid)
                limited[a] = (lo, hi)
        t = self.type(dtype, axes)
        strides = self._strides(t, by_axis)
        bounds: Limits = tuple([(a, *limited[a]) for a, _ in t.axes if a in limited])
        fill = orelse.attr if orelse is not None else 0
        lane = self._memory_lane(t, by_axis)
        if lane == t.lane:
            return self.builder.load(t, place.buffer, base, strides, bounds, fill)
        turned = TileType(t.dtype, t.axes, lane)
        loaded = self.builder.load(turned, place.buffer, base, strides, bounds, fill)
        return self.builder.relayout(t, loaded)

    def _strides(self, t: TileType, by_axis: dict[str, int]) -> Strides:
        return tuple([(a, E.const(by_axis[a])) for a, _ in t.axes if a in by_axis])

    def _memory_lane(self, t: TileType, strides: dict[str, int]) -> str | None:
        """The axis to load along: the lane axis, unless another one is contiguous in memory and
        long enough to turn.
        """
        if t.lane is None or abs(strides.get(t.lane, 0)) <= 1:
            return t.lane
        word = 4 if t.dtype.is_int and t.dtype.bytes == 1 else 0
        if strides.get(t.lane) == word and any(
            n == word and strides.get(a) == 1 for a, n in t.axes
        ):
            return t.lane  # a word of every lane, side by side
        for a, n in t.axes:
            if a != t.lane and strides.get(a) == 1 and n >= 4:
                return a
        return t.lane

    def split(self, layout: Layout, local: Sequence[Expr]) -> tuple[dict[Expr, int], Expr] | None:
        """({position: stride}, rest) of a local address; None where it is not linear."""
        key = id(layout), tuple(local)
        if key not in self._splits:
            terms = layout.terms_at(local, self._ranges)
            self._splits[key] = layout, split_linear(terms, self._positions)
        return self._splits[key][1]

    def _limits(
        self,
        place: Place,
        subscripts: Sequence[Expr],
        orelse: Expr | None,
        loose: tuple[Expr, ...] = (),
    ) -> list[tuple[str, Expr, Expr]] | None:
        """Per tile axis the positions at which every subscript is inside; None where that is no box
        of positions.
        """
        if orelse is None:
            return []
        out: dict[str, tuple[Expr, Expr]] = {}
        always: list[Expr] = []
        for s, lo, hi, below, above in self._leaving(place, subscripts, orelse, loose):
            split = split_linear(s, self._positions)
            if split is None or len(split[0]) > 1 or any(c <= 0 for c in split[0].values()):
                return None
            coefficients, rest = split
            if not coefficients:
                if below:
                    always.append(E.compare("le", E.const(lo), rest))
                if above:
                    always.append(E.compare("lt", rest, E.const(hi)))
                continue
            ((p, c),) = coefficients.items()
            axis = self._positions[p]
            first, last = out.get(axis, (E.const(0), E.const(self.sizes[axis])))
            if below:
                first = E.maximum(first, (E.const(lo) - rest + (c - 1)) // c)
            if above:
                last = E.minimum(last, (E.const(hi) - rest + (c - 1)) // c)
            out[axis] = (first, last)
        if always:
            condition = always[0]
            for more in always[1:]:
                condition = E.logical("and", condition, more)
            home = self.lane if self.lane in self.tiled else next(iter(self.tiled), None)
            home = next(iter(out), home)
            if home is None:
                return None
            first, last = out.get(home, (E.const(0), E.const(self.sizes[home])))
            out[home] = (first, E.select(condition, last, E.const(0)))
        return [
            (a, simplify(lo, self._ranges), simplify(hi, self._ranges))
            for a, (lo, hi) in out.items()
        ]

    def _leaving(
        self, place: Place, subscripts: Sequence[Expr], orelse: Expr, loose: tuple[Expr, ...]
    ) -> Iterator[tuple[Expr, int, int, bool, bool]]:
        """The subscripts that may leave their tensor: where it begins and ends, and whether they
        may be below, and above.
        """
        layout = place.layout
        use_halo = bool(layout.halo) and layout.fill == orelse.attr
        for k, s in enumerate(subscripts):
            lo, hi = layout.valid(k) if use_halo else (0, layout.shape[k])
            below, above = _leaves(s, lo, hi, self._ranges)
            if (below or above) and loose and place.origin is None:
                view, ranges = self._loose
                there = simplify(E.substitute(loose[k], view), ranges)
                again = _leaves(there, lo, hi, ranges)
                below, above = below and again[0], above and again[1]
            if below or above:
                yield s, lo, hi, below, above

    def coupled(self, reads: Sequence[Expr]) -> set[str]:
        """Axes of the tile that stand beside another one in a subscript that may leave its tensor:
        the positions that are inside are no box, so the read is a gather.
        """
        out: set[str] = set()
        for r in reads:
            place = self.places.get(r.attr[0])
            if place is None or not r.attr[1] or r.args[-1].op != "const":
                continue
            here = self.localize(r)
            local = place.local(here.args[:-1])
            for s, *_ in self._leaving(place, local, here.args[-1], self._provenance.get(here, ())):
                split = None if s.has_reads else split_linear(s, self._positions)
                if split is not None and len(split[0]) > 1:
                    out |= {self._positions[p] for p in split[0]}
        return out

    def _inside(self, place: Place, subscripts: Sequence[Expr]) -> Expr | None:
        condition: Expr | None = None
        for k, s in enumerate(subscripts):
            n = E.const(place.layout.shape[k])
            inside = simplify(
                E.logical("and", E.compare("le", E.const(0), s), E.compare("lt", s, n)),
                self._ranges,
            )
            if inside.op != "const" or not inside.attr:
                condition = inside if condition is None else E.logical("and", condition, inside)
        return condition

    def _gather(
        self, place: Place, subscripts: Sequence[Expr], orelse: Expr | None, dtype: DType
    ) -> Tile:
        """The general read: an offset computed per position, masked where it may be outside."""
        b = self.builder
        base, varying = self._parted(place.layout.address(subscripts, self._ranges))
        offset = self._value(varying)
        mask: Tile | None = None
        condition = self._inside(place, subscripts) if orelse is not None else None
        if condition is not None:
            mask = self._value(condition)
        axes = set(offset.type.names) | (set(mask.type.names) if mask is not None else set())
        mask = self._within_valid(axes, mask)
        axes |= set(mask.type.names) if mask is not None else set()
        fill = orelse.attr if orelse is not None else 0
        return b.gather(self.type(dtype, axes), place.buffer, base, offset, mask, fill)

    def _parted(self, address: Expr) -> tuple[Expr, Expr]:
        """An address as what is one number for the whole tile, and what is not."""
        names = {p.attr for p in self._positions}
        uniform: E.Polynomial = {}
        varying: E.Polynomial = {}
        for atoms, v in E.polynomial(address).items():
            moves = any(a.has_reads or not names.isdisjoint(a.indices()) for a in atoms)
            (varying if moves else uniform)[atoms] = v
        return E.from_polynomial(uniform), E.from_polynomial(varying)

    def _read_or(self, e: Expr, place: Place, subscripts: Sequence[Expr], orelse: Expr) -> Tile:
        """A read whose `else` is itself computed: read with 0, then select."""
        zero = E.const(0, e.dtype)
        inner = self._value(E.read(e.attr[0], e.args[:-1], e.dtype, zero))
        condition = self._inside(place, subscripts)
        if condition is None:
            return inner
        args = (self._value(condition), inner, self._value(orelse))
        return self.builder.map("select", self._joined(e.dtype, args), args)

    def load(self, place: Place, subscripts: Sequence[Expr]) -> Tile:
        """The tile of an access to a place, wherever the tensor's name leads."""
        return self.load_at(place, place.local([self.localize(s) for s in subscripts]))

    def load_at(self, place: Place, local: Sequence[Expr]) -> Tile:
        """The tile at localized subscripts, which are linear in the tile's positions."""
        split = self.split(place.layout, local)
        assert split is not None
        axes = {self._positions[p] for p in split[0]}
        return self._strided(place, place.dtype, split[0], split[1], axes, [], None)

    def flat(self, e: Expr) -> Expr | None:
        """A localized expression with reads of flat memory, as it may stand in an address; None
        where a read changes inside the tile, or with what this region writes.
        """
        memo: dict[Expr, Expr] = {}
        for r in e.reads():  # operands before what reads with them
            place = self.places.get(r.attr[0])
            if place is None or r.attr[1] or r.attr[0] in self.registers:
                return None
            if place.origin is not None or place.buffer in self.builder.written:
                return None
            if any(p.attr in s.indices() for s in r.args for p in self._positions):
                return None
            args = [E.substitute(s, memo) for s in r.args]
            at = place.layout.address(args, self._ranges)
            memo[r] = E.read(place.buffer, [at], r.dtype)
        return E.substitute(e, memo)

    # -- stores
    def store(
        self, place: Place, subscripts: Sequence[Expr], value: Tile, nontemporal: bool = False
    ) -> None:
        """Write a tile at subscripts over axes; a strided lane axis is turned in registers where
        another is contiguous, or nearly so.
        """
        local = place.local([self.localize(s) for s in subscripts])
        self.store_at(place, local, value, nontemporal)

    def store_at(
        self, place: Place, local: Sequence[Expr], value: Tile, nontemporal: bool = False
    ) -> None:
        """Write a tile at localized subscripts."""
        split = self.split(place.layout, local)
        if split is None:
            self._scatter(place, local, value)
            return
        coefficients, base = split
        by_axis = {self._positions[p]: c for p, c in coefficients.items()}
        wanted, axes = value.type, {a for a, _ in value.type.axes}
        if not axes.issuperset(by_axis):
            wanted = self.type(value.type.dtype, axes | set(by_axis))
            value = self._broadcast(value, wanted)
        limits: Limits = tuple(
            [(a, E.const(0), E.const(self.valid[a])) for a, _ in wanted.axes if a in self.valid]
        )
        strides = self._strides(wanted, by_axis)
        lane = self._memory_lane(wanted, by_axis)
        if lane == wanted.lane and abs(by_axis.get(lane or "", 0)) >= FAR:
            lane = _close_axis(wanted, by_axis) or lane
        if lane != wanted.lane:
            value = self.builder.relayout(TileType(wanted.dtype, wanted.axes, lane), value)
        self.builder.store(place.buffer, base, strides, value, limits, nontemporal)

    def _broadcast(self, value: Tile, wanted: TileType) -> Tile:
        """The value with all the axes of `wanted`."""
        if wanted.dtype is BOOL or not wanted.axes:
            one = self.builder.fill(wanted, True)
            return self.builder.map("and", wanted, (value, one)) if wanted.axes else value
        zero = self.builder.fill(wanted, 0)
        mask = self.builder.fill(TileType(BOOL), True)
        return self.builder.map("select", wanted, (mask, value, zero))

    def _within_valid(self, axes: Collection[str], mask: Tile | None = None) -> Tile | None:
        """`mask`, and where the positions of a masked tail of these axes count."""
        b = self.builder
        for a in (a for a in self.valid if a in axes):
            t = self.type(I64, {a})
            inside = b.map("lt", self.type(BOOL, {a}), (b.iota(t), b.number(self.valid[a])))
            mask = (
                inside
                if mask is None
                else b.map("and", self._joined(BOOL, (mask, inside)), (mask, inside))
            )
        return mask

    def _scatter(self, place: Place, subscripts: Sequence[Expr], value: Tile) -> None:
        from tilewright.ir.nest import Scatter

        b = self.builder
        offset = self._value(place.layout.address(subscripts, self._ranges))
        wanted = self.type(value.type.dtype, set(offset.type.names) | set(value.type.names))
        if wanted.names != value.type.names:
            value = self._broadcast(value, wanted)
        mask = self._within_valid(wanted.names)
        b.effect(
            Scatter(
                place.buffer, E.const(0), offset.name, value.name, mask.name if mask else None, None
            )
        )


def _close_axis(t: TileType, strides: dict[str, int]) -> str | None:
    """An axis whose neighbours lie in one cache line, where those of the lane axis do not: a row
    of it is a store or two, and touches one page instead of as many as it has elements.
    """
    for a, n in t.axes:
        step = strides.get(a, 0)
        if a != t.lane and not is_symbolic(step) and 2 <= step <= APART and n >= 4:
            return a
    return None
