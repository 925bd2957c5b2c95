"""The ONNX door: `load` a model, then run or compile it.

In: a path or bytes. Out: `OnnxModel`. Invariant: importing this module needs the extra `onnx`;
nothing of a model is executed or unpickled.

Most models become one Program for all sizes. Where a size or a branch depends on values (the shape
of a Reshape that is an input, say), the model is imported once for each set of input shapes and of
those values: a value that the graph computes is read by a model of its own, which runs first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import TargetError, UserError
from tilewright.ir.program import Program

__all__ = ["OnnxModel", "Specialised", "backend", "load"]

_MOST_VALUES = 4096  # elements of a value that the model is imported for
_KEPT = 64  # imports that are kept
_Key = tuple[Any, ...]


@dataclass(frozen=True)
class Specialised:
    """An imported model for given shapes and values, and the values of inputs it was made for."""

    program: Program
    origins: Mapping[str, str]
    values: Mapping[str, Any]


@dataclass
class _Read:
    """A value that must be known first: an input, or what `model` gives."""

    name: str
    model: Any = None
    inputs: Mapping[str, str] | None = None  # of `model`: its names -> ONNX names


@dataclass
class _Ready:
    """The compiled model for one set of shapes and values."""

    model: Any
    inputs: Mapping[str, str]  # its names -> ONNX names
    imported: Any


def __getattr__(name: str) -> Any:
    """`backend`, the Backend interface of the package onnx; imported when it is asked for."""
    if name != "backend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("tilewright.onnx.backend")


class OnnxModel:
    """An imported model: `program`, where its definitions come from (`origins`), and `run`."""

    def __init__(
        self,
        imported: Any,
        path: str,
        source: Any = None,
        error: UserError | None = None,
        known: Mapping[str, Any] | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self._imported, self._source, self._error = imported, source, error
        self._known, self._sizes = dict(known or {}), dict(sizes or {})
        self.origins: Mapping[str, str] = getattr(imported, "origins", {})
        self.opset: int = getattr(imported, "opset", 0)
        self.warnings = getattr(imported, "warnings", ())
        self.assumptions = getattr(imported, "assumptions", ())
        self.path = path
        self._compiled: Any = None
        self._made: OrderedDict[_Key, _Read | _Ready] = OrderedDict()
        self._declared: dict[str, Any] | None = None

    @property
    def program(self) -> Program:
        """The Program for all sizes. Errors: F005 where there is none: `is_specialised`."""
        if self._error is not None:
            raise self._error
        program: Program = self._imported.program
        return program

    @property
    def is_specialised(self) -> bool:
        """Is the model imported for each set of shapes and values that it runs with?"""
        return self._error is not None

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Results in order, with default schedules, for inputs by the names of the file (or of the
        Program). Errors: R001 to R007, F005, F006.
        """
        if self._error is not None:
            return self._run_specialised(inputs)
        if self._compiled is None:
            from tilewright.api import compile

            self._compiled = compile(self)
        if isinstance(inputs, Mapping):
            shown = {o: n for n, o in self._imported.inputs.items()}
            inputs = {shown.get(n, n): a for n, a in inputs.items()}
        results: list[Any] = self._compiled.run(inputs)
        return results

    # ---- models that depend on values
    def specialise(
        self, inputs: Mapping[str, Any] | None, sizes: Mapping[str, int] | None = None
    ) -> Specialised:
        """The Program for the shapes and values of `inputs`, or for `sizes` of its dims.

        Errors: as `load`; R001 for a missing input.
        """
        if not inputs:
            found = _import(self._source, self._known, {**self._sizes, **(sizes or {})})
            return Specialised(found.program, found.origins, {})
        ready, values = self._specialised(self._by_onnx_name(inputs), compiled=False)
        program, names = ready.imported.program, set(ready.inputs.values())
        baked = {n: v for n, v in values.items() if n in self._inputs() and n not in names}
        return Specialised(program, ready.imported.origins, baked)

    def _run_specialised(self, inputs: Mapping[str, Any]) -> list[Any]:
        given = self._by_onnx_name(inputs)
        ready, _ = self._specialised(given)
        results: list[Any] = ready.model.run({n: given[o] for n, o in ready.inputs.items()})
        return results

    def _inputs(self) -> dict[str, Any]:
        """Inputs of the file, by ONNX name."""
        if self._declared is None:
            from tilewright.frontend.onnx.proto import load_model

            graph = load_model(self._source)[0].graph
            held = {t.name for t in graph.initializer}
            self._declared = {i.name: i for i in graph.input if i.name not in held}
        return self._declared

    def _by_onnx_name(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays under the names of the file. Errors: R001."""
        from tilewright.frontend.builder import identifier

        if not isinstance(inputs, Mapping):
            raise UserError("R001", "run takes a dictionary of arrays by name")
        names = [n for n in self._inputs() if n not in self._known]
        shown = {identifier(n, "x"): n for n in names}
        given: dict[str, Any] = {}
        for name, value in inputs.items():
            onnx_name = name if name in names else shown.get(name)
            if onnx_name is None:
                hint = f"the inputs are {', '.join(names) or 'none'}"
                raise UserError("R001", f"the model has no input {name!r}", hint=hint)
            given[onnx_name] = np.asarray(value)
        missing = [n for n in names if n not in given]
        if missing:
            raise UserError(
                "R001", f"input {missing[0]!r} is missing",
                hint=f"give an array for each of {', '.join(names)}",
            )  # fmt: skip
        return given

    def _specialised(
        self, given: dict[str, Any], compiled: bool = True
    ) -> tuple[_Ready, dict[str, Any]]:
        shapes = {n: a.shape for n, a in given.items()}
        known = dict(self._known)
        while True:
            values = tuple(
                (n, v.shape, v.tobytes()) for n, v in known.items() if n not in self._known
            )
            key = (tuple(shapes.items()), values)
            found = self._made.get(key)
            if found is None:
                found = self._made[key] = self._make(given, shapes, known)
                while len(self._made) > _KEPT:
                    self._made.popitem(last=False)
            self._made.move_to_end(key)
            if isinstance(found, _Ready):
                if found.model is None and compiled:
                    from tilewright.api import compile

                    found.model = compile(found.imported.program)
                return found, known
            if found.model is None:
                known[found.name] = given[found.name]
            else:
                assert found.inputs is not None  # it comes with the model
                (value,) = found.model.run({n: given[o] for n, o in found.inputs.items()})
                known[found.name] = np.asarray(value)

    def _make(
        self, given: Mapping[str, Any], shapes: Mapping[str, Any], known: Mapping[str, Any]
    ) -> _Read | _Ready:
        """The next value to read, or the model. Errors: those of the import."""
        from tilewright.frontend.onnx import ValueNeeded

        try:
            imported = _import(self._source, known, self._sizes, shapes)
            return _Ready(None, imported.inputs, imported)
        except ValueNeeded as error:
            name = error.value
            if not name:  # inside a block: what it is made of, then
                rest = [n for n in error.inputs if n in given and n not in known]
                if not rest or given[rest[0]].size > _MOST_VALUES:
                    raise
                name = rest[0]
            if name in known:
                raise
            if name in given:
                if given[name].size > _MOST_VALUES:
                    raise
                return _Read(name)
            from tilewright.api import compile

            part = _import(self._source, known, self._sizes, shapes, [name])
            (t,) = (part.program.tensors[n] for n in part.program.results)
            if any(e.op == "const" and e.attr > _MOST_VALUES for e in t.shape):
                raise
            return _Read(name, compile(part.program), part.inputs)


def _import(
    source: Any,
    known: Mapping[str, Any],
    sizes: Mapping[str, int],
    shapes: Mapping[str, Any] | None = None,
    outputs: list[str] | None = None,
) -> Any:
    from tilewright.frontend.onnx import import_onnx

    return import_onnx(source, known=known, sizes=sizes, shapes=shapes, outputs=outputs)


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
        from tilewright.frontend.onnx import ValueNeeded
    except ModuleNotFoundError as e:
        if e.name != "onnx":
            raise
        raise TargetError(
            "U002", "reading ONNX needs the package onnx", hint="pip install 'tilewright[onnx]'"
        ) from None
    source = str(model) if isinstance(model, Path) else model
    path = "" if isinstance(model, bytes) else str(model)
    try:
        return OnnxModel(_import(source, known or {}, sizes or {}), path)
    except ValueNeeded as error:
        if not (error.inputs or error.dims or error.value):
            raise
        return OnnxModel(None, path, source, error, known, sizes)
