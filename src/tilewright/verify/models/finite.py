"""Inputs and weights of a random ONNX model for which its values are finite.

In: a `Model`. Out: the model with other values of its float inputs and float initializers, and how
they were found. Invariant: nothing else of the file changes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tilewright.errors import TilewrightError
from tilewright.frontend.onnx import import_onnx
from tilewright.verify.finite import made_finite
from tilewright.verify.gradients import first_fault
from tilewright.verify.models.graph import Model

__all__ = ["finite_model"]

Array = np.ndarray[Any, np.dtype[Any]]


def finite_model(model: Model) -> tuple[Model, str]:
    """The model with inputs and weights as `made_finite` finds them, and what that says; a model
    that the importer or the oracle refuses stays as it is ("kept"). What the importer computes of
    weights alone is looked into where it is not finite.
    """
    try:
        imported = import_onnx(model.data)
        inputs = {n: model.inputs[o] for n, o in imported.inputs.items()}
        folded = [a for a in imported.program.values.values() if a.dtype.kind == "f"]
        if all(np.isfinite(a).all() for a in folded):
            if first_fault(imported.program, inputs) is None:
                return model, "sampled"
        for opened, weights in (_opened(model), (model.data, {})):
            try:
                imported = import_onnx(opened)
            except TilewrightError:  # some operator has to know a weight
                continue
            given = {**model.inputs, **weights}
            inputs = {n: given[o] for n, o in imported.inputs.items()}
            found, how = made_finite(imported.program, inputs)
            if how == "sampled":
                return model, how
            if how == "searched":
                return _with(model, {o: found[n] for n, o in imported.inputs.items()}), how
    except TilewrightError:
        pass
    return model, "kept"


def _opened(model: Model) -> tuple[bytes, dict[str, Array]]:
    """The file with its float initializers as inputs, and their values."""
    proto = onnx.load_model_from_string(model.data)
    graph = proto.graph
    held = [(t, numpy_helper.to_array(t)) for t in graph.initializer]
    weights = {t.name: a for t, a in held if a.dtype.kind == "f"}
    kept = [t for t, a in held if t.name not in weights]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    named = {i.name for i in graph.input}
    for name, a in weights.items():
        if name not in named:
            element = helper.np_dtype_to_tensor_dtype(a.dtype)
            graph.input.append(helper.make_tensor_value_info(name, element, list(a.shape)))
    return proto.SerializeToString(), weights


def _with(model: Model, values: dict[str, Array]) -> Model:
    """The model with other values of some inputs and initializers."""
    proto = onnx.load_model_from_string(model.data)
    for t in proto.graph.initializer:
        if t.name in values:
            t.CopyFrom(numpy_helper.from_array(values[t.name], t.name))
    inputs = {n: values.get(n, a) for n, a in model.inputs.items()}
    return replace(model, data=proto.SerializeToString(), inputs=inputs)
