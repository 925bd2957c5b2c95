"""Software prefetch of a tile's operands: what memory would deliver too late is asked for ahead.

In: a builder, the scope of a tile, what to ask for. Out: `Prefetch` nodes, which change no value.
Invariant: an address that is not linear in the tile's positions is not asked for; addresses past
the end of a buffer are allowed, the CPU ignores them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.nest import Prefetch
from tilewright.ir.program import Definition
from tilewright.lower.builder import Builder
from tilewright.lower.tiles import Place, TileScope, position_of

__all__ = ["fetch_ahead", "fetch_rows", "fetch_tile"]

_LINE = 64


def fetch_ahead(
    b: Builder, scope: TileScope, reads: Iterable[Expr], wanted: tuple[tuple[str, str, int], ...]
) -> None:
    """Ask for what the same tile reads some positions of an axis later.

    wanted: (tensor, axis, positions); of a tensor that is read in several places the first counts.
    """
    reads = tuple(reads)
    for tensor, axis, ahead in wanted:
        for read in reads:
            if read.attr[0] == tensor and _ask(
                b, scope, E.substitute(read, {E.index(axis): E.index(axis) + ahead})
            ):
                break


def fetch_tile(b: Builder, scope: TileScope, after: tuple[Definition, ...]) -> None:
    """Ask for the rows that the members after a reduction read and write at their tile.

    Only tensors that differ from row to row of the tile: what is shared by the rows is in cache.
    """
    for m in after:
        writes = [E.read(m.name, (a.index for a in m.axes), m.dtype)]
        for access in dict.fromkeys([*m.reads(), *(writes if m is after[-1] else [])]):
            place = scope.places.get(access.attr[0])
            if place is None or place.origin is not None:  # a block of it is in cache
                continue
            if access.attr[0] not in scope.registers:
                _ask(b, scope, access, every_row=True)


def fetch_rows(b: Builder, scope: TileScope, place: Place, subscripts: Iterable[Expr]) -> None:
    """Ask for the elements at these subscripts, which lie side by side along the tile."""
    local = [scope.flat(scope.localize(x)) for x in subscripts]
    known = [x for x in local if x is not None]
    split = scope.split(place.layout, known) if len(known) == len(local) else None
    if split is not None:
        count = scope.sizes[scope.lane] if scope.lane is not None else 1
        b.effect(Prefetch(place.buffer, split[1], max(_LINE, count * place.dtype.bytes)))


def _ask(b: Builder, scope: TileScope, read: Expr, every_row: bool = False) -> bool:
    """One prefetch a row of the tile; False where the address is not linear in it, or where
    `every_row` is wanted and rows share what they read.
    """
    place = scope.places[read.attr[0]]
    if any(s.reads() for s in read.args):
        return False
    local = place.local([scope.localize(s) for s in read.args[: len(place.layout.shape)]])
    split = scope.split(place.layout, local)
    if split is None:
        return False
    strides = {a: split[0].get(position_of(a), 0) for a in scope.tiled}
    if every_row and (scope.lane is None or not all(strides.values())):
        return False
    size = strides.pop(scope.lane or "", 0) and scope.sizes[scope.lane or ""] * place.dtype.bytes
    rows = {a: s for a, s in strides.items() if s}
    for position in product(*(range(scope.sizes[a]) for a in rows)):
        start = sum(i * s for i, s in zip(position, rows.values(), strict=True))
        b.effect(Prefetch(place.buffer, split[1] + start, max(_LINE, size)))
    return True
