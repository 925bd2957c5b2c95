"""The numeric policy: when is a computed tensor right.

In: a computed array, the oracle's values (floats in float64, f64 in longdouble), the naive values
(plain order in the accumulation type). Out: a `Verdict`. Invariant: SPEC section 8 is written here
and nowhere else.

* Floats: max |got - ref| <= c * max(max |naive - ref|, 8 u max |ref|), u the unit roundoff of the
  tensor's dtype, c = 4, or 16 for bilinear variants. The bound is one number per tensor, never a
  ratio per element.
* Integers and bools are equal, in their own width.
* NaN and infinity stand where the oracle or the naive evaluation has them: a value that overflows
  in plain float32 may overflow.
* Discrete results (argmax, comparisons, rounding, narrowing casts) of inexact operands are accepted
  by witness: `wiggle` holds the oracle's results with every such operand moved within its own
  bound; an element that changes there may have any value in the range that it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.ir.dtypes import DType

__all__ = ["BILINEAR", "FACTOR", "UNIT_ROUNDOFF", "Verdict", "allowed_error", "compare"]

Array = np.ndarray[Any, np.dtype[Any]]

FACTOR = 4.0
BILINEAR = 16.0  # Winograd, Strassen and other bilinear algorithms
UNIT_ROUNDOFF = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24, "f64": 2.0**-53}
_SMALLEST = {"f16": 2.0**-24, "bf16": 2.0**-133, "f32": 2.0**-149, "f64": 2.0**-1074}


@dataclass(frozen=True)
class Verdict:
    """Is the tensor right; the largest error, what was allowed, and the element that is worst."""

    ok: bool
    max_err: float
    allowed_err: float
    where: tuple[int, ...] | None = None
    message: str = ""

    def __str__(self) -> str:
        text = f"max error {self.max_err:.3g}, allowed {self.allowed_err:.3g}"
        if self.ok:
            return text
        at = "" if self.where is None else f" at {list(self.where)}"
        return f"{self.message or 'wrong'}{at}: {text}"


def allowed_error(ref: Array, naive: Array, dtype: DType, bilinear: bool = False) -> float:
    """The bound on |got - ref| for a float tensor."""
    ref, naive = np.asarray(ref), np.asarray(naive)
    both = np.isfinite(ref) & np.isfinite(naive)
    scale = float(np.max(np.abs(ref[both]), initial=0.0))
    gap = float(np.max(np.abs(naive[both].astype(ref.dtype) - ref[both]), initial=0.0))
    floor = max(8 * UNIT_ROUNDOFF[dtype.name] * scale, _SMALLEST[dtype.name])
    return (BILINEAR if bilinear else FACTOR) * max(gap, floor)


def compare(
    got: Array,
    ref: Array,
    naive: Array,
    dtype: DType,
    bilinear: bool = False,
    wiggle: Sequence[Array] = (),
    chosen: bool = False,
) -> Verdict:
    """Is `got` right, given the oracle's and the naive values of the tensor?

    chosen: an integer names a choice (argmax, top-k), so it must be one of those that were seen.
    """
    got, ref, naive = np.asarray(got), np.asarray(ref), np.asarray(naive)
    if got.shape != ref.shape:
        alike = [w for w in map(np.asarray, (naive, *wiggle)) if w.shape == got.shape]
        if alike:  # rounding decides how many elements there are
            first = alike[0].astype(ref.dtype)
            return compare(got, first, first, dtype, bilinear, alike[1:], chosen)
        message = f"the shape is {list(got.shape)} instead of {list(ref.shape)}"
        return Verdict(False, np.inf, 0.0, None, message)
    if got.dtype != dtype.np:
        return Verdict(False, np.inf, 0.0, None, f"the dtype is {got.dtype} instead of {dtype}")
    others = [w for w in map(np.asarray, wiggle) if w.shape == ref.shape]
    if naive.shape != ref.shape:
        naive = ref
    with np.errstate(all="ignore"):
        if not dtype.is_float:
            # Rounded step by step, the naive values are one more witness of what rounding decides.
            return _exact(got, ref, [*others, naive] if others else [], chosen)
        return _close(got.astype(ref.dtype), ref, naive.astype(ref.dtype), dtype, bilinear, others)


def _exact(got: Array, ref: Array, others: list[Array], chosen: bool) -> Verdict:
    bad = got != ref
    if not bad.any():
        return Verdict(True, 0.0, 0.0)
    wide = got.astype(np.float64)
    low, high = ref.astype(np.float64), ref.astype(np.float64)
    for w in others:
        low, high = np.minimum(low, w), np.maximum(high, w)
        if chosen:
            bad &= got != w
    # Half a range more: the moved operands sample what the range may be, they do not span it.
    slack = np.floor((high - low) / 2)
    outside = bad & ((wide < low - slack) | (wide > high + slack) | (low == high) | chosen)
    difference = np.abs(wide - ref.astype(np.float64))
    worst = float(np.max(difference, initial=0.0))
    if not outside.any():
        return Verdict(True, worst, worst, None, "accepted by witness")
    at = np.unravel_index(int(np.argmax(np.where(outside, difference, -1))), got.shape)
    place = tuple(map(int, at))
    message = f"{got[place]} instead of {ref[place]}, {int(outside.sum())} of {got.size} wrong,"
    return Verdict(False, float(difference[place]), 0.0, place, message)


def _close(
    got: Array, ref: Array, naive: Array, dtype: DType, bilinear: bool, others: list[Array]
) -> Verdict:
    allowed = allowed_error(ref, naive, dtype, bilinear)
    finite = np.isfinite(ref) & np.isfinite(got)
    error = np.where(finite, np.abs(got - ref), np.zeros_like(ref))
    # The class of an element: finite, NaN, +inf, -inf.
    match = _same_class(got, ref) | _same_class(got, naive)
    spread = np.zeros_like(ref)
    for w in others:
        # Beside a pole a rounding decides between infinity and what lies beyond it, often NaN.
        match |= _same_class(got, w) | (np.isinf(got) & np.isnan(w))
        spread = np.fmax(spread, np.abs(w - ref))
    limit = np.where(spread > allowed, spread * 1.5 + allowed, np.full_like(ref, allowed))
    wrong = (error > limit) | ~match
    worst = float(np.max(error, initial=0.0))
    if not wrong.any():
        return Verdict(True, worst, max(allowed, worst))
    weight = np.where(wrong, np.where(match, error, np.inf), -1)
    place = tuple(map(int, np.unravel_index(int(np.argmax(weight)), got.shape)))
    message = f"{got[place]} instead of {ref[place]}, {int(wrong.sum())} of {got.size} wrong,"
    return Verdict(False, float(weight[place]), allowed, place, message)


def _same_class(a: Array, b: Array) -> Array:
    same = np.isfinite(a) & np.isfinite(b)
    same |= np.isnan(a) & np.isnan(b)
    same |= np.isinf(a) & np.isinf(b) & (np.signbit(a) == np.signbit(b))
    return np.asarray(same)
