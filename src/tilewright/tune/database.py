"""The tuning database: every timing and every rejection, in one SQLite file.

In: `Record`s from measurement. Out: `records`, `best`, JSON lines to carry to another machine.
Invariant: a record is written whole or not at all, and is never changed afterwards; its checksum is
verified when it is read, and one that is damaged is set aside, never used; several processes may
write at once, and one that is killed loses only what it had not committed. WAL needs
shared memory, so the file must not lie on a network file system: use export and import there.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
import statistics
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tilewright.errors import TargetError, UserError
from tilewright.tune.record import COLUMNS, RECORD_VERSION, Record, canonical

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["RECORD_FORMAT", "SCHEMA_VERSION", "Database", "Record", "TaskSummary"]

log = logging.getLogger("tilewright.tune.database")

RECORD_FORMAT = "tilewright-records"
WAIT_S = 30  # for other processes that write
APPLICATION_ID = 0x544C5752  # "TLWR": tells our files from other programs' SQLite files

# Schema version n is reached by running the first n entries in order; an entry never changes.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE records (
             id INTEGER PRIMARY KEY,
             digest TEXT NOT NULL UNIQUE,
             task_key TEXT NOT NULL,
             dims TEXT NOT NULL,
             target TEXT NOT NULL,
             threads INTEGER NOT NULL,
             space_version INTEGER NOT NULL,
             codegen_epoch TEXT NOT NULL,
             fingerprint TEXT NOT NULL,
             schedule TEXT NOT NULL,
             status TEXT NOT NULL,
             code TEXT NOT NULL,
             detail TEXT NOT NULL,
             samples TEXT NOT NULL,
             ratio REAL,
             confirmed INTEGER NOT NULL,
             created REAL NOT NULL)""",
        "CREATE INDEX records_by_task ON records (task_key, dims, target, threads)",
    ),
    ("ALTER TABLE records ADD COLUMN label TEXT NOT NULL DEFAULT ''",),
    ("CREATE TABLE damaged_records (digest TEXT NOT NULL, content TEXT NOT NULL, found REAL)",),
)
SCHEMA_VERSION = len(MIGRATIONS)

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_UNWRITABLE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


@dataclass(frozen=True)
class TaskSummary:
    """One line of `db list`."""

    task_key: str
    dims: str
    target: str
    threads: int
    label: str
    timed: int
    rejected: int
    confirmed: int
    best_ratio: float | None
    best_ns: float | None
    newest_s: float


class Database:
    """A handle on the tuning database at `path`; safe in threads, after `fork`, in many processes.

    `read_only=True` (frozen mode) never creates, migrates, or writes; a missing file reads as
    empty. A damaged file is renamed aside with a warning, and a fresh one is started.
    Errors: R010 when the file cannot be opened or written; T001 when it is another program's file
    or of a newer version, or damaged and opened read-only.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self.quarantined: Path | None = None
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._inode = 0
        with self._guarded():
            self._connect()

    # ---- opening -------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        """Return this process's connection; one inherited through `fork` is left alone."""
        if self._connection is not None and self._pid == os.getpid():
            if self.read_only or self._inode == self._inode_now():
                return self._connection
            self._close_connection()  # the file was removed or replaced under us
        self._connection = self._open_read_only() if self.read_only else self._open()
        self._pid = os.getpid()
        self._inode = self._inode_now()
        return self._connection

    def _inode_now(self) -> int:
        try:
            return self.path.stat().st_ino
        except OSError:
            return 0

    def _open_read_only(self) -> sqlite3.Connection:
        if not self.path.exists():
            connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
            self._migrate(connection)
            return connection
        uri = self.path.absolute().as_uri()
        try:
            connection = self._raw(uri + "?mode=ro")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _UNWRITABLE:
                raise
            # WAL wants to create its shared memory; in a folder we may not write, nobody else does.
            connection = self._raw(uri + "?immutable=1")
        with ExitStack() as undo:
            undo.callback(connection.close)
            version = self._version(connection)
            if version < SCHEMA_VERSION:
                raise UserError(
                    "T001",
                    f"{self.path} has the old schema version {version} and is opened read-only",
                    hint="open it once without frozen mode; that brings it up to date",
                )
            undo.pop_all()
        return connection

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error.strerror or str(error)) from error
        connection = self._raw(self.path.absolute().as_uri() + "?mode=rwc")
        with ExitStack() as undo:
            undo.callback(connection.close)
            version = self._version(connection)  # before anything is changed in the file
            _use_log(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            if version < SCHEMA_VERSION:
                self._migrate(connection)
            problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if problem != "ok":
                raise _Damaged(str(problem))
            undo.pop_all()
        return connection

    @staticmethod
    def _raw(uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=WAIT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute(f"PRAGMA busy_timeout={1000 * WAIT_S}")
        return connection

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return the schema version. Errors: T001 for a file that is not ours, or newer."""
        connection.execute("BEGIN")  # one snapshot, while another process may be migrating
        try:
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        finally:
            connection.execute("COMMIT")
        if application not in (0, APPLICATION_ID) or (application == 0 and tables):
            raise UserError(
                "T001",
                f"{self.path} is a database of another program",
                hint="choose another file with --db or TILEWRIGHT_DB",
            )
        if version > SCHEMA_VERSION:
            raise UserError(
                "T001",
                f"{self.path} has schema version {version}; this release knows {SCHEMA_VERSION}",
                hint="upgrade tilewright, or choose another file with --db or TILEWRIGHT_DB",
            )
        return version

    @staticmethod
    def _migrate(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:  # another process may have migrated while we waited for the lock
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={max(version, SCHEMA_VERSION)}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    # ---- failures ------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Hold the lock; turn SQLite's failures into ours, and set a damaged file aside."""
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code in _DAMAGED:
                    self._quarantine(str(error))
                elif code in _UNWRITABLE or code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                    raise _unwritable(self.path, str(error)) from error
                else:
                    raise
            except _Damaged as error:
                self._quarantine(str(error))

    def _quarantine(self, reason: str) -> None:
        """Rename the damaged file aside, once among all processes, and start a fresh one."""
        self._close_connection()
        if self.read_only:
            raise UserError(
                "T001",
                f"{self.path} is damaged: {reason}",
                hint="open it once without frozen mode: it is then set aside and a new one started",
            )
        try:
            with open(f"{self.path}.lock", "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._is_damaged():  # else another process has replaced it
                    stamp = time.strftime("%Y%m%d-%H%M%S")
                    aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}-{os.getpid()}")
                    self.path.rename(aside)
                    for suffix in ("-wal", "-shm"):
                        companion = Path(f"{self.path}{suffix}")
                        if companion.exists():
                            companion.rename(f"{aside}{suffix}")
                    self.quarantined = aside
                    log.warning(
                        "[T001] the tuning database %s is damaged (%s); it was set aside as %s, "
                        "and a new one is started",
                        self.path, reason, aside,
                    )  # fmt: skip
                self._connect()
        except OSError as error:
            raise _unwritable(self.path, error.strerror or str(error)) from error

    def _is_damaged(self) -> bool:
        if not self.path.exists():
            return False
        try:
            self._open().close()
        except _Damaged:
            return True
        except sqlite3.DatabaseError as error:
            return error.sqlite_errorcode & 0xFF in _DAMAGED
        return False

    # ---- writing -------------------------------------------------------------------------------

    def add(self, record: Record) -> bool:
        """Add one record; False when it is there already."""
        return self.add_many([record]) == 1

    def add_many(self, records: Iterable[Record]) -> int:
        """Add records in one transaction; return how many were new.

        A file found damaged while writing is set aside, and the records go to the fresh one.
        """
        rows = [(record.key, *record.values()) for record in records]
        if self.read_only:
            raise UserError(
                "R010",
                f"{self.path} is open read-only",
                hint="frozen mode records nothing; drop --frozen or TILEWRIGHT_FROZEN",
            )
        names = ", ".join(("digest", *COLUMNS))
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        for _attempt in range(2):
            added: int | None = None
            with self._guarded(), self._transaction() as connection:
                before = connection.total_changes
                connection.executemany(
                    f"INSERT OR IGNORE INTO records ({names}) VALUES ({marks})", rows
                )
                added = connection.total_changes - before
            if added is not None:
                return added
        raise UserError("T001", f"{self.path} was damaged twice in a row", hint="check the disk")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def prune(
        self,
        *,
        keep_epoch: str | None = None,
        older_than_s: float | None = None,
        trials_per_task: int | None = None,
    ) -> int:
        """Remove trials; return how many. Confirmed records go only by age or with their epoch.

        keep_epoch: remove records of other epochs. older_than_s: remove records of that age.
        trials_per_task: keep the fastest so many unconfirmed timings per task, and no rejections.
        """
        removed = 0
        with self._guarded(), self._transaction() as connection:
            if keep_epoch is not None:
                removed += connection.execute(
                    "DELETE FROM records WHERE codegen_epoch != ?", (keep_epoch,)
                ).rowcount
            if older_than_s is not None:
                removed += connection.execute(
                    "DELETE FROM records WHERE created < ?", (time.time() - older_than_s,)
                ).rowcount
            if trials_per_task is not None:
                removed += connection.execute(
                    """DELETE FROM records WHERE confirmed = 0 AND id NOT IN (
                         SELECT id FROM (
                           SELECT id, row_number() OVER (
                             PARTITION BY task_key, dims, target, threads, fingerprint,
                                          space_version, codegen_epoch
                             ORDER BY ratio DESC) AS place
                           FROM records WHERE confirmed = 0 AND status = 'ok')
                         WHERE place <= ?)""",
                    (trials_per_task,),
                ).rowcount
        if removed:
            with self._guarded():
                self._connect().execute("VACUUM")
        return removed

    # ---- reading -------------------------------------------------------------------------------

    def records(
        self,
        *,
        task_key: str | None = None,
        dims: Mapping[str, int] | None = None,
        target: str | None = None,
        threads: int | None = None,
        space_version: int | None = None,
        codegen_epoch: str | None = None,
        fingerprint: str | None = None,
        status: str | None = None,
        confirmed: bool | None = None,
    ) -> list[Record]:
        """Return the records that match every given field, oldest first, but for damaged ones."""
        wanted: dict[str, object] = {
            "task_key": task_key,
            "dims": None if dims is None else canonical(dict(dims)),
            "target": target,
            "threads": threads,
            "space_version": space_version,
            "codegen_epoch": codegen_epoch,
            "fingerprint": fingerprint,
            "status": status,
            "confirmed": None if confirmed is None else int(confirmed),
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given) or "1"
        rows = self._rows(
            f"SELECT digest, {', '.join(COLUMNS)} FROM records WHERE {where} ORDER BY created, id",
            tuple(given.values()),
        )
        found: list[Record] = []
        damaged: list[tuple[object, ...]] = []
        for row in rows:
            record = _checked(row)
            if record is None:
                damaged.append(row)
            else:
                found.append(record)
        if damaged:
            self._set_aside(damaged)
        return found

    def _set_aside(self, rows: list[tuple[object, ...]]) -> None:
        """Move rows whose checksum is wrong to `damaged_records`, and say so."""
        log.warning(
            "[T001] %d records of the tuning database %s are damaged; they are not used",
            len(rows), self.path,
        )  # fmt: skip
        if self.read_only:
            return
        now = time.time()
        kept = [(str(row[0]), json.dumps(row[1:], default=repr), now) for row in rows]
        with self._guarded(), self._transaction() as connection:
            connection.executemany("INSERT INTO damaged_records VALUES (?, ?, ?)", kept)
            gone = [(row[0],) for row in rows]
            connection.executemany("DELETE FROM records WHERE digest = ?", gone)

    def best(
        self,
        task_key: str,
        dims: Mapping[str, int],
        *,
        target: str,
        threads: int,
        space_version: int,
        codegen_epoch: str,
        fingerprint: str,
        confirmed: bool = True,
    ) -> Record | None:
        """Return the newest record of the schedule with the best paired ratio, or None.

        The ratio of a schedule is the median over its records, so one lucky window does not win.
        Records of another epoch or machine never answer here; ask `records` for them as a prior.
        confirmed: False also looks at trials that nobody re-measured.
        """
        found: dict[str, list[Record]] = {}
        for record in self.records(
            task_key=task_key,
            dims=dims,
            target=target,
            threads=threads,
            space_version=space_version,
            codegen_epoch=codegen_epoch,
            fingerprint=fingerprint,
            status="ok",
            confirmed=True if confirmed else None,
        ):
            if record.ratio is not None:
                found.setdefault(record.schedule, []).append(record)
        if not found:
            return None

        def median_ratio(group: list[Record]) -> float:
            return statistics.median(record.ratio or 0.0 for record in group)

        return max(found.values(), key=median_ratio)[-1]

    def tasks(self) -> list[TaskSummary]:
        """Return one summary per task, dims, target and number of threads."""
        groups: dict[tuple[str, str, str, int], list[Record]] = {}
        for record in self.records():
            dims = canonical(dict(record.dims))
            where = (record.task_key, dims, record.target, record.threads)
            groups.setdefault(where, []).append(record)
        summaries = []
        for where, group in groups.items():
            kept = [record for record in group if record.confirmed and record.ratio is not None]
            best = max(kept, key=lambda record: record.ratio or 0.0, default=None)
            summary = TaskSummary(
                *where,
                label=group[-1].label,
                timed=sum(record.status == "ok" for record in group),
                rejected=sum(record.status == "rejected" for record in group),
                confirmed=sum(record.confirmed for record in group),
                best_ratio=None if best is None else best.ratio,
                best_ns=None if best is None else best.time_ns,
                newest_s=group[-1].created_s,
            )
            summaries.append(summary)
        return sorted(summaries, key=lambda summary: -summary.newest_s)

    def rejections(self, task_key: str | None = None) -> dict[str, int]:
        """Return how many candidates were refused, by code."""
        rows = self._rows(
            "SELECT code, count(*) FROM records WHERE status = 'rejected' AND "
            "(? IS NULL OR task_key = ?) GROUP BY code ORDER BY count(*) DESC",
            (task_key, task_key),
        )
        return {str(code): int(str(count)) for code, count in rows}

    def __len__(self) -> int:
        return int(str(self._rows("SELECT count(*) FROM records", ())[0][0]))

    def _rows(self, query: str, values: tuple[object, ...]) -> list[tuple[object, ...]]:
        for _attempt in range(2):
            with self._guarded():
                return self._connect().execute(query, values).fetchall()
        return []  # damaged, set aside, and the fresh file cannot be read either

    # ---- JSON lines ----------------------------------------------------------------------------

    def export_jsonl(self, path: Path | str) -> int:
        """Write every record as one JSON line after a header line; return how many."""
        lines = [canonical({"format": RECORD_FORMAT, "version": RECORD_VERSION})]
        lines += [str(record) for record in self.records()]
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
            temporary.replace(target)
        except OSError as error:
            raise _unwritable(target, error.strerror or str(error)) from error
        return len(lines) - 1

    def import_jsonl(self, path: Path | str) -> int:
        """Merge the records of a file that `export_jsonl` wrote; return how many were new.

        All of the file is read before anything is written.
        Errors: T001 with the line when it is not such a file, or of an unknown version.
        """
        records = []
        try:
            with open(path, encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if number == 1:
                        _check_header(line, path)
                    elif line.strip():
                        records.append(_parse_line(line, path, number))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                "T001", f"{path} cannot be read: {error}", hint="give a file that db export wrote"
            ) from error
        if not records and not Path(path).stat().st_size:
            _check_header("", path)
        return self.add_many(records)

    # ---- closing -------------------------------------------------------------------------------

    def _close_connection(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            with closing(self._connection):
                pass
        self._connection = None

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        with self._lock:
            self._close_connection()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _checked(row: tuple[object, ...]) -> Record | None:
    """The record of a row that starts with its checksum; None where they do not fit."""
    try:
        record = Record.from_row(row[1:])
    except (ValueError, TypeError, AttributeError):
        return None
    return record if record.key == row[0] else None


class _Damaged(Exception):
    """quick_check found a problem."""


def _use_log(connection: sqlite3.Connection) -> None:
    """Turn on write-ahead logging: readers and a writer do not wait for each other.

    That changes a new file, for which SQLite wants it alone and does not wait by itself: several
    processes may open it at once.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > deadline:
                raise
        time.sleep(0.005)


def _unwritable(path: Path, reason: str) -> TargetError:
    return TargetError(
        "R010",
        f"the tuning database {path} cannot be opened or written: {reason}",
        hint="free space, or choose another place with --db, TILEWRIGHT_DB or TILEWRIGHT_CACHE_DIR",
    )


def _check_header(line: str, path: Path | str) -> None:
    try:
        header = json.loads(line)
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or header.get("format") != RECORD_FORMAT:
        raise UserError(
            "T001",
            f"{path} is not a file of tuning records",
            where=f"{path}:1",
            hint="give a file that `tilewright db export` wrote",
        )
    if header.get("version") != RECORD_VERSION:
        raise UserError(
            "T001",
            f"{path} has record version {header.get('version')}; "
            f"this release knows {RECORD_VERSION}",
            where=f"{path}:1",
            hint="export it again with a matching release",
        )


def _parse_line(line: str, path: Path | str, number: int) -> Record:
    try:
        return replace(Record.parse(line))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            "T001",
            f"{path} has a damaged record: {error}",
            where=f"{path}:{number}",
            hint="nothing was imported; remove the line or export again",
        ) from None
