"""Operations and unique bytes of a Program: the two numbers of every roofline.

In: a Program whose sizes are bound. Out: `Work`. Invariant: both count the Program, never a
schedule: recomputation, packing and intermediate buffers cost nothing here.

An operation is one arithmetic node of a definition's expression at one point, and one for combining
it into a reduction (so a multiply-add is 2); exp and the like count 1. A guarded reduction counts
the points where the guard holds. Bytes are every input, constant and output once; of a table that
is looked up only as many elements as there are lookups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir.expr import Expr, int_value
from tilewright.ir.program import (
    Axis,
    Block,
    Definition,
    Extern,
    If,
    Program,
    Recurrence,
    Scatter,
    Size,
    Statement,
    Tensor,
    While,
    blocks_of,
    statement_reads,
)
from tilewright.ir.scalar import evaluate

__all__ = ["Work", "work_of"]

_MOST = 1 << 20  # points of a guard that are all looked at; of more, so many samples
_FREE = {"const", "index", "dim", "read", "cast"}


@dataclass(frozen=True)
class Work:
    """Operations, and bytes read and written, of one run of a Program."""

    flops: float
    read_bytes: int
    written_bytes: int

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes


def work_of(program: Program) -> Work:
    """Count a Program. Errors: P001 where a size is symbolic."""
    tensors = program.tensors
    touched = _touched(program)
    given = [*program.inputs, *(tensor for tensor, _ in program.constants)]
    read = sum(min(_elements(t), touched[t.name]) * t.dtype.bytes for t in given)
    results = [tensors[name] for name in dict.fromkeys(program.results)]
    written = sum(_elements(tensor) * tensor.dtype.bytes for tensor in results)
    return Work(sum(_operations(statement) for statement in program.body), read, written)


def _size(extent: Expr) -> int:
    value = int_value(extent)
    if value is None:
        raise UserError("P001", f"the size {extent} is symbolic", hint="bind the program's dims")
    return value


def _elements(tensor: Tensor) -> int:
    return math.prod(_size(extent) for extent in tensor.shape)


def _touched(program: Program) -> dict[str, int]:
    """How many elements of every tensor can be read at most: a lookup in a table reads few."""
    out = dict.fromkeys(program.tensors, 0)

    def note(body: Expr, axes: Iterable[Axis]) -> None:
        extents = {axis.name: _size(axis.extent) for axis in axes}
        for read in body.reads():
            used = {name for s in read.args for name in s.names("index")}
            out[read.attr[0]] += math.prod(extents[name] for name in used)

    for statement in program.body:
        match statement:
            case Extern():
                for name in statement.args:
                    out[name] += _elements(program.tensors[name])
            case Recurrence():
                for d in statement.definitions:
                    for body in d.expressions():
                        note(body, (statement.axis, *d.all_axes))
            case Scatter():
                for body in (statement.body, *statement.subscripts):
                    note(body, statement.source)
                note(statement.base, statement.axes)
            case Definition():
                for body in statement.expressions():
                    note(body, statement.all_axes)
            case _:
                for name in statement_reads(statement) & out.keys():
                    out[name] += _elements(program.tensors[name])
    for name in program.results:
        out[name] += _elements(program.tensors[name])
    return out


def _points(axes: Iterable[Axis]) -> int:
    return math.prod(_size(axis.extent) for axis in axes)


def _operations(statement: Statement) -> float:
    match statement:
        case Extern():
            return 0.0
        case Recurrence():
            return sum(_operations(inner) for inner in statement.definitions)
        case Scatter():
            return float(_points(statement.source) * (_nodes(statement.body) + 1))
        case Definition():
            combine = int(statement.reduction is not None or statement.scan is not None)
            points = float(_points(statement.all_axes))
            if statement.reduction is not None and statement.reduction.guard is not None:
                points *= _share(statement.reduction.guard, statement.all_axes)
            return points * (_nodes(statement.body) + combine)
        case If():  # one of the two
            return min(_of_block(b) for b in blocks_of(statement))
        case While():
            return _of_block(statement.block)  # once: how often is known at run time
        case Size():
            return 0.0


def _of_block(block: Block) -> float:
    return sum(_operations(inner) for inner in block.body)


def _nodes(body: Expr) -> int:
    """Distinct arithmetic nodes, subscripts left out."""
    count = 0
    seen: set[Expr] = set()
    stack = [body]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        count += node.op not in _FREE
        if node.op != "read":
            stack.extend(node.args)
    return count


def _share(guard: Expr, axes: Sequence[Axis]) -> float:
    """The share of the iteration points where the guard holds; 1 where it depends on data."""
    used = guard.names("index")
    extents = {axis.name: _size(axis.extent) for axis in axes if axis.name in used}
    if guard.reads() or 0 in extents.values():
        return 1.0
    count = math.prod(extents.values())
    if count <= _MOST:
        places = np.unravel_index(np.arange(count), tuple(extents.values()) or (1,))
    else:
        stream, count = np.random.default_rng(0), _MOST
        places = tuple(stream.integers(0, extent, count) for extent in extents.values())
    points = dict(zip(extents, places, strict=False))
    return float(np.mean(np.broadcast_to(_evaluate(guard, points), count)))


def _evaluate(node: Expr, points: Mapping[str, Any]) -> Any:
    if node.op == "const":
        return np.asarray(node.attr)
    if node.op == "index":
        return points[node.attr]
    arguments = [_evaluate(argument, points) for argument in node.args]
    return evaluate(node.op, arguments, node.dtype)
