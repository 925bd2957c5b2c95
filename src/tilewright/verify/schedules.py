"""The schedule fuzzer: schedules of a Program's kernels, each lowered, run and compared with the
oracle.

In: a Program without symbolic dims, a Target, a generator of random numbers. Out: a
`ScheduleReport`. Invariants: a schedule that its Space holds must lower, verify, print and parse,
touch nothing outside its tensors and compute what the kernel's definitions say; a finding holds the
kernel and the schedule, so that it can be run again.

Every buffer of a native run touches an unmapped page, at its end or at its start. Outputs,
workspace and scratch hold NaN (floats) or a byte pattern before a run, and what no element of an
output occupies must still hold it afterwards.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Any

import numpy as np

from tilewright.codegen.llvm import chunk_count, emit_llvm, function_name, scratch_bytes
from tilewright.errors import Rejected
from tilewright.group.plan import plan_program
from tilewright.ir import expr as E
from tilewright.ir.kernel import Kernel, int_extent, parse_kernel
from tilewright.ir.layout import Layout
from tilewright.ir.nest import LoopNest, parse_nest
from tilewright.ir.nest_interpreter import run_nest
from tilewright.ir.nest_verifier import verify_nest
from tilewright.ir.plan import KernelCall, Plan
from tilewright.ir.program import Program
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.runtime.build import (
    DEFAULT,
    BuildOptions,
    emit_object,
    set_kernel_options,
)
from tilewright.runtime.jit import load_object
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.schedule.space import Space
from tilewright.verify.finite import finite_inputs
from tilewright.verify.fuzz import first_wrong, isolated
from tilewright.verify.generate import random_inputs
from tilewright.verify.guards import guarded, poisoned
from tilewright.verify.witness import References, references

__all__ = ["PARAMETERS", "Finding", "ScheduleReport", "fuzz_schedules", "replay"]
__all__ += ["parameter_kind", "run_native", "schedules_of"]

Array = np.ndarray[Any, np.dtype[Any]]
Buffers = dict[str, Array]

# Points of a kernel up to which all its nests are interpreted too, and up to which some are.
INTERPRETED = 3_000
SOMETIMES_INTERPRETED = 60_000
_GUARDED_BYTES = 1 << 24


@dataclass(frozen=True)
class Finding:
    """What went wrong: `stage` is lower, verify, text, interpreter, emit, native or
    program."""

    program: str
    stage: str
    message: str
    kernel: Kernel | None = None
    schedule: Schedule | None = None

    def __str__(self) -> str:
        lines = [f"{self.program}: {self.stage}: {self.message}"]
        lines += [str(x) for x in (self.schedule, self.kernel) if x is not None]
        return "\n".join(lines)


@dataclass
class ScheduleReport:
    """Counts of a run, and what it found."""

    kernels: int = 0
    schedules: int = 0
    nests: int = 0
    interpreted: int = 0
    native: int = 0
    findings: list[Finding] = field(default_factory=list)
    drawn: set[str] = field(default_factory=set)

    @property
    def ok(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        text = (
            f"{self.schedules} schedules of {self.kernels} kernels, {self.nests} distinct nests, "
            f"{self.interpreted} interpreted, {self.native} run natively: "
            f"{len(self.findings)} findings"
        )
        return "\n\n".join([text, *map(str, self.findings)])


@dataclass(frozen=True)
class _Task:
    """A kernel with flat buffers as a call would find them, and what it should compute: `meaning`
    on `given`, with `values` of constants.
    """

    program: str
    kernel: Kernel
    buffers: Buffers
    expected: References
    meaning: Program
    given: Mapping[str, Array]
    values: Mapping[str, Array]


# ---- which schedules -----------------------------------------------------------------------------


def schedules_of(space: Space, rng: np.random.Generator, count: int) -> Iterator[Schedule]:
    """The default, `count` that differ from it in one group (each group at least once while they
    last), and `count` uniform samples with a neighbour of each.
    """
    start = space.default()
    yield start
    rows = space.rows_of(start) or ()
    order = rng.permutation(len(space.groups))
    single: list[tuple[int, int]] = []
    left = {int(i): list(rng.permutation(len(space.groups[i].rows))) for i in order}
    while len(single) < count and any(left.values()):
        for i, row_numbers in left.items():
            if row_numbers:
                single.append((i, int(row_numbers.pop())))
    for i, j in single[: max(count, len(space.groups))]:
        if j != rows[i]:
            yield space.at((*rows[:i], j, *rows[i + 1 :]))
    for _ in range(count):
        s = space.sample(rng)
        yield s
        near = list(space.neighbours(s))
        if near:
            yield near[int(rng.integers(len(near)))]


# Every kind of parameter that a Space may have.
_PARAMETERS = """
    ahead block blocks border chunk fetch lane nt order pack par parts prefetch reduce reg rows
    stream strip tail tile turn
"""
PARAMETERS = frozenset(_PARAMETERS.split())


def parameter_kind(name: str) -> str:
    """A parameter's name without the numbers of stage, axis and level: `reg`, `tail`, `par`."""
    own = name.split(".", 1)[1] if re.match(r"s\d+\.", name) else name
    return own.split(".")[0]


def _facts(s: Schedule) -> set[str]:
    """What a schedule draws: parameters, and the values of those that are choices of names."""
    out = set()
    for name, value in s.values.items():
        kind = parameter_kind(name)
        if not value:  # no blocks, no copy, no parts
            continue
        out.add(f"parameter {kind}")
        if isinstance(value, str) and kind in ("tail", "pack"):
            out.add(f"{kind} {value}")
        if kind == "lane" and value:
            out.add("tail mask")
    return out


# ---- running one nest ----------------------------------------------------------------------------


def _bind(low: Lowered, task: _Task) -> Buffers:
    """Fresh copies of what the nest's buffers hold before a call."""
    out: Buffers = {}
    for name, layout in task.kernel.layouts:
        flat = task.buffers[name]
        packed = low.layouts.get(name)
        out[name] = flat.copy() if packed is None else packed.pack(layout.unpack(flat))
    for w in low.workspace:
        out[w.name] = poisoned(E.int_value(w.size) or 0, w.dtype.np)
    return out


@cache
def _prepare(target: Target) -> None:
    """Make compiler and loader ready in this process, so that each child finds them.

    For processes of ours alone: tests and campaigns.
    """
    set_kernel_options()
    text = "define void @ready(ptr %args, i64 %lo, i64 %hi, ptr %scratch) {\n  ret void\n}\n"
    emit_object(text, target)
    load_object(emit_object(text, Target.native()))


def run_native(
    nest: LoopNest,
    target: Target,
    buffers: Buffers,
    at_start: bool = False,
    at_once: int = 1 << 40,
    *,
    backwards: bool = False,
    dims: Mapping[str, int] | None = None,
    options: BuildOptions = DEFAULT,
) -> Buffers:
    """The buffers after a native run, `at_once` chunks a call; backwards: the last ones first."""
    dims = dims or {}
    placed = [b for b in nest.buffers if b.place != "scratch"]
    memory = {b.name: guarded(buffers[b.name], b.align, at_start) for b in placed}
    values = [memory[b.name][0] for b in placed] + [dims[d] for d in nest.dims]
    slots = (ctypes.c_int64 * max(1, len(values)))(*values)
    scratch = guarded(np.full(scratch_bytes(nest, dims), 0xFF, np.uint8), 64, at_start)
    library = load_object(emit_object(emit_llvm(nest, target), target, options))
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
    for phase in range(len(nest.phases)):
        function = kind(library.address(function_name(nest, phase)))
        chunks = chunk_count(nest, phase, dims)
        begins = range(0, chunks, at_once)
        for lo in reversed(begins) if backwards else begins:
            function(ctypes.addressof(slots), lo, min(chunks, lo + at_once), scratch[0])
    return {n: g[1].copy() for n, g in memory.items()}


def _judge(task: _Task, after: Mapping[str, Array]) -> str:
    """What is wrong with the buffers after a run; empty where all is right."""
    kernel = task.kernel
    got = [kernel.layout_of[n].unpack(after[n]) for n in kernel.program.results]
    o = first_wrong(task.meaning, got, task.expected, task.given, values=task.values)
    if o is not None:
        return f"output {o.output}: {o.verdict}"
    for n in kernel.program.results:
        free = np.ones(len(task.buffers[n]), np.bool_)
        free[kernel.layout_of[n].addresses()] = False
        before = task.buffers[n].view(np.uint8).reshape(len(free), -1)[free]
        if not np.array_equal(before, after[n].view(np.uint8).reshape(len(free), -1)[free]):
            return f"output {n}: an element between those of the tensor has been written"
    return ""


def _points(kernel: Kernel) -> int:
    most = 1
    for d in kernel.definitions.values():
        most = max(most, prod(int_extent(a.extent) for a in d.all_axes))
    return most


def _check(
    task: _Task,
    schedule: Schedule,
    target: Target,
    report: ScheduleReport,
    seen: set[str] | None = None,
    *,
    native: bool = True,
    interpret: bool = True,
    at_start: bool = False,
    at_once: int = 1 << 40,
    isolate: bool = True,
    options: BuildOptions = DEFAULT,
) -> Finding | None:
    """Lower, verify, print, run and compare one schedule; None where all is right or `seen` has the
    same nest.
    """

    def found(stage: str, message: str) -> Finding:
        return Finding(task.program, stage, message, task.kernel, schedule)

    report.schedules += 1
    stage = "lower"
    try:
        low = lower(task.kernel, schedule, target)
        if isinstance(low, Rejected):
            return found(stage, f"rejected: {low.code} {low.detail}")
        text = str(low.nest)
        if seen is not None:
            if text in seen:
                return None
            seen.add(text)
        report.nests += 1
        stage = "verify"
        verify_nest(low.nest)
        stage = "text"
        if parse_nest(text) != low.nest or Schedule.parse(str(schedule)) != schedule:
            return found(stage, "the text parses to something else")
        again = lower(task.kernel, schedule, target)
        if isinstance(again, Rejected) or str(again.nest) != text:
            return found("lower", "a second lowering gives another nest")
        if interpret:
            stage = "interpreter"
            report.interpreted += 1
            buffers = _bind(low, task)
            run_nest(low.nest, buffers, {})
            wrong = _judge(task, buffers)
            if wrong:
                return found(stage, wrong)
        if not native:
            stage = "emit"
            emit_llvm(low.nest, target)
        else:
            stage = "native"
            report.native += 1
            _prepare(target)
            names = list(task.kernel.program.results)
            nest = low.nest

            def inside(_: Program, buffers: Buffers) -> list[Array]:
                after = run_native(
                    nest, target, buffers, at_start, at_once, backwards=True, options=options
                )
                return [after[n] for n in names]

            run = isolated(inside) if isolate else inside
            arrays = run(task.kernel.program, _bind(low, task))
            wrong = _judge(task, dict(zip(names, arrays, strict=True)))
            if wrong:
                return found(stage, wrong)
    except Exception as e:  # noqa: BLE001 - whatever a stage raises is the finding
        return found(stage, f"{type(e).__name__}: {e}")
    return None


def replay(
    kernel: Kernel,
    schedule: Schedule,
    target: Target,
    seed: int = 0,
    *,
    native: bool = True,
    interpret: bool = True,
    isolate: bool = True,
    options: BuildOptions = DEFAULT,
) -> Finding | None:
    """Check one schedule of a kernel on random inputs; constants are random too. Without `native`
    its code is emitted only.
    """
    p = kernel.program
    inputs = replace(p, inputs=p.inputs + tuple(t for t, _ in p.constants), constants=())
    given = random_inputs(inputs, {}, seed)
    buffers: Buffers = {}
    for n, layout in kernel.layouts:
        if n in given:
            buffers[n] = layout.pack(given[n])
        else:
            buffers[n] = _empty(layout, p.tensors[n].dtype.np)
    task = _Task(p.name, kernel, buffers, references(inputs, given), inputs, given, {})
    return _check(
        task,
        schedule,
        target,
        ScheduleReport(),
        native=native,
        interpret=interpret,
        isolate=isolate,
        options=options,
    )


# ---- a whole program -----------------------------------------------------------------------------


def _start(plan: Plan, program: Program, inputs: Mapping[str, Array]) -> Buffers:
    """Flat buffers of a plan before its first step."""
    out: Buffers = {}
    for b in plan.buffers:
        if b.place == "input":
            out[b.name] = b.layout.pack(inputs[b.name])
        elif b.place == "const":
            value = np.asarray(program.values[b.constant]).reshape(b.layout.shape)
            out[b.name] = b.layout.pack(value)
        else:
            out[b.name] = _empty(b.layout, b.dtype.np)
    return out


def _empty(layout: Layout, dtype: np.dtype[Any]) -> Array:
    """A buffer that nothing has written yet: its halo is filled, the rest poisoned."""
    flat = poisoned(layout.size, dtype)
    if layout.halo:
        at = layout.addresses()
        inside = flat[at]
        flat[:] = layout.fill
        flat[at] = inside
    return flat


def _fill(flat: Array, layout: Layout, value: Array) -> None:
    with np.errstate(all="ignore"):
        flat[layout.addresses()] = value.astype(flat.dtype)


def fuzz_schedules(
    program: Program,
    target: Target,
    rng: np.random.Generator,
    count: int = 4,
    *,
    inputs: Mapping[str, Array] | None = None,
    native: bool = True,
    most_findings: int = 3,
    most_kernels: int = 1 << 30,
    report: ScheduleReport | None = None,
    isolate: bool = True,
) -> ScheduleReport:
    """Check about 3 * `count` schedules of every kernel of a bound Program, or of `most_kernels`.

    Each kernel gets the oracle's values of what it reads; the program's results are compared in the
    end, so a grouping that changes the meaning is found too. Programs with externs,
    branches or loops are checked up to the first of them. isolate: each native run has a child of
    its own; callers that are children themselves go without.
    """
    report = report or ScheduleReport()
    inputs = dict(inputs or finite_inputs(program, {}, int(rng.integers(1 << 30)))[0])
    plan, _ = plan_program(program, target)
    buffers = _start(plan, program, inputs)
    done: set[int] = set()
    begun = len(report.findings)
    for step in plan.steps:
        if not isinstance(step, KernelCall):
            return report
        kernel = plan.kernels[step.kernel]
        task = _task(program, plan, step, buffers)
        chosen = step.kernel not in done and len(done) < most_kernels
        if chosen and len(report.findings) - begun < most_findings:
            done.add(step.kernel)
            report.kernels += 1
            if parse_kernel(str(kernel)) != kernel:
                report.findings.append(
                    Finding(program.name, "text", "the kernel's text parses to another", kernel)
                )
            points = _points(kernel)
            run_natively = native and sum(a.nbytes for a in task.buffers.values()) < _GUARDED_BYTES
            space = space_of(kernel, target, int(rng.choice((1, 2, 4))))
            seen: set[str] = set()
            for s in schedules_of(space, rng, count):
                if not space.contains(s):
                    report.findings.append(
                        Finding(program.name, "lower", "no point of the space", kernel, s)
                    )
                finding = _check(
                    task,
                    s,
                    target,
                    report,
                    seen,
                    native=run_natively,
                    interpret=points <= INTERPRETED
                    or (points <= SOMETIMES_INTERPRETED and not rng.integers(5)),
                    at_start=bool(rng.integers(2)),
                    at_once=1 if rng.integers(2) else 1 << 40,
                    isolate=isolate,
                )
                report.drawn.update(_facts(s))
                if finding is not None:
                    report.findings.append(finding)
                    if len(report.findings) - begun >= most_findings:
                        break
        names = dict(zip((n for n, _ in kernel.layouts), step.buffers, strict=True))
        for n, value in zip(kernel.program.results, task.expected.ref, strict=True):
            _fill(buffers[names[n]], kernel.layout_of[n], np.asarray(value))
    got = [plan.buffer_of[n].layout.unpack(buffers[n]) for n in program.results]
    o = first_wrong(program, got, references(program, inputs), inputs)
    if o is not None:
        message = f"the kernels' definitions give another {o.output}: {o.verdict}"
        report.findings.append(Finding(program.name, "program", message))
    return report


def _task(program: Program, plan: Plan, step: KernelCall, buffers: Buffers) -> _Task:
    kernel = plan.kernels[step.kernel]
    mine = {n: buffers[b] for (n, _), b in zip(kernel.layouts, step.buffers, strict=True)}
    given = {t.name: kernel.layout_of[t.name].unpack(mine[t.name]) for t in kernel.program.inputs}
    values = {
        key: kernel.layout_of[t.name].unpack(mine[t.name]) for t, key in kernel.program.constants
    }
    expected = references(kernel.program, given, values=values)
    return _Task(program.name, kernel, mine, expected, kernel.program, given, values)
