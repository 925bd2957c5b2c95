"""The standard Backend interface of the `onnx` package.

In: ModelProtos, NodeProtos, arrays by position. Out: what `onnx.backend.base` asks for: `prepare`,
`run_model`, `run_node`, `supports_device`, `is_compatible`. Invariant: results come from the
compiled model; nothing is handed to another runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep, namedtupledict

from tilewright.errors import UserError
from tilewright.onnx import OnnxModel, load

__all__ = [
    "Prepared",
    "TilewrightBackend",
    "is_compatible",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]


class Prepared(BackendRep):  # type: ignore[misc]
    """A model that is ready to run."""

    def __init__(self, model: OnnxModel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.model, self.inputs, self.outputs = model, tuple(inputs), tuple(outputs)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Results by position and by name, for arrays in order or by name. Errors: R001 to R007."""
        if not isinstance(inputs, dict):
            arrays = inputs if isinstance(inputs, list | tuple) else [inputs]
            if len(arrays) > len(self.inputs):
                message = f"{len(arrays)} arrays given, the model takes {len(self.inputs)}"
                raise UserError("R001", message, hint=f"the inputs are {', '.join(self.inputs)}")
            inputs = dict(zip(self.inputs, arrays, strict=False))
        results = self.model.run(inputs)
        named: Any = namedtupledict("Outputs", self.outputs)
        found: tuple[Any, ...] = named(*results)
        return found


class TilewrightBackend(Backend):  # type: ignore[misc]
    """Models and single nodes on the CPU."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Can the model be imported, and is the device there?"""
        try:
            load(model.SerializeToString())
        except UserError:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Import and check a ModelProto. Errors: F001 to F006; U003 for a device that is not there;
        the checker's for a model that is not valid.
        """
        if not cls.supports_device(device):
            raise UserError("U003", f"there is no device {device!r}", hint="the device is CPU")
        super().prepare(model, device, **kwargs)
        held = {t.name for t in model.graph.initializer}
        inputs = [i.name for i in model.graph.input if i.name not in held]
        outputs = [o.name for o in model.graph.output]
        return Prepared(load(model.SerializeToString()), inputs, outputs)

    @classmethod
    def run_model(
        cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """`prepare`, then run once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: Any,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """One node on arrays in the order of its inputs, omitted ones left out.

        `opset_version` among the keywords: the newest one of the importer by default.
        """
        from onnx import helper

        from tilewright.frontend.onnx.proto import NEWEST_OPSET

        names = [n for n in dict.fromkeys(node.input) if n]
        arrays = [inputs[n] for n in names] if isinstance(inputs, dict) else list(inputs)
        arrays = [np.asarray(a) for a in arrays]
        given = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in zip(names, arrays, strict=True)
        ]
        wanted = [helper.make_empty_tensor_value_info(n) for n in node.output if n]
        version = min(kwargs.get("opset_version", onnx.defs.onnx_opset_version()), NEWEST_OPSET)
        model = helper.make_model(
            helper.make_graph([node], "node", given, wanted),
            opset_imports=[helper.make_opsetid(node.domain, version)],
        )
        outputs = [n for n in node.output if n]
        prepared = Prepared(load(model.SerializeToString()), names, outputs)
        return prepared.run(arrays)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Only the CPU, which may be numbered: CPU:0."""
        return device.split(":")[0] == "CPU"


is_compatible = TilewrightBackend.is_compatible
prepare = TilewrightBackend.prepare
run_model = TilewrightBackend.run_model
run_node = TilewrightBackend.run_node
supports_device = TilewrightBackend.supports_device
