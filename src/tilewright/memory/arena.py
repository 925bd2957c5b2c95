"""Place the buffers of a Plan in one arena.

In: sizes, lifetimes in steps, and classes of buffers that may share a place only with their like.
Out: byte offsets and the arena's size. Invariants: two buffers that live at the same time never
overlap; offsets are 64-byte aligned; a buffer with a halo shares memory only with buffers of the
same layout, so what is filled once stays filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Lifetime", "Placement", "place_buffers"]

ALIGN = 64


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `bytes` that is needed from step `first` to step `last`; `kind` is empty or its
    sharing class.
    """

    name: str
    bytes: int
    first: int
    last: int
    kind: str = ""


@dataclass(frozen=True)
class Placement:
    """Byte offset of every buffer, and the arena's size; `lower_bound` is the most that is live at
    once.
    """

    offsets: dict[str, int]
    size: int
    lower_bound: int


def _round(n: int) -> int:
    return -(-max(n, 1) // ALIGN) * ALIGN


def place_buffers(lifetimes: Sequence[Lifetime]) -> Placement:
    """Best-fit in three orders, the smallest arena wins."""
    kinds: dict[str, list[Lifetime]] = {}
    plain: list[Lifetime] = []
    for x in lifetimes:
        if x.kind:
            kinds.setdefault(x.kind, []).append(x)
        else:
            plain.append(x)
    orders = (
        sorted(plain, key=lambda x: (-x.bytes, x.first)),
        sorted(plain, key=lambda x: (-(x.last - x.first + 1) * x.bytes, x.first)),
        sorted(plain, key=lambda x: (x.first, -x.bytes)),
    )
    best: tuple[int, dict[str, int]] | None = None
    for order in orders:
        size, offsets = _best_fit(order)
        if best is None or size < best[0]:
            best = (size, offsets)
    assert best is not None
    size, offsets = best
    for group in kinds.values():  # slots of one layout each, behind the shared part
        slots: list[tuple[int, int]] = []  # (offset, free from step)
        for x in sorted(group, key=lambda x: x.first):
            k = next((k for k, (_, free) in enumerate(slots) if free <= x.first), None)
            if k is None:
                slots.append((size, 0))
                size += _round(x.bytes)
                k = len(slots) - 1
            offsets[x.name] = slots[k][0]
            slots[k] = (slots[k][0], x.last + 1)
    steps = sorted({x.first for x in lifetimes})
    bound = max(
        (sum(_round(x.bytes) for x in lifetimes if x.first <= t <= x.last) for t in steps),
        default=0,
    )
    return Placement(offsets, size, bound)


def _best_fit(order: Sequence[Lifetime]) -> tuple[int, dict[str, int]]:
    placed: list[tuple[int, int, Lifetime]] = []
    offsets: dict[str, int] = {}
    top = 0
    for x in order:
        need = _round(x.bytes)
        busy = sorted((a, b) for a, b, y in placed if y.first <= x.last and x.first <= y.last)
        best, at = None, 0
        for a, b in busy:
            if a - at >= need and (best is None or a - at < best[0]):
                best = (a - at, at)
            at = max(at, b)
        start = best[1] if best is not None else at
        offsets[x.name] = start
        placed.append((start, start + need, x))
        top = max(top, start + need)
    return top, offsets
