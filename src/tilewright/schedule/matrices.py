"""Register tiles of matrix registers: when a stage's accumulators are some, and which tiles it has.

In: the roles of a stage, the Target, sizes of a register tile. Out: predicates, tile sizes,
estimated cycles. Invariant: a tile that fits the vector registers is never one of these, so the
sizes alone tell the forms apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, prod

from tilewright.ir.extent import is_symbolic
from tilewright.ir.pieces import PIECES, PRODUCTS
from tilewright.ir.words import WORD_BYTES
from tilewright.machine.target import Target
from tilewright.schedule.roles import StageRoles

__all__ = ["ROWS", "in_matrices", "matrix_cycles", "matrix_tiles", "takes_matrices"]

ROWS = 16  # of a matrix register, and words of a row
_REGISTERS = 8
_STEP_CYCLES = 20.0  # of sixteen words of sixteen rows and columns, with the loads of its factors
# The same with the six products of pieces (measured on a core that another thread shares, as most
# are): a product, a load. Registers to rename are few there, so a tile that uses many pays more.
_PRODUCT_CYCLES = 25.0
_LOAD_CYCLES = 7.0
_MANY = 5
_MANY_COST = 1.2
_SPLIT_CYCLES = 1.2  # to split a number into pieces, and to store them
_TILE_CYCLES = 60.0  # to bring the accumulators of one matrix register back as vectors


def in_matrices(
    roles: StageRoles, target: Target, lane: str | None, sizes: Mapping[str, int]
) -> bool:
    """Whether accumulators of these sizes (by axis) are matrix registers."""
    axis, size = roles.words
    if not axis or lane is None or lane in roles.reduce:
        return False
    if not target.multiplies_matrices(8 * WORD_BYTES // size):
        return False
    rows = prod(n for a, n in sizes.items() if a != lane and a in roles.out)
    return target.exceeds_vectors(rows, ceil(sizes.get(lane, 1) / target.lanes(32)))


def takes_matrices(roles: StageRoles, target: Target, lane: str | None) -> bool:
    """Whether the stage, with these lanes, may have its accumulators in matrix registers: operand B
    can be packed in panels of words, A holds words side by side in rows.
    """
    r = roles
    axis, word = r.words
    if not axis or lane not in r.out or r.a is None or r.b is None or lane is None:
        return False
    if not target.multiplies_matrices(8 * WORD_BYTES // word) or target.lanes(32) != ROWS:
        return False
    if not r.names[lane].startswith("n") or any(is_symbolic(n) for n in r.extents.values()):
        return False
    return r.extents[axis] >= 2 * word and r.b.packs


def matrix_tiles(
    r: StageRoles, target: Target, lane: str, rows: list[str]
) -> Iterator[dict[str, int]]:
    """Sizes of register tiles. rows: axes that only A uses, at most two, the last innermost."""
    axis, word = r.words
    if not rows or any(r.a is None or r.a.strides.get(a) is None for a in rows):
        return
    vectors = max(1, ceil(r.extents[lane] / ROWS))
    last, n = rows[-1], r.extents[rows[-1]]
    outer = [(rows[0], k) for k in (2, 3) if k <= r.extents[rows[0]]] if len(rows) > 1 else []
    for v in (2, 1, 3):
        if v > vectors:
            continue
        for height in dict.fromkeys(min(n, h) for h in (32, 16, 48)):
            for more in ({}, *({a: k} for a, k in outer)):
                high = ceil(height / ROWS) * prod(more.values())
                if high * v + high + v > _REGISTERS:
                    continue
                if target.exceeds_vectors(height * prod(more.values()), v):
                    yield {lane: v * ROWS, **more, last: height, axis: word}


def matrix_cycles(r: StageRoles, lane: str, sizes: Mapping[str, int]) -> float:
    """Cycles of a product of two elements in a matrix tile, its tails included."""
    axis, word = r.words
    depth = prod(r.extents[k] for k in r.reduce)
    words = ceil(r.extents[axis] / word)
    steps = ceil(words / ROWS) * depth / max(1, r.extents[axis])
    step, copied = _STEP_CYCLES, 0.0
    if r.split[0]:
        tall = (n for a, n in sizes.items() if a in r.out and a != lane)
        high = prod(ceil(n / ROWS) if n > 3 else n for n in tall)
        wide = ceil(sizes[lane] / ROWS)
        loads = PIECES * high + (PIECES + 1) * wide  # the path of products comes back to one
        step = len(PRODUCTS) * _PRODUCT_CYCLES + loads / (high * wide) * _LOAD_CYCLES
        if high * wide + high + wide > _MANY:
            step *= _MANY_COST
        for x in (r.a, r.b):
            assert x is not None
            copied += _SPLIT_CYCLES * prod(n for a, n in r.extents.items() if x.uses(a))
    registers, points = 1, 1
    for a, n in sizes.items():
        if a not in r.out:
            continue
        count, size = r.extents[a], min(n, r.extents[a])
        tiles = ceil(count / size)
        points *= count
        if a == lane or (size == n and n > 3):
            registers *= tiles * ceil(size / ROWS)
        else:
            registers *= tiles * size
    cycles = registers * (step * steps + _TILE_CYCLES)
    return (cycles + copied) / max(1.0, points * depth)
