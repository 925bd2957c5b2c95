"""One row of the benchmark: every side prepared, verified, and timed in interleaved rounds.

In: a `Workload`, `Options`. Out: the row as the JSON has it. Invariant: a row is verified only
where the entry that was timed, on inputs other than the timed ones, agreed with the oracle in every
output element; whatever fails leaves a row with its reason, never none.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tilewright.errors import TilewrightError
from tilewright.tools import figures as figure
from tilewright.tools.progress import Display
from tilewright.tools.sides import Side, SideFailed, SideSkipped
from tilewright.tools.suite import Workload, output_specs
from tilewright.tune.event import TuningEvent

__all__ = ["CHECKED_SEED", "ORACLE_S", "Options", "Peers", "empty_row", "measure_row"]
__all__ += ["prepared_oracle"]

PREPARE_S = 600.0
ORACLE_S = 900.0
ROUND_S = 120.0
TIMED_SEED, CHECKED_SEED = 1, 2
PROBES = (0, 5)  # before these rounds, and after the last
STOP_AT = 5.0  # times the best peer
SCALING_ROUNDS = 5
LARGE_OUTPUT_BYTES = 32 << 20


@dataclass(frozen=True)
class Options:
    """Everything that decides what a run measures; it is written into the JSON."""

    suite: str = "spine"
    only: str | None = None
    sample: int | None = None
    seed: int = 0
    jitter: int | None = None
    peers: tuple[str, ...] | None = None  # the suite's own
    threads: int = 1
    budget_s: float | None = None
    db: Path | None = None
    target: str | None = None
    peers_from: Path | None = None
    rounds: int | None = None  # the suite's own number
    burst_s: float | None = None
    fresh_rows: bool = True
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


class Peers:
    """The peers' processes, kept from row to row so that a framework is imported once."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.sides: dict[str, Side] = {}

    def prepare(
        self, names: Sequence[str], workload: Workload, options: Options
    ) -> tuple[dict[str, Side], dict[str, dict[str, Any]]]:
        """Build the workload in every peer, two at a time.

        Returns the sides that have it, and per other peer the entry of the row that says why not.
        """
        ready: dict[str, Side] = {}
        skipped: dict[str, dict[str, Any]] = {}

        # Here and not in `build`: a child ends with the thread that started it.
        for name in names:
            if name not in self.sides or not self.sides[name].is_alive:
                try:
                    self.sides[name] = Side(name, self.threads)
                except SideSkipped as error:
                    skipped[name] = {"skip": str(error)}

        def build(name: str) -> None:
            side = self.sides[name]
            try:
                side.version = side.ask(
                    "prepare", PREPARE_S, **_preparation(workload, options)
                )["version"]
                ready[name] = side
            except (SideSkipped, SideFailed) as error:
                skipped[name] = {"skip": str(error)}

        with ThreadPoolExecutor(2) as several:
            list(several.map(build, [name for name in names if name not in skipped]))
        for name in list(ready):  # timing, so one after the other
            side = ready[name]
            try:
                answer = side.ask("plan", PREPARE_S, burst_s=options.burst_s)
                side.outputs_kind, side.settings = answer["outputs"], answer["settings"]
            except SideFailed as error:
                skipped[name] = {"skip": str(error)}
                del ready[name]
        return {name: ready[name] for name in names if name in ready}, skipped

    def close(self) -> None:
        """End all processes."""
        for side in self.sides.values():
            side.close()
        self.sides.clear()

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def measure_row(
    workload: Workload,
    options: Options,
    budget_s: float,
    database: Path,
    display: Display,
    oracle: Side | None = None,
    peers: Peers | None = None,
) -> dict[str, Any]:
    """Prepare every side, verify, time in interleaved rounds; always returns a row.

    oracle: a side that has this workload prepared already, to be used again by the caller. peers:
    processes to be used again. Where the outputs are large, `extra` of the row is the same with
    new outputs in every call.
    """
    row = empty_row(workload, options.threads)
    clock = _Clock()
    row["detail"]["seconds"] = clock.seconds
    with ExitStack() as stack:
        ours = stack.enter_context(Side("ours", options.threads))
        own_peers = peers or stack.enter_context(Peers(options.threads))
        _count(row, workload)
        try:
            entries = _prepare_ours(row, ours, workload, options, budget_s, database, display)
        except SideFailed as error:
            row["detail"]["error"] = str(error)
            for peer in options.peers or ():
                row["peers"][peer] = {"skip": "not timed: our own side failed"}
            return row
        clock.lap("ours")
        judge = oracle
        if judge is None:
            try:
                judge = stack.enter_context(prepared_oracle(workload))
            except SideFailed as error:
                row["detail"]["error"] = f"the oracle failed: {error}"
                return row
        names = (options.peers or ()) if options.peers_from is None else ()
        sides, row["peers"] = own_peers.prepare(names, workload, options)
        clock.lap("peers")
        _verify(row, ours, entries, sides, judge)
        clock.lap("verification")
        measurements = [_rounds(ours, entries, sides, options)]
        if _ratio(measurements[0]) < 1.0:  # behind a peer: three in all, the median is reported
            measurements += [_rounds(ours, entries, sides, options) for _ in range(2)]
            row["detail"]["measured_ratios"] = [_ratio(measured) for measured in measurements]
        _enter(row, sorted(measurements, key=_ratio)[len(measurements) // 2], sides)
        if options.threads > 1:
            _scaling(row, ours, entries[-1], options)
        clock.lap("rounds")
        if _large_outputs(workload) and options.fresh_rows:
            row["extra"] = _fresh_row(workload, row, ours, own_peers, judge, options)
            clock.lap("fresh")
    return row


class _Clock:
    """Where the time of a row goes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Enter the time since the last lap under this name."""
        now = time.monotonic()
        self.seconds[name] = now - self._last
        self._last = now


def _count(row: dict[str, Any], workload: Workload) -> None:
    """Operations and bytes of the Program, or the formulas that the row states."""
    if workload.model:
        return  # counted on the program that was compiled
    from tilewright.tools.suite import bound_program
    from tilewright.tools.work import work_of

    with suppress(TilewrightError):
        counted = work_of(bound_program(workload))
        row.update(flops=counted.flops, bytes=counted.bytes)
        row["detail"]["written_bytes"] = counted.written_bytes
    for name, formula in (("flops", workload.flops), ("bytes", workload.bytes)):
        if formula:
            row[name] = workload.number(formula)
            row["detail"][f"{name}_stated"] = formula


def _large_outputs(workload: Workload) -> bool:
    """Are the results so large that an allocator gives them back to the system after each call?"""
    if workload.model:
        return False
    import numpy as np

    size_bytes = sum(
        int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        for shape, dtype in output_specs(workload)
    )
    return size_bytes > LARGE_OUTPUT_BYTES


def _fresh_row(
    workload: Workload,
    row: Mapping[str, Any],
    ours: Side,
    peers: Peers,
    judge: Side,
    options: Options,
) -> dict[str, Any]:
    """The same row, every result of every side a new array; outside the ratio figures."""
    extra = empty_row(workload, options.threads)
    for name in ("flops", "bytes", "roofline_us", "compile_s", "tune_s", "peak_bytes"):
        extra[name] = row[name]
    extra["outputs"] = "fresh"
    extra["detail"].update(stats=row["detail"].get("stats", {}))
    try:
        ours.ask("fresh", PREPARE_S, burst_s=options.burst_s)
    except SideFailed as error:
        extra["detail"]["error"] = str(error)
        return extra
    fast = [name for name in row["rounds_us"] if name != "ours"]
    sides, extra["peers"] = peers.prepare(fast, replace(workload, fresh=True), options)
    _verify(extra, ours, ["fresh"], sides, judge)
    measured = _rounds(ours, ["fresh"], sides, options)
    measured["times_us"]["untuned"] = measured["times_us"]["ours"] = measured["times_us"]["fresh"]
    _enter(extra, measured, sides)
    extra["ours_untuned_us"] = None
    return extra


def _scaling(row: dict[str, Any], ours: Side, entry: str, options: Options) -> None:
    """The same compiled code with one thread, in turn with all of them."""
    one, all_of_them = [], []
    try:
        for _ in range(SCALING_ROUNDS):
            ours.ask("threads", ROUND_S, threads=1)
            one.append(_nanoseconds(ours, entry) * 1e-3)
            ours.ask("threads", ROUND_S, threads=options.threads)
            all_of_them.append(_nanoseconds(ours, entry) * 1e-3)
    except SideFailed as error:
        row["detail"]["scaling"] = {"skip": str(error)}
        return
    row["detail"]["scaling"] = {
        "one_thread_us": statistics.median(one),
        "us": statistics.median(all_of_them),
    }


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
        if row[name] is None:
            row[name] = stats.get(name)
    row["detail"]["stats"] = stats
    row["detail"]["untuned_stats"] = answer["stats"]
    return entries


def _shower(task: str, display: Display) -> Callable[[dict[str, Any]], None]:
    def show(event: dict[str, Any]) -> None:
        names = TuningEvent.__dataclass_fields__
        known = {name: value for name, value in event.items() if name in names}
        known["task"] = f"{task}: {event.get('task') or ''}".rstrip(": ")
        known["done"] = known.get("done") or 0
        known["elapsed_s"] = known.get("elapsed_s") or 0.0
        known["finished"] = bool(known.get("finished"))
        display.update(TuningEvent(**known))

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
    ours: Side,
    entries: Sequence[str],
    sides: dict[str, Side],
    oracle: Side,
) -> None:
    """Compare the timed entries of all sides with the oracle; a wrong peer leaves the row."""
    own: list[Mapping[str, Any]] = []
    for name in entries:
        try:
            own.append(_verdict(ours, name, oracle))
        except SideFailed as error:
            row["detail"]["error"] = str(error)
            break
    if len(own) == len(entries):
        row["verified"] = all(verdict["ok"] for verdict in own)
        worst = max(own, key=lambda verdict: _share(verdict))
        row["max_err"], row["allowed_err"] = worst["max_err"], worst["allowed_err"]
        if not row["verified"]:
            row["detail"]["error"] = "wrong: " + (worst["detail"] or _errors(worst))
    for peer in list(sides):
        try:
            found = _verdict(sides[peer], peer, oracle)
            reason = "" if found["ok"] else f"wrong: {found['detail'] or _errors(found)}"
        except SideFailed as error:
            reason = str(error)
        if reason:
            row["peers"][peer] = {"skip": reason}
            del sides[peer]


def _verdict(side: Side, entry: str, oracle: Side) -> dict[str, Any]:
    """What the oracle says of one entry, on inputs that are never timed. Errors: SideFailed."""
    with tempfile.TemporaryDirectory(prefix="tilewright-bench-") as folder:
        path = str(Path(folder) / "outputs.npz")
        side.ask("compute", ROUND_S, entry=entry, seed=CHECKED_SEED, path=path)
        try:
            answer = oracle.ask("judge", ORACLE_S, seed=CHECKED_SEED, candidates={entry: path})
        except SideFailed as error:
            raise SideFailed(f"the oracle failed: {error}") from None
    verdict: dict[str, Any] = answer["verdicts"][entry]
    return verdict


def _share(verdict: Mapping[str, Any]) -> float:
    if verdict["max_err"] is None:
        return float("inf")
    return float(verdict["max_err"]) / (float(verdict["allowed_err"]) or 1e-300)


def _errors(verdict: Mapping[str, Any]) -> str:
    return f"error {verdict['max_err']}, allowed {verdict['allowed_err']}"


def _rounds(
    ours: Side, entries: Sequence[str], sides: Mapping[str, Side], options: Options
) -> dict[str, Any]:
    """At least 11 rounds, each side once a round, the order turned round every time.

    A peer that is over 5x slower than the best peer in both of the first two rounds is stopped: it
    cannot be the best one, and it would take most of the time.
    """
    order: list[tuple[str, Side, str]] = [(name, ours, name) for name in entries]
    order += [(peer, side, peer) for peer, side in sides.items()]
    times: dict[str, list[float]] = {name: [] for name, _, _ in order}
    stopped: dict[str, list[float]] = {}
    probes: list[dict[str, float]] = []
    for number in range(max(11, options.rounds or 0)):
        if number in PROBES:
            probes.append(_probe(ours, options.threads))
        for name, side, entry in order if number % 2 == 0 else list(reversed(order)):
            times[name].append(_nanoseconds(side, entry) * 1e-3)
        if number == 1 and sides:
            limit = STOP_AT * min(max(times[peer]) for peer in sides)
            stopped = {peer: times.pop(peer) for peer in sides if min(times[peer]) > limit}
            order = [each for each in order if each[0] not in stopped]
    probes.append(_probe(ours, options.threads))
    names = {name for probe in probes for name in probe}
    return {
        "times_us": times,
        "stopped_us": stopped,
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
    own = ("untuned", "ours", "fresh")
    rounds = {name: values for name, values in times.items() if name not in own}
    rounds["ours"] = times.get("ours", times["untuned"])
    found = figure.best_peer({"verified": True, "rounds_us": rounds})
    return found[1] if found else float("inf")


def _enter(row: dict[str, Any], measured: Mapping[str, Any], sides: Mapping[str, Side]) -> None:
    """Put one measurement into the row."""
    times = measured["times_us"]
    own = times.get("ours", times["untuned"])
    row["rounds_us"] = {"ours": own, **{peer: times[peer] for peer in sides if peer in times}}
    row["ours_us"] = statistics.median(own)
    row["ours_untuned_us"] = statistics.median(times["untuned"])
    row["detail"]["untuned_rounds_us"] = times["untuned"]
    row["detail"]["probes"] = measured["probes"]
    for peer, side in sides.items():
        early = measured.get("stopped_us", {}).get(peer)
        row["peers"][peer] = {"us": statistics.median(early or times[peer]), **_side_facts(side)}
        if early:
            row["peers"][peer]["stopped"] = "over 5x slower than the best peer after two rounds"
    stats = row["detail"]["stats"]
    written = float(row["detail"].get("written_bytes", stats.get("written_bytes")) or 0.0)
    if row["flops"] is not None and row["bytes"] is not None:
        both = figure.bounds_us(
            float(row["flops"]),
            float(row["bytes"]) - written,
            written,
            measured["probes"],
            row["dtype"],
        )
        if both is not None:
            row["roofline_us"] = max(both)
            row["detail"]["bound_by"] = "flops" if both[0] >= both[1] else "bytes"
