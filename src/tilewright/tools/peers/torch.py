"""torch, eager: one library call per row, into a given output where torch's interface allows it.

In: a workload of a single node of the table below. Out: an `Entry`. Invariant: inference mode,
exactly `threads` threads; a workload outside the table is skipped with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

from tilewright.tools.peers import BoundCall, Entry, Unavailable
from tilewright.tools.suite import aligned_empty, input_specs, make_inputs, output_specs

if TYPE_CHECKING:
    from tilewright.tools.suite import Workload

__all__ = ["Adapter"]


def _bound(node: dict[str, Any], inputs: list[Any], out: Any) -> Callable[[], object] | None:
    """The call that writes into `out`, or None where torch has no such form."""
    import torch

    aten = torch.ops.aten
    attributes = node.get("attributes", {})
    match node["op"]:
        case "MatMul":
            return lambda: torch.matmul(inputs[0], inputs[1], out=out)
        case "Softmax":
            dim = attributes.get("axis", -1)
            return lambda: aten._softmax.out(inputs[0], dim, False, out=out)
        case "LayerNormalization":
            size = list(inputs[1].shape)
            rows = inputs[0].numel() // inputs[1].numel()
            mean, scale = torch.empty(rows, 1), torch.empty(rows, 1)
            epsilon = attributes.get("epsilon", 1e-5)
            return lambda: aten.native_layer_norm.out(
                inputs[0], size, inputs[1], inputs[2], epsilon, out0=out, out1=mean, out2=scale
            )
    return None


def _fresh(node: dict[str, Any], inputs: list[Any]) -> Callable[[], Any] | None:
    """The call that returns a new tensor."""
    import torch

    attributes = node.get("attributes", {})
    if node["op"] == "Conv":
        pads = attributes.get("pads", [0, 0, 0, 0])
        bias = inputs[2] if len(inputs) > 2 else None
        return lambda: torch.conv2d(
            inputs[0],
            inputs[1],
            bias,
            attributes.get("strides", [1, 1]),
            pads[: len(pads) // 2],
            attributes.get("dilations", [1, 1]),
            attributes.get("group", 1),
        )
    return None


class Adapter:
    """The peer `torch`."""

    def available(self) -> str:
        try:
            return metadata.version("torch")
        except metadata.PackageNotFoundError:
            raise Unavailable("not installed: pip install 'tilewright[peers]'") from None

    def prepare(self, workload: Workload, threads: int, copies: int) -> Entry:
        import torch

        if workload.model:
            raise Unavailable("torch reads no ONNX files")
        if len(workload.onnx) != 1:
            raise Unavailable("the row is not a single torch call")
        torch.set_num_threads(threads)
        node = dict(workload.onnx[0])
        calls = [self._bind(workload, node) for _ in range(copies)]
        kind = "bound" if calls[0].kind == "bound" else "fresh"
        settings = f"{threads} threads, eager, inference mode"
        return Entry([made.call for made in calls], kind, settings)

    @staticmethod
    def _bind(workload: Workload, node: dict[str, Any]) -> _Made:
        import torch

        inputs = make_inputs(workload, input_specs(workload), seed=1)
        tensors = [torch.from_numpy(inputs[name]) for name in node["inputs"]]
        free = {name: a for name, a in inputs.items() if name not in workload.constants}
        ((shape, dtype),) = output_specs(workload)
        buffer = aligned_empty(shape, dtype)
        bound = _bound(node, tensors, torch.from_numpy(buffer))
        if bound is not None:
            # Entered once and for good: this process does nothing else with torch.
            torch.inference_mode(True).__enter__()
            return _Made("bound", BoundCall(bound, free, lambda: [buffer]))
        fresh = _fresh(node, tensors)
        if fresh is None:
            raise Unavailable(f"no torch form of {node['op']} in this adapter")
        torch.inference_mode(True).__enter__()
        last: list[Any] = [None]

        def call() -> None:
            last[0] = fresh()

        return _Made("fresh", BoundCall(call, free, lambda: [last[0].numpy()]))


class _Made:
    def __init__(self, kind: str, call: BoundCall) -> None:
        self.kind = kind
        self.call = call
