"""Positions that inexact values decide: are computed ones as good as the oracle's?

In: the values that were ordered, or among which the best was chosen, and how far computed ones may
be off. Out: a `Verdict` on computed positions. Invariant: a position is right where what stands
there is within the bound of what the oracle chose; however many values are that near, each is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np

from tilewright.ir import expr as E
from tilewright.ir.binding import ORACLE, Array
from tilewright.ir.dtypes import I64
from tilewright.ir.evaluate import Evaluator, Frame
from tilewright.ir.expr import Expr
from tilewright.ir.kernel import int_extent
from tilewright.ir.program import Definition
from tilewright.verify.policy import Verdict

__all__ = ["Choice", "Order"]

_PLACES = "positions to look at"  # no tensor of a Program has spaces in its name


def _refused(got: Array, ref: Array, count: int) -> Verdict | None:
    """What is wrong with positions whatever stands there; `count` of them may be named."""
    if got.shape != ref.shape or got.dtype != ref.dtype:
        return Verdict(False, np.inf, 0.0, None, "the shape or dtype of positions is another")
    if got.size and (got.min() < 0 or got.max() >= count):
        return Verdict(False, np.inf, 0.0, None, "the positions are not those of the axis")
    return None


def _verdict(bad: Array, got: Array, ref: Array, error: Array, allowed: float) -> Verdict:
    if not bad.any():
        return Verdict(True, 0.0, 0.0, None, "accepted by witness")
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    message = f"{got[place]} instead of {ref[place]}, {int(bad.sum())} of {got.size} wrong,"
    return Verdict(False, float(error[place]), allowed, place, message)


@dataclass(frozen=True)
class Order:
    """Positions in the order of `values`, those of tensor `of`, along `axis`; computed values are
    off by up to `by`. free: those that may as well be infinite, or NaN.
    """

    of: str
    values: Array
    by: float
    axis: int
    descending: bool
    free: Array | None = None

    def widened(self, others: Sequence[Array]) -> Order:
        """The same with more values that a correct evaluation may give: beside a pole (a logarithm
        of what rounds to zero) an element may be anything.
        """
        odd = [~np.isfinite(w) for w in others if w.shape == self.values.shape]
        return replace(self, free=np.logical_or.reduce(odd)) if odd else self

    def verdict(self, got: Any, ref: Array, wiggle: Sequence[Array]) -> Verdict:
        """Right where they are distinct, and each names a value that is within the bound of the one
        that the oracle has there.
        """
        got, x, axis = np.asarray(got), self.values, self.axis
        wrong = _refused(got, ref, x.shape[axis])
        if wrong is not None:
            return wrong
        rows = np.sort(np.moveaxis(got, axis, -1), -1)
        if (rows[..., 1:] == rows[..., :-1]).any():
            return Verdict(False, np.inf, 0.0, None, "the positions are not distinct")
        a, b = np.take_along_axis(x, got, axis), np.take_along_axis(x, ref, axis)
        with np.errstate(invalid="ignore"):
            error = np.abs(a - b)
        near = (error <= 2 * self.by) | (np.isnan(a) & np.isnan(b)) | (a == b)
        if self.free is not None:
            near |= np.expand_dims(self._ordered(got, self.free), axis)
        return _verdict(~near, got, ref, error, 2 * self.by)

    def _ordered(self, got: Array, anything: Array) -> Array:
        """Is each row in order, whatever the elements are that may be `anything`?"""
        rows = [np.moveaxis(a, self.axis, -1) for a in (got, self.values, anything)]
        out = np.zeros(rows[0].shape[:-1], np.bool_)
        for place in np.ndindex(*out.shape):
            named, values, free = (row[place] for row in rows)
            if self.descending:
                values = -values
            known = values[named][~free[named]]
            left = np.delete(values, named)[~np.delete(free, named)]
            rising = bool((known[1:] >= known[:-1] - 2 * self.by).all())
            best = not known.size or bool((left >= known.max() - 2 * self.by).all())
            out[place] = free.any() and rising and best
        return out


@dataclass(frozen=True)
class Choice:
    """Positions of the best value of an argmax or argmin `d` over the points of `outer`.

    runs: what `d` reads, the oracle's tensors first, then those of moved runs. deltas: how far its
    discrete operations' operands may be off, and its values, under the keys of `Probe`.
    """

    d: Definition
    outer: Frame
    runs: list[dict[str, Array]]
    deltas: dict[tuple[Expr, int], float]

    def verdict(self, got: Any, ref: Array, wiggle: Sequence[Array]) -> Verdict:
        """Right where the value that is named is within the bound of the best, or where a moved run
        has the same position.
        """
        r = self.d.reduction
        assert r is not None
        got = np.asarray(got)
        wrong = _refused(got, ref, prod(int_extent(a.extent) for a in r.axes))
        if wrong is not None:
            return wrong
        allowed = 2 * max(by for (_, k), by in self.deltas.items() if k < 0)
        low, high = self._between(got)
        # Whatever operands are, the best is no worse than the worst of each that was seen.
        seen = [self._between(w) for w in (ref, *wiggle)]
        if r.monoid == "argmax":
            behind = np.maximum.reduce([b[0] for b in seen]) - high
        else:
            behind = low - np.minimum.reduce([b[1] for b in seen])
        bad = (got != ref) & ~((behind <= allowed) & self._counts(got))
        for w in wiggle:
            bad &= got != w
        return _verdict(bad, got, ref, behind, allowed)

    def _at(self, e: Expr) -> Expr:
        """The expression with the reduced axes at the position that is named."""
        r = self.d.reduction
        assert r is not None
        place = E.read(_PLACES, [a.index for a in self.d.axes], I64)
        mapping, stride = {}, 1
        for a in reversed(r.axes):
            mapping[a.index] = E.mod(E.floordiv(place, E.const(stride)), a.extent)
            stride *= int_extent(a.extent)
        return E.substitute(e, mapping)

    def _between(self, places: Array) -> tuple[Array, Array]:
        """The lowest and the highest value that may stand at each position."""
        by = {(self._at(e), k): delta for (e, k), delta in self.deltas.items() if k >= 0}
        body = self._at(self.d.body)
        found = []
        for arrays, side in product(self.runs, (0, 1, -1) if by else (0,)):
            evaluator = self._evaluator(arrays, places)
            evaluator.probe = lambda e, k, _, x, side=side: x + side * by.get((e, k), 0.0)
            found.append(self._shaped(evaluator.value(body, self.outer), places))
        return np.minimum.reduce(found), np.maximum.reduce(found)

    def _counts(self, places: Array) -> Array:
        """Does the guard let each position take part?"""
        r = self.d.reduction
        if r is None or r.guard is None:
            return np.ones(places.shape, np.bool_)
        guard = self._at(r.guard)
        found = [
            self._shaped(self._evaluator(arrays, places).value(guard, self.outer), places)
            for arrays in self.runs
        ]
        return np.asarray(np.logical_or.reduce(found))

    def _evaluator(self, arrays: dict[str, Array], places: Array) -> Evaluator:
        """Not strict: a position that the guard refuses may read outside a tensor."""
        named = {**arrays, _PLACES: places.reshape(self.outer.shape)}
        return Evaluator(named, ORACLE, self.d, False)

    def _shaped(self, x: Array, places: Array) -> Array:
        return np.asarray(np.broadcast_to(x, self.outer.shape)).reshape(places.shape)
