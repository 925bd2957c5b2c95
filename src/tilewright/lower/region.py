"""What is decided about one stage, and the region of it that code is being emitted for.

In: nothing. Out: `Level`, `Fold`, `StageSpec` (decided by the Schedule), `Region`, and the scope of
one tile of a region. Invariant: a region says for every axis where it starts, how many positions
the code has and how many of them count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from tilewright.ir import expr as E
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr
from tilewright.ir.extent import Extent, ceil_div, is_symbolic
from tilewright.ir.kernel import int_extent
from tilewright.ir.layout import Layout
from tilewright.ir.nest import TileType
from tilewright.ir.program import Axis, Definition
from tilewright.lower.builder import Builder, Tile
from tilewright.lower.tiles import Place, TileScope

__all__ = [
    "Block",
    "Fold",
    "Level",
    "Region",
    "StageSpec",
    "converted",
    "define",
    "least",
    "masked_size",
    "scope_of",
    "trips",
]


@dataclass(frozen=True)
class Level:
    """One loop: `axis` in blocks of `block` positions. tail: peel, mask (lane axis) or overlap; or
    counted: one code for all blocks, whose valid positions are counted at run time; or sized: where
    the length is known at run time only, one tile of what is left; or block: what is inside counts
    the positions of the last block itself. A reduced axis may have a level of "sums": what is
    inside absorbs a block of it, and sums wait in scratch from block to block. Where `turn` is not
    0 the loop runs from its end.
    """

    axis: str
    block: int
    tail: str = "peel"
    turn: Expr | None = None


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
    # The scratch of sums of the blocks before, where a level in `levels` is of a reduced axis.
    sums: str = ""
    # A reduced axis of which the region has one block, and the extent of the blocks: the stage
    # makes partial results, the first axis of its anchor numbers them.
    part: tuple[str, int] | None = None
    # Two bf16 of both factors are one word, which matrix registers multiply; else they are widened.
    in_words: bool = False
    # Products whose sum takes the place of the anchor's body (lower/pieces.py).
    products: tuple[tuple[Expr, Expr], ...] = ()
    fetches: bool = False  # rows that follow a reduction are asked for before it

    @cached_property
    def extents(self) -> dict[str, int]:
        """Of all axes of the anchor."""
        return {a.name: int_extent(a.extent) for a in self.anchor.all_axes}


@dataclass(frozen=True)
class Block:
    """A block of rows of an operand that is copied into scratch where a level of loops begins.

    row, column: which subscripts of `read` are the rows and what is summed. shape: of the block;
    levels: of the copy, over axes q0, q1, ...; copies: dtypes of what `make` defines over axes from
    the value at each position, by the names that the stage reads.
    """

    read: Expr
    row: int
    column: int
    shape: list[int]
    layout: Layout
    levels: tuple[Level, ...]
    lane: str
    copies: dict[str, DType]
    make: Callable[[tuple[Axis, ...], Expr], tuple[Definition, ...]]


@dataclass(frozen=True)
class Region:
    """Per axis where it starts, how many positions it has in the code, and how many of them are
    valid; lengths of loops and what is valid may be known at run time only (ir/extent.py).
    `ragged`: axes of which the region is one of many blocks: the number of the block, how many
    blocks are whole, and the length of the one after them. `cuts`: axes whose loops are taken apart
    at some positions (lower/cuts.py).
    """

    starts: dict[str, Expr]
    lengths: dict[str, int]
    valid: dict[str, int]
    ranges: dict[str, tuple[int, int]]
    ragged: dict[str, tuple[Expr, int, int]] = field(default_factory=dict)
    cuts: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def narrowed(self, axis: str, start: Expr, length: int, valid: int | None = None) -> Region:
        v = dict(self.valid)
        v.pop(axis, None)
        if valid is not None and (is_symbolic(valid) or valid < length):
            v[axis] = valid
        ragged = dict(self.ragged)
        ragged.pop(axis, None)
        starts, lengths = {**self.starts, axis: start}, {**self.lengths, axis: length}
        return Region(starts, lengths, v, self.ranges, ragged, self.cuts)

    def parts(self, axis: str) -> list[Region]:
        """The regions between the cuts of an axis, which has its whole extent."""
        rest = {a: cuts for a, cuts in self.cuts.items() if a != axis}
        whole = replace(self, cuts=rest)
        edges = (0, *self.cuts.get(axis, ()), self.lengths[axis])
        return [whole.narrowed(axis, E.const(lo), hi - lo) for lo, hi in pairwise(edges)]

    def counted(self, axis: str, i: Expr, block: int, left: Expr) -> Region:
        """Block `i` of an axis of which `left` positions count: fewer in the last block."""
        valid = E.minimum(E.const(block), left - i * block)
        some = valid.attr if valid.op == "const" else Extent.of(block, valid)
        return self.narrowed(axis, self.starts[axis] + i * block, block, some)

    def block_of(
        self, axis: str, start: Expr, length: int, i: Expr, full: int, rest: int
    ) -> Region:
        """Block `i` of `full` blocks of `length` and one of `rest` positions, in one code."""
        one = self.narrowed(axis, start, length)
        return replace(one, ragged={**one.ragged, axis: (i, full, rest)})

    def with_range(self, var: str, hi: int) -> Region:
        last = hi - 1
        last = last if is_symbolic(last) else max(0, last)
        ranges = {**self.ranges, var: (0, last)}
        return Region(self.starts, self.lengths, self.valid, ranges, self.ragged, self.cuts)


def trips(level: Level, length: int) -> int:
    """How many blocks cover `length`, the tail included."""
    return ceil_div(length, level.block)


def masked_size(level: Level, rest: int, lanes: int) -> int:
    """The tile extent for a masked tail of `rest` positions: whole vectors."""
    return min(level.block, -(-rest // lanes) * lanes)


def least(block: int, length: int) -> int:
    """Positions in the code of a block of an axis."""
    return block if is_symbolic(length) else min(block, length)


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
        spec.extents,
    )


def define(scope: TileScope, spec: StageSpec, m: Definition, value: Tile) -> None:
    """Make a member's tile known, and store it where others need it."""
    axes = tuple(a.name for a in m.axes)
    scope.define(m.name, value, axes)
    if m.name in spec.stored:
        scope.store(spec.places[m.name], [a.index for a in m.axes], value, spec.nontemporal)


def converted(b: Builder, value: Tile, dtype: DType) -> Tile:
    """The value in another dtype."""
    if value.type.dtype is dtype:
        return value
    return b.map("cast", TileType(dtype, value.type.axes, value.type.lane), (value,))
