"""compile, program: the public verbs. (`load` is in runtime/package.py, so that it imports no
compiler.)

In: a Program, index notation, an ONNX path, or what `onnx.load` returned. Out: `CompiledModel`.
Invariants: nothing is compiled before sizes are known; each combination of sizes is compiled once
and kept; a model that was given all its sizes (by example inputs or `dims`) is ready when `compile`
returns.
"""

from __future__ import annotations

import operator
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np

import tilewright.config as config
from tilewright.derive import Derivation, derived
from tilewright.errors import UserError
from tilewright.group.bounded import bounded, with_shapes
from tilewright.group.groups import Decision
from tilewright.group.plan import own_results, plan_program
from tilewright.group.symbolic import Scope, scope_of_sizes
from tilewright.ir import expr as E
from tilewright.ir.binding import linear_size
from tilewright.ir.extent import hint_of
from tilewright.ir.kernel import Kernel
from tilewright.ir.plan import Plan
from tilewright.ir.program import Program, Tensor
from tilewright.machine.target import Target
from tilewright.runtime.artifact import Parts, bind_artifact, load_parts
from tilewright.runtime.collection import no_collection
from tilewright.runtime.context import ArrayType, Binding
from tilewright.runtime.link import Built, Linked, build_plan, link_at
from tilewright.runtime.model import CallableModel, nearest
from tilewright.runtime.pool import num_threads
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.schedule.symbolic import for_range

__all__ = ["CompiledModel", "compile", "program"]

Array = np.ndarray[Any, np.dtype[Any]]
Choose = Callable[[Kernel], Schedule]


def program(text: str) -> Program:
    """Index notation, or the printed form of a Program, as a Program.

    Errors: F010 to F012, P001 to P004.
    """
    from tilewright.frontend.notation import parse_notation

    return parse_notation(text)


def _target_of(name: str | Target | None) -> Target:
    if isinstance(name, Target):
        return name
    return Target.named(name or config.current().target or "native")


def _saved_target(name: str | Target) -> Target:
    """Errors: U003 for a name that is none, or another kind of CPU."""
    found = _target_of(name)
    if found.triple != Target.native().triple:
        raise UserError(
            "U003", f"a file made here holds no code for {found.name}",
            hint="save the model on a machine of that kind",
        )  # fmt: skip
    return found


class CompiledModel(CallableModel):
    """A Program ready to run on this machine, for any sizes within its dims.

    `threads`: how many a call may use; None follows the settings. `tune`: seconds of search for
    each new combination of sizes. Arrays that a call returns belong to the caller;
    `reuse_outputs=True` hands out the same ones every time.
    """

    def __init__(
        self,
        program: Program,
        *,
        target: Target,
        threads: int | None,
        tune: float = 0.0,
        db: Path | str | None = None,
        frozen: bool = False,
        reuse_outputs: bool = False,
        on_event: Callable[[Any], None] | None = None,
        origins: Mapping[str, str] | None = None,
        symbolic: str | None = None,
    ) -> None:
        self._given_program = program
        self.program, shapes = with_shapes(program)
        self.target = target
        self.threads = threads
        self.tune_s = tune
        self.db = db
        self.frozen = frozen
        self.on_event = on_event
        self.origins = dict(origins or {})
        self._variants: dict[tuple[tuple[str, int], ...], _Variant] = {}
        self._latest: _Variant | None = None
        self._builds: list[_Build] = []
        self.symbolic = config.current().symbolic if symbolic is None else symbolic
        self.values: Mapping[str, Array] = {}  # of inputs that the model was imported for
        self._compiling = threading.Lock()
        tensors = self.program.tensors
        unique = list(dict.fromkeys(self.program.results))  # one array per distinct result
        super().__init__(
            tuple(_array_type(t) for t in program.inputs),
            tuple(_array_type(tensors[n]) for n in unique),
            [unique.index(n) for n in program.results],
            program.dims,
            threads=threads,
            reuse_outputs=reuse_outputs,
            shapes={unique.index(n): unique.index(s) for n, s in shapes.items()},
        )

    def _bind(self, symbols: Mapping[str, int]) -> Binding:
        return self.variant(symbols).binding

    def variant(self, symbols: Mapping[str, int]) -> _Variant:
        """The compiled form for these sizes; compiled now where it was not before. Errors: R004."""
        sizes = self.sizes(symbols)
        key = tuple(sorted(sizes.items()))
        with (
            self._compiling
        ):  # a variant that lost a race would take its code away from a call that uses it
            found = self._variants.get(key)
            if found is None:
                found = self._new_variant(sizes)
                found.load()
                self._variants[key] = found
        self._latest = found
        return found

    @no_collection()
    def _new_variant(self, sizes: Mapping[str, int]) -> _Variant:
        scope = scope_of_sizes(self.program, sizes, self._varying(sizes))
        build = next((b for b in self._builds if _serves(b.scope, sizes)), None)
        if build is None:
            build = _Build(self, scope)
            self._builds.append(build)
        variant = _Variant(build, sizes)
        if config.current().dump:
            from tilewright.tools.stages import dump_by_setting

            dump_by_setting(self, variant)
        return variant

    def _varying(self, sizes: Mapping[str, int]) -> set[str]:
        """Dims that may stay symbolic in a build for these sizes."""
        match self.symbolic:
            case "never":
                return set()
            case "always":
                return set(sizes)
            case _:
                seen = [dict(key) for key in self._variants]
                return {n for n, size in sizes.items() if any(s[n] != size for s in seen)}

    # -- looking inside
    @property
    def latest(self) -> _Variant:
        """The variant compiled or used last. Errors: R004 where the sizes are not known yet."""
        if self._latest is None:
            self.variant(self.given)
        assert self._latest is not None
        return self._latest

    @property
    def variants(self) -> tuple[_Variant, ...]:
        """Every variant compiled so far, at least one.

        Errors: R004 where the sizes are not known yet.
        """
        return tuple(self._variants.values()) or (self.latest,)

    @property
    def builds(self) -> tuple[Scope, ...]:
        """What each build of the model so far serves: one for all sizes in a range, or for one."""
        return tuple(b.scope for b in self._builds)

    @property
    def stats(self) -> dict[str, Any]:
        """compile_s, tune_s, peak_bytes, kernels, kernels_compiled, kernels_tuned, flops, bytes."""
        return self.latest.stats

    def explain(
        self, *, kernel: str | None = None, memory: bool = False, measure: bool = False
    ) -> str:
        """Why the model became the kernels it is, in the names of the user's graph.

        kernel: only this one. memory: the arena instead. measure: run it, and show times.
        """
        from tilewright.tools.explain import explain

        return explain(self, kernel=kernel, memory=memory, measure=measure)

    def dump(self, stage: str, *, kernel: str | None = None, folder: Path | None = None) -> str:
        """The printed form of one stage: program, kernels, plan, schedule, loops, llvm or asm."""
        from tilewright.tools.stages import dump

        return dump(self, stage, kernel=kernel, folder=folder)

    def save(
        self,
        path: Path | str,
        *,
        targets: Sequence[str | Target] | None = None,
        self_test: bool = False,
    ) -> None:
        """Write the variants compiled so far to one file that `load` runs without compiling.

        targets: machines to compile them for, such as ["native", "x86-avx2", "x86-sse42"]; `load`
        takes the best that its CPU can run. None: this model's own target. Others than the model's
        own get the records of its database, else default schedules.
        self_test: call the model some dozens of times, and keep in the file which relations hold
        between its results, so that `tilewright check --self` can test it anywhere.
        Errors: R004 where no variant was compiled and the sizes are not known; U003 where the file
        cannot be written, or for a target that is none of this kind of CPU.
        """
        from tilewright.runtime.save import save_model

        chosen = [self.target]
        if targets is not None:
            chosen = list(dict.fromkeys(_saved_target(t) for t in targets)) or chosen
        parts = [(t, self.variants if t == self.target else self._compiled_for(t)) for t in chosen]
        tests: list[Mapping[str, Any] | None] = []
        if self_test:
            from tilewright.verify.reductions.models import learn_model

            names = [s.name for s in self.input_specs]

            def run(arrays: Sequence[Array]) -> list[Array]:
                return self.run(dict(zip(names, arrays, strict=True)))

            tests += [learn_model(run, self.program, v.sizes).to_json() for v in self.variants]
        save_model(path, self, parts, tests)

    def _compiled_for(self, target: Target) -> list[_Variant]:
        """The variants compiled so far, for another target; none of them is loaded."""
        other = CompiledModel(
            self._given_program, target=target, threads=self.threads, db=self.db,
            frozen=self.frozen, on_event=self.on_event, symbolic=self.symbolic,
        )  # fmt: skip
        for v in self.variants:
            other._variants[tuple(sorted(v.sizes.items()))] = other._new_variant(v.sizes)
        return list(other._variants.values())

    def save_c(self, folder: Path | str, name: str = "model") -> list[Path]:
        """Write the model as C: NAME.h, NAME.c, objects and constants; runtime/c_export.py says how
        to compile it. Errors: R004 where there is more than one variant, or none; U003, F005.
        """
        from tilewright.runtime.c_export import export_c

        if len(self.variants) != 1:
            raise UserError(
                "R004", f"the model is compiled for {len(self.variants)} combinations of sizes",
                hint="compile it for one, with dims= or example inputs",
            )  # fmt: skip
        return export_c(folder, name, self.variants[0].linked.artifact)


class _Build:
    """Kernels and constants for every size of the dims that stay symbolic: plan, schedules,
    code."""

    def __init__(self, model: CompiledModel, scope: Scope) -> None:
        started = time.perf_counter()
        self.scope = scope
        program = scope.program(model.program)
        program = program if scope.dims else bounded(program)
        self.program = own_results(program)
        strict = config.current().numerics == "strict"
        target = model.target.without_bf16() if strict else model.target
        # The same, with other algorithms where those are faster; what the plan is made of.
        self.derived: Program
        self.derivations: list[Derivation]
        self.derived, self.derivations = derived(self.program, target, strict)
        self.plan: Plan
        self.decisions: list[Decision]
        self.plan, self.decisions = plan_program(self.derived, target)
        self.hints = {d.name: hint_of(d) for d in scope.dims}
        self.threads = model.threads or num_threads()
        self.tuning: Any = None
        choose: Choose = self._default(target)
        self.tune_s = 0.0
        if model.tune_s > 0 or model.frozen or model.db is not None:
            from tilewright.tune.session import tune_plan

            at = time.perf_counter()
            self.tuning = tune_plan(
                self.plan.bind(self.hints),
                self.derived.values,
                target,
                self.threads,
                budget_s=model.tune_s,
                db=model.db,
                frozen=model.frozen,
                on_event=model.on_event,
            )
            choose = self.tuning.choose
            self.tune_s = time.perf_counter() - at
        self.built: Built = build_plan(
            self.plan,
            lambda kernel: for_range(kernel, choose(kernel.bind(self.hints))),
            self.derived.values,
            target,
            strict=strict,
        )
        self.parts: Parts | None = None
        self.compile_s = time.perf_counter() - started - self.tune_s

    def _default(self, target: Target) -> Choose:
        return lambda kernel: space_of(kernel, target, self.threads).default()


class _Variant:
    """A build at fixed sizes: offsets, chunks, binding."""

    def __init__(self, build: _Build, sizes: Mapping[str, int]) -> None:
        started = time.perf_counter()
        self.sizes = dict(sizes)
        self.build = build
        self.decisions, self.threads, self.tuning = build.decisions, build.threads, build.tuning
        left = {d.name: sizes[d.name] for d in build.scope.dims}
        self.program = build.program.bind(left) if left else build.program
        self.derived = self.program if left else build.derived
        self.derivations = build.derivations
        self.inputs = tuple(_array_type(t) for t in self.program.inputs)
        tensors = self.program.tensors
        self.outputs = tuple(_array_type(tensors[n]) for n in dict.fromkeys(self.program.results))
        self.linked: Linked = link_at(build.built, (self.inputs, self.outputs), left)
        artifact = self.linked.artifact
        self._binding: Binding | None = None
        constants = sum(c.nbytes for c in artifact.constants)
        kernels_tuned = 0 if build.tuning is None else build.tuning.kernels_tuned
        self.stats: dict[str, Any] = {
            "compile_s": build.compile_s + time.perf_counter() - started,
            "tune_s": build.tune_s,
            "kernels": len(build.plan.kernels),
            "kernels_compiled": self.linked.kernels_compiled,
            "kernels_tuned": kernels_tuned,
            "peak_bytes": artifact.arena_bytes
            + artifact.scratch_bytes * self.threads
            + constants,
            "arena_bytes": artifact.arena_bytes,
            "constant_bytes": constants,
            "seconds": dict(self.linked.seconds),
        }

    def load(self) -> Binding:
        """Bring code and constants into this process."""
        if self._binding is None:
            artifact = self.linked.artifact
            if self.build.parts is None:
                self.build.parts = load_parts(artifact)
            self._binding = bind_artifact(artifact, parts=self.build.parts)
        return self._binding

    @property
    def binding(self) -> Binding:
        """The variant, ready to call."""
        return self.load()

    def task_key(self, kernel: int) -> str:
        """The work that a kernel was tuned as: that of the build's typical sizes."""
        return self.build.plan.kernels[kernel].bind(self.build.hints).task_key

    @cached_property
    def plan(self) -> Plan:
        """The plan at these sizes."""
        return self.build.plan.bind({d.name: self.sizes[d.name] for d in self.build.scope.dims})


def _serves(scope: Scope, sizes: Mapping[str, int]) -> bool:
    """Does a build serve these sizes?"""
    if any(sizes[n] != v for n, v in scope.fixed):
        return False
    return all(
        d.lo <= sizes[d.name] and (d.hi is None or sizes[d.name] <= d.hi) for d in scope.dims
    )


def _array_type(t: Tensor) -> ArrayType:
    """Sizes as numbers, symbols by name, expressions as None."""
    shape = tuple(n.attr if n.op in ("const", "dim") else None for n in t.shape)
    linear = []
    for axis, n in enumerate(t.shape):
        found = linear_size(n) if shape[axis] is None else None
        if found is not None:
            linear.append((axis, *found))
    return ArrayType(t.name, t.dtype.np, shape, tuple(linear))


def _program_of(model: Any) -> tuple[Program, Mapping[str, str]]:
    """The Program of anything that `compile` takes, and where its definitions come from."""
    if isinstance(model, Path) or (isinstance(model, str) and model.endswith(".onnx")):
        from tilewright import onnx

        model = onnx.load(model)
    if isinstance(model, str):
        model = program(model)
    found = model if isinstance(model, Program) else getattr(model, "program", None)
    if not isinstance(found, Program):
        raise UserError(
            "F005",
            f"cannot compile a {type(model).__name__}",
            hint="give a Program, index notation, an ONNX path, tilewright.onnx.load(...), or a "
            "module of PyTorch",
        )
    missing = [t.name for t, key in found.constants if key not in found.values]
    if missing:
        raise UserError(
            "F002",
            f"the program has no value for its constant {missing[0]!r}",
            where=f"program {found.name}",
            hint="give its values: dataclasses.replace(program, values={key: array}), or the file "
            "of constants that `dump -o` writes beside the text",
        )
    return found, getattr(model, "origins", {})


def _symbols_from(
    p: Program, example_inputs: Any, dims: Mapping[str, int] | None
) -> dict[str, int]:
    """Sizes of dims from example inputs and from `dims`. Errors: R001, R003, R004."""
    names = [d.name for d in p.dims]
    out: dict[str, int] = {}
    for name, size in (dims or {}).items():
        if name not in names:
            known = f"its sizes are {', '.join(names)}" if names else "all its sizes are fixed"
            raise UserError(
                "R004",
                f"the model has no size {name!r}",
                where="dims",
                hint=nearest(str(name), names, known),
            )
        try:
            out[name] = operator.index(size)
        except TypeError:
            raise UserError(
                "R004",
                f"the size {name!r} is {size!r}, which is no whole number",
                where="dims",
                hint=f"pass dims={{{name!r}: 8}}, say",
            ) from None
    for t, shape in _example_shapes(p, example_inputs):
        if len(shape) != len(t.shape):
            raise UserError(
                "R003",
                f"input {t.name!r} has {len(t.shape)} axes, the example {len(shape)}",
                where="example_inputs",
                hint=f"give an array of shape [{_text(t.shape)}]",
            )
        for e, n in zip(t.shape, shape, strict=True):
            if e.op == "dim" and out.setdefault(e.attr, n) != n:
                raise UserError(
                    "R004",
                    f"{e.attr} is {out[e.attr]} and {n} in what is given",
                    where=f"example input {t.name!r}",
                    hint="give sizes that agree",
                )
            fixed = E.int_value(e)
            if fixed is not None and fixed != n:
                raise UserError(
                    "R003",
                    f"input {t.name!r} has size {fixed} where the example has {n}",
                    where="example_inputs",
                    hint=f"give an array of shape [{_text(t.shape)}]",
                )
    return out


def _specialised(
    model: Any, example_inputs: Any, dims: Mapping[str, int] | None
) -> tuple[Any, Mapping[str, Array]]:
    """An ONNX model whose sizes or branches depend on values, imported for those of the examples;
    and the values of the inputs that it has no longer. Errors: those of `onnx.load`.
    """
    if isinstance(model, Path) or (isinstance(model, str) and model.endswith(".onnx")):
        from tilewright import onnx

        model = onnx.load(model)
    if not getattr(model, "is_specialised", False):
        return model, {}
    examples = example_inputs if isinstance(example_inputs, Mapping) else None
    if examples is None and not dims:
        return model, {}
    found = model.specialise(examples, dims)
    return found, found.values


def _text(shape: tuple[E.Expr, ...]) -> str:
    return ", ".join(map(str, shape))


def _example_shapes(p: Program, examples: Any) -> list[tuple[Tensor, tuple[int, ...]]]:
    """The inputs that have an example, and its shape. Errors: R001."""
    if examples is None:
        return []
    names = [t.name for t in p.inputs]
    known = f"the inputs are {', '.join(names) or 'none'}"
    if not isinstance(examples, Mapping):
        arrays = list(examples) if isinstance(examples, list | tuple) else [examples]
        if len(arrays) > len(names):
            raise UserError(
                "R001",
                f"{len(arrays)} example inputs for {len(names)} inputs",
                where="example_inputs",
                hint=known,
            )
        examples = dict(zip(names, arrays, strict=False))
    for name in examples:
        if name not in names:
            raise UserError(
                "R001",
                f"the model has no input {name!r}",
                where="example_inputs",
                hint=nearest(str(name), names, known),
            )
    return [(t, np.shape(examples[t.name])) for t in p.inputs if t.name in examples]


def _is_torch(model: Any, example_inputs: Any) -> bool:
    """A module of PyTorch, or a function with tensors of PyTorch for examples? Imports nothing."""
    torch = sys.modules.get("torch")
    if torch is None or not callable(model):
        return False
    if isinstance(model, torch.nn.Module):
        return True
    given = list(example_inputs) if isinstance(example_inputs, list | tuple) else [example_inputs]
    return any(isinstance(x, torch.Tensor) for x in given)


class CompileOptions(TypedDict, total=False):
    """What `compile` takes by name for every kind of model."""

    dims: Mapping[str, int] | None
    tune: float | str | None
    threads: int | None
    target: str | Target | None
    db: Path | str | None
    frozen: bool | None
    reuse_outputs: bool
    on_event: Callable[[Any], None] | None


@overload
def compile(
    model: Program | str | Path,
    example_inputs: Any = None,
    **options: Unpack[CompileOptions],
) -> CompiledModel: ...


@overload
def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    **options: Unpack[CompileOptions],
) -> Any: ...


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    dims: Mapping[str, int] | None = None,
    dynamic_shapes: Any = None,
    tune: float | str | None = None,
    threads: int | None = None,
    target: str | Target | None = None,
    db: Path | str | None = None,
    frozen: bool | None = None,
    reuse_outputs: bool = False,
    on_event: Callable[[Any], None] | None = None,
) -> Any:
    """Compile a model: a `CompiledModel`, or for PyTorch a `torch.CompiledModule`.

    model: Program, index notation, ONNX path, `onnx.load(...)`, a module of PyTorch, or a function
    with tensors of PyTorch as examples. example_inputs (by position or name) or `dims` fix symbolic
    sizes now; without them compiling waits for the first call. dynamic_shapes: for PyTorch, which
    sizes stay symbolic, as torch.export takes it. tune: seconds, or "30s"; 0 and None (unless the
    settings say otherwise) use default schedules and the database's records. frozen: time nothing.
    Errors: F and P codes of the front ends, R003 and R004 for sizes, U003 for options, R012 and
    R013 for the machine.
    """
    if _is_torch(model, example_inputs):
        from tilewright.torch import compile_module, options_of

        chosen = options_of(
            {"tune": tune, "threads": threads, "target": target, "db": db, "frozen": frozen,
             "on_event": on_event}
        )  # fmt: skip
        return compile_module(model, example_inputs, options=chosen, dynamic_shapes=dynamic_shapes)
    model, values = _specialised(model, example_inputs, dims)
    p, origins = _program_of(model)
    if values:
        example_inputs = {n: a for n, a in example_inputs.items() if n not in values}
    settings = config.current()
    compiled = CompiledModel(
        p,
        target=_target_of(target),
        threads=threads,
        tune=config.seconds_of(tune),
        db=db,
        frozen=bool(settings.frozen if frozen is None else frozen),
        reuse_outputs=reuse_outputs,
        on_event=on_event,
        origins=origins,
    )
    compiled.values = values
    symbols = compiled.given = _symbols_from(p, example_inputs, dims)
    if all(d.name in symbols for d in p.dims):
        compiled.variant(symbols)
    return compiled
