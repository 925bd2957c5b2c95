"""The program fuzzer: random programs, run by what is under test, judged against the oracle.

In: a function that runs a Program, a time or a number of programs, a seed. Out: a `FuzzReport`;
every failure reduced to a few lines. Invariants: case k of a seed is the same on every machine; a
failure file holds program, sizes and input seed, so that it can be run again.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir.program import Program
from tilewright.verify.choices import Order
from tilewright.verify.finite import finite_inputs
from tilewright.verify.oracle import Outcome, compare_outputs
from tilewright.verify.policy import BILINEAR, FACTOR, Verdict
from tilewright.verify.programs import Case, draw
from tilewright.verify.reduce import reduce_case
from tilewright.verify.witness import References, references, shaken, spreads

__all__ = ["Crash", "Failure", "FuzzReport", "Run", "fingerprint", "fuzz", "isolated", "judge"]
__all__ += ["first_wrong", "judge_on"]

_MOVES = 60  # moved runs of a second opinion
_SHAKEN = 24  # runs that see which values are at the border of a domain

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[Program, dict[str, Array]], Sequence[Array]]


class Crash(Exception):
    """The child that ran a case died or hung."""


@dataclass(frozen=True)
class Failure:
    """A case that went wrong: `kind` groups failures, the case is reduced."""

    number: int
    kind: str
    message: str
    case: Case
    original: Case

    def __str__(self) -> str:
        return f"# case {self.number}: {self.message.splitlines()[0]}\n{self.case}"

    def save(self, folder: Path) -> Path:
        """Write the reduced case to a file of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.case.program.key[:12]}.txt"
        note = self.message.replace("\n", "\n# ")
        path.write_text(f"{self.case}\n# {self.kind}: {note}\n")
        return path


@dataclass
class FuzzReport:
    """Counts of a run, and its failures."""

    programs: int = 0
    wrong: int = 0
    errors: int = 0
    crashes: int = 0
    seconds: float = 0.0
    definitions: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.wrong or self.errors or self.crashes)

    def __str__(self) -> str:
        counts = f"{self.wrong} wrong, {self.errors} errors, {self.crashes} crashes"
        text = f"{self.programs} programs in {self.seconds:.0f} s: {counts}"
        return "\n\n".join([text, *map(str, self.failures)])


def judge(
    run: Run, case: Case, bilinear: bool = False, inputs: dict[str, Array] | None = None
) -> tuple[str, str] | None:
    """Kind and message of what goes wrong with a case; None where all is right. bilinear: the code
    under test computes some of its sums in a form with fewer multiplications. inputs: those of
    `finite_inputs`, where they are known already.

    Errors: those of the oracle, which show that the case is not valid.
    """
    if inputs is None:
        inputs = finite_inputs(case.program, case.sizes, case.seed)[0]
    expected = references(case.program, inputs, dims=case.sizes, bilinear=bilinear)
    return judge_on(run, case.program, inputs, expected, case.sizes, case.seed, bilinear)


def judge_on(
    run: Run,
    program: Program,
    inputs: dict[str, Array],
    expected: References,
    sizes: Mapping[str, int],
    seed: int = -1,
    bilinear: bool = False,
) -> tuple[str, str] | None:
    """`judge` for given inputs and what they should give."""
    try:
        got = run(program, {n: a.copy() for n, a in inputs.items()})
    except Crash as e:
        return "crash", str(e)
    except Exception as e:  # noqa: BLE001 - whatever it raises is a finding
        kind = fingerprint(e)
        return kind if kind.startswith("wrong") else f"error {kind}", f"{type(e).__name__}: {e}"
    o = first_wrong(program, got, expected, inputs, sizes, seed, bilinear)
    return None if o is None else (_wrong(o.verdict), f"output {o.output}: {o.verdict}")


def first_wrong(
    program: Program,
    got: Sequence[Array],
    expected: References,
    inputs: Mapping[str, Array],
    sizes: Mapping[str, int] | None = None,
    seed: int = -1,
    bilinear: bool = False,
    values: Mapping[str, Array] | None = None,
) -> Outcome | None:
    """The first output that is wrong beyond what rounding explains; values: of constants.

    The policy's bound is tied to one evaluation, which may be lucky: `spreads` is a second opinion.
    What follows from a choice among many nearly equal values has as many right answers: more moved
    runs than usual see them. Where an operand is at the border of a domain (the square root of a
    difference that is 0 but for rounding), NaN is as right as a number.
    """
    moved: list[float] | None = None
    border: list[Outcome] | None = None
    again: list[Outcome] | None = None
    for k, o in enumerate(compare_outputs(program, got, expected, seed, bilinear)):
        if o.verdict.ok:
            continue
        if not o.verdict.message.startswith("the ") and np.isfinite(o.verdict.max_err):
            if moved is None:
                moved = spreads(program, inputs, values=values, dims=sizes)
            if o.verdict.max_err <= (BILINEAR if bilinear else FACTOR) * moved[k]:
                continue
        if not o.verdict.message.startswith("the ") and np.isinf(o.verdict.max_err):
            if border is None:
                others = shaken(program, inputs, values=values, dims=sizes, runs=_SHAKEN)[1]
                wide = replace(expected, wiggle=[*expected.wiggle, *others])
                border = compare_outputs(program, got, wide, seed, bilinear)
            if border[k].verdict.ok:
                continue
        order = expected.keys.get(o.output)
        if isinstance(order, Order) and not o.verdict.message.startswith("the "):
            keys = replace(program, results=(order.of,))
            others = shaken(keys, inputs, values=values, dims=sizes, runs=_SHAKEN)[1]
            free = order.widened([order.values, *(w for (w,) in others)])
            if free.verdict(got[k], expected.ref[k], []).ok:
                continue
        if expected.doubtful and not o.verdict.message.startswith("the "):
            if again is None:
                more = references(
                    program, inputs, values=values, dims=sizes, moves=_MOVES, seed=1,
                    bilinear=bilinear,
                )  # fmt: skip
                again = compare_outputs(program, got, more, seed, bilinear)
            if again[k].verdict.ok:
                continue
        return o
    return None


def _wrong(v: Verdict) -> str:
    return "wrong" if not v.message.startswith("the ") else f"wrong {v.message.split()[1]}"


def fingerprint(e: Exception) -> str:
    """What tells one error from another: type, code, and the place in our source."""
    known = getattr(e, "fuzz_fingerprint", None)
    if known is not None:
        return str(known)
    frames = traceback.extract_tb(e.__traceback__)
    ours = [f for f in frames if "tilewright" in f.filename and f.filename != __file__]
    parts = [type(e).__name__, str(getattr(e, "code", ""))]
    parts += [f"{Path(ours[-1].filename).name}:{ours[-1].name}"] if ours else []
    return " ".join(p for p in parts if p)


def fuzz(
    run: Run,
    seconds: float = 60.0,
    seed: int = 0,
    *,
    count: int | None = None,
    reduce_s: float = 20.0,
    folder: Path | None = None,
    most_failures: int = 10,
    make: Callable[[int], Case] = draw,
    on_case: Callable[[int, Case, tuple[str, str] | None], None] | None = None,
) -> FuzzReport:
    """Draw, run and judge cases until the time or `count` is used up.

    Each new kind of failure is reduced for at most `reduce_s` seconds and written to `folder`.
    """
    report = FuzzReport()
    started = time.monotonic()
    known: set[str] = set()
    number = seed << 32
    while report.programs < (count if count is not None else 1 << 60):
        if count is None and time.monotonic() - started > seconds:
            break
        case = make(number)
        found = judge(run, case)
        if on_case is not None:
            on_case(number, case, found)
        report.programs += 1
        report.definitions[len(case.program.body)] += 1
        report.kinds.update(case.kinds)
        if found is not None:
            kind, message = found
            report.wrong += kind.startswith("wrong")
            report.errors += kind.startswith("error")
            report.crashes += kind == "crash"
            if (kind not in known or kind == "wrong") and len(report.failures) < most_failures:
                known.add(kind)
                small = reduce_case(case, partial(_same, run, kind), reduce_s)
                last = judge(run, small)
                failure = Failure(number, kind, last[1] if last else message, small, case)
                report.failures.append(failure)
                if folder is not None:
                    failure.save(folder)
        number += 1
    report.seconds = time.monotonic() - started
    return report


def _same(run: Run, kind: str, case: Case) -> bool:
    """Does the case still fail in the same way? Cases that the oracle refuses do not."""
    try:
        found = judge(run, case)
    except UserError:
        return False
    return found is not None and found[0] == kind


def isolated(run: Run, timeout_s: float = 60.0) -> Run:
    """`run` in a forked child for every call, so that a crash or a hang is only a finding."""

    def inside(program: Program, inputs: dict[str, Array]) -> list[Array]:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _child(run, program, inputs, writer)
        os.close(writer)
        data = _read_all(reader, time.monotonic() + timeout_s)
        os.close(reader)
        if data is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Crash(f"no answer within {timeout_s:g} s")
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            raise Crash(f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
        if not data:
            raise Crash(f"ended with status {os.WEXITSTATUS(status)}")
        error, found = pickle.loads(data)
        if error is not None:
            error.fuzz_fingerprint = found
            raise error
        arrays: list[Array] = found
        return arrays

    return inside


def _child(run: Run, program: Program, inputs: dict[str, Array], writer: int) -> None:
    """Run, write the pickled outcome, and end without cleaning up what belongs to the parent."""
    try:
        try:
            data = pickle.dumps((None, [np.asarray(a) for a in run(program, inputs)]))
        except Exception as e:  # noqa: BLE001 - it is sent to the parent
            data = pickle.dumps((_portable(e), fingerprint(e)))
        view = memoryview(len(data).to_bytes(8, "little") + data)
        while view:
            view = view[os.write(writer, view) :]
    finally:
        os._exit(0)


def _portable(e: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(e))
    except Exception:  # noqa: BLE001 - one that cannot be pickled is described
        return RuntimeError(f"{type(e).__name__}: {e}")
    return e


def _read_all(reader: int, deadline: float) -> bytes | None:
    """What the child sent; empty if it ended before; None where the time was up.

    The length comes first: processes that the child started may keep the pipe open.
    """
    data = bytearray()
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "little"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return None
        part = os.read(reader, 1 << 20)
        if not part:
            return b""
        data += part
    return bytes(data[8:])
