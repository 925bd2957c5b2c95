"""The search itself: which kernel gets the next batch, building, measuring, confirming.

In: tasks without a schedule, a budget. Out: a chosen schedule and facts in every task; records
through `keep`. Invariants: compiling and measuring alternate, so that nothing compiles while a
candidate is timed; a task gets another batch where it promises the largest gain per second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from tilewright.errors import Rejected, TilewrightError
from tilewright.ir.interpreter import run_program
from tilewright.runtime.build import build_many, stop_workers
from tilewright.runtime.calibrate import hardware
from tilewright.tune.bench import Bench, Built, Job, Timing, default_tolerance
from tilewright.tune.event import TuningEvent
from tilewright.tune.propose import Rows
from tilewright.tune.record import Record
from tilewright.tune.task import UNTIMED, Candidate, Clock, Task, untimed
from tilewright.verify.policy import compare

__all__ = ["Search", "gain_of", "is_gain"]

log = logging.getLogger("tilewright.tune")
Array = np.ndarray[Any, np.dtype[Any]]

NOISE = 1.02  # a ratio below this is within noise
_BATCH = 8
_FRUITLESS = 9  # batches without a gain after which a task is left alone
_CONFIRM_SHARE = 0.15  # of the budget
_ORACLE_SHARE = 0.08
_KEPT_BYTES = 32 << 20  # arrays of a task that stay while other tasks are measured
_GRACE = 0.25  # of the budget, for the last defaults: one never timed would be searched next time
_GROUP = 12  # defaults that are timed in one go
WRONG = "V001"


def is_gain(timing: Timing) -> bool:
    """Is it faster than the reference of the same rounds, beyond noise?

    Both estimates of the ratio must exceed `NOISE`, and the lower quartile of the pairs 1.
    """
    pairs = timing.pairs
    if len(pairs) < 3:
        return False
    return timing.ratio >= NOISE and float(np.quantile(pairs, 0.25)) > 1.0


def gain_of(results: Sequence[Timing | Rejected]) -> int | None:
    """The number of the result that is a gain and has the best ratio; None where none is."""
    fine = {k: r for k, r in enumerate(results) if isinstance(r, Timing) and is_gain(r)}
    return max(fine, key=lambda k: fine[k].ratio) if fine else None


class Search:
    """One run over several tasks."""

    def __init__(
        self, tasks: Sequence[Task], total: int, values: Mapping[str, Array], budget_s: float,
        keep: Callable[[Sequence[Record]], None], on_event: Callable[[Any], None] | None,
        bench: Bench | None = None,
    ) -> None:  # fmt: skip
        self.tasks, self.total, self.values, self.keep = list(tasks), total, values, keep
        self.budget_s = budget_s
        self.clock = Clock(budget_s)
        self.on_event = on_event
        self.bench = Bench() if bench is None else bench
        self.trials = 0
        self.finished = 0
        self.interrupted = False
        self._oracle_s = 0.0

    def run(self) -> None:
        """Search until the budget is spent or nothing promises a gain; Ctrl-C ends it early."""
        if not self.tasks:
            return
        try:
            # Threads of the linear algebra library that spin would be timed with the candidates.
            with threadpool_limits(1):
                self._run()
        except KeyboardInterrupt:
            self.interrupted = True
            stop_workers()  # the terminal sent them the signal, too
            log.warning("tuning was interrupted; what was confirmed is kept")
            for task in self.tasks:
                if task.best_timing is not None:
                    self._choose(task, task.best_timing, "interrupted")
        except OSError as error:
            log.warning("tuning stops: no measuring process could be started (%s)", error)
        finally:
            self.bench.close()

    def _run(self) -> None:
        self._baselines()
        while (task := self._next()) is not None:
            self._batch(task)
            self.tell(task)
        for task in sorted(self.tasks, key=lambda t: -t.calls * t.default_ns):
            self._finish(task)
            self.tell(task)
        left_over = [t for t in self.tasks if not t.is_searched and not t.failed]
        for task in left_over:
            why = untimed(self.budget_s)
            task.facts.note = f"{why.code}: {why.detail}"
            self.keep([task.record(task.default, why)])
        if left_over:
            log.warning(
                "[%s] %d of %d kernels keep their defaults: the budget of %.6g s ended before they "
                "were timed", UNTIMED, len(left_over), self.total, self.budget_s,
            )  # fmt: skip
        self.tell(None)

    # -- progress
    def tell(self, task: Task | None) -> None:
        """Report once a second, and at the end."""
        if self.on_event is None or (task is not None and not self.clock.is_second()):
            return
        known = [t for t in self.tasks if t.default_ns > 0]
        before = sum(t.calls * t.default_ns for t in known)
        now = sum(t.calls * t.default_ns / t.best_ratio for t in known)
        rejected: dict[str, int] = {}
        for t in self.tasks:
            for code, n in t.facts.rejected.items():
                rejected[code] = rejected.get(code, 0) + n
        self.on_event(
            TuningEvent(
                task.label if task is not None else "all kernels", self.trials, None,
                now / 1e3 if known else None, before / now if now else None, rejected,
                self.clock.elapsed_s, max(0.0, self.clock.left_s), task is None, self.trials,
                self.total - len(self.tasks) + self.finished, self.total,
            )
        )  # fmt: skip

    # -- defaults
    def _baselines(self) -> None:
        """Build and time every default; check the small ones against the oracle."""
        self.bench.start()
        candidates: list[tuple[Task, Candidate]] = []
        machine = hardware(self.tasks[0].target)
        # Where the budget does not reach all, it reaches those that matter most.
        for t in sorted(self.tasks, key=lambda t: -t.calls * t.bound_ns(machine)):
            c = t.default_candidate()
            if isinstance(c, Rejected):
                self._fail(t, c)
            else:
                candidates.append((t, c))
            if self._is_over():
                break
        objects = build_many([c.text for _, c in candidates], self.tasks[0].target)
        groups: dict[bool, list[list[Task]]] = {False: [[]], True: [[]]}
        held = {False: 0, True: 0}
        for (t, c), data in zip(candidates, objects, strict=True):
            if isinstance(data, Rejected):
                self._fail(t, data)
                continue
            c.data = data
            t.job = Job(t.kernel, t.threads, t.arrays(self.values), c.built, t.cold)
            is_checked = self._oracle_s + oracle_s(t) <= _ORACLE_SHARE * self.budget_s
            self._oracle_s += oracle_s(t) if is_checked else 0.0
            if held[is_checked] > _KEPT_BYTES or len(groups[is_checked][-1]) >= _GROUP:
                groups[is_checked].append([])
                held[is_checked] = 0
            groups[is_checked][-1].append(t)
            held[is_checked] += t.job.moved_bytes
        each = min(0.02, 0.05 * self.budget_s / max(1, len(candidates)))
        for is_checked, several in groups.items():
            for group in several:
                if group and not self._is_over():
                    self._baseline(group, each, is_checked)

    def _is_over(self) -> bool:
        """Whether even the defaults have to stop."""
        return self.clock.left_s <= -_GRACE * self.budget_s

    def _baseline(self, group: Sequence[Task], seconds: float, is_checked: bool) -> None:
        """Time the defaults of a few kernels in one go."""
        jobs = [self._job(t) for t in group]
        found = self.bench.baselines(jobs, seconds, with_outputs=is_checked)
        for task, job, (timing, outputs) in zip(group, jobs, found, strict=True):
            if isinstance(timing, Rejected):
                self._fail(task, timing)
                continue
            task.default_ns = timing.ns
            task.facts.default_us = timing.ns / 1e3
            task.pace = (0.8 + 40 * 1e-9 * timing.ns, 6)
            bound = task.bound_ns(hardware(task.target))
            task.headroom = min(1.0, max(0.08, 1.0 - bound / timing.ns))
            self.keep([task.record(task.default, timing, ratio=1.0)])
            if is_checked:
                self._check(task, job, outputs)
            self._release(task)
            self.tell(task)

    def _fail(self, task: Task, why: Rejected) -> None:
        """The default itself does not run: nothing can be compared with it."""
        task.failed = f"{why.code}: {why.detail}"
        task.facts.note = f"not tuned, its default schedule was refused ({task.failed})"
        task.note_rejection(why.code)
        self.keep([task.record(task.default, why)])
        log.warning("%s is not tuned: its default was refused (%s)", task.label, task.failed)

    def _release(self, task: Task) -> None:
        """Drop large arrays; they are made again when the task is measured again."""
        if task.job is not None and len(self.tasks) > 1 and task.job.held_bytes > _KEPT_BYTES:
            task.old_job, task.job = task.job.light(), None

    def _check(self, task: Task, job: Job, got: Mapping[str, Array]) -> None:
        """Compare the default's output with the oracle."""
        program = task.kernel.program
        inputs = {t.name: job.array(t.name) for t in program.inputs}
        try:
            want = run_program(program, inputs, values=self.values)
        except TilewrightError as error:  # random inputs that the program does not allow
            log.debug("%s was not checked: %s", task.label, error)
            return
        task.facts.checked = True
        for name, w in zip(program.results, want, strict=True):
            dtype = program.tensors[name].dtype
            verdict = compare(got[name], w, w.astype(dtype.np), dtype, wiggle=[])
            allowed = default_tolerance(task.kernel, name) * float(np.abs(w).max(initial=0.0))
            if verdict.ok or (dtype.is_float and verdict.max_err <= allowed):
                continue
            if not dtype.is_float and np.mean(got[name] != w) < 1e-3:
                continue
            task.facts.checked = False
            task.facts.note = f"{name} of the default is wrong: {verdict}"
            task.note_rejection(WRONG)
            self.keep([task.record(task.default, Rejected(WRONG, task.facts.note))])
            log.warning("[%s] %s: %s", WRONG, task.label, task.facts.note)

    # -- search
    def _reserve_s(self) -> float:
        """Time to keep for the last confirmations."""
        want = 0.0
        for t in self.tasks:
            if t.best_rows is not None:
                want += 0.05 + t.seconds(1) + 14 * t.default_ns * 1e-9
        return max(want, 0.02 * self.budget_s) if want else 0.0

    def _next(self) -> Task | None:
        """The task whose next batch promises most per second; None when the search is over."""
        left = self.clock.left_s - min(self._reserve_s(), 0.3 * self.budget_s)
        if left <= 0:
            return None
        able = [
            t for t in self.tasks
            if t.is_searched and t.gain() > 0 and t.fruitless < _FRUITLESS and t.seconds(1) < left
        ]  # fmt: skip
        if not able:
            return None
        # What an interrupted search had found is a gain at hand.
        return max(able, key=lambda t: (bool(t.revisit), t.gain() / t.seconds(_BATCH)))

    def _batch(self, task: Task) -> None:
        """Propose, build, measure, and learn."""
        at = self.clock.elapsed_s
        left = 0.8 * (self.clock.left_s - self._reserve_s())
        first = 4 if task.batches == 0 else _BATCH
        count = max(1, min(first, task.affordable(min(left, 0.3 * self.budget_s))))
        proposals, task.revisit = task.revisit or task.proposer.ask(count), []
        asked = self.clock.elapsed_s
        candidates, refused = self._build(task, proposals, count)
        built = self.clock.elapsed_s
        results: list[Record] = [task.record(task.space.at(r), why) for r, why in refused]
        for rows, why in refused:
            task.proposer.tell(rows, None)
            task.note_rejection(why.code)
        best_before = task.best_ratio
        if candidates:
            results += self._measure(task, candidates)
        self.keep(results)
        log.debug(
            "%s: %d of %d proposed in %.3f s, built in %.3f s, measured in %.3f s; best %.3f",
            task.label, len(candidates), len(proposals), asked - at, built - asked,
            self.clock.elapsed_s - built, task.best_ratio,
        )  # fmt: skip
        task.batches += 1
        task.fruitless = 0 if task.best_ratio > best_before * 1.005 else task.fruitless + 1
        if candidates:
            task.pace = (self.clock.elapsed_s - at, len(candidates))

    def _build(
        self, task: Task, proposals: Sequence[Rows], count: int
    ) -> tuple[list[Candidate], list[tuple[Rows, Rejected]]]:
        """Lower until there are `count` different nests, then build them."""
        found: list[Candidate] = []
        refused: list[tuple[Rows, Rejected]] = []
        waiting = list(proposals)
        for _ in range(3 * count):
            if not waiting and len(found) < count:
                waiting = task.proposer.ask(count - len(found))
            if not waiting or self.clock.left_s <= 0:
                break
            rows = waiting.pop(0)
            c = task.candidate(rows)
            if isinstance(c, Rejected):
                log.warning("a schedule of the Space was refused: %s", c.detail)
                refused.append((rows, c))
            elif c is not None:
                found.append(c)
        limit = max(1.0, min(20.0, 0.3 * self.budget_s))
        objects = build_many([c.text for c in found], task.target, timeout_s=limit)
        for c, data in zip(found, objects, strict=True):
            if isinstance(data, Rejected):
                refused.append((c.rows, data))
            else:
                c.data = data
        return [c for c in found if c.data is not None], refused

    def _job(self, task: Task) -> Job:
        """The job with its arrays, made again where they were dropped."""
        if task.job is None:
            assert task.old_job is not None
            task.job = task.old_job.with_arrays(task.arrays(self.values))
        return task.job

    def _measure(self, task: Task, candidates: Sequence[Candidate]) -> list[Record]:
        """Time a batch, and the best of it again before it counts as the best of the task."""
        job = self._job(task)
        self.trials += len(candidates)
        task.facts.trials += len(candidates)
        seconds = min(0.03 * (1 + len(candidates)), 0.05 * self.budget_s)
        results = self.bench.measure(job, [c.built for c in candidates], seconds)
        records: list[Record] = []
        for c, r in zip(candidates, results, strict=True):
            records.append(task.record(c.schedule, r))
            if isinstance(r, Rejected):
                log.info("%s: candidate refused (%s: %s)", task.label, r.code, r.detail)
                task.proposer.tell(c.rows, None)
                task.note_rejection(r.code)
            else:
                task.proposer.tell(c.rows, r.quiet_ratio, r.noise)
        bar = max(NOISE, task.best_ratio * 1.005)
        fine = [
            (r.ratio, c) for c, r in zip(candidates, results, strict=True)
            if isinstance(r, Timing) and r.ratio >= bar
        ]  # fmt: skip
        best = sorted(fine, key=lambda x: -x[0])[:2]
        if best:
            self._again(task, job, best, records)
        self._release(task)
        return records

    def _again(
        self, task: Task, job: Job, best: Sequence[tuple[float, Candidate]], records: list[Record]
    ) -> None:
        seconds = min(0.05 * len(best), 0.04 * self.budget_s)
        chosen = [c for _, c in best]
        results = self.bench.measure(
            job, [c.built for c in chosen], seconds, least=4, is_race=False
        )
        for (_, c), r in zip(best, results, strict=True):
            records.append(task.record(c.schedule, r))
            if isinstance(r, Timing):
                task.proposer.tell(c.rows, r.quiet_ratio, min(r.noise, 0.02))
        won = gain_of(results)
        timing = None if won is None else results[won]
        if won is not None and isinstance(timing, Timing) and timing.ratio > task.best_ratio:
            task.best_rows, task.best_ratio = chosen[won].rows, timing.ratio
            task.best_timing = timing
            for other in self.tasks:  # kernels of one model are alike
                if other is not task and other.names == task.names:
                    other.seed([task.space.at(task.best_rows)])

    # -- the end of a task
    def _finish(self, task: Task) -> None:
        """Confirm the winner in a longer round; keep the default where it does not win."""
        if not task.is_searched:
            return
        self.finished += 1
        note = f"{task.facts.trials} trials"
        built = None if task.best_rows is None else task.built_again(task.best_rows)
        if task.best_rows is None or not isinstance(built, Built):
            self._keep_default(task, note)
            return
        improved = sum(t.best_rows is not None for t in self.tasks)
        seconds = max(0.03, min(0.5, _CONFIRM_SHARE * self.budget_s / max(1, improved)))
        job = self._job(task)
        result = self.bench.measure(job, [built], seconds, least=5, is_race=False)[0]
        self._release(task)
        if isinstance(result, Timing) and is_gain(result):
            self._choose(task, result, note)
        else:
            self.keep([task.record(task.space.at(task.best_rows), result)])
            self._keep_default(task, note + ", the best was not confirmed")

    def _choose(self, task: Task, timing: Timing, note: str) -> None:
        assert task.best_rows is not None
        task.chosen = task.space.at(task.best_rows)
        task.best_ratio = timing.ratio
        f = task.facts
        f.source, f.schedule, f.ratio = "search", str(task.chosen), timing.ratio
        f.tuned_us, f.default_us = timing.ns / 1e3, timing.ns * timing.ratio / 1e3
        self.keep([task.record(task.chosen, timing, confirmed=True, detail=note)])

    def _keep_default(self, task: Task, note: str) -> None:
        task.chosen, task.best_ratio = task.default, 1.0
        f = task.facts
        f.source, f.schedule, f.ratio, f.tuned_us = "search", str(task.default), 1.0, f.default_us
        f.note = f.note or "the default was kept"
        samples = (task.default_ns,)
        timing = Timing(samples, samples)
        self.keep([task.record(task.default, timing, confirmed=True, ratio=1.0, detail=note)])


def oracle_s(task: Task) -> float:
    """Seconds that the oracle takes for a kernel, roughly."""
    total = 0.0
    for k, stage in enumerate(task.kernel.stages):
        for m in stage.members:
            d = task.kernel.definitions[m]
            points = prod(task.kernel.extents[a.name] for a in d.all_axes)
            is_product = m == stage.anchor and task.cost.is_contraction(k)
            total += points * (1.2e-10 if is_product else 4e-8)
    return total + 1e-3
