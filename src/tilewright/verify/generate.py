"""Inputs for a Program: random, finite, in range where they index.

In: a Program, sizes, a seed. Out: arrays by input name. Invariants: the same arguments give the
same arrays; an integer input that reaches a subscript lies inside the axis, or a little outside
where the read has an `else` or the contribution may be dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tilewright.ir import expr as E
from tilewright.ir.binding import size_of
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import (
    Definition,
    Program,
    Recurrence,
    Scatter,
    Size,
    Statement,
    blocks_of,
)

__all__ = ["default_sizes", "index_limits", "random_inputs"]

Array = np.ndarray[Any, np.dtype[Any]]
# Values of integers that only take part in arithmetic: small, so that products stay readable.
_PLAIN = {"i": (-9, 10), "u": (0, 20)}
_BYTES = {"i8": (-128, 128), "u8": (0, 256)}


def default_sizes(program: Program, seed: int = 0, most: int = 7) -> dict[str, int]:
    """A size for every dim: its hint, or a small one that its range and divisibility allow."""
    rng = np.random.default_rng(seed)
    out = {}
    for d in program.dims:
        if d.hint is not None:
            out[d.name] = d.hint
            continue
        low = -(-max(d.lo, 1) // d.multiple) * d.multiple
        high = low + d.multiple * int(rng.integers(0, most))
        out[d.name] = high if d.hi is None else max(min(high, d.hi // d.multiple * d.multiple), low)
    return out


def random_inputs(
    program: Program, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, Array]:
    """Arrays for all inputs; `sizes` may leave out dims that have a hint."""
    known = default_sizes(program) | dict(sizes or {})
    for s in _statements(program.body):  # a size that a value defines is at most its bound
        if isinstance(s, Size):
            known[s.name] = size_of(s.bound, known)
    rng = np.random.default_rng([seed, len(program.inputs)])
    limits = index_limits(program, known)
    out: dict[str, Array] = {}
    for t in program.inputs:
        shape = tuple(size_of(e, known, t) for e in t.shape)
        out[t.name] = _draw(rng, t.dtype, shape, limits.get(t.name))
    return out


def _draw(
    rng: np.random.Generator, dtype: DType, shape: tuple[int, ...], limit: tuple[int, int] | None
) -> Array:
    if dtype.is_float:
        return np.asarray(rng.standard_normal(shape).astype(np.float32)).astype(dtype.np)
    if dtype.kind == "b":
        return np.asarray(rng.random(shape) < 0.5)
    low, high = _BYTES.get(dtype.name, _PLAIN[dtype.kind])
    if limit is not None:
        low, high = limit[0], max(limit[1], limit[0]) + 1
        if dtype.kind == "u":
            low = max(low, 0)
            high = max(high, low + 1)
    return rng.integers(low, high, shape).astype(dtype.np)


def index_limits(program: Program, sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Integer input -> the values that keep every subscript it reaches in range."""
    shapes = {n: t.shape for n, t in program.tensors.items()}
    definitions: dict[str, Definition] = {}
    limits: dict[str, tuple[int, int]] = {}
    inputs = {t.name for t in program.inputs}

    def reach(e: Expr, low: int, high: int, seen: frozenset[str]) -> None:
        """Values of the integer tensors in a subscript go from `low` to `high`."""
        while e.op == "cast":
            e = e.args[0]
        if e.dtype is I64:
            shift = E.polynomial(e).get((), 0)
        else:
            moved = e.op in ("add", "sub") and e.args[1].op == "const"
            shift = e.args[1].attr * (1 if e.op == "add" else -1) if moved else 0
        low, high = low - shift, high - shift
        for r in e.reads():
            name = r.attr[0]
            if not r.dtype.is_int or name in seen:
                continue
            if name in inputs:
                old = limits.get(name, (low, high))
                limits[name] = (max(old[0], low), min(old[1], high))
            elif name in definitions:
                reach(definitions[name].body, low, high, seen | {name})

    def subscripts(e: Expr) -> None:
        for r in e.reads():
            name, padded = r.attr
            shape = shapes.get(name, ())
            for s, extent in zip(r.args[: len(shape)], shape, strict=False):
                if any(x.dtype.is_int for x in s.reads()):
                    n = size_of(extent, sizes)
                    reach(s, -2 * padded, n - 1 + 2 * padded, frozenset())

    for s in _statements(program.body):
        match s:
            case Definition():
                definitions[s.name] = s
                for e in s.expressions():
                    subscripts(e)
            case Recurrence():
                for d in s.definitions:
                    definitions[d.name] = d
                    for e in d.expressions():
                        subscripts(e)
            case Scatter():
                for e in (s.body, s.base, *s.subscripts):
                    subscripts(e)
                for e, extent in zip(s.subscripts, s.shape, strict=True):
                    reach(e, -1, size_of(extent, sizes), frozenset())
            case Size():
                reach(E.read(s.source, (), I64), 0, sizes[s.name], frozenset())
    return limits


def _statements(body: tuple[Statement, ...]) -> Iterator[Statement]:
    """Every statement, those of blocks included."""
    for s in body:
        yield s
        for b in blocks_of(s):
            yield from _statements(b.body)
