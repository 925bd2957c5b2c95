"""torch.compile: the row's form compiled, constants frozen, results new or copied into a tensor.

In: a workload with a `torch` form, or a model of our own suite. Out: `Entry`s. Invariant: no
gradients, exactly `threads` threads, static shapes, each row compiled from nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilewright.tools.peers import BoundCall, Entry, Unavailable, package_version
from tilewright.tools.peers._forms import Form, fill_forms
from tilewright.tools.peers._models import TorchOps
from tilewright.tools.peers.torch import libraries, no_form, several, tensor_of
from tilewright.tools.suite import aligned_copy, aligned_empty, output_specs, peer_inputs
from tilewright.tools.zoo import ZOO

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from tilewright.tools.suite import Workload

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["Adapter"]

# Below this malloc hands the same memory out again, and a second compilation is not worth its time.
_WORTH_BINDING_BYTES = 32 << 20


class Adapter:
    """The peer `inductor`: torch.compile with its default mode."""

    mode: str | None = None

    def available(self) -> str:
        return package_version("torch")

    def prepare(self, workload: Workload, threads: int, copies: int) -> list[Entry]:
        import torch

        if not workload.torch and workload.model not in ZOO:
            raise Unavailable(no_form(workload, "torch"))
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        torch._dynamo.reset()
        torch._inductor.config.compile_threads = 1  # idle compile workers would spin
        torch._inductor.config.cpp.threads = threads
        torch._inductor.config.freezing = bool(workload.constants or workload.model)
        given, constants = peer_inputs(workload)
        if workload.model:
            function = torch.compile(_model(workload, given), mode=self.mode, dynamic=False)
            calls = [_bind(workload, function, list(given), given, False) for _ in range(copies)]
            settings = f"{threads} threads, {self.mode or 'default'} mode, frozen weights"
            return [Entry(calls, "fresh", settings)]
        entries = []
        for source in fill_forms(workload, workload.torch):
            if "out" in {word.strip("(") for word in source.replace(".", " ").split()}:
                continue  # the plain form is compiled, and copied into `out` below
            for bound in (False, True):
                if bound and (workload.fresh or _output_bytes(workload) < _WORTH_BINDING_BYTES):
                    continue
                function, names = self._function(source, given, constants, bound)
                calls = [_bind(workload, function, names, given, bound) for _ in range(copies)]
                settings = f"{threads} threads, {self.mode or 'default'} mode" + (
                    ", frozen constants" if constants else ""
                )
                entries.append(Entry(calls, "bound" if bound else "fresh", settings))
        return entries

    def _function(
        self, source: str, given: Mapping[str, Array], constants: Mapping[str, Array], bound: bool
    ) -> tuple[Any, list[str]]:
        import torch

        if "for t in range" in source:
            raise Unavailable("a loop of thousands of steps is not worth tracing")
        names = list(given)
        held = {name: tensor_of(array) for name, array in constants.items()}
        form = Form(source, libraries(), held)
        module = _module(form, names, {**held, **form.made}, bound)
        compiled = torch.compile(module, mode=self.mode, dynamic=False, fullgraph=False)
        return compiled, names


def _output_bytes(workload: Workload) -> int:
    import numpy as np

    return sum(
        int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in output_specs(workload)
    )


def _module(form: Form, names: list[str], held: Mapping[str, Any], bound: bool) -> Any:
    """A module whose parameters are the constants, so that freezing sees them as such."""
    import ast

    import torch

    owned = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}

    class Own(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            if node.id in owned:
                return ast.Attribute(ast.Name("self", ast.Load()), f"c_{node.id}", ast.Load())
            return node

    expression = ast.fix_missing_locations(Own().visit(ast.parse(ast.unparse(form.expression))))
    body: ast.expr = expression.body[0].value
    forward = form.function(["self", *names], body)

    class Row(torch.nn.Module):  # type: ignore[misc]
        def forward(self, outs: Any, *inputs: Any) -> Any:
            value = forward(self, *inputs)
            if outs is None:
                return value
            for out, part in zip(
                outs, value if isinstance(value, tuple | list) else [value], strict=True
            ):
                out.copy_(part)
            return None

    row = Row()
    for name, value in owned.items():
        if value.is_floating_point():
            row.register_parameter(f"c_{name}", torch.nn.Parameter(value, requires_grad=False))
        else:
            row.register_buffer(f"c_{name}", value)
    return row.eval()


def _model(workload: Workload, given: Mapping[str, Array]) -> Any:
    """A model of our own suite as a module that owns its weights."""
    import torch

    ops, names = TorchOps(), list(given)
    build = ZOO[workload.model].build
    with torch.no_grad():
        build(ops, {name: tensor_of(array) for name, array in given.items()})

    class Whole(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for place, value in enumerate(list(ops.held.values())):
                self.register_parameter(f"w{place}", torch.nn.Parameter(value, False))
            self.places = {name: f"w{place}" for place, name in enumerate(ops.held)}

        def forward(self, outs: None, *inputs: Any) -> Any:
            own = _Owned(self)
            return tuple(build(own, dict(zip(names, inputs, strict=True))))

    return Whole().eval()


class _Owned(TorchOps):
    """`Ops` whose weights are the parameters of a module, so that freezing sees them as such."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.held = {name: getattr(module, place) for name, place in module.places.items()}


def _bind(
    workload: Workload, function: Any, names: list[str], given: Mapping[str, Array], bound: bool
) -> BoundCall:
    inputs = {name: aligned_copy(array) for name, array in given.items()}
    tensors = [tensor_of(inputs[name]) for name in names]
    last: list[Any] = [None]
    if bound:
        buffers = [aligned_empty(*spec) for spec in output_specs(workload)]
        outs = tuple(tensor_of(buffer) for buffer in buffers)
        function(outs, *tensors)
        return BoundCall(lambda: function(outs, *tensors), inputs, lambda: buffers)
    function(None, *tensors)

    def call() -> None:
        last[0] = function(None, *tensors)

    return BoundCall(call, inputs, lambda: several(last[0]))
