"""A model known from one of its printed stages: its later stages, and how to run it.

In: what `stages.load` read, or a compiled variant. Out: `Printed`, each later stage of which is
made when it is asked for; `Runnable`. Invariant: a stage made here is the one that the compiler
makes: the same functions, schedules looked up in the same database.

A plan runs on the arrays of its model. A kernel runs alone on logical arrays, which are packed into
its layouts; a loop nest on flat buffers, whatever its tensors' layouts were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.config import current
from tilewright.derive import derived
from tilewright.errors import UserError
from tilewright.ir.kernel import Kernel
from tilewright.ir.layout import Layout
from tilewright.ir.nest import LoopNest, Scatter, Store
from tilewright.ir.plan import KernelCall, Plan, PlanBuffer
from tilewright.ir.program import Program
from tilewright.machine.target import Target
from tilewright.runtime.artifact import Argument, Artifact, ArtifactStep, bind_artifact
from tilewright.runtime.context import ArrayType, Binding
from tilewright.runtime.model import CallableModel, check_sizes
from tilewright.schedule.schedule import Schedule
from tilewright.tools.stages import computes_of, write

__all__ = ["Printed", "Runnable"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Printed:
    """What a text holds, from its `stage` on; numbers are those of kernels in the plan.

    bound: the program at fixed sizes. computes: what a kernel computes, in the model's names.
    schedules: where the text fixes them. values: the constants beside the text, by content.
    """

    stage: str
    target: Target
    threads: int
    program: Program | None = None
    bound: Program | None = None
    plan: Plan | None = None
    kernels: Mapping[int, Kernel] = field(default_factory=dict)
    computes: Mapping[int, str] = field(default_factory=dict)
    schedules: Mapping[int, Schedule] = field(default_factory=dict)
    nests: Mapping[int, LoopNest] = field(default_factory=dict)
    llvm: Mapping[int, str] = field(default_factory=dict)
    values: Mapping[str, Array] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)

    def on(
        self,
        *,
        target: str | Target | None = None,
        threads: int | None = None,
        dims: Mapping[str, int] | None = None,
        tune: float = 0.0,
        db: Path | None = None,
        frozen: bool = False,
        on_event: Callable[[Any], None] | None = None,
    ) -> Printed:
        """The same for a machine, sizes, and the schedules that a search or the database gives.

        A program keeps its open sizes where `dims` is empty. Errors: R004 for wrong ones.
        """
        from tilewright.group.plan import own_results, plan_program
        from tilewright.tune.session import tune_plan

        out = replace(self, stats={"kernels_tuned": 0, "tune_s": 0.0})
        if target is not None:
            out.target = target if isinstance(target, Target) else Target.named(target)
        out.threads = threads or self.threads
        if self.program is not None and (dims or not self.program.dims):
            sizes = check_sizes(self.program.dims, (), dims or {})
            bound = replace(own_results(self.program.bind(sizes)), values=self.values)
            strict = current().numerics == "strict"
            out.bound, _ = derived(bound, out.target, strict)
            out.values = {**out.values, **out.bound.values}
            out.plan = plan_program(out.bound, out.target)[0]
            out.kernels = dict(enumerate(out.plan.kernels))
            out.computes = computes_of(out.plan)
        if out.kernels and not out.schedules and (tune > 0 or db is not None or frozen):
            plan = out.plan or _loose_plan(out.kernels)
            tuning = tune_plan(
                plan,
                out.values,
                out.target,
                out.threads,
                budget_s=tune,
                db=db,
                frozen=frozen,
                on_event=on_event,
            )
            out.schedules = {number: tuning.choose(k) for number, k in out.kernels.items()}
            out.stats = {"kernels_tuned": tuning.kernels_tuned, "tune_s": tuning.seconds}
        return out

    @cached_property
    def derived(self) -> Program:
        """The bound program in the form that is grouped."""
        from tilewright.group.plan import prepare

        assert self.bound is not None
        return prepare(self.bound, self.target)

    def chosen(self) -> dict[int, Schedule]:
        """A schedule for every kernel: the text's, else the default."""
        from tilewright.schedule.kernel_space import space_of

        return {
            number: self.schedules.get(number)
            or space_of(kernel, self.target, self.threads).default()
            for number, kernel in self.kernels.items()
        }

    def loops(self) -> Mapping[int, LoopNest]:
        """The nest of every kernel. Errors: S001 for a schedule that is not the kernel's."""
        if self.nests:
            return self.nests
        from tilewright.errors import Rejected
        from tilewright.lower.kernel import lower

        out = {}
        schedules = self.chosen()
        for number, kernel in self.kernels.items():
            low = lower(kernel, schedules[number], self.target)
            if isinstance(low, Rejected):
                raise UserError(
                    low.code if low.code.startswith("S") else "S001",
                    f"the schedule of kernel {number} does not fit it: {low.detail}",
                    where=str(schedules[number]),
                    hint="print the schedule again with `tilewright dump MODEL --stage schedule`",
                )
            out[number] = low.nest
        return out

    def texts(self) -> Mapping[int, str]:
        """LLVM text of every kernel."""
        if self.llvm:
            return self.llvm
        from tilewright.codegen.llvm import emit_llvm

        return {number: emit_llvm(nest, self.target) for number, nest in self.loops().items()}

    def assembly(self) -> dict[int, str]:
        """Assembly of every kernel."""
        from tilewright.runtime.build import emit_assembly

        return {number: emit_assembly(text, self.target) for number, text in self.texts().items()}

    def dump(self, stage: str, *, kernel: str | None = None, folder: Path | None = None) -> str:
        """The text of this stage or a later one. Errors: U001, U003."""
        return write(self, stage, kernel, folder)

    def explain(self, **options: object) -> str:
        raise UserError(
            "U003",
            f"a printed {self.stage} carries no decisions to explain",
            where="MODEL",
            hint="give the model or its program",
        )

    def require_constants(self) -> None:
        """Errors: F002 where the value of a constant is not beside the text."""
        programs = [self.program] if self.program else [k.program for k in self.kernels.values()]
        for program in programs:
            for tensor, key in program.constants:
                if key not in self.values:
                    raise UserError(
                        "F002",
                        f"the value of constant {tensor.name!r} is not in the folder of the text",
                        where=f"printed {self.stage}",
                        hint="write both with `tilewright dump MODEL --stage "
                        f"{self.stage} -o FOLDER`",
                    )

    def runnable(self) -> Runnable:
        """The model of the text, ready to be called.

        Errors: F002 for missing constants; U003 for a stage, or a number of kernels, that does not
        say how to run.
        """
        self.require_constants()
        if self.plan is not None:
            return _run_plan(self, self.plan)
        held = self.kernels or self.nests
        if len(held) != 1:
            raise UserError(
                "U003",
                f"{len(held)} kernels without a plan say not in which order to run"
                if held
                else f"a printed {self.stage} does not say what its arrays are",
                where="MODEL",
                hint="give the printed plan, or a file of one kernel",
            )
        if self.kernels:
            return _run_kernel(self)
        return _run_nest(self, next(iter(self.nests.values())))


def _loose_plan(kernels: Mapping[int, Kernel]) -> Plan:
    """A plan that calls every kernel once, on nothing: for looking schedules up."""
    steps = tuple(KernelCall(k, ()) for k in range(len(kernels)))
    return Plan("kernels", (), tuple(kernels.values()), steps)


class _Bound(CallableModel):
    """The native entry of one binding."""

    def __init__(self, binding: Binding, threads: int) -> None:
        self._binding = binding
        results = binding.outputs
        super().__init__(binding.inputs, results, range(len(results)), (), threads=threads)

    def _bind(self, symbols: Mapping[str, int]) -> Binding:
        return self._binding


class Runnable:
    """A printed stage that runs: `packed` are the layouts of arrays that the code sees flat."""

    def __init__(
        self,
        artifact: Artifact,
        threads: int,
        stats: Mapping[str, Any],
        packed: Mapping[str, Layout],
    ) -> None:
        self._artifact = artifact
        self._entry = _Bound(bind_artifact(artifact), threads)
        self._packed = packed
        constants = sum(c.nbytes for c in artifact.constants)
        self.input_specs = tuple(map(self._logical, self._entry.input_specs))
        self.output_specs = tuple(map(self._logical, self._entry.output_specs))
        self.stats: dict[str, Any] = {
            "peak_bytes": artifact.arena_bytes + artifact.scratch_bytes * threads + constants,
            "arena_bytes": artifact.arena_bytes,
            "constant_bytes": constants,
            **stats,
        }

    def _logical(self, a: ArrayType) -> ArrayType:
        layout = self._packed.get(a.name)
        return a if layout is None else replace(a, shape=layout.shape)

    def run(self, inputs: Mapping[str, Any]) -> list[Array]:
        """Outputs in order, for inputs by name. Errors: R001 to R006."""
        given = dict(inputs)
        for spec in self.input_specs:
            layout = self._packed.get(spec.name)
            if layout is None or spec.name not in given:
                continue
            array = np.asarray(given[spec.name])
            if array.shape != layout.shape:
                raise UserError(
                    "R003",
                    f"input {spec.name!r} must have shape {list(layout.shape)}, got "
                    f"{list(array.shape)}",
                    hint="give the logical array; it is packed here",
                )
            given[spec.name] = layout.pack(array)
        out = []
        for spec, array in zip(self.output_specs, self._entry.run(given), strict=True):
            layout = self._packed.get(spec.name)
            out.append(array if layout is None else np.ascontiguousarray(layout.unpack(array)))
        return out


def _run_plan(p: Printed, plan: Plan, packed: Mapping[str, Layout] | None = None) -> Runnable:
    from tilewright.runtime.link import link_plan

    packed = packed or {}

    def arrays(place: str) -> tuple[ArrayType, ...]:
        return tuple(
            ArrayType(b.name, b.dtype.np, (b.layout.size,) if b.name in packed else b.layout.shape)
            for b in plan.buffers
            if b.place == place
        )

    schedules = {plan.kernels[k].key: s for k, s in p.chosen().items()}
    linked = link_plan(
        plan,
        lambda kernel: schedules[kernel.key],
        p.values,
        p.target,
        arrays("input"),
        arrays("output"),
        strict=current().numerics == "strict",
    )
    stats = {"kernels": len(plan.kernels), "kernels_compiled": linked.kernels_compiled, **p.stats}
    return Runnable(linked.artifact, p.threads, stats, packed)


def _run_kernel(p: Printed) -> Runnable:
    """One kernel, as a plan of its own."""
    number, kernel = next(iter(p.kernels.items()))
    constants = {t.name: key for t, key in kernel.program.constants}
    places = dict.fromkeys(kernel.definitions, "arena") | dict.fromkeys(constants, "const")
    places |= dict.fromkeys(kernel.program.results, "output")
    buffers = tuple(
        PlanBuffer(
            name,
            kernel.program.tensors[name].dtype,
            layout,
            places.get(name, "input"),
            constants.get(name, ""),
        )
        for name, layout in kernel.layouts
    )
    plan = Plan("kernel", buffers, (kernel,), (KernelCall(0, tuple(b.name for b in buffers)),))
    packed = {b.name: b.layout for b in buffers if b.place != "const" and not b.layout.is_row_major}
    chosen = {0: p.schedules[number]} if number in p.schedules else {}
    return _run_plan(replace(p, kernels={0: kernel}, schedules=chosen), plan, packed)


def _run_nest(p: Printed, nest: LoopNest) -> Runnable:
    """One nest on flat arrays: what it stores to is an output, all else of its border an input."""
    from tilewright.codegen.llvm import chunk_count, emit_llvm, function_name, scratch_bytes
    from tilewright.ir.expr import int_value
    from tilewright.runtime.build import build
    from tilewright.runtime.cache import default_cache

    if nest.dims:
        raise UserError(
            "U003",
            f"the nest has open sizes: {', '.join(nest.dims)}",
            where="MODEL",
            hint="give a nest whose sizes are numbers",
        )
    stored = {n.buffer for n in nest.walk() if isinstance(n, Store | Scatter)}
    border: dict[str, list[ArrayType]] = {"input": [], "output": []}
    slots = []
    arena = 0
    for b in nest.buffers:
        size = int_value(b.size) or 0
        if b.place == "arena":
            slots.append(Argument("arena", arena))
            arena += -(-max(size * b.dtype.bytes, 1) // 64) * 64
        elif b.place != "scratch":
            kind = "output" if b.name in stored else "input"
            slots.append(Argument(kind, len(border[kind])))
            border[kind].append(ArrayType(b.name, b.dtype.np, (size,)))
    text = emit_llvm(nest, p.target)
    code = build(text, p.target, cache=default_cache())
    steps = [
        ArtifactStep(0, function_name(nest, k), tuple(slots), chunks)
        for k in range(len(nest.phases))
        if (chunks := chunk_count(nest, k, {}))
    ]
    artifact = Artifact(
        tuple(border["input"]),
        tuple(border["output"]),
        (code,),
        (),
        tuple(steps),
        arena,
        scratch_bytes(nest, {}),
    )
    return Runnable(artifact, p.threads, {"kernels": 1, "kernels_compiled": 1, **p.stats}, {})
