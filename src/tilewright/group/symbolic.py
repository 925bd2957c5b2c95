"""Which sizes of a model may stay symbolic, and the Program that keeps them.

In: a Program with dims, sizes asked for. Out: the Program whose remaining dims one build serves,
with the range and the hint that grouping and lowering may rely on; or the reason why every size
needs a build of its own. Invariant: the build serves every size in the ranges of its dims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tilewright.ir.program import Dim, Extern, If, Program, Size, While

__all__ = ["Scope", "scope_of_sizes"]

LEAST = 2  # below it an axis is a point, or nothing: another program
HINT = 128  # the least hint: decisions for a range are not taken for a small size


@dataclass(frozen=True)
class Scope:
    """What one build serves: sizes that are fixed in it, dims that are not, and why where none."""

    fixed: tuple[tuple[str, int], ...]
    dims: tuple[Dim, ...]
    reason: str = ""

    def program(self, p: Program) -> Program:
        """The program of the build."""
        bound = p.bind(dict(self.fixed)) if self.fixed else p
        return replace(bound, dims=self.dims)


def _refusal(p: Program) -> str:
    for s in p.body:
        if isinstance(s, Size):
            return f"the size {s.name} is the value of {s.source}"
        if isinstance(s, If | While):
            return "it has branches or loops"
        if isinstance(s, Extern) and s.attributes and s.function == "trimmed":
            return f"{s.function} depends on sizes"
    return ""


def scope_of_sizes(p: Program, sizes: Mapping[str, int], is_symbolic: bool) -> Scope:
    """The build that serves `sizes`. is_symbolic: dims may stay symbolic."""
    everything = tuple(sorted(sizes.items()))
    if not is_symbolic or not p.dims:
        return Scope(everything, ())
    reason = _refusal(p)
    if reason:
        return Scope(everything, (), reason)
    loose = [
        d for d in p.dims if sizes[d.name] >= LEAST and (d.hi is None or d.hi > max(d.lo, LEAST))
    ]
    kept = {d.name for d in loose}
    dims = tuple(
        replace(
            d,
            lo=max(d.lo, LEAST),
            hint=d.hint if d.hint is not None and d.hint >= LEAST else _hint(d, sizes[d.name]),
        )
        for d in loose
    )
    return Scope(tuple((n, v) for n, v in everything if n not in kept), dims)


def _hint(d: Dim, seen: int) -> int:
    """A typical size: the first one seen, no tiny one."""
    value = max(seen, HINT)
    value = value if d.hi is None else min(value, d.hi)
    return value // d.multiple * d.multiple or d.multiple
