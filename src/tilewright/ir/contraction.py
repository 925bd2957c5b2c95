"""Sums of products over views: the fast path of the interpreter.

In: a sum whose body is a product of factors over subsets of the axes. Out: the sum, by matrix
products of strided views. Invariants: integers are exact (a float64 product serves only where
every partial sum is below 2^53); the naive evaluation adds in the order of the text, of a large
product in as many elements as are affordable; no operand block exceeds `BLOCK` elements.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np

from tilewright.ir import expr as E
from tilewright.ir.binding import Array, Numerics
from tilewright.ir.dtypes import I64
from tilewright.ir.evaluate import Evaluator, Frame
from tilewright.ir.expr import Expr

__all__ = ["BLOCK", "Contraction", "contraction_of"]

BLOCK = 1 << 22  # elements of an operand block: 32 MiB of float64
_IN_ORDER = 1 << 25  # multiply-adds that the naive evaluation may do one after the other
_STEPS = 1 << 13
_SAMPLED, _SAMPLED_STEPS = 1 << 27, 1 << 17  # the same of a larger product, in part of its elements
_CACHED = 1 << 16  # elements that stay in the second-level cache
_LONG = 1 << 22  # multiply-adds from which a longdouble product is split into exact float64 ones


@dataclass(frozen=True)
class Contraction:
    """A sum of `left * right`; a guard, if there was one, is inside `left`."""

    left: Expr
    right: Expr
    guarded: bool

    def run(self, evaluator: Evaluator, outer: Frame, inner: Frame, out: Array) -> bool:
        """Write the sum over `inner` into `out`, over `outer`. False: it needs the general path."""
        frame = Frame(outer.names + inner.names, outer.ranges + inner.ranges)
        if self.guarded and not evaluator.in_range(self.right, frame):
            return False
        sides = (self.left, self.right)
        names = [frozenset(x.names("index")) for x in sides]
        cache: list[tuple[Frame, Array] | None] = [None, None]
        for box in _boxes(frame, [*names, frozenset(outer.names)]):
            values = []
            for k, x in enumerate(sides):
                small = box.only(names[k])
                found = cache[k]
                if found is None or found[0] != small:
                    array = np.broadcast_to(evaluator.value(x, small), small.shape)
                    found = cache[k] = (small, array)
                values.append(found[1])
            if self.guarded and values[1].dtype.kind == "f" and not np.isfinite(values[1]).all():
                return False  # 0 * inf is no omission
            if _mixes(values, names, frozenset(inner.names)):
                return False
            total = _sum(values[0], values[1], names, box, len(outer.names), evaluator.numerics)
            corner = zip(box.ranges, outer.ranges, strict=False)
            place = tuple(slice(lo - start, hi - start) for (lo, hi), (start, _) in corner)
            if all(
                a[0] == b[0] for a, b in zip(box.ranges[len(place) :], inner.ranges, strict=True)
            ):
                out[place] = total
            else:
                out[place] += total
        return True


def _mixes(values: list[Array], names: list[frozenset[str]], summed: frozenset[str]) -> bool:
    """Is one factor summed first, and the other not finite? (1 - 2) * inf is no inf - 2 inf."""
    return any(
        names[k] & summed - names[1 - k]
        and values[1 - k].dtype.kind == "f"
        and not np.isfinite(values[1 - k]).all()
        for k in (0, 1)
    )


def contraction_of(body: Expr, guard: Expr | None, extents: dict[str, int]) -> Contraction | None:
    """`body` as a product of two factors, if it is one."""
    groups = [(p, frozenset(p.names("index"))) for p in _factors(body)]

    def size(names: frozenset[str]) -> int:
        return prod(extents[n] for n in names)

    while len(groups) > 2:
        pairs = list(itertools.combinations(range(len(groups)), 2))
        free = [p for p in pairs if groups[p[0]][1] <= groups[p[1]][1]]
        free += [p for p in pairs if groups[p[1]][1] <= groups[p[0]][1]]
        pick = min(free or pairs, key=lambda p: size(groups[p[0]][1] | groups[p[1]][1]))
        (a, na), (b, nb) = groups[pick[0]], groups[pick[1]]
        groups = [g for k, g in enumerate(groups) if k not in pick]
        groups.append((E.mul(a, b), na | nb))
    if len(groups) != 2:
        return None
    (left, nl), (right, nr) = groups
    if guard is None:
        return Contraction(left, right, False)
    needed = guard.names("index")
    if not needed <= nl:
        left, right, nl = right, left, nr
    if not needed <= nl:
        return None
    return Contraction(E.select(guard, left, E.const(0, body.dtype)), right, True)


def _factors(e: Expr) -> list[Expr]:
    if e.op == "neg":
        return [E.const(-1, e.dtype), *_factors(e.args[0])]
    if e.op == "mul" and e.dtype is not I64:
        return _factors(e.args[0]) + _factors(e.args[1])
    return list(e.args) if e.op == "mul" else [e]


def _boxes(frame: Frame, blocks: list[frozenset[str]]) -> Iterator[Frame]:
    """Sub-boxes in which each set of axes in `blocks` spans at most `BLOCK` points, in order."""
    steps = dict(zip(frame.names, frame.shape, strict=True))
    while True:
        worst = max(blocks, key=lambda names: prod(steps[n] for n in names))
        if prod(steps[n] for n in worst) <= BLOCK:
            break
        widest = max(sorted(worst), key=lambda n: steps[n])
        steps[widest] = ceil(steps[widest] / 2)
    ranges = [
        [(k, min(k + steps[n], hi)) for k in range(lo, hi, steps[n])]
        for n, (lo, hi) in zip(frame.names, frame.ranges, strict=True)
    ]
    for picked in itertools.product(*ranges):
        yield Frame(frame.names, picked)


def _sum(
    a: Array, b: Array, names: list[frozenset[str]], box: Frame, outer: int, numerics: Numerics
) -> Array:
    """The sum over the box of a * b, with one axis per outer axis."""
    extent = box.shape
    in_a = [n in names[0] for n in box.names]
    in_b = [n in names[1] for n in box.names]
    reduced = range(outer, len(box.names))
    repeat = prod(extent[k] for k in reduced if not in_a[k] and not in_b[k])
    if alone := tuple(k for k in reduced if in_a[k] and not in_b[k]):
        a = np.add.reduce(a, axis=alone, keepdims=True, dtype=a.dtype)
    if alone := tuple(k for k in reduced if in_b[k] and not in_a[k]):
        b = np.add.reduce(b, axis=alone, keepdims=True, dtype=b.dtype)
    batch = [k for k in range(outer) if in_a[k] and in_b[k]]
    rows = [k for k in range(outer) if in_a[k] and not in_b[k]]
    columns = [k for k in range(outer) if in_b[k] and not in_a[k]]
    shared = [k for k in reduced if in_a[k] and in_b[k]]
    sizes = [prod(extent[k] for k in ks) for ks in (batch, rows, shared, columns)]
    a3 = _ordered(a, batch + rows + shared).reshape(sizes[0], sizes[1], sizes[2])
    b3 = _ordered(b, batch + shared + columns).reshape(sizes[0], sizes[2], sizes[3])
    out = _matmul(a3, b3, numerics)
    if repeat != 1:
        out = out * np.asarray(repeat).astype(out.dtype)
    order = batch + rows + columns
    out = out.reshape([extent[k] for k in order])
    out = out.transpose([order.index(k) for k in sorted(order)])
    return out.reshape([extent[k] if k in order else 1 for k in range(outer)])


def _ordered(x: Array, axes: list[int]) -> Array:
    rest = [k for k in range(x.ndim) if k not in axes]
    moved = x.transpose(rest + axes)
    return moved.reshape(moved.shape[len(rest) :]) if moved.size else moved.reshape(0)


def _matmul(a: Array, b: Array, numerics: Numerics) -> Array:
    (batch, rows, shared), columns = a.shape, b.shape[2]
    work = batch * rows * columns * shared
    if a.dtype.kind in "iu":
        bound = _magnitude(a) * _magnitude(b) * shared
        if bound < 1 << 53:
            exact = np.matmul(a.astype(np.float64), b.astype(np.float64))
            return np.asarray(exact.astype(np.int64).astype(a.dtype))
        return np.asarray(np.matmul(a, b))
    if a.dtype.kind != "f":
        return np.asarray(np.matmul(a, b))
    if a.dtype == np.longdouble:
        if work < _LONG or not (np.isfinite(a).all() and np.isfinite(b).all()):
            return np.asarray(np.matmul(a, b))
        return _long_matmul(a, b)
    if numerics.name == "naive" and (
        (work <= _IN_ORDER and shared <= _STEPS) or (work <= 8 * _IN_ORDER and shared <= 64)
    ):
        return _in_order(a, b)
    if rows == columns == 1:
        return np.asarray(np.einsum("bmk,bkn->bmn", a, b))
    out = np.asarray(np.matmul(np.ascontiguousarray(a), np.ascontiguousarray(b)))
    if numerics.name == "naive" and 64 < shared <= _SAMPLED_STEPS and batch:
        # A library sums in blocks and so errs less than the plain order: a bound made from it alone
        # would refuse an honest long sum.
        some = max(1, _SAMPLED // shared)
        wide = min(columns, some)
        high = min(rows, max(1, some // wide))
        out[:1, :high, :wide] = _in_order(a[:1, :high], b[:1, :, :wide])
    return out


def _in_order(a: Array, b: Array) -> Array:
    """The product with every element summed left to right."""
    (batch, rows, shared), columns = a.shape, b.shape[2]
    total = np.zeros((batch, rows, columns), a.dtype)
    step = max(1, _CACHED // max(1, batch * columns))
    for start in range(0, rows, step):
        block = np.ascontiguousarray(a[:, start : start + step].transpose(2, 0, 1))
        part = total[:, start : start + step]
        for k in range(shared):
            part += block[k, :, :, None] * b[:, k, None, :]
    return total


def _magnitude(x: Array) -> int:
    return max(abs(int(x.min())), abs(int(x.max()))) if x.size else 0


def _long_matmul(a: Array, b: Array) -> Array:
    """A longdouble product as float64 products that are each exact. Source: Ozaki et al. 2012."""
    bits = (53 - max(1, a.shape[2]).bit_length()) // 2
    left, right = _slices(a, bits, 2), _slices(b, bits, 1)
    total = np.zeros((a.shape[0], a.shape[1], b.shape[2]), np.longdouble)
    for i, x in reversed(list(enumerate(left))):
        for j, y in reversed(list(enumerate(right))):
            if i + j < max(len(left), len(right)):
                total += np.matmul(x, y)
    return total


def _slices(x: Array, bits: int, axis: int) -> list[Any]:
    """`x` as a sum of float64 arrays of `bits` bits, relative to the largest along `axis`."""
    out: list[Any] = []
    rest = x
    top = np.max(np.abs(x), axis=axis, keepdims=True)
    exponent = np.frexp(np.where(top > 0, top, 1))[1]
    for k in range(1, ceil(64 / bits) + 1):
        # Adding and subtracting 1.5 * 2^(e + 63) leaves the multiples of 2^e.
        grid = np.ldexp(np.longdouble(1.5), exponent - k * bits + 63)
        head = (rest + grid) - grid
        out.append(head.astype(np.float64))
        rest = rest - head
    return out
