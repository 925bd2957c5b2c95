"""The low-level fuzzer, after Tzer: loop nests, schedules and passes mutated together, guided by
the branches of lowering and code generation that they reach.

In: a seed for each step. Out: an `Answer` per step. Invariants: a case is one line of JSON that
says everything; random nests hold exact values, so native code must give the interpreter's bits;
kernels are judged by the oracle; a case that reaches a branch for the first time joins the pool
that later ones are made from.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from tilewright.codegen.llvm import emit_llvm
from tilewright.errors import Rejected, TargetError
from tilewright.group.plan import plan_program
from tilewright.group.symbolic import scope_of_sizes
from tilewright.ir.extent import hint_of
from tilewright.ir.kernel import Kernel
from tilewright.ir.nest import parse_nest
from tilewright.ir.nest_interpreter import run_nest
from tilewright.ir.nest_verifier import verify_nest
from tilewright.ir.plan import KernelCall
from tilewright.ir.program import Program
from tilewright.lower import kernel as lower_kernel
from tilewright.lower.kernel import lower
from tilewright.machine.target import Target
from tilewright.runtime.build import BuildOptions
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.schedule import Schedule
from tilewright.schedule.symbolic import for_range
from tilewright.tools.fuzz.coverage import Branches
from tilewright.tools.fuzz.programs import Answer, Options
from tilewright.verify.fuzz import isolated
from tilewright.verify.nests import Generator, mutated
from tilewright.verify.programs import KINDS, generate
from tilewright.verify.schedules import replay, run_native, schedules_of

__all__ = ["OTHERS", "NestFuzzer"]

Case = dict[str, Any]
_PLAIN = Target.named("x86-avx512")
_WORDS = _PLAIN.features + ",+avx512vnni"
# Machines that have instructions for products of narrow elements; emitted where they do not run.
_NARROW = {
    "x86-avx512-vnni": replace(_PLAIN, features=_WORDS, has_vnni=True),
    "x86-avx512-bf16": replace(
        _PLAIN, features=_PLAIN.features + ",+avx512bf16", has_bf16_dot=True
    ),
    "x86-avx512-amx": replace(
        _PLAIN, features=_WORDS + ",+amx-bf16,+amx-int8,+amx-tile", has_vnni=True
    ),
}


OTHERS = ("aarch64", *_NARROW)
_NEST = "random nest"
# What no schedule of a small kernel asks for, as bits: loops taken apart where conditions change,
# and sums that wait between blocks of a reduced axis.
_CUTS, _BLOCKS = 1, 2
_TRIES = 6  # to draw a Program that has a kernel
_SOURCES = {_NEST: 8.0, **dict.fromkeys(KINDS, 1.0)}  # what new cases are made of, with weights


def _target(name: str) -> Target:
    return _NARROW.get(name) or Target.named(name)


@lru_cache(maxsize=512)
def _kernels(number: int, kind: str, name: str, symbolic: bool) -> tuple[Kernel, ...]:
    """Kernels of a small random Program that begins with a kind of statement, planned for a target.
    symbolic: for a range of sizes; none where it has no size that may vary.
    """
    rng = random.Random(number)
    case = generate(number, rng.choice((1, 1, 2)), zero_sizes=False, kind=kind)
    program = case.program.bind(case.sizes) if case.sizes and not symbolic else case.program
    if symbolic:
        scope = scope_of_sizes(program, case.sizes, set(case.sizes))
        if not scope.dims:
            return ()
        program = scope.program(program)
    plan, _ = plan_program(program, _target(name))
    kernels = (plan.kernels[s.kernel] for s in plan.steps if isinstance(s, KernelCall))
    return tuple(k for k in kernels if k.program.dims or not symbolic)


def _kernels_of(case: Mapping[str, Any]) -> tuple[Kernel, ...]:
    name = case["target"] if case["target"] in _NARROW else _PLAIN.isa
    return _kernels(case["program"], case["kind"], name, case["symbolic"])


@lru_cache(maxsize=8)
def _runs_here(name: str) -> bool:
    try:
        _target(name).require_runnable()
    except TargetError:
        return False
    return True


@contextmanager
def _conditions_cut(always: bool) -> Iterator[None]:
    """Loops are taken apart where conditions change, in small kernels too."""
    before = lower_kernel.CUT_POINTS
    lower_kernel.CUT_POINTS = 0 if always else before
    try:
        yield
    finally:
        lower_kernel.CUT_POINTS = before


def _in_blocks(schedule: Schedule, number: int) -> Schedule:
    """A reduced axis of every stage in blocks, around or between the other loops."""
    rng, items = random.Random(number), dict(schedule.items)
    for name in [n for n in items if n.endswith(".order")]:
        stage, loops = name.removesuffix(".order"), str(items[name]).split(",")
        if f"{stage}.reg.k0" in items and "k0:L2" not in loops:
            loops.insert(rng.randint(0, len(loops) - 1), "k0:L2")
            items |= {name: ",".join(loops), f"{stage}.tile.k0": rng.choice((1, 16, 33, 64))}
    return Schedule.of(items)


class NestFuzzer:
    """The pool, and the steps that make new cases of it."""

    def __init__(self) -> None:
        self.pool: list[Case] = []
        self.branches: Branches | None = None
        # New cases by what they are made of: how many, and how many of them reached a new branch.
        self.tried: Counter[str] = Counter()
        self.gained: Counter[str] = Counter()

    # ---- cases ----

    def draw(self, number: int, options: Options) -> Case:
        """A new case, or a mutation of one in the pool."""
        rng = random.Random(f"nest {number}")
        passes = {
            "target": options.target if rng.random() < 0.7 else rng.choice(OTHERS),
            "opt": rng.choice((0, 1, 2, 2, 3)),
            "passes": rng.choice((0, 0, 0, 1, 2, 3)),
            "at_start": rng.random() < 0.5,
            "at_once": rng.choice((1, 2, 1 << 40)),
        }
        if self.pool and rng.random() < 0.5:
            old = rng.choice(self.pool)
            if old["target"] in _NARROW:  # its kernels are planned for it
                passes["target"] = old["target"]
            return {**self._mutated(old, rng), **passes}
        kind = self._promising(rng, passes["target"] in _NARROW)
        if kind == _NEST:
            edits = [[rng.randrange(1000), rng.randrange(8)] for _ in range(rng.choice((0, 1, 3)))]
            return {"nest": rng.randrange(1 << 31), "edits": edits, **passes}
        return self._new_kernel(rng, kind, passes)

    def _promising(self, rng: random.Random, narrow: bool) -> str:
        """What the next case is made of: rather what has reached new branches."""
        if narrow and rng.random() < 0.6:
            return "narrow"
        weights = [
            weight * (self.gained[k] + 0.5) / (self.tried[k] + 1) for k, weight in _SOURCES.items()
        ]
        return rng.choices(list(_SOURCES), weights)[0]

    def _new_kernel(self, rng: random.Random, kind: str, passes: Case) -> Case:
        case = {
            "rows": rng.randrange(1 << 31), "threads": rng.choice((1, 2, 4)), "moves": [], **passes,
            "forced": rng.choice((0, 0, _CUTS, _BLOCKS)),
        }  # fmt: skip
        symbolic = rng.random() < 0.25
        for number in itertools.count():
            if number >= _TRIES:  # some kinds seldom have a size that varies, or no kernel at all
                kind, symbolic = "elementwise", False
            case |= {"program": rng.randrange(1 << 31), "kind": kind, "symbolic": symbolic}
            kernels = _kernels_of(case)
            if kernels:
                break
        return {**case, "kernel": rng.randrange(len(kernels))}

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
        hints = {d.name: hint_of(d) for d in kernel.program.dims}
        known = kernel.bind(hints) if hints else kernel
        space = space_of(known, _target(case["target"]), case["threads"])
        rng = np.random.default_rng(case["rows"])
        found = list(schedules_of(space, rng, 2))
        schedule = found[int(rng.integers(len(found)))]
        for group, row in case["moves"]:
            rows = list(space.rows_of(schedule) or ())
            if rows:
                k = group % len(rows)
                rows[k] = row % len(space.groups[k].rows)
                schedule = space.at(tuple(rows))
        if case.get("forced", 0) & _BLOCKS:
            schedule = _in_blocks(schedule, case["rows"])
        return for_range(kernel, schedule)

    # ---- running ----

    def check(self, number: int, options: Options, careful: bool) -> Answer:
        case = self.draw(number, options)
        answer = self.run(case, careful, always=number % 4 == 0)
        made = case.get("kind", _NEST)
        self.tried[made] += 1
        if self.branches is not None and self.branches.grew():
            self.gained[made] += 1
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
        held = _NEST if "nest" in case else "scheduled kernel"
        answer.drawn.add("symbolic kernel" if case.get("symbolic") else held)
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
        target = _target(case["target"])
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
        kernels = _kernels_of(case)
        if not kernels:  # another target may have an extern in its place
            return None
        kernel = kernels[case["kernel"] % len(kernels)]
        if kernel.program.dims:
            return self._emit_for_a_range(kernel, case)
        with _conditions_cut(bool(case.get("forced", 0) & _CUTS)):
            finding = replay(
                kernel,
                self.schedule_of(case, kernel),
                _target(case["target"]),
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

    def _emit_for_a_range(self, kernel: Kernel, case: Case) -> tuple[str, str] | None:
        """Lower, verify, print and emit; `programs` runs such builds."""
        target = _target(case["target"])
        low = lower(kernel, self.schedule_of(case, kernel), target)
        if isinstance(low, Rejected):
            return "wrong lower", f"rejected: {low.code} {low.detail}"
        verify_nest(low.nest)
        if parse_nest(str(low.nest)) != low.nest:
            return "wrong text", "the text parses to something else"
        emit_llvm(low.nest, target)
        return None

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
