"""Loops over axes whose length is known at run time.

In: a level of a stage and a region in which its axis has a symbolic length (ir/extent.py). Out:
nodes in a Builder. Invariants: tiles have static shapes; every position of the axis is visited
(twice, where a tile is moved back), none outside it; one code serves every length, below a tile's
extent included.

A lane axis ends in whole vectors and one masked tile. Another axis ends in a tile that is moved
back where the schedule says so and the axis is long enough, else in tiles of halved size, of which
the bits of the remainder choose, or in one tile of its size; a short axis has equal tiles, of a
size chosen at run time.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.extent import Extent, ceil_div, is_symbolic, smaller
from tilewright.ir.nest import For, If
from tilewright.ir.ranges import nonnegative
from tilewright.lower.builder import Builder, Tile
from tilewright.lower.region import Level, Region

__all__ = ["emit_level", "emit_rest", "reduce_level"]

_MOST_BODIES = 16  # sizes of tiles that a short axis has code for


def _loop(b: Builder, region: Region, count: int, body: Callable[[Region, Expr], None]) -> None:
    var = b.counter()
    b.enter(var)
    body(region.with_range(var, count), E.index(var))
    nodes = b.leave()
    b.effect(For(var, E.const(0), E.const(count), 1, nodes))


def _when(b: Builder, condition: Expr, body: Callable[[], None]) -> None:
    if condition.op == "const":
        if condition.attr:
            body()
        return
    b.enter()
    body()
    b.effect(If(condition, b.leave()))


def _block_length(block: int, length: Extent, before: Expr) -> int:
    """Positions of the block that begins after `before` positions of an axis."""
    return Extent.of(block, E.minimum(E.const(block), length.expr - before))


def emit_level(
    b: Builder,
    level: Level,
    region: Region,
    lanes: int,
    counter: Expr | None,
    is_block: bool,
    descend: Callable[[Region], None],
) -> None:
    """One level over an axis of symbolic length. is_block: the axis has levels further in.

    `counter` is the number of the trip where an enclosing parallel loop counts them.
    """
    axis, n = level.axis, level.block
    start, length = region.starts[axis], region.lengths[axis]
    assert isinstance(length, Extent)
    count = ceil_div(length, n)

    def trip(number: int, body: Callable[[Region, Expr], None]) -> None:
        if counter is None:
            _loop(b, region, number, body)
        else:
            body(region, counter)

    if level.tail == "block" and n > 1:
        _blocks(b, level, region, counter, descend)
        return
    if is_block and n > 1:
        trip(
            count,
            lambda r, i: descend(r.narrowed(axis, start + i * n, _block_length(n, length, i * n))),
        )
        return
    if n == 1:
        trip(count, lambda r, i: descend(r.narrowed(axis, start + i, 1)))
        return
    whole, rest = divmod(length, n)
    if nonnegative(E.const(n - 1) - length.expr, region.ranges):
        whole, rest = 0, length  # less than a tile: what was left by an outer level

    def tail() -> None:
        at = start + whole * n
        if level.tail == "mask":
            _vectors(b, level, region, lanes, at, rest, descend)
        elif level.tail == "sized" and n <= _MOST_BODIES:
            _sized(b, level, region, at, rest, descend)
        else:
            _halves(b, level, region, at, rest, descend)

    if level.tail == "overlap" and rest and is_symbolic(whole):
        if n <= _MOST_BODIES and nonnegative(E.const(3 * n - 1) - length.expr, region.ranges):
            _balanced(b, level, region, count, trip, descend)
            return
        last = length.expr - n

        def moved() -> None:
            trip(
                count,
                lambda r, i: descend(r.narrowed(axis, start + E.minimum(i * n, last), n)),
            )

        if nonnegative(last, region.ranges):
            moved()
            return
        b.enter()
        moved()
        then = b.leave()
        b.enter()
        _halves(b, level, region, start, length, descend)
        b.effect(If(E.compare("le", E.const(n), length.expr), then, b.leave()))
        return
    if counter is None or not is_symbolic(whole):
        if is_symbolic(whole):
            trip(whole, lambda r, i: descend(r.narrowed(axis, start + i * n, n)))
        if rest:
            tail()
        return
    if not rest:
        descend(region.narrowed(axis, start + counter * n, n))
        return
    b.enter()
    descend(region.narrowed(axis, start + counter * n, n))
    then = b.leave()
    b.enter()
    tail()
    b.effect(If(E.compare("lt", counter, E.const(whole)), then, b.leave()))


def _balanced(
    b: Builder,
    level: Level,
    region: Region,
    count: int,
    trip: Callable[[int, Callable[[Region, Expr], None]], None],
    descend: Callable[[Region], None],
) -> None:
    """A short axis: as few tiles as can be, of one size, the last one moved back where they do not
    meet. Each size has code of its own, as the work of a tile does not shrink with what is left.
    """
    axis = level.axis
    start, length = region.starts[axis], region.lengths[axis]
    size = E.const(ceil_div(length, count))
    for n in range(1, level.block + 1):
        last = E.const(length) - n

        def tiles(n: int = n, last: Expr = last) -> None:
            trip(
                count,
                lambda r, i: descend(r.narrowed(axis, start + E.minimum(i * n, last), n)),
            )

        _when(b, E.compare("eq", size, E.const(n)), tiles)


def _blocks(
    b: Builder,
    level: Level,
    region: Region,
    counter: Expr | None,
    descend: Callable[[Region], None],
) -> None:
    """Blocks of a fixed length, then a shorter one with code of its own."""
    axis, n = level.axis, level.block
    start, length = region.starts[axis], region.lengths[axis]
    whole, rest = divmod(length, n)
    if counter is None:
        _loop(b, region, whole, lambda r, i: descend(r.narrowed(axis, start + i * n, n)))
        if is_symbolic(rest):
            emit_rest(b, region, axis, start + whole * n, rest, descend)
        return
    b.enter()
    descend(region.narrowed(axis, start + counter * n, n))
    then = b.leave()
    b.enter()
    if is_symbolic(rest):
        descend(region.narrowed(axis, start + whole * n, rest))
    b.effect(If(E.compare("lt", counter, E.const(whole)), then, b.leave()))


def _vectors(
    b: Builder,
    level: Level,
    region: Region,
    lanes: int,
    at: Expr,
    rest: int,
    descend: Callable[[Region], None],
) -> None:
    """What is left of a lane axis: vectors, and one under a mask."""
    axis, wide = level.axis, level.block
    if wide > 2 * lanes and wide % lanes == 0:  # two vectors are as soon done as told apart
        wide = lanes
        start, vectors = at, rest // wide
        _loop(b, region, vectors, lambda r, i: descend(r.narrowed(axis, start + i * wide, wide)))
        at, rest = at + vectors * wide, rest % wide
    if not rest:
        return
    least = 0
    if wide == 2 * lanes:  # a single vector, where that is enough
        short = region.narrowed(axis, at, lanes, smaller(lanes, rest))
        left = E.const(rest)
        few = E.compare("lt", E.const(0), left), E.compare("le", left, E.const(lanes))
        _when(b, E.logical("and", *few), lambda: descend(short))
        least = lanes
    body = region.narrowed(axis, at, wide, rest)
    _when(b, E.compare("lt", E.const(least), E.const(rest)), lambda: descend(body))


def _halves(
    b: Builder,
    level: Level,
    region: Region,
    at: Expr,
    rest: int,
    descend: Callable[[Region], None],
) -> None:
    """What is left of an axis, less than a tile: tiles of halved sizes."""
    size = 1 << ((level.block - 1).bit_length() - 1)
    while size:
        start = at + rest // (2 * size) * (2 * size)
        odd = E.compare("ne", E.const(rest // size % 2), E.const(0))
        body = region.narrowed(level.axis, start, size)
        _when(b, odd, lambda body=body: descend(body))  # type: ignore[misc]
        size //= 2


def _sized(
    b: Builder,
    level: Level,
    region: Region,
    at: Expr,
    rest: int,
    descend: Callable[[Region], None],
) -> None:
    """The same as one tile, whose size has code of its own: operand B passes once more, not once
    for each bit.
    """
    for n in range(1, level.block):
        body = region.narrowed(level.axis, at, n)
        there = E.compare("eq", E.const(rest), E.const(n))
        _when(b, there, lambda body=body: descend(body))  # type: ignore[misc]


def emit_rest(
    b: Builder, region: Region, axis: str, at: Expr, rest: int, body: Callable[[Region], None]
) -> None:
    """The last, shorter block of an axis, if it has one."""
    there = E.compare("lt", E.const(0), E.const(rest))
    _when(b, there, lambda: body(region.narrowed(axis, at, rest)))


def reduce_level(
    b: Builder,
    level: Level,
    region: Region,
    acc: Tile,
    is_block: bool,
    descend: Callable[[Region, Tile], Tile],
) -> Tile:
    """One level of a reduction over an axis of symbolic length, which carries `acc`."""
    axis, n = level.axis, level.block
    start, length = region.starts[axis], region.lengths[axis]
    assert isinstance(length, Extent)

    def loop(count: int, part: Callable[[Expr], Region], acc: Tile) -> Tile:
        var = b.counter()
        block = part(E.index(var)).with_range(var, count)
        return b.loop(var, count, [acc], lambda carried: [descend(block, carried[0])])[0]

    if is_block and n > 1:

        def block(i: Expr) -> Region:
            return region.narrowed(axis, start + i * n, _block_length(n, length, i * n))

        return loop(ceil_div(length, n), block, acc)
    whole, rest = divmod(length, n)
    acc = loop(whole, lambda i: region.narrowed(axis, start + i * n, n), acc)
    at = start + whole * n
    if level.tail == "mask":  # as wide as the accumulators, which keep this axis
        if rest:
            once = smaller(rest, 1)
            acc = loop(once, lambda i: region.narrowed(axis, at + i * n, n, rest), acc)
    elif is_symbolic(rest):
        acc = loop(rest, lambda i: region.narrowed(axis, at + i, 1), acc)
    return acc
