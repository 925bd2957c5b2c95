"""tune_plan: what is looked up, searched, kept and said; nothing is compiled or timed here."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tilewright.errors import Rejected
from tilewright.group.plan import plan_program
from tilewright.ir.plan import Plan
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.tools.wiring import with_constants
from tilewright.tune import search, task
from tilewright.tune.bench import Built, Job, Timing
from tilewright.tune.database import Database
from tilewright.tune.session import Tuning, _cold, _tasks, tune_plan

TARGET = Target.named("x86-avx512")
PROGRAM = """program p(x: f32[512, 512], w: f32[512, 512], v: f32[512, 24]):
  a: f32[i<512, j<512] = sum(k<512) x[i, k] * w[k, j]
  b: f32[i<512, j<512] = sum(k<512) a[k, i] * w[k, j]
  c: f32[i<512, j<512] = sum(k<512) b[k, i] * w[k, j]
  d: f32[i<512, j<24] = sum(k<512) c[k, i] * v[k, j]
  return d
"""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_program(parse_program(PROGRAM), TARGET)[0]


def pseudo_ratio(built: Built) -> float:
    """A time ratio that depends on the code alone: 0.7 to 1.4."""
    digest = hashlib.sha256(built.lowered.nest.key.encode()).digest()
    return 0.7 + 0.7 * digest[0] / 255


class FakeBench:
    """Answers like the measuring process, at once."""

    def __init__(self) -> None:
        self.measured = 0
        self.before: Callable[[int], None] = lambda count: None
        self.answer: Callable[[Job, Built, bool], Timing | Rejected] = self.timing

    def start(self) -> None: ...

    def close(self) -> None: ...

    def baselines(
        self, jobs: Sequence[Job], seconds: float, *, with_outputs: bool
    ) -> list[tuple[Timing | Rejected, dict[str, Any]]]:
        return [(self.default(job), {}) for job in jobs]

    def default(self, job: Job) -> Timing | Rejected:
        job.reference_ns = 1e5
        return Timing((1e5, 1e5, 1e5), (1e5, 1e5, 1e5))

    def timing(self, job: Job, built: Built, is_race: bool) -> Timing | Rejected:
        mine = 1e5 / pseudo_ratio(built)
        return Timing(tuple([mine] * 7), tuple([1e5] * 7))

    def measure(
        self, job: Job, candidates: Sequence[Built], seconds: float, *, least: int = 2,
        is_race: bool = True,
    ) -> list[Timing | Rejected]:  # fmt: skip
        self.measured += len(candidates)
        self.before(self.measured)
        return [self.answer(job, b, is_race) for b in candidates]


class FakeClock:
    """A candidate takes a twentieth of a second; nothing else takes time."""

    def __init__(self, budget_s: float, bench: FakeBench) -> None:
        self._budget_s, self._bench = budget_s, bench
        self._before = bench.measured

    @property
    def elapsed_s(self) -> float:
        return 0.05 * (self._bench.measured - self._before)

    @property
    def left_s(self) -> float:
        return self._budget_s - self.elapsed_s

    def is_second(self) -> bool:
        return True


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> FakeBench:
    fake = FakeBench()

    def objects(texts: Sequence[str], *arguments: Any, **more: Any) -> list[bytes]:
        return [t.encode() for t in texts]

    monkeypatch.setattr(search, "Bench", lambda: fake)
    monkeypatch.setattr(search, "Clock", lambda budget_s: FakeClock(budget_s, fake))
    monkeypatch.setattr(search, "build_many", objects)
    monkeypatch.setattr(task, "build_many", objects)
    monkeypatch.setattr(search, "stop_workers", lambda: None)
    monkeypatch.setattr(search, "_FRUITLESS", 2)
    monkeypatch.setattr(search, "_ORACLE_SHARE", 0.0)
    return fake


def tuned(plan: Plan, db: Path, **changes: Any) -> Tuning:
    options: dict[str, Any] = {"budget_s": 2.5, "db": db, "frozen": False, "on_event": None}
    return tune_plan(plan, {}, TARGET, 1, **(options | changes))


def defaults(plan: Plan) -> list[Schedule]:
    return [space_of(k, TARGET, 1).default() for k in plan.kernels]


def test_a_search_finds_confirms_and_remembers(
    plan: Plan, bench: FakeBench, tmp_path: Path
) -> None:
    path = tmp_path / "db.sqlite"
    first = tuned(plan, path)
    assert first.kernels_tuned == len(plan.kernels) == len(first.facts)
    assert first.trials > 5
    assert [first.choose(k) for k in plan.kernels] != defaults(plan)
    fact = max(first.facts.values(), key=lambda f: f.ratio or 0.0)
    assert {f.source for f in first.facts.values()} == {"search"}
    assert fact.ratio is not None and fact.ratio > 1.02
    assert fact.default_us is not None and fact.tuned_us is not None
    assert fact.tuned_us < fact.default_us
    records = Database(path, read_only=True).records(confirmed=True)
    assert {r.task_key: r.schedule for r in records} == {
        key: f.schedule for key, f in first.facts.items()
    }

    bench.measured = 0
    second = tuned(plan, path)
    assert second.kernels_tuned == 0 == bench.measured
    assert second.schedules == first.schedules
    assert {f.source for f in second.facts.values()} == {"database"}


def test_no_budget_only_looks_up(plan: Plan, bench: FakeBench, tmp_path: Path) -> None:
    path = tmp_path / "db.sqlite"
    nothing = tuned(plan, path, budget_s=0.0)
    assert nothing.kernels_tuned == 0 == bench.measured
    assert [nothing.choose(k) for k in plan.kernels] == defaults(plan)
    assert not path.exists()
    found = tuned(plan, path)
    assert tuned(plan, path, budget_s=0.0).schedules == found.schedules


def test_frozen_without_records_says_so(
    plan: Plan, bench: FakeBench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tilewright.tune"):
        frozen = tuned(plan, tmp_path / "none.sqlite", frozen=True)
    assert frozen.missing == len(plan.kernels)
    assert bench.measured == 0
    assert [frozen.choose(k) for k in plan.kernels] == defaults(plan)
    assert "[T002]" in caplog.text
    assert all("T002" in f.note for f in frozen.facts.values())


def test_frozen_with_records_uses_them_and_is_silent(
    plan: Plan, bench: FakeBench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "db.sqlite"
    found = tuned(plan, path)
    with caplog.at_level(logging.WARNING, "tilewright.tune"):
        assert tuned(plan, path, frozen=True).schedules == found.schedules
    assert not caplog.records


def test_what_is_not_confirmed_is_not_used(plan: Plan, bench: FakeBench, tmp_path: Path) -> None:
    """Every trial looks faster, every longer comparison says that it is not."""

    def answer(job: Job, built: Built, is_race: bool) -> Timing:
        mine = 8e4 if is_race else 1.01e5
        return Timing(tuple([mine] * 7), tuple([1e5] * 7))

    bench.answer = answer
    path = tmp_path / "db.sqlite"
    got = tuned(plan, path)
    assert [got.choose(k) for k in plan.kernels] == defaults(plan)
    assert {f.ratio for f in got.facts.values()} == {1.0}
    assert tuned(plan, path).kernels_tuned == 0  # that the default stays is a result, too


def test_a_winner_that_loses_the_last_comparison_is_dropped(
    plan: Plan, bench: FakeBench, tmp_path: Path
) -> None:
    again: dict[str, int] = {}

    def answer(job: Job, built: Built, is_race: bool) -> Timing:
        key = built.lowered.nest.key
        again[key] = again.get(key, 0) + (not is_race)
        mine = 8e4 if again[key] < 2 else 9.9e4
        return Timing(tuple([mine] * 7), tuple([1e5] * 7))

    bench.answer = answer
    got = tuned(plan, tmp_path / "db.sqlite")
    assert [got.choose(k) for k in plan.kernels] == defaults(plan)


def test_rejections_are_counted_and_recorded(
    plan: Plan, bench: FakeBench, tmp_path: Path
) -> None:
    codes = ["R020", "R021", "R022", "V001"]

    def answer(job: Job, built: Built, is_race: bool) -> Timing | Rejected:
        digest = hashlib.sha256(built.lowered.nest.key.encode()).digest()
        if digest[1] % 3 == 0:
            return Rejected(codes[digest[2] % 4], "planted")
        return bench.timing(job, built, is_race)

    bench.answer = answer
    path = tmp_path / "db.sqlite"
    got = tuned(plan, path)
    assert got.rejected
    assert got.rejected == Database(path, read_only=True).rejections()
    refused = {r.schedule for r in Database(path, read_only=True).records(status="rejected")}
    assert not refused & {str(s) for s in got.schedules.values()}


def test_ctrl_c_keeps_what_was_found(plan: Plan, bench: FakeBench, tmp_path: Path) -> None:
    def stop(count: int) -> None:
        if count > 12:
            raise KeyboardInterrupt

    bench.before = stop
    path = tmp_path / "db.sqlite"
    got = tuned(plan, path)
    assert got.interrupted
    assert len(got.schedules) == len(plan.kernels)
    before = len(Database(path, read_only=True))
    assert before >= 5
    changed = [f for f in got.facts.values() if f.source == "search"]
    assert all(f.ratio is not None and f.ratio > 1.02 for f in changed)
    bench.before = lambda count: None
    bench.measured = 0
    after = tuned(plan, path)
    assert after.kernels_tuned == len(plan.kernels) - len(changed)
    for key, f in after.facts.items():
        if got.facts[key].source == "search":
            assert f.source == "database"
        else:  # trials of the interrupted search count on
            assert f.trials >= got.facts[key].trials


def test_an_interrupted_search_measures_its_best_first(
    plan: Plan, bench: FakeBench, tmp_path: Path
) -> None:
    """A trial that was measured, but never confirmed, is not lost."""
    path = tmp_path / "db.sqlite"
    k = plan.kernels[0]
    space = space_of(k, TARGET, 1)
    good = next(s for s in space.neighbours(space.default()))
    t = task.Task(k, space, TARGET, 1)
    with Database(path) as db:
        db.add(t.record(good, Timing((5e4, 5e4, 5e4), (1e5, 1e5, 1e5))))
    first: list[Built] = []

    def answer(job: Job, built: Built, is_race: bool) -> Timing | Rejected:
        if job.kernel is k:
            first.append(built)
        return bench.timing(job, built, is_race)

    bench.answer = answer
    tuned(plan, path)
    candidate = t.candidate(space.rows_of(good) or ())
    assert isinstance(candidate, task.Candidate)
    assert first[0].lowered.nest.key == candidate.lowered.nest.key


def test_an_unreadable_database_is_said_and_done_without(
    plan: Plan, bench: FakeBench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("not a database, and not ours " * 100)
    broken = tmp_path / "folder"
    broken.mkdir()
    with caplog.at_level(logging.WARNING, "tilewright.tune"):
        got = tuned(plan, broken)
    assert "without the database" in caplog.text
    assert got.kernels_tuned == len(plan.kernels)
    assert tuned(plan, broken, budget_s=0.0).kernels_tuned == 0


def test_events_tell_the_state(plan: Plan, bench: FakeBench, tmp_path: Path) -> None:
    from tilewright.tools.progress import State

    events: list[Any] = []
    tuned(plan, tmp_path / "db.sqlite", on_event=events.append)
    last = events[-1]
    assert last.finished
    for name in (n for n, held in vars(State).items() if isinstance(held, property)):
        assert hasattr(last, name)
    assert last.kernels_done == last.kernels_total == len(plan.kernels)
    assert last.done == last.trials > 0
    assert last.ratio is not None and last.ratio >= 1.0


def test_the_budget_goes_where_time_is_spent(
    plan: Plan, bench: FakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal kernels, one of them called twice: it is searched at least as much."""
    monkeypatch.setattr(search, "_FRUITLESS", 100)
    monkeypatch.setattr(task.Task, "bound_ns", lambda self, hardware: 5e4)
    got = tuned(plan, tmp_path / "db.sqlite", budget_s=2.5)
    twice = next(f for f in got.facts.values() if f.calls == 2)
    assert all(twice.trials >= f.trials - 8 for f in got.facts.values())


def test_a_kernel_whose_default_fails_keeps_it_and_says_so(
    plan: Plan, bench: FakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "default", lambda job: Rejected("R020", "SIGILL"))
    got = tuned(plan, tmp_path / "db.sqlite")
    assert got.kernels_tuned == 0
    assert [got.choose(k) for k in plan.kernels] == defaults(plan)
    assert all("R020" in f.note for f in got.facts.values())


def test_a_kernel_that_the_budget_did_not_reach_waits_for_a_larger_one(
    plan: Plan, bench: FakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / "db.sqlite"
    timed: list[str] = []
    default = bench.default
    monkeypatch.setattr(
        bench, "default", lambda job: timed.append(job.kernel.task_key) or default(job)
    )
    monkeypatch.setattr(search, "_GROUP", 1)
    with monkeypatch.context() as limited, caplog.at_level(logging.WARNING):
        limited.setattr(search.Search, "_is_over", lambda self: bool(timed))
        first = tuned(plan, path)
    count = len(first.facts)
    assert count > 1
    assert first.kernels_tuned == 1
    assert f"{count - 1} of {count} kernels" in caplog.text
    notes = [f.note for f in first.facts.values() if f.task_key not in timed]
    assert all(note.startswith("T003") and "2.5 s" in note for note in notes)
    # The same budget opens nothing, a larger one all that was left.
    assert tuned(plan, path, budget_s=3.0).kernels_tuned == 0
    assert tuned(plan, path, budget_s=5.0).kernels_tuned == count - 1
    assert tuned(plan, path, budget_s=2.5).kernels_tuned == 0


def test_tensors_that_do_not_stay_in_cache_are_cold() -> None:
    """A cycle over one buffer would find a part of it in the last cache, which no caller's data is."""
    text = """program p(x: f32[512, 1024], s: f32[1024]):
  y: f32[i<512, j<1024] = x[i, j] * s[j]
  z: f32[i<512] = sum(j<1024) y[i, j]
  return y, z
"""
    plan = plan_program(parse_program(text), TARGET)[0]
    for l3_bytes, count in ((64 << 20, 0), (4 << 20, 2), (1 << 18, 0)):
        cold = _cold(plan, replace(TARGET, l3_bytes=l3_bytes))
        sizes = [x.size for k, names in cold.items() for n, x in plan.kernels[k].layouts if n in names]
        assert sizes == [512 * 1024] * count
    (task,) = _tasks(plan, replace(TARGET, l3_bytes=4 << 20), 1)
    built = task.default_candidate()
    assert not isinstance(built, Rejected)
    built.data = b""
    job = Job(task.kernel, 1, task.arrays({}), built.built, task.cold)
    marked = [b.role for b in job.candidate(built.built).buffers if b.cold]
    assert marked == ["input", "output"]


def test_weights_of_a_model_beyond_the_caches_are_cold() -> None:
    """Only large constants, and only where all of the model does not stay in the last cache."""
    text = """program p(x: f32[8, 512], w: f32[512, 1024], v: f32[1024, 8]):
  a: f32[i<8, j<1024] = sum(k<512) x[i, k] * w[k, j]
  b: f32[i<8, j<8] = sum(k<1024) a[i, k] * v[k, j]
  return b
"""
    program = with_constants(
        parse_program(text),
        {"w": np.ones((512, 1024), np.float32), "v": np.ones((1024, 8), np.float32)},
    )
    plan = plan_program(program, TARGET)[0]
    small, large = replace(TARGET, l3_bytes=1 << 20), replace(TARGET, l3_bytes=64 << 20)
    cold = {k: len(names) for k, names in _cold(plan, small).items()}
    assert sorted(cold.values()) == [0, 1] and _cold(plan, large) == {}
    keys = {t.identity()["task_key"]: t for t in _tasks(plan, small, 1)}
    assert sum(k.endswith("-cold") for k in keys) == 1
    assert {t.key for t in keys.values()} == {k.task_key for k in plan.kernels}
    for key, one in keys.items():
        assert key == one.key + ("-cold" if one.cold else "")
        built = one.default_candidate()
        assert not isinstance(built, Rejected)
        built.data = b""
        job = Job(one.kernel, 1, one.arrays(program.values), built.built, one.cold)
        marked = [b.size_bytes for b in job.candidate(built.built).buffers if b.cold]
        assert marked == ([4 * 512 * 1024] if one.cold else [])
