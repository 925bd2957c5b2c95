"""The suite `doors`: what the front doors take, whether it agrees, what the first call costs.

In: the parts of suites/doors.toml. Out: the JSON of a benchmark, with one row a part. Invariants: a
slice of a part runs in processes of its own; one that fails or runs out of time leaves its part
unverified; only timed parts hold the machine's timing lock. Each part is a module of this folder
with `cases(k, n, settings)`, which runs slice k of n, and `figures(cases)` and `trouble(cases)`,
which judge what all slices found and import no framework.
"""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tilewright.tools.lock import timing_lock
from tilewright.tools.suite import Part, Suite, load_suite, unknown

if TYPE_CHECKING:
    from tilewright.tools.bench import Partial
    from tilewright.tools.rows import Options

__all__ = ["run", "section", "table"]

Case = dict[str, Any]


def run(
    suite: Suite,
    options: Options,
    partial: Partial,
    say: Callable[[str], None],
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Rows and figures of the parts that `options.only` names.

    Slices that `partial` holds are not run again. Errors: U001 where no part matches.
    """
    parts = [p for p in suite.parts if _matches(p.name, options.only)]
    if not parts:
        raise unknown("part", str(options.only), [p.name for p in suite.parts])
    settings = {"threads": options.threads, "samples": options.sample or suite.samples}
    rows = [_row(p, _slices(p, settings, partial, say), options.threads) for p in parts]
    found: dict[str, dict[str, Any]] = {
        "rows": {"value": len(rows), "unit": "rows", "how": "parts of the suite"},
        "unverified_rows": {
            "value": sum(not r["verified"] for r in rows), "unit": "rows",
            "how": "a case was wrong or crashed, or a slice failed",
        },
    }  # fmt: skip
    for part, row in zip(parts, rows, strict=True):
        found |= _module(part).figures(row["cases"])
    return rows, found


def _matches(name: str, only: str | None) -> bool:
    return only is None or any(fnmatch.fnmatch(name, p) for p in only.split(","))


def _module(part: Part) -> Any:
    return import_module(f"tilewright.tools.doors.{part.module}")


def _slices(
    part: Part, settings: Mapping[str, Any], partial: Partial, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Every slice as {"workload", "cases", "seconds"} and "error" where it failed."""
    out = []
    for k in range(part.slices):
        name = f"{part.name}[{k}/{part.slices}]"
        held = partial.rows.get(name)
        if held is None:
            held = {"workload": name, **_slice(part, k, settings)}
            partial.add(held)
        failed = f", {held['error']}" if "error" in held else ""
        say(f"{name}: {len(held['cases'])} cases, {held['seconds']:.0f} s{failed}")
        out.append(held)
    return out


def _slice(part: Part, k: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    given = json.dumps([part.module, k, part.slices, dict(settings)])
    command = [sys.executable, "-P", "-m", "tilewright.tools.doors.slice", given]
    started = time.monotonic()
    out: dict[str, Any] = {"cases": []}
    with timing_lock(f"bench --suite doors: {part.name}") if part.timed else nullcontext():
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=part.limit_s
            )
        except subprocess.TimeoutExpired:
            out["error"] = f"no answer within {part.limit_s:.0f} s"
        else:
            answers = [x for x in ended.stdout.splitlines() if x.startswith('{"cases"')]
            if answers:
                out = json.loads(answers[-1])
            else:
                last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
                out["error"] = f"exit status {ended.returncode}: {last[:300]}"
    return {**out, "seconds": round(time.monotonic() - started, 1)}


def _row(part: Part, slices: Sequence[Mapping[str, Any]], threads: int) -> dict[str, Any]:
    cases = [case for s in slices for case in s["cases"]]
    errors = [f"{s['workload']}: {s['error']}" for s in slices if "error" in s]
    trouble = errors or _module(part).trouble(cases)
    detail: dict[str, Any] = {"slices": part.slices, "failed_slices": len(errors)}
    if trouble:
        detail["error"] = "; ".join(trouble[:5])
    return {
        "suite": "doors",
        "workload": part.name,
        "category": "timed" if part.timed else "checked",
        "threads": threads,
        "outputs": "fresh",
        "verified": not trouble,
        "seconds": round(sum(s["seconds"] for s in slices), 1),
        "cases": cases,
        "rounds_us": {},
        "peers": {},
        "detail": detail,
    }


def table(result: Mapping[str, Any]) -> Any:
    """The parts as a rich table."""
    from rich.table import Table

    out = Table(box=None, pad_edge=False)
    out.add_column("part")
    for name in ("cases", "seconds", ""):
        out.add_column(name, justify="right")
    for row in result["rows"]:
        state = "" if row["verified"] else f"UNVERIFIED: {row['detail']['error'][:150]}"
        out.add_row(row["workload"], str(len(row["cases"])), f"{row['seconds']:.0f}", state)
    return out


def section(data: Mapping[str, Any]) -> list[str]:
    """The parts as Markdown: a table of them, then what each has to name."""
    lines = ["| part | cases | |", "|---|---:|---|"]
    for row in data["rows"]:
        state = "verified" if row["verified"] else f"unverified: {row['detail']['error'][:150]}"
        state = state.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {row['workload']} | {len(row['cases'])} | {state} |")
    lines.append("")
    parts = {p.name: p for p in load_suite("doors").parts}
    for row in data["rows"]:
        lines += _module(parts[row["workload"]]).page(row["cases"])
    return lines
