"""The benchmark: every row of a suite against its peers, in interleaved rounds of one window.

In: `Options`. Out: the JSON that docs/cli.md describes, and a table. Invariant: a row is verified
only where the entry that was timed, on inputs other than the timed ones, agreed with the oracle in
every output element; a row that fails is reported unverified and never dropped.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tilewright.config import current
from tilewright.errors import TilewrightError, UserError
from tilewright.tools import figures as figure
from tilewright.tools import wiring
from tilewright.tools.lock import timing_lock
from tilewright.tools.peers import check_names
from tilewright.tools.progress import Display, format_time_us
from tilewright.tools.rows import Options, Peers, empty_row, measure_row, prepared_oracle
from tilewright.tools.sides import SideFailed
from tilewright.tools.suite import Suite, choose, jitter, load_suite

__all__ = ["Options", "Partial", "Peers", "empty_row", "line", "machine", "measure_row"]
__all__ += ["prepared_oracle", "run", "table"]


def _borrow_peers(row: dict[str, Any], path: Path) -> None:
    """Take the peers' times from another run's JSON, for the same workload, sizes and threads."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "U003",
            f"{path} is not the JSON of a benchmark: {error}",
            where="--peers-from",
            hint="give a file that `tilewright bench --json` wrote",
        ) from None
    for other in rows:
        if all(other.get(name) == row[name] for name in ("workload", "threads", "dims")):
            row["peers"] = other["peers"]
            for peer, times in other["rounds_us"].items():
                own = row["rounds_us"].get("ours", ())
                if peer != "ours" and len(times) == len(own):
                    row["rounds_us"][peer] = times
            row["detail"]["peers_from"] = str(path)


class Partial:
    """The rows done so far, kept so that an interrupted run can be carried on."""

    def __init__(self, options: Options) -> None:
        facts = [options.settings(), wiring.version(), platform.node()]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self.path = current().cache_dir / "bench" / f"{options.suite}-{digest}.jsonl"
        self.rows: dict[str, dict[str, Any]] = {}
        if options.resume and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # a line cut by a kill is measured again
                    row = json.loads(line)
                    self.rows[row["workload"]] = row
        else:
            self.done()

    def add(self, row: dict[str, Any]) -> None:
        with suppress(OSError):  # without a cache folder a run is only not resumable
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def done(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def _budget_s(suite: Suite, options: Options, left_s: float, place: int) -> float:
    total = suite.budget_s if options.budget_s is None else options.budget_s
    if suite.budget_for != "suite":
        return total
    weights = [row.weight for row in suite.rows[place:]]
    return left_s * weights[0] / sum(weights)


def run(options: Options, display: Display) -> dict[str, Any]:
    """Run a suite and return its JSON.

    Errors: U001 for an unknown suite, peer or workload, before anything is measured.
    """
    check_names(options.peers or ())
    loaded = load_suite(options.suite)
    options = replace(
        options,
        peers=loaded.peers if options.peers is None else options.peers,
        rounds=options.rounds or loaded.rounds,
        burst_s=options.burst_s or loaded.burst_s,
    )
    if loaded.parts:
        return _run_parts(loaded, options, display)
    suite = choose(loaded, only=options.only, sample=options.sample, seed=options.seed)
    partial = Partial(options)
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    left_s = suite.budget_s if options.budget_s is None else options.budget_s
    with tempfile.TemporaryDirectory(prefix="tilewright-bench-") as folder:
        database = options.db or Path(folder) / "tuning.sqlite"
        with (
            timing_lock(f"bench --suite {options.suite}", say=display.note),
            Peers(options.threads) as peers,
        ):
            for place, listed in enumerate(suite.rows):
                workload = listed if options.jitter is None else jitter(listed, options.jitter)
                row = partial.rows.get(workload.name)
                if row is None:
                    budget_s = _budget_s(suite, options, left_s, place)
                    try:
                        row = measure_row(
                            workload, options, budget_s, database, display, None, peers
                        )
                    except SideFailed as error:  # a side that died while it was timed
                        row = empty_row(workload, options.threads)
                        row["detail"]["error"] = str(error)
                    if options.peers_from is not None:
                        _borrow_peers(row, options.peers_from)
                    partial.add(row)
                left_s = max(0.0, left_s - float(row["tune_s"] or 0.0))
                extra = row.pop("extra", None)
                for each in (row,) if extra is None else (row, extra):
                    rows.append(each)
                    display.note(line(each))
    found = figure.figures(rows, suite.figures)
    if {"candidate", "import", "call", "symbolic"} & set(suite.figures):
        found.update(_own_figures(suite.figures))
    chosen = {w.name for w in suite.rows}
    cases = tuple(o for o in suite.open if o.row in chosen)
    if "symbolic" in suite.figures and cases and options.jitter is None:
        with timing_lock("bench: open sizes", say=display.note):
            opened = replace(suite, open=cases)
            found.update(_open_figures(opened, options.threads, display.note))
    facts = machine(rows)
    partial.done()
    return {
        "machine": facts,
        "settings": {**options.settings(), "seconds": time.monotonic() - started},
        "rows": rows,
        "figures": found,
    }


def _run_parts(suite: Suite, options: Options, display: Display) -> dict[str, Any]:
    """A suite of parts. What is done is kept until all of it is, whatever `--only` names."""
    from tilewright.tools import doors

    started = time.monotonic()
    partial = Partial(replace(options, only=None))
    rows, found = doors.run(suite, options, partial, display.note)
    if options.only is None:
        partial.done()
    return {
        "machine": machine(rows),
        "settings": {**options.settings(), "seconds": time.monotonic() - started},
        "rows": rows,
        "figures": found,
    }


def _own_figures(wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Costs of the compiler itself."""
    out: dict[str, dict[str, Any]] = {}
    if "import" in wanted:
        how = "least of 5 fresh processes, time inside `import tilewright`"
        out["import_ms"] = {"value": import_ms(), "unit": "ms", "how": how}
    if "candidate" in wanted:
        whole, python = wiring.candidate_cost()
        how = "CPU time of one matmul kernel with packing and tails: lower, build, link"
        out["candidate_ms"] = {"value": whole, "unit": "ms", "how": how}
        how = "the part of candidate_ms that is Python"
        out["candidate_python_ms"] = {"value": python, "unit": "ms", "how": how}
    if "call" in wanted:
        out.update(call_figures())
    return out


def _open_figures(
    suite: Suite, threads: int, note: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """What a size that is left open costs, and where most."""
    from tilewright.tools.open_sizes import losses

    found = losses(suite.rows, suite.open, threads, note)
    worst = max(found, key=lambda name: found[name])
    how = "untuned, one model for a range of a size over a build for the size alone"
    how = f"{how}: {worst}"
    out = {"symbolic_loss_worst": {"value": found[worst], "unit": "ratio", "how": how}}
    for name, value in found.items():
        out[f"symbolic_loss.{name}"] = {"value": value, "unit": "ratio", "how": "of it"}
    return out


def call_figures() -> dict[str, dict[str, Any]]:
    """What one call costs above its kernel, for NumPy arrays and for torch tensors."""
    out: dict[str, dict[str, Any]] = {}
    for kind in ("numpy", "torch"):
        name = f"call_ns_{kind}"
        command = [sys.executable, "-P", "-m", "tilewright.tools.callcost", kind]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            found = json.loads(ended.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            found = {"reason": (ended.stderr.strip().splitlines() or ["no answer"])[-1]}
        how = "add of 64 elements with out=, one call less the kernel's own time"
        if "ns" in found:
            out[name] = {"value": found["ns"], "unit": "ns", "how": how}
        else:
            reason = f"not measured: {found['reason']}"
            out[name] = {"value": None, "unit": "ns", "how": reason}
    return out


def import_ms(repeat: int = 5) -> float:
    """Milliseconds that `import tilewright` takes in a fresh process."""
    code = "import time; t = time.perf_counter(); import tilewright; print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(repeat)
    ]
    return min(times) * 1e3


def machine(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Versions, the CPU, and per thread count the medians of the probes of these rows."""
    from importlib import metadata

    versions = {
        "tilewright": wiring.version(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for name in ("numpy", "llvmlite", "onnx"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    facts: dict[str, Any] = {"name": processor(), "versions": versions}
    with suppress(TilewrightError):
        facts.update(wiring.machine_facts())
    threads: dict[str, dict[str, float]] = {}
    for count in sorted({row["threads"] for row in rows}):
        probes = [
            row["detail"]["probes"]
            for row in rows
            if row["threads"] == count and row["detail"].get("probes")
        ]
        threads[str(count)] = {
            name: statistics.median(probe[name] for probe in probes if name in probe)
            for name in sorted({name for probe in probes for name in probe})
        }
    facts["threads"] = threads
    return facts


def processor() -> str:
    """The name of the CPU as the system gives it."""
    with suppress(OSError):
        for text in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = text.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def line(row: Mapping[str, Any]) -> str:
    """A finished row in one line."""
    if not row["verified"]:
        return f"{_name(row)}: UNVERIFIED, {row['detail'].get('error', 'no reason given')}"
    parts = [f"{_name(row)}: {format_time_us(row['ours_us'])}"]
    share = figure.share_of_roofline(row)
    if share is not None:
        parts.append(f"{share:.0%} of roofline")
    parts += [
        f"{ratio:.2f}x {peer}"
        for peer in row["rounds_us"]
        if (ratio := figure.ratio_to(row, peer)) is not None and peer != "ours"
    ]
    return ", ".join(parts)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['workload']}{' (new outputs)' if row['outputs'] == 'fresh' else ''}"


def table(result: Mapping[str, Any]) -> Any:
    """The rows as a rich table; ratios above 1 mean that we are faster."""
    from rich.table import Table

    if result["settings"]["suite"] == "doors":
        from tilewright.tools import doors

        return doors.table(result)
    rows = result["rows"]
    peers = sorted({peer for row in rows for peer in row["peers"]})
    out = Table(box=None, pad_edge=False)
    out.add_column("workload")
    for name in ("threads", "default", "tuned", "of roofline", *peers):
        out.add_column(name, justify="right")
    for row in rows:
        share = figure.share_of_roofline(row)
        cells = [
            str(row["threads"]),
            format_time_us(row["ours_untuned_us"]),
            format_time_us(row["ours_us"]),
            "-" if share is None else f"{share:.0%}",
        ]
        for peer in peers:
            ratio = figure.ratio_to(row, peer)
            cells.append("-" if ratio is None else f"{ratio:.2f}x")
        name = _name(row) if row["verified"] else f"{_name(row)} (UNVERIFIED)"
        out.add_row(name, *cells)
    return out
