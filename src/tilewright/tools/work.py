"""Operations and unique bytes of a Program: the two numbers of every roofline.

In: a Program whose sizes are bound. Out: `Work`. Invariant: both count the Program, never a
schedule: recomputation, packing and intermediate buffers cost nothing here.

An operation is one arithmetic node of a definition's expression at one point, and one for combining
it into a reduction (so a multiply-add is 2); exp and the like count 1. A guarded reduction counts
the points where the guard holds, sampled evenly. Bytes are every input, constant and output once.
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
    Definition,
    Extern,
    Program,
    Recurrence,
    Scatter,
    Statement,
    Tensor,
)
from tilewright.ir.scalar import evaluate

__all__ = ["Work", "work_of"]

_SAMPLES = 4096
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
    read = sum(_bytes(tensor) for tensor in program.inputs)
    read += sum(_bytes(tensor) for tensor, _ in program.constants)
    written = sum(_bytes(tensors[name]) for name in dict.fromkeys(program.results))
    return Work(sum(_operations(statement) for statement in program.body), read, written)


def _size(extent: Expr) -> int:
    value = int_value(extent)
    if value is None:
        raise UserError("P001", f"the size {extent} is symbolic", hint="bind the program's dims")
    return value


def _bytes(tensor: Tensor) -> int:
    return math.prod(_size(extent) for extent in tensor.shape) * tensor.dtype.bytes


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
    if guard.reads():
        return 1.0
    extents = [_size(axis.extent) for axis in axes]
    if 0 in extents:
        return 1.0
    stream = np.random.default_rng(0)
    names = [axis.name for axis in axes]
    points = {
        name: stream.integers(0, extent, _SAMPLES)
        for name, extent in zip(names, extents, strict=True)
    }
    return float(np.mean(np.broadcast_to(_evaluate(guard, points), _SAMPLES)))


def _evaluate(node: Expr, points: Mapping[str, Any]) -> Any:
    if node.op == "const":
        return np.asarray(node.attr)
    if node.op == "index":
        return points[node.attr]
    arguments = [_evaluate(argument, points) for argument in node.args]
    return evaluate(node.op, arguments, node.dtype)
