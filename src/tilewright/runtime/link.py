"""From a Plan and a schedule per kernel to an Artifact.

In: a Plan, a function that names each kernel's Schedule, constant values, a Target. Out: the
`Artifact` (at sizes of the Plan's dims, where it has some) and what it took. Invariants: each
distinct nest is emitted and built once; a constant is packed once per layout; buffers share one
arena by lifetime.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tilewright.codegen.llvm import (
    chunk_count,
    emit_llvm,
    function_name,
    scratch_bytes,
    size_value,
)
from tilewright.errors import InternalError, Rejected
from tilewright.ir.kernel import Kernel
from tilewright.ir.layout import Layout
from tilewright.ir.plan import Control, ExternCall, KernelCall, Plan
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.memory.arena import Lifetime, Placement, place_buffers
from tilewright.runtime.artifact import Argument, Artifact, ArtifactStep, CallBack, Fill
from tilewright.runtime.build import build_counted
from tilewright.runtime.context import ArrayType
from tilewright.schedule.schedule import Schedule

__all__ = ["Built", "Linked", "build_plan", "link_at", "link_plan", "lower_kernel"]

Array = np.ndarray[Any, np.dtype[Any]]
_PATIENCE_S = 600.0  # for one kernel: a machine that is busy with other work is no error


Types = tuple[tuple[ArrayType, ...], tuple[ArrayType, ...]]  # of the inputs and the outputs


@dataclass
class Built:
    """Kernels and constants of a Plan, for all sizes of its dims."""

    plan: Plan
    lowered: list[Lowered]
    schedules: list[Schedule]
    texts: list[str]
    objects: tuple[bytes, ...]
    number_of: list[int]  # the object of each kernel
    constants: list[Array]
    const_of: dict[tuple[str, str], int]
    kernels_compiled: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Linked:
    """An Artifact with the facts about its making."""

    artifact: Artifact
    lowered: list[Lowered]
    schedules: list[Schedule]
    texts: list[str]
    placement: Placement
    owners: list[int]  # the step of the Plan that each step of the Artifact belongs to
    kernels_compiled: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def lower_kernel(kernel: Kernel, schedule: Schedule, target: Target) -> Lowered:
    """`lower`, where a rejection is a bug. Errors: InternalError X001."""
    out = lower(kernel, schedule, target)
    if isinstance(out, Rejected):
        raise InternalError("X001", f"a schedule was refused: {out.detail}", where=str(schedule))
    return out


def link_plan(
    plan: Plan,
    choose: Callable[[Kernel], Schedule],
    values: Mapping[str, Array],
    target: Target,
    inputs: tuple[ArrayType, ...],
    outputs: tuple[ArrayType, ...],
    *,
    jobs: int | None = None,
    strict: bool = False,
) -> Linked:
    """Lower, emit, build and link a Plan without dims. Errors: InternalError C001 where LLVM
    refuses a kernel.
    """
    built = build_plan(plan, choose, values, target, jobs=jobs, strict=strict)
    return link_at(built, (inputs, outputs), {})


def build_plan(
    plan: Plan,
    choose: Callable[[Kernel], Schedule],
    values: Mapping[str, Array],
    target: Target,
    *,
    jobs: int | None = None,
    strict: bool = False,
) -> Built:
    """Lower, emit and build the kernels of a Plan, and pack its constants.

    Errors: InternalError C001 where LLVM refuses a kernel.
    """
    schedule_of: dict[str, Schedule] = {}  # by the key of the work: layers with other constants
    lowered_of: dict[str, Lowered] = {}
    text_of: dict[str, str] = {}
    seconds = {"schedule": 0.0, "lower": 0.0, "emit": 0.0}

    def emitted() -> Iterator[str]:
        """Texts of the kernels that differ; each is compiled while the next is made."""
        for kernel in plan.kernels:
            key = kernel.task_key
            if key in text_of:
                continue
            marks = [time.perf_counter()]
            schedule_of[key] = choose(kernel)
            marks.append(time.perf_counter())
            lowered_of[key] = lower_kernel(kernel, schedule_of[key], target)
            marks.append(time.perf_counter())
            text_of[key] = emit_llvm(lowered_of[key].nest, target)
            marks.append(time.perf_counter())
            for name, begin, end in zip(seconds, marks, marks[1:], strict=False):
                seconds[name] += end - begin
            yield text_of[key]

    at = time.perf_counter()
    made, compiled = build_counted(emitted(), target, jobs, timeout_s=_PATIENCE_S)
    object_of: dict[str, bytes] = {}
    for key, o in zip(text_of, made, strict=True):
        if isinstance(o, Rejected):
            number = [k.task_key for k in plan.kernels].index(key)
            raise InternalError("C001", o.detail, where=f"kernel {number} of {plan.name}")
        object_of[key] = o
    seconds["build"] = time.perf_counter() - at - sum(seconds.values())
    at = time.perf_counter()
    distinct: dict[bytes, int] = {}
    keys = [kernel.task_key for kernel in plan.kernels]
    numbers = [distinct.setdefault(object_of[key], len(distinct)) for key in keys]
    lowered = [lowered_of[key] for key in keys]
    relaxed = set() if strict else _summands(plan)
    constants, const_of = _constants(plan, lowered, values, relaxed)
    if any(
        isinstance(s, Control) and s.kind == "while" and len(s.buffers) == 1 for s in plan.steps
    ):
        const_of["", "true"] = len(constants)
        constants.append(np.ones(1, np.bool_))
    seconds["link"] = time.perf_counter() - at
    return Built(
        plan, lowered, [schedule_of[key] for key in keys], [text_of[key] for key in keys],
        tuple(distinct), numbers, constants, const_of, compiled, seconds,
    )  # fmt: skip


def link_at(built: Built, types: Types, sizes: Mapping[str, int]) -> Linked:
    """The Artifact at these sizes of the dims: offsets, chunks and arguments; nothing is compiled.

    types: of the inputs and outputs at these sizes.
    """
    started = time.perf_counter()
    inputs, outputs = types
    plan, lowered = built.plan, built.lowered
    constants, const_of = built.constants, built.const_of
    layouts = {b.name: b.layout.bind(sizes) for b in plan.buffers}
    bytes_of = {b.name: layouts[b.name].size * b.dtype.bytes for b in plan.buffers}
    placement, workspace = _place(plan, lowered, layouts, sizes)
    input_of = {a.name: k for k, a in enumerate(inputs)}
    output_of = {a.name: k for k, a in enumerate(outputs)}
    buffers = plan.buffer_of

    def argument(name: str, layout: Layout | None = None) -> Argument:
        b = buffers[name]
        if b.place == "input":
            return Argument("input", input_of[name])
        if b.place == "output":
            return Argument("output", output_of[name])
        if b.place == "const":
            return Argument("const", const_of[(b.constant, str(layout or b.layout))])
        return Argument("arena", placement.offsets[name])

    steps: list[ArtifactStep] = []
    owners: list[int] = []
    begun: list[tuple[str, int]] = []  # branches and loops: kind, and the step that is to be told
    at_true = const_of.get(("", "true"))
    true = None if at_true is None else Argument("const", at_true)
    for number, s in enumerate(plan.steps):
        owners += [number - 1] * (len(steps) - len(owners))
        if isinstance(s, Control):
            operands = tuple(argument(n) for n in s.buffers)
            bytes_ = 0
            if s.buffers and 0 not in layouts[s.buffers[0]].shape:
                bytes_ = bytes_of[s.buffers[0]]  # an empty one has room for one element
            _link_control(s, operands, bytes_, steps, begun, true)
            continue
        if isinstance(s, ExternCall):
            args = tuple((buffers[n].dtype.name, layouts[n].shape) for n in (*s.args, *s.results))
            callback = CallBack(s.function, s.attributes, args, len(s.results))
            slots = tuple(argument(n) for n in (*s.args, *s.results))
            steps.append(ArtifactStep(-1, "", slots, 1, callback))
            continue
        low = lowered[s.kernel]
        names = dict(zip(low.tensors, s.buffers, strict=True))
        slots = tuple(
            argument(names[b.name], low.layouts.get(b.name))
            if b.name in names
            else Argument("arena", placement.offsets[workspace[number, b.name]])
            for b in low.nest.buffers
            if b.place != "scratch"
        )
        slots += tuple(Argument("value", sizes[d]) for d in low.nest.dims)
        for p in range(len(low.nest.phases)):
            chunks = chunk_count(low.nest, p, sizes)
            if chunks:
                symbol = function_name(low.nest, p)
                steps.append(ArtifactStep(built.number_of[s.kernel], symbol, slots, chunks))
    owners += [len(plan.steps) - 1] * (len(steps) - len(owners))
    scratch = max([scratch_bytes(x.nest, sizes) for x in lowered], default=0)
    fills = tuple(
        Fill(placement.offsets[b.name], b.dtype.np.name, layouts[b.name].size, b.layout.fill)
        for b in plan.buffers
        if b.place == "arena" and b.layout.halo and b.layout.fill != 0
    )
    artifact = Artifact(
        inputs,
        outputs,
        built.objects,
        tuple(constants),
        tuple(steps),
        placement.size,
        scratch,
        fills,
    )
    seconds = dict(built.seconds)
    seconds["link"] += time.perf_counter() - started
    return Linked(
        artifact, lowered, built.schedules, built.texts, placement, owners, built.kernels_compiled,
        seconds,
    )  # fmt: skip


def _link_control(
    s: Control,
    operands: tuple[Argument, ...],
    bytes_: int,
    steps: list[ArtifactStep],
    begun: list[tuple[str, int]],
    true: Argument | None,
) -> None:
    """Add the walker's steps for a step of the Plan; `begun` holds what waits for its end."""

    def add(kind: str, arguments: tuple[Argument, ...] = (), to: int = 0, count: int = 0) -> int:
        size = bytes_ if kind in ("copy", "fill", "stack") else 0
        steps.append(ArtifactStep(-1, "", arguments, to, None, kind, count, size))
        return len(steps) - 1

    match s.kind:
        case "if":
            begun.append(("if", add("unless", operands)))
        case "else":
            _, at = begun.pop()
            begun.append(("else", add("jump")))
            steps[at] = replace(steps[at], chunks=len(steps))
        case "while":
            add("begin", operands[:1])
            if len(operands) == 1:
                assert true is not None  # made by the caller
                operands = (*operands, true)
            begun.append(("while", add("while", operands, 0, s.number)))
        case "end":
            kind, at = begun.pop()
            if kind == "while":
                add("next", steps[at].arguments[:1], at)
            steps[at] = replace(steps[at], chunks=len(steps))
        case "fill":
            add("fill", operands, 0, s.number)
        case _:
            add(s.kind, operands)


def _place(
    plan: Plan, lowered: list[Lowered], layouts: Mapping[str, Layout], sizes: Mapping[str, int]
) -> tuple[Placement, dict[tuple[int, str], str]]:
    """Arena offsets of the plan's buffers and of the kernels' own workspace."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    lifetimes: list[Lifetime] = []
    workspace: dict[tuple[int, str], str] = {}
    for number, s in enumerate(plan.steps):
        for n in s.touches:
            first.setdefault(n, number)
            last[n] = number
        if isinstance(s, KernelCall):
            for w in lowered[s.kernel].workspace:
                name = f"{number}:{w.name}"
                workspace[number, w.name] = name
                size = size_value(w.size, sizes) * w.dtype.bytes
                lifetimes.append(Lifetime(name, size, number, number))
    for begin, end in _loops(plan):  # the counter, and what comes from before, serve every round
        for n, at in last.items():
            if first[n] <= begin <= at < end:
                last[n] = end
    for b in plan.buffers:
        if b.place == "arena" and b.name in first:
            layout = layouts[b.name]
            kind = f"{b.dtype} {layout}" if layout.halo else ""
            size = layout.size * b.dtype.bytes
            lifetimes.append(Lifetime(b.name, size, first[b.name], last[b.name], kind))
    return place_buffers(lifetimes), workspace


def _loops(plan: Plan) -> list[tuple[int, int]]:
    """First and last step of every loop, inner ones first."""
    out: list[tuple[int, int]] = []
    begun: list[tuple[str, int]] = []
    for number, s in enumerate(plan.steps):
        if isinstance(s, Control) and s.kind in ("if", "while"):
            begun.append((s.kind, number))
        elif isinstance(s, Control) and s.kind == "end":
            kind, at = begun.pop()
            if kind == "while":
                out.append((at, number))
    return out


def _summands(plan: Plan) -> set[str]:
    """Constants (by key) that are only ever added, subtracted or multiplied."""
    inside: set[str] = set()
    outside: set[str] = set()
    for k in plan.kernels:
        keys = {t.name: key for t, key in k.program.constants}
        for d in k.definitions.values():
            if d.body.op == "read" and d.body.attr[0] in keys:
                outside.add(keys[d.body.attr[0]])
            for e in (n for x in d.expressions() for n in x.walk()):
                found = {keys[a.attr[0]] for a in e.args if a.op == "read" and a.attr[0] in keys}
                (inside if e.op in ("add", "sub", "mul") else outside).update(found)
    for s in plan.steps:
        if not isinstance(s, KernelCall):  # an extern, or the first value of a loop's state
            outside.update(plan.buffer_of[n].constant for n in s.touches)
    return inside - outside


def without_denormals(value: Array) -> Array:
    """The array with denormal numbers replaced by zero, where it also holds numbers of ordinary
    size.

    A trained weight that has decayed to a denormal costs hundreds of cycles in every
    multiplication, and so does every activation that a denormal bias makes; either adds less than
    1e-37 of an operand to a sum, far below the bound of the numeric policy. This is a marked
    relaxation: `numerics="strict"` keeps such weights.
    """
    if value.dtype.kind != "f" or value.dtype.itemsize < 4 or value.size == 0:
        return value
    size = np.abs(value)
    small = (size < np.finfo(value.dtype).tiny) & (size > 0)
    if not small.any() or float(size.max()) < 2.0**-60:
        return value
    return np.where(small, np.zeros((), value.dtype), value)


def _constants(
    plan: Plan, lowered: list[Lowered], values: Mapping[str, Array], relaxed: set[str]
) -> tuple[list[Array], dict[tuple[str, str], int]]:
    """Flat constants, one per content and layout."""
    out: list[Array] = []
    numbers: dict[tuple[str, str], int] = {}
    for s in plan.steps:
        if isinstance(s, KernelCall):
            low = lowered[s.kernel]
            wanted = [(n, low.layouts.get(t)) for t, n in zip(low.tensors, s.buffers, strict=True)]
        else:
            wanted = [(n, None) for n in s.touches]
        for name, layout in wanted:
            b = plan.buffer_of[name]
            if b.place != "const":
                continue
            layout = layout or b.layout
            key = (b.constant, str(layout))
            if key not in numbers:
                numbers[key] = len(out)
                value = np.asarray(values[b.constant]).reshape(layout.shape)
                if b.constant in relaxed:
                    value = without_denormals(value)
                flat = value.reshape(-1) if layout.is_row_major else layout.pack(value)
                out.append(np.ascontiguousarray(flat))
    return out, numbers
