"""Check compiled code against the oracle.

In: something that runs a Program (a compiled model, or a function from inputs to results), and
the Program. Out: a `Report` with a verdict for every output and seed. Invariant: what is compared
is the output of the code that was given, over every element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir.program import Definition, Extern, Program
from tilewright.verify.generate import default_sizes, random_inputs
from tilewright.verify.policy import Verdict, compare
from tilewright.verify.witness import References, references

__all__ = ["Outcome", "Report", "check", "compare_outputs"]

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[dict[str, Array]], Sequence[Array]]


@dataclass(frozen=True)
class Outcome:
    """The verdict on one output for one set of inputs; seed -1: inputs that were given."""

    output: str
    seed: int
    verdict: Verdict


@dataclass(frozen=True)
class Report:
    """All verdicts of a check."""

    program: str
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        return all(o.verdict.ok for o in self.outcomes)

    @property
    def worst(self) -> Outcome | None:
        """The outcome that uses most of what is allowed, or the first that fails."""
        failed = [o for o in self.outcomes if not o.verdict.ok]
        if failed:
            return failed[0]
        share = [o.verdict.max_err / (o.verdict.allowed_err or 1.0) for o in self.outcomes]
        return self.outcomes[int(np.argmax(share))] if share else None

    def raise_if_wrong(self) -> None:
        """Errors: V001 naming output, element, error and bound."""
        o = self.worst
        if o is not None and not o.verdict.ok:
            raise UserError(
                "V001",
                f"output {o.output!r} of program {self.program!r} is wrong",
                where=f"seed {o.seed}: {o.verdict}",
                hint="run `tilewright check` on the model, and report it with what it prints",
            )

    def __str__(self) -> str:
        lines = [f"{o.output} (seed {o.seed}): {o.verdict}" for o in self.outcomes]
        return f"{self.program}: {'right' if self.ok else 'WRONG'}\n  " + "\n  ".join(lines)


def check(
    compiled: Any,
    program: Program,
    seeds: int = 3,
    inputs: Mapping[str, Array] | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    bilinear: bool = False,
) -> Report:
    """Run `compiled` on random inputs (or on `inputs`) and compare every output with the oracle.

    compiled: a function from {name: array} to arrays in the order of the results, or an object
    whose method `run` is one. sizes: for the dims, else hints and small sizes. Errors: those of
    the oracle.
    """
    run: Run = getattr(compiled, "run", compiled)
    outcomes: list[Outcome] = []
    if inputs is not None:
        sets = [(-1, dict(inputs))]
    else:
        known = default_sizes(program) | dict(sizes or {})
        sets = [(k, random_inputs(program, known, k)) for k in range(seeds)]
    for seed, arrays in sets:
        expected = references(program, arrays, dims=sizes)
        got = run({n: a.copy() for n, a in arrays.items()})
        outcomes += compare_outputs(program, got, expected, seed, bilinear)
    return Report(program.name, tuple(outcomes))


def compare_outputs(
    program: Program, got: Any, expected: References, seed: int = -1, bilinear: bool = False
) -> list[Outcome]:
    """One outcome per output."""
    arrays = [got] if isinstance(got, np.ndarray) else list(got)
    if len(arrays) != len(program.results):
        message = f"{len(arrays)} outputs instead of {len(program.results)}"
        return [Outcome("", seed, Verdict(False, np.inf, 0.0, None, message))]
    choices = _choices(program)
    out = []
    for k, name in enumerate(program.results):
        verdict = compare(
            arrays[k],
            expected.ref[k],
            expected.naive[k],
            program.tensors[name].dtype,
            bilinear,
            [w[k] for w in expected.wiggle],
            name in choices,
        )
        if name in expected.keys and not np.array_equal(arrays[k], expected.ref[k]):
            others = [*(w[k] for w in expected.wiggle), expected.naive[k]]
            verdict = expected.keys[name].verdict(arrays[k], expected.ref[k], others)
        out.append(Outcome(name, seed, verdict))
    return out


def _choices(program: Program) -> set[str]:
    """Tensors whose integers name a choice."""
    out = set()
    for s in program.body:
        if isinstance(s, Extern):
            out |= {t.name for t in s.results}
        elif isinstance(s, Definition) and s.reduction is not None:
            if s.reduction.monoid in ("argmax", "argmin"):
                out.add(s.name)
    return out
