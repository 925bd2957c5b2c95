"""What a search tells while it runs.

In: nothing. Out: `TuningEvent`. Invariant: importing it imports nothing that is heavy, so that a
display needs no compiler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TuningEvent"]


@dataclass(frozen=True)
class TuningEvent:
    """State of the search, told once a second: `ratio` is default time over best time, `left_s`
    what is left in all.
    """

    task: str
    done: int = 0
    total: int | None = None
    best_us: float | None = None
    ratio: float | None = None
    rejected: Mapping[str, int] = field(default_factory=dict)
    elapsed_s: float = 0.0
    left_s: float | None = None
    finished: bool = False
    trials: int = 0
    kernels_done: int = 0
    kernels_total: int = 0
