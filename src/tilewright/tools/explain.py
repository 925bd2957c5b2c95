"""`explain`: why a model became the kernels it is, in the names of the user's own graph.

In: a `CompiledModel`. Out: text. Invariant: everything said is read from what the compiler recorded
(decisions, schedules, placement) or counted from the Program; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilewright.tools.progress import format_time_us

__all__ = ["explain"]


def _user_name(name: str, origins: Mapping[str, str]) -> str:
    origin = origins.get(name)
    return f"{name} (from {origin})" if origin and origin != name else name


def _kib(count: float) -> str:
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"


def _bound(work: Any, rates: Any, threads: int) -> str:
    """The floor of a kernel on this machine: which resource binds it, and for how long."""
    compute_us = work.flops / rates.rate("fma_gflops", threads) * 1e-3
    memory_us = work.bytes / rates.rate("copy_nt_gbs", threads) * 1e-3
    which = "arithmetic" if compute_us >= memory_us else "memory"
    return (
        f"{work.flops:.3g} operations, {_kib(work.bytes)}; bound by {which}: "
        f"{format_time_us(max(compute_us, memory_us))}"
    )


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


def explain(model: Any, *, kernel: str | None = None, memory: bool = False) -> str:
    """One paragraph per kernel, then why definitions were or were not put together.

    kernel: only this one, by number or by the name of something it computes. memory: buffers,
    lifetimes and the peak instead.
    """
    from tilewright.ir.plan import KernelCall
    from tilewright.machine.target import Target
    from tilewright.runtime.calibrate import hardware
    from tilewright.tools.stages import kernel_number, names_of
    from tilewright.tools.work import work_of

    variant = model.latest
    if memory:
        return _memory(variant, model.origins)
    plan, linked = variant.plan, variant.linked
    names = names_of(plan)
    numbers = list(range(len(plan.kernels)))
    chosen = numbers if kernel is None else [kernel_number(kernel, numbers, names)]
    rates = hardware(model.target if model.target != Target.native() else None)
    sizes = ", ".join(f"{name}={size}" for name, size in variant.sizes.items())
    lines = [
        f"{plan.name}: {len(plan.kernels)} kernels in {len(plan.steps)} steps for "
        f"{model.target.name}, {variant.threads} threads" + (f", sizes {sizes}" if sizes else "")
    ]
    shown: set[str] = set()
    for number in chosen:
        calls = sum(isinstance(s, KernelCall) and s.kernel == number for s in plan.steps)
        computed = ", ".join(_user_name(name, model.origins) for name in names.get(number, ()))
        times = "" if calls == 1 else f", called {calls} times"
        lines.append(f"\nkernel {number}: {computed}{times}")
        lines.append(f"  {_bound(work_of(plan.kernels[number].program), rates, variant.threads)}")
        source, measured = _measured(variant.tuning, plan.kernels[number].task_key)
        lines.append(f"  schedule ({source}): {linked.schedules[number]}")
        if measured:
            lines.append(f"  measured: {measured}")
        shown.update(names.get(number, ()))
    decisions = [
        decision
        for decision in variant.decisions
        if kernel is None or decision.producer in shown or decision.consumer in shown
    ]
    lines.append("\nfusion:" if decisions else "\nfusion: nothing to decide")
    for decision in decisions:
        verb = "with" if decision.fused else "apart from"
        producer = _user_name(decision.producer, model.origins)
        consumer = _user_name(decision.consumer, model.origins)
        lines.append(f"  {producer} {verb} {consumer}: {decision.reason}")
    return "\n".join(lines) + "\n"


def _memory(variant: Any, origins: Mapping[str, str]) -> str:
    """Arena buffers with offsets and lifetimes, constants, and the peak."""
    from tilewright.ir.plan import KernelCall

    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, step in enumerate(variant.plan.steps):
        names = step.buffers if isinstance(step, KernelCall) else (*step.args, *step.results)
        for name in names:
            first.setdefault(name, number)
            last[name] = number
    stats, placement = variant.stats, variant.linked.placement
    lines = [
        f"peak {_kib(stats['peak_bytes'])}: arena {_kib(stats['arena_bytes'])} "
        f"(at least {_kib(placement.lower_bound)} is live at once), "
        f"constants {_kib(stats['constant_bytes'])}, the rest scratch of {variant.threads} threads",
        "",
        "buffer: bytes, offset in the arena, steps",
    ]
    for buffer in variant.plan.buffers:
        if buffer.place == "arena" and buffer.name in first:
            offset = placement.offsets[buffer.name]
            lines.append(
                f"  {_user_name(buffer.name, origins)}: {_kib(buffer.bytes)} at {offset}, "
                f"steps {first[buffer.name]} to {last[buffer.name]}"
            )
    workspace = sorted(set(placement.offsets) - {buffer.name for buffer in variant.plan.buffers})
    lines += [f"  workspace {name}: at {placement.offsets[name]}" for name in workspace]
    return "\n".join(lines) + "\n"
