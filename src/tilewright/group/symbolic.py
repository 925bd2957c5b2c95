"""Which sizes of a model may stay symbolic, and the Program that keeps them.

In: a Program with dims, sizes asked for. Out: the Program whose remaining dims one build serves,
with the range and the hint that grouping and lowering may rely on; or the reason why every size
needs a build of its own. Invariant: the build serves every size in the ranges of its dims.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from tilewright.ir.program import Dim, Extern, If, Program, Size, While

__all__ = ["Scope", "scope_of_sizes"]

LEAST = 2  # below it an axis is a point, or nothing: another program
# Sizes from .. to (None: and more), and the typical one for which decisions are taken. What is
# best for a few rows, for some hundreds, for more and for thousands differs: whether operands are
# packed, how wide tiles are, what fits in which cache.
RANGES = ((LEAST, 31, 28), (32, 255, 128), (256, 2047, 768), (2048, None, 4096))


@dataclass(frozen=True)
class Scope:
    """What one build serves: sizes that are fixed in it, dims that are not, and why where none."""

    fixed: tuple[tuple[str, int], ...]
    dims: tuple[Dim, ...]
    reason: str = ""
    steady: tuple[str, ...] = ()  # dims that nobody asked to stay symbolic

    def program(self, p: Program) -> Program:
        """The program of the build."""
        bound = p.bind(dict(self.fixed)) if self.fixed else p
        return replace(bound, dims=self.dims)

    def report(self, places: Mapping[str, str] | None = None) -> list[str]:
        """What was specialised, and why: one line for each dim.

        places: where a dim stands in the inputs.
        """

        def shown(name: str) -> str:
            place = (places or {}).get(name)
            return f"{name} ({place})" if place else name

        point = f"below {LEAST} an axis is one point, or nothing"
        lines = []
        for n, v in self.fixed:
            why = "no other size was asked for" if n in self.steady else self.reason or point
            lines.append(f"{shown(n)} is fixed at {v} in this build: {why}")
        for d in self.dims:
            most = " and more" if d.hi is None else f" to {d.hi}"
            lines.append(f"{shown(d.name)} of {d.lo}{most} shares this build, decided for {d.hint}")
        return lines


def _refusal(p: Program) -> str:
    for s in p.body:
        if isinstance(s, Size):
            return f"the size {s.name} is the value of {s.source}"
        if isinstance(s, If | While):
            return "it has branches or loops"
        if isinstance(s, Extern) and s.attributes and s.function == "trimmed":
            return f"{s.function} depends on sizes"
    return ""


def scope_of_sizes(p: Program, sizes: Mapping[str, int], may_vary: Collection[str]) -> Scope:
    """The build that serves `sizes`. may_vary: names of the dims that may stay symbolic."""
    everything = tuple(sorted(sizes.items()))
    steady = tuple(n for n, _ in everything if n not in may_vary)
    if len(steady) == len(everything):
        return Scope(everything, (), "", steady)
    reason = _refusal(p)
    if reason:
        return Scope(everything, (), reason)
    found = (_part(d, sizes[d.name]) for d in p.dims if d.name in may_vary)
    dims = tuple(d for d in found if d is not None)
    kept = {d.name for d in dims}
    return Scope(tuple((n, v) for n, v in everything if n not in kept), dims, "", steady)


def _part(d: Dim, size: int) -> Dim | None:
    """The part of a dim's range that shares a build with `size`; None where nothing does."""
    for lo, hi, typical in RANGES:
        if size < lo or (hi is not None and size > hi):
            continue
        lo, hi = max(lo, d.lo), d.hi if hi is None else hi if d.hi is None else min(hi, d.hi)
        if hi is not None and hi <= lo:
            return None
        hint = d.hint if d.hint is not None and lo <= d.hint <= (hi or d.hint) else typical
        hint = max(lo, hint if hi is None else min(hint, hi))
        up = -hint % d.multiple
        hint = hint + up if hi is None or hint + up <= hi else hint - hint % d.multiple
        return replace(d, lo=lo, hi=hi, hint=hint) if hint >= lo else None
    return None
