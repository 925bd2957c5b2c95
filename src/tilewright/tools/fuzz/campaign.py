"""A campaign: cases handed to children one after the other, counted, and kept where they fail.

In: kinds, a seed, a time or a count, targets, a corpus. Out: `figures`. Invariants: the parent
compiles and runs nothing that was generated; a child that crashes, hangs or runs out of memory is a
finding, and the next case has a new child; an interrupt keeps what was counted.
"""

from __future__ import annotations

import itertools
import re
import select
import shutil
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tilewright.config import current
from tilewright.errors import TargetError, UserError
from tilewright.machine.target import available_cpus
from tilewright.runtime.wire import Header, Worker, WorkerDied
from tilewright.tools.fuzz.corpus import Corpus, FailedCase, Tally
from tilewright.tools.fuzz.torch_opinion import is_available

__all__ = ["ALL_KINDS", "ALL_TARGETS", "Settings", "available_kinds", "run"]

# Kind -> its share of the cases where none is named.
ALL_KINDS = {"programs": 12, "onnx": 6, "schedules": 2, "nests": 1}
ALL_TARGETS = ("x86-avx512", "x86-avx2", "x86-sse42")
# A thousand definitions take half a minute to build on an idle machine; this one may be busy.
_CASE_S = 300.0
_REDUCE_S = 30.0
_SAVE_EVERY_S = 20.0
_THIRD_EVERY = 4  # one case in so many is shown to PyTorch
_TWIN_EVERY = 25  # one case in so many is built in a second process, too
_MOST_REDUCED = 12
_SPARE = 1  # cases that are worked on beyond one a CPU: Python and LLVM take turns in each
_CACHE_BYTES = 64 << 20  # of built objects, a child
_RATE_FROM = 50  # cases from which on a run is worth measuring the generation


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; `count` wins over `seconds`."""

    kinds: tuple[str, ...] = tuple(ALL_KINDS)
    seed: int = 0
    seconds: float | None = 60.0
    count: int | None = None
    targets: tuple[str, ...] = ALL_TARGETS
    threads: int = 2
    corpus: Path | None = None
    reduce_s: float = _REDUCE_S


@dataclass
class _Run:
    """This run's counts, apart from those of the corpus."""

    settings: Settings
    corpus: Corpus
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    interrupted: bool = False
    reduced: int = 0
    mark: float = 0.0  # when the last case ended
    begun: Counter[str] = field(default_factory=Counter)  # cases of a kind, ended or running
    twins: deque[_Ticket] = field(default_factory=deque)  # to be repeated in a second process
    third: Header | None = None  # the case that PyTorch was shown last, until it is heard

    @property
    def is_over(self) -> bool:
        """Is the time up?"""
        return self.elapsed_s >= (self.settings.seconds or 0.0)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def share(self) -> float:
        """How much of the run is done."""
        if self.settings.count is not None:
            return self.done / self.settings.count
        return self.elapsed_s / max(1e-9, self.settings.seconds or 0.0)

    @property
    def facts(self) -> str:
        """Counts of the corpus in a line."""
        tallies = self.corpus.tallies.values()
        failed = sum(t.wrong + t.errors + t.crashes for t in tallies)
        return (
            f"{self.done} cases now; {sum(t.generated for t in tallies)} cases and "
            f"{sum(t.pairs for t in tallies)} pairs in all, {failed} failed"
        )


class Children:
    """Children for cases, one for nests (its branches are watched), one for cases that a child
    did not survive, a twin that repeats cases, one for third parties, and a reducer; each is
    replaced when it dies.
    """

    def __init__(self, arcs: Path, scratch: Path) -> None:
        """arcs: the file where the child of nests keeps which branches were taken; scratch: a
        folder for caches, one a child: a twin builds what the first child built, and what was
        generated displaces nothing in the user's cache.
        """
        self.arcs = arcs
        self.scratch = scratch
        self._workers: dict[str, Worker] = {}

    def ask(self, name: str, header: Header, body: bytes, timeout_s: float) -> tuple[Header, bytes]:
        """Errors: WorkerDied, also where none can be started."""
        self.begin(name, header, body)
        return self.finish(name, timeout_s)

    def begin(self, name: str, header: Header, body: bytes = b"") -> None:
        """Hand a request to a child without waiting. Errors: WorkerDied."""
        worker = self._workers.get(name)
        if worker is None:
            arguments = (str(self.arcs),) if name == "nests" else ()
            worker = self._workers[name] = _started(arguments, self._cache(name))
        try:
            worker.send(header, body)
        except (WorkerDied, KeyboardInterrupt):
            del self._workers[name]
            worker.kill()
            raise

    def finish(self, name: str, timeout_s: float) -> tuple[Header, bytes]:
        """The answer to the request that was handed over. Errors: WorkerDied."""
        worker = self._workers[name]
        try:
            return worker.receive(timeout_s)
        except OSError as error:  # it never came up
            del self._workers[name]
            raise WorkerDied(str(error)) from None
        except (WorkerDied, KeyboardInterrupt):
            del self._workers[name]
            worker.kill()
            raise

    def wait(self, names: Collection[str], timeout_s: float) -> str | None:
        """One of these that has answered or ended, or None after `timeout_s`."""
        known = {self._workers[n].fileno(): n for n in names if n in self._workers}
        ready = select.select(list(known), [], [], max(0.0, timeout_s))[0]
        return known[ready[0]] if ready else None

    def _cache(self, name: str) -> Path:
        """The folder of a child's own cache; it begins with what is known of the machine."""
        folder = self.scratch / name
        with suppress(OSError):  # where nothing is known, or the disk is full
            shutil.copytree(current().cache_dir / "hardware", folder / "hardware")
        return folder

    def close(self) -> None:
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()


def _started(arguments: tuple[str, ...], cache: Path) -> Worker:
    """A new child that builds into `cache`; a machine that is out of processes or memory is given
    time.

    Errors: WorkerDied.
    """
    variables = {
        "TILEWRIGHT_CACHE_DIR": str(cache),
        "TILEWRIGHT_CACHE_MAX_BYTES": str(_CACHE_BYTES),
        # Several children run at once; the arrays of the references are small.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    for wait_s in (1.0, 5.0, 20.0):
        try:
            return Worker("tilewright.tools.fuzz.child", arguments, variables)
        except OSError:
            time.sleep(wait_s)
    raise WorkerDied("no child can be started")


def available_kinds() -> tuple[str, ...]:
    """The kinds that this installation can draw."""
    from tilewright.tools.fuzz.kinds import KINDS

    return tuple(k for k in ALL_KINDS if k in KINDS and KINDS[k].is_available())


def runnable(targets: Sequence[str]) -> tuple[str, ...]:
    """Those of the targets that this machine runs. Errors: TargetError of the first if none is."""
    from tilewright.machine.target import Target

    out, first = [], None
    for name in targets:
        try:
            Target.named(name).require_runnable()
            out.append(name)
        except TargetError as error:
            first = first or error
    if not out and first is not None:
        raise first
    return tuple(out)


def _order(kinds: Sequence[str]) -> Iterator[str]:
    """Kinds in turn, by their shares."""
    line: list[str] = []
    most = max(ALL_KINDS[k] for k in kinds)
    for place in range(most):
        for k in kinds:
            share = ALL_KINDS[k]
            if place * share % most < share:
                line.append(k)
    return itertools.cycle(line)


def run(settings: Settings, on_progress: Callable[[float | None, str], None]) -> dict[str, Any]:
    """Run a campaign; the result as `--json` shows it.

    Errors: U003 for a corpus that cannot be used; TargetError where no target runs here.
    """
    from tilewright.tools.fuzz import kinds as table

    corpus = Corpus(settings.corpus)
    state = _Run(settings, corpus)
    targets = runnable(settings.targets)
    for k in settings.kinds:
        if not table.KINDS[k].is_available():
            raise TargetError(
                "U002", f"cases of the kind {k} need the package onnx",
                hint="pip install 'tilewright[onnx]'",
            )  # fmt: skip
    generation = _generation(settings, table)
    saved = time.monotonic()
    scratch = tempfile.TemporaryDirectory()
    arcs = Path(settings.corpus or scratch.name).resolve() / "arcs"
    children = Children(arcs, Path(scratch.name))
    try:
        _replay_failed(state, children)
        order = _order(settings.kinds)
        running: dict[str, _Ticket] = {}
        waiting = ""
        state.mark = time.monotonic()
        at_once = min(available_cpus() + _SPARE, settings.count or 1 << 30)
        while True:
            if state.twins and "twin" not in running:
                running["twin"] = _begin_twin(children, state.twins.popleft())
                continue
            done = state.done + len(running.keys() - {"twin"})
            more = done < settings.count if settings.count is not None else not state.is_over
            if more and len(running) < at_once:
                waiting = waiting or next(order)
                if waiting != "nests" or "nests" not in running:
                    ticket = _begin(state, children, waiting, targets, running)
                    running[ticket.child] = ticket
                    waiting = ""
                    continue
            if not running:
                break
            ticket = running.pop(_next(children, running))
            if ticket.child == "twin":
                _finish_twin(state, children, ticket)
                continue
            _finish(state, children, ticket)
            state.done += 1
            on_progress(state.share, state.facts)
            if time.monotonic() - saved > _SAVE_EVERY_S:
                with suppress(UserError):  # a disk that is full now may not be in the end
                    corpus.save()
                saved = time.monotonic()
        _hear_third(state, children)
    except KeyboardInterrupt:
        state.interrupted = True
    finally:
        with suppress(WorkerDied, KeyboardInterrupt):
            _coverage(state, children)
        children.close()
        corpus.save()
        corpus.close()
        scratch.cleanup()
    from tilewright.tools.fuzz.figures import result

    return result(state.settings, corpus, generation, state.elapsed_s, state.interrupted, table)


def _generation(settings: Settings, table: Any) -> dict[str, float]:
    """Graphs a second and median definitions of generation alone, over a second or so."""
    rates, sizes = [], []
    if settings.count is not None and settings.count < _RATE_FROM:
        return {}
    for kind in settings.kinds:
        made = table.KINDS[kind]
        if kind not in ("programs", "onnx"):
            continue
        made.generate(
            (settings.seed << 32) + (1 << 31)
        )  # what is imported on the way is not counted
        started, count = time.process_time(), 0
        while time.process_time() - started < 0.7 or count < 100:
            sizes.append(made.generate((settings.seed << 32) + (1 << 31) + count))
            count += 1
        rates.append(count / (time.process_time() - started))
    if not rates:
        return {}
    return {"rate": min(rates), "median": statistics.median(sizes)}


def _header(kind: str, number: int, target: str, threads: int, **more: Any) -> Header:
    return {
        "do": "case", "kind": kind, "number": number, "target": target, "threads": threads,
        "rebuild": False, "symbolic": False, "careful": False, **more,
    }  # fmt: skip


@dataclass(frozen=True)
class _Ticket:
    """A case that a child works on: `died` where the child did not even take it."""

    kind: str
    index: int
    child: str
    header: Header
    died: WorkerDied | None = None
    digest: str = ""  # of the first run, for a twin
    deadline: float = field(default_factory=lambda: time.monotonic() + _CASE_S)


def _begin(
    state: _Run, children: Children, kind: str, targets: Sequence[str], running: Collection[str]
) -> _Ticket:
    """Hand the next case of a kind to a child that is free."""
    from tilewright.tools.fuzz.kinds import draw_options

    seed = state.settings.seed
    if kind not in state.begun:
        state.begun[kind] = state.corpus.tally(kind).next.get(str(seed), 0)
    index = state.begun[kind]
    state.begun[kind] += 1
    number = (seed << 32) + index
    options = draw_options(number, targets, state.settings.threads)
    more = {"rebuild": options.rebuild, "symbolic": options.symbolic}
    header = _header(kind, number, options.target, options.threads, **more)
    free = (n for n in (f"main {k}" for k in itertools.count()) if n not in running)
    child = "nests" if kind == "nests" else next(free)
    return _handed(children, _Ticket(kind, index, child, header))


def _begin_twin(children: Children, first: _Ticket) -> _Ticket:
    """The same case in another process must give the same objects and results."""
    ticket = _Ticket(first.kind, first.index, "twin", first.header, digest=first.digest)
    return _handed(children, ticket)


def _handed(children: Children, ticket: _Ticket) -> _Ticket:
    try:
        children.begin(ticket.child, ticket.header)
    except WorkerDied as died:
        return replace(ticket, died=died)
    return ticket


def _next(children: Children, running: Mapping[str, _Ticket]) -> str:
    """The child to listen to next: one that answered, or whose time is up."""
    for name, ticket in running.items():
        if ticket.died is not None:
            return name
    first = min(running, key=lambda n: running[n].deadline)
    return children.wait(running, running[first].deadline - time.monotonic()) or first


def _answer_of(children: Children, ticket: _Ticket) -> tuple[Header, bytes]:
    """Errors: WorkerDied."""
    if ticket.died is not None:
        raise ticket.died
    return children.finish(ticket.child, max(1.0, ticket.deadline - time.monotonic()))


def _finish(state: _Run, children: Children, ticket: _Ticket) -> None:
    """Count a case that has ended, and keep it where it failed."""
    kind, header = ticket.kind, ticket.header
    tally = state.corpus.tally(kind)
    answer: Header
    try:
        answer, data = _answer_of(children, ticket)
    except WorkerDied as died:
        answer, data = _again(children, header, died)
    seed = str(state.settings.seed)
    tally.next[seed] = max(tally.next.get(seed, 0), ticket.index + 1)
    now = time.monotonic()
    tally.seconds += now - state.mark
    state.mark = now
    _count(tally, answer, header["target"])
    found = answer["found"]
    if found is None and answer.get("digest") and ticket.index % _TWIN_EVERY == 0:
        state.twins.append(replace(ticket, digest=answer["digest"]))
    if found is None and kind == "programs" and ticket.index % _THIRD_EVERY == 0:
        _ask_third(state, children, header)
    if found is not None:
        _keep(state, children, kind, header, found, data)


def _finish_twin(state: _Run, children: Children, ticket: _Ticket) -> None:
    """Compare what two processes made of one case."""
    try:
        answer, data = _answer_of(children, ticket)
    except WorkerDied as died:
        found, data = ["crash", f"the twin died: {died.detail}"], b""
    else:
        if answer.get("digest") == ticket.digest:
            return
        found = ["wrong twin", "another process makes other objects or results of the case"]
    state.corpus.tally(ticket.kind).wrong += 1
    _keep(state, children, ticket.kind, ticket.header, found, data)


def _again(children: Children, header: Header, died: WorkerDied) -> tuple[Header, bytes]:
    """The case that its child did not survive, in a new one that takes care."""
    try:
        answer, data = children.ask("careful", {**header, "careful": True}, b"", 3 * _CASE_S)
    except WorkerDied as again:
        died, data = again, b""
        answer = {"pairs": 0, "definitions": 0, "drawn": [], "valid": True, "others": []}
        answer["found"] = None
    if answer["found"] is None:
        kind = "hang" if died.timed_out else "crash"
        answer["found"] = [kind, f"the child died: {_without_folders(died.detail)}"]
    return answer, data


def _without_folders(text: str) -> str:
    """The text of a traceback, whose files are named without the folders of this machine."""
    return re.sub(r"(?<![\w.:/])(?:/[^\s/\"':]+)+/(?=[^\s/])", "", text)


def _ask_third(state: _Run, children: Children, header: Header) -> None:
    """Show a case to PyTorch, in a process that runs no compiled code; nobody waits for it."""
    _hear_third(state, children)
    others = state.corpus.tally(header["kind"]).others
    if not is_available():
        others["torch not installed"] += 1
        return
    try:
        children.begin("third", {**header, "do": "third"})
    except WorkerDied:
        others["torch died"] += 1
        return
    state.third = header


def _hear_third(state: _Run, children: Children) -> None:
    """What PyTorch says of the case that it was shown last, if it has not been heard."""
    if state.third is None:
        return
    header, state.third = state.third, None
    tally = state.corpus.tally(header["kind"])
    try:
        answer, data = children.finish("third", _CASE_S)
    except WorkerDied:
        tally.others["torch died"] += 1
        return
    tally.others.update(answer["others"])
    if answer["found"] is not None:
        _keep(state, children, header["kind"], header, answer["found"], data)


def _count(tally: Tally, answer: Header, target: str) -> None:
    tally.generated += 1
    tally.valid += bool(answer["valid"])
    tally.programs += bool(answer["valid"])
    tally.pairs += answer["pairs"]
    tally.drawn.update(answer["drawn"])
    tally.others.update(answer["others"])
    tally.targets[target] += 1
    found = answer["found"]
    if found is None:
        return
    failure = found[0]
    tally.wrong += failure.startswith("wrong")
    tally.errors += failure.startswith(("error", "invalid"))
    tally.crashes += failure in ("crash", "hang")
    tally.out_of_bounds += failure == "crash" and "SIGSEGV" in found[1]


def _keep(
    state: _Run, children: Children, kind: str, header: Header, found: Sequence[str], data: bytes
) -> None:
    """Keep a failing case, reduced."""
    from tilewright.tools.fuzz.kinds import KINDS

    failed = FailedCase(
        kind, header["number"], found[0], found[1][:2000], header["target"], header["threads"],
        symbolic=header["symbolic"],
    )  # fmt: skip
    suffix = KINDS[kind].suffix
    if not data:
        try:
            data = KINDS[kind].text_of(header["number"])
        except Exception as error:  # noqa: BLE001 - a generator that fails is what was found
            data = f"# case {header['number']} cannot be generated: {error!r}\n".encode()
    if not state.corpus.add(failed, data, suffix):
        return
    with suppress(UserError):
        state.corpus.save()
    if state.reduced >= _MOST_REDUCED or found[0] == "hang":
        return
    state.reduced += 1
    request = {**header, "do": "reduce", "failure": found[0], "seconds": state.settings.reduce_s}
    try:
        _, smaller = children.ask("reducer", request, data, state.settings.reduce_s + _CASE_S)
    except WorkerDied:
        return
    state.corpus.rewrite(failed, smaller)


def _coverage(state: _Run, children: Children) -> None:
    """Ask the child of nests which branches were taken, in all runs of the corpus."""
    tally = state.corpus.tallies.get("nests")
    if tally is None or "nests" not in state.settings.kinds:
        return
    facts = children.ask("nests", {"do": "coverage"}, b"", _CASE_S)[0]["coverage"]
    if facts is not None:
        how = (
            f"{facts['taken']} of {facts['all']} branches of lower/ and codegen/ "
            f"in {tally.generated} cases and {tally.seconds:.0f} s"
        )
        state.corpus.coverage = {**facts, "how": how}


def _replay_failed(state: _Run, children: Children) -> None:
    """Run the kept cases again and note which of them still fail."""
    for failed in state.corpus.failed:
        data = state.corpus.data_of(failed)
        if failed.fixed or not data or failed.campaign not in state.settings.kinds:
            continue
        if failed.failure == "differs torch":  # nothing that is run here shows it
            continue
        careful = failed.failure in ("crash", "hang")
        more = {"do": "replay", "rebuild": True, "careful": careful, "symbolic": failed.symbolic}
        header = _header(failed.campaign, failed.number, failed.target, failed.threads, **more)
        try:
            answer, _ = children.ask("main 0", header, data, _CASE_S)
            found = answer["found"]
            failed.fixed = found is None
            if careful and found is not None and found[0].startswith("third"):
                failed.failure, failed.message = found[0], found[1][:2000]  # it was not ours
        except WorkerDied:
            failed.fixed = False
    state.corpus.save()
