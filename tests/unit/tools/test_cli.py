"""The command line: every command, its JSON, its exit status, Ctrl-C, and what it costs to start."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from tilewright.tools import cli as commands
from tilewright.tools import doctor, outcome, wiring
from tilewright.tools.lock import timing_lock
from tilewright.tune.database import Database, Record

FAKE = Path(__file__).parent / "fake_compiler"
SOURCE = Path(commands.__file__).parents[2]
PROGRAM = """program matmul(a: f32[4, 3], b: f32[3, 5]):
  c: f32[i<4, j<5] = sum(k<3) a[i, k] * b[k, j]
  return c
"""


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "m.prog").write_text(PROGRAM)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in for the compiler, in this process."""
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("fake_compiler_inline", FAKE / "sitecustomize.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    kept = {name: getattr(wiring, name) for name in vars(wiring) if callable(getattr(wiring, name))}
    spec.loader.exec_module(module)
    sys.path[:] = path
    yield module
    for name, value in kept.items():
        setattr(wiring, name, value)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(commands.cli, [str(argument) for argument in arguments])


def child(*arguments: object, fault: str = "", fake: bool = True, **more: Any) -> subprocess.Popen[str]:
    paths = [str(FAKE), str(SOURCE)] if fake else [str(SOURCE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TW_FAKE": fault, **more}
    return subprocess.Popen(
        [sys.executable, "-m", "tilewright", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=_heed_ctrl_c,
    )  # fmt: skip


def _heed_ctrl_c() -> None:
    """A shell starts what it runs in the background with SIGINT ignored, and children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_every_command_has_help_and_json() -> None:
    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        result = invoke(*path, "--help")
        assert result.exit_code == 0 and (command.help or "").strip(), path
        if isinstance(command, click.Group):
            for name, inner in command.commands.items():
                walk(inner, (*path, name))
        else:
            assert any("--json" in option.opts for option in command.params), path

    walk(commands.cli, ())
    assert set(commands.cli.commands) == {
        "tune", "run", "bench", "dump", "explain", "check", "coverage", "doctor", "calibrate", "db",
        "fuzz",
    }  # fmt: skip


def test_the_page_names_every_command_and_option() -> None:
    page = (SOURCE.parent / "docs" / "cli.md").read_text()
    for name, command in commands.cli.commands.items():
        assert f"tilewright {name}" in page
        for option in command.params:
            long = [text for text in option.opts if text.startswith("--")]
            assert not long or any(text in page for text in long), (name, option.opts)


def test_run(fake: Any, tmp_path: Path) -> None:
    a, b = np.ones((4, 3), np.float32), np.arange(15, dtype=np.float32).reshape(3, 5)
    np.savez(tmp_path / "x.npz", a=a, b=b)
    result = invoke("run", "m.prog", "--input", "x.npz", "--output", "y.npz", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert "c: float32[4, 5]" in result.output
    with np.load("y.npz") as file:
        np.testing.assert_array_equal(file["c"], a @ b)
    assert json.loads(Path("r.json").read_text())["outputs"] == {"c": {"dtype": "float32", "shape": [4, 5]}}


def test_run_with_bad_files(fake: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(3))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and then nothing")
    np.savez(tmp_path / "object.npz", a=np.array([object()]))
    for source, code, status in (
        ("none.npz", "U003", 2), ("cut.npz", "U003", 2), ("x.npy", "U003", 2), ("object.npz", "R005", 3),
    ):  # fmt: skip
        result = invoke("run", "m.prog", "--input", source, "--json", "e.json")
        assert result.exit_code == status, (source, result.output)
        error = json.loads(Path("e.json").read_text())
        assert error["error"]["code"] == code and error["error"]["next"] and error["status"] == status
        assert f"[{code}]" in result.output
    np.savez(tmp_path / "ok.npz", a=np.ones((4, 3), np.float32), b=np.ones((3, 5), np.float32))
    result = invoke("run", "m.prog", "--input", "ok.npz", "--output", "none/y.npz")
    assert result.exit_code == 2 and "U003" in result.output


def test_json_on_standard_output_is_all_there_is(fake: Any) -> None:
    for arguments in (
        ("tune", "m.prog", "--budget", "0"), ("dump", "m.prog", "--stage", "plan"), ("explain", "m.prog"),
        ("check", "m.prog"), ("calibrate",), ("doctor",), ("db", "list"), ("db", "export", "a.jsonl"),
        ("db", "import", "a.jsonl"), ("db", "prune", "--trials", "3"),
    ):  # fmt: skip
        result = invoke(*arguments, "--json", "-")
        assert result.exit_code == 0, (arguments, result.output)
        json.loads(result.stdout)


def test_tune(fake: Any) -> None:
    result = invoke("tune", "m.prog", "--budget", "5s", "--threads", "1", "-o", "m.twa", "--json", "t.json")
    assert result.exit_code == 0, result.output
    assert "use it: tilewright run m.prog --frozen" in result.output
    assert "k0: 3/10 tried, best 12.5 us, 1.25x of default, rejected 1 hang" in result.output
    assert json.loads(Path("t.json").read_text())["stats"]["kernels_tuned"] == 1
    assert Path("m.twa").exists()
    invoke("tune", "m.prog", "--budget", "0", "--json", "t.json")
    assert json.loads(Path("t.json").read_text())["stats"]["kernels_tuned"] == 0


def test_dump_explain_check(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("dump", "m.prog", "--stage", "loops", "--kernel", "3").output.startswith("loops of 3\nprogram")
    assert invoke("explain", "m.prog", "--memory").output == "explained None True\n"
    result = invoke("check", "m.prog", "--seeds", "2", "--json", "c.json")
    assert result.exit_code == 0 and len(json.loads(Path("c.json").read_text())["rows"]) == 2
    monkeypatch.setattr(fake, "FAULT", "wrong")
    result = invoke("check", "m.prog")
    assert result.exit_code == 1 and "WRONG" in result.output


def test_statuses(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for fault, status, said in (("refuse", 3, "[F005] operator Foo"), ("bug", 4, "[X001] IndexError"), ("interrupt", 130, "kept")):
        monkeypatch.setattr(fake, "FAULT", fault)
        result = invoke("explain", "m.prog", "--json", "e.json")
        assert result.exit_code == status and said in result.output, result.output
    assert json.loads(Path("e.json").read_text())["error"]["code"] == "X001"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("tune",),
        ("tune", "m.prog", "--budget", "soon"),
        ("tune", "m.prog", "--threads", "0"),
        ("tune", "m.prog", "--target", "gpu"),
        ("tune", "none.onnx"),
        ("tune", "m.prog", "--dim", "H"),
        ("dump", "m.prog", "--stage", "everything"),
        ("bench", "--suite", "nonsense"),
        ("bench", "--peers", "nonsense"),
        ("bench", "--only", "nonsense"),
        ("bench", "--rounds", "3"),
        ("bench", "compare", "a.json", "b.json"),
        ("db", "import", "none.jsonl"),
        ("doctor", "--json", "none/x.json"),
    ],
)
def test_wrong_use_is_2(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == outcome.WRONG_USE, result.output
    assert "Traceback" not in result.output and result.output


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_NUM_THREADS", "two")
    result = invoke("db", "list")
    assert result.exit_code == 2
    assert "[U003] setting num_threads" in result.output and "TILEWRIGHT_NUM_THREADS" in result.output


def test_bench_in_a_child(tmp_path: Path) -> None:
    process = child(
        "bench", "--only", "matmul_512", "--peers", "none", "--budget", "1s", "--rounds", "11", "--json", "b.json"
    )
    output, errors = process.communicate(timeout=120)
    row = json.loads(Path("b.json").read_text())["rows"][0]
    assert process.returncode == 0, (output, errors)
    assert row["verified"] and "matmul_512" in output and "import_ms" in output
    again = child("bench", "compare", "b.json", "b.json", "--json", "-")
    output, errors = again.communicate(timeout=60)
    assert json.loads(output)["rows"][0]["verdict"] == "same", errors
    wrong = child("bench", "--only", "matmul_512", "--peers", "none", "--budget", "0", fault="wrong")
    output, errors = wrong.communicate(timeout=120)
    assert wrong.returncode == 1 and "UNVERIFIED" in output


def test_ctrl_c_while_waiting_for_the_lock(tmp_path: Path) -> None:
    with timing_lock("a test", path=tmp_path / "tilewright-timing.lock"):
        process = child("tune", "m.prog", "--budget", "1s")
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "waiting for the timing lock held by process" in line and "a test" in line
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors and "kept" in errors


def test_ctrl_c_ends_the_workers_of_bench() -> None:
    process = child("bench", "--only", "matmul_512", "--peers", "none", fault="hang")
    deadline = time.monotonic() + 30
    workers: list[str] = []
    while not workers and time.monotonic() < deadline:
        time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = children.read_text().split() if children.exists() else []
    assert workers
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_no_color_and_plain_output() -> None:
    process = child("doctor", fake=False, NO_COLOR="1")
    output, errors = process.communicate(timeout=60)
    assert "\x1b[" not in output + errors and "TILEWRIGHT_CACHE_DIR" in output
    assert process.returncode in (0, 1)


def test_a_closed_pipe_is_no_error() -> None:
    process = child("doctor", fake=False)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.wait()
    process.stderr.close()
    assert "Traceback" not in errors


def test_the_command_line_starts_light() -> None:
    code = "import sys, tilewright.tools.cli; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(SOURCE)}
    ).stdout.split()
    assert not {"numpy", "llvmlite", "rich", "onnx", "sqlite3"} & set(output)


def test_db_commands(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    with Database(path) as database:
        for n in range(3):
            database.add(Record("key", {"M": 4}, "x", 1, 1, "e", "f", "s", (1000.0 + n,), 1.5, confirmed=n == 0, label="k"))
    result = invoke("db", "list", "--db", path)
    assert "k {\"M\":4} x 1 threads: best 1.00 us, 1.50x of default, 3 timed, 0 rejected" in result.output
    assert "3 records written" in invoke("db", "export", "o.jsonl", "--db", path).output
    assert "3 new records" in invoke("db", "import", "o.jsonl").output
    assert "0 new records" in invoke("db", "import", "o.jsonl").output
    assert "1 records removed, 2 left" in invoke("db", "prune", "--trials", "1").output


def test_doctor_reports_origins_and_problems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILEWRIGHT_DEBUG", "0")
    facts = doctor.examine()
    origins = {row["name"]: row["origin"] for row in facts["settings"]}
    assert origins["debug"] == "TILEWRIGHT_DEBUG" and origins["seed"] == "default"
    assert facts["core"]["numpy"] and "onnx" in facts["extras"]["peers"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    result = invoke("doctor", "--json", "d.json")
    assert result.exit_code == 1 and "set TILEWRIGHT_CACHE_DIR" in result.output
    assert json.loads(Path("d.json").read_text())["problems"]


def test_output_json_is_plain() -> None:
    value = outcome._plain({"a": (1, 2.0, float("nan")), "b": np.float32(1.5), "c": Path("x"), "d": {3: None}})
    assert value == {"a": [1, 2.0, None], "b": 1.5, "c": "x", "d": {"3": None}}
