"""The low-level fuzzer, after Tzer: loop nests, schedules and passes mutated together, guided by
the branches of lowering and code generation that they reach.

In: a seed for each step. Out: an `Answer` per step. Invariants: a case is one line of JSON that
says everything; random nests hold exact values, so native code must give the interpreter's bits;
kernels are judged by the oracle; a case that reaches a branch for the first time joins the pool
that later ones are made from.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from tilewright.codegen.llvm import emit_llvm
from tilewright.errors import TargetError
from tilewright.group.plan import plan_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.nest_interpreter import run_nest
from tilewright.ir.plan import KernelCall
from tilewright.ir.program import Program
from tilewright.machine.target import Target
from tilewright.runtime.build import BuildOptions
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.tools.fuzz.coverage import Branches
from tilewright.tools.fuzz.programs import Answer, Options
from tilewright.verify.fuzz import isolated
from tilewright.verify.nests import Generator, mutated
from tilewright.verify.programs import KINDS, generate
from tilewright.verify.schedules import replay, run_native, schedules_of

__all__ = ["NestFuzzer"]

Case = dict[str, Any]
_NOT_HERE = ("aarch64",)  # emitted, not run


@lru_cache(maxsize=512)
def _kernels(number: int) -> tuple[Kernel, ...]:
    """Kernels of a small random Program, planned for the first target."""
    rng = random.Random(number)
    case = generate(number, rng.choice((1, 1, 2)), zero_sizes=False, kind=rng.choice(list(KINDS)))
    program = case.program.bind(case.sizes) if case.sizes else case.program
    plan, _ = plan_program(program, Target.named("x86-avx512"))
    return tuple(plan.kernels[s.kernel] for s in plan.steps if isinstance(s, KernelCall))


@lru_cache(maxsize=8)
def _runs_here(name: str) -> bool:
    try:
        Target.named(name).require_runnable()
    except TargetError:
        return False
    return True


class NestFuzzer:
    """The pool, and the steps that make new cases of it."""

    def __init__(self) -> None:
        self.pool: list[Case] = []
        self.branches: Branches | None = None

    # ---- cases ----

    def draw(self, number: int, options: Options) -> Case:
        """A new case, or a mutation of one in the pool."""
        rng = random.Random(f"nest {number}")
        passes = {
            "target": options.target if rng.random() < 0.85 else rng.choice(_NOT_HERE),
            "opt": rng.choice((0, 1, 2, 2, 3)),
            "passes": rng.choice((0, 0, 0, 1, 2, 3)),
            "at_start": rng.random() < 0.5,
            "at_once": rng.choice((1, 2, 1 << 40)),
        }
        if self.pool and rng.random() < 0.5:
            return {**self._mutated(rng.choice(self.pool), rng), **passes}
        if rng.random() < 0.4:
            edits = [[rng.randrange(1000), rng.randrange(8)] for _ in range(rng.choice((0, 1, 3)))]
            return {"nest": rng.randrange(1 << 31), "edits": edits, **passes}
        return {**self._new_kernel(rng), **passes}

    def _new_kernel(self, rng: random.Random) -> Case:
        while True:
            program = rng.randrange(1 << 31)
            kernels = _kernels(program)
            if kernels:
                return {
                    "program": program,
                    "kernel": rng.randrange(len(kernels)),
                    "rows": rng.randrange(1 << 31),
                    "threads": rng.choice((1, 2, 4)),
                    "moves": [],
                }

    @staticmethod
    def _mutated(case: Case, rng: random.Random) -> Case:
        case = json.loads(json.dumps(case))
        if "nest" in case:
            if case["edits"] and rng.random() < 0.3:
                case["edits"].pop(rng.randrange(len(case["edits"])))
            case["edits"].append([rng.randrange(1000), rng.randrange(8)])
            return case
        if rng.random() < 0.2:
            case["threads"] = rng.choice((1, 2, 4))
        case["moves"].append([rng.randrange(1000), rng.randrange(1000)])
        return case

    @staticmethod
    def schedule_of(case: Mapping[str, Any], kernel: Kernel) -> Schedule:
        """The schedule: one of `schedules_of`, then rows of single groups changed."""
        space = space_of(kernel, Target.named(case["target"]), case["threads"])
        rng = np.random.default_rng(case["rows"])
        found = list(schedules_of(space, rng, 2))
        schedule = found[int(rng.integers(len(found)))]
        for group, row in case["moves"]:
            rows = list(space.rows_of(schedule) or ())
            if rows:
                k = group % len(rows)
                rows[k] = row % len(space.groups[k].rows)
                schedule = space.at(tuple(rows))
        return schedule

    # ---- running ----

    def check(self, number: int, options: Options, careful: bool) -> Answer:
        case = self.draw(number, options)
        answer = self.run(case, careful, always=number % 4 == 0)
        if self.branches is not None and self.branches.grew():
            self.pool.append(case)
        return answer

    def run(self, case: Case, careful: bool, always: bool = True) -> Answer:
        """always: run natively, and not only emit."""
        answer = Answer(0, 1)
        native = always and _runs_here(case["target"])
        answer.drawn = {f"target {case['target']}", f"passes {case['passes']}"}
        build = BuildOptions(case["opt"], case["passes"])
        found = (
            self._run_nest(case, build, native, careful)
            if "nest" in case
            else self._run_kernel(case, build, native, careful)
        )
        answer.drawn.add("random nest" if "nest" in case else "scheduled kernel")
        answer.pairs = int(native)
        if found is not None:
            answer.found = found
            answer.data = json.dumps(case).encode()
        return answer

    def _run_nest(
        self, case: Case, build: BuildOptions, native: bool, careful: bool
    ) -> tuple[str, str] | None:
        nest, data, dims = Generator(case["nest"]).nest()
        changed = mutated(nest, case["edits"])
        target = Target.named(case["target"])
        if changed is None:
            return None
        nest = changed
        if not native:
            emit_llvm(nest, target)
            return None
        expected = {k: v.copy() for k, v in data.items()}
        with np.errstate(all="ignore"):
            run_nest(nest, expected, dims)

        def inside(_: Any, buffers: Any) -> list[Any]:
            after = run_native(
                nest, target, buffers, case["at_start"], case["at_once"], dims=dims, options=build
            )
            return [after[n] for n in data]

        nothing = Program("nest", (), (), ())
        got = (isolated(inside) if careful else inside)(nothing, data)
        for name, array in zip(data, got, strict=True):
            a, b = array.astype(np.float64), expected[name].astype(np.float64)
            if not np.array_equal(a, b, equal_nan=True):
                return "wrong nest", f"buffer {name} differs from the interpreter"
        return None

    def _run_kernel(
        self, case: Case, build: BuildOptions, native: bool, careful: bool
    ) -> tuple[str, str] | None:
        kernels = _kernels(case["program"])
        kernel = kernels[case["kernel"] % len(kernels)]
        finding = replay(
            kernel,
            self.schedule_of(case, kernel),
            Target.named(case["target"]),
            case["rows"],
            native=native,
            interpret=False,
            isolate=careful,
            options=build,
        )
        if finding is None:
            return None
        crash = "killed by" in finding.message or "no answer" in finding.message
        return ("crash" if crash else f"wrong {finding.stage}"), finding.message

    def reduce(self, case: Case, failure: str, seconds: float) -> Case:
        """Fewer edits or moves, and plain passes, where it still fails in the same way."""
        key = "edits" if "nest" in case else "moves"
        steps = [{**case, key: case[key][:k] + case[key][k + 1 :]} for k in range(len(case[key]))]
        steps += [{**case, "passes": 0, "opt": 2}]
        for smaller in steps:
            if smaller == case:
                continue
            found = self.run(smaller, failure == "crash").found
            if found is not None and found[0] == failure:
                return self.reduce(smaller, failure, seconds)
        return case
