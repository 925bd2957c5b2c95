"""The folder of a campaign: how far each kind got, what was counted, and every case that failed.

In: a folder, or none. Out: `Corpus`. Invariants: a file appears whole; counts of earlier runs are
never lost; a failing case stays, with a note whether it still fails. A full disk loses the text of
a case (its number makes it again), never the run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tilewright.errors import UserError
from tilewright.tools import outcome

__all__ = ["Corpus", "FailedCase", "Tally"]

_FORMAT = 1


@dataclass
class FailedCase:
    """A case that failed: `campaign` made it as `number`; `failure` groups failures."""

    campaign: str
    number: int
    failure: str
    message: str
    target: str
    threads: int
    file: str = ""
    count: int = 1
    fixed: bool = False
    symbolic: bool = False


@dataclass
class Tally:
    """Counts of one kind of campaign over all runs."""

    programs: int = 0
    generated: int = 0
    valid: int = 0
    pairs: int = 0
    wrong: int = 0
    errors: int = 0
    crashes: int = 0
    out_of_bounds: int = 0
    seconds: float = 0.0
    drawn: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    next: dict[str, int] = field(default_factory=dict)  # seed -> number of the next case


class Corpus:
    """What is kept between runs; without a folder it lives in memory only."""

    def __init__(self, folder: Path | None = None) -> None:
        """Errors: U003 where the folder holds something else, another format, or is in use."""
        self.folder = folder
        self.tallies: dict[str, Tally] = {}
        self.failed: list[FailedCase] = []
        self.coverage: dict[str, Any] = {}
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                "U003", f"the folder {folder} cannot be made: {error.strerror}", where="--corpus",
                hint="name a folder that you may write",
            ) from None  # fmt: skip
        self._lock = open(folder / "lock", "w")  # noqa: SIM115 - held as long as the corpus
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "U003", f"another campaign runs in {folder}", where="--corpus",
                hint="wait until it ends, or name another folder",
            ) from None  # fmt: skip
        if self._state.is_file():
            self._load()

    @property
    def _state(self) -> Path:
        assert self.folder is not None
        return self.folder / "state.json"

    def _load(self) -> None:
        try:
            data = json.loads(self._state.read_text(encoding="utf-8"))
        except ValueError:
            data = {}
        if data.get("format") != _FORMAT:
            raise UserError(
                "U003", f"{self._state} is no state of a campaign, or of another version",
                where="--corpus", hint="name an empty folder",
            )  # fmt: skip
        for kind, tally in data["kinds"].items():
            t = self.tallies[kind] = Tally(**tally)
            for name in ("drawn", "others", "targets"):
                setattr(t, name, Counter(getattr(t, name)))
        self.failed = [FailedCase(**f) for f in data["failed"]]
        self.coverage = data.get("coverage", {})

    def save(self) -> None:
        """Write the state; a reader sees the old one or the new one. Errors: U003."""
        if self.folder is None:
            return
        data = {
            "format": _FORMAT,
            "kinds": {kind: vars(t) for kind, t in self.tallies.items()},
            "failed": [asdict(f) for f in self.failed],
            "coverage": self.coverage,
        }
        outcome.write_json(data, str(self._state))

    def close(self) -> None:
        """Let others use the folder."""
        if self.folder is not None:
            self._lock.close()

    def tally(self, kind: str) -> Tally:
        return self.tallies.setdefault(kind, Tally())

    def add(self, failed: FailedCase, data: bytes, suffix: str) -> bool:
        """Keep a failing case. False where one that fails alike is kept already: it is counted."""
        for known in self.failed:
            alike = (known.campaign, known.failure) == (failed.campaign, failed.failure)
            if alike and not known.fixed and not failed.failure.startswith("wrong"):
                known.count += 1
                return False
        self.failed.append(failed)
        if self.folder is not None and data:
            name = f"{hashlib.sha256(data).hexdigest()[:12]}{suffix}"
            failed.file = name if self._put(name, data) else ""
        return True

    def _put(self, name: str, data: bytes) -> bool:
        """Write a case, whole or not at all; was there room for it?"""
        assert self.folder is not None
        target = self.folder / "failed" / name
        temporary = target.with_name(f".{name}.{os.getpid()}")
        try:
            target.parent.mkdir(exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(target)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return False
        return True

    def rewrite(self, failed: FailedCase, data: bytes) -> None:
        """Put the reduced case in the place of the one that was found, if there is room."""
        if self.folder is not None and failed.file and data:
            self._put(failed.file, data)

    def data_of(self, failed: FailedCase) -> bytes:
        """The kept case; empty where there is none."""
        if self.folder is None or not failed.file:
            return b""
        path = self.folder / "failed" / failed.file
        return path.read_bytes() if path.is_file() else b""
