"""One generated Program: compiled for a target, run several times, compared with the oracle.

In: a `Case`, a target. Out: an `Answer`. Invariants: what is compared is what the public entry
computes; every input and output lies between unmapped pages; outputs hold no result before a call.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.codegen.llvm import emit_llvm
from tilewright.errors import TilewrightError
from tilewright.group.plan import plan_program
from tilewright.ir.program import Extern, If, Program, Size, Statement, While, blocks_of
from tilewright.machine.target import Target
from tilewright.runtime.build import emit_object
from tilewright.runtime.link import lower_kernel
from tilewright.runtime.pool import set_num_threads
from tilewright.tools import wiring
from tilewright.verify.finite import finite_inputs
from tilewright.verify.fuzz import Run, fingerprint, judge
from tilewright.verify.guards import guarded, poison
from tilewright.verify.programs import Case

__all__ = ["Answer", "Options", "Unstable", "check_program", "compiled_outputs", "drawn_by"]
__all__ += ["judged"]

Array = np.ndarray[Any, np.dtype[Any]]
THREADS = (1, 2)


@dataclass(frozen=True)
class Options:
    """`target`: the machine to compile for; `threads`: the schedule is made for so many;
    `symbolic`: the build that runs serves a range of sizes.
    """

    target: str
    threads: int = 2
    rebuild: bool = False
    symbolic: bool = False


@dataclass
class Answer:
    """What came of one case: `found` is (kind, message) of what went wrong, `data` the case then.

    `pairs`: programs with schedules that were run and compared. `drawn`: what the case holds.
    `others`: third parties that were compared, or found wrong. `digest`: of objects and results,
    the same in every process.
    """

    pairs: int = 0
    definitions: int = 0
    drawn: set[str] = field(default_factory=set)
    found: tuple[str, str] | None = None
    data: bytes = b""
    valid: bool = True
    others: list[str] = field(default_factory=list)
    digest: str = ""


class Unstable(Exception):
    """Two runs of one model, or two compilations of one Program, differ."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.fuzz_fingerprint = kind


def _same(a: Sequence[Array], b: Sequence[Array]) -> int | None:
    """The first array whose bytes differ."""
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape or x.dtype != y.dtype or x.tobytes() != y.tobytes():
            return k
    return None


def _guarded_run(model: Any, inputs: dict[str, Array], at_start: bool) -> list[Array] | None:
    """The results with every array between unmapped pages; None where a size follows from values.

    Errors: Unstable where an input has been written.
    """
    if model.shapes:
        return None
    held = []
    given: list[Array] = []
    for spec in model.input_specs:
        _, array, memory = guarded(inputs[spec.name], 1, at_start)
        held.append(memory)
        given.append(array)
    shapes = [tuple(int(n) for n in t.shape) for t in model.latest.outputs]
    outputs: list[Array] = []
    for k in model.order:
        t = model.latest.outputs[k]
        _, array, memory = guarded(np.empty(shapes[k], t.dtype), 1, at_start)
        poison(array)
        held.append(memory)
        outputs.append(array)
    model(*given, out=outputs[0] if len(outputs) == 1 else tuple(outputs))
    for spec, array in zip(model.input_specs, given, strict=True):
        if array.tobytes() != inputs[spec.name].tobytes():
            raise Unstable("wrong input", f"the input {spec.name} has been written")
    return [array.copy() for array in outputs]


def compiled_outputs(
    program: Any,
    sizes: dict[str, int],
    inputs: dict[str, Array],
    options: Options,
    answer: Answer | None = None,
) -> list[Array]:
    """What the compiled model computes, for one and for two threads, twice each.

    Errors: those of the compiler; Unstable where results are not the same bits.
    """
    api = importlib.import_module("tilewright.api")
    target = Target.named(options.target)
    set_num_threads(options.threads)
    try:
        if options.symbolic and program.dims:
            model = api.CompiledModel(
                program, target=target, threads=options.threads, symbolic="always"
            )
        else:
            model = api.compile(program, target=target, dims=sizes)
        variant = model.variant(sizes)
        dims = variant.build.scope.dims
        if answer is not None and dims:
            answer.drawn.add("symbolic sizes")
        first = [np.array(a) for a in model.run(inputs)]
        for threads in (*THREADS, options.threads):
            set_num_threads(threads)
            again = model.run(inputs)
            if (k := _same(first, again)) is not None:
                raise Unstable(
                    "wrong repeated",
                    f"output {k} differs: {options.threads} threads, then {threads}",
                )
        for at_start in (False, True):
            placed = _guarded_run(model, inputs, at_start)
            if placed is not None and (k := _same(first, placed)) is not None:
                raise Unstable("wrong placed", f"output {k} depends on where the arrays lie")
        if options.rebuild and not dims:
            _rebuild(variant, target)
        if answer is not None:
            answer.drawn |= _rules_of(variant)
        if answer is not None:
            held = hashlib.sha256()
            for part in (*variant.linked.artifact.objects, *(a.tobytes() for a in first)):
                held.update(part)
            answer.digest = held.hexdigest()
    finally:
        set_num_threads(None)
    return first


def _rules_of(variant: Any) -> set[str]:
    """The derivation rules that a compiled model was made with."""
    out = {f"rule {d.rule}" for d in variant.derivations}
    return out | ({"rule stream"} if any(k.stream for k in variant.plan.kernels) else set())


def _rebuild(variant: Any, target: Target) -> None:
    """Plan, lower, emit and build again; objects must be the same bytes. Errors: Unstable."""
    plan, _ = plan_program(variant.derived, target)
    if str(plan) != str(variant.plan):
        raise Unstable("wrong rebuilt", "a second plan differs")
    linked = variant.linked
    texts = [
        emit_llvm(lower_kernel(k, s, target).nest, target)
        for k, s in zip(plan.kernels, linked.schedules, strict=True)
    ]
    if texts != linked.texts:
        raise Unstable("wrong rebuilt", "a second lowering differs")
    if texts and emit_object(texts[0], target) not in linked.artifact.objects:
        raise Unstable("wrong rebuilt", "a second build of the first kernel differs")


def check_program(
    case: Case, options: Options, isolate: Callable[[Run], Run] | None = None
) -> Answer:
    """Build, run and compare one Program; `isolate` wraps the part that may crash."""
    answer = Answer(1, len(case.program.body), drawn_by(case.program))
    answer.drawn |= {f"kind {k}" for k in case.kinds}
    answer.drawn |= {"constant"} if case.constants else set()
    try:
        answer.found = judged(case, options, isolate, answer)
    except TilewrightError as error:  # of the oracle: the case means nothing
        answer.valid = False
        answer.found = (f"invalid {fingerprint(error)}", f"the oracle refuses: {error}")
    if answer.found is not None:
        answer.data = str(case).encode()
    return answer


def judged(
    case: Case,
    options: Options,
    isolate: Callable[[Run], Run] | None = None,
    answer: Answer | None = None,
) -> tuple[str, str] | None:
    """Kind and message of what goes wrong with a case; None where all is right.

    Errors: those of the oracle, which show that the case is not valid.
    """

    def run(program: Program, inputs: dict[str, Array]) -> list[Array]:
        known = {n: inputs.pop(n) for n in case.constants}
        program = wiring.with_constants(program, known) if known else program
        return compiled_outputs(program, dict(case.sizes), inputs, options, answer)

    program = case.program
    given, how = finite_inputs(program, case.sizes, case.seed)
    if answer is not None:
        answer.drawn.add(f"inputs {how}")
    if case.constants:
        program = wiring.with_constants(program, {n: given[n] for n in case.constants})
    bilinear = wiring.is_bilinear(program, case.sizes, options.target)
    return judge(isolate(run) if isolate is not None else run, case, bilinear, given)


def drawn_by(program: Program) -> set[str]:
    """Operations, monoids and statements of a Program, as rows of the table of what exists."""
    out: set[str] = set()
    stack: list[Statement] = list(program.body)
    while stack:
        s = stack.pop()
        out.add(f"statement {type(s).__name__.lower()}")
        stack += [inner for block in blocks_of(s) for inner in block.body]
        if isinstance(s, Extern):
            out.add(f"extern {s.function}")
        elif not isinstance(s, If | While | Size):
            out |= _of_definitions(s)
    return out


def _of_definitions(s: Any) -> set[str]:
    out: set[str] = set()
    for d in getattr(s, "definitions", (s,)):
        reduction, scan = getattr(d, "reduction", None), getattr(d, "scan", None)
        if reduction is not None:
            out.add(f"reduce {reduction.monoid}")
            if reduction.guard is not None:
                out.add("guard")
                if any(True for _ in reduction.guard.reads()):
                    out.add("ragged")
        if scan is not None:
            out.add(f"scan {scan[0]}")
        if hasattr(d, "source"):
            out.add(f"scatter {d.monoid or 'last'}")
            expressions = [d.body, d.base, *d.subscripts]
        else:
            expressions = list(d.expressions())
        for e in expressions:
            for node in e.walk():
                if node.op == "read":
                    out.add("else" if node.attr[1] else "read")
                    if any(r for a in node.args for r in a.reads()):
                        out.add("gather")
                elif node.op not in ("const", "index", "dim"):
                    out.add(f"op {node.op}")
    return out
