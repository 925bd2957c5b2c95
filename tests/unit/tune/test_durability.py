"""Short forms of the campaigns in scripts/: kill -9 of writers, and mutated ONNX files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def run(script: str, tmp_path: Path, *options: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), *options, "--json", str(out)],
        env=env, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_kill_9_at_random_times_loses_nothing(tmp_path: Path) -> None:
    found = run("kill_campaign.py", tmp_path, "--kills", "15", "--tuners", "0", "--seed", "5")
    assert found["kills"] == 15
    assert found["committed_records"] > 20
    assert found["wrong"] == []


@pytest.mark.slow
def test_a_few_mutated_onnx_files(tmp_path: Path) -> None:
    found = run("mutate_onnx.py", tmp_path, "--count", "60", "--seed", "11")
    assert sum(found["outcomes"].values()) == 60
    assert found["wrong"] == []
