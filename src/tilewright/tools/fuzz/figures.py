"""The figures of a campaign, over all runs of its corpus.

In: a `Corpus`. Out: the JSON of `tilewright fuzz`. Invariant: every figure is computed from counts
that the corpus holds; a failing case that a later version passes counts as fixed, not as wrong.
"""

from __future__ import annotations

import platform
from collections import Counter
from typing import Any

from tilewright.tools import wiring
from tilewright.tools.fuzz.corpus import Corpus

__all__ = ["lines", "missing_rows", "result", "table"]


def _open(corpus: Corpus, *classes: str) -> int:
    """Cases that still fail, by the class of their failure."""
    return sum(f.count for f in corpus.failed if not f.fixed and f.failure.split()[0] in classes)


def missing_rows(corpus: Corpus, kinds: Any) -> tuple[int, list[str]]:
    """How many rows of the tables exist for the kinds that ran, and those that no case held."""
    rows: set[str] = set()
    for kind in corpus.tallies:
        rows |= kinds.rows_of(kind)
    drawn: Counter[str] = Counter()
    for t in corpus.tallies.values():
        drawn.update(t.drawn)
    return len(rows), sorted(r for r in rows if not drawn[r])


def _finite(corpus: Corpus) -> tuple[float | None, str, str]:
    """The share of cases whose values are finite, with its unit and meaning."""
    counts: Counter[str] = Counter()
    for t in corpus.tallies.values():
        counts.update({n: t.drawn[f"inputs {n}"] for n in ("sampled", "searched", "kept")})
    share = 1 - counts["kept"] / counts.total() if counts.total() else None
    return (
        share,
        "",
        (
            f"cases whose inputs make no value infinite or NaN: {counts['sampled']} as sampled, "
            f"{counts['searched']} by gradient search, {counts['kept']} not found"
        ),
    )


def result(
    settings: Any,
    corpus: Corpus,
    generation: dict[str, float],
    elapsed_s: float,
    interrupted: bool,
    kinds: Any,
) -> dict[str, Any]:
    """Machine, settings, counts by kind, figures, failing cases."""
    tallies = corpus.tallies.values()
    total = {
        name: sum(getattr(t, name) for t in tallies) for name in ("generated", "valid", "pairs")
    }
    compared = [t for k, t in corpus.tallies.items() if k in ("programs", "onnx")]
    seconds = sum(t.seconds for t in compared)
    count, missing = missing_rows(corpus, kinds)

    def figure(value: Any, unit: str, how: str) -> dict[str, Any]:
        return {"value": value, "unit": unit, "how": how}

    open_oob = sum(
        f.count
        for f in corpus.failed
        if not f.fixed and f.failure == "crash" and "SIGSEGV" in f.message
    )
    figures = {
        "programs": figure(
            sum(t.programs for t in compared),
            "programs",
            "Programs and ONNX models, built, run and compared",
        ),
        "pairs": figure(total["pairs"], "pairs", "programs with schedules, run and compared"),
        "wrong": figure(_open(corpus, "wrong"), "cases", "cases with wrong results, not yet fixed"),
        "errors": figure(
            _open(corpus, "error", "invalid"), "cases", "cases that are refused or break a stage"
        ),
        "crashes": figure(_open(corpus, "crash", "hang"), "cases", "of parent or child, or hung"),
        "out_of_bounds": figure(open_oob, "cases", "accesses outside a buffer"),
        "fixed": figure(
            sum(f.fixed for f in corpus.failed), "cases", "kept failures that pass by now"
        ),
        "operator_share": figure(
            1 - len(missing) / count if count else None, "", f"rows drawn, of {count}"
        ),
        "valid_share": figure(
            total["valid"] / total["generated"] if total["generated"] else None,
            "",
            "generated cases that the verifier and the oracle accept",
        ),
        "finite_share": figure(*_finite(corpus)),
        "graphs_per_second": figure(
            generation.get("rate"),
            "1/s",
            "generation alone, per second of CPU time, the slower of programs and ONNX models",
        ),
        "median_definitions": figure(
            generation.get("median"), "definitions", "of the graphs of graphs_per_second"
        ),
        "programs_per_10_minutes": figure(
            600 * sum(t.programs for t in compared) / seconds if seconds else None,
            "programs",
            "programs and ONNX models built, run and compared, per 10 minutes of all runs",
        ),
        "branch_coverage": figure(
            corpus.coverage.get("share"),
            "",
            corpus.coverage.get("how", "not measured: --kind nests with the package coverage"),
        ),
    }
    return {
        "machine": {
            "name": platform.processor() or platform.machine(),
            "version": wiring.version(),
        },
        "settings": {
            "kinds": list(settings.kinds),
            "seed": settings.seed,
            "seconds": settings.seconds,
            "count": settings.count,
            "targets": list(settings.targets),
            "threads": settings.threads,
        },
        "elapsed_s": elapsed_s,
        "interrupted": interrupted,
        "counts": {
            kind: {
                "programs": t.programs,
                "pairs": t.pairs,
                "failed": t.wrong + t.errors + t.crashes,
                "seconds": t.seconds,
                "targets": dict(t.targets),
                "others": dict(t.others),
                "cases": dict(t.next),
            }
            for kind, t in corpus.tallies.items()
        },
        "figures": figures,
        "ok": not any(figures[n]["value"] for n in ("wrong", "errors", "crashes", "out_of_bounds")),
        "branches": corpus.coverage.get("files", {}),
        "missing": missing,
        "failed": [vars(f) for f in corpus.failed],
    }


def lines(data: dict[str, Any]) -> list[str]:
    """Figures, then what still fails, a line each."""
    out = []
    for name, f in data["figures"].items():
        value = "-" if f["value"] is None else f"{f['value']:.6g} {f['unit']}".strip()
        out.append(f"{name}: {value}")
    if data["missing"]:
        out.append(f"not drawn: {', '.join(data['missing'])}")
    for f in data["failed"]:
        if not f["fixed"]:
            first = f["message"].splitlines()[0][:160]
            out.append(f"{f['campaign']} case {f['number']}: {f['failure']}: {first}")
    return out


def table(data: dict[str, Any]) -> Any:
    """Counts by kind as a rich table."""
    from rich.table import Table

    out = Table(box=None, pad_edge=False)
    out.add_column("kind")
    for name in ("programs", "pairs", "failed", "per 10 minutes"):
        out.add_column(name, justify="right")
    for kind, c in data["counts"].items():
        rate = 600 * c["programs"] / c["seconds"] if c["seconds"] else 0.0
        out.add_row(kind, str(c["programs"]), str(c["pairs"]), str(c["failed"]), f"{rate:.0f}")
    return out
