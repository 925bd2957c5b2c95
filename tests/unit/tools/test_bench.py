"""The benchmark harness, with a NumPy stand-in for the compiler in the worker processes."""

from __future__ import annotations

import io
import json
import os
import signal
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from tilewright.errors import UserError
from tilewright.tools import bench, compare, figures, progress, rows, suite
from tilewright.tools.lock import timing_lock
from tilewright.tools.sides import Side, SideFailed, SideSkipped
from tilewright.tune.event import TuningEvent

FAKE = Path(__file__).parent / "fake_compiler"
SUITE = """
format = 1
name = "small"
budget_s = 4.0
budget_for = "suite"
figures = ["share_of_roofline", "share_of_roofline_untuned", "vs_onnxruntime", "candidate", "best_peer"]

[[row]]
name = "matmul_64"
category = "matmul"
dims = { M = 64, N = 64, K = 64 }
program = '''
program matmul(a: f32[$M, $K], b: f32[$K, $N]):
  c: f32[i<$M, j<$N] = sum(k<$K) a[i, k] * b[k, j]
  return c
'''
onnx = "c = MatMul(a, b)"

[[row]]
name = "conv_small"
category = "conv"
dims = { C = 4, O = 5, H = 12, W = 12 }
constants = ["k"]
program = '''
program conv(x: f32[1, $C, $H, $W], k: f32[$O, $C, 3, 3]):
  y: f32[n<1, o<$O, h<$H, w<$W] = sum(c<$C, r<3, s<3) (x[n, c, h + r - 1, w + s - 1] else 0.0) * k[o, c, r, s]
  return y
'''
onnx = "y = Conv <pads = [1, 1, 1, 1]> (x, k)"
"""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "suites"
    folder.mkdir()
    (folder / "small.toml").write_text(SUITE)
    monkeypatch.setattr(suite, "FOLDER", folder)
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    source = Path(bench.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE), str(source)]))
    monkeypatch.setattr(bench, "_own_figures", lambda wanted: {})
    monkeypatch.setattr("tempfile.tempdir", None)


def run(display: progress.Display | None = None, **options: Any) -> dict[str, Any]:
    options = {"suite": "small", "peers": ("onnxruntime",), "rounds": 11, "burst_s": 0.002, **options}
    with progress.display("test", output=progress.console(io.StringIO())) as shown:
        return bench.run(bench.Options(**options), display or shown)


onnxruntime = pytest.mark.skipif(
    not any((Path(p) / "onnxruntime").is_dir() for p in sys.path), reason="onnxruntime is not installed"
)


@onnxruntime
def test_schema_verified_and_interleaved() -> None:
    result = run(budget_s=1.0)
    assert set(result) == {"machine", "settings", "rows", "figures"}
    assert result["figures"]["rows"]["value"] == 2 == result["figures"]["peer_rows.onnxruntime"]["value"]
    assert result["figures"]["unverified_rows"]["value"] == 0
    assert result["settings"]["suite"] == "small" and result["settings"]["threads"] == 1
    assert result["machine"]["threads"]["1"]["fma_gflops"] == 200.0
    for row in result["rows"]:
        needed = {
            "suite", "workload", "category", "threads", "dtype", "outputs", "ours_us", "ours_untuned_us",
            "roofline_us", "flops", "bytes", "verified", "max_err", "allowed_err", "compile_s", "tune_s",
            "peak_bytes", "rounds_us", "peers",
        }  # fmt: skip
        assert needed <= set(row)
        assert row["verified"] and row["max_err"] <= row["allowed_err"]
        assert set(row["rounds_us"]) == {"ours", "onnxruntime"}
        assert {len(times) for times in row["rounds_us"].values()} == {11}
        assert row["ours_us"] == statistics.median(row["rounds_us"]["ours"])
        assert row["peers"]["onnxruntime"]["version"] and row["peers"]["onnxruntime"]["outputs"] == "bound"
        # Operations of the program, 2 M N K, at 200 GFLOP/s; the convolution has 2 * 9 * 4 * 5 * 144.
        counted = {"matmul_64": 2 * 64**3, "conv_small": 2 * 9 * 4 * 5 * 144}[row["workload"]]
        assert row["flops"] == counted and row["roofline_us"] == pytest.approx(counted / 200e3)
    json.dumps(result)
    assert "matmul_64" in str(result["figures"].keys())
    bench.table(result)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("crash", "SIGSEGV"), ("wrong", "wrong: y: error"), ("refuse", "F005"), ("wrong_untuned", "wrong: y: error")],
)
def test_a_row_that_fails_is_reported_unverified(monkeypatch: pytest.MonkeyPatch, fault: str, reason: str) -> None:
    monkeypatch.setenv("TW_FAKE", fault)
    result = run(peers=(), only="matmul*")
    (row,) = result["rows"]
    assert not row["verified"] and reason in row["detail"]["error"]
    assert result["figures"]["unverified_rows"]["value"] == 1
    assert not any(name.startswith(("share", "vs_", "geomean")) for name in result["figures"])


def test_a_hanging_side_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TW_FAKE", "hang")
    monkeypatch.setattr(rows, "PREPARE_S", 1.5)
    started = time.monotonic()
    (row,) = run(peers=(), only="matmul*", budget_s=0.0)["rows"]
    assert "hung" in row["detail"]["error"] and time.monotonic() - started < 30


def test_budget_zero_means_no_tuning() -> None:
    (row,) = run(peers=(), only="matmul*", budget_s=0.0)["rows"]
    assert row["tune_s"] == 0.0 and row["ours_us"] == row["ours_untuned_us"] and row["verified"]


def test_a_peer_that_is_missing_or_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Side.ask

    def ask(self: Side, do: str, *arguments: Any, **request: Any) -> dict[str, Any]:
        if self.name == "torch":
            raise SideSkipped("not installed: pip install 'tilewright[peers]'")
        answer = real(self, do, *arguments, **request)
        if do == "judge" and "onnxruntime" in answer["verdicts"]:
            answer["verdicts"]["onnxruntime"] = {"ok": False, "max_err": 3.0, "allowed_err": 1.0, "detail": ""}
        return answer

    monkeypatch.setattr(Side, "ask", ask)
    (row,) = run(peers=("torch", "onnxruntime"), only="matmul*")["rows"]
    assert row["verified"] and set(row["rounds_us"]) == {"ours"}
    assert row["peers"]["torch"]["skip"].startswith("not installed")
    assert row["peers"]["onnxruntime"]["skip"].startswith(("wrong: error 3.0, allowed 1.0", "not installed"))


def test_unknown_names() -> None:
    for options, near in (
        ({"suite": "smal"}, "did you mean small"),
        ({"peers": ("onnxruntim",)}, "did you mean onnxruntime"),
        ({"only": "matmul_65"}, "did you mean matmul_64"),
    ):
        with pytest.raises(UserError) as caught:
            run(**options)
        assert caught.value.code == "U001" and near in caught.value.hint


def test_sample_only_and_jitter() -> None:
    loaded = suite.load_suite("small")
    assert [row.name for row in suite.choose(loaded, only="conv*").rows] == ["conv_small"]
    samples = [suite.choose(loaded, sample=1, seed=seed).rows[0].name for seed in range(20)]
    assert set(samples) == {"matmul_64", "conv_small"}
    moved = suite.jitter(loaded.rows[0], 7)
    assert all(65 <= size <= 79 for size in moved.dims.values())
    assert moved == suite.jitter(loaded.rows[0], 7) != suite.jitter(loaded.rows[0], 8)
    assert suite.jitter(loaded.rows[1], 7).dims == loaded.rows[1].dims
    assert suite.Workload.from_json(json.loads(json.dumps(moved.to_json()))) == suite.Workload.from_json(moved.to_json())


def test_the_committed_suites_are_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert "spine" in suite.suite_names()
    for name in suite.suite_names():
        loaded = suite.load_suite(name)
        assert len({row.name for row in loaded.rows}) == len(loaded.rows)
        for row in loaded.rows:
            assert bool(row.program) != bool(row.model)
            specs = suite.input_specs(row)
            assert set(row.constants) <= set(specs)
            if row.program:
                assert suite.output_specs(suite.jitter(row, 1))


def test_spine_has_the_promised_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    loaded = suite.load_suite("spine")
    assert [row.name for row in loaded.rows] == [
        "matmul_512", "matmul_1024", "matmul_2048", "conv_128_28", "softmax", "layer_norm",
        "ocr_det", "ocr_rec", "magika", "open_nsfw",
    ]  # fmt: skip
    assert suite.input_specs(loaded.rows[6]) == {"x": ((1, 3, 736, 736), "float32")}
    assert suite.input_specs(loaded.rows[8]) == {"bytes": ((1, 2048), "int32")}
    assert loaded.budget_s == 60.0 and loaded.budget_for == "suite"


def test_resume_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench.measure_row
    measured = []

    def interrupted(workload: Any, *rest: Any) -> dict[str, Any]:
        measured.append(workload.name)
        if workload.name == "conv_small" and len(measured) == 2:
            raise KeyboardInterrupt
        return real(workload, *rest)

    monkeypatch.setattr(bench, "measure_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(peers=())
    result = run(peers=(), resume=True)
    assert measured == ["matmul_64", "conv_small", "conv_small"]
    assert result["figures"]["unverified_rows"]["value"] == 0
    run(peers=(), resume=True)
    assert len(measured) == 5  # a finished run leaves nothing to carry on


def test_peers_from(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    first = run(only="matmul*")
    file.write_text(json.dumps(first))
    (row,) = run(only="matmul*", peers_from=file)["rows"]
    assert row["peers"] == first["rows"][0]["peers"]
    assert row["detail"]["peers_from"] == str(file)
    with pytest.raises(UserError, match="U003"):
        run(peers_from=tmp_path / "none.json")


def row_of(ours: list[float], **peers: list[float]) -> dict[str, Any]:
    return {"verified": True, "rounds_us": {"ours": ours, **peers}, "workload": "w", "category": "c", "peers": {}}


def test_ratios() -> None:
    # The best peer is chosen on the even rounds (here a), though b wins the odd ones.
    row = row_of([1.0] * 12, a=[2.0, 4.0] * 6, b=[3.0, 1.0] * 6)
    assert figures.best_peer(row) == ("a", 4.0)
    assert figures.ratio_to(row, "b") == 2.0
    assert figures.ratio_to(row, "c") is None
    assert figures.best_peer({**row, "verified": False}) is None
    assert figures.ratio_to({**row, "verified": False}, "a") is None


def test_roofline_follows_the_mix() -> None:
    probes = {"fma_gflops": 100.0, "f64_gflops": 50.0, "read_gbs": 10.0, "triad_nt_gbs": 20.0, "copy_nt_gbs": 40.0}
    assert figures.roofline_us(1e6, 0, 0, probes, "f32") == pytest.approx(10.0)
    assert figures.roofline_us(1e6, 0, 0, probes, "f64") == pytest.approx(20.0)
    assert figures.roofline_us(0, 1e6, 0, probes, "f32") == pytest.approx(100.0)
    assert figures.roofline_us(0, 5e5, 5e5, probes, "f32") == pytest.approx(25.0)
    assert figures.roofline_us(0, 0, 1e6, probes, "f32") == pytest.approx(25.0)
    assert figures.roofline_us(0, 2e6, 1e6, probes, "f32") == pytest.approx(150.0)
    assert figures.roofline_us(0, 1e6, 0, {}, "f32") is None


def test_behind_a_peer_is_measured_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = iter([0.5, 0.9, 0.7])
    calls = []

    def rounds(ours: Any, entries: Any, sides: Any, options: Any) -> dict[str, Any]:
        peer = next(windows)
        calls.append(peer)
        return {"times_us": {"untuned": [2.0] * 11, "ours": [1.0] * 11, "onnxruntime": [peer] * 11}, "probes": {}}

    monkeypatch.setattr(rows, "_rounds", rounds)
    (row,) = run(only="matmul*")["rows"]
    if "us" not in row["peers"]["onnxruntime"]:
        pytest.skip("onnxruntime is not installed")
    assert calls == [0.5, 0.9, 0.7] and row["peers"]["onnxruntime"]["us"] == 0.7
    assert row["detail"]["measured_ratios"] == [0.5, 0.9, 0.7]


def test_a_peer_far_behind_the_best_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"untuned": 3.0, "quick": 10.0, "near": 45.0, "far": 60.0}
    asked: list[str] = []

    def nanoseconds(side: Any, entry: str) -> float:
        asked.append(entry)
        return costs[entry] * 1e3

    monkeypatch.setattr(rows, "_nanoseconds", nanoseconds)
    monkeypatch.setattr(rows, "_probe", lambda ours, threads: {"fma_gflops": 1.0})
    sides: Any = {"quick": object(), "near": object(), "far": object()}
    measured = rows._rounds(object(), ["untuned"], sides, rows.Options(rounds=12))  # type: ignore[arg-type]
    assert [asked.count(name) for name in costs] == [12, 12, 12, 2]
    assert measured["stopped_us"] == {"far": [60.0, 60.0]} and set(measured["times_us"]) == {"untuned", "quick", "near"}
    row = rows.empty_row(suite.load_suite("small").rows[0], 1)
    row["detail"]["stats"] = {}
    facts: Any = {name: rows.Side.__new__(rows.Side) for name in sides}
    for side in facts.values():
        side.version, side.outputs_kind, side.settings = "1", "bound", ""
    rows._enter(row, measured, facts)
    assert set(row["rounds_us"]) == {"ours", "quick", "near"}
    assert row["peers"]["far"]["us"] == 60.0 and "5x" in row["peers"]["far"]["stopped"]
    assert "stopped" not in row["peers"]["near"]


@onnxruntime
def test_large_outputs_get_a_row_of_new_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LARGE_OUTPUT_BYTES", 4 * 64 * 64 - 1)
    monkeypatch.setattr(rows, "_ratio", lambda measured: 2.0)  # one measurement is enough here
    result = run(budget_s=1.0)
    kinds = [(row["workload"], row["outputs"], row["verified"]) for row in result["rows"]]
    assert kinds == [("matmul_64", "bound", True), ("matmul_64", "fresh", True), ("conv_small", "bound", True)]
    fresh = result["rows"][1]
    assert fresh["peers"]["onnxruntime"]["outputs"] == "fresh" and set(fresh["rounds_us"]) == {"ours", "onnxruntime"}
    assert "extra" not in result["rows"][0] and fresh["flops"] == 2 * 64**3
    assert result["figures"]["rows"]["value"] == 2 and result["figures"]["fresh_rows"]["value"] == 1


def test_two_threads_are_compared_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = Side.ask

    def ask(self: Side, do: str, *arguments: Any, **request: Any) -> dict[str, Any]:
        if do == "threads":
            asked.append(request["threads"])
        return real(self, do, *arguments, **request)

    monkeypatch.setattr(Side, "ask", ask)
    (row,) = run(peers=(), only="matmul*", threads=2, budget_s=0.0)["rows"]
    assert row["verified"] and asked == [1, 2] * rows.SCALING_ROUNDS
    assert row["detail"]["scaling"]["one_thread_us"] > 0 < row["detail"]["scaling"]["us"]


def test_a_variant_that_is_missing_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilewright.tools.peers._LIBRARY_FOLDERS", ("/nonexistent",))
    (row,) = run(peers=("numpy+tcmalloc",), only="matmul*", budget_s=0.0)["rows"]
    assert row["verified"] and "apt-get install" in row["peers"]["numpy+tcmalloc"]["skip"]


def test_compare(tmp_path: Path) -> None:
    def result(us: float, name: str = "w", verified: bool = True) -> dict[str, Any]:
        row = {
            "workload": name, "dims": {}, "threads": 1, "ours_us": us, "verified": verified,
            "rounds_us": {"ours": [us * f for f in (0.98, 0.99, 1.0, 1.01, 1.02)]},
        }  # fmt: skip
        return {"rows": [row], "figures": {"f": {"value": us}}}

    def verdict(a: dict[str, Any], b: dict[str, Any]) -> Any:
        return compare.compare(a, b)["rows"][0]["verdict"]

    assert verdict(result(2.0), result(1.0)) == "faster"
    assert verdict(result(1.0), result(2.0)) == "slower"
    assert verdict(result(1.0), result(1.01)) == "same"
    assert verdict(result(1.0), result(1.0, verified=False)) == "unverified"
    missing = compare.compare(result(1.0), result(1.0, "v"))["missing"]
    assert missing == [{"workload": "w", "only_in": "A"}, {"workload": "v", "only_in": "B"}]
    assert compare.compare(result(1.0), result(2.0))["figures"] == {"f": {"a": 1.0, "b": 2.0}}
    compare.table(compare.compare(result(1.0), result(1.0, "v")))
    (tmp_path / "x.json").write_text("{}")
    for name in ("x.json", "none.json"):
        with pytest.raises(UserError, match="U003"):
            compare.read(tmp_path / name)


def test_a_side_is_stopped_between_bursts_and_ends_with_its_parent(tmp_path: Path) -> None:
    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return "gone"

    with Side("oracle", 1) as side:
        with pytest.raises(SideFailed, match="unknown request"):
            side.ask("nonsense", 30)
        pid = side._process.pid
        deadline = time.monotonic() + 5
        while state(pid) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state(pid) == "T"
    assert state(pid) in ("gone", "Z")
    code = """
        import time
        from tilewright.tools.sides import Side
        side = Side("oracle", 1)
        try:
            side.ask("nonsense", 30)
        except Exception:
            print(side._process.pid, flush=True)
        time.sleep(60)
        """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 5
    while state(child) not in ("gone", "Z") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state(child) in ("gone", "Z")


def test_our_side_cannot_import_other_frameworks() -> None:
    code = """
        from tilewright.tools.ours import FORBIDDEN, forbid_frameworks
        forbid_frameworks()
        import importlib
        for name in FORBIDDEN:
            try:
                importlib.import_module(name)
            except ImportError:
                print(name)
        """
    output = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert {"torch", "onnxruntime", "openvino", "jax"} <= set(output.stdout.split())


def test_the_lock_waits_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = """
        import sys, pathlib
        from tilewright.tools.lock import timing_lock
        with timing_lock("holder", path=pathlib.Path(sys.argv[1])):
            print("held", flush=True)
            sys.stdin.readline()
        """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        assert holder.stdin is not None
        holder.stdin.write("\n")
        holder.stdin.flush()

    with timing_lock("us", path=path, say=say) as waited_s:
        assert waited_s > 0
    assert len(said) == 1 and f"process {holder.pid} (holder)" in said[0] and "waiting" in said[0]
    holder.communicate()
    with timing_lock("us", path=path, say=said.append) as waited_s:
        assert waited_s < 1.0 and len(said) == 1


def test_plain_progress_is_one_line_a_second() -> None:
    text = io.StringIO()
    with progress.display("tune", output=progress.console(text)) as shown:
        for done in range(100):
            shown.update(TuningEvent("k0", done, 100, 1234.5, 1.5, {"hang": 2, "crash": 1}, 1.0, 9.0))
        shown.update(TuningEvent("k0", 100, 100, 1200.0, 1.6, {}, 1.0, 0.0, finished=True))
        shown.note("[brackets] stay")
    lines = text.getvalue().splitlines()
    assert lines[0] == "k0: 0/100 tried, best 1.23 ms, 1.50x of default, rejected 1 crash, 2 hang, 9 s left"
    assert lines[1].startswith("k0: 100/100") and lines[2] == "[brackets] stay" and len(lines) == 3


def test_live_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setenv("TERM", "xterm")
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, no_color=True)
    with progress.display("tune", output=console) as shown:
        shown.update(TuningEvent("k0", 1, 100, 0.5, 1.5, {"hang": 2}, 1.0, 9.0))
        shown.note("a note")
    assert "500 ns" in text.getvalue() and "a note" in text.getvalue() and "1.50x" in text.getvalue()
    assert progress.format_time_us(2.5e6) == "2.50 s" and progress.format_time_us(None) == "-"
