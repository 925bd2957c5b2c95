"""`explain`: why a model became the kernels it is, in the names of the user's own graph.

In: a `CompiledModel`. Out: text. Invariant: everything said is read from what the compiler recorded
(decisions, schedules, placement), counted from the Program, or measured now; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tilewright.ir.kernel import Kernel
from tilewright.ir.plan import Control, ExternCall, KernelCall, Plan
from tilewright.runtime.model import places_of
from tilewright.tools.progress import format_time_us
from tilewright.tools.stages import kernel_number, names_of
from tilewright.tools.words import layout_words, schedule_words
from tilewright.tools.work import Work, work_of

__all__ = ["explain", "kernel_times_ns"]

_RUNS = 5


def explain(
    model: Any, *, kernel: str | None = None, memory: bool = False, measure: bool = False
) -> str:
    """A paragraph per kernel: what it holds and why, its layouts, schedule, work and bound.

    kernel: only this one, by number or by the name of something it computes. memory: buffers,
    lifetimes and the peak instead. measure: run the model and set times against the bounds.
    Errors: U001 for an unknown kernel.
    """
    variant = model.latest
    if memory:
        return _memory(variant, model.origins)
    plan: Plan = variant.plan
    names = names_of(plan)
    numbers = list(range(len(plan.kernels)))
    chosen = numbers if kernel is None else [kernel_number(kernel, numbers, names)]
    rates = _rates(model)
    times = kernel_times_ns(model) if measure else {}
    lines = [] if kernel is not None else _summary(model, variant, rates, times)
    for number in chosen:
        lines += ["", *_kernel(model, variant, number, rates, times)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _rates(model: Any) -> Any:
    from tilewright.machine.target import Target
    from tilewright.runtime.calibrate import hardware

    return hardware(model.target if model.target != Target.native() else None)


def _named(name: str, origins: Mapping[str, str]) -> str:
    origin = origins.get(name)
    return f"{name} (from {origin})" if origin and origin != name else name


def _size(count: float) -> str:
    if count < 1024:
        return f"{count:.0f} B"
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"


def _bound_us(work: Work, rates: Any, threads: int) -> tuple[float, str]:
    """The floor on this machine, and the resource that sets it."""
    compute = work.flops / rates.rate("fma_gflops", threads) * 1e-3
    memory = work.bytes / rates.rate("copy_nt_gbs", threads) * 1e-3
    return max(compute, memory), "arithmetic" if compute >= memory else "memory"


def _calls(plan: Plan, number: int) -> int:
    return sum(isinstance(s, KernelCall) and s.kernel == number for s in plan.steps)


# ---- the whole model ---------------------------------------------------------------------------


def _summary(model: Any, variant: Any, rates: Any, times: Mapping[int, float]) -> list[str]:
    plan = variant.plan
    sizes = ", ".join(f"{name}={size}" for name, size in variant.sizes.items())
    work = work_of(variant.program)
    bound, which = _bound_us(work, rates, variant.threads)
    source = "measured" if rates.is_measured else "typical"
    lines = [
        f"{plan.name}: {len(plan.kernels)} kernels in {len(plan.steps)} steps for "
        f"{model.target.name}, {variant.threads} threads" + (f", sizes {sizes}" if sizes else ""),
        f"{work.flops:.3g} operations, {_size(work.bytes)} in and out; bound by {which}: "
        f"{format_time_us(bound)} ({source} rates of this machine)",
    ]
    if variant.sizes:
        places = {d.name: places_of(model.input_specs, d.name) for d in model.dims}
        lines += variant.build.scope.report(places)
    lines += [f"{d.name} as {d.reason}" for d in variant.derivations]
    lines += [
        f"step {number}: extern {s.function} -> {', '.join(s.results)}"
        for number, s in enumerate(plan.steps)
        if isinstance(s, ExternCall)
    ]
    if times:
        lines += ["", *_table(variant, rates, times)]
    return lines


def _table(variant: Any, rates: Any, times: Mapping[int, float]) -> list[str]:
    """Kernels by their share of the measured time; see `kernel_times_ns` for negative numbers."""
    plan, total = variant.plan, sum(times.values())
    names = names_of(plan)
    rows = [["kernel", "calls", "time", "share", "bound", "of bound", "computes"]]
    for number, nanoseconds in sorted(times.items(), key=lambda item: -item[1]):
        share = f"{100 * nanoseconds / max(total, 1):.1f} %"
        if number < 0:
            kind, what = (ExternCall, "externs") if number == -1 else (Control, "branches, copies")
            count = sum(isinstance(s, kind) for s in plan.steps)
            time = format_time_us(nanoseconds * 1e-3)
            rows.append(["-", str(count), time, share, "-", "-", what])
            continue
        calls = _calls(plan, number)
        bound = _bound_us(work_of(plan.kernels[number].program), rates, variant.threads)[0] * calls
        held = ", ".join(names.get(number, ()))
        rows.append(
            [
                str(number),
                str(calls),
                format_time_us(nanoseconds * 1e-3),
                share,
                format_time_us(bound),
                f"{1e5 * bound / max(nanoseconds, 1):.0f} %",
                held if len(held) <= 60 else held[:57] + "...",
            ]
        )
    lines = _aligned(rows)
    return [
        f"measured {format_time_us(total * 1e-3)} in all, phase by phase (a bound takes every byte "
        "from memory; what stays in a cache may be faster):",
        *lines,
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, numbers to the right, the last one to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join([*(c.rjust(w) for c, w in zip(row[:-1], widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def kernel_times_ns(model: Any, runs: int = _RUNS) -> dict[int, float]:
    """Time of each kernel over all its calls, the best of `runs`; externs together as -1, the
    host program's own copies and branches, where it has any, as -2.
    """
    from tilewright.verify.generate import random_inputs

    variant = model.latest
    steps = [variant.plan.steps[number] for number in variant.linked.owners]
    owner = [  # kernel of each phase of the binding
        s.kernel if isinstance(s, KernelCall) else -1 if isinstance(s, ExternCall) else -2
        for s in steps
    ]
    inputs = random_inputs(model.program, variant.sizes, 0)
    best: list[int] = []
    for _ in range(runs):
        _, phases = model.timed(inputs)
        best = [min(pair) for pair in zip(best or phases, phases, strict=True)]
    out: dict[int, float] = {}
    for number, nanoseconds in zip(owner, best, strict=True):
        out[number] = out.get(number, 0.0) + nanoseconds
    return out


# ---- one kernel --------------------------------------------------------------------------------


def _kernel(
    model: Any, variant: Any, number: int, rates: Any, times: Mapping[int, float]
) -> list[str]:
    plan = variant.plan
    held = names_of(plan).get(number, [])
    kernel: Kernel = plan.kernels[number]
    calls = _calls(plan, number)
    computed = ", ".join(_named(name, model.origins) for name in held)
    lines = [f"kernel {number}: {computed}" + (f", called {calls} times" if calls > 1 else "")]
    work = work_of(kernel.program)
    bound, which = _bound_us(work, rates, variant.threads)
    text = (
        f"{work.flops:.3g} operations, {_size(work.bytes)}; bound by {which}: "
        f"{format_time_us(bound)}"
    )
    if number in times:
        time = times[number] * 1e-3 / calls
        share = 100 * bound / max(time, 1e-3)
        text += f"; measured {format_time_us(time)}, {share:.0f} % of the bound"
    lines.append(f"  work: {text}")
    lines += [f"  layout: {line}" for line in _layouts(variant, number)]
    source, measured = _measured(variant.tuning, variant.task_key(number))
    schedule = variant.linked.schedules[number]
    words = schedule_words(kernel, schedule)
    lines.append(f"  schedule ({source}): {words[0] if words else 'nothing to decide'}")
    lines += [f"    {line}" for line in words[1:]]
    lines.append(f"    {schedule}")
    if measured:
        lines.append(f"  tuning: {measured}")
    lines += [f"  {line}" for line in _decisions(model, variant, set(held))]
    return lines


def _layouts(variant: Any, number: int) -> list[str]:
    """What crosses the kernel's border and how it lies in memory; plain row-major ones last."""
    plan: Plan = variant.plan
    low = variant.linked.lowered[number]
    kernel: Kernel = plan.kernels[number]
    step = next(s for s in plan.steps if isinstance(s, KernelCall) and s.kernel == number)
    out, plain = [], []
    for (tensor, layout), buffer in zip(kernel.layouts, step.buffers, strict=True):
        place = plan.buffer_of[buffer].place
        packed = low.layouts.get(tensor)
        words = layout_words(packed or layout)
        head = f"{place} {buffer} {list(layout.shape)}"
        if words == "row-major":
            plain.append(head)
        else:
            out.append(f"{head}: {words}" + (", packed when compiled" if packed else ""))
    return out + ([f"row-major: {', '.join(plain)}"] if plain else [])


def _measured(tuning: Any, task_key: str) -> tuple[str, str]:
    """Where the kernel's schedule comes from, and what was measured of it."""
    facts = None if tuning is None else tuning.facts.get(task_key)
    if facts is None:
        return "default", ""
    parts = []
    if facts.default_us is not None:
        parts.append(f"default {format_time_us(facts.default_us)}")
    if facts.tuned_us is not None:
        parts.append(f"tuned {format_time_us(facts.tuned_us)}")
    if facts.ratio is not None:
        parts.append(f"{facts.ratio:.2f}x of default")
    if facts.trials:
        parts.append(f"{facts.trials} candidates tried")
    parts += [f"{count} rejected as {code}" for code, count in sorted(facts.rejected.items())]
    parts += [facts.note] if facts.note else []
    return facts.source, ", ".join(parts)


def _decisions(model: Any, variant: Any, held: set[str]) -> list[str]:
    """Why its definitions are together, and why their neighbours are not."""
    together: dict[tuple[bool, str, str], dict[str, None]] = {}
    for d in variant.decisions:
        if d.producer in held or d.consumer in held:
            producer, consumer = (
                n if n in held else _named(n, model.origins) for n in (d.producer, d.consumer)
            )
            together.setdefault((not d.fused, producer, d.reason), {})[consumer] = None
    return [
        f"{producer} {'apart from' if apart else 'with'} {', '.join(consumers)}: {reason}"
        for (apart, producer, reason), consumers in sorted(
            together.items(), key=lambda item: item[0][0]
        )
    ]


# ---- memory ------------------------------------------------------------------------------------


def _memory(variant: Any, origins: Mapping[str, str]) -> str:
    """Arena buffers by offset with their lifetimes, constants, and the peak."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    plan = variant.plan
    for number, step in enumerate(plan.steps):
        for name in step.touches:
            first.setdefault(name, number)
            last[name] = number
    stats, placement = variant.stats, variant.linked.placement
    lines = [
        f"peak {_size(stats['peak_bytes'])}: arena {_size(stats['arena_bytes'])} "
        f"(at least {_size(placement.lower_bound)} is live at once), "
        f"constants {_size(stats['constant_bytes'])}, the rest scratch of {variant.threads} threads"
    ]
    held = {b.name: b for b in plan.buffers if b.place == "arena" and b.name in placement.offsets}
    rows = []
    for name, offset in sorted(placement.offsets.items(), key=lambda item: item[1]):
        if name in held:
            size, begin, end = held[name].bytes, first[name], last[name]
            label = _named(name, origins)
        else:  # a kernel's own workspace: "step:buffer"
            begin = end = int(name.split(":")[0])
            size = _workspace_bytes(variant, begin, name.split(":")[1])
            label = f"workspace of step {begin}"
        steps = str(begin) if begin == end else f"{begin} to {end}"
        rows.append([str(offset), _size(size), steps, f"{_bar(begin, end, plan)} {label}"])
    if rows:
        heading = ["offset", "size", "steps", f"{'lives'.ljust(_width(plan))} buffer"]
        lines += ["", *_aligned([heading, *rows])]
    return "\n".join(lines) + "\n"


def _workspace_bytes(variant: Any, step: int, name: str) -> int:
    from tilewright.ir.expr import int_value

    call = variant.plan.steps[step]
    for b in variant.linked.lowered[call.kernel].workspace:
        if b.name == name:
            return (int_value(b.size) or 0) * int(b.dtype.bytes)
    return 0


def _width(plan: Plan) -> int:
    return min(48, max(5, len(plan.steps)))


def _bar(begin: int, end: int, plan: Plan) -> str:
    """The lifetime over all steps, drawn."""
    width, steps = _width(plan), max(1, len(plan.steps))
    left = begin * width // steps
    right = max(left + 1, -(-(end + 1) * width // steps))
    return "." * left + "#" * (right - left) + "." * (width - right)
