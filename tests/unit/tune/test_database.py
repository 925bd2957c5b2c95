"""The tuning database: merging, migration, damage, read-only files, many processes, kill -9."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tilewright.errors import TargetError, TilewrightError, UserError
from tilewright.tune.database import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION, Database, Record

KEY: dict[str, Any] = {
    "target": "x86-avx512",
    "threads": 1,
    "space_version": 1,
    "codegen_epoch": "e1",
    "fingerprint": "cpu",
}
DIMS = {"M": 512, "N": 512}


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "task_key": "t",
        "dims": DIMS,
        **KEY,
        "schedule": '{"tile":1}',
        "samples_ns": (3.0, 1.0, 2.0),
        "ratio": 1.5,
        "created_s": 1000.0,
        **changes,
    }
    return Record(**values)


def rejected(**changes: Any) -> Record:
    return record(samples_ns=(), ratio=None, status="rejected", code="hang", detail="5 s", **changes)


def test_record_prints_and_parses() -> None:
    for one in (record(label="k1"), rejected(), record(confirmed=True, ratio=None)):
        again = Record.parse(str(one))
        assert again == one and again.key == one.key and str(again) == str(one)
    assert record().time_ns == 2.0
    assert record().key != record(confirmed=True).key
    assert record().key == record(label="other").key
    assert record(dims={"N": 512, "M": 512}).key == record().key


def test_record_refuses_nonsense() -> None:
    for changes in ({"status": "maybe"}, {"samples_ns": ()}, {"status": "rejected"}, {"code": "x", "status": "rejected"}):
        with pytest.raises(ValueError, match=r"status|samples"):
            record(**changes)


def test_keeps_every_timing_and_every_rejection(tmp_path: Path) -> None:
    with Database(tmp_path / "a" / "t.sqlite") as database:
        assert database.add_many([record(), record(created_s=1001.0), rejected(), record()]) == 3
        assert not database.add(record())
        assert len(database) == 3
        assert sorted(r.status for r in database.records()) == ["ok", "ok", "rejected"]
        assert database.rejections() == {"hang": 1} == database.rejections("t")
        assert database.rejections("u") == {}
        assert len(database.records(task_key="t", dims=DIMS, status="ok", **KEY)) == 2
        assert database.records(dims={"M": 1}) == []
    with Database(tmp_path / "a" / "t.sqlite") as database:
        assert database.records(status="ok")[0] == record()


def test_best_is_confirmed_and_of_this_machine_and_epoch(tmp_path: Path) -> None:
    with Database(tmp_path / "t.sqlite") as database:
        assert database.best("t", DIMS, **KEY) is None
        database.add_many(
            [
                record(schedule="lucky", ratio=9.0),
                record(schedule="default", ratio=1.0, confirmed=True),
                record(schedule="good", ratio=1.4, confirmed=True, created_s=1.0),
                record(schedule="good", ratio=1.2, confirmed=True, created_s=2.0),
                record(schedule="noisy", ratio=3.0, confirmed=True, created_s=1.0),
                record(schedule="noisy", ratio=0.8, confirmed=True, created_s=2.0),
                record(schedule="noisy", ratio=0.9, confirmed=True, created_s=3.0),
                record(schedule="foreign", ratio=5.0, confirmed=True, fingerprint="other"),
                record(schedule="stale", ratio=5.0, confirmed=True, codegen_epoch="e0"),
                record(schedule="two", ratio=5.0, confirmed=True, threads=2),
            ]
        )
        best = database.best("t", DIMS, **KEY)
        assert best is not None and best.schedule == "good" and best.created_s == 2.0
        trial = database.best("t", DIMS, **KEY, confirmed=False)
        assert trial is not None and trial.schedule == "lucky"
        assert database.best("t", {"M": 1}, **KEY) is None
        summary = {(s.target, s.threads): s for s in database.tasks()}[("x86-avx512", 1)]
        assert summary.timed == 9 and summary.confirmed == 8


def test_export_import_merges_without_duplicates(tmp_path: Path) -> None:
    with Database(tmp_path / "a.sqlite") as first, Database(tmp_path / "b.sqlite") as second:
        first.add_many([record(label="k"), rejected()])
        second.add_many([record(), record(created_s=5.0)])
        assert first.export_jsonl(tmp_path / "a.jsonl") == 2
        assert second.import_jsonl(tmp_path / "a.jsonl") == 1
        assert second.import_jsonl(tmp_path / "a.jsonl") == 0
        assert len(second) == 3
        second.export_jsonl(tmp_path / "b.jsonl")
        with Database(tmp_path / "c.sqlite") as third:
            third.import_jsonl(tmp_path / "b.jsonl")
            assert third.records() == second.records()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", ":1"),
        ("not json\n", ":1"),
        ('{"format":"other"}\n', ":1"),
        ('{"format":"tilewright-records","version":99}\n', ":1"),
        ('{"format":"tilewright-records","version":1}\nRECORD\nRECORD_CUT', ":3"),
        ('{"format":"tilewright-records","version":1}\n{"task_key":1}\n', ":2"),
    ],
)
def test_import_refuses_and_imports_nothing(tmp_path: Path, text: str, where: str) -> None:
    line = str(record())
    (tmp_path / "x.jsonl").write_text(text.replace("RECORD_CUT", line[:-9]).replace("RECORD", line))
    with Database(tmp_path / "t.sqlite") as database:
        with pytest.raises(UserError) as caught:
            database.import_jsonl(tmp_path / "x.jsonl")
        assert caught.value.code == "T001" and caught.value.where.endswith(where) and caught.value.hint
        assert len(database) == 0
        with pytest.raises(UserError, match="T001"):
            database.import_jsonl(tmp_path / "missing.jsonl")


def test_old_schema_is_migrated_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    raw = sqlite3.connect(path)
    for statement in MIGRATIONS[0]:
        raw.execute(statement)
    one = record()
    row = [one.key, *one.values()[:-1]]
    raw.execute(f"INSERT INTO records VALUES (1, {', '.join('?' * len(row))})", row)
    raw.execute(f"PRAGMA application_id={APPLICATION_ID}")
    raw.execute("PRAGMA user_version=1")
    raw.commit()
    raw.close()
    with pytest.raises(UserError, match="T001"):
        Database(path, read_only=True)
    with Database(path) as database:
        assert database.records() == [one]
        assert database.quarantined is None
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
    raw.close()


def test_newer_schema_and_other_programs_files_are_refused_untouched(tmp_path: Path) -> None:
    newer = tmp_path / "newer.sqlite"
    Database(newer).close()
    raw = sqlite3.connect(newer)
    raw.execute("PRAGMA user_version=99")
    raw.close()
    other = tmp_path / "other.sqlite"
    raw = sqlite3.connect(other)
    raw.execute("CREATE TABLE bookmarks (x)")
    raw.close()
    for path in (newer, other):
        before = path.read_bytes()
        for read_only in (False, True):
            with pytest.raises(UserError, match="T001") as caught:
                Database(path, read_only=read_only)
            assert caught.value.hint
        assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["garbage", "middle", "truncated"])
def test_damage_is_set_aside_with_a_warning(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.sqlite"
    with Database(path) as database:
        database.add_many(record(created_s=float(i), detail="x" * 200) for i in range(400))
    data = bytearray(path.read_bytes())
    if damage == "garbage":
        data[:] = b"this is no database" * 300
    elif damage == "middle":
        data[4096 : len(data) - 4096] = b"\xa5" * (len(data) - 8192)
    else:
        del data[len(data) // 2 :]
    path.write_bytes(data)
    with pytest.raises(UserError, match="T001"), Database(path, read_only=True) as frozen:
        frozen.records()
    with caplog.at_level(logging.WARNING, "tilewright"), Database(path) as database:
        assert database.quarantined is not None and database.quarantined.read_bytes() == bytes(data)
        assert "T001" in caplog.text and str(database.quarantined) in caplog.text
        assert len(database) == 0 and database.add(record())


def test_damage_found_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    database = Database(path)
    database.add_many(record(created_s=float(i), detail="x" * 200) for i in range(400))
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()
    with open(path, "r+b") as file:
        file.write(b"\xa5" * path.stat().st_size)
    assert database.add_many([record(created_s=float(i + 9000)) for i in range(50)]) == 50
    assert database.quarantined is not None
    assert len(database) == 50
    database.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE records SET ratio = 9.9 WHERE detail = 'a'",
        "UPDATE records SET schedule = '{\"tile\":2}' WHERE detail = 'a'",
        "UPDATE records SET samples = '[1.0' WHERE detail = 'a'",
        "UPDATE records SET samples = 'x', dims = '3', threads = 'many' WHERE detail = 'a'",
        "UPDATE records SET confirmed = 1, created = 5 WHERE detail = 'a'",
    ],
)
def test_a_record_that_does_not_fit_its_checksum_is_set_aside(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.sqlite"
    with Database(path) as database:
        database.add_many([record(detail="a"), record(detail="b")])
    raw = sqlite3.connect(path)
    raw.execute(change)
    raw.commit()
    raw.close()
    with Database(path, read_only=True) as database:
        assert [r.detail for r in database.records()] == ["b"]
    with caplog.at_level(logging.WARNING), Database(path) as database:
        assert [r.detail for r in database.records()] == ["b"]
        assert "1 records" in caplog.text and "damaged" in caplog.text
        caplog.clear()
        assert len(database) == 1 and [r.detail for r in database.records()] == ["b"]
        assert not caplog.text  # set aside once
        assert database.add(record(detail="a"))  # and can be measured again
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT count(*) FROM damaged_records").fetchone() == (1,)
    raw.close()


def test_replaced_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    with Database(path) as database:
        database.add(record())
        for file in tmp_path.iterdir():
            file.unlink()
        assert database.add(record()) and len(database) == 1
        assert path.exists()


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "t.sqlite", Path("/proc/none/t.sqlite"), tmp_path):
        with pytest.raises(TargetError) as caught:
            Database(path)
        assert caught.value.code == "R010" and "TILEWRIGHT_DB" in caught.value.hint
        assert str(path) in caught.value.message


def test_full_disk(tmp_path: Path) -> None:
    with Database(tmp_path / "t.sqlite") as database:
        database._connect().execute("PRAGMA max_page_count=20")
        with pytest.raises(TargetError, match="R010"):
            database.add_many(record(created_s=float(i), detail="x" * 999) for i in range(500))
        assert len(database) == 0
        assert database.add(record())


def test_read_only(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    with Database(path, read_only=True) as missing:
        assert missing.records() == [] and missing.best("t", DIMS, **KEY) is None
    assert not path.exists()
    with Database(path) as database:
        database.add(record(confirmed=True))
        with Database(path, read_only=True) as frozen:  # beside a live writer
            assert frozen.best("t", DIMS, **KEY) == record(confirmed=True)
    with Database(path, read_only=True) as frozen:
        assert len(frozen) == 1
        with pytest.raises(UserError, match="R010"):
            frozen.add(record(created_s=2.0))


def run_child(code: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_read_only_folder(tmp_path: Path) -> None:
    """A child that is not root (permission bits do not bind root) reads what it may not write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "t.sqlite"
        with Database(path) as database:
            database.add(record(confirmed=True))
        path.chmod(0o444)
        folder.chmod(0o555)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if os.getuid() == 0:
                    os.setuid(65534)
                assert len(Database(path, read_only=True)) == 1
                try:
                    Database(path).add(record(created_s=2.0))
                except TargetError as error:
                    status = 0 if error.code == "R010" else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        folder.chmod(0o755)


WRITER = """
    import sys, time
    from tilewright.tune.database import Database, Record
    path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with Database(path) as database:
        print("ready", flush=True)
        for i in range(count):
            database.add_many(
                Record("t", {"M": 1}, "x", 1, 1, "e", name, str(i), (1.0,), 1.0, created_s=float(j))
                for j in range(3))
            print(i, flush=True)
    """


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    children = [run_child(WRITER, path, f"p{n}", 60) for n in range(4)]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    with Database(path) as database:
        assert len(database) == 4 * 60 * 3
        assert database.quarantined is None


def test_a_new_file_that_another_process_writes_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # as while it turns on write-ahead logging
    left = threading.Event()
    timer = threading.Timer(0.3, lambda: (left.set(), other.close()))
    timer.start()
    with Database(path) as db:
        assert left.is_set()
        assert db.add(record()) is True
    timer.join()


def test_kill_9_keeps_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    for attempt in range(3):
        victim = run_child(WRITER, path, f"v{attempt}", 10**6)
        assert victim.stdout is not None
        committed = -1
        deadline = time.monotonic() + 0.2 + 0.15 * attempt
        assert victim.stdout.readline() == "ready\n"
        while time.monotonic() < deadline:
            committed = int(victim.stdout.readline())
        victim.send_signal(signal.SIGKILL)
        committed = max([committed, *(int(line) for line in victim.stdout.read().split("\n")[:-1])])
        victim.wait()
        victim.communicate()
        with Database(path) as database:
            assert database.quarantined is None
            found = database.records(fingerprint=f"v{attempt}")
            assert len(found) % 3 == 0  # a transaction is whole or absent
            assert len(found) >= 3 * (committed + 1)
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    raw.close()


def test_one_process_sets_a_damaged_file_aside_for_all(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    path.write_bytes(b"garbage" * 2000)
    children = [run_child(WRITER, path, f"p{n}", 20) for n in range(4)]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    with Database(path) as database:
        assert len(database) == 4 * 20 * 3


def test_threads_and_fork(tmp_path: Path) -> None:
    with Database(tmp_path / "t.sqlite") as database:
        threads = [
            threading.Thread(target=lambda n=n: [database.add(record(detail=f"{n}.{i}")) for i in range(20)])
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(database) == 160
        child = os.fork()
        if child == 0:
            ok = False
            try:
                ok = database.add(record(detail="child")) and len(database) == 161
            finally:
                os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert database.add(record(detail="parent")) and len(database) == 162


def test_prune(tmp_path: Path) -> None:
    with Database(tmp_path / "t.sqlite") as database:
        database.add_many(record(detail=str(i), ratio=i / 10, created_s=time.time()) for i in range(30))
        database.add_many([rejected(), record(confirmed=True), record(codegen_epoch="old", confirmed=True)])
        assert database.prune(keep_epoch="e1") == 1
        assert database.prune(trials_per_task=5) == 26
        kept = database.records(confirmed=False)
        assert [r.ratio for r in kept] == [2.5, 2.6, 2.7, 2.8, 2.9]
        assert database.best("t", DIMS, **KEY) is not None
        assert database.prune(older_than_s=3600.0) == 1  # the confirmed one was made in 1970
        assert len(database) == 5


def test_every_error_is_ours(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").mkdir()
    with Database(tmp_path / "t.sqlite") as database:
        for action in (database.export_jsonl, database.import_jsonl):
            with pytest.raises(TilewrightError):
                action(tmp_path / "d.jsonl")
    assert json.loads(str(record()))["task_key"] == "t"
