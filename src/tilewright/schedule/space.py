"""Space: which schedules a kernel has, declared as groups of coupled parameters.

In: groups (explicit tables of legal rows). Out: `Space`: default, sampling, neighbours, counting,
encoding. Invariants: the space is the product of its groups, so counting and uniform sampling are
exact; every point is legal; the default is a point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from tilewright.schedule.schedule import Schedule, Value

__all__ = ["SPACE_VERSION", "Group", "Space"]

SPACE_VERSION = 2  # part of every record's key: raise it when the meaning of a parameter changes
KINDS = ("tile", "order", "choice", "flag")


@dataclass(frozen=True)
class Group:
    """Parameters that are decided together: `rows` are the legal tuples, `start` the number of the
    default one.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    start: int = 0

    @cached_property
    def index(self) -> dict[tuple[Value, ...], int]:
        return {r: k for k, r in enumerate(self.rows)}

    def near(self, k: int) -> list[int]:
        """Rows that differ from row `k` in one parameter only; any other row of a small table."""
        here = self.rows[k]
        out = []
        for j, row in enumerate(self.rows):
            different = [i for i, (x, y) in enumerate(zip(here, row, strict=True)) if x != y]
            if len(different) == 1 or (len(self.rows) <= 8 and j != k):
                out.append(j)
        return out or [j for j in range(len(self.rows)) if j != k]


@dataclass(frozen=True)
class Space:
    """The product of its groups."""

    groups: tuple[Group, ...]

    @property
    def cardinality(self) -> int:
        """How many schedules there are."""
        return prod(len(g.rows) for g in self.groups)

    @cached_property
    def key(self) -> str:
        """Content key of the space."""
        return hashlib.sha256(repr((SPACE_VERSION, self.groups)).encode()).hexdigest()

    def at(self, rows: tuple[int, ...]) -> Schedule:
        """The schedule of one row number per group."""
        values: dict[str, Value] = {}
        for g, k in zip(self.groups, rows, strict=True):
            values.update(zip(g.names, g.rows[k], strict=True))
        return Schedule.of(values)

    def rows_of(self, s: Schedule) -> tuple[int, ...] | None:
        """The row numbers of a schedule, None where it is not a point of this space."""
        out = []
        for g in self.groups:
            k = g.index.get(tuple(s.values.get(n, "?missing") for n in g.names))
            if k is None:
                return None
            out.append(k)
        return tuple(out)

    def contains(self, s: Schedule) -> bool:
        return self.rows_of(s) is not None

    def default(self) -> Schedule:
        """The legal default."""
        return self.at(tuple(g.start for g in self.groups))

    def sample(self, rng: np.random.Generator) -> Schedule:
        """A uniform random schedule."""
        return self.at(tuple(int(rng.integers(len(g.rows))) for g in self.groups))

    def neighbours(self, s: Schedule) -> Iterator[Schedule]:
        """Schedules that differ in one group, by a small step in it."""
        rows = self.rows_of(s)
        if rows is None:
            return
        for i, g in enumerate(self.groups):
            for j in g.near(rows[i]):
                yield self.at((*rows[:i], j, *rows[i + 1 :]))

    def encode(self, s: Schedule) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """One number per parameter: log2 of a tile, the rank of anything else."""
        out = []
        for g in self.groups:
            ranks = [sorted({r[i] for r in g.rows}, key=str) for i in range(len(g.names))]
            for i, (n, kind) in enumerate(zip(g.names, g.kinds, strict=True)):
                v = s.values[n]
                out.append(
                    float(np.log2(v + 1))
                    if kind == "tile" and isinstance(v, int)
                    else float(ranks[i].index(v))
                )
        return np.asarray(out, np.float64)
