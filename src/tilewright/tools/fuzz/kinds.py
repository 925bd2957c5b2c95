"""The kinds of campaigns: how a case is made from its number, checked, replayed and reduced.

In: a number, or the text of a case. Out: an `Answer`, or the text of a smaller case. Invariant: a
kind is one row of `KINDS`; campaign and child know nothing else of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tilewright.derive.bilinear import SIZES, faster_convolutions
from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.externs import EXTERNS
from tilewright.ir.program import MONOIDS, Program
from tilewright.machine.target import Target
from tilewright.tools import wiring
from tilewright.tools.fuzz import coverage
from tilewright.tools.fuzz.nests import OTHERS, NestFuzzer
from tilewright.tools.fuzz.programs import Answer, Options, check_program, judged
from tilewright.tools.fuzz.torch_opinion import opinion
from tilewright.verify.finite import AS_DRAWN, finite_inputs
from tilewright.verify.fuzz import isolated
from tilewright.verify.programs import BLOCK_KINDS, Case, draw, generate
from tilewright.verify.programs import KINDS as STATEMENTS
from tilewright.verify.reduce import reduce_case
from tilewright.verify.schedules import PARAMETERS, ScheduleReport, fuzz_schedules

__all__ = ["KINDS", "Kind", "derived", "draw_options", "options_of", "rows_of"]


# How inputs came to be: as they were drawn, or finite, after a search along the gradient or before.
_INPUTS = {f"inputs {how}" for how in ("as drawn", "sampled", "searched")}


def options_of(header: Mapping[str, Any]) -> Options:
    rebuild, symbolic = (bool(header.get(name, False)) for name in ("rebuild", "symbolic"))
    return Options(header["target"], header["threads"], rebuild, symbolic)


def draw_options(number: int, targets: Sequence[str], threads: int) -> Options:
    """Target and threads of a case."""
    rng = random.Random(f"options {number}")
    target, many = rng.choice(list(targets)), rng.randint(1, threads)
    return Options(target, many, rng.random() < 0.1, rng.random() < 0.25)


class Kind(ABC):
    """One kind of campaign."""

    suffix = ".txt"

    def is_available(self) -> bool:
        """Is what it needs installed?"""
        return True

    @abstractmethod
    def rows(self) -> set[str]:
        """Everything that its cases should hold in the end."""

    @abstractmethod
    def check(self, number: int, options: Options, careful: bool) -> Answer:
        """Make case `number` and run it. careful: what may crash runs in a process of its own."""

    @abstractmethod
    def replay(self, data: bytes, options: Options, careful: bool) -> Answer:
        """Run a case that was written down."""

    def third(self, number: int) -> Answer:
        """What a third party that has to be kept apart says of case `number`."""
        return Answer()

    def reduce(self, data: bytes, failure: str, options: Options, seconds: float) -> bytes:
        """A smaller case that fails in the same way."""
        return data

    @abstractmethod
    def generate(self, number: int) -> int:
        """Make case `number` without running it; how many definitions it has."""

    @abstractmethod
    def text_of(self, number: int) -> bytes:
        """Case `number` as it is written down."""


class Programs(Kind):
    """Random Programs with default schedules."""

    def rows(self) -> set[str]:
        out = {f"op {op}" for op in (*E.UNARY, *E.BINARY, *E.COMPARE, "select", "cast")}
        out |= {f"reduce {m}" for m in MONOIDS}
        out |= {f"scan {m}" for m in ("sum", "prod", "max", "min", "logsumexp")}
        out |= {f"scatter {m}" for m in ("sum", "prod", "max", "min", "logsumexp", "last")}
        statements = ("definition", "recurrence", "scatter", "extern", "size", "if", "while")
        out |= {f"statement {s}" for s in statements}
        out |= {f"kind {k}" for k in (*STATEMENTS, *BLOCK_KINDS)}
        out |= {f"rule {r}" for r in ("bilinear", "order", "residue", "selection", "stream")}
        out |= {"constant", "symbolic sizes"}
        out |= _INPUTS
        return out | {"else", "gather", "guard", "ragged", "read", "extern sort", "extern topk"}

    def check(self, number: int, options: Options, careful: bool) -> Answer:
        return self._check(draw(number), options, careful)

    def replay(self, data: bytes, options: Options, careful: bool) -> Answer:
        return self._check(Case.parse(data.decode()), options, careful)

    def _check(self, case: Case, options: Options, careful: bool) -> Answer:
        return check_program(case, options, isolated if careful else None)

    def third(self, number: int) -> Answer:
        """What PyTorch says of a case; to be asked in a process of its own."""
        case = draw(number)
        verdict, how = opinion(case)
        answer = Answer(0, len(case.program.body), others=[f"torch {verdict}"])
        if verdict == "differs":
            answer.found, answer.data = ("differs torch", str(how)), str(case).encode()
        return answer

    def reduce(self, data: bytes, failure: str, options: Options, seconds: float) -> bytes:
        case = Case.parse(data.decode())

        def fails(c: Case) -> bool:
            try:
                found = judged(c, options, isolated if failure == "crash" else None)
            except UserError:
                return False
            return found is not None and found[0] == failure

        return str(reduce_case(case, fails, seconds)).encode()

    def generate(self, number: int) -> int:
        return len(draw(number).program.body)

    def text_of(self, number: int) -> bytes:
        return str(draw(number)).encode()


def derived(case: Case, number: int, target: Target) -> tuple[Program, set[str]]:
    """The Program of a case for fixed sizes, its known inputs as constants and its convolutions in
    a form with fewer multiplications; what was done.
    """
    program = case.program.bind(case.sizes) if case.sizes else case.program
    if not case.constants:
        return program, set()
    given = finite_inputs(case.program, case.sizes, number)[0]
    program = wiring.with_constants(program, {n: given[n] for n in case.constants})
    size = random.Random(number).choice(SIZES)
    program, found = faster_convolutions(program, target, sizes=(size,), worth=0.0)
    return program, {f"form F({size},3)"} if found else set()


class Schedules(Kind):
    """Schedules of the kernels of random Programs."""

    def rows(self) -> set[str]:
        out = {f"parameter {p}" for p in PARAMETERS}
        out |= {f"tail {t}" for t in ("overlap", "peel", "mask")}
        out |= {f"form F({m},3)" for m in SIZES}
        return out

    def _case(self, number: int) -> Case:
        rng = random.Random(f"schedules {number}")
        # Long reductions and forms of convolutions have parameters that nothing else has.
        kind = rng.choice([*STATEMENTS, "long", "long", "sliding"])
        count = rng.choice((1, 1, 2, 2, 3, 5))
        return generate(number, count, zero_sizes=rng.random() < 0.2, kind=kind)

    def check(self, number: int, options: Options, careful: bool) -> Answer:
        return self._check(self._case(number), number, options, careful)

    def replay(self, data: bytes, options: Options, careful: bool) -> Answer:
        case = Case.parse(data.decode())
        return self._check(case, case.seed, options, careful)

    def _check(self, case: Case, number: int, options: Options, careful: bool) -> Answer:
        target = Target.named(options.target)
        rng = np.random.default_rng(number)
        program, rules = derived(case, number, target)
        report = ScheduleReport()
        fuzz_schedules(
            program, target, rng, 3, report=report, isolate=careful, most_findings=1, most_kernels=4
        )
        answer = Answer(report.native, len(program.body), set(report.drawn) | rules)
        if report.findings:
            finding = report.findings[0]
            crash = "killed by" in finding.message or "no answer" in finding.message
            stage = "crash" if crash else f"wrong {finding.stage}"
            answer.found = (stage, finding.message)
            note = str(finding).replace("\n", "\n# ")
            answer.data = f"{replace(case, seed=number)}\n# {note}\n".encode()
        return answer

    def generate(self, number: int) -> int:
        return len(self._case(number).program.body)

    def text_of(self, number: int) -> bytes:
        return str(replace(self._case(number), seed=number)).encode()


class Models(Kind):
    """Random ONNX models; the oracle, onnxruntime and ONNX's reference judge."""

    suffix = ".onnx"

    def is_available(self) -> bool:
        return importlib.util.find_spec("onnx") is not None

    def rows(self) -> set[str]:
        from tilewright.frontend.onnx.table import ROWS

        importlib.import_module("tilewright.frontend.onnx")
        out = {f"row {n}" for (d, n), r in ROWS.items() if not d and r.kind != "refused"}
        made = {"trimmed", "ordered"}  # by planning and by a rule
        out |= {f"extern {n}" for n in set(EXTERNS) - made}
        return out | _INPUTS

    def check(self, number: int, options: Options, careful: bool) -> Answer:
        model, how = self._finite(number)
        answer = self._check(model, options, careful)
        answer.drawn.add(f"inputs {how}")
        return answer

    def replay(self, data: bytes, options: Options, careful: bool) -> Answer:
        from tilewright.tools.fuzz.models import model_of

        return self._check(model_of(data), options, careful)

    def _check(self, model: Any, options: Options, careful: bool) -> Answer:
        from tilewright.tools.fuzz.models import check_model

        return check_model(model, options, isolated if careful else None)

    def _model(self, number: int) -> Any:
        from tilewright.verify.models import draw_model

        return draw_model(number)

    def _finite(self, number: int) -> tuple[Any, str]:
        """Model `number` with inputs and weights for which its values are finite, and how so."""
        from tilewright.verify.models.finite import finite_model

        model = self._model(number)
        return (model, "as drawn") if number % AS_DRAWN == 0 else finite_model(model)

    def reduce(self, data: bytes, failure: str, options: Options, seconds: float) -> bytes:
        from tilewright.tools.fuzz.models import model_of, reduce_model, text_of

        deadline = time.monotonic() + seconds

        def fails(model: Any) -> bool:
            if time.monotonic() > deadline:
                return False
            found = self._check(model, options, failure == "crash").found
            return found is not None and found[0] == failure

        return text_of(reduce_model(model_of(data), fails))

    def generate(self, number: int) -> int:
        return int(self._model(number).nodes)

    def text_of(self, number: int) -> bytes:
        from tilewright.tools.fuzz.models import text_of

        return text_of(self._finite(number)[0])


class Nests(Kind):
    """Loop nests, schedules and passes, guided by the branches that they reach."""

    suffix = ".json"

    def __init__(self) -> None:
        self._fuzzer: NestFuzzer | None = None

    @property
    def fuzzer(self) -> NestFuzzer:
        if self._fuzzer is None:
            self._fuzzer = NestFuzzer()
            self._fuzzer.branches = coverage.current()
        return self._fuzzer

    def rows(self) -> set[str]:
        out = {f"passes {k}" for k in range(4)} | {f"target {t}" for t in OTHERS}
        return out | {"random nest", "scheduled kernel", "symbolic kernel"}

    def check(self, number: int, options: Options, careful: bool) -> Answer:
        return self.fuzzer.check(number, options, careful)

    def replay(self, data: bytes, options: Options, careful: bool) -> Answer:
        return self.fuzzer.run(json.loads(data), careful)

    def reduce(self, data: bytes, failure: str, options: Options, seconds: float) -> bytes:
        return json.dumps(self.fuzzer.reduce(json.loads(data), failure, seconds)).encode()

    def generate(self, number: int) -> int:
        self.fuzzer.draw(number, Options("x86-avx512"))
        return 1

    def text_of(self, number: int) -> bytes:
        return b""


KINDS: dict[str, Kind] = {"programs": Programs(), "onnx": Models(), "schedules": Schedules()}
KINDS["nests"] = Nests()


def rows_of(kind: str) -> set[str]:
    """Everything that cases of a kind should hold."""
    return KINDS[kind].rows()
