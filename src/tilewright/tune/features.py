"""From a schedule to the numbers that the analytic cost needs.

In: a Kernel, its Space. Out: `KernelCost`: log gain over the default, canonical rows. Invariant:
schedules with equal canonical rows lower to equal nests.
"""

from __future__ import annotations

from tilewright.ir.kernel import Kernel
from tilewright.machine.target import Target
from tilewright.schedule.roles import StageRoles, stage_roles
from tilewright.schedule.space import Space

__all__ = ["KernelCost"]

Rows = tuple[int, ...]


class KernelCost:
    """Analytic cost of the schedules of one kernel."""

    def __init__(self, kernel: Kernel, space: Space, target: Target, threads: int) -> None:
        self.kernel, self.space, self.target, self.threads = kernel, space, target, threads
        self._number = {
            n: (k, i) for k, g in enumerate(space.groups) for i, n in enumerate(g.names)
        }

    def value(self, rows: Rows, name: str) -> object:
        k, i = self._number[name]
        return self.space.groups[k].rows[rows[k]][i]

    def canonical(self, rows: Rows) -> Rows:
        """Parameters that no loop reads, at their defaults."""
        out = list(rows)
        for k, g in enumerate(self.space.groups):
            if len(g.names) != 1:
                continue
            stage, _, rest = g.names[0].partition(".")
            if rest.startswith("tile."):
                order = self._number.get(f"{stage}.order")
                role = rest[len("tile.") :]
                if order is not None:
                    text = str(self.value(rows, f"{stage}.order"))
                    if f"{role}:" not in text:
                        out[k] = g.start
            elif g.names[0] == "chunk" and self.threads == 1:
                out[k] = g.start
        return tuple(out)

    def is_contraction(self, stage: int) -> bool:
        return self._roles(stage).is_contraction

    def _roles(self, stage: int) -> StageRoles:
        return stage_roles(self.kernel, stage)

    def is_reasonable(self, rows: Rows) -> bool:
        return True

    def log_gain(self, rows: Rows) -> float:
        """Log of (default cost / cost)."""
        return 0.0
