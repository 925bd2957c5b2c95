"""Tune a plan: look up what is known, search for the rest within a budget, keep what is confirmed.

In: a Plan, its constants, Target, threads, a budget in seconds, the database. Out: `Tuning`, which
names a schedule for every kernel. Invariants: a schedule other than the default is chosen only
after it was timed against the default in one window and was faster beyond noise; every timing and
every rejection is in the database before the next one is asked for; an interruption keeps both.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.config import current
from tilewright.errors import TilewrightError
from tilewright.ir.kernel import Kernel
from tilewright.ir.plan import KernelCall, Plan
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.schedule.space import SPACE_VERSION
from tilewright.tune.database import Database
from tilewright.tune.event import TuningEvent
from tilewright.tune.record import Record
from tilewright.tune.search import NOISE, Search
from tilewright.tune.task import KernelFacts, Task

__all__ = ["Tuning", "TuningEvent", "tune_plan"]

log = logging.getLogger("tilewright.tune")
Array = np.ndarray[Any, np.dtype[Any]]
_COLD_BYTES = 64 << 10  # smaller constants are read in a moment
_COLD_TIMES = 4  # larger ones drive themselves out


@dataclass
class Tuning:
    """Schedules by task key, and how they were found.

    kernels_tuned: kernels searched now. facts: by task key, in the order of the plan.
    """

    target: Target
    threads: int
    schedules: dict[str, Schedule] = field(default_factory=dict)
    facts: dict[str, KernelFacts] = field(default_factory=dict)
    kernels_tuned: int = 0
    trials: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    missing: int = 0  # kernels without a record in frozen mode: T002

    def choose(self, kernel: Kernel) -> Schedule:
        """The schedule to use: found, or the default."""
        found = self.schedules.get(kernel.task_key)
        return space_of(kernel, self.target, self.threads).default() if found is None else found

    @property
    def rejected(self) -> dict[str, int]:
        """Candidates that were refused, by code."""
        out: dict[str, int] = {}
        for f in self.facts.values():
            for code, n in f.rejected.items():
                out[code] = out.get(code, 0) + n
        return out

    def __str__(self) -> str:
        return "\n".join(str(f) for f in self.facts.values())


class _Records:
    """The database, or what is left where it cannot be used."""

    def __init__(self, db: Path | str | None, read_only: bool) -> None:
        path = Path(db) if db is not None else current().database_path
        self.db: Database | None = None
        self._winners: dict[frozenset[str], dict[Schedule, float]] | None = None
        self.can_write = not read_only
        for mode in dict.fromkeys((read_only, True)):
            try:
                self.db = Database(path, read_only=mode)
                self.can_write = not mode
                if mode != read_only:
                    log.warning("the tuning database %s cannot be written; it is only read", path)
                return
            except (TilewrightError, sqlite3.Error, OSError) as error:
                reason = error
        log.warning("tuning without the database %s: %s", path, reason)
        self.can_write = False

    def keep(self, records: Sequence[Record]) -> None:
        """Write now. A failure is said once; the search goes on."""
        if self.db is None or not self.can_write or not records:
            return
        try:
            self.db.add_many(records)
        except (TilewrightError, sqlite3.Error) as error:
            log.warning("timings are no longer recorded: %s", error)
            self.can_write = False

    def look_up(self, task: Task) -> Record | None:
        if self.db is None:
            return None
        try:
            return task.look_up(self.db)
        except (TilewrightError, sqlite3.Error, ValueError) as error:
            log.warning("the tuning database cannot be read: %s", error)
            self.db = None
            return None

    def history(self, task: Task) -> list[Record]:
        """Unconfirmed results of this very task."""
        if self.db is None:
            return []
        return [r for r in self.db.records(**task.identity()) if not r.confirmed]

    def winners(self, task: Task) -> list[Schedule]:
        """Confirmed schedules of other tasks, thread counts or machines: where to look first."""
        if self.db is None:
            return []
        if self._winners is None:
            self._winners = {}
            for r in self.db.records(target=task.target.name, status="ok", confirmed=True):
                if r.ratio is None or r.ratio < NOISE or r.space_version != SPACE_VERSION:
                    continue
                s = Schedule.parse(r.schedule)
                known = self._winners.setdefault(frozenset(s.values), {})
                known[s] = max(known.get(s, 0.0), r.ratio)
        found = self._winners.get(task.names, {})
        return sorted(found, key=lambda s: -found[s])[:8]

    def close(self) -> None:
        if self.db is not None:
            self.db.close()


def tune_plan(
    plan: Plan, values: Mapping[str, Array], target: Target, threads: int, *, budget_s: float,
    db: Path | str | None, frozen: bool, on_event: Callable[[Any], None] | None,
) -> Tuning:  # fmt: skip
    """Schedules for the kernels of a plan.

    budget_s: wall clock for the search; 0 only looks up. frozen: time nothing and write nothing; a
    kernel without a record has its default, which is said (T002). db: None is the default database.
    """
    out = Tuning(target, threads)
    is_search = budget_s > 0 and not frozen
    records = _Records(db, read_only=not is_search)
    try:
        tasks = _tasks(plan, target, threads)
        open_tasks: list[Task] = []
        for t in tasks:
            found = records.look_up(t)
            if found is not None:
                t.adopt(found)
            else:
                open_tasks.append(t)
        if frozen and open_tasks:
            out.missing = len(open_tasks)
            log.warning(
                "[T002] frozen: %d of %d kernels have no record and use their default schedules",
                len(open_tasks), len(tasks),
            )  # fmt: skip
            for t in open_tasks:
                t.facts.note = "T002: no record in frozen mode"
        if is_search:
            can_vary = [
                t for t in open_tasks
                if t.space.cardinality > 1 and not t.was_out_of_reach(records.db, budget_s)
            ]  # fmt: skip
            for t in can_vary:
                t.remember(records.history(t))
                t.seed(records.winners(t))
            search = Search(can_vary, len(tasks), values, budget_s, records.keep, on_event)
            search.run()
            out.seconds, out.interrupted = search.clock.elapsed_s, search.interrupted
            out.trials = search.trials
            out.kernels_tuned = sum(t.is_searched for t in can_vary)
        for t in tasks:
            out.schedules[t.key] = t.chosen
            out.facts[t.key] = t.facts
    finally:
        records.close()
    return out


def _cold(plan: Plan, target: Target) -> dict[int, frozenset[str]]:
    """By kernel, what it finds in memory and not in a cache: the weights of a model that is larger
    than the caches, as from one run to the next all of it passes through them; and tensors that
    alone fill half of the largest, of which a cycle over the same memory would find a part there.
    """
    buffers = {b.name: b for b in plan.buffers}
    if sum(b.bytes for b in plan.buffers) <= target.l3_bytes:
        return {}
    out: dict[int, frozenset[str]] = {}
    for step in plan.steps:
        if isinstance(step, KernelCall) and step.kernel not in out:
            names = (n for n, _ in plan.kernels[step.kernel].layouts)
            held = zip(names, (buffers[b] for b in step.buffers), strict=True)
            least = {"const": _COLD_BYTES}
            out[step.kernel] = frozenset(
                n for n, b in held
                if least.get(b.place, target.l3_bytes // 2) <= b.bytes
                and b.bytes <= _COLD_TIMES * target.l3_bytes
            )  # fmt: skip
    return out


def _tasks(plan: Plan, target: Target, threads: int) -> list[Task]:
    """One task per distinct work, with the number of calls."""
    tasks: dict[str, Task] = {}
    of_kernel: list[Task] = []
    cold = _cold(plan, target)
    for number, k in enumerate(plan.kernels):
        task = tasks.get(k.task_key)
        if task is None:
            space = space_of(k, target, threads)
            task = Task(k, space, target, threads, cold=cold.get(number, frozenset()))
            tasks[k.task_key] = task
        of_kernel.append(task)
    for step in plan.steps:
        if isinstance(step, KernelCall):
            task = of_kernel[step.kernel]
            task.calls += 1
            if task.calls == 1 and step.names:
                task.name(step.names)
    for task in tasks.values():
        task.facts.calls = task.calls
    return list(tasks.values())


