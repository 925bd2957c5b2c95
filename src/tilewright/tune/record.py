"""`Record`: one measurement, or one refusal, of one schedule.

In: nothing. Out: `Record`, its JSON line, its row in the database. Invariant: a record is a value;
equal content has an equal key, whatever its label.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

__all__ = ["COLUMNS", "RECORD_VERSION", "Record", "canonical"]

RECORD_VERSION = 1
COLUMNS = (
    "task_key", "dims", "target", "threads", "space_version", "codegen_epoch", "fingerprint",
    "schedule", "status", "code", "detail", "samples", "ratio", "confirmed", "created", "label",
)  # fmt: skip


def canonical(value: object) -> str:
    """JSON with sorted names and without spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Record:
    """One measurement, or one refusal, of one schedule; all times are nanoseconds.

    `ratio` is the time of the default schedule over the time of this one, paired in the same
    window (above 1: faster than the default). `confirmed` marks the re-measurement that a tuner
    makes before it keeps a schedule; "keep the default" is the default, confirmed with ratio 1.
    """

    task_key: str
    dims: Mapping[str, int]
    target: str
    threads: int
    space_version: int
    codegen_epoch: str
    fingerprint: str
    schedule: str
    samples_ns: tuple[float, ...] = ()
    ratio: float | None = None
    status: str = "ok"
    code: str = ""
    detail: str = ""
    confirmed: bool = False
    created_s: float = field(default_factory=time.time)
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.status not in ("ok", "rejected"):
            raise ValueError("status is ok or rejected")
        if (self.status == "ok") != bool(self.samples_ns) or (self.status == "rejected") != bool(
            self.code
        ):
            raise ValueError("an ok record has samples, a rejected one a code")

    @property
    def time_ns(self) -> float | None:
        """The median sample."""
        return statistics.median(self.samples_ns) if self.samples_ns else None

    @cached_property
    def key(self) -> str:
        """Hash of the content; equal records merge into one. The label is not part of it."""
        values = self.values()[: COLUMNS.index("label")]
        return hashlib.sha256(canonical([RECORD_VERSION, *values]).encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return canonical(dict(zip(COLUMNS, self.values(), strict=True)))

    @staticmethod
    def parse(line: str) -> Record:
        """Read one JSON line as `str(record)` writes it.

        Errors: ValueError when a field is missing or has the wrong type.
        """
        data = json.loads(line)
        if not isinstance(data, dict) or set(data) - {"label"} != set(COLUMNS) - {"label"}:
            raise ValueError("the fields are not those of a record")
        return Record.from_row([data.get(name, "") for name in COLUMNS])

    def values(self) -> list[object]:
        """The content, in the order of `COLUMNS`."""
        return [
            self.task_key,
            canonical(dict(self.dims)),
            self.target,
            self.threads,
            self.space_version,
            self.codegen_epoch,
            self.fingerprint,
            self.schedule,
            self.status,
            self.code,
            self.detail,
            canonical([float(sample) for sample in self.samples_ns]),
            None if self.ratio is None else float(self.ratio),
            int(self.confirmed),
            float(self.created_s),
            self.label,
        ]

    @staticmethod
    def from_row(row: Iterable[object]) -> Record:
        """The record of a row. Errors: ValueError for a wrong type."""
        values = dict(zip(COLUMNS, row, strict=True))
        for name in ("threads", "space_version", "confirmed"):
            if not isinstance(values[name], int):
                raise ValueError(f"{name} is not a whole number")
        dims = json.loads(str(values["dims"]))
        samples = json.loads(str(values["samples"]))
        ratio = values["ratio"]
        return Record(
            task_key=str(values["task_key"]),
            dims={str(name): int(size) for name, size in dims.items()},
            target=str(values["target"]),
            threads=int(str(values["threads"])),
            space_version=int(str(values["space_version"])),
            codegen_epoch=str(values["codegen_epoch"]),
            fingerprint=str(values["fingerprint"]),
            schedule=str(values["schedule"]),
            samples_ns=tuple(float(sample) for sample in samples),
            ratio=None if ratio is None else float(str(ratio)),
            status=str(values["status"]),
            code=str(values["code"]),
            detail=str(values["detail"]),
            confirmed=bool(values["confirmed"]),
            created_s=float(str(values["created"])),
            label=str(values["label"]),
        )
