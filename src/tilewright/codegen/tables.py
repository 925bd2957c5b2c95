"""Gathers whose offsets are the same wherever the tile is: loads of what lies side by side, and a
shuffle.

In: the nodes of a phase. Out: offsets that are constant tiles; vectors of what a Gather reads.
Invariant: only elements between the lowest and the highest offset of a vector are touched.

Enlarging an image reads each element for several neighbours, i // 2 for i = 0, 1, 2, ...: a vector
of results holds half a vector of elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tilewright.codegen.operations import Operations
from tilewright.codegen.spans import masked_load
from tilewright.codegen.survey import Survey
from tilewright.codegen.tiles import Tile
from tilewright.codegen.writer import Writer
from tilewright.ir.dtypes import DType
from tilewright.ir.nest import Fill, Iota, Map, Position, TileType
from tilewright.ir.scalar import evaluate

__all__ = ["Array", "constant_tiles", "gather_table", "in_rows"]

Array = np.ndarray[Any, np.dtype[Any]]
MOST_VECTORS = 2  # that one shuffle takes


def constant_tiles(survey: Survey) -> dict[str, Array]:
    """The integer and bool tiles whose values are known, over the axes of their types."""
    known: dict[str, Array] = {}
    names: dict[str, tuple[str, ...]] = {}
    for n in survey.integers if survey.gathers else ():
        match n:
            case Fill():
                value = np.full([k for _, k in n.type.axes], n.value, n.type.dtype.np)
            case Position() if n.value.op == "const":
                value = np.asarray(n.value.attr, np.int64)
            case Iota():
                value = np.arange(n.type.axes[0][1], dtype=np.int64)
            case Map() if all(a in known for a in n.args):
                args = [_over(known[a], names[a], n.type) for a in n.args]
                shape = [k for _, k in n.type.axes]
                value = np.broadcast_to(evaluate(n.op, args, n.type.dtype), shape)
            case _:
                continue
        known[n.result], names[n.result] = value, n.type.names
    return known


def _over(value: Array, names: tuple[str, ...], t: TileType) -> Array:
    """A tile over some axes of `t`, in their order, so that it broadcasts."""
    return value[tuple([slice(None) if a in names else None for a in t.names])]


def in_rows(value: Array, offset: TileType, t: TileType) -> Array:
    """An operand of a Gather of type `t`, as rows (row axes of t in order) of its lanes."""
    shape = [k for _, k in t.axes]
    wide = np.broadcast_to(_over(value, offset.names, t), shape)
    lane = t.names.index(t.lane) if t.lane is not None else len(shape)
    last = np.moveaxis(wide, lane, -1) if t.lane is not None else wide[..., None]
    return last.reshape(-1, last.shape[-1])


def gather_table(
    writer: Writer,
    ops: Operations,
    base: str,
    tile: Tile,
    table: Array,
    keep: Array | None,
    orelse: float | int | bool,
) -> list[list[str]] | None:
    """The vectors of a tile, by row; None where one spans too much. keep: where something is read,
    `orelse` stands elsewhere.
    """
    width, plan = tile.width, []
    for number, row in enumerate(table):
        for c in range(tile.chunks):
            lanes = range(c * width, min((c + 1) * width, tile.extent))
            read = [i for i in lanes if keep is None or keep[number, i]]
            offsets = [int(row[i]) for i in read]
            lowest, highest = min(offsets, default=0), max(offsets, default=0)
            if highest - lowest >= MOST_VECTORS * width:
                return None
            pick = dict(zip([i - c * width for i in read], offsets, strict=True))
            plan.append((lowest, highest - lowest + 1, pick, len(read) < len(lanes)))
    loaded: dict[tuple[int, int], str] = {}
    out: list[list[str]] = []
    dtype, v = tile.type.dtype, ops.memory_type(tile.type.dtype, width)
    for k, (lowest, count, pick, cut) in enumerate(plan):
        if k % tile.chunks == 0:
            out.append([])
        if not pick:
            out[-1].append(ops.literal(orelse, dtype, width))
            continue
        vectors = []
        for first in range(lowest, lowest + count, width):
            used = min(width, lowest + count - first)
            if (first, used) not in loaded:
                loaded[first, used] = _load(writer, ops, base, first, used, dtype, width)
            vectors.append(loaded[first, used])
        vectors += ["poison"] * (MOST_VECTORS - len(vectors))
        chosen = ops.vector("i32", [pick.get(i, lowest) - lowest for i in range(width)])
        a, b = vectors
        raw = writer.op(f"shufflevector {v} {a}, {v} {b}, <{width} x i32> {chosen}")
        if cut:
            some = ops.vector("i1", [int(i in pick) for i in range(width)])
            other = ops.memory_literal(orelse, dtype, width)
            raw = writer.op(f"select <{width} x i1> {some}, {v} {raw}, {v} {other}")
        out[-1].append(ops.from_memory(raw, dtype, width))
    return out


def _load(
    writer: Writer, ops: Operations, base: str, first: int, used: int, dtype: DType, width: int
) -> str:
    e, v = ops.memory_type(dtype, 0), ops.memory_type(dtype, width)
    pointer = writer.op(f"getelementptr {e}, ptr {base}, i64 {first}")
    if used == width:
        return writer.op(f"load {v}, ptr {pointer}, align {dtype.bytes}")
    mask = ops.vector("i1", [int(i < used) for i in range(width)])
    return masked_load(writer, ops, pointer, mask, dtype, width, 0)
