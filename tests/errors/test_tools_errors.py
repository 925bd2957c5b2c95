"""One test per code of the command line, the settings and the database: the exact message.

The codes of the front ends and of the runtime are tested beside them.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.config import config, current
from tilewright.errors import CODES, InternalError, TargetError, TilewrightError, UserError
from tilewright.tools import models, outcome, peers, suite, wheels, wiring
from tilewright.tune.database import APPLICATION_ID, Database, Record

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WHEELS_DIR", "NUM_THREADS", "DB", "FROZEN"):
        monkeypatch.delenv(f"TILEWRIGHT_{name}", raising=False)


def error_of(
    kind: type[TilewrightError], call: Any, *arguments: Any, **options: Any
) -> TilewrightError:
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    assert not isinstance(caught.value, InternalError)
    assert (
        pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    )  # it crosses processes
    return caught.value


def test_u001_suite() -> None:
    error = error_of(UserError, suite.load_suite, "spin")
    assert str(error) == "[U001] there is no suite 'spin'\n  next: did you mean spine? known: doors, kernels, models, spine"


def test_u001_peer() -> None:
    error = error_of(UserError, peers.check_names, ["onnxruntim"])
    assert str(error) == (
        "[U001] there is no peer 'onnxruntim'\n  next: did you mean onnxruntime? known: inductor, "
        "inductor_max, jax, numpy, onnxruntime, openvino, torch, each also with +tcmalloc"
    )


def test_u001_workload() -> None:
    error = error_of(UserError, suite.choose, suite.load_suite("spine"), only="softmx")
    assert error.message == "there is no workload 'softmx'" and error.hint.startswith(
        "did you mean softmax? known: "
    )


def test_u002(tmp_path: Path) -> None:
    error = error_of(UserError, wheels.model_path, "magika")
    assert str(error) == (
        "[U002] the wheel of magika is not in build/wheels\n  next: pip download --no-deps "
        "--only-binary=:all: -d build/wheels magika (or `make demo`)"
    )


def test_u003_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_NUM_THREADS", "two")
    error = error_of(UserError, current)
    assert str(error) == (
        "[U003] setting num_threads: expected a whole number from 1 to 4096, got 'two'\n"
        "  at TILEWRIGHT_NUM_THREADS\n"
        "  next: set TILEWRIGHT_NUM_THREADS or tilewright.config(num_threads=...)"
    )


def test_u003_name() -> None:
    error = error_of(UserError, config(targt="native").__enter__)
    assert str(error) == (
        "[U003] there is no setting 'targt'\n  at tilewright.config(...)\n  next: did you mean target?"
    )


def test_u003_files(tmp_path: Path) -> None:
    error = error_of(UserError, wiring.load_model, Path("m.onnx"))
    assert (
        str(error)
        == "[U003] there is no file m.onnx\n  at MODEL\n  next: give an ONNX file or a program"
    )
    error = error_of(UserError, outcome.write_json, {}, "none/x.json")
    assert str(error) == (
        "[U003] the JSON cannot be written to none/x.json: No such file or directory\n  at --json\n"
        "  next: give a path in a folder that exists, or - for standard output"
    )


def test_r005_in_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array(["text", None], dtype=object))
    error = error_of(UserError, models.read_arrays, tmp_path / "x.npz")
    assert str(error) == (
        f"[R005] the array a of {tmp_path}/x.npz holds Python objects\n  at --input\n"
        "  next: give numbers: array.astype(numpy.float32)"
    )


def test_r010() -> None:
    error = error_of(TargetError, Database, "/proc/none/t.sqlite")
    assert str(error) == (
        "[R010] the tuning database /proc/none/t.sqlite cannot be opened or written: No such file or directory\n"
        "  next: free space, or choose another place with --db, TILEWRIGHT_DB or TILEWRIGHT_CACHE_DIR"
    )


def test_t001_other_program(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "places.sqlite"
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE places (x)")
    raw.close()
    error = error_of(UserError, Database, path)
    assert str(error) == (
        f"[T001] {path} is a database of another program\n  next: choose another file with --db or TILEWRIGHT_DB"
    )


def test_t001_newer(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "t.sqlite"
    raw = sqlite3.connect(path)
    raw.execute(f"PRAGMA application_id={APPLICATION_ID}")
    raw.execute("PRAGMA user_version=99")
    raw.close()
    error = error_of(UserError, Database, path)
    assert error.message.startswith(f"{path} has schema version 99; this release knows ")
    assert error.hint == "upgrade tilewright, or choose another file with --db or TILEWRIGHT_DB"


def test_t001_line(tmp_path: Path) -> None:
    with Database(tmp_path / "t.sqlite") as database:
        database.add(Record("t", {}, "x", 1, 1, "e", "f", "s", (1.0,)))
        database.export_jsonl("a.jsonl")
        Path("a.jsonl").write_text(Path("a.jsonl").read_text() + "{}\n")
        error = error_of(UserError, database.import_jsonl, "a.jsonl")
    assert str(error) == (
        "[T001] a.jsonl has a damaged record: the fields are not those of a record\n  at a.jsonl:3\n"
        "  next: nothing was imported; remove the line or export again"
    )


def test_s002_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new.toml").write_text('format = 99\nname = "new"\n')
    monkeypatch.setattr(suite, "FOLDER", tmp_path)
    error = error_of(UserError, suite.load_suite, "new")
    assert error.code == "S002" and error.message == "suite new has format 99; this release knows 1"


def test_x001() -> None:
    error = outcome.as_internal(IndexError("tuple index out of range"))
    assert str(error) == (
        "[X001] IndexError: tuple index out of range\n"
        "  next: this is a bug; run again with TILEWRIGHT_DEBUG=1 for the traceback, and report it"
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("U001", "m"), 2),
        (UserError("U003", "m"), 2),
        (UserError("R001", "m"), 2),
        (UserError("R003", "m"), 2),
        (UserError("F010", "m"), 2),
        (UserError("T001", "m"), 2),
        (UserError("F001", "m"), 3),
        (UserError("F005", "m"), 3),
        (UserError("R005", "m"), 3),
        (TargetError("R013", "m"), 3),
        (TargetError("R010", "m"), 3),
        (TargetError("U003", "m"), 2),
        (UserError("V001", "m"), 1),
        (InternalError("X001", "m"), 4),
        (ValueError("m"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status(error: BaseException, status: int) -> None:
    assert outcome.exit_status(error) == status


def test_unknown_code_is_a_bug() -> None:
    with pytest.raises(KeyError):
        UserError("U999", "m")


def test_every_code_is_raised_somewhere_or_reserved() -> None:
    """A code of the table that no source file mentions is either new or dead; this is the list."""
    source = TESTS.parent / "src" / "tilewright"
    text = "".join(path.read_text() for path in source.rglob("*.py") if path.name != "errors.py")
    unused = {code for code in CODES if not re.search(rf'"{code}"', text)}
    unknown = set(re.findall(r'Error\(\s*"([A-Z]\d{3})"', text)) - set(CODES)
    assert not unknown, f"codes without a row in the table: {unknown}"
    assert len(unused) < len(CODES)
