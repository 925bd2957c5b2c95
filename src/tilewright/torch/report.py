"""What became of the operators of a graph.

In: counts by operator. Out: `Report`, which prints. Invariant: every call is native or handed over.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Report"]


@dataclass
class Report:
    """What became of the operator calls of one graph.

    native: calls compiled, by operator. handed: calls run by PyTorch, by operator. reasons: why, by
    operator. graphs: compiled parts.
    """

    native: Counter[str] = field(default_factory=Counter)
    handed: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    graphs: int = 0

    @property
    def calls(self) -> int:
        """All operator calls."""
        return self.native.total() + self.handed.total()

    def __str__(self) -> str:
        if not self.handed:
            return f"all {self.calls} operator calls compiled, in {self.graphs} graph(s)"
        lines = [
            f"{self.native.total()} of {self.calls} operator calls compiled, in {self.graphs} "
            "graph(s); run by PyTorch:"
        ]
        for name, count in self.handed.most_common():
            times = f"{count} times " if count > 1 else ""
            lines.append(f"  {name}: {times}({self.reasons.get(name, '')})")
        return "\n".join(lines)

    def add(self, other: Report) -> None:
        """Count what another report counts too."""
        self.native.update(other.native)
        self.handed.update(other.handed)
        self.reasons |= other.reasons
        self.graphs += other.graphs
