"""Files that are made to do harm: each gives the error that is listed beside it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.tools.doors.hostile import Hostile, hostile_files, outcome_of


@pytest.mark.parametrize("file", hostile_files(), ids=lambda file: file.name.replace("\0", "0"))
def test_hostile_files(file: Hostile, tmp_path: Path) -> None:
    outcome, detail = outcome_of(file, tmp_path / "case")
    assert outcome == "typed", detail
