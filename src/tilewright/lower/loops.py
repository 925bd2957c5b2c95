"""Loops over the levels of a stage: cache and register blocks, reduction loops, tails.

In: `Level`s, outermost first, and a region. Out: nodes in a Builder, around what the caller emits
for the region of each block. Invariants: every position of the region is visited, none outside it;
the order in which a reduction is folded depends on the levels alone; a reduction loop ends early
only where everything behind is left out by a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.extent import Extent
from tilewright.ir.nest import If
from tilewright.ir.ranges import simplify
from tilewright.lower import symbolic
from tilewright.lower.builder import Builder, Tile
from tilewright.lower.region import Level, Region, masked_size

__all__ = ["emit_levels", "emit_reduce_levels"]


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
    if level.axis in region.cuts:
        for part in region.parts(level.axis):
            emit_levels(b, levels, part, lanes, given, inner, staging, opened)
        return
    start, length = region.starts[level.axis], region.lengths[level.axis]

    def descend(r: Region) -> None:
        emit_levels(b, rest_levels, r, lanes, given[1:], inner, staging, opened + 1)

    if level.tail == "sums":
        _blocks_of_sums(b, level, region, descend)
        return
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
            descend(region.narrowed(level.axis, at, masked_size(level, rest, lanes), rest))
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
    if level.tail == "counted" and rest:
        i = counter if counter is not None else E.index(b.counter())
        bounded = region.with_range(i.attr, full + 1) if counter is None else region
        block = bounded.counted(level.axis, i, level.block, E.const(length))
        if counter is not None:
            descend(block)
        else:
            _loop(b, i.attr, full + 1, lambda: descend(block))
        return
    if full == 0:
        if level.tail == "mask" and length != 1:
            descend(region.narrowed(level.axis, start, masked_size(level, length, lanes), length))
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
        _blocks(b, level, region, full, descend)
    if rest:
        tail()


def _blocks(
    b: Builder, level: Level, region: Region, count: int, descend: Callable[[Region], None]
) -> None:
    """A loop over whole blocks; where the level says so, from its end."""

    def loop(from_end: bool) -> None:
        var = b.counter()
        i: Expr = E.index(var)
        at = region.starts[level.axis] + (count - 1 - i if from_end else i) * level.block
        one = region.with_range(var, count).narrowed(level.axis, at, level.block)
        _loop(b, var, count, lambda: descend(one))

    if level.turn is None:
        loop(False)
        return
    ways = []
    for from_end in (False, True):
        b.enter()
        loop(from_end)
        ways.append(b.leave())
    b.effect(If(E.compare("eq", level.turn, E.const(0)), ways[0], ways[1]))


def _blocks_of_sums(
    b: Builder, level: Level, region: Region, descend: Callable[[Region], None]
) -> None:
    """Blocks of a reduced axis in order: the first begins the sums, the last one ends them, so
    these two have code of their own.
    """
    start, length, size = region.starts[level.axis], region.lengths[level.axis], level.block
    last = (length - 1) // size
    descend(region.narrowed(level.axis, start, min(size, length)))
    if last == 2:
        descend(region.narrowed(level.axis, start + size, size))
    elif last > 2:
        var = b.counter()
        r = region.with_range(var, last - 1)
        at = start + E.index(var) * size + size
        _loop(b, var, last - 1, lambda: descend(r.narrowed(level.axis, at, size)))
    if last:
        at = start + last * size
        descend(region.narrowed(level.axis, at, length - last * size))


def _counts_tiles(level: Level, inner: tuple[Level, ...]) -> bool:
    """Whether the next level of the axis takes whole tiles of the block, and the rest apart."""
    tile = next((x for x in inner if x.axis == level.axis), None)
    if tile is None or tile.tail not in ("peel", "counted"):
        return False
    return level.block % tile.block == 0


def _ragged_tiles(
    b: Builder, level: Level, region: Region, descend: Callable[[Region], None]
) -> None:
    """The tiles of a block that may be the shorter last one."""
    i, full, rest = region.ragged[level.axis]
    start, tiles = region.starts[level.axis], region.lengths[level.axis] // level.block
    whole, short = divmod(rest, level.block)
    if level.tail == "counted" and short:
        left = E.const(full * tiles * level.block + rest) - i * (tiles * level.block)
        some = E.minimum(E.const(tiles), E.const(full * tiles + whole + 1) - i * tiles)
        v = E.index(b.counter())
        r = region.with_range(v.attr, tiles)
        block = r.counted(level.axis, v, level.block, left)
        _loop(b, v.attr, some, lambda: descend(block))
        return
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
    def plain(carried: list[Tile]) -> list[Tile]:
        body()
        return carried

    b.loop(var, count, [], plain)


def emit_reduce_levels(
    b: Builder,
    levels: tuple[Level, ...],
    region: Region,
    acc: Tile,
    lanes: int,
    body: Callable[[Region, Tile], Tile],
    ends: Mapping[str, Expr] | None = None,
) -> Tile:
    """Nested reduction loops that carry `acc`. ends: of axes that are walked one by one, the
    position at which a loop ends early, over what is known outside of all of them.
    """
    if not levels:
        return body(region, acc)
    level, rest_levels = levels[0], levels[1:]
    start, length = region.starts[level.axis], region.lengths[level.axis]

    def descend(r: Region, acc: Tile) -> Tile:
        return emit_reduce_levels(b, rest_levels, r, acc, lanes, body, ends)

    if isinstance(length, Extent):
        is_block = any(x.axis == level.axis for x in rest_levels)
        return symbolic.reduce_level(b, level, region, acc, is_block, descend)
    full, rest = divmod(length, level.block)
    end = ends.get(level.axis) if ends else None
    if full == 1 and end is None:
        acc = descend(region.narrowed(level.axis, start, level.block), acc)
    elif full:
        var = b.counter()
        at = start + E.index(var) * level.block
        block = region.with_range(var, full).narrowed(level.axis, at, level.block)
        count = E.const(full)
        if end is not None:
            last = E.maximum(E.minimum(end - start, count), E.const(0))
            count = simplify(last, region.ranges)
        (acc,) = b.loop(var, count, [acc], lambda carried: [descend(block, carried[0])])
    if rest:
        at = start + full * level.block
        if level.tail == "mask":  # as wide as the accumulators, which keep this axis
            acc = descend(
                region.narrowed(level.axis, at, masked_size(level, length, lanes), rest), acc
            )
        else:
            acc = descend(region.narrowed(level.axis, at, rest), acc)
    return acc
