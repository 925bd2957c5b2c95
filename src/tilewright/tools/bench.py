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
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.config import current
from tilewright.errors import TilewrightError, UserError
from tilewright.tools import figures as figure
from tilewright.tools import wiring
from tilewright.tools.lock import timing_lock
from tilewright.tools.peers import PEERS, check_names
from tilewright.tools.progress import Display, TuningState, format_time_us
from tilewright.tools.sides import Side, SideFailed, SideSkipped
from tilewright.tools.suite import Suite, Workload, choose, jitter, load_suite

__all__ = ["Options", "empty_row", "line", "machine", "measure_row", "prepared_oracle", "run"]
__all__ += ["table"]

PREPARE_S = 600.0
ORACLE_S = 900.0
ROUND_S = 120.0
TIMED_SEED, CHECKED_SEED = 1, 2
PROBE_EVERY = 5  # rounds


@dataclass(frozen=True)
class Options:
    """Everything that decides what a run measures; it is written into the JSON."""

    suite: str = "spine"
    only: str | None = None
    sample: int | None = None
    seed: int = 0
    jitter: int | None = None
    peers: tuple[str, ...] = PEERS
    threads: int = 1
    budget_s: float | None = None
    db: Path | None = None
    target: str | None = None
    peers_from: Path | None = None
    rounds: int = 15
    burst_s: float = 0.06
    resume: bool = False

    def settings(self) -> dict[str, Any]:
        """As the JSON shows it; also what a partial run is recognised by."""
        names = [name for name in self.__dataclass_fields__ if name != "resume"]
        return {name: _plain(getattr(self, name)) for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _side_facts(side: Side) -> dict[str, Any]:
    return {"version": side.version, "outputs": side.outputs_kind, "settings": side.settings}


def _nanoseconds(side: Side, entry: str) -> float:
    return float(side.ask("round", ROUND_S, entry=entry)["ns"])


# ---- one row -----------------------------------------------------------------------------------


def empty_row(workload: Workload, threads: int) -> dict[str, Any]:
    """A row before anything is known about it."""
    return {
        "suite": workload.suite,
        "workload": workload.name,
        "category": workload.category,
        "dims": dict(workload.dims),
        "threads": threads,
        "dtype": workload.dtype,
        "outputs": "bound",
        "ours_us": None,
        "ours_untuned_us": None,
        "roofline_us": None,
        "flops": None,
        "bytes": None,
        "verified": False,
        "max_err": None,
        "allowed_err": None,
        "compile_s": None,
        "tune_s": None,
        "peak_bytes": None,
        "rounds_us": {},
        "peers": {},
        "detail": {},
    }


def measure_row(
    workload: Workload,
    options: Options,
    budget_s: float,
    database: Path,
    display: Display,
    oracle: Side | None = None,
) -> dict[str, Any]:
    """Prepare every side, verify, time in interleaved rounds; always returns a row.

    oracle: a side that has this workload prepared already, to be used again by the caller.
    """
    row = empty_row(workload, options.threads)
    with ExitStack() as stack:
        ours = stack.enter_context(Side("ours", options.threads))
        try:
            entries = _prepare_ours(row, ours, workload, options, budget_s, database, display)
        except SideFailed as error:
            row["detail"]["error"] = str(error)
            for peer in options.peers:
                row["peers"][peer] = {"skip": "not timed: our own side failed"}
            return row
        sides: dict[str, Side] = {}
        if options.peers_from is None:
            for peer in options.peers:
                side = stack.enter_context(Side(peer, options.threads))
                try:
                    answer = side.ask("prepare", PREPARE_S, **_preparation(workload, options))
                    side.version = answer["version"]
                    side.outputs_kind = answer["outputs"]
                    side.settings = answer["settings"]
                    sides[peer] = side
                except (SideSkipped, SideFailed) as error:
                    row["peers"][peer] = {"skip": str(error)}
                    side.close()
        _verify(row, workload, ours, entries, sides, oracle)
        measurements = [_rounds(ours, entries, sides, options)]
        if _ratio(measurements[0]) < 1.0:  # behind a peer: three in all, the median is reported
            measurements += [_rounds(ours, entries, sides, options) for _ in range(2)]
            row["detail"]["measured_ratios"] = [_ratio(measured) for measured in measurements]
        _enter(row, sorted(measurements, key=_ratio)[len(measurements) // 2], sides)
    return row


def _preparation(workload: Workload, options: Options) -> dict[str, Any]:
    return {
        "workload": workload.to_json(),
        "threads": options.threads,
        "burst_s": options.burst_s,
    }


def _prepare_ours(
    row: dict[str, Any],
    ours: Side,
    workload: Workload,
    options: Options,
    budget_s: float,
    database: Path,
    display: Display,
) -> list[str]:
    """Compile untuned, then tune; fills the costs in and returns the names of the entries."""
    answer = ours.ask(
        "prepare", PREPARE_S, **_preparation(workload, options), target=options.target
    )
    stats = answer["stats"]
    ours.version = answer["version"]
    row["outputs"] = answer["outputs"]
    row["compile_s"] = stats.get("compile_s")
    row["tune_s"] = 0.0
    entries = ["untuned"]
    if budget_s > 0:
        tuned = ours.ask(
            "tune",
            PREPARE_S + 2 * budget_s,
            _shower(workload.name, display),
            budget_s=budget_s,
            db=str(database),
            burst_s=options.burst_s,
        )
        stats = tuned["stats"]
        row["tune_s"] = stats.get("tune_s")
        entries.append("ours")
    for name in ("flops", "bytes", "peak_bytes"):
        row[name] = stats.get(name)
    row["detail"]["stats"] = stats
    row["detail"]["untuned_stats"] = answer["stats"]
    return entries


def _shower(task: str, display: Display) -> Callable[[dict[str, Any]], None]:
    def show(event: dict[str, Any]) -> None:
        names = TuningState.__dataclass_fields__
        known = {name: value for name, value in event.items() if name in names}
        known["task"] = f"{task}: {event.get('task') or ''}".rstrip(": ")
        known["done"] = known.get("done") or 0
        known["elapsed_s"] = known.get("elapsed_s") or 0.0
        known["finished"] = bool(known.get("finished"))
        display.update(TuningState(**known))

    return show


def prepared_oracle(workload: Workload) -> Side:
    """A side that judges outputs of this workload. Errors: SideFailed."""
    side = Side("oracle", 1)
    try:
        side.ask("prepare", ORACLE_S, workload=workload.to_json())
    except SideFailed:
        side.close()
        raise
    return side


def _verify(
    row: dict[str, Any],
    workload: Workload,
    ours: Side,
    entries: Sequence[str],
    sides: dict[str, Side],
    oracle: Side | None,
) -> None:
    """Compare the timed entries of all sides with the oracle; a wrong peer leaves the row."""
    with tempfile.TemporaryDirectory(prefix="tilewright-bench-") as folder:
        files: dict[str, str] = {}
        for name in entries:
            files[name] = str(Path(folder) / f"{name}.npz")
            try:
                ours.ask("compute", ROUND_S, entry=name, seed=CHECKED_SEED, path=files[name])
            except SideFailed as error:
                row["detail"]["error"] = str(error)
                return
        for peer in list(sides):
            path = str(Path(folder) / f"{peer}.npz")
            try:
                sides[peer].ask("compute", ROUND_S, entry=peer, seed=CHECKED_SEED, path=path)
                files[peer] = path
            except SideFailed as error:
                row["peers"][peer] = {"skip": str(error)}
                del sides[peer]
        try:
            with ExitStack() as stack:
                judge = oracle or stack.enter_context(prepared_oracle(workload))
                verdicts = judge.ask("judge", ORACLE_S, seed=CHECKED_SEED, candidates=files)
        except SideFailed as error:
            row["detail"]["error"] = f"the oracle failed: {error}"
            return
    found = verdicts["verdicts"]
    own = [found[name] for name in entries]
    row["verified"] = all(verdict["ok"] for verdict in own)
    worst = max(own, key=lambda verdict: _share(verdict))
    row["max_err"], row["allowed_err"] = worst["max_err"], worst["allowed_err"]
    if not row["verified"]:
        row["detail"]["error"] = "wrong: " + (worst["detail"] or _errors(worst))
    for peer in list(sides):
        if not found[peer]["ok"]:
            reason = found[peer]["detail"] or _errors(found[peer])
            row["peers"][peer] = {"skip": f"wrong: {reason}"}
            sides.pop(peer).close()


def _share(verdict: Mapping[str, Any]) -> float:
    if verdict["max_err"] is None:
        return float("inf")
    return float(verdict["max_err"]) / (float(verdict["allowed_err"]) or 1e-300)


def _errors(verdict: Mapping[str, Any]) -> str:
    return f"error {verdict['max_err']}, allowed {verdict['allowed_err']}"


def _rounds(
    ours: Side, entries: Sequence[str], sides: Mapping[str, Side], options: Options
) -> dict[str, Any]:
    """At least 11 rounds, each side once a round, the order turned round every time."""
    order: list[tuple[str, Side, str]] = [(name, ours, name) for name in entries]
    order += [(peer, side, peer) for peer, side in sides.items()]
    times: dict[str, list[float]] = {name: [] for name, _, _ in order}
    probes: list[dict[str, float]] = []
    for number in range(max(11, options.rounds)):
        if number % PROBE_EVERY == 0:
            probes.append(_probe(ours, options.threads))
        for name, side, entry in order if number % 2 == 0 else reversed(order):
            times[name].append(_nanoseconds(side, entry) * 1e-3)
    probes.append(_probe(ours, options.threads))
    names = {name for probe in probes for name in probe}
    return {
        "times_us": times,
        "probes": {
            name: statistics.median(probe[name] for probe in probes if name in probe)
            for name in sorted(names)
        },
    }


def _probe(ours: Side, threads: int) -> dict[str, float]:
    with suppress(SideFailed):
        return dict(ours.ask("probe", ROUND_S, threads=threads)["probes"])
    return {}


def _ratio(measured: Mapping[str, Any]) -> float:
    times = measured["times_us"]
    rounds = {name: values for name, values in times.items() if name not in ("untuned", "ours")}
    rounds["ours"] = times.get("ours", times["untuned"])
    found = figure.best_peer({"verified": True, "rounds_us": rounds})
    return found[1] if found else float("inf")


def _enter(row: dict[str, Any], measured: Mapping[str, Any], sides: Mapping[str, Side]) -> None:
    """Put one measurement into the row."""
    times = measured["times_us"]
    own = times.get("ours", times["untuned"])
    row["rounds_us"] = {"ours": own, **{peer: times[peer] for peer in sides}}
    row["ours_us"] = statistics.median(own)
    row["ours_untuned_us"] = statistics.median(times["untuned"])
    row["detail"]["untuned_rounds_us"] = times["untuned"]
    row["detail"]["probes"] = measured["probes"]
    for peer, side in sides.items():
        row["peers"][peer] = {"us": statistics.median(times[peer]), **_side_facts(side)}
    stats = row["detail"]["stats"]
    written = float(stats.get("written_bytes") or 0.0)
    if row["flops"] is not None and row["bytes"] is not None:
        row["roofline_us"] = figure.roofline_us(
            float(row["flops"]),
            float(row["bytes"]) - written,
            written,
            measured["probes"],
            row["dtype"],
        )


# ---- the whole suite ---------------------------------------------------------------------------


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


class _Partial:
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
    check_names(options.peers)
    suite = choose(
        load_suite(options.suite), only=options.only, sample=options.sample, seed=options.seed
    )
    partial = _Partial(options)
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    left_s = suite.budget_s if options.budget_s is None else options.budget_s
    with tempfile.TemporaryDirectory(prefix="tilewright-bench-") as folder:
        database = options.db or Path(folder) / "tuning.sqlite"
        with timing_lock(f"bench --suite {options.suite}", say=display.note):
            for place, listed in enumerate(suite.rows):
                workload = listed if options.jitter is None else jitter(listed, options.jitter)
                row = partial.rows.get(workload.name)
                if row is None:
                    budget_s = _budget_s(suite, options, left_s, place)
                    try:
                        row = measure_row(workload, options, budget_s, database, display)
                    except SideFailed as error:  # a side that died while it was timed
                        row = empty_row(workload, options.threads)
                        row["detail"]["error"] = str(error)
                    if options.peers_from is not None:
                        _borrow_peers(row, options.peers_from)
                    partial.add(row)
                left_s = max(0.0, left_s - float(row["tune_s"] or 0.0))
                rows.append(row)
                display.note(line(row))
    found = figure.figures(rows, suite.figures)
    if "candidate" in suite.figures or "import" in suite.figures:
        found.update(_own_figures(suite.figures))
    facts = machine(rows)
    partial.done()
    return {
        "machine": facts,
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
    facts: dict[str, Any] = {"versions": versions}
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


def line(row: Mapping[str, Any]) -> str:
    """A finished row in one line."""
    if not row["verified"]:
        return f"{row['workload']}: UNVERIFIED, {row['detail'].get('error', 'no reason given')}"
    parts = [f"{row['workload']}: {format_time_us(row['ours_us'])}"]
    share = figure.share_of_roofline(row)
    if share is not None:
        parts.append(f"{share:.0%} of roofline")
    parts += [
        f"{ratio:.2f}x {peer}"
        for peer in row["rounds_us"]
        if (ratio := figure.ratio_to(row, peer)) is not None and peer != "ours"
    ]
    return ", ".join(parts)


def table(result: Mapping[str, Any]) -> Any:
    """The rows as a rich table; ratios above 1 mean that we are faster."""
    from rich.table import Table

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
        name = row["workload"] if row["verified"] else f"{row['workload']} (UNVERIFIED)"
        out.add_row(name, *cells)
    return out
