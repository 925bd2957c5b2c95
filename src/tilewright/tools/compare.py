"""`bench compare A B`: two runs side by side, row by row.

In: two files that `bench --json` wrote. Out: per row the time of A over the time of B (above 1: B
is faster), with a band from the spread of the rounds. Invariant: rows are matched by workload,
sizes and threads; what has no partner is named.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilewright.errors import UserError

__all__ = ["compare", "read", "table"]


def read(path: Path) -> dict[str, Any]:
    """Read a benchmark's JSON. Errors: U003 when it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data["rows"], list) or not isinstance(data["figures"], dict):
            raise TypeError("rows or figures are missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "U003",
            f"{path} is not the JSON of a benchmark: {error}",
            hint="give two files that `tilewright bench --json` wrote",
        ) from None
    return dict(data)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    sizes = json.dumps(row.get("dims"), sort_keys=True)
    return row["workload"], sizes, row["threads"], row.get("outputs", "bound")


def _spread(times: list[float]) -> float:
    """Half of the middle half of the rounds, as a share of the median."""
    if len(times) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / middle


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Match the rows of two runs.

    A row is `faster` or `slower` only when the ratio leaves the band of both runs' spreads.
    """
    others = {_key(row): row for row in second["rows"]}
    rows, missing = [], []
    for row in first["rows"]:
        other = others.pop(_key(row), None)
        if other is None:
            missing.append({"workload": row["workload"], "only_in": "A"})
            continue
        out: dict[str, Any] = {"workload": row["workload"], "threads": row["threads"]}
        out.update(a_us=row["ours_us"], b_us=other["ours_us"])
        if not (row["verified"] and other["verified"] and row["ours_us"] and other["ours_us"]):
            out.update(ratio=None, band=None, verdict="unverified")
        else:
            ratio = row["ours_us"] / other["ours_us"]
            band = _spread(row["rounds_us"]["ours"]) + _spread(other["rounds_us"]["ours"])
            verdict = "same"
            if ratio > 1 + band:
                verdict = "faster"
            elif ratio < 1 / (1 + band):
                verdict = "slower"
            out.update(ratio=ratio, band=band, verdict=verdict)
        rows.append(out)
    missing += [{"workload": row["workload"], "only_in": "B"} for row in others.values()]
    figures = {
        name: {"a": first["figures"][name]["value"], "b": second["figures"][name]["value"]}
        for name in first["figures"]
        if name in second["figures"]
    }
    return {"rows": rows, "missing": missing, "figures": figures}


def table(result: Mapping[str, Any]) -> Any:
    """The comparison as a rich table."""
    from rich.table import Table

    from tilewright.tools.progress import format_time_us

    out = Table(box=None, pad_edge=False)
    out.add_column("workload")
    for name in ("threads", "A", "B", "A/B", "band", "B is"):
        out.add_column(name, justify="right")
    for row in result["rows"]:
        out.add_row(
            row["workload"],
            str(row["threads"]),
            format_time_us(row["a_us"]),
            format_time_us(row["b_us"]),
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
            "-" if row["band"] is None else f"{row['band']:.0%}",
            row["verdict"],
        )
    for row in result["missing"]:
        out.add_row(row["workload"], "", "", "", "", "", f"only in {row['only_in']}")
    return out
