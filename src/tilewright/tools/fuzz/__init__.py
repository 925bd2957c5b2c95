"""`tilewright fuzz`: campaigns of generated cases, run in children that may die."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tilewright.tools.fuzz.figures import lines, table

__all__ = ["lines", "run", "table"]


def run(
    *,
    seed: int = 0,
    seconds: float | None = None,
    count: int | None = None,
    corpus: Path | None = None,
    kinds: Sequence[str] = (),
    targets: Sequence[str] = (),
    threads: int = 2,
) -> dict[str, Any]:
    """One run of a campaign with a progress bar; the result as `--json` shows it.

    Errors: U003 for a corpus that cannot be used; TargetError where no target runs here.
    """
    from tilewright.tools.fuzz import campaign
    from tilewright.tools.progress import bar

    settings = campaign.Settings(
        kinds=tuple(kinds) or campaign.available_kinds(),
        seed=seed,
        seconds=60.0 if seconds is None and count is None else seconds,
        count=count,
        targets=tuple(targets) or campaign.ALL_TARGETS,
        threads=threads,
        corpus=corpus,
    )
    with bar("fuzz") as show:
        return campaign.run(settings, show)
