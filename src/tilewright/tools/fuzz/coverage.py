"""Which branches of lowering and code generation this process has taken.

In: nothing; the package coverage of the extra `dev`. Out: `Branches`. Invariants: measuring starts
before those packages are imported; branches taken in earlier processes of a campaign count where
the file of its arcs is given; `codegen/mathlib/harness.py`, which compiled models do not use, is
left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["Branches", "current", "start"]

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("lower", "codegen")
_LEFT_OUT = ("codegen/mathlib/harness.py",)
_active: Branches | None = None


class Branches:
    """Branch coverage of this process; `file` keeps the arcs between processes."""

    def __init__(self, file: Path | None) -> None:
        """Errors: ModuleNotFoundError where the package coverage is missing."""
        import coverage

        self._coverage: Any = coverage.Coverage(
            data_file=None if file is None else str(file),
            branch=True,
            include=[str(_ROOT / p / "*") for p in _PACKAGES],
            omit=[str(_ROOT / p) for p in _LEFT_OUT],
            config_file=False,
            messages=False,
        )
        self._file = file
        if file is not None and file.is_file():
            self._coverage.load()
        self._arcs = 0
        self._coverage.start()

    def grew(self) -> bool:
        """Were arcs taken since the last call that had not been taken before?"""
        data = self._coverage.get_data()
        arcs = sum(len(data.arcs(f) or ()) for f in data.measured_files())
        grew = arcs > self._arcs
        self._arcs = arcs
        return grew

    def facts(self) -> dict[str, Any]:
        """Branches taken, all branches, their share, and the worst files; saves the arcs."""
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "report.json")
            self._coverage.json_report(outfile=out, ignore_errors=True)
            report = json.loads(Path(out).read_text(encoding="utf-8"))
        if self._file is not None:
            self._coverage.save()
        total = report["totals"]
        files = {}
        for path, f in report["files"].items():
            own = "/".join(Path(path).parts[-2:])
            files[own] = {
                "taken": f["summary"]["covered_branches"],
                "all": f["summary"]["num_branches"],
                "missing": f["missing_branches"],
            }
        return {
            "taken": total["covered_branches"],
            "all": total["num_branches"],
            "share": total["covered_branches"] / max(1, total["num_branches"]),
            "files": files,
        }


def _of_these_sources(file: Path) -> Path:
    """Arcs are lines of source, so every version of it has a file of its own."""
    held = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            held.update(path.read_bytes())
    return file.with_name(f"{file.name}-{held.hexdigest()[:12]}")


def start(file: Path | None) -> Branches:
    """Measure from now on; `file` keeps what is taken, beside those of other versions."""
    global _active
    _active = Branches(None if file is None else _of_these_sources(file))
    return _active


def current() -> Branches | None:
    """What measures this process, if anything does."""
    return _active
