"""Numbers made from the rounds of a benchmark: ratios, rooflines, and the figures of a suite.

In: rows as the JSON has them. Out: `{name: {"value", "unit", "how"}}`. Invariant: no ratio comes
from an unverified row; ratios are peer time over our time, so above 1 we are faster.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["best_peer", "bounds_us", "figures", "ratio_to", "roofline_us", "share_of_roofline"]
__all__ += ["untuned_ratio"]

AT_BEST_PEER = 0.97
# Integer and 16-bit products count at the rate of their own dot instructions where there are some.
_PEAKS = {"f64": "f64_gflops", "bf16": "bf16_gflops", "u8": "vnni_gops", "i8": "vnni_gops"}
SCALES_FROM_US = 1000.0
Row = Mapping[str, Any]


def roofline_us(
    flops: float, read_bytes: float, written_bytes: float, probes: Mapping[str, float], dtype: str
) -> float | None:
    """The longer of operations over the peak and bytes over the bandwidth of this mix."""
    both = bounds_us(flops, read_bytes, written_bytes, probes, dtype)
    return None if both is None else max(both)


def bounds_us(
    flops: float, read_bytes: float, written_bytes: float, probes: Mapping[str, float], dtype: str
) -> tuple[float, float] | None:
    """Operations over the peak, and bytes over the bandwidth of this read:write mix.

    The bandwidth of a mix is interpolated, in time per byte, between reading only, two reads a
    write (triad), and one (copy); writing more than reading counts as copy.
    """
    peak = probes.get(_PEAKS.get(dtype, "fma_gflops")) or probes.get("fma_gflops")
    names = ("read_gbs", "triad_nt_gbs", "copy_nt_gbs")
    if not peak or not all(probes.get(name) for name in names):
        return None
    total = read_bytes + written_bytes
    share = written_bytes / total if total else 0.0
    points = [(0.0, probes["read_gbs"]), (1 / 3, probes["triad_nt_gbs"])]
    points.append((1 / 2, probes["copy_nt_gbs"]))
    share = min(share, 0.5)
    for (low, slow), (high, fast) in itertools.pairwise(points):
        if low <= share <= high:
            at = (share - low) / (high - low)
            per_byte = (1 - at) / slow + at / fast
            break
    return flops / peak * 1e-3, total * per_byte * 1e-3


def _odd(values: Sequence[float]) -> Sequence[float]:
    return values[1::2]


def _even(values: Sequence[float]) -> Sequence[float]:
    return values[0::2]


def ratio_to(row: Row, peer: str) -> float | None:
    """Median over all rounds of the time of one named peer over ours."""
    rounds = row["rounds_us"]
    if not row["verified"] or peer not in rounds or not rounds.get("ours"):
        return None
    pairs = zip(rounds[peer], rounds["ours"], strict=True)
    return float(statistics.median(theirs / ours for theirs, ours in pairs))


def best_peer(row: Row, ours: Sequence[float] | None = None) -> tuple[str, float] | None:
    """The peer that is fastest on the even rounds, and the median ratio to it on the odd ones."""
    rounds = row["rounds_us"]
    own = rounds.get("ours") if ours is None else ours
    peers = [name for name in rounds if name != "ours"]
    if not row["verified"] or not own or not peers:
        return None
    name = min(peers, key=lambda peer: statistics.median(_even(rounds[peer])))
    pairs = zip(_odd(rounds[name]), _odd(own), strict=True)
    return name, statistics.median(theirs / mine for theirs, mine in pairs)


def untuned_ratio(row: Row) -> float | None:
    """The ratio of the best peer to our default schedule, in the same rounds."""
    found = best_peer(row, row.get("detail", {}).get("untuned_rounds_us"))
    return found[1] if found else None


def share_of_roofline(row: Row, key: str = "ours_us") -> float | None:
    """Roofline time over our time."""
    if not row["verified"] or not row.get("roofline_us") or not row.get(key):
        return None
    return float(row["roofline_us"]) / float(row[key])


def _figure(value: float, unit: str, how: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "how": how}


def _geomean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def figures(rows: Sequence[Row], wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The figures of a suite; one that no row can give is left out.

    wanted: groups that the suite's file names, see the branches below.
    """
    everything, rows = rows, [row for row in rows if row.get("outputs") != "fresh"]
    out: dict[str, dict[str, Any]] = {
        "rows": _figure(len(rows), "rows", "rows reported, verified or not"),
        "unverified_rows": _figure(
            sum(not row["verified"] for row in everything),
            "rows",
            "failed, or differed from the reference",
        ),
    }
    for peer in sorted({peer for row in rows for peer in row["peers"]}):
        count = sum("us" in row["peers"].get(peer, {}) for row in rows)
        out[f"peer_rows.{peer}"] = _figure(count, "rows", "rows this peer was timed on, verified")
    if "share_of_roofline" in wanted:
        _add(out, rows, "share_of_roofline", share_of_roofline, "roofline_us / ours_us, tuned")
    if "share_of_roofline_untuned" in wanted:
        _add(
            out,
            rows,
            "share_of_roofline_untuned",
            lambda row: share_of_roofline(row, "ours_untuned_us"),
            "roofline_us / ours_untuned_us",
        )
    if "vs_onnxruntime" in wanted:
        _add(
            out,
            rows,
            "vs_onnxruntime",
            lambda row: ratio_to(row, "onnxruntime"),
            "median over the rounds of onnxruntime / ours",
        )
    if "best_peer" in wanted:
        out.update(_against_best(rows))
    if len(everything) > len(rows):
        how = "more rows, every result a new array, in no ratio"
        out["fresh_rows"] = _figure(len(everything) - len(rows), "rows", how)
    if "scaling" in wanted:
        out.update(_scaling(rows))
    if "compile" in wanted:
        _extreme(out, rows, "compile_s_max", "compile_s", "s", "slowest cold compilation, untuned")
    if "memory" in wanted:
        peaks = [peak for row in rows if (peak := _rss_mb(row)) is not None]
        if peaks:
            how = "largest resident set of our own process, tuning included"
            out["peak_rss_mb"] = _figure(max(peaks), "MB", how)
    return out


def _rss_mb(row: Row) -> float | None:
    size_bytes = row["detail"].get("stats", {}).get("peak_rss_bytes")
    return None if size_bytes is None else float(size_bytes) / 1e6


def _extreme(
    out: dict[str, dict[str, Any]], rows: Sequence[Row], name: str, key: str, unit: str, how: str
) -> None:
    known = {row["workload"]: float(row[key]) for row in rows if row.get(key) is not None}
    if known:
        slowest = max(known, key=lambda workload: known[workload])
        out[name] = _figure(known[slowest], unit, f"{how}: {slowest}")


def _scaling(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """How much all threads gain over one, on rows that arithmetic bounds."""
    gains, slower = {}, 0
    for row in rows:
        found = row["detail"].get("scaling", {})
        if not row["verified"] or "us" not in found:
            continue
        gain = found["one_thread_us"] / found["us"]
        slower += gain < AT_BEST_PEER
        if found["one_thread_us"] >= SCALES_FROM_US and row["detail"].get("bound_by") == "flops":
            gains[row["workload"]] = gain
    if not gains:
        how = "not measured: it needs --threads 2 or more, and a row that arithmetic bounds"
        return {"scaling_worst": {"value": None, "unit": "ratio", "how": how}}
    worst = min(gains, key=lambda workload: gains[workload])
    how = "one thread's time over all threads', same code, rows of 1 ms bound by arithmetic"
    return {
        "scaling_worst": _figure(gains[worst], "ratio", f"{how}: {worst}"),
        "rows_slower_than_one_thread": _figure(slower, "rows", "same code, below 0.97"),
    }


def _add(
    out: dict[str, dict[str, Any]], rows: Sequence[Row], name: str, measure: Any, how: str
) -> None:
    for row in rows:
        value = measure(row)
        if value is not None:
            out[f"{name}.{row['workload']}"] = _figure(value, "ratio", how)


def _against_best(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    ratios = {}
    categories: dict[str, list[float]] = {}
    for row in rows:
        found = best_peer(row)
        if found is not None:
            ratios[row["workload"]] = found[1]
            categories.setdefault(row["category"], []).append(found[1])
    if not ratios:
        return {}
    how = "best peer on the even rounds, median ratio of the odd ones"
    untuned = [ratio for row in rows if (ratio := untuned_ratio(row)) is not None]
    at_best = sum(ratio >= AT_BEST_PEER for ratio in ratios.values())
    out = {
        "geomean_vs_best_peer": _figure(_geomean(ratios.values()), "ratio", how),
        "worst_vs_best_peer": _figure(min(ratios.values()), "ratio", min(ratios, key=ratios.get)),  # type: ignore[arg-type]
        "share_of_rows_at_best_peer": _figure(
            at_best / len(rows), "share", f"ratio of {AT_BEST_PEER} or more, of all rows"
        ),
        "worst_category_vs_best_peer": _figure(
            min(_geomean(values) for values in categories.values()),
            "ratio",
            "geometric mean of the worst category",
        ),
    }
    if untuned:
        out["untuned_geomean_vs_best_peer"] = _figure(_geomean(untuned), "ratio", how)
    return out
