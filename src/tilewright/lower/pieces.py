"""Factors of f32 in pieces of bf16 (ir/pieces.py): copies of both, and the products of a step.

In: a stage whose accumulators are matrix registers. Out: copies before it or around its tiles, and
the stage as a sum of products of pieces. Invariants: the pieces lie as matrix registers take them
(rows of operand A side by side along the axis of words, operand B in panels of words), with zeros
behind the end of that axis, so that every step is whole.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BF16, F32
from tilewright.ir.expr import Expr
from tilewright.ir.extent import ceil_div
from tilewright.ir.layout import Layout, Term, ordered, panels
from tilewright.ir.nest import Buffer
from tilewright.ir.pieces import PIECES, PRODUCTS, definitions_of_pieces
from tilewright.ir.program import Axis
from tilewright.ir.words import single_factors
from tilewright.lower.region import Block, Level, StageSpec
from tilewright.lower.tiles import Place
from tilewright.schedule.matrices import ROWS
from tilewright.schedule.roles import Access, StageRoles

if TYPE_CHECKING:
    from tilewright.lower.packing import Packing

__all__ = ["can_split", "split_factors"]

_LINE = 32  # bf16 of a cache line


def can_split(lowering: Packing, roles: StageRoles) -> bool:
    """Whether both factors are tensors outside the kernel."""
    known = lowering.kernel.layout_of
    return all(x is not None and x.tensor in known for x in (roles.a, roles.b))


def split_factors(lowering: Packing, k: int, roles: StageRoles, spec: StageSpec) -> StageSpec:
    """The stage over pieces of its factors, which phases before it make."""
    d, lane = spec.anchor, spec.lane
    factors = single_factors(d)
    a, b = roles.a, roles.b
    assert factors is not None and d.reduction is not None and lane is not None
    assert a is not None and b is not None and a.read is not None and b.read is not None
    axis, word = roles.split
    depth = _depth(roles.extents[axis], word)
    width = max(x.block for x in spec.levels if x.axis == lane)

    layout = lowering.kernel.layout_of[b.tensor]
    shape, at = _shape(layout, b.read, {lane: width, axis: depth})
    names = [x.attr if x.op == "index" else None for x in b.read.args]
    inner = list(dict.fromkeys(names.index(x.axis) for x in spec.reduce if x.axis in names))
    column = names.index(lane)
    # Whole steps for all rows come one after the other; where the sum is in blocks, all panels of a
    # block, which pass again and again.
    blocks = (x.block for x in spec.levels if x.tail == "sums" and inner == [at])
    wide = panels(shape, column, width, inner, (at, word), next(blocks, 0))
    right = [f"b{k}.{i}" for i in range(PIECES)]
    _copies(lowering, b, wide, shape, column, width, (at, word), right)

    left = [f"a{k}.{i}" for i in range(PIECES)]
    block = lowering.block_of_rows(roles, spec)
    if block is None or not block[2]:  # no blocks: the whole operand, in parallel
        layout = lowering.kernel.layout_of[a.tensor]
        tiles = (x for x in spec.levels if x.block > 1 and x.axis != axis)
        heights = {x.axis: x.block for x in tiles}
        shape, at = _shape(layout, a.read, {**heights, axis: depth})
        _copies(lowering, a, _rows(shape, at, depth), shape, at, _LINE, (-1, 1), left)
    else:
        row, column, position = block
        deep = ceil_div(lowering.depth(spec, axis, depth, position), _LINE) * _LINE
        some = lowering.block_shape(roles, spec, row, column, deep)
        height = next(x.block for x in reversed(spec.levels) if x.axis == a.read.args[row].attr)
        if depth % _LINE == 0:
            rows = _tiles(some, row, height, column)
            at = next(i for i, x in enumerate(spec.reduce) if x.axis == axis)
            steps = (*spec.reduce[:at], Level(axis, _LINE), *spec.reduce[at:])
            spec = replace(spec, reduce=steps)
        else:
            rows = _rows(some, column, deep)
        copied = Block(
            a.read, row, column, some, rows,
            (Level(f"q{row}", 1), Level(f"q{column}", _LINE)), f"q{column}",
            dict.fromkeys(left, BF16), partial(definitions_of_pieces, left),
        )  # fmt: skip
        spec = lowering.staged(k, spec, copied, position)

    over = tuple(
        replace(x, extent=E.const(depth)) if x.name == axis else x for x in d.reduction.axes
    )
    products = tuple(
        (E.read(left[i], a.read.args, BF16), E.read(right[j], b.read.args, BF16))
        for i, j in PRODUCTS
    )
    anchor = replace(d, reduction=replace(d.reduction, axes=over))
    last = {x.axis: i for i, x in enumerate(spec.levels)}
    reads = (a.read, b.read)
    whole = {x for x in last if x != axis and _is_whole(x, *reads)}
    levels = tuple(
        replace(x, tail="counted") if last[x.axis] == i and x.block > 1 and x.axis in whole else x
        for i, x in enumerate(spec.levels)
    )
    spec.places.update({n: x for n, x in lowering.places.items() if n in (*left, *right)})
    ahead = tuple(x for x in spec.prefetch if x[0] not in (a.tensor, b.tensor))  # read by copies
    return replace(spec, anchor=anchor, products=products, levels=levels, prefetch=ahead)


def _is_whole(axis: str, *reads: Expr) -> bool:
    """Whether copies hold whole tiles of an axis: it is a subscript by itself, or in none."""
    return all(s is E.index(axis) for r in reads for s in r.args if axis in s.names("index"))


def _rows(shape: list[int], at: int, depth: int) -> Layout:
    """Axis `at` side by side. From row to row it is an odd number of cache lines, so that sixteen
    rows fall into different sets of a cache.
    """
    lines = ceil_div(depth, _LINE)
    long = [(lines | 1) * _LINE if i == at else n for i, n in enumerate(shape)]
    return ordered(long, [*(i for i in range(len(long)) if i != at), at])


def _tiles(shape: list[int], row: int, height: int, column: int) -> Layout:
    """Tiles of `height` rows of a cache line each, one behind the other, in the order of use: that
    is what the CPU fetches ahead by itself.
    """
    deep = shape[column]
    terms = {
        row: (Term(row, 1, height, _LINE), Term(row, height, 0, height * deep)),
        column: (Term(column, 1, _LINE, 1), Term(column, _LINE, 0, height * _LINE)),
    }
    return Layout(tuple(shape), (*terms[min(terms)], *terms[max(terms)]), shape[row] * deep)


def _depth(extent: int, word: int) -> int:
    """The extent of the axis of words, rounded up so that all steps have as many words; several
    steps have whole ones, whose rows are whole cache lines.
    """
    words = ceil_div(extent, word)
    return word * (words if words <= ROWS else ceil_div(words, ROWS) * ROWS)


def _shape(layout: Layout, read: Expr, blocks: dict[str, int]) -> tuple[list[int], int]:
    """The shape of the copies in whole blocks of axes, and which of its axes has the last one."""
    shape, at = list(layout.shape), 0
    for axis, block in blocks.items():
        for i, s in enumerate(read.args):
            if s is E.index(axis):
                shape[i], at = ceil_div(shape[i], block) * block, i
    return shape, at


def _copies(
    lowering: Packing, operand: Access, layout: Layout, shape: list[int], lane: int,
    width: int, group: tuple[int, int], names: list[str],
) -> None:  # fmt: skip
    """A phase that makes the pieces of an operand."""
    name = operand.tensor
    source = lowering.places[name]
    axes = tuple(Axis(f"p{i}", E.const(n)) for i, n in enumerate(shape))
    beyond = tuple(shape) != source.layout.shape
    value = E.read(name, [x.index for x in axes], F32, E.const(0.0, F32) if beyond else None)
    places = {name: source}
    for n in names:
        buffer = Buffer(f"w{len(lowering.workspace)}", BF16, E.const(layout.size), "arena")
        lowering.workspace.append(buffer)
        places[n] = lowering.places[n] = Place(buffer.name, layout, BF16)
    copies = definitions_of_pieces(names, axes, value)
    # As many rows at a time as the lines of a page are read one after the other.
    steps = shape[group[0]] // group[1]
    rows = group[1] * next(n for n in range(ROWS, 0, -1) if steps % n == 0) if steps else 0
    rows = rows if group[0] >= 0 else 0
    lowering.copy_phase(copies, places, name, lane, width, group, rows)
