"""Folds of arrays by a monoid: reductions, prefixes and scatters, in NumPy.

In: arrays of contributions in working types. Out: folded arrays. Invariants: an empty fold is the
monoid's identity; NaN propagates through max, min and logsumexp; argmax and argmin take the first
NaN, else the first best; contributions combine in source order where `ordered` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir.binding import Array
from tilewright.ir.dtypes import DType
from tilewright.ir.program import identity_of

__all__ = ["combine", "fold", "fold_position", "identity_array", "prefix", "scatter_into"]

_UFUNC: dict[str, Any] = {
    "sum": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "all": np.logical_and,
    "any": np.logical_or,
    "logsumexp": np.logaddexp,
}
# At most this many contributions are folded by one array operation each: faster than a reduction
# over short axes, and the order is the order of the text.
_SHORT = 64


def identity_array(monoid: str, dtype: DType, shape: tuple[int, ...], work: np.dtype[Any]) -> Array:
    """An array of the monoid's identity."""
    return np.full(shape, identity_of(monoid, dtype), work)


def combine(monoid: str, a: Array, b: Array) -> Array:
    """The monoid's operation, for every monoid but argmax and argmin."""
    out: Array = _UFUNC[monoid](a, b)
    return out


def fold(monoid: str, x: Array, count: int, ordered: bool) -> Array:
    """Fold the last `count` axes, none of them empty. `ordered`: floats sum left to right."""
    if count == 0:
        return x
    outer, inner = x.shape[: x.ndim - count], x.shape[x.ndim - count :]
    ufunc = _UFUNC[monoid]
    if prod(inner) <= _SHORT and prod(outer) >= prod(inner):
        out: Array | None = None
        for at in np.ndindex(*inner):
            part = x[(..., *at)]
            out = part if out is None else ufunc(out, part)
        assert out is not None
        return out
    if monoid == "logsumexp":
        return _logsumexp(x, count)
    axes = tuple(range(len(outer), x.ndim))
    if ordered and x.dtype.kind == "f" and monoid in ("sum", "prod"):
        flat = x.reshape((*outer, prod(inner)))
        return np.asarray(ufunc.accumulate(flat, axis=-1)[..., -1])
    return np.asarray(ufunc.reduce(x, axis=axes, dtype=x.dtype))


def _logsumexp(x: Array, count: int) -> Array:
    axes = tuple(range(x.ndim - count, x.ndim))
    top = np.max(x, axis=axes, keepdims=True)
    shift = np.where(np.isinf(top), np.zeros_like(top), top)
    total = np.sum(np.exp(x - shift), axis=axes)
    return np.asarray(np.log(total) + shift.reshape(total.shape)).astype(x.dtype, copy=False)


def fold_position(monoid: str, flat: Array, allowed: Array | None) -> tuple[Array, Array, Array]:
    """Best value along the last axis, its position, and whether anything was allowed at all."""
    outer = flat.shape[:-1]
    find: Callable[..., Array] = np.argmax if monoid == "argmax" else np.argmin
    if allowed is None:
        place = find(flat, axis=-1)
        value = np.take_along_axis(flat, place[..., None], -1)[..., 0]
        return value, place.astype(np.int64), np.ones(outer, np.bool_)
    if flat.dtype.kind == "f":
        worst: Any = -np.inf if monoid == "argmax" else np.inf
    elif flat.dtype.kind == "b":
        worst = monoid == "argmin"
    else:
        info = np.iinfo(flat.dtype)
        worst = info.min if monoid == "argmax" else info.max
    masked = np.where(allowed, flat, np.asarray(worst, flat.dtype))
    place = find(masked, axis=-1)
    # A refused contribution wins only if every allowed one equals the worst value: then the first.
    hit = np.take_along_axis(allowed, place[..., None], -1)[..., 0]
    place = np.where(hit, place, np.argmax(allowed, axis=-1))
    value = np.take_along_axis(flat, place[..., None], -1)[..., 0]
    return value, place.astype(np.int64), np.asarray(allowed.any(axis=-1))


def better(monoid: str, new: Array, old: Array) -> Array:
    """Does `new`, which comes later, replace `old` as the best value?"""
    beats = np.greater(new, old) if monoid == "argmax" else np.less(new, old)
    if new.dtype.kind == "f":
        beats = beats | (np.isnan(new) & ~np.isnan(old))
        beats = beats & ~np.isnan(old)
    return np.asarray(beats)


def prefix(monoid: str, x: Array, axis: int) -> Array:
    """Inclusive prefix along one axis, in order."""
    if x.shape[axis] == 0:
        return x
    return np.asarray(_UFUNC[monoid].accumulate(x, axis=axis, dtype=x.dtype))


def scatter_into(
    monoid: str | None, target: Array, place: tuple[Array, ...], values: Array
) -> None:
    """Combine `values` into `target` at `place`, in order; without a monoid the last one wins."""
    if monoid in ("argmax", "argmin"):
        raise UserError("P001", f"a scatter cannot combine by {monoid}")
    if not place:  # a scalar target: all contributions meet
        for v in values.reshape(-1):
            target[()] = v if monoid is None else _UFUNC[monoid](target[()], v)
    elif monoid is None:
        target[place] = values
    else:
        _UFUNC[monoid].at(target, place, values)
