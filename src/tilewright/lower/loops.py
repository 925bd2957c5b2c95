"""Loop structure of one stage: cache and register loops over output axes, reduction loops, tails.

In: a `StageSpec` (decided by the Schedule) and a region of the output axes. Out: nodes in a
Builder. Invariants: the accumulators are loop-carried tiles; every output point of the region is
written, none outside it is touched; the order in which a reduction is folded depends on the spec
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, F32, I32, I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.extent import Extent, ceil_div, is_symbolic, smaller
from tilewright.ir.kernel import int_extent
from tilewright.ir.nest import For, If, TileType
from tilewright.ir.program import MONOIDS, Definition, identity_of
from tilewright.ir.ranges import simplify
from tilewright.ir.words import narrow_factors
from tilewright.lower import symbolic
from tilewright.lower.builder import Builder, Tile
from tilewright.lower.prefetch import fetch_ahead, fetch_tile
from tilewright.lower.tiles import Place, TileScope

__all__ = [
    "Fold",
    "Level",
    "Region",
    "StageSpec",
    "converted",
    "define",
    "emit_arg",
    "emit_levels",
    "emit_reduction",
    "emit_stage",
    "least",
    "scope_of",
    "trips",
    "working_type",
]


@dataclass(frozen=True)
class Level:
    """One loop: `axis` in blocks of `block` positions. tail: peel, mask (lane axis) or overlap; or
    block: what is inside counts the positions of the last block itself.
    """

    axis: str
    block: int
    tail: str = "peel"


@dataclass(frozen=True)
class Fold:
    """A reduction that absorbs a block of its axis at a time; what came before lies in its place.

    axis: the streamed axis, whose region is a block already. corrected: place and axes of the
    factor by which sums of earlier blocks are multiplied, or None. state: for a maximum m with
    z = f(m) the name of z, and place and axes of the factor exp(z before - z now) that it writes.
    """

    axis: str
    corrected: tuple[Place, tuple[str, ...]] | None = None
    state: tuple[str, Place, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class StageSpec:
    """Everything that is decided about one stage.

    levels: loops over output axes, outermost first; the last level of an axis has its register
    block. reduce: loops over reduce axes, outermost first; `partial`: reduce axes whose positions
    keep their own accumulators.
    """

    anchor: Definition
    before: tuple[Definition, ...]
    after: tuple[Definition, ...]
    stored: frozenset[str]
    levels: tuple[Level, ...]
    reduce: tuple[Level, ...]
    lane: str | None
    partial: frozenset[str] = frozenset()
    nontemporal: bool = False
    prefetch: tuple[tuple[str, str, int], ...] = ()  # (tensor, axis, how many positions ahead)
    places: dict[str, Place] = field(default_factory=dict)
    # Run when so many levels have been opened, before the next one: stages (packs) an operand of
    # the region.
    staging: dict[int, Callable[[Region], None]] = field(default_factory=dict)
    fold: Fold | None = None
    # Strips (lower/strips.py): the scratch of their accumulators, how many positions of the
    # reduced axis they absorb at a time, and how many of `levels` stand around a strip.
    strip: str = ""
    rows: int = 0
    around: int = 0
    # A reduced axis of which the region has one block, and the extent of the blocks: the stage
    # makes partial results, the first axis of its anchor numbers them.
    part: tuple[str, int] | None = None
    fetches: bool = False  # rows that follow a reduction are asked for before it


@dataclass(frozen=True)
class Region:
    """Per axis where it starts, how many positions it has in the code, and how many of them are
    valid; lengths of loops and what is valid may be known at run time only (ir/extent.py).
    `ragged`: axes of which the region is one of many blocks: the number of the block, how many
    blocks are whole, and the length of the one after them.
"""

    starts: dict[str, Expr]
    lengths: dict[str, int]
    valid: dict[str, int]
    ranges: dict[str, tuple[int, int]]
    ragged: dict[str, tuple[Expr, int, int]] = field(default_factory=dict)

    def narrowed(self, axis: str, start: Expr, length: int, valid: int | None = None) -> Region:
        v = dict(self.valid)
        v.pop(axis, None)
        if valid is not None and (is_symbolic(valid) or valid < length):
            v[axis] = valid
        return replace(
            self,
            starts={**self.starts, axis: start},
            lengths={**self.lengths, axis: length},
            valid=v,
            ragged={a: x for a, x in self.ragged.items() if a != axis},
        )

    def block_of(
        self, axis: str, start: Expr, length: int, i: Expr, full: int, rest: int
    ) -> Region:
        """Block `i` of `full` blocks of `length` and one of `rest` positions, in one code."""
        one = self.narrowed(axis, start, length)
        return replace(one, ragged={**one.ragged, axis: (i, full, rest)})

    def with_range(self, var: str, hi: int) -> Region:
        last = hi - 1
        last = last if is_symbolic(last) else max(0, last)
        return replace(self, ranges={**self.ranges, var: (0, last)})


def trips(level: Level, length: int) -> int:
    """How many blocks cover `length`, the tail included."""
    return ceil_div(length, level.block)


def _masked_size(level: Level, rest: int, lanes: int) -> int:
    """The tile extent for a masked tail of `rest` positions: whole vectors."""
    return min(level.block, -(-rest // lanes) * lanes)


def emit_levels(
    b: Builder,
    levels: tuple[Level, ...],
    region: Region,
    lanes: int,
    given: list[Expr],
    inner: Callable[[Region], None],
    staging: dict[int, Callable[[Region], None]] | None = None,
    opened: int = 0,
) -> None:
    """Loops over `levels` around `inner`; the first `len(given)` of them are counted by an
    enclosing parallel loop.
    """
    if staging and opened in staging:
        staging[opened](region)
    if not levels:
        inner(region)
        return
    level, rest_levels = levels[0], levels[1:]
    counter = given[0] if given else None
    start, length = region.starts[level.axis], region.lengths[level.axis]

    def descend(r: Region) -> None:
        emit_levels(b, rest_levels, r, lanes, given[1:], inner, staging, opened + 1)

    if isinstance(length, Extent):
        is_block = level.tail == "block" or any(x.axis == level.axis for x in rest_levels)
        symbolic.emit_level(b, level, region, lanes, counter, is_block, descend)
        return
    full, rest = divmod(length, level.block)

    def body_at(i: Expr) -> Callable[[], None]:
        return lambda: descend(region.narrowed(level.axis, start + i * level.block, level.block))

    def tail() -> None:
        at = start + full * level.block
        if level.tail == "mask":
            descend(region.narrowed(level.axis, at, _masked_size(level, rest, lanes), rest))
        else:
            descend(region.narrowed(level.axis, at, rest))

    if level.axis in region.ragged:
        _ragged_tiles(b, level, region, descend)
        return
    if full and rest and level.tail == "peel" and _counts_tiles(level, rest_levels):
        # One code for all blocks: the tiles of the last one are counted at run time.
        i = counter if counter is not None else E.index(b.counter())
        bounded = region.with_range(i.attr, full + 1) if counter is None else region
        at = start + i * level.block
        block = bounded.block_of(level.axis, at, level.block, i, full, rest)
        if counter is not None:
            descend(block)
        else:
            _loop(b, i.attr, full + 1, lambda: descend(block))
        return
    if full == 0:
        if level.tail == "mask" and length != 1:
            descend(region.narrowed(level.axis, start, _masked_size(level, length, lanes), length))
        else:
            descend(region.narrowed(level.axis, start, length))
        return
    if rest and level.tail == "overlap":
        total = full + 1
        i = counter if counter is not None else E.index(b.counter())
        at = start + E.minimum(i * level.block, E.const(length - level.block))
        bounded = region.with_range(i.attr, total) if counter is None else region
        moved = bounded.narrowed(level.axis, at, level.block)
        if counter is not None:
            descend(moved)
        else:
            _loop(b, i.attr, total, lambda: descend(moved))
        return
    if counter is not None:
        if rest:
            b.enter()
            body_at(counter)()
            then = b.leave()
            b.enter()
            tail()
            b.effect(If(E.compare("lt", counter, E.const(full)), then, b.leave()))
        else:
            body_at(counter)()
        return
    if full == 1:
        body_at(E.const(0))()
    else:
        var = b.counter()
        r = region.with_range(var, full)
        at = start + E.index(var) * level.block
        _loop(b, var, full, lambda: descend(r.narrowed(level.axis, at, level.block)))
    if rest:
        tail()


def _counts_tiles(level: Level, inner: tuple[Level, ...]) -> bool:
    """Whether the next level of the axis takes whole tiles of the block, and peels the rest."""
    tile = next((x for x in inner if x.axis == level.axis), None)
    return tile is not None and tile.tail == "peel" and level.block % tile.block == 0


def _ragged_tiles(
    b: Builder, level: Level, region: Region, descend: Callable[[Region], None]
) -> None:
    """The tiles of a block that may be the shorter last one."""
    i, full, rest = region.ragged[level.axis]
    start, tiles = region.starts[level.axis], region.lengths[level.axis] // level.block
    whole, short = divmod(rest, level.block)
    count = E.minimum(E.const(tiles), E.const(full * tiles + whole) - i * tiles)
    var = b.counter()
    r = region.with_range(var, tiles)
    at = start + E.index(var) * level.block
    _loop(b, var, count, lambda: descend(r.narrowed(level.axis, at, level.block)))
    if short:
        b.enter()
        descend(region.narrowed(level.axis, start + whole * level.block, short))
        then = b.leave()
        b.effect(If(E.compare("eq", i, E.const(full)), then, ()))


def _loop(b: Builder, var: str, count: int | Expr, body: Callable[[], None]) -> None:
    b.enter(var)
    body()
    nodes = b.leave()
    end = E.const(count) if isinstance(count, int) else count
    b.effect(For(var, E.const(0), end, 1, nodes))


def emit_stage(b: Builder, spec: StageSpec, region: Region, lanes: int, given: list[Expr]) -> None:
    """The stage over a region of its output axes."""
    from tilewright.lower import strips

    d = spec.anchor
    whole = region
    if d.reduction is not None:
        for a in d.reduction.axes:
            if a.name in ((spec.fold and spec.fold.axis), (spec.part and spec.part[0])):
                continue  # the region is one block of it
            whole = whole.narrowed(a.name, E.const(0), int_extent(a.extent))

    def tile(r: Region) -> None:
        if spec.part is not None:
            axis, block = spec.part
            number = simplify(r.starts[axis] // block, r.ranges)
            r = r.narrowed(d.axes[0].name, number, 1)
        if any(r.lengths[a.name] == 0 for a in d.axes):
            return
        if spec.rows:
            strips.emit_strip(b, spec, levels[spec.around :], r, lanes)
        elif d.scan is not None and spec.lane == d.scan[1] and r.lengths[spec.lane] > 1:
            strips.emit_lane_scan(b, spec, r, _scan_block(spec), lanes)
        elif d.scan is not None:
            _emit_scan(b, spec, r)
        else:
            _emit_tile(b, spec, r, lanes)

    # A prefix walks its axis in its own loop.
    levels = tuple(x for x in spec.levels if d.scan is None or x.axis != d.scan[1])
    outer = levels[: spec.around] if spec.rows else levels
    emit_levels(b, outer, whole, lanes, given, tile, spec.staging)


def _scan_block(spec: StageSpec) -> int:
    """Positions of a prefix in one tile."""
    return next(x.block for x in spec.levels if x.axis == spec.lane)


def scope_of(b: Builder, spec: StageSpec, r: Region, sizes: dict[str, int]) -> TileScope:
    """The scope of one tile of a region."""
    return TileScope(
        b,
        spec.places,
        r.starts,
        sizes,
        spec.lane if sizes.get(spec.lane or "", 1) > 1 else None,
        r.ranges,
        {a: v for a, v in r.valid.items() if sizes.get(a, 1) > 1},
        {a.name: int_extent(a.extent) for a in spec.anchor.all_axes},
    )


def _emit_tile(b: Builder, spec: StageSpec, r: Region, lanes: int) -> None:
    """One register tile: accumulate, then epilogue and stores."""
    d = spec.anchor
    sizes = {a.name: r.lengths[a.name] for a in d.axes}
    scope = scope_of(b, spec, r, sizes)
    if d.reduction is None:
        for m in (*spec.before, d, *spec.after):
            define(scope, spec, m, scope.value(m.body))
        return
    if spec.fetches:
        fetch_tile(b, scope, spec.after)
    if d.reduction.monoid in ("argmax", "argmin"):
        if spec.lane is not None and spec.lane in spec.partial and r.lengths[spec.lane] > 1:
            value = _emit_arg_lanes(b, spec, r, lanes, scope)
        else:
            value = emit_arg(b, spec, r, scope)[1]
    else:
        value = emit_reduction(b, spec, r, lanes, scope)
    if spec.fold is not None:
        value = _absorb(b, spec, spec.fold, scope, value)
    define(scope, spec, d, value)
    for m in spec.after:
        define(scope, spec, m, scope.value(m.body))


def _absorb(b: Builder, spec: StageSpec, fold: Fold, scope: TileScope, value: Tile) -> Tile:
    """The value of one block combined with what earlier blocks left behind."""
    d = spec.anchor
    assert d.reduction is not None
    old = scope.load(spec.places[d.name], [a.index for a in d.axes])
    op = MONOIDS[d.reduction.monoid]
    if fold.corrected is not None:
        place, axes = fold.corrected
        factor = scope.load(place, [E.index(a) for a in axes])
        return b.contract(value.type, value, old, factor)
    new = b.combine(op, value.type, old, value)
    if fold.state is not None:
        name, place, axes = fold.state
        shift = next(m for m in spec.after if m.name == name)
        names = tuple(a.name for a in d.axes)
        both = []
        for m in (old, new):
            scope.registers[d.name] = (m, names)
            scope.memo.clear()
            both.append(scope.value(shift.body))
        t = both[1].type
        gap = b.map("exp", t, (b.map("sub", t, (both[0], both[1])),))
        flag = TileType(BOOL, old.type.axes, old.type.lane)
        low = b.fill(TileType(d.dtype), identity_of(d.reduction.monoid, d.dtype))
        first = b.map("eq", flag, (old, low))
        factor = b.map("select", t, (first, b.fill(TileType(d.dtype), 0), gap))
        scope.store(place, [E.index(a) for a in axes], factor)
    return new


def define(scope: TileScope, spec: StageSpec, m: Definition, value: Tile) -> None:
    """Make a member's tile known, and store it where others need it."""
    axes = tuple(a.name for a in m.axes)
    scope.registers[m.name] = (value, axes)
    scope.memo.clear()
    if m.name in spec.stored:
        scope.store(spec.places[m.name], [a.index for a in m.axes], value, spec.nontemporal)


def _reads(members: tuple[Definition, ...]) -> list[Expr]:
    return [r for m in members for e in m.expressions() for r in e.reads()]


def emit_reduction(
    b: Builder,
    spec: StageSpec,
    r: Region,
    lanes: int,
    scope: TileScope,
    result: DType | None = None,
) -> Tile:
    """The reduction over a region of the reduced axes, in the anchor's dtype or in `result`."""
    d = spec.anchor
    assert d.reduction is not None
    monoid = d.reduction.monoid
    op = MONOIDS[monoid]
    identity = identity_of(monoid, d.dtype)
    work = working_type(monoid, d.dtype)
    extents = {a.name: int_extent(a.extent) for a in d.reduction.axes}
    # Axes that keep their own accumulators, with their register extents.
    kept = {
        x.axis: least(x.block, r.lengths[x.axis]) for x in spec.reduce if x.axis in spec.partial
    }
    if spec.lane in kept and not is_symbolic(r.lengths[spec.lane]):
        length = r.lengths[spec.lane]
        kept[spec.lane] = min(-(-length // lanes) * lanes, _block(spec, spec.lane))
    acc_sizes = {**scope.sizes, **kept}
    # A tile needs its axes in one order everywhere: output axes, then kept reduce axes.
    order = [a.name for a in d.axes] + [a for a in extents if a in kept]
    lane = spec.lane if acc_sizes.get(spec.lane or "", 1) > 1 else None
    acc_axes = tuple((a, acc_sizes[a]) for a in order if acc_sizes.get(a, 1) > 1)
    acc_type = TileType(work, acc_axes, lane if lane in dict(acc_axes) else None)
    start = b.fill(acc_type, identity)

    def accumulate(region: Region, acc: Tile) -> Tile:
        sizes = {a.name: region.lengths[a.name] for a in d.all_axes}
        inner = scope_of(b, spec, region, sizes)
        for m in spec.before:
            define(inner, spec, m, inner.value(m.body))
        if spec.prefetch:
            fetch_ahead(b, inner, _reads((d, *spec.before)), spec.prefetch)
        masked = {a: v for a, v in inner.valid.items() if a in extents}
        if monoid == "sum" and d.body.op == "mul" and d.reduction.guard is None and not masked:  # type: ignore[union-attr]
            narrow = narrow_factors(d)
            factors = d.body.args if narrow is None else narrow
            if d.dtype.is_float or (narrow and any(sizes[a] > 1 for a in extents if a not in kept)):
                left, right = (inner.value(x) for x in factors)
                present = {*acc_type.names, *left.type.names, *right.type.names}
                if all(n == 1 or a in present for a, n in sizes.items()):
                    return b.contract(acc_type, acc, left, right)
        value = converted(b, inner.value(d.body), work)
        value = _guarded(b, inner, d, value, masked, identity)
        for a in [a for a in value.type.names if a not in acc_type.names]:
            t = TileType(
                work,
                tuple(x for x in value.type.axes if x[0] != a),
                None if value.type.lane == a else value.type.lane,
            )
            value = b.reduce(t, value, a, op)
        # A value that is constant along an axis of extent n counts n times in a sum.
        return b.map(op, acc_type, (acc, value))

    acc = _reduce_levels(b, spec.reduce, r, start, acc_type, lanes, accumulate)
    for a, _ in acc_axes:
        if a in kept:
            t = TileType(
                work,
                tuple(x for x in acc.type.axes if x[0] != a),
                None if acc.type.lane == a else acc.type.lane,
            )
            acc = b.reduce(t, acc, a, op)
    return converted(b, acc, result or d.dtype)


def working_type(monoid: str, dtype: DType) -> DType:
    """What a reduction accumulates in: 16-bit floats are summed in f32."""
    return F32 if dtype.bits == 16 and dtype.is_float and monoid not in ("max", "min") else dtype


def converted(b: Builder, value: Tile, dtype: DType) -> Tile:
    """The value in another dtype."""
    if value.type.dtype is dtype:
        return value
    return b.map("cast", TileType(dtype, value.type.axes, value.type.lane), (value,))


def least(block: int, length: int) -> int:
    """Positions in the code of a block of an axis."""
    return block if is_symbolic(length) else min(block, length)


def _block(spec: StageSpec, axis: str) -> int:
    return next(x.block for x in spec.reduce if x.axis == axis)


def _guarded(
    b: Builder,
    scope: TileScope,
    d: Definition,
    value: Tile,
    masked: dict[str, int],
    identity: float | int | bool,
) -> Tile:
    """Replace contributions that the guard or a masked tail leaves out by the identity."""
    conditions = []
    dtype = value.type.dtype
    if d.reduction is not None and d.reduction.guard is not None:
        conditions.append(scope.value(d.reduction.guard))
    for a, v in masked.items():
        t = scope.type(BOOL, {a})
        conditions.append(b.map("lt", t, (b.iota(scope.type(I64, {a})), b.number(v))))
    for a, n in scope.sizes.items():
        if n > 1 and a not in value.type.names and a in {x.name for x in d.reduction.axes}:  # type: ignore[union-attr]
            # The body does not depend on this reduce axis: spread it, so that each position
            # contributes.
            conditions.append(b.fill(scope.type(BOOL, {a}), True))
    for c in conditions:
        axes = set(c.type.names) | set(value.type.names)
        value = b.map(
            "select", scope.type(dtype, axes), (c, value, b.fill(TileType(dtype), identity))
        )
    return value


def _reduce_levels(
    b: Builder,
    levels: tuple[Level, ...],
    region: Region,
    acc: Tile,
    acc_type: TileType,
    lanes: int,
    body: Callable[[Region, Tile], Tile],
) -> Tile:
    """Nested reduction loops that carry `acc`."""
    if not levels:
        return body(region, acc)
    level, rest_levels = levels[0], levels[1:]
    start, length = region.starts[level.axis], region.lengths[level.axis]

    def descend(r: Region, acc: Tile) -> Tile:
        return _reduce_levels(b, rest_levels, r, acc, acc_type, lanes, body)

    if isinstance(length, Extent):
        is_block = any(x.axis == level.axis for x in rest_levels)
        return symbolic.reduce_level(b, level, region, acc, is_block, descend)
    full, rest = divmod(length, level.block)
    if full == 1:
        acc = descend(region.narrowed(level.axis, start, level.block), acc)
    elif full > 1:
        var = b.counter()
        b.enter(var)
        carried = b.carried(acc_type)
        at = start + E.index(var) * level.block
        out = descend(region.with_range(var, full).narrowed(level.axis, at, level.block), carried)
        nodes = b.leave()
        result = b.result(acc_type)
        b.effect(
            For(
                var,
                E.const(0),
                E.const(full),
                1,
                nodes,
                ((carried.name, acc.name),),
                (out.name,),
                (result.name,),
            )
        )
        acc = result
    if rest:
        at = start + full * level.block
        if level.tail == "mask":  # as wide as the accumulators, which keep this axis
            acc = descend(
                region.narrowed(level.axis, at, _masked_size(level, length, lanes), rest), acc
            )
        else:
            acc = descend(region.narrowed(level.axis, at, rest), acc)
    return acc


def _emit_arg_lanes(b: Builder, spec: StageSpec, r: Region, lanes: int, scope: TileScope) -> Tile:
    """The linear position of the first best element; NaN counts as best, as in NumPy.

    Every lane keeps its own best; at the end the first of the best lanes wins.
    """
    d = spec.anchor
    assert d.reduction is not None and spec.lane is not None
    lane, monoid, axes = spec.lane, d.reduction.monoid, d.reduction.axes
    width = _block(spec, lane)
    if not is_symbolic(r.lengths[lane]):
        width = min(-(-r.lengths[lane] // lanes) * lanes, width)
    total, steps = 1, {}
    for a in reversed(axes):
        steps[a.name] = total
        total *= int_extent(a.extent)
    is_small = not is_symbolic(total) and total + width * steps[lane] < 1 << 31
    number = I32 if is_small else I64
    others = scope.tiled
    sizes = {**scope.sizes, **{a.name: 1 for a in axes}, lane: width}
    names = {*others, lane}
    whole = replace(scope, sizes=sizes, lane=lane, memo={}, registers={})
    value_type, index_type = whole.type(d.body.dtype, names), whole.type(number, names)
    flag = whole.type(BOOL, names)
    identity = b.fill(TileType(d.body.dtype), identity_of(monoid, d.body.dtype))
    line = whole.type(I64, {lane})
    place = b.iota(line)
    if steps[lane] != 1:
        place = b.map("mul", line, (place, b.number(steps[lane])))
    place = converted(b, place, number)
    best = b.fill(value_type, identity_of(monoid, d.body.dtype))
    yes = b.fill(flag, True)
    # A lane that never finds a better one than the identity holds its own first position.
    where = b.map("select", index_type, (yes, place, place))

    def step(region: Region, state: tuple[Tile, Tile]) -> tuple[Tile, Tile]:
        inner = scope_of(b, spec, region, {**sizes, lane: region.lengths[lane]})
        for m in spec.before:
            define(inner, spec, m, inner.value(m.body))
        value = inner.value(d.body)
        valid = inner.valid.get(lane)
        if valid is not None:
            count = b.iota(inner.type(I64, {lane}))
            end = b.number(valid)
            inside = b.map("lt", inner.type(BOOL, {lane}), (count, end))
            value = b.map("select", value_type, (inside, value, identity))
        linear = E.const(0)
        for a in axes:
            linear = linear + region.starts[a.name] * steps[a.name]
        base = converted(b, b.position(TileType(I64), linear), number)
        here = b.map("add", whole.type(number, {lane}), (base, place))
        old, at = state
        pair = (value, old) if monoid == "argmax" else (old, value)
        worse = b.map("le", flag, pair)
        if d.body.dtype.is_float:
            # What is not worse is better, or NaN; after a NaN nothing is better.
            worse = b.map("or", flag, (worse, b.map("isnan", flag, (old,))))
        return (
            b.map("select", value_type, (worse, old, value)),
            b.map("select", index_type, (worse, at, here)),
        )

    def loops(region: Region, left: tuple[str, ...], state: tuple[Tile, Tile]) -> tuple[Tile, Tile]:
        if not left:
            return step(region, state)
        axis, block = left[0], width if left[0] == lane else 1
        start, length = region.starts[axis], region.lengths[axis]
        full, rest = divmod(length, block)

        def run(
            count: int, part: Callable[[Expr], Region], state: tuple[Tile, Tile]
        ) -> tuple[Tile, Tile]:
            var = b.counter()
            b.enter(var)
            inside = b.carried(value_type), b.carried(index_type)
            new = loops(part(E.index(var)).with_range(var, count), left[1:], inside)
            nodes = b.leave()
            out = b.result(value_type), b.result(index_type)
            carries = tuple((i.name, o.name) for i, o in zip(inside, state, strict=True))
            results = tuple(t.name for t in out)
            yields = tuple(t.name for t in new)
            b.effect(For(var, E.const(0), E.const(count), 1, nodes, carries, yields, results))
            return out

        if full:
            state = run(full, lambda i: region.narrowed(axis, start + i * block, block), state)
        if is_symbolic(rest):
            at = start + full * block
            state = run(
                smaller(rest, 1), lambda i: region.narrowed(axis, at + i, width, rest), state
            )
        elif rest:
            state = loops(region.narrowed(axis, start + full * block, width, rest), left[1:], state)
        return state

    best, where = loops(r, tuple(a.name for a in axes), (best, where))
    single = set(others)
    op = MONOIDS[monoid]
    top = b.reduce(scope.type(d.body.dtype, single), best, lane, op)
    hit = b.map("eq", flag, (best, top))
    if d.body.dtype.is_float:
        hit = b.map("or", flag, (hit, b.map("isnan", flag, (best,))))
    last = b.fill(TileType(number), (1 << (number.bits - 1)) - 1)
    first = b.map("select", index_type, (hit, where, last))
    return converted(b, b.reduce(scope.type(number, single), first, lane, "min"), I64)


def emit_arg(
    b: Builder,
    spec: StageSpec,
    r: Region,
    scope: TileScope,
    start: tuple[Tile, Tile] | None = None,
) -> tuple[Tile, Tile]:
    """The first best element of a region and its linear position, -1 where there is none; NaN
    counts as best, as in NumPy.

    One position at a time, after what `start` found before.
    """
    d = spec.anchor
    assert d.reduction is not None
    value_type = scope.type(d.body.dtype, set(scope.tiled))
    index_type = scope.type(I64, set(scope.tiled))
    best = b.fill(value_type, identity_of(d.reduction.monoid, d.body.dtype))
    where = b.fill(index_type, -1)
    if start is not None:
        best, where = start
    axes = d.reduction.axes
    opened: list[tuple[str, int, Tile, Tile]] = []
    region = r
    for a in axes:
        n = r.lengths[a.name]
        var = b.counter()
        b.enter(var)
        opened.append((var, n, best, where))
        best, where = b.carried(value_type), b.carried(index_type)
        opened[-1] = (var, n, opened[-1][2], opened[-1][3])
        at = r.starts[a.name] + E.index(var)
        region = region.with_range(var, n).narrowed(a.name, at, 1)
        opened.append(("", 0, best, where))
    inner = scope_of(b, spec, region, {**scope.sizes, **{a.name: 1 for a in axes}})
    for m in spec.before:
        define(inner, spec, m, inner.value(m.body))
    value = inner.value(d.body)
    linear = E.const(0)
    for a in axes:
        linear = linear * int_extent(a.extent) + region.starts[a.name]
    position = b.position(TileType(I64), linear)
    flag = scope.type(BOOL, set(scope.tiled))
    args = (best, value) if d.reduction.monoid == "argmax" else (value, best)
    better = b.map("lt", flag, args)
    none = b.map("lt", flag, (where, b.fill(TileType(I64), 0)))
    if d.body.dtype.is_float:
        nan = b.map("isnan", scope.type(BOOL, set(value.type.names)), (value,))
        known = b.map("isnan", flag, (best,))
        better = b.map(
            "or", flag, (better, b.map("and", flag, (nan, b.map("not", flag, (known,)))))
        )
    better = b.map("or", flag, (better, none))
    if d.reduction.guard is not None:
        better = b.map("and", flag, (better, inner.value(d.reduction.guard)))
    best = b.map("select", value_type, (better, value, best))
    where = b.map("select", index_type, (better, position, where))
    while opened:
        _, _, inside_best, inside_where = opened.pop()
        var, n, start_best, start_where = opened.pop()
        nodes = b.leave()
        results = (b.result(value_type), b.result(index_type))
        carries = ((inside_best.name, start_best.name), (inside_where.name, start_where.name))
        names = (results[0].name, results[1].name)
        b.effect(
            For(var, E.const(0), E.const(n), 1, nodes, carries, (best.name, where.name), names)
        )
        best, where = results
    return best, where


def _emit_scan(b: Builder, spec: StageSpec, r: Region) -> None:
    """An inclusive prefix along one axis, carried; the other axes are tiled as usual."""
    d = spec.anchor
    assert d.scan is not None
    monoid, axis = d.scan
    length = r.lengths[axis]
    sizes = {a.name: (1 if a.name == axis else r.lengths[a.name]) for a in d.axes}
    outer = scope_of(b, spec, r.narrowed(axis, E.const(0), 1), sizes)
    acc_type = outer.type(working_type(monoid, d.dtype), set(outer.tiled))
    start = b.fill(acc_type, identity_of(monoid, d.dtype))
    var = b.counter()
    b.enter(var)
    acc = b.carried(acc_type)
    region = r.with_range(var, length).narrowed(axis, r.starts[axis] + E.index(var), 1)
    scope = scope_of(b, spec, region, sizes)
    for m in spec.before:
        define(scope, spec, m, scope.value(m.body))
    value = converted(b, scope.value(d.body), acc_type.dtype)
    total = b.combine(MONOIDS[monoid], acc_type, acc, value)
    define(scope, spec, d, converted(b, total, d.dtype))
    for m in spec.after:
        define(scope, spec, m, scope.value(m.body))
    nodes = b.leave()
    result = b.result(acc_type)
    b.effect(
        For(
            var,
            E.const(0),
            E.const(length),
            1,
            nodes,
            ((acc.name, start.name),),
            (total.name,),
            (result.name,),
        )
    )
