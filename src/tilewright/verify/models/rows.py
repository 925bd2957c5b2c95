"""The table of operator specifications for random models.

In: an opset. Out: `specs`: operator name -> a function that adds one such node to a `Graph`.
Invariant: a specification adds nodes through `Graph.add`, which asks the operator's own shape rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import onnx

from tilewright.verify.models.graph import OLD_OPSET, OPSETS, Spec

__all__ = ["all_rows", "row", "specs"]

# Operator -> (specification, first opset that has the form it writes, last opset).
_ROWS: dict[str, tuple[Spec, int, int]] = {}


def row(*names: str, old: bool = False) -> Callable[[Spec], Spec]:
    """Decorator: enter a specification under one or several operator names. old: the operator is
    gone from newer opsets.
    """

    def enter(f: Spec) -> Spec:
        for name in names:
            first = onnx.defs.get_schema(name, OPSETS[-1], "") if not old else None
            begun = 1
            if first is not None:
                begun = min(s.since_version for s in _history(name))
            _ROWS[name] = (f, begun, OLD_OPSET if old else 1 << 30)
        return f

    return enter


@lru_cache(maxsize=1)
def _schemas() -> dict[str, list[onnx.defs.OpSchema]]:
    out: dict[str, list[onnx.defs.OpSchema]] = {}
    for s in onnx.defs.get_all_schemas_with_history():
        if s.domain == "":
            out.setdefault(s.name, []).append(s)
    return out


def _history(name: str) -> list[onnx.defs.OpSchema]:
    return _schemas()[name]


# What keeps its form from opset 9 on.
_ALWAYS = {"Relu", "Add", "Mul", "Sub", "Tanh", "Sigmoid", "MatMul", "Transpose", "Concat"}


def _load() -> None:
    from tilewright.verify.models import (  # noqa: F401
        rows_blocks,
        rows_moves,
        rows_pointwise,
        rows_sums,
        rows_windows,
    )


@lru_cache(maxsize=16)
def specs(opset: int) -> dict[str, Spec]:
    """The specifications that are valid at an opset."""
    _load()
    out = {}
    for name, (f, begun, last) in _ROWS.items():
        if opset == OLD_OPSET:
            if last == OLD_OPSET or name in _ALWAYS:
                out[name] = f
        elif begun <= opset <= last:
            out[name] = f
    return out


def all_rows() -> set[str]:
    """Every operator that has a specification."""
    _load()
    return set(_ROWS)
