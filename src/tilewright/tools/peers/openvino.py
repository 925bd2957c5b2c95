"""OpenVINO: inputs and outputs bound to fixed buffers, held to the row's own precision.

In: a workload with a model file or ONNX nodes. Out: `Entry`s around an inference request.
Invariant: one stream, latency hint, exactly `threads` threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.tools.peers import BoundCall, Entry, Unavailable, package_version
from tilewright.tools.peers._onnx import onnx_models
from tilewright.tools.suite import aligned_copy, aligned_empty, output_specs, peer_inputs

if TYPE_CHECKING:
    import numpy as np

    from tilewright.tools.suite import Workload

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["Adapter"]


class Adapter:
    """The peer `openvino`."""

    def __init__(self) -> None:
        self._core: Any = None

    def available(self) -> str:
        return package_version("openvino")

    def prepare(self, workload: Workload, threads: int, copies: int) -> list[Entry]:
        import openvino as ov

        if workload.dtype == "f64":
            raise Unavailable("openvino computes f64 in f32")
        if self._core is None:
            self._core = ov.Core()
        # Asked for f16 where the CPU multiplies none, it rounds to bf16: a tenth of the precision.
        can = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        wanted = {"bf16": ("BF16", "bf16"), "f16": ("FP16", "f16")}.get(workload.dtype)
        precision = wanted[1] if wanted is not None and wanted[0] in can else "f32"
        config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        }
        given, constants = peer_inputs(workload)
        entries, refused = [], None
        for source in onnx_models(workload, constants):
            try:
                data: Any = str(source) if isinstance(source, Path) else source
                model = self._core.read_model(data)
                model.reshape({name: list(array.shape) for name, array in given.items()})
                compiled = self._core.compile_model(model, "CPU", config)
                calls = [self._bind(compiled, workload, given) for _ in range(copies)]
                kind = "fresh" if workload.fresh else "bound"
                settings = f"{threads} threads, latency hint, {precision}"
                entries.append(Entry(calls, kind, settings, keep=compiled))
            except Exception as error:  # noqa: BLE001  another form may be taken
                refused = error
        if not entries and refused is not None:
            raise RuntimeError(_first_line(refused)) from None
        return entries

    @staticmethod
    def _bind(compiled: Any, workload: Workload, given: dict[str, Array]) -> BoundCall:
        request = compiled.create_infer_request()
        inputs = {name: aligned_copy(array) for name, array in given.items()}
        for name, buffer in inputs.items():
            request.set_tensor(name, _tensor(buffer))
        if workload.fresh:
            last: list[Any] = [None]

            def call() -> None:
                # Results live in memory of the request, so a new array means one copy.
                last[0] = list(request.infer(share_inputs=True, share_outputs=False).values())

            kinds = [] if workload.model else [dtype for _, dtype in output_specs(workload)]
            return BoundCall(call, inputs, lambda: _declared(last[0], kinds))
        if workload.model:
            request.infer()
            shapes = [(o.data.shape, o.data.dtype) for o in request.output_tensors]
        else:
            shapes = output_specs(workload)
        outputs = [aligned_empty(shape, dtype) for shape, dtype in shapes]
        for port, buffer in zip(compiled.outputs, outputs, strict=True):
            request.set_tensor(port, _tensor(buffer))

        def bound() -> None:
            request.start_async()
            request.wait()

        return BoundCall(bound, inputs, lambda: outputs)


def _tensor(buffer: Array) -> Any:
    """A tensor over the buffer's own memory; NumPy has no bfloat16, so that one is named."""
    import numpy as np
    import openvino as ov

    if buffer.dtype.name == "bfloat16":
        return ov.Tensor(buffer.view(np.uint16), ov.Shape(buffer.shape), ov.Type.bf16)
    return ov.Tensor(buffer, shared_memory=True)


def _declared(arrays: list[Array], kinds: list[str]) -> list[Array]:
    """bfloat16 comes back as 16-bit words of another name."""
    import ml_dtypes
    import numpy as np

    names = [*kinds, *[""] * (len(arrays) - len(kinds))]
    return [
        array.view(np.dtype(ml_dtypes.bfloat16)) if kind == "bfloat16" else array
        for array, kind in zip(arrays, names, strict=True)
    ]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
