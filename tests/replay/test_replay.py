"""Process replay: emitting again gives the same text, and a changed text shows."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def replay() -> Any:
    spec = importlib.util.spec_from_file_location("replay", ROOT / "scripts" / "replay.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEXT = """program p(a: f32[9, 12], b: f32[12, 21]):
  y: f32[i<9, j<21] = sum(k<12) a[i, k] * b[k, j]
  return y
"""


def test_what_is_stored_is_emitted_again(replay: Any, tmp_path: Path) -> None:
    hashes, schedules = {}, {}
    for target in replay.TARGETS:
        for name, schedule, text in replay.emitted(TEXT, target, {}):
            hashes[name] = replay.digest(text)
            if name.endswith("/sampled"):
                schedules[name.removesuffix("/sampled")] = schedule
    assert len(hashes) == 2 * len(replay.TARGETS)
    entry = {"program": TEXT, "schedules": schedules, "hashes": hashes}
    store = tmp_path / "corpus.json"
    store.write_text(json.dumps({"commit": "", "entries": {"m": entry}}))
    assert replay.changed(store) == []
    first = next(iter(hashes))
    hashes[first] = "0" * 32
    store.write_text(json.dumps({"commit": "", "entries": {"m": entry}}))
    assert replay.changed(store) == [f"m {first}"]


def test_the_stored_corpus_can_be_read(replay: Any) -> None:
    """Its hashes are those of the last release: they may differ now, its programs may not be gone."""
    entries = json.loads(replay.STORE.read_text())["entries"]
    assert len(entries) >= 30
    name = next(iter(entries))
    found = list(replay.emitted(entries[name]["program"], "x86-avx2", entries[name]["schedules"]))
    assert found
