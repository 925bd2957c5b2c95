"""The part `files`: models that ship as ONNX files inside other projects' wheels.

In: the wheels (`make build/wheels/.stamp`). Out: per model, whether the compiled results agree with
onnxruntime and with the float64 meaning of the program, and how many externs it calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.tools.doors.judge import counted, difference, figure, named
from tilewright.tools.wheels import EVERY_MODEL, model_path

__all__ = ["cases", "compare", "figures", "inputs_of", "page", "trouble"]

_SIZES = {"N": 1, "H": 160, "W": 160}
_NEAR = 1e-3  # of the largest element: the reference and onnxruntime mean the same


def inputs_of(name: str, seed: int = 0) -> dict[str, Any]:
    """Made-up inputs of a model, by the names in its file."""
    stream = np.random.default_rng(seed)
    model = EVERY_MODEL[name]
    shape = tuple(_SIZES[d] if isinstance(d, str) else d for d in model.shape)
    if model.content == "bytes":
        return {model.input_name: stream.integers(0, 257, shape).astype(np.int32)}
    scale = {"pixels": 100.0, "sound": 0.1}.get(model.content, 1.0)
    x = (stream.standard_normal(shape) * scale).astype(np.float32)
    given: dict[str, Any] = {model.input_name: x}
    for more, (size, dtype) in model.more.items():
        if size:
            given[more] = (stream.standard_normal(size) * scale).astype(dtype)
        else:
            given[more] = np.array(16000, dtype)
    return given


def compare(name: str) -> dict[str, Any]:
    """One model."""
    import onnxruntime

    import tilewright as tw
    from tilewright.ir.interpreter import run_program

    path, given = model_path(name), inputs_of(name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    want = session.run(None, given)
    loaded = tw.onnx.load(path)
    model = tw.compile(loaded, given, threads=1)
    left = {n: a for n, a in given.items() if n not in model.values}
    got = model.run(left)
    exact = run_program(model.program, left, precision="oracle")
    wrong = []
    for k, (x, y, e) in enumerate(zip(want, got, exact, strict=False)):
        top = float(np.abs(np.asarray(x, np.float64)).max(initial=0.0))
        far = float(np.abs(np.asarray(x, np.float64) - np.asarray(e, np.float64)).max(initial=0.0))
        if x.shape != e.shape or far > _NEAR * top:
            wrong.append(f"result {k}: the program is off onnxruntime by {far:.3g} of {top:.3g}")
        elif found := difference(np.asarray(y), x, np.asarray(e)):
            wrong.append(f"result {k} is {found}")
    calls = [s for s in model.latest.linked.artifact.steps if s.callback is not None]
    return {
        "outcome": "wrong" if wrong else "agree", "detail": "; ".join(wrong),
        "kernels": model.stats["kernels"], "externs": len(calls),
    }  # fmt: skip


def cases(k: int, n: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every n-th model from the k-th on."""
    out = []
    for name in list(EVERY_MODEL)[k::n]:
        try:
            row = compare(name)
        except Exception as error:  # noqa: BLE001 - a model that fails is a case, too
            row = {"outcome": "error", "detail": f"{type(error).__name__}: {error}"[:400]}
        out.append({"name": name, **row})
    return out


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Models that agree."""
    return {
        "files_agree": figure(
            counted(found, "agree"), "models", f"of {len(found)} ONNX files agree with onnxruntime"
        )
    }


def trouble(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must not be."""
    return named(found, "wrong", "error")


def page(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the models, as Markdown."""
    lines = ["| ONNX file | result | kernels | extern calls |", "|---|---|---:|---:|"]
    for c in found:
        lines.append(
            f"| {c['name']} | {c['outcome']} | {c.get('kernels', '')} | {c.get('externs', '')} |"
        )
    return [*lines, ""]
