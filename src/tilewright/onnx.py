"""The ONNX door: `load` a model, then run or compile it.

In: a path or bytes. Out: `OnnxModel`. Invariant: importing this module needs the extra `onnx`;
nothing of a model is executed or unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tilewright.errors import TargetError
from tilewright.ir.program import Program

__all__ = ["OnnxModel", "load"]


class OnnxModel:
    """An imported model: `program`, where its definitions come from (`origins`), and `run`."""

    def __init__(self, imported: Any, path: str) -> None:
        self.program: Program = imported.program
        self.origins: Mapping[str, str] = imported.origins
        self.opset: int = imported.opset
        self.warnings = imported.warnings
        self.assumptions = imported.assumptions
        self.path = path
        self._compiled: Any = None

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Results in order, with default schedules. Errors: R001 to R006."""
        if self._compiled is None:
            from tilewright.api import compile

            self._compiled = compile(self)
        results: list[Any] = self._compiled.run(inputs)
        return results


def load(
    model: Path | str | bytes,
    *,
    known: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> OnnxModel:
    """Import a model.

    known: values of inputs that shapes depend on; such inputs are no inputs any more. sizes: fixes
    symbolic dims now. Errors: F001 to F006; U002 where the extra is not installed.
    """
    try:
        from tilewright.frontend.onnx import import_onnx
    except ModuleNotFoundError as e:
        if e.name != "onnx":
            raise
        raise TargetError(
            "U002", "reading ONNX needs the package onnx", hint="pip install 'tilewright[onnx]'"
        ) from None
    source = str(model) if isinstance(model, Path) else model
    imported = import_onnx(source, known=known, sizes=sizes)
    return OnnxModel(imported, "" if isinstance(model, bytes) else str(model))
