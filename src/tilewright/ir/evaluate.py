"""Values of expressions over boxes of index points, vectorised in NumPy.

In: an expression, named arrays, a `Frame` (axes with ranges). Out: an array with one axis per frame
axis, of length 1 where the value does not depend on that axis. Invariants: affine reads are views,
not copies; a read outside its tensor without `else` is an error only where its value is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.binding import Array, Numerics
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr
from tilewright.ir.ranges import interval
from tilewright.ir.scalar import SCALAR

__all__ = ["Evaluator", "Frame", "Probe", "is_discrete"]

Affine = dict[str, int]  # index variable -> coefficient; "" -> constant


_DISCRETE = {
    "floor", "ceil", "round", "trunc", "sign", "floordiv", "mod", "fmod", "lt", "le", "eq", "ne",
}  # fmt: skip


def is_discrete(e: Expr) -> bool:
    """Does a small change of a float operand change the value by a step?"""
    if not e.args or not e.args[0].dtype.is_float:
        return False
    if e.op == "cast":
        return not e.dtype.is_float or e.dtype.bits == 16
    return e.op in _DISCRETE


# (expression, id of the mask or 0) -> its value, and the mask, which keeps that id taken.
Memo = dict[tuple[Expr, int], tuple[Array, Array | None]]


@dataclass(frozen=True)
class Frame:
    """A box of index points: axis names in order, and the half-open range of each."""

    names: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(hi - lo for lo, hi in self.ranges)

    @property
    def size(self) -> int:
        return prod(self.shape)

    def inclusive(self) -> dict[str, tuple[int, int]]:
        return {n: (lo, hi - 1) for n, (lo, hi) in zip(self.names, self.ranges, strict=True)}

    def only(self, names: frozenset[str]) -> Frame:
        """The same axes, with those outside `names` collapsed to their first point."""
        kept = (
            (lo, hi) if n in names else (lo, lo + 1)
            for n, (lo, hi) in zip(self.names, self.ranges, strict=True)
        )
        return Frame(self.names, tuple(kept))


def affine(e: Expr) -> Affine | None:
    """An i64 expression as a sum of multiples of index variables and a constant, if it is one."""
    out: Affine = {}
    for atoms, c in E.polynomial(e).items():
        if not atoms:
            out[""] = c
        elif len(atoms) == 1 and atoms[0].op == "index":
            out[atoms[0].attr] = c
        else:
            return None
    return out


def _without_mod(e: Expr) -> Expr:
    """x % c as x - c * (x // c), so that an address made of both cancels."""
    mapping: dict[Expr, Expr] = {}
    for node in e.walk():
        c = E.int_value(node.args[1]) if node.op == "mod" and node.dtype is I64 else None
        if c is not None and c > 0:
            x = E.substitute(node.args[0], mapping)
            mapping[node] = x - E.floordiv(x, E.const(c)) * c
    return E.substitute(e, mapping)


class Probe(Protocol):
    """Sees, and may replace, float operand `k` of a discrete operation `e` over `frame`.

    For argmax (k = -1) and argmin (k = -2) `e` is the body and the last axis of `x` is chosen from.
    """

    def __call__(self, e: Expr, k: int, frame: Frame, x: Array) -> Array: ...


class _Access:
    """What is known about one read whatever the frame."""

    def __init__(self, e: Expr, shape: tuple[int, ...]) -> None:
        self.name: str = e.attr[0]
        self.orelse = e.args[-1] if e.attr[1] else None
        self.subscripts = e.args[: len(e.args) - e.attr[1]]
        self.shape = shape
        self.forms = [affine(s) for s in self.subscripts]
        address, step = E.const(0), 1
        for s, n in zip(reversed(self.subscripts), reversed(shape), strict=True):
            address, step = address + s * step, step * n
        self.flat = affine(address)
        if self.flat is None:
            self.flat = affine(_without_mod(address))


class Shake(Protocol):
    """Moves the values `x` of `e` by about a rounding; its last `folded` axes are to be folded with
    `monoid`.
    """

    def __call__(self, e: Expr, x: Array, monoid: str = "", folded: int = 0) -> Array: ...


class Evaluator:
    """Evaluates expressions against `arrays`; one per statement, to share access analysis."""

    def __init__(
        self, arrays: Mapping[str, Array], numerics: Numerics, where: object, strict: bool = True
    ) -> None:
        self.arrays, self.numerics, self.where, self.strict = arrays, numerics, where, strict
        self.finished: dict[str, int] = {}  # tensor of a running recurrence -> steps done
        self.probe: Probe | None = None
        # Replaces the value of every float operation that rounds: how ill-conditioned is a result?
        self.shake: Shake | None = None
        self._accesses: dict[Expr, _Access] = {}

    def value(self, e: Expr, frame: Frame, active: Array | None = None) -> Array:
        """`e` over `frame`; `active` says where the value is needed (None: everywhere)."""
        return self._go(e, frame, active, {})

    def every(self, e: Expr, frame: Frame) -> dict[Expr, Array]:
        """The value of every node of `e`, also where `e` does not need it."""
        memo: Memo = {}
        return {node: self._go(node, frame, None, memo) for node in e.walk()}

    def in_range(self, e: Expr, frame: Frame) -> bool:
        """Is every read in `e` without `else` provably inside its tensor?"""
        ranges = frame.inclusive()
        for r in e.reads():
            name, has_else = r.attr
            if has_else:
                continue
            limits = list(self.arrays[name].shape)
            if name in self.finished and limits:  # later steps are not there yet
                limits[0] = self.finished[name]
            for s, n in zip(r.args, limits, strict=True):
                lo, hi = interval(s, ranges)
                if lo is None or hi is None or lo < 0 or hi >= n:
                    return False
        return True

    def _go(
        self,
        e: Expr,
        frame: Frame,
        active: Array | None,
        memo: Memo,
    ) -> Array:
        # A value is the same under every mask, only its checks differ: unmasked serves all.
        hit = memo.get((e, 0)) or memo.get((e, id(active)))
        if hit is not None:
            return hit[0]
        op, ones = e.op, (1,) * len(frame.names)
        if op == "const":
            out = np.full(ones, e.attr, self.numerics.work(e.dtype))
        elif op == "index":
            k = frame.names.index(e.attr)
            lo, hi = frame.ranges[k]
            out = np.arange(lo, hi, dtype=np.int64).reshape(*ones[:k], -1, *ones[k + 1 :])
        elif op == "read":
            out = self._read(e, frame, active, memo)
        elif op == "select":
            out = self._select(e, frame, active, memo)
        elif op == "cast":
            x = self._go(e.args[0], frame, active, memo)
            if self.probe is not None and is_discrete(e):
                x = self.probe(e, 0, frame, x)
            out = self.numerics.cast(x, e.dtype)
        elif op == "dim":
            raise UserError("R004", f"no input determines the size {e}", where=str(self.where))
        else:
            args = [self._go(a, frame, active, memo) for a in e.args]
            if self.probe is not None and is_discrete(e):
                args = [self.probe(e, k, frame, x) for k, x in enumerate(args)]
            out = self.numerics.store(np.asarray(SCALAR[op](*args)), e.dtype)
            if self.shake is not None and e.dtype.is_float:
                out = self.shake(e, out)
        memo[(e, 0 if active is None else id(active))] = (out, active)
        return out

    def _select(
        self,
        e: Expr,
        frame: Frame,
        active: Array | None,
        memo: Memo,
    ) -> Array:
        condition = self._go(e.args[0], frame, active, memo)
        if condition.all():
            return self._go(e.args[1], frame, active, memo)
        if not condition.any():
            return self._go(e.args[2], frame, active, memo)
        yes = condition if active is None else condition & active
        no = ~condition if active is None else ~condition & active
        then = self._go(e.args[1], frame, yes, memo)
        return np.where(condition, then, self._go(e.args[2], frame, no, memo))

    # ---- reads --------------------------------------------------------------------------------

    def _read(
        self,
        e: Expr,
        frame: Frame,
        active: Array | None,
        memo: Memo,
    ) -> Array:
        array = self.arrays[e.attr[0]]
        access = self._accesses.get(e)
        if access is None or access.shape != array.shape:
            access = self._accesses[e] = _Access(e, array.shape)
        ranges = frame.inclusive()
        spans = [interval(s, ranges) for s in access.subscripts]
        limits = list(array.shape)
        if access.name in self.finished and limits:
            limits[0] = self.finished[access.name]
        inside = [
            lo is not None and hi is not None and lo >= 0 and hi < n
            for (lo, hi), n in zip(spans, limits, strict=True)
        ]
        if all(inside):
            if access.flat is not None:
                return _strided(array, access.flat, frame)
            return array[self._places(access, frame, active, memo, range(len(limits)))]
        places: list[Array | None] = [None] * len(limits)
        ok: Array | None = None
        for d, (s, n) in enumerate(zip(access.subscripts, limits, strict=True)):
            if not inside[d]:
                at = places[d] = self._go(s, frame, active, memo)
                good = (at >= 0) & (at < n)
                ok = good if ok is None else ok & good
        assert ok is not None
        if access.orelse is None:
            self._check(e, ok, active, frame)
            orelse = None
        elif ok.all():
            orelse = None
        else:
            bad = ~ok if active is None else ~ok & active
            orelse = self._go(access.orelse, frame, bad, memo)
            if not ok.any():
                return np.broadcast_to(orelse, np.broadcast_shapes(ok.shape, orelse.shape))
        padded = self._padded(array, access, frame, spans, limits, orelse)
        if padded is not None:
            view, filled = padded
            return view if orelse is None or filled else np.where(ok, view, orelse)
        if array.size == 0:
            zero = np.zeros((1,) * len(frame.names), array.dtype)
            return zero if orelse is None else np.where(ok, zero, orelse)
        missing = [d for d, p in enumerate(places) if p is None]
        for d, p in zip(missing, self._places(access, frame, active, memo, missing), strict=True):
            places[d] = p
        clipped = tuple(
            np.clip(p, 0, n - 1) for p, n in zip(places, array.shape, strict=True) if p is not None
        )
        out = array[clipped]
        return out if orelse is None else np.where(ok, out, orelse)

    def _places(
        self,
        access: _Access,
        frame: Frame,
        active: Array | None,
        memo: Memo,
        axes: range | list[int],
    ) -> tuple[Array, ...]:
        return tuple(self._go(access.subscripts[d], frame, active, memo) for d in axes)

    def _check(self, e: Expr, ok: Array, active: Array | None, frame: Frame) -> None:
        if not self.strict:
            return
        bad = ~ok if active is None else ~ok & active
        if not bad.any():
            return
        shape = np.broadcast_shapes(bad.shape, frame.shape)
        first = np.unravel_index(int(np.argmax(np.broadcast_to(bad, shape))), shape)
        point = {
            name: lo + int(k)
            for name, (lo, _), k in zip(frame.names, frame.ranges, first, strict=True)
        }
        at = ", ".join(f"{k} = {v}" for k, v in point.items())
        shape_text = list(self.arrays[e.attr[0]].shape)
        message = f"{e} is outside the shape {shape_text} of {e.attr[0]!r} at {at}"
        raise UserError(
            "P001", message, where=str(self.where), hint="give the read an `else` value"
        )

    def _padded(
        self,
        array: Array,
        access: _Access,
        frame: Frame,
        spans: list[tuple[int | None, int | None]],
        limits: list[int],
        orelse: Array | None,
    ) -> tuple[Array, bool] | None:
        """The read as a view of the padded region it touches; whether `orelse` is in it already."""
        if any(f is None for f in access.forms):
            return None
        bounds = [(lo, hi) for lo, hi in spans if lo is not None and hi is not None]
        if len(bounds) != len(spans):
            return None
        shape = tuple(hi - lo + 1 for lo, hi in bounds)
        if prod(shape) > 2 * (array.size + frame.size) + 4096:
            return None
        constant = orelse is None or orelse.size == 1
        fill = orelse.reshape(-1)[0] if orelse is not None and constant else 0
        region = np.full(shape, fill, array.dtype)
        source, target = [], []
        for (lo, hi), n in zip(bounds, limits, strict=True):
            first, last = max(lo, 0), min(hi, n - 1)
            source.append(slice(first, max(last + 1, first)))
            target.append(slice(first - lo, max(last + 1, first) - lo))
        region[tuple(target)] = array[tuple(source)]
        flat: Affine = {"": 0}
        step = 1
        for form, (lo, _), n in zip(
            reversed(access.forms), reversed(bounds), reversed(shape), strict=True
        ):
            assert form is not None
            for name, c in form.items():
                flat[name] = flat.get(name, 0) + c * step
            flat[""] -= lo * step
            step *= n
        return _strided(region, flat, frame), constant


def _strided(array: Array, flat: Affine, frame: Frame) -> Array:
    """The view of a contiguous array whose element at a point is at the affine address `flat`."""
    offset, shape, strides = flat.get("", 0), [], []
    for name, (lo, hi) in zip(frame.names, frame.ranges, strict=True):
        c = flat.get(name, 0)
        offset += c * lo
        shape.append(hi - lo if c else 1)
        strides.append(c * array.itemsize if c else 0)
    # ndarray checks the view against the buffer, so a wrong address cannot read outside it.
    return np.ndarray(tuple(shape), array.dtype, array, offset * array.itemsize, tuple(strides))
