"""What the parts of the suite `doors` share: figures, and the numeric policy against a reference.

In: arrays, counts. Out: figures as the JSON has them, and what is wrong with a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["counted", "difference", "figure", "named", "share"]


def figure(value: float | None, unit: str, how: str) -> dict[str, Any]:
    """One figure."""
    return {"value": value, "unit": unit, "how": how}


def share(part: int, whole: int, how: str) -> dict[str, Any]:
    """A share of a count; nothing counted has none."""
    return figure(part / whole if whole else None, "share", f"{part} of {whole}: {how}")


def counted(cases: Iterable[Mapping[str, Any]], *outcomes: str) -> int:
    """Cases with one of these outcomes."""
    return sum(c["outcome"] in outcomes for c in cases)


def named(cases: Iterable[Mapping[str, Any]], *outcomes: str) -> list[str]:
    """`name: detail` of the cases with one of these outcomes."""
    return [f"{c['name']}: {c.get('detail', '')}" for c in cases if c["outcome"] in outcomes]


def difference(got: Array, peer: Array, exact: Array) -> str:
    """What is wrong with `got`, or nothing: the numeric policy with `peer` for the plain evaluation
    in the same precision, and `exact` for the reference. Integers must be equal to `exact`.
    """
    import numpy as np

    if got.shape != exact.shape:
        return f"shape {list(got.shape)}, not {list(exact.shape)}"
    if exact.dtype.kind in "biu":
        count = int((got != exact).sum())
        return f"{count} of {exact.size} elements differ" if count else ""
    if not exact.size:
        return ""
    x, y, e = (np.asarray(a, np.float64) for a in (peer, got, exact))
    if not np.array_equal(np.isnan(e), np.isnan(y)) or not np.array_equal(np.isinf(e), np.isinf(y)):
        return "it is not finite in other places"
    ok = np.isfinite(e) & np.isfinite(x)
    if not ok.any():
        return ""
    top = float(np.abs(e[ok]).max())
    allowed = 4 * max(float(np.abs(x - e)[ok].max()), 8 * 2.0**-24 * top)
    error = float(np.abs(y - e)[ok].max())
    return "" if error <= allowed else f"off by {error:.3g}, allowed {allowed:.3g}"
