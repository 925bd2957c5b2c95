"""ONNX's own node tests, compiled, or through the Program interpreter.

In: the node tests of the default domain that come with the package onnx. Out: per test `passed`,
`baked` (passed, imported for the values of shape inputs), `refused` (with the reason), `wrong` or
`crashed`. Every test in scope counts; none is skipped.
"""

from __future__ import annotations

import collections
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.errors import TilewrightError
from tilewright.frontend.onnx import ValueNeeded, import_onnx
from tilewright.frontend.onnx.proto import ELEMENT_TYPES
from tilewright.ir.interpreter import run_program
from tilewright.tools.doors.judge import counted, figure, named, share

__all__ = ["Outcome", "cases", "figures", "native_outcome", "node_cases", "outcome_of", "page"]
__all__ += ["trouble"]

_OTHER_KINDS = ("ImageDecoder", "OptionalHasElement", "OptionalGetElement", "SequenceMap")
_RANDOM = (
    "Bernoulli",
    "RandomNormal",
    "RandomUniform",
    "Multinomial",
    "Dropout",
    "RandomUniformLike",
)


@dataclass(frozen=True)
class Outcome:
    """kind: passed, baked (passed, imported for the values of shape inputs), refused, wrong,
    crashed.
    """

    kind: str
    detail: str = ""


def node_cases(part: str = "", expanded: bool = False) -> Iterator[Any]:
    """The node tests of the default domain, without what is out of scope (see `in_scope`)."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    for case in collected:
        if part in case.name and ("_expanded" in case.name) == expanded and in_scope(case):
            yield case


def in_scope(case: Any) -> bool:
    """No strings (and n-grams of them), sequences, optionals, training, image decoding, random
    numbers, 8-bit floats or types below 8 bits.
    """
    graph = case.model.graph
    for node in graph.node:
        if node.op_type in _OTHER_KINDS:
            return False
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in _RANDOM and not (
            node.op_type == "Dropout" and "training" not in case.name
        ):
            return False
    for v in [*graph.input, *graph.output]:
        if not v.type.HasField("tensor_type") or v.type.tensor_type.elem_type not in ELEMENT_TYPES:
            return False
    return True


def symbolic_model(model: Any) -> Any:
    """The model with every size of its first input replaced by a name of its own."""
    copy = type(model)()
    copy.CopyFrom(model)
    for i in copy.graph.input[:1]:
        for k, d in enumerate(i.type.tensor_type.shape.dim):
            d.dim_param = f"size{k}"
    return copy


_CRASHES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    AssertionError,
    RecursionError,
)


def outcome_of(case: Any, symbolic: bool = False) -> Outcome:
    """Import, interpret and compare one case; `symbolic`: with `symbolic_model`."""
    data = (symbolic_model(case.model) if symbolic else case.model).SerializeToString()
    names = [i.name for i in case.model.graph.input]
    inputs, expected = ([_array(x) for x in xs] for xs in case.data_sets[0])
    given = dict(zip(names, inputs, strict=False))
    kind = "passed"
    try:
        known: dict[str, Any] = {}
        while True:
            try:
                imported = import_onnx(data, known=known)
                break
            except (
                ValueNeeded
            ) as error:  # sizes depend on the values of inputs: give those, and only those
                if not error.inputs or set(error.inputs) <= set(known):
                    raise
                known.update((n, given[n]) for n in error.inputs)
                kind = "baked"
        by_onnx = {o: n for n, o in imported.inputs.items()}
        feed = {by_onnx[n]: x for n, x in given.items() if n in by_onnx}
        problem: Outcome | None = None
        for precision in ("oracle", "naive"):  # a tie of roundings in f32 may be none in f64
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = run_program(imported.program, feed, precision=precision)
            problem = compare(case, got, expected)
            if problem is None:
                return Outcome(kind)
    except TilewrightError as error:
        if error.code in ("F005", "F006", "F003", "R003", "R004"):
            return Outcome("refused", f"[{error.code}] {error.message}")
        return Outcome("crashed", f"{error}")
    except _CRASHES:
        return Outcome("crashed", traceback.format_exc(limit=-4))
    return problem or Outcome(kind)


def native_outcome(case: Any, symbolic: bool = False) -> Outcome:
    """Load, compile, run and compare one case."""
    import tilewright as tw

    data = (symbolic_model(case.model) if symbolic else case.model).SerializeToString()
    inputs, expected = ([_array(x) for x in xs] for xs in case.data_sets[0])
    given = dict(zip((i.name for i in case.model.graph.input), inputs, strict=False))
    try:
        loaded = tw.onnx.load(data)
        got = loaded.run(given)
    except TilewrightError as error:
        if error.code in ("F005", "F006", "F003", "R003", "R004"):
            return Outcome("refused", f"[{error.code}] {error.message}")
        return Outcome("crashed", f"{error}")
    except _CRASHES:
        return Outcome("crashed", traceback.format_exc(limit=-4))
    return compare(case, got, expected) or Outcome("baked" if loaded.is_specialised else "passed")


def _array(x: Any) -> Any:
    from onnx import TensorProto, numpy_helper

    return numpy_helper.to_array(x) if isinstance(x, TensorProto) else np.asarray(x)


def compare(case: Any, got: list[Any], expected: list[Any]) -> Outcome | None:
    """None where the results agree within the case's own tolerances."""
    for k, (a, b) in enumerate(zip(got, expected, strict=False)):
        if a.shape != b.shape:
            return Outcome("wrong", f"output {k}: shape {a.shape}, expected {b.shape}")
        with np.errstate(all="ignore"):
            a = a.astype(b.dtype)
        if b.dtype.kind in "biu":
            if not np.array_equal(a, b):
                return Outcome(
                    "wrong",
                    f"output {k}: {np.argwhere(a != b)[:3].tolist()} differ, "
                    f"{a.reshape(-1)[:6]} {b.reshape(-1)[:6]}",
                )
            continue
        wide, ref = a.astype(np.float64), b.astype(np.float64)
        rtol, atol = case.rtol, max(case.atol, 1e-6)
        if (
            b.dtype.itemsize == 2
        ):  # half precision: two units of the last place of the largest element
            unit = 2.0**-10 if b.dtype == np.float16 else 2.0**-7
            rtol, atol = (
                max(rtol, 2 * unit),
                max(atol, unit * float(np.max(np.abs(ref[np.isfinite(ref)]), initial=0))),
            )
        if not np.allclose(wide, ref, rtol=rtol, atol=atol, equal_nan=True):
            worst = np.nanmax(np.abs(wide - ref))
            return Outcome(
                "wrong",
                f"output {k}: off by {worst:.3g} of {np.nanmax(np.abs(ref)):.3g} ({b.dtype})",
            )
    return None


def cases(k: int, n: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every n-th test from the k-th on, compiled and run."""
    out = []
    for case in list(node_cases())[k::n]:
        outcome = native_outcome(case)
        out.append({"name": case.name, "outcome": outcome.kind, "detail": outcome.detail})
    return out


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Passed, wrong and refused tests."""
    good = counted(found, "passed", "baked")
    return {
        "onnx_node_share": share(good, len(found), "ONNX node tests passed, compiled"),
        "onnx_node_wrong": figure(
            counted(found, "wrong", "crashed"), "tests", "another result, or an untyped error"
        ),
        "onnx_node_refused": figure(
            counted(found, "refused"), "tests", "refused at import with a reason"
        ),
    }


def trouble(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must not be."""
    return named(found, "wrong", "crashed")


def page(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The refused tests by reason, as Markdown."""
    reasons = collections.Counter(c["detail"] for c in found if c["outcome"] == "refused")
    lines = ["ONNX node tests that are refused, and why:", ""]
    lines += [f"* {count}: {reason}" for reason, count in reasons.most_common()]
    return [*lines, ""]
