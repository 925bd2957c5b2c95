"""Where the conditions of a stage change along an axis, so that its loops need not ask.

In: the definitions of a stage without reduction. Out: per axis the positions at which a comparison,
a clamp or the inside of a guarded read changes. Invariant: between two of them every such condition
of that axis alone is one constant; all positions of the axis are covered once.

A concatenation reads one operand on one side of a position and another one behind it, padding reads
nothing at both ends: with loops over each part no vector is masked, and no address is formed that
is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr
from tilewright.ir.extent import is_symbolic
from tilewright.ir.program import Definition
from tilewright.ir.ranges import along

__all__ = ["cuts_of"]

MOST = 8  # parts of an axis; beyond, conditions are cheaper than code
_ENDS = 4  # of vectors that are cut off; a condition that comes and goes is no matter of the ends
_LONGEST = 1 << 16  # positions that are looked at, one by one
MOST_SHARES = 64  # where each part takes its own branch of a choice, not all of the body


def cuts_of(
    members: tuple[Definition, ...],
    shapes: Mapping[str, tuple[int, ...]],
    extents: Mapping[str, int],
    block: tuple[str, int] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Positions in (0, extent), ascending, by axis; an axis with none, or with too many, is left
    out. shapes: of the tensors that are read. block: the axis of the lanes, and how many positions
    a vector of results has: where an operand that is read there rises and falls, whole vectors are
    cut off at the ends, so that it falls in the same way in all vectors between.
    """
    found: dict[str, set[int]] = {}
    for d in members:
        for left, right in _differences(d.body, shapes):
            gap = left - right
            names = gap.indices()
            if len(names) != 1 or gap.has_reads or any(x.op == "dim" for x in gap.walk()):
                continue
            (axis,) = names
            slope = _slope(gap)
            if slope and axis in extents:
                found.setdefault(axis, set()).update(_changes(gap, axis, extents[axis], slope))
            elif block is not None and block[0] == axis and not slope:
                ends = set(_around(gap, axis, extents[axis], block[1]))
                if len(ends) <= _ENDS:
                    found.setdefault(axis, set()).update(ends)
    choices = sum(1 for d in members for x in d.body.walk() if x.op == "select")
    return {
        a: tuple(sorted(cuts))
        for a, cuts in found.items()
        if 0 < len(cuts) < (MOST_SHARES if choices >= len(cuts) else MOST)
    }


def _differences(
    body: Expr, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[Expr, Expr]]:
    """Pairs (a, b) such that a condition asks whether a < b."""
    for x in body.walk():
        if x.op in E.COMPARE and x.args[0].dtype is I64:
            a, b = x.args
            if x.op != "le":
                yield a, b
            if x.op != "lt":
                yield b, a
        elif x.op in ("min", "max") and x.dtype is I64:
            yield x.args[0], x.args[1]
        elif x.op == "read" and x.attr[1] and x.attr[0] in shapes:
            for s, n in zip(x.args[:-1], shapes[x.attr[0]], strict=True):
                yield s, E.const(0)
                if not is_symbolic(n):
                    yield s, E.const(n)


def _slope(e: Expr) -> int:
    """1 or -1 where an expression over one axis never falls or never rises along it, else 0."""
    if e.op == "index":
        return 1
    if e.op in ("add", "min", "max"):
        signs = {_slope(x) for x in e.args if x.indices()}
        return signs.pop() if len(signs) == 1 else 0
    if e.op == "mul" and e.args[1].op == "const":
        return _slope(e.args[0]) * (1 if e.args[1].attr > 0 else -1)
    if e.op == "floordiv" and e.args[1].op == "const" and e.args[1].attr > 0:
        return _slope(e.args[0])
    return 0


def _around(gap: Expr, axis: str, extent: int, length: int) -> Iterator[int]:
    """The ends of the blocks of this length inside of which gap < 0 changes."""
    values = along(gap, axis, np.arange(extent)) if extent <= _LONGEST else None
    if values is None:
        return
    for at in np.flatnonzero(np.diff(values < 0)) + 1:
        first = int(at) // length * length
        yield from (x for x in {first, min(extent, first + length)} if 0 < x < extent)


def _changes(gap: Expr, axis: str, extent: int, slope: int) -> Iterator[int]:
    """Where gap < 0 changes along the axis, if it does inside of it."""

    def is_low(at: int) -> bool:
        value = E.int_value(E.substitute(gap, {E.index(axis): E.const(at)}))
        assert value is not None
        return value < 0

    low, high = 0, extent - 1
    if extent < 2 or is_low(low) == is_low(high):
        return
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_low(middle) == is_low(low) else (low, middle)
    yield high
