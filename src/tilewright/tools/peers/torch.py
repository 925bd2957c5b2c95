"""PyTorch eager: the fastest of the row's forms, into a preallocated tensor where it takes one.

In: a workload with a `torch` form, or a model of our own suite. Out: `Entry`s on fixed tensors.
Invariant: inference mode, exactly `threads` threads; `NAME.out` kernels where the outermost call
has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilewright.tools.peers import BoundCall, Entry, Unavailable, package_version
from tilewright.tools.peers._forms import Form, fill_forms, with_out
from tilewright.tools.peers._models import TorchOps
from tilewright.tools.suite import aligned_copy, aligned_empty, output_specs, peer_inputs
from tilewright.tools.zoo import ZOO

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from tilewright.tools.suite import Workload

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["Adapter", "libraries", "no_form", "several", "tensor_of", "to_array"]


def libraries() -> dict[str, Any]:
    """The names that a `torch` form may use."""
    import torch

    return {"torch": torch, "F": torch.nn.functional, "aten": torch.ops.aten}


def tensor_of(array: Array) -> Any:
    """A tensor over the array's own memory."""
    import numpy as np
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_array(tensor: Any) -> Array:
    """The values of a tensor."""
    import ml_dtypes
    import numpy as np
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        array: Array = tensor.view(torch.int16).numpy().view(np.dtype(ml_dtypes.bfloat16))
        return array
    return np.asarray(tensor.numpy())


def several(value: Any) -> list[Array]:
    """One tensor or a tuple of them, as arrays."""
    values = list(value) if isinstance(value, tuple | list) else [value]
    return [to_array(tensor) for tensor in values]


class Adapter:
    """The peer `torch`."""

    def available(self) -> str:
        return package_version("torch")

    def prepare(self, workload: Workload, threads: int, copies: int) -> list[Entry]:
        import torch

        if not workload.torch and workload.model not in ZOO:
            raise Unavailable(no_form(workload, "torch"))
        torch.set_num_threads(threads)
        if not torch.is_inference_mode_enabled():
            # Entered once and for good: this process does nothing else with torch.
            torch.inference_mode(True).__enter__()
        given, constants = peer_inputs(workload)
        if workload.model:
            ops = TorchOps()
            calls = [_model(workload, ops, given) for _ in range(copies)]
            return [Entry(calls, "fresh", f"{threads} threads, eager, inference mode")]
        entries = []
        for source in fill_forms(workload, workload.torch):
            made = [_bind(workload, source, given, constants) for _ in range(copies)]
            settings = f"{threads} threads, eager, inference mode"
            entries.append(Entry([call for _, call in made], made[0][0], settings))
        return entries


def _model(workload: Workload, ops: TorchOps, given: Mapping[str, Array]) -> BoundCall:
    inputs = {name: aligned_copy(array) for name, array in given.items()}
    tensors = {name: tensor_of(array) for name, array in inputs.items()}
    build = ZOO[workload.model].build
    last: list[Any] = [None]

    def call() -> None:
        last[0] = build(ops, tensors)

    call()
    return BoundCall(call, inputs, lambda: several(last[0]))


def no_form(workload: Workload, what: str) -> str:
    """Why a peer that reads no ONNX files is not in a row."""
    if workload.model:
        return f"{what} reads no ONNX files"
    return f"the row has no {what} form"


def _bind(
    workload: Workload, source: str, given: Mapping[str, Array], constants: Mapping[str, Array]
) -> tuple[str, BoundCall]:
    import torch

    inputs = {name: aligned_copy(array) for name, array in given.items()}
    buffers = [aligned_empty(*spec) for spec in output_specs(workload)]
    outs = tuple(tensor_of(buffer) for buffer in buffers)
    tensors = {name: tensor_of(array) for name, array in {**constants, **inputs}.items()}
    form = Form(source, libraries(), {**tensors, "out": outs[0], "outs": outs})
    if not workload.fresh:
        target = "out" if len(outs) == 1 else "outs"
        expression = form.expression if form.mentions(target) else with_out(form, target)
        if expression is not None:
            bound = form.function((), expression)
            places = [out.data_ptr() for out in outs]
            try:
                value = bound()
                got = value if isinstance(value, tuple | list) else [value]
                if [tensor.data_ptr() for tensor in got] == places:
                    return "bound", BoundCall(bound, inputs, lambda: buffers)
            except (TypeError, RuntimeError):  # this function takes no `out`
                pass
    elif form.mentions("out"):
        form.namespace.update(outs=None)
    fresh = form.function(())
    last: list[Any] = [None]
    if form.mentions("out"):

        def call() -> None:
            form.namespace["out"] = torch.empty_like(outs[0])
            last[0] = fresh()

    else:

        def call() -> None:
            last[0] = fresh()

    return "fresh", BoundCall(call, inputs, lambda: several(last[0]))
