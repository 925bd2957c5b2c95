"""A graph of ATen operators, with what is ours compiled and the rest left to PyTorch.

In: a functional FX graph with fake tensors. Out: `CompiledGraph` and its `Report`. Invariants: what
an operator of ours refuses is handed over and named, never skipped; operators keep their order;
inputs that the graph updates are updated after everything else has run.
"""

from __future__ import annotations

import ctypes
import logging
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from tilewright.errors import UserError
from tilewright.frontend.torch import import_graph, name_of, unsupported
from tilewright.frontend.torch.dtypes import is_plain
from tilewright.torch.calls import Options
from tilewright.torch.checks import Check, take_checks
from tilewright.torch.native import NativeGraph
from tilewright.torch.report import Report

__all__ = ["CompiledGraph", "compile_graph", "overwrite"]

_log = logging.getLogger("tilewright.torch")
_NUMBERS = torch.SymInt | torch.SymFloat | torch.SymBool | int | float


class CompiledGraph:
    """Called with the graph's arguments; returns its results as a tuple.

    parts: the compiled graphs. report: what was handed to PyTorch.
    """

    def __init__(
        self,
        run: Any,
        parts: list[NativeGraph],
        report: Report,
        updated: list[int],
        checks: Sequence[Check] = (),
    ) -> None:
        self._run, self.parts, self.report, self._updated = run, parts, report, updated
        self._checks = checks

    @property
    def is_one_part(self) -> bool:
        """Is a call of its one compiled part all there is to running it?"""
        rest = self.report.handed or self._updated or self._checks
        return len(self.parts) == 1 and not rest

    def __call__(self, *args: Any) -> Any:
        """Run the graph; then check, then write the inputs that it updates."""
        results = self._run(*args)
        if self._checks:
            many = len(results) - len(self._checks)
            for check, info in zip(self._checks, results[many:], strict=True):
                check(info)
            results = results[:many]
        if not self._updated:
            return results
        count = len(results) - len(self._updated)
        for place, new in zip(self._updated, results[count:], strict=True):
            overwrite(args[place], new)
        return results[:count]


def overwrite(t: Any, new: Any) -> None:
    """Write `new` into `t`, as `copy_` does; PyTorch's version counter sees it."""
    same = t.dtype is new.dtype and t.shape == new.shape and is_plain(t) and is_plain(new)
    if same and t.is_contiguous() and new.is_contiguous():
        ctypes.memmove(t.data_ptr(), new.data_ptr(), t.numel() * t.element_size())
        if not t.is_inference():
            torch.autograd.graph.increment_version(t)
    else:
        t.copy_(new)


def compile_graph(
    module: Any, constants: Mapping[int, Any], options: Options, *, quiet: bool = False
) -> CompiledGraph:
    """Compile an FX GraphModule, which is changed.

    constants: placeholders, by position, that always hold these tensors. Nothing is built before
    the first call tells the sizes. quiet: do not log the report.
    """
    updated = _take_updates(module.graph)
    checks = take_checks(module.graph)
    report = Report()
    refused = unsupported(module.graph, module=module)
    if not refused:
        try:
            whole = _native(module.graph, module, constants, options)
        except UserError as error:
            refused = {n: error.message for n in module.graph.nodes if _is_operator(n)}
        else:
            report.native.update(name_of(n.target) for n in module.graph.nodes if _is_operator(n))
            report.graphs = 1
            _tell(report, quiet)
            return CompiledGraph(whole, [whole], report, updated, checks)
    return _partitioned(module, constants, options, refused, updated, checks, report, quiet)


def _is_operator(node: Any) -> bool:
    """A call that the report counts: an operator on tensors."""
    return (
        node.op == "call_function"
        and node.target is not operator.getitem
        and isinstance(node.target, torch._ops.OpOverload | torch._ops.HigherOrderOperator)
        and not isinstance(
            node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int
        )
    )


def _tell(report: Report, quiet: bool) -> None:
    if not quiet:
        _log.log(logging.WARNING if report.handed else logging.INFO, "%s", report)


def _take_updates(graph: Any) -> list[int]:
    """Turn `copy_` into inputs at the graph's end into further results; the places of these
    inputs.
    """
    places = {n: k for k, n in enumerate(n for n in graph.nodes if n.op == "placeholder")}
    copies = [
        n for n in graph.nodes
        if n.op == "call_function" and n.target is torch.ops.aten.copy_.default
        and n.args[0] in places
    ]  # fmt: skip
    if not copies:
        return []
    end = next(n for n in graph.nodes if n.op == "output")
    results = list(end.args[0])
    for n in copies:
        n.replace_all_uses_with(n.args[1])
    results = [r if r not in copies else r.args[1] for r in results]
    end.args = (tuple([*end.args[0], *(n.args[1] for n in copies)]),)
    updated = [places[n.args[0]] for n in copies]
    for n in copies:
        graph.erase_node(n)
    return updated


def _native(graph: Any, module: Any, constants: Mapping[int, Any], options: Options) -> NativeGraph:
    imported = import_graph(graph, constants=constants, module=module)
    end = next(n for n in graph.nodes if n.op == "output")
    return NativeGraph(imported, options, single=not isinstance(end.args[0], list | tuple))


class _Support(OperatorSupportBase):  # type: ignore[misc]
    """Which nodes may be part of a compiled graph."""

    def __init__(self, refused: Mapping[Any, str]) -> None:
        self.refused = refused

    def is_node_supported(self, submodules: Any, node: Any) -> bool:
        """Is it ours?"""
        if node.op != "call_function" or node in self.refused:
            return False
        if node.target is operator.getitem:
            return node.args[0] not in self.refused and node.args[0].op == "call_function"
        return isinstance(node.target, torch._ops.OpOverload) and not isinstance(
            node.meta.get("val"), _NUMBERS
        )


def _partitioned(
    module: Any,
    constants: Mapping[int, Any],
    options: Options,
    refused: Mapping[Any, str],
    updated: list[int],
    checks: Sequence[Check],
    report: Report,
    quiet: bool,
) -> CompiledGraph:
    places = {n: k for k, n in enumerate(n for n in module.graph.nodes if n.op == "placeholder")}
    held = {n.name: constants[k] for n, k in places.items() if k in constants}
    for node in module.graph.nodes:
        if _is_operator(node) and node in refused:
            name = name_of(node.target)
            report.handed[name] += 1
            report.reasons.setdefault(name, refused[node])
    partitioner = CapabilityBasedPartitioner(
        module, _Support(refused), allows_single_node_partition=True
    )
    fused = partitioner.fuse_partitions(partitioner.propose_partitions())
    parts: list[NativeGraph] = []
    for node in list(fused.graph.nodes):
        if node.op != "call_module" or not node.target.startswith("fused_"):
            continue
        inner = getattr(fused, node.target)
        names = [name_of(n.target) for n in inner.graph.nodes if _is_operator(n)]
        known = {k: held[a.name] for k, a in enumerate(node.args) if a.name in held}
        try:
            part = _native(inner.graph, fused, known, options)
        except UserError as error:
            for name in names:
                report.handed[name] += 1
                report.reasons.setdefault(name, error.message)
            continue
        report.native.update(names)
        setattr(fused, node.target, _Part(part))
        parts.append(part)
    report.graphs = len(parts)
    fused.recompile()
    _tell(report, quiet)
    return CompiledGraph(fused.forward, parts, report, updated, checks)


class _Part(torch.nn.Module):  # type: ignore[misc]
    """A compiled graph in the place of a submodule."""

    def __init__(self, graph: NativeGraph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *args: Any) -> Any:
        """Run it."""
        return self.graph(*args)
