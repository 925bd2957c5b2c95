"""Shares of a recurrence: an axis of each of its definitions along which positions never meet.

In: a kernel that is a recurrence, and a number of parts. Out: by definition the axis whose blocks
run all their steps apart from each other, as the sequences of a batch do. Invariant: whatever a
position reads of the recurrence itself, in this step or an earlier one, has the same position.
"""

from __future__ import annotations

from math import ceil

from tilewright.ir.extent import is_symbolic
from tilewright.ir.kernel import Kernel, int_extent

__all__ = ["share_of", "shared_out"]

_TOGETHER = 16  # elements that lie side by side and are written by one thread: a cache line


def share_of(n: int, parts: int) -> int:
    """Positions of an axis of `n` that one of at most `parts` parts has."""
    return max(1, ceil(n / max(1, parts)))


def shared_out(kernel: Kernel, parts: int) -> dict[str, str]:
    """The axis of each definition that `parts` threads share most evenly, the outermost of several;
    nothing where there is none, or where parts would write to the same cache lines.
    """
    if not kernel.sequence or parts < 2:
        return {}
    best: tuple[float, dict[str, str]] | None = None
    first = next(iter(kernel.definitions.values()))
    for a in first.axes:
        n = int_extent(a.extent)
        if a.name == kernel.sequence or is_symbolic(n) or n < 2:
            continue
        block = share_of(n, parts)
        uneven = block * parts / n
        if best is not None and uneven >= best[0]:
            continue
        found = _followed(kernel, first.name, a.name)
        if found and not _is_close(kernel, found, block):
            best = uneven, found
    return best[1] if best is not None else {}


def _is_close(kernel: Kernel, axes: dict[str, str], block: int) -> bool:
    """Does a block hold less than a cache line side by side?"""
    last = [kernel.definitions[m].axes[-1].name == a for m, a in axes.items()]
    return block < _TOGETHER and any(last)


def _followed(kernel: Kernel, name: str, axis: str) -> dict[str, str]:
    """By definition, the axis that goes with `axis` of `name` through all reads; nothing where one
    of them reads other positions.
    """
    definitions = kernel.definitions
    out = {name: axis}
    extent = {a.name: a.extent for a in definitions[name].axes}[axis]
    reads = [
        (d, r) for d in definitions.values() for r in d.reads() if r.attr[0] in definitions
    ]
    while True:
        before = len(out)
        for d, r in reads:
            source = definitions[r.attr[0]]
            subscripts = dict(zip((a.name for a in source.axes), r.args, strict=False))
            if source.name in out:
                at = subscripts[out[source.name]]
                own = {a.name for a in d.axes}
                if at.op != "index" or at.attr not in own:
                    return {}
                if out.setdefault(d.name, at.attr) != at.attr:
                    return {}
            elif d.name in out:
                own_axis = out[d.name]
                same = [a for a, s in subscripts.items() if s.op == "index" and s.attr == own_axis]
                if len(same) != 1:
                    return {}
                out[source.name] = same[0]
        if len(out) == before:
            break
    alike = all(
        a.extent == extent
        for m, name in out.items()
        for a in definitions[m].axes
        if a.name == name
    )
    return out if alike and len(out) == len(definitions) else {}
