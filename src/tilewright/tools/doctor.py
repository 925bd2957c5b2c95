"""`doctor`: what is in force and from where, what is installed, and what is missing.

In: the settings, the installed distributions, the machine. Out: plain data, and tables of it.
Invariant: nothing here changes anything, and one broken part never hides the others.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.config import current, settings
from tilewright.errors import TilewrightError
from tilewright.tools import wiring

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["examine", "show"]

CORE = ("llvmlite", "numpy", "ml_dtypes", "rich", "click", "platformdirs", "threadpoolctl")
EXTRAS = {
    "onnx": ("onnx",),
    "torch": ("torch",),
    "solver": ("ortools",),
    "demo": ("onnx", "onnxruntime", "pillow"),
    "peers": ("onnx", "onnxruntime", "torch"),
    "dev": ("pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"),
}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _part(problems: list[str], title: str, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return look()
    except TilewrightError as error:
        problems.append(f"{title}: [{error.code}] {error.message}")
        return {"error": error.message, "next": error.hint}
    except ImportError as error:
        problems.append(f"{title}: {error}")
        return {"error": str(error), "next": "install tilewright again"}


def _folder(path: Path) -> dict[str, Any]:
    parent = path
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    writable = parent.is_dir() and os.access(parent, os.W_OK)
    if writable:
        try:
            with tempfile.TemporaryFile(dir=parent):
                pass
        except OSError:
            writable = False
    size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"path": str(path), "writable": writable, "bytes": size_bytes}


def _database(path: Path) -> dict[str, Any]:
    from tilewright.tune.database import SCHEMA_VERSION, Database

    if not path.exists():
        return {"path": str(path), "records": 0, "schema": SCHEMA_VERSION}
    with Database(path, read_only=True) as database:
        return {
            "path": str(path),
            "records": len(database),
            "tasks": len(database.tasks()),
            "schema": SCHEMA_VERSION,
        }


def examine() -> dict[str, Any]:
    """Everything that `doctor` knows; `problems` lists what needs attention."""
    problems: list[str] = []
    rows = [
        {
            "name": row.name,
            "value": row.value,
            "origin": row.origin,
            "variable": row.variable,
            "doc": row.doc,
        }
        for row in settings()
    ]
    core = {name: _version(name) for name in CORE}
    for name, version in core.items():
        if version is None:
            problems.append(f"{name} is not installed: pip install {name}")
    extras = {
        extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()
    }
    config = current()
    cache = _folder(config.cache_dir)
    if not cache["writable"]:
        problems.append(
            f"the cache folder {config.cache_dir} cannot be written: set TILEWRIGHT_CACHE_DIR"
        )
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        problems.append(
            f"{platform.system()} on {platform.machine()} is not supported yet: "
            "this release runs on Linux, x86-64"
        )
    return {
        "version": wiring.version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "sqlite": sqlite3.sqlite_version,
        "machine": _part(problems, "machine", wiring.machine_facts),
        "settings": rows,
        "core": core,
        "extras": extras,
        "cache": cache,
        "database": _part(problems, "database", lambda: _database(config.database_path)),
        "problems": problems,
    }


def show(facts: Mapping[str, Any], output: Console) -> None:
    """Print the facts as tables."""
    from rich.table import Table

    output.print(
        f"tilewright {facts['version']}, Python {facts['python']}, {facts['system']}", markup=False
    )
    machine = ", ".join(f"{name} {value}" for name, value in facts["machine"].items())
    output.print(f"machine: {machine}", markup=False)
    cache, database = facts["cache"], facts["database"]
    output.print(f"cache: {cache['path']} ({cache['bytes'] / 2**20:.1f} MiB)", markup=False)
    if "records" in database:
        output.print(f"database: {database['path']} ({database['records']} records)", markup=False)
    table = Table(box=None, pad_edge=False)
    for name in ("setting", "value", "from", "variable"):
        table.add_column(name, overflow="fold")
    for row in facts["settings"]:
        value = "" if row["value"] is None else str(row["value"])
        table.add_row(row["name"], value, row["origin"], row["variable"])
    output.print()
    output.print(table)
    output.print()
    for extra, found in facts["extras"].items():
        missing = [name for name, version in found.items() if version is None]
        have = ", ".join(f"{name} {version}" for name, version in found.items() if version)
        line = f"extra {extra}: {have or 'nothing installed'}"
        if missing:
            line += f"; missing {', '.join(missing)}: pip install 'tilewright[{extra}]'"
        output.print(line, markup=False)
    for problem in facts["problems"]:
        output.print(f"problem: {problem}", markup=False, style="red")
    if not facts["problems"]:
        output.print("no problems found")
