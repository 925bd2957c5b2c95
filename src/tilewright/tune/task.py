"""One kernel under the search, and what is known of it.

In: a Kernel, its Target and number of threads. Out: `Task` (candidates, results, records) and
`KernelFacts` for `explain`. Invariants: a task has one key in the database, whatever the weights
hold; every candidate is lowered at most once, equal nests are one candidate.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from tilewright.codegen.llvm import emit_llvm
from tilewright.errors import Rejected
from tilewright.ir.kernel import Kernel
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.hardware import HardwareDescriptor, fingerprint
from tilewright.machine.target import Target
from tilewright.runtime.build import build_many
from tilewright.runtime.calibrate import cpu_name
from tilewright.runtime.candidates import Fill
from tilewright.runtime.collection import no_collection
from tilewright.schedule.schedule import Schedule
from tilewright.schedule.space import SPACE_VERSION, Space
from tilewright.tune.bench import Built, Job, Timing
from tilewright.tune.database import Database
from tilewright.tune.features import KernelCost
from tilewright.tune.propose import Proposer, Rows
from tilewright.tune.record import Record
from tilewright.verify.generate import random_inputs

__all__ = ["CODEGEN_EPOCH", "Candidate", "KernelFacts", "Task", "kernel_arrays", "untimed"]

Array = np.ndarray[Any, np.dtype[Any]]
CODEGEN_EPOCH = "1"  # raise it when a schedule becomes other code: old timings are then priors
MOST_TEXT = 400_000  # characters of LLVM text that are worth compiling
_FIXED = 3  # a batch costs as much as this many candidates before its first one
_SAMPLES = 32  # of one timing that the database keeps
UNTIMED = "T003"
_REOPEN = 1.5  # how much more budget makes a kernel worth another try that none was left for


@dataclass
class KernelFacts:
    """What `explain` says of one kernel. `source`: database, search, or default."""

    task_key: str
    label: str
    calls: int
    source: str = "default"
    schedule: str = ""
    default_us: float | None = None
    tuned_us: float | None = None
    ratio: float | None = None
    trials: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    checked: bool | None = None  # default against the oracle; None: not tried
    note: str = ""

    def __str__(self) -> str:
        times = ""
        if self.default_us is not None and self.tuned_us is not None:
            times = f", {self.default_us:.1f} us by default, {self.tuned_us:.1f} us tuned"
        refused = ", ".join(f"{n} {code}" for code, n in sorted(self.rejected.items()))
        tail = f", rejected {refused}" if refused else ""
        tail += f" ({self.note})" if self.note else ""
        return f"{self.label}: schedule from {self.source}{times}, {self.trials} trials{tail}"


@dataclass
class Candidate:
    """A schedule on its way: rows of the Space, nest, text, object."""

    rows: Rows
    schedule: Schedule
    lowered: Lowered
    text: str
    data: bytes | None = None

    @property
    def built(self) -> Built:
        assert self.data is not None
        return Built(self.lowered, self.data)


class Task:
    """A kernel to tune. `calls`: how often the plan runs it, and kernels equal to it. `cold`:
    tensors that it finds in memory, as they or the rest of the model do not stay in a cache.
    """

    def __init__(
        self, kernel: Kernel, space: Space, target: Target, threads: int, seed: int = 0,
        cold: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.cold = cold
        self.kernel, self.space, self.target, self.threads = kernel, space, target, threads
        self.calls = 0
        self.label = ", ".join(kernel.program.results)
        self.names = frozenset(n for g in space.groups for n in g.names)
        self.default = space.default()
        self.chosen: Schedule = self.default
        self.cost = KernelCost(kernel, space, target, threads)
        self.proposer = Proposer(
            space, self.cost.log_gain, np.random.default_rng([seed, threads]),
            self.cost.canonical, self.cost.is_reasonable,
        )  # fmt: skip
        self.facts = KernelFacts(kernel.task_key, self.label, 0, schedule=str(self.default))
        self.revisit: list[Rows] = []  # what an interrupted search found
        self.nests: dict[str, Rows] = {}
        self.default_ns = 0.0
        self.job: Job | None = None
        self.old_job: Job | None = None  # without arrays
        self.best_rows: Rows | None = None  # re-measured and faster than the default
        self.best_ratio = 1.0
        self.best_timing: Timing | None = None
        self.fruitless = 0  # batches in a row without a gain
        self.batches = 0
        self.pace = (0.8, 6)  # seconds of the last batch, and how many candidates it had
        self.headroom = 0.5
        self.failed = ""  # why it cannot be tuned

    @property
    def key(self) -> str:
        return self.kernel.task_key

    def name(self, names: Sequence[str]) -> None:
        """Call the task by what it computes in the plan."""
        self.label = names[-1] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
        self.facts.label = self.label

    def seed(self, schedules: Sequence[Schedule]) -> None:
        """Schedules that won elsewhere are proposed first, as far as this Space has their rows."""
        for s in schedules:
            rows = []
            for g in self.space.groups:
                row = g.index.get(tuple(s.values.get(n, "?missing") for n in g.names))
                rows.append(g.start if row is None else row)
            self.proposer.seed(tuple(rows))

    @property
    def is_searched(self) -> bool:
        return self.default_ns > 0 and not self.failed

    # -- the database
    def identity(self) -> dict[str, Any]:
        """The fields that a record of this task has."""
        return {
            "task_key": self.key + ("-cold" if self.cold else ""),
            "dims": {},
            "target": self.target.name,
            "threads": self.threads,
            "space_version": SPACE_VERSION,
            "codegen_epoch": CODEGEN_EPOCH,
            "fingerprint": fingerprint(cpu_name(), self.target),
        }

    def look_up(self, db: Database | None) -> Record | None:
        """The best confirmed record, where its schedule is still a point of the Space."""
        if db is None:
            return None
        groups: dict[str, list[Record]] = {}
        for r in db.records(**self.identity(), status="ok", confirmed=True):
            if r.ratio is not None:
                groups.setdefault(r.schedule, []).append(r)
        found: tuple[float, Record] | None = None
        for text, records in groups.items():
            if self.space.contains(Schedule.parse(text)):
                ratio = float(np.median([r.ratio or 0.0 for r in records]))
                if found is None or ratio > found[0]:
                    found = (ratio, records[-1])
        return None if found is None else found[1]

    def was_out_of_reach(self, db: Database | None, budget_s: float) -> bool:
        """Did a search with about this budget end before it came to this task?

        A budget half again as large, or a timing of any later search, opens the task again.
        """
        if db is None:
            return False
        default = str(self.default)
        before = [r for r in db.records(**self.identity()) if r.schedule == default]
        if not before or before[-1].code != UNTIMED:
            return False
        self.facts.note = f"{UNTIMED}: {before[-1].detail}"
        return budget_s <= _REOPEN * float(before[-1].detail.rsplit(" ", 2)[-2])

    def adopt(self, record: Record) -> None:
        """Use what was found before."""
        self.chosen = Schedule.parse(record.schedule)
        self.facts.source = "database"
        self.facts.schedule = record.schedule
        self.facts.ratio = record.ratio
        if record.time_ns is not None and record.ratio is not None:
            self.facts.tuned_us = record.time_ns / 1e3
            self.facts.default_us = record.time_ns * record.ratio / 1e3
        self.facts.note = record.detail

    def remember(self, records: Sequence[Record]) -> None:
        """Results of an earlier search that did not end: only the best are measured again."""
        best: dict[Rows, float] = {}
        for r in records:
            rows = self.space.rows_of(Schedule.parse(r.schedule))
            if rows is None or rows == self.proposer.default:
                continue
            if r.status == "ok" and r.ratio is not None and r.ratio > 1.0:
                best[rows] = r.ratio
            self.proposer.tell(rows, None if r.status != "ok" else r.ratio, 0.03)
            self.facts.trials += 1
            if r.status != "ok":
                self.note_rejection(r.code)
        self.revisit = sorted(best, key=lambda x: -best[x])[:3]

    def record(
        self, schedule: Schedule, result: Timing | Rejected, *, confirmed: bool = False,
        ratio: float | None = None, detail: str = "",
    ) -> Record:  # fmt: skip
        """A line for the database."""
        if isinstance(result, Rejected):
            return Record(
                **self.identity(), schedule=str(schedule), status="rejected", code=result.code,
                detail=result.detail, label=self.label,
            )  # fmt: skip
        return Record(
            **self.identity(), schedule=str(schedule), samples_ns=result.samples_ns[:_SAMPLES],
            ratio=result.ratio if ratio is None else ratio, confirmed=confirmed, detail=detail,
            label=self.label,
        )  # fmt: skip

    # -- candidates
    @no_collection()
    def candidate(self, rows: Rows) -> Candidate | Rejected | None:
        """Lower and emit; None where an equal nest was seen, or the code would be enormous."""
        schedule = self.space.at(rows)
        lowered = lower(self.kernel, schedule, self.target)
        if isinstance(lowered, Rejected):
            return lowered
        key = lowered.nest.key
        if key in self.nests:
            self.proposer.same(rows, self.nests[key])
            return None
        self.nests[key] = rows
        text = emit_llvm(lowered.nest, self.target)
        if len(text) > MOST_TEXT and rows != self.proposer.default:
            self.proposer.skip(rows)
            return None
        return Candidate(rows, schedule, lowered, text)

    def default_candidate(self) -> Candidate | Rejected:
        """The candidate that all others are compared with."""
        found = self.candidate(self.proposer.default)
        assert found is not None
        return found

    def built_again(self, rows: Rows) -> Built | Rejected:
        """The candidate of rows that were built before, from the object cache."""
        lowered = lower(self.kernel, self.space.at(rows), self.target)
        if isinstance(lowered, Rejected):
            return lowered
        data = build_many([emit_llvm(lowered.nest, self.target)], self.target)[0]
        return data if isinstance(data, Rejected) else Built(lowered, data)

    def arrays(self, values: Mapping[str, Array]) -> dict[str, Array | Fill]:
        """Arrays of the inputs and constants, or how to make them."""
        return kernel_arrays(self.kernel, values)

    def bound_ns(self, hardware: HardwareDescriptor) -> float:
        """Time that operations or bytes take at least."""
        flops, size = 0.0, 0.0
        for d in self.kernel.definitions.values():
            points = prod(self.kernel.extents[a.name] for a in d.all_axes)
            flops += points * (2 if d.reduction is not None else 1)
        for name, layout in self.kernel.layouts:
            size += layout.size * self.kernel.program.tensors[name].dtype.bytes
        t, target = self.threads, self.target
        fits = "l3_gbs" if size < target.l3_bytes / 2 else "read_gbs"
        level = "l2_gbs" if size < target.l2_bytes else fits
        return max(flops / hardware.rate("fma_gflops", t), size / hardware.rate(level, t))

    def gain(self) -> float:
        """Nanoseconds per run of the plan that another batch may win, roughly."""
        if self.failed or self.proposer.is_exhausted:
            return 0.0
        now = self.default_ns / self.best_ratio
        return self.calls * now * self.headroom * 0.15 * 0.75**self.fruitless

    def seconds(self, count: int) -> float:
        """What a batch of so many candidates takes; part of it is for the batch as such."""
        seconds, before = self.pace
        return seconds * (_FIXED + count) / (_FIXED + before)

    def affordable(self, seconds: float) -> int:
        """How many candidates a batch of these seconds may have."""
        return int(seconds / self.seconds(1) * (_FIXED + 1) - _FIXED)

    def note_rejection(self, code: str) -> None:
        self.facts.rejected[code] = self.facts.rejected.get(code, 0) + 1


def kernel_arrays(
    kernel: Kernel, values: Mapping[str, Array], seed: int = 0
) -> dict[str, Array | Fill]:
    """Random inputs and the constants of a kernel, by tensor name.

    Plain float inputs are given as a recipe, so that they need not travel.
    """
    program = kernel.program
    out: dict[str, Array | Fill] = {}
    is_plain = all(t.dtype.is_float for t in program.inputs)
    if not is_plain:
        out |= random_inputs(program, {}, seed)
    for k, t in enumerate(program.inputs if is_plain else ()):
        layout = kernel.layout_of[t.name]
        if layout.is_row_major:
            out[t.name] = Fill("random", t.dtype.np.name, seed + k)
        else:
            rng = np.random.default_rng([seed, k])
            out[t.name] = rng.standard_normal(layout.shape, np.float32).astype(t.dtype.np)
    known = {**program.values, **values}
    for t, key in program.constants:
        out[t.name] = np.asarray(known[key])
    return out


def untimed(budget_s: float) -> Rejected:
    """Why a kernel keeps its default: the search ended before it came to it."""
    return Rejected(UNTIMED, f"the budget ended before it was timed: {budget_s:.6g} s")


class Clock:
    """Wall clock of a search: what is left, and when to tell."""

    def __init__(self, budget_s: float) -> None:
        self.started = time.monotonic()
        self.deadline = self.started + budget_s
        self.told = self.started

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def is_second(self) -> bool:
        """True about once a second."""
        now = time.monotonic()
        if now - self.told < 0.9:
            return False
        self.told = now
        return True
