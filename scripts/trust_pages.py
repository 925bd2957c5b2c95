"""Write docs/trust-checks.md from docs/figures/trust/*.json.

    python scripts/trust_pages.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "trust-checks.md"
FIGURES = DOCS / "figures" / "trust"


def read(name: str) -> dict[str, Any] | None:
    path = FIGURES / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def command(data: dict[str, Any]) -> list[str]:
    return ["```", data["command"], "```", ""]


def reductions() -> list[str]:
    data = read("self-reductions")
    faults = read("planted-faults")
    lines = [
        "## Self-reductions", "",
        "A function is tested by itself: by relations between its values at random points. They are "
        "learned by exact linear algebra modulo a prime, over values in which exp, sin and the rest "
        "are represented by the laws they obey (`verify/reductions/field.py`); proved by vanishing "
        "modulo two more primes (the probability of a false proof is below 2^-60); and must hold for "
        "the real function in float64, which shares none of these laws. A kernel is tested the same "
        "way: linear relations between results at related inputs, neighbours and sums, and the "
        "permutations that its definitions allow. `tilewright check MODEL --self` runs them; "
        "`save(path, self_test=True)` and `tilewright tune MODEL -o FILE` keep them in the file. "
        "`verify.reductions.models.corrected` computes a result as the median over random reductions, "
        "so that it is right where the model is wrong now and then.", "",
        "What they cannot see: sin(2 x) obeys the reduction of sin. The first terms of the series at "
        "a point are tested beside it for that reason.", "",
    ]  # fmt: skip
    if data is not None:
        lines += command(data)
        lines += [
            f"{data['found']} of {data['functions']} functions, in {data['seconds']:.0f} s "
            "on a busy machine.", "",
            "| function | self-reduction | asked at | seconds |", "|---|---|---|---|",
        ]  # fmt: skip
        for f in data["all"]:
            shown = f"`{f['text']}`" if f["found"] else "none found"
            if f["found"] and f["solved_for"] is None:
                shown += " (up to a branch)"
            name = f["function"] + (f" ({f['note']})" if f["note"] else "")
            lines.append(f"| {cell(name)} | {cell(shown)} | {f.get('family', '')} | {f['seconds']} |")
        lines += ["", "Properties that are no reductions (their points are tied to x): "
                  + "; ".join(f"`{t}`" for t in data["properties"]) + ".", ""]  # fmt: skip
    if faults is not None:
        lines += ["### Planted faults", "", *command(faults)]
        lines += [
            f"{faults['noticed']} of {faults['faults']} noticed by the self-test alone. "
            f"{faults['drawn']} were drawn; passed over: "
            + ", ".join(f"{n} {k}" for k, n in faults["passed_over"].items())
            + " (`internal`: LLVM refuses the text). `local` and `total` relations were added after a "
            "first run of seed 0 had missed two faults of a prefix sum.", "",
            "| kernel | fault | noticed by |", "|---|---|---|",
        ]  # fmt: skip
        for f in faults["all"]:
            by = f["by"] if f["noticed"] else "MISSED"
            lines.append(f"| {f['kernel']} | `{cell(f['fault'][:90])}` | {cell(by)} |")
        lines.append("")
    return lines


def durability() -> list[str]:
    data = read("kill-9")
    lines = [
        "## Durability", "",
        "The tuning database is SQLite with a write-ahead log; a record carries its SHA-256, which is "
        "verified when it is read, and one that does not fit is moved to the table "
        "`damaged_records`. A damaged file is renamed aside and a fresh one started; entries of the "
        "object cache carry a checksum and are written by atomic replacement. A full disk, several "
        "processes, schema migration and read-only places have tests in `tests/unit/tune`, "
        "`tests/unit/runtime`. What was committed survives kill -9 of any process; a loss of power "
        "may take the last transactions (`synchronous=NORMAL`), never the file.", "",
    ]  # fmt: skip
    if data is not None:
        lines += command(data)
        lines += [
            f"{data['kills']} kills with {data['writers']} writers at a time, {data['killed_tuners']} of "
            f"them the tuner itself, the others writing what it writes: "
            f"{data['committed_records']:,} records and {data['committed_objects']:,} objects "
            f"committed, {data['lost_records']} lost; complaints: {data['wrong'] or 'none'}.", "",
        ]  # fmt: skip
    return lines


def mutated() -> list[str]:
    data = read("mutated-onnx")
    if data is None:
        return []
    lines = [
        "## Mutated ONNX files", "",
        "Every mutant is loaded, compiled and run in a child with limits of time, memory and file "
        "size. What is accepted is compared with `onnx.reference`, and with onnxruntime where the two "
        "differ or the reference has no answer.", "", *command(data),
        f"{data['mutants']:,} mutants of {data['seeds']:,} models: "
        + ", ".join(f"{n:,} {k}" for k, n in data["by_mutation"].items()) + ".", "",
        "| outcome | mutants |", "|---|---|",
    ]  # fmt: skip
    names = {
        "refused": "refused with a typed error",
        "same": "accepted, equal to the reference",
        "runtime_agrees": "accepted, the reference has no answer, equal to onnxruntime",
        "reference_differs": "accepted, the reference differs, equal to onnxruntime",
        "alone": "accepted, neither of the two can run it",
        "different": "accepted, differs from both or from the only one that runs it",
    }
    for kind, n in data["outcomes"].items():
        lines.append(f"| {names.get(kind, kind)} | {n:,} |")
    for kind in ("crash", "hang", "exception", "internal", "memory"):
        if kind not in data["outcomes"]:
            lines.append(f"| {kind} | 0 |")
    codes = ", ".join(f"{n:,} {c}" for c, n in data["refused_by_code"].items())
    lines += ["", f"Refused by code: {codes}.", "", "Those that differ, one by one:", ""]
    lines += [f"* {w['of']} (mutant {w['mutant']}): {w['explained']}" for w in data["wrong"]]
    return [*lines, ""]


def mutation() -> list[str]:
    data = read("mutation-check")
    if data is None:
        return []
    lines = [
        "## Mutation check", "", *command(data),
        f"{data['mutants']} mutants of `lower`, `codegen`, `runtime` and `derive`, drawn by seed from "
        f"commit {data['commit'][:12]}; each meets the tests that call its function. "
        f"{data['caught']} caught, {data['undecided']} not decided.", "", "| mutant | change | verdict |", "|---|---|---|",
    ]  # fmt: skip
    for r in data["all"]:
        verdict = f"caught by {r['by']}" if r["caught"] else "survived: " + r.get("explained", "")
        change = f"`{cell(r['old'][:60])}` -> `{cell(r['text'][:60])}`"
        lines.append(f"| {r['file']}:{r['line']} | {change} | {cell(verdict)} |")
    return [*lines, ""]


def rest() -> list[str]:
    return [
        "## Process replay", "",
        "```", "make replay", "python scripts/replay.py --show NAME --against REV", "```", "",
        "`tests/replay/corpus.json` holds programs, schedules and the hashes of the LLVM text that "
        "each kernel had at the last release, for four targets. A refactoring shows an empty "
        "difference; `--show` emits both sides again and prints how they differ.", "",
        "## Isolation", "",
        "Candidates of the tuner are compiled in build workers and timed by a supervisor that forks "
        "a runner per batch; `verify/sandbox.py` runs anything else that is not trusted. Limits: "
        "wall clock and processor time, address space, size of files, processes; the whole process "
        "group ends with the task. `tests/unit/verify/test_sandbox.py` has crashes, hangs, stubborn "
        "signals, memory, full files, runaway threads and processes.", "",
    ]  # fmt: skip


def main() -> int:
    lines = [
        "<!-- Generated by `python scripts/trust_pages.py` from docs/figures/trust/*.json. -->", "",
        "# Checks behind the results", "",
        "What is done to find out whether compiled code, files and the tuning database can be "
        "relied on, with the command of every figure.", "",
        *reductions(), *durability(), *mutated(), *mutation(), *rest(),
    ]  # fmt: skip
    text = "\n".join(lines).rstrip("\n") + "\n"
    if "--check" in sys.argv:
        return int(PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
