"""pytest plugin: which functions of the package each test calls, for `mutation_check.py`.

    python -m pytest -p reach        with TILEWRIGHT_REACH=OUT.json, this folder on PYTHONPATH

Writes {"test id": {"seconds": s, "functions": ["lower/tiles.py:120", ...]}}; a function is named by its
file and first line. Under xdist every worker writes a file of its own, OUT.json.WORKER. Functions that
only run in child processes are not seen.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

FOLDER = os.sep + os.path.join("src", "tilewright") + os.sep
found: dict[str, dict[str, Any]] = {}
_now: set[Any] = set()
_setup: dict[str, set[Any]] = {}


def _trace(frame: FrameType, event: str, argument: Any) -> None:
    _now.add(frame.f_code)


def _names(codes: set[Any]) -> set[str]:
    return {
        f"{c.co_filename.split(FOLDER)[1]}:{c.co_firstlineno}"
        for c in codes
        if FOLDER in c.co_filename
    }


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _now.clear()
    start = time.perf_counter()
    threading.settrace(_trace)
    sys.settrace(_trace)
    yield
    sys.settrace(None)
    threading.settrace(None)  # type: ignore[arg-type]
    # What fixtures of a module do counts for every test of the module.
    module = item.nodeid.split("::")[0]
    names = _names(_now)
    shared = _setup.setdefault(module, set())
    if not shared:
        shared |= names
    found[item.nodeid] = {
        "seconds": round(time.perf_counter() - start, 3),
        "functions": sorted(names),
        "module_first": sorted(shared - names),
    }


def pytest_sessionfinish(session: pytest.Session) -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    path = os.environ["TILEWRIGHT_REACH"] + (f".{worker}" if worker else "")
    if found:
        Path(path).write_text(json.dumps(found))
