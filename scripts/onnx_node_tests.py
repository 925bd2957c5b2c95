"""ONNX's own node tests through the importer and the Program interpreter.

Prints how many are passed, refused (with reasons) and wrong; exits 1 when one is wrong or crashes.

    python scripts/onnx_node_tests.py [--only NAME_PART] [--expanded] [--list]
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.errors import TilewrightError
from tilewright.frontend.onnx import import_onnx
from tilewright.frontend.onnx.proto import ELEMENT_TYPES
from tilewright.ir.interpreter import run_program

__all__ = ["Outcome", "cases", "outcome_of"]

_RANDOM = ("Bernoulli", "RandomNormal", "RandomUniform", "Multinomial", "Dropout", "RandomUniformLike")


@dataclass(frozen=True)
class Outcome:
    """kind: passed, baked (passed with the values of shape inputs given at import), refused, wrong, crashed."""

    kind: str
    detail: str = ""


def cases(part: str = "", expanded: bool = False) -> Iterator[Any]:
    """The node tests of the default domain, without what is out of scope (see `in_scope`)."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    for case in collected:
        if part in case.name and ("_expanded" in case.name) == expanded and in_scope(case):
            yield case


def in_scope(case: Any) -> bool:
    """No strings, sequences, optionals, training, image decoding, random numbers, 8-bit floats or types below 8 bits."""
    graph = case.model.graph
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type == "ImageDecoder":
            return False
        if node.op_type in _RANDOM and not (node.op_type == "Dropout" and "training" not in case.name):
            return False
    for v in [*graph.input, *graph.output]:
        if not v.type.HasField("tensor_type") or v.type.tensor_type.elem_type not in ELEMENT_TYPES:
            return False
    return True


def outcome_of(case: Any) -> Outcome:
    """Import, interpret and compare one case."""
    data = case.model.SerializeToString()
    names = [i.name for i in case.model.graph.input]
    inputs, expected = case.data_sets[0]
    given = {n: np.asarray(x) for n, x in zip(names, inputs, strict=False)}
    kind = "passed"
    try:
        imported = _imported(data, {})
        if imported is None:
            # Sizes come from values: give the small integer inputs at import.
            small = {n: x for n, x in given.items() if x.size <= 64 and (x.dtype.kind in "iub" or x.size <= 8)}
            kind = "baked"
            imported = import_onnx(data, known=small)
        by_onnx = {o: n for n, o in imported.inputs.items()}
        feed = {by_onnx[n]: x for n, x in given.items() if n in by_onnx}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = run_program(imported.program, feed)
    except TilewrightError as error:
        if error.code in ("F005", "F006", "F003"):
            return Outcome("refused", f"[{error.code}] {error.message}")
        return Outcome("crashed", f"{error}")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, AssertionError, RecursionError):
        return Outcome("crashed", traceback.format_exc(limit=-4))
    return compare(case, got, expected) or Outcome(kind)


def _imported(data: bytes, known: dict[str, Any]) -> Any:
    try:
        return import_onnx(data, known=known)
    except TilewrightError as error:
        if error.code == "F005" and ("must be" in error.message or "run time" in error.message or "bounds" in error.message):
            return None
        raise


def compare(case: Any, got: list[Any], expected: list[Any]) -> Outcome | None:
    """None where the results agree within the case's own tolerances."""
    for k, (a, b) in enumerate(zip(got, expected, strict=False)):
        b = np.asarray(b)
        a = np.asarray(a)
        if a.shape != b.shape:
            return Outcome("wrong", f"output {k}: shape {a.shape}, expected {b.shape}")
        with np.errstate(all="ignore"):
            a = a.astype(b.dtype)
        if b.dtype.kind in "biu":
            if not np.array_equal(a, b):
                return Outcome("wrong", f"output {k}: {np.argwhere(a != b)[:3].tolist()} differ, {a.reshape(-1)[:6]} {b.reshape(-1)[:6]}")
            continue
        wide, ref = a.astype(np.float64), b.astype(np.float64)
        if not np.allclose(wide, ref, rtol=case.rtol, atol=max(case.atol, 1e-6), equal_nan=True):
            worst = np.nanmax(np.abs(wide - ref))
            return Outcome("wrong", f"output {k}: off by {worst:.3g} of {np.nanmax(np.abs(ref)):.3g} ({b.dtype})")
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a test's name")
    parser.add_argument("--expanded", action="store_true", help="the tests of expanded functions instead")
    parser.add_argument("--list", action="store_true", help="one line per test that is not passed")
    options = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    start = time.monotonic()
    for case in cases(options.only, options.expanded):
        outcome = outcome_of(case)
        counts[outcome.kind] += 1
        if outcome.kind == "refused":
            reasons[outcome.detail] += 1
        if outcome.kind in ("wrong", "crashed") or (options.list and outcome.kind == "refused"):
            print(f"{outcome.kind}: {case.name}: {outcome.detail}", flush=True)
    total = sum(counts.values())
    good = counts["passed"] + counts["baked"]
    for reason, count in reasons.most_common():
        print(f"refused {count}: {reason}")
    print(
        f"{total} tests: {good} passed ({100 * good / max(total, 1):.1f} %, {counts['baked']} of them with shape inputs "
        f"given at import), {counts['refused']} refused, {counts['wrong']} wrong, {counts['crashed']} crashed, "
        f"{time.monotonic() - start:.0f} s"
    )
    return 1 if counts["wrong"] or counts["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
