"""`tilewright.compile` for modules and functions of PyTorch.

In: a module, example inputs. Out: `CompiledModule`, called as the module is. Invariants: a graph
serves the inputs whose kinds, dtypes and strides it was exported for (and any sizes that were
declared dynamic); others are exported and compiled when they first come; weights are shared with
the module, not copied unless they are packed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tilewright.errors import UserError
from tilewright.torch.calls import Options
from tilewright.torch.frozen import FrozenGraph
from tilewright.torch.graph import overwrite
from tilewright.torch.lowering import decompositions
from tilewright.torch.native import NativeGraph
from tilewright.torch.report import Report

__all__ = ["CompiledModule", "compile_module"]

_log = logging.getLogger("tilewright.torch")


class CompiledModule:
    """A compiled module. `report`: what is native and what PyTorch runs."""

    def __init__(self, module: Any, options: Options, dynamic_shapes: Any = None) -> None:
        self.module, self.options, self.dynamic_shapes = module, options, dynamic_shapes
        self._entries: dict[Any, _Entry] = {}
        self.report = Report()

    @property
    def entries(self) -> tuple[_Entry, ...]:
        """The graphs made so far."""
        return tuple(self._entries.values())

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run it. Errors: F005 where torch.export cannot capture the module."""
        leaves, spec = pytree.tree_flatten((args, named))
        casts = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        training = getattr(self.module, "training", False)
        key = (spec, casts, training, tuple(map(self._kind, leaves)))
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = self._export(args, named)
        if entry.updates_shared_memory(leaves):
            _log.warning("a tensor that is updated shares its memory with another: PyTorch runs it")
            with torch.no_grad():
                return self.module(*args, **named)
        return entry(leaves)

    def save(self, path: Any, *, targets: Sequence[str] | None = None) -> None:
        """Write the compiled module to a file that `tilewright.load` runs without PyTorch.

        targets: as `CompiledModel.save` takes them.

        The file takes and returns arrays in the order of the graph's tensors, in the memory order
        that the module was compiled with. Errors: R004 where nothing was compiled yet, F005 where
        PyTorch runs a part of it, or it updates a buffer.
        """
        if len(self._entries) != 1:
            raise UserError(
                "R004", f"the module is compiled for {len(self._entries)} kinds of inputs",
                hint="compile it with example inputs, of one kind, then save it",
            )  # fmt: skip
        (entry,) = self._entries.values()
        entry.native().model.save(path, targets=targets)

    def _kind(self, x: Any) -> Any:
        """What of an input a graph depends on: its guard."""
        if not isinstance(x, torch.Tensor):
            return (type(x), x)
        if self.dynamic_shapes is None:
            return (x.dtype, x.shape, x.stride())
        return (x.dtype, x.dim(), _order(x))

    def _export(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> _Entry:
        model = self.module
        if not isinstance(model, torch.nn.Module):
            model = _Function(model)
        try:
            with torch.inference_mode(False), torch.no_grad():
                exported = torch.export.export(
                    model, args, dict(named), dynamic_shapes=self.dynamic_shapes
                )
                exported = exported.run_decompositions(decompositions())
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                "F005",
                f"torch.export cannot capture the module: {str(error).splitlines()[0]}",
                hint='torch.compile(module, backend="tilewright") splits such modules',
            ) from error
        entry = _Entry(exported, self.options)
        self.report = entry.graph.report
        return entry


class _Function(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **named: Any) -> Any:
        return self.function(*args, **named)


def _order(x: Any) -> tuple[int, ...]:
    return tuple(sorted(range(x.dim()), key=lambda k: (-x.stride(k), k)))


def _storage(t: Any) -> int:
    return int(t.untyped_storage().data_ptr())


class _Entry:
    """One exported graph: arguments from leaves, results into the module's structure."""

    def __init__(self, exported: Any, options: Options) -> None:
        self.exported = exported
        signature = exported.graph_signature
        held = {**exported.state_dict, **exported.constants}
        self._lifted: list[Any] = []
        frozen: list[int] = []
        for place, spec in enumerate(signature.input_specs):
            kind = spec.kind.name
            if kind in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
                self._lifted.append(held[spec.target])
                frozen.append(place)
            elif kind == "USER_INPUT":
                self._lifted.append(None)
            else:
                raise UserError("F005", f"an input of kind {kind}")
        self._users = [k for k, t in enumerate(self._lifted) if t is None]
        names = {s.target: k for k, s in enumerate(signature.input_specs)}
        by_argument = {getattr(s.arg, "name", None): k for k, s in enumerate(signature.input_specs)}
        self._updates: list[tuple[int, int]] = []
        self._results: list[int] = []
        for k, out in enumerate(signature.output_specs):
            kind = out.kind.name
            if kind == "USER_OUTPUT":
                self._results.append(k)
            elif kind == "BUFFER_MUTATION":
                self._updates.append((k, names[out.target]))
            elif kind == "USER_INPUT_MUTATION":
                self._updates.append((k, by_argument[out.target]))
            else:
                raise UserError("F005", f"a result of kind {kind}")
        written = {place for _, place in self._updates}
        self._spec = exported.call_spec.out_spec
        self.graph = FrozenGraph(
            exported.graph_module, [k for k in frozen if k not in written], options
        )

    def native(self) -> NativeGraph:
        """The graph, where all of it is compiled. Errors: F005."""
        graph = self.graph.graph
        whole = graph is not None and len(graph.parts) == 1 and not graph.report.handed
        if graph is None or not whole or self._updates:
            left = ", ".join(graph.report.handed) if graph is not None else ""
            raise UserError(
                "F005", "PyTorch takes part in running the module",
                where=left or "a buffer that it updates",
                hint="save modules of which every operator is compiled",
            )  # fmt: skip
        return graph.parts[0]

    def _arguments(self, leaves: Sequence[Any]) -> list[Any]:
        args = list(self._lifted)
        for k, x in zip(self._users, leaves, strict=True):
            args[k] = x
        return args

    def updates_shared_memory(self, leaves: Sequence[Any]) -> bool:
        """Would an update show in another argument? The exported graph holds that none does."""
        if not self._updates:
            return False
        args = self._arguments(leaves)
        memory = Counter(_storage(x) for x in args if isinstance(x, torch.Tensor))
        return any(memory[_storage(args[place])] > 1 for _, place in self._updates)

    def __call__(self, leaves: Sequence[Any]) -> Any:
        args = self._arguments(leaves)
        with torch.no_grad():
            results = self.graph(*args)
            for k, place in self._updates:
                overwrite(args[place], results[k])
        return pytree.tree_unflatten([results[k] for k in self._results], self._spec)


def compile_module(
    module: Any,
    example_inputs: Any = None,
    *,
    options: Options,
    dynamic_shapes: Any = None,
) -> CompiledModule:
    """A module or function compiled for inference; for the example inputs now, where given.

    dynamic_shapes: as torch.export.export takes it. Errors: F005 where torch.export cannot capture
    the module.
    """
    compiled = CompiledModule(module, options, dynamic_shapes)
    if example_inputs is not None:
        if isinstance(example_inputs, Mapping):
            compiled(**example_inputs)
        elif isinstance(example_inputs, list | tuple):
            compiled(*example_inputs)
        else:
            compiled(example_inputs)
    return compiled
